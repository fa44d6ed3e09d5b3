"""The masks a judge learns from are wrong in the way they say, and masks still."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.training.judge_masks import (
    MIXTURE,
    Source,
    coarsen,
    draw_sources,
    draw_unseen,
    make_wrong,
    move_patches,
    shift,
    shown_labels,
    swap_class,
)

N_CLASSES = 5
Mistake = Callable[[torch.Tensor, random.Random], torch.Tensor]
MISTAKES: dict[str, Mistake] = {
    "swap": partial(swap_class, N_CLASSES),
    "coarsen": coarsen,
    "move": move_patches,
    "shift": shift,
    "any": lambda labels, draws: make_wrong(labels, N_CLASSES, draws),
}


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(N_CLASSES, (height, width), generator=torch.Generator().manual_seed(seed))


def numbered(height: int, width: int) -> torch.Tensor:
    """Every pixel another number, so that it can be seen where each went."""
    return torch.arange(height * width).view(height, width)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
@settings(max_examples=40, deadline=None)
@given(
    height=st.sampled_from([16, 32, 48]), width=st.sampled_from([16, 32, 112]), seed=st.integers(0, 2**32 - 1)
)
def test_a_wrong_mask_is_a_mask_of_the_same_kind(
    mistake: Mistake, height: int, width: int, seed: int
) -> None:
    labels = noise(height, width, seed)
    before = labels.clone()
    wrong = mistake(labels, random.Random(seed))
    assert wrong.shape == labels.shape
    assert wrong.dtype == labels.dtype
    assert wrong.min() >= 0
    assert wrong.max() < N_CLASSES
    assert torch.equal(labels, before), "the truth itself must stay as it is"


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_nearly_always_made(mistake: Mistake) -> None:
    labels = noise(32, 32)
    kept = sum(torch.equal(mistake(labels, random.Random(seed)), labels) for seed in range(60))
    assert kept < 25, "a class is now and then called what it is"


def test_one_class_is_called_another_and_the_others_stay() -> None:
    labels = noise(16, 16)
    for seed in range(20):
        wrong = swap_class(N_CLASSES, labels, random.Random(seed))
        changes = {(int(old), int(new)) for old, new in zip(labels.ravel(), wrong.ravel(), strict=True)}
        changed = {change for change in changes if change[0] != change[1]}
        assert len(changed) <= 1
        for old, new in changed:
            assert torch.equal(wrong, torch.where(labels == old, new, labels))


def test_a_coarse_mask_is_made_of_blocks_that_show_their_centre() -> None:
    labels = numbered(32, 64)
    steps = set()
    for seed in range(20):
        wrong = coarsen(labels, random.Random(seed))
        step = int((32 * 64 / len(wrong.unique())) ** 0.5)
        steps.add(step)
        centres = labels[step // 2 :: step, step // 2 :: step]
        assert torch.equal(wrong, centres.repeat_interleave(step, 0).repeat_interleave(step, 1))
    assert steps == {4, 8, 16}


def test_moved_patches_are_one_to_four_rectangles_from_elsewhere() -> None:
    labels = numbered(32, 64)
    for seed in range(30):
        wrong = move_patches(labels, random.Random(seed))
        moved_by = set((wrong - labels).unique().tolist()) - {0}
        assert len(moved_by) <= 4
        for offset in moved_by:
            rows, columns = torch.nonzero(wrong - labels == offset, as_tuple=True)
            assert rows.max() - rows.min() < 16, "at most half of the side"
            assert columns.max() - columns.min() < 32


def test_a_shifted_mask_goes_round_the_edges_by_at_most_an_eighth() -> None:
    labels = numbered(32, 64)
    ways = set()
    for seed in range(40):
        wrong = shift(labels, random.Random(seed))
        down, right = (int(place) for place in torch.nonzero(wrong == 0)[0])
        down, right = (down + 16) % 32 - 16, (right + 32) % 64 - 32
        assert abs(down) <= 4
        assert abs(right) <= 8
        assert torch.equal(wrong, labels.roll((down, right), (0, 1)))
        ways.add((down, right))
    assert {down > 0 for down, _ in ways} == {right > 0 for _, right in ways} == {True, False}


def test_sources_come_in_their_shares() -> None:
    drawn = Counter(draw_sources(MIXTURE, 20_000, random.Random(0)))
    assert sum(MIXTURE.sources.values()) == pytest.approx(1)
    for source in Source:
        assert drawn[source] / 20_000 == pytest.approx(MIXTURE.sources[source], abs=0.015)


def test_the_generators_own_masks_are_of_the_images_their_source_names() -> None:
    draws = random.Random(0)
    assert all(draw_unseen(MIXTURE, Source.OWN_UNSEEN, draws) for _ in range(50))
    assert not any(draw_unseen(MIXTURE, Source.OWN_SEEN, draws) for _ in range(50))
    for source in (Source.EARLIER, Source.TRUTH, Source.MADE_WRONG, Source.MISMATCHED):
        share = sum(draw_unseen(MIXTURE, source, draws) for _ in range(4000)) / 4000
        assert share == pytest.approx(MIXTURE.unseen, abs=0.03)


def three_batches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The generator's masks, an earlier generator's, and the truth; of three images, all different."""
    return tuple(torch.stack([noise(16, 16, 10 * kind + row) for row in range(3)]) for kind in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("source", "kind"),
    [(Source.OWN_UNSEEN, 0), (Source.OWN_SEEN, 0), (Source.EARLIER, 1), (Source.TRUTH, 2)],
)
def test_each_source_shows_its_own_mask_of_the_image(source: Source, kind: int) -> None:
    batches = three_batches()
    shown = shown_labels([source] * 3, *batches, N_CLASSES, random.Random(0))
    assert torch.equal(shown, batches[kind])


def test_a_mismatched_mask_is_another_images() -> None:
    own, earlier, truth = three_batches()
    origins = set()
    for seed in range(20):
        shown = shown_labels([Source.MISMATCHED] * 3, own, earlier, truth, N_CLASSES, random.Random(seed))
        for row, mask in enumerate(shown):
            found = [
                (name, other)
                for name, batch in (("own", own), ("truth", truth))
                for other in range(3)
                if torch.equal(mask, batch[other])
            ]
            assert len(found) == 1
            assert found[0][1] != row
            origins.add(found[0][0])
    assert origins == {"own", "truth"}


def test_a_batch_mixes_its_sources_row_by_row() -> None:
    own, earlier, truth = three_batches()
    sources = [Source.TRUTH, Source.MADE_WRONG, Source.EARLIER]
    shown = shown_labels(sources, own, earlier, truth, N_CLASSES, random.Random(1))
    assert shown.dtype == torch.int64
    assert torch.equal(shown[0], truth[0])
    assert torch.equal(shown[2], earlier[2])
    assert not torch.equal(shown[1], truth[1])
