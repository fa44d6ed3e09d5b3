"""A model is promoted when it is better beyond chance, and one command goes back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_model import write_random_model, write_trusting_policy

import segpipe
from segpipe import storage
from segpipe.config import PromoteSettings
from segpipe.datasets import fingerprint, list_samples, open_dataset
from segpipe.errors import DatasetError, ModelError
from segpipe.evaluation.promotion import compare_paired, go_back, promote
from segpipe.evaluation.spent import Spent
from segpipe.models import promotion_line
from segpipe.models.promotion_line import promotions, resolve
from segpipe.numbered_records import numbered


@pytest.fixture
def good(trained_model: str, tmp_path: Path) -> str:
    return write_trusting_policy(str(shutil.copytree(trained_model, tmp_path / "good")))


@pytest.fixture
def poor(streets: str, tmp_path: Path) -> str:
    """Random weights for the classes of `streets`."""
    return write_trusting_policy(
        write_random_model(str(tmp_path / "poor"), classes=open_dataset(streets).classes)
    )


@pytest.fixture
def settings(streets: str, tmp_path: Path) -> Callable[..., PromoteSettings]:
    line = str(tmp_path / "line")

    def make(candidate: str, **values: object) -> PromoteSettings:
        fixed = {"line": line, "data": streets, "split": "calibration", "device": "cpu"}
        return PromoteSettings(candidate=candidate, **(fixed | values))  # type: ignore[arg-type]

    return make


def test_the_better_model_is_promoted_and_the_worse_is_not(
    good: str, poor: str, settings: Callable[..., PromoteSettings]
) -> None:
    line = settings(good).line
    first = promote(settings(poor))
    assert first.promoted
    assert first.comparison is None
    second = promote(settings(good))
    assert second.promoted
    assert second.replaces == first.model_id
    assert second.comparison is not None
    assert second.comparison.n == 40
    assert 0 < second.comparison.lower_bound < second.comparison.difference
    assert segpipe.load_model(line, "cpu").model_id == second.model_id
    third = promote(settings(poor))
    assert not third.promoted
    assert "not shown to be better" in third.reason
    assert segpipe.load_model(line, "cpu").model_id == second.model_id

    back = go_back(line)
    assert back.model_id == first.model_id
    assert segpipe.load_model(line, "cpu").model_id == first.model_id
    with pytest.raises(ModelError, match="no earlier model to go back to"):
        go_back(line)
    assert [entry.model_id for entry in promotions(line)] == [
        first.model_id, second.model_id, first.model_id
    ]  # fmt: skip


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_that_was_killed_is_finished_by_the_same_command(
    after: bool,
    good: str,
    poor: str,
    settings: Callable[..., PromoteSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = storage.create

    def killed(uri: str, data: bytes) -> None:
        if after or "/promotions/" not in uri:
            create(uri, data)
        if "/promotions/" in uri:
            raise KilledError

    for number, candidate in enumerate((poor, good), 1):
        with monkeypatch.context() as patched:
            patched.setattr(storage, "create", killed)
            with pytest.raises(KilledError):
                promote(settings(candidate))
        line = settings(candidate).line
        if after:
            with pytest.raises(ModelError, match=r"stands for .* already, since 20"):
                promote(settings(candidate))
        else:
            assert promote(settings(candidate)).promoted
        assert [entry.model for entry in promotions(line)] == [poor, good][:number]
        assert resolve(line) == candidate
    assert promotions(line)[-1].evidence["lower_bound"] > 0
    assert promotions(line)[-1].evidence["comparison_number"] == 1, "the same comparison, finished"


@pytest.mark.parametrize("after", [False, True])
def test_a_comparison_that_was_killed_when_it_was_entered_is_the_first_still(
    after: bool,
    good: str,
    poor: str,
    settings: Callable[..., PromoteSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = storage.create

    def killed(uri: str, data: bytes) -> None:
        if after:
            create(uri, data)
        raise KilledError

    promote(settings(poor))
    with monkeypatch.context() as patched:
        patched.setattr(storage, "create", killed)
        with pytest.raises(KilledError):
            promote(settings(good))
    result = promote(settings(good))
    assert result.promoted
    assert result.comparison is not None
    assert result.comparison.comparison_number == 1


def test_a_candidate_without_a_promise_is_refused(
    trained_model: str, settings: Callable[..., PromoteSettings]
) -> None:
    with pytest.raises(ModelError, match="run `segpipe calibrate` on it first"):
        promote(settings(trained_model))
    assert promotions(settings(trained_model).line) == []


def test_a_split_that_the_candidate_has_learnt_from_is_refused(
    good: str, settings: Callable[..., PromoteSettings]
) -> None:
    with pytest.raises(DatasetError, match="was trained on: compare on a split that no model learns from"):
        promote(settings(good, split="train"))


def test_the_model_in_use_is_no_candidate(good: str, settings: Callable[..., PromoteSettings]) -> None:
    promote(settings(good))
    with pytest.raises(ModelError, match="already"):
        promote(settings(good))
    with pytest.raises(ModelError, match="no earlier model"):
        go_back(settings(good).line)


def test_frames_of_a_group_count_as_one(
    good: str, poor: str, settings: Callable[..., PromoteSettings]
) -> None:
    promote(settings(poor))
    with pytest.raises(
        DatasetError, match=r"has \d+ groups with a labelled pixel: fewer than 30 cannot show"
    ):
        promote(settings(good, group_by="^.{4}"))
    assert numbered(f"{settings(good).line}/comparisons") == {}, "nothing was spent on that"


def test_groups_csv_says_what_counts_as_one(
    good: str, poor: str, streets: str, tmp_path: Path, settings: Callable[..., PromoteSettings]
) -> None:
    data = shutil.copytree(streets, tmp_path / "grouped")
    keys = [sample.key for sample in list_samples(open_dataset(streets), "calibration")]
    lines = [f"{key},video {number % 35}" for number, key in enumerate(keys)]
    (data / "groups.csv").write_text("\n".join(["key,group", *lines]))
    promote(settings(poor, data=str(data)))
    result = promote(settings(good, data=str(data)))
    assert result.comparison is not None
    assert result.comparison.n == 35


def p_value(differences: Sequence[float], mean: float, level: float) -> float:
    """A gambler who bets on each difference being above the mean, written out."""
    capital = best = 1.0
    seen = [(1 - difference) / 2 for difference in differences]
    for place, loss in enumerate(seen):
        sums, spread = 0.5, 0.25
        for number, one in enumerate(seen[:place], 2):
            sums += one
            spread += (one - sums / number) ** 2
        variance = spread / (place + 1)
        bet = min(math.sqrt(2 * math.log(1 / level) / (len(seen) * variance)), 0.99 / (1 - (1 - mean) / 2))
        capital *= 1 + bet * ((1 - mean) / 2 - loss)
        best = max(best, capital)
    return 1 / best


def test_the_comparison_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(3)
    old = rng.beta(5, 2, 60)
    new = np.clip(old + rng.normal(0.15, 0.1, 60), 0, 1)
    found = compare_paired(old, new, Spent(2, 0.01, 0.03), 4)
    assert found.difference == pytest.approx((new - old).mean())
    assert (found.n, found.old_mean_iou, found.comparison_number) == (60, pytest.approx(old.mean()), 2)
    assert found.confidence == 0.99
    shuffled = np.random.default_rng(4).permutation(new - old).tolist()
    assert found.p_value == pytest.approx(p_value(shuffled, 0, 0.01))
    assert 0 < found.lower_bound < found.difference
    assert p_value(shuffled, found.lower_bound, 0.01) == pytest.approx(0.01)
    assert found.is_better
    assert not compare_paired(new, old, Spent(1, 0.01, 0.01), 4).is_better


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(0.001, 0.5))
def test_the_bound_and_the_p_value_say_the_same(differences: list[float], level: float) -> None:
    old = np.array([max(0.0, -difference) for difference in differences])
    found = compare_paired(old, old + np.array(differences), Spent(1, level, level), 0)
    assert -1 <= found.lower_bound <= found.difference
    if abs(found.lower_bound) > 1e-9:
        assert found.is_better == (found.p_value <= level and found.difference > 0)


@pytest.mark.parametrize(
    ("gain", "loss", "share"), [(0.02, 0.38, 0.05), (0.01, 0.49, 0.02), (0.001, 0.999, 0.001)]
)
@pytest.mark.parametrize("n", [30, 60, 400])
def test_models_that_are_on_average_no_better_are_rarely_promoted(
    gain: float, loss: float, share: float, n: int
) -> None:
    """Nearly every image gains a little and few lose much; 16 of 200 are above 1 in 20 once in 40 times."""
    rng = np.random.default_rng(0)
    promoted = 0
    for seed in range(200):
        differences = np.where(rng.random(n) < share, -loss, gain)
        promoted += compare_paired(
            np.ones(n) - gain, np.ones(n) - gain + differences, Spent(1, 0.05, 0.05), seed
        ).is_better
    assert promoted <= 16


def test_models_that_are_equally_good_are_rarely_promoted() -> None:
    rng = np.random.default_rng(0)
    promoted = 0
    for seed in range(200):
        old, new = rng.beta(5, 2, (2, 60))
        promoted += compare_paired(old, new, Spent(1, 0.05, 0.05), seed).is_better
    assert promoted <= 16


def test_each_further_candidate_is_compared_more_strictly_and_the_same_again_is_no_further_one(
    good: str, poor: str, streets: str, tmp_path: Path, settings: Callable[..., PromoteSettings]
) -> None:
    promote(settings(good))
    others = [str(shutil.copytree(poor, tmp_path / f"poor {number}")) for number in range(2)]
    first = promote(settings(others[0]))
    second = promote(settings(others[1], confidence=0.9))
    again = promote(settings(others[0]))
    assert first.comparison is not None
    assert second.comparison is not None
    assert again.comparison == first.comparison
    assert (first.comparison.comparison_number, first.comparison.confidence) == (1, 0.975)
    assert second.comparison.comparison_number == 2
    assert second.comparison.confidence == pytest.approx(1 - 0.1 / 6)
    assert "; comparison 2 on such images" in second.reason
    records = numbered(f"{settings(good).line}/comparisons")
    assert len(records) == 2, "what was refused is in the history, too"
    assert others[0] in storage.read_bytes(records[1]).decode()


def test_promotions_by_a_segpipe_without_a_ledger_count(
    good: str, poor: str, streets: str, settings: Callable[..., PromoteSettings]
) -> None:
    promote(settings(poor))
    line = settings(good).line
    measured_on = fingerprint(open_dataset(streets), "calibration")
    for number, evidence in enumerate(
        ({"fingerprint": measured_on, "lower_bound": 0.1}, {"fingerprint": "other", "lower_bound": 0.1}), 1
    ):
        entry = promotions(line)[0]
        promotion_line.promote(line, replace(entry, evidence=evidence), number)
    result = promote(settings(good))
    assert result.comparison is not None
    assert result.comparison.comparison_number == 2
    assert result.comparison.confidence == pytest.approx(1 - 0.05 / 6)
