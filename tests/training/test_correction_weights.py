"""What reviewed masks stand for: sums by hand, every possible draw counted out, weeks of queues simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.manifests.queues import Frame, Selected, Selection
from segpipe.training.correction_weights import FinalMask, Population, stood_for

WHEN = "2026-11-24T12:00:00+00:00"


def selection(
    drawn: dict[str, int] | None = None, chosen: Sequence[str] = (), frame: tuple[int, int] | None = None
) -> Selection:
    n_drawn = len(drawn or {})
    frames = {"m": Frame(*(frame or (n_drawn, n_drawn)))} if frame or n_drawn else {}
    return Selection(drawn or {}, tuple(chosen), frames, {}, WHEN)


def doubtful(*items: str) -> list[FinalMask]:
    return [FinalMask(item, "m", False, 1.0) for item in items]


def audits(n: int, share: float) -> list[FinalMask]:
    return [FinalMask(f"audit {number}", "m", True, share) for number in range(n)]


def test_under_a_budget_the_accepted_half_weighs_half() -> None:
    """Of 1,000 masks half are accepted; ten audits, 72 chosen by doubt and 18 drawn are reviewed."""
    chosen, drawn = [f"c{n}" for n in range(72)], [f"d{n}" for n in range(18)]
    selected = Selected({1: selection(dict.fromkeys(drawn, 1), chosen, (428, 18))})
    masks = [*audits(10, 0.02), *doubtful(*chosen, *drawn)]
    found = stood_for(masks, {"m": Population(500, 500, 72)}, selected)
    assert found is not None
    assert found[:10] == pytest.approx([50] * 10)
    assert found[10:82] == pytest.approx([1] * 72)
    assert found[82:] == pytest.approx([428 / 18] * 18)
    assert sum(found[:10]) / sum(found) == pytest.approx(0.5)


def test_masks_that_are_there_longer_had_more_chances() -> None:
    # a: there for both draws, 1 - (1 - 1/4)(1 - 1/3) = 1/2; b: for the second only, 1/3.
    records = {1: selection({"a": 1}, frame=(4, 1)), 2: selection({"b": 2}, frame=(3, 1))}
    selected = Selected(records)
    assert selected.probability("m", 1) == pytest.approx(1 / 2)
    assert selected.probability("m", 2) == pytest.approx(1 / 3)
    assert selected.probability("another", 1) == 0
    # 2 and 3, scaled to the ten masks there are.
    found = stood_for(doubtful("a", "b"), {"m": Population(0, 10, 0)}, selected)
    assert found == pytest.approx([4, 6])


def test_a_mask_whose_turn_came_after_it_was_drawn_stands_for_the_chosen() -> None:
    records = {1: selection({"a": 1, "b": 1}, frame=(5, 2)), 2: selection(chosen=["a", "c"])}
    found = stood_for(doubtful("a", "b", "c"), {"m": Population(0, 5, 2)}, Selected(records))
    assert found == pytest.approx([1, 3, 1])


def test_what_nobody_has_answered_is_stood_for_by_its_own_stratum() -> None:
    records = {1: selection({"a": 1, "b": 1}, ["c", "d"], (8, 2))}
    masks = [*audits(1, 0.5), *doubtful("a", "c")]
    assert stood_for(masks, {"m": Population(6, 10, 2)}, Selected(records)) == pytest.approx([6, 8, 2])


def test_without_a_draw_to_stand_for_the_rest_nothing_is_said() -> None:
    population = {"m": Population(6, 10, 2)}
    assert stood_for(doubtful("c"), population, Selected({})) is None
    assert stood_for(doubtful("c"), population, Selected({1: selection(chosen=["c", "d"])})) is None
    everything = {"m": Population(6, 2, 2)}
    assert stood_for(doubtful("c"), everything, Selected({1: selection(chosen=["c", "d"])})) == [2]


def test_models_are_told_apart() -> None:
    frames = {"m": Frame(4, 1), "n": Frame(10, 1)}
    selected = Selected({1: Selection({"a": 1, "b": 1}, (), frames, {}, WHEN)})
    masks = [*doubtful("a"), FinalMask("b", "n", False, 1.0)]
    populations = {"m": Population(0, 4, 0), "n": Population(0, 10, 0)}
    assert stood_for(masks, populations, selected) == pytest.approx([4, 10])


def test_a_model_whose_images_were_all_replaced_leaves_each_correction_to_itself() -> None:
    selected = Selected({1: selection({"a": 1}, frame=(4, 1))})
    assert stood_for(doubtful("a"), {}, selected) == [1]


def test_each_mask_is_stood_for_once_over_all_possible_draws() -> None:
    """Counted out: seven masks in doubt's order, two queues of one by order and two at random."""
    total: dict[str, float] = defaultdict(float)
    n = 0
    for first in combinations("bcdefg", 2):
        # The order goes on as if nothing had been drawn: b is next, whether it was drawn or not.
        rest = sorted(set("cdefg") - set(first))
        for second in combinations(rest, 2):
            records = {
                1: selection(dict.fromkeys(first, 1), ["a"], (6, 2)),
                2: selection(dict.fromkeys(second, 1), ["b"], (len(rest), 2)),
            }
            shown = sorted({"a", "b", *first, *second})
            found = stood_for(doubtful(*shown), {"m": Population(0, 7, 2)}, Selected(records))
            assert found is not None
            # Draws of the second queue are as likely as each other only among those with the same first.
            weight = 1 / (15 * len(list(combinations(rest, 2))))
            n += 1
            for item, count in zip(shown, found, strict=True):
                total[item] += weight * count
    assert n == 60, "5 of the first draws have b and leave 6 pairs, 10 leave 3"
    assert dict(total) == pytest.approx(dict.fromkeys("abcdefg", 1.0))


class Bucket:
    """Masks to review in order of doubt, the most doubtful first, that come by weeks; a queue for each."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.doubt = rng, np.zeros(0)
        self.since = np.zeros(0, int)
        self.drawn: dict[int, int] = {}
        self.chosen: set[int] = set()
        self.records: dict[int, Selection] = {}

    def week(self, new: int, by_order: int, at_random: int) -> None:
        number = len(self.records) + 1
        self.doubt = np.concatenate([self.doubt, self.rng.normal(size=new)])
        self.since = np.concatenate([self.since, np.full(new, number)])
        turns: list[int] = []
        for mask in np.argsort(self.doubt):
            if int(mask) not in self.chosen:
                turns.append(int(mask))
            if sum(one not in self.drawn for one in turns) == by_order:
                break
        self.chosen.update(turns)
        rest = [mask for mask in range(len(self.doubt)) if mask not in self.chosen and mask not in self.drawn]
        new_draws = [int(mask) for mask in self.rng.choice(rest, at_random, replace=False)]
        self.drawn.update(dict.fromkeys(new_draws, number))
        self.records[number] = selection(
            {str(mask): int(self.since[mask]) for mask in new_draws},
            list(map(str, turns)),
            (len(rest), at_random),
        )

    def estimate(self) -> float:
        """The mean doubt of all masks, from those shown."""
        shown = sorted({*self.drawn, *self.chosen})
        population = Population(0, len(self.doubt), len(self.chosen))
        found = stood_for(doubtful(*map(str, shown)), {"m": population}, Selected(self.records))
        return float(np.average(self.doubt[shown], weights=found))


def test_over_weeks_the_corrections_look_like_the_bucket() -> None:
    """Masks come in unequal numbers and half of the oldest are reviewed; the true mean is hit on average."""
    errors, as_before = [], []
    for seed in range(300):
        bucket = Bucket(np.random.default_rng(seed))
        for new in (200, 0, 100, 0, 20, 0):
            bucket.week(new, by_order=16, at_random=6)
        errors.append(bucket.estimate() - bucket.doubt.mean())
        shown = sorted({*bucket.drawn, *bucket.chosen})
        as_before.append(bucket.doubt[shown].mean() - bucket.doubt.mean())
    standard_error = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 4 * standard_error
    assert abs(np.mean(errors)) < 0.02
    assert np.mean(as_before) < -0.7, "counted once each, the doubtful ones are most of what is learnt"


@given(
    accepted=st.integers(1, 500),
    rest=st.integers(1, 500),
    taken=st.integers(0, 50),
    shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=5),
    n_drawn=st.integers(1, 20),
    n_chosen=st.integers(0, 20),
)
def test_strata_weigh_what_they_are(
    accepted: int, rest: int, taken: int, shares: list[float], n_drawn: int, n_chosen: int
) -> None:
    n_drawn, n_chosen, shares = min(n_drawn, rest), min(n_chosen, taken), shares[:accepted]
    chosen, drawn = [f"c{n}" for n in range(n_chosen)], [f"d{n}" for n in range(n_drawn)]
    selected = Selected({1: selection(dict.fromkeys(drawn, 1), chosen, (rest, n_drawn))})
    masks = [FinalMask(f"a{n}", "m", True, share) for n, share in enumerate(shares)]
    masks += doubtful(*drawn, *chosen)
    found = stood_for(masks, {"m": Population(accepted, rest + taken, taken)}, selected)
    assert found is not None
    assert min(found) >= 1
    assert sum(found[len(shares) : len(shares) + n_drawn]) == pytest.approx(rest)
    if n_chosen:
        assert sum(found[len(shares) + n_drawn :]) == pytest.approx(taken)
    inverse = np.array([1 / share for share in shares])
    by_hand = np.maximum(inverse / inverse.sum() * accepted, 1)  # a correction stands for itself at least
    assert found[: len(shares)] == pytest.approx(by_hand.tolist())
