"""Who learns from which labelled image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.training.holdout import split_parts, unseen_parts


def n_runs(rows: list[int]) -> int:
    """Runs of neighbouring rows."""
    return 1 + int((np.diff(rows) > 1).sum())


@given(n_images=st.integers(1, 400))
def test_no_part_is_empty_and_together_they_are_all_images(n_images: int) -> None:
    parts = split_parts(n_images)
    taught, judged, tuning = (set(part.tolist()) for part in (parts.taught, parts.judged, parts.tuning))
    assert taught
    assert judged
    assert tuning
    assert taught | judged | tuning == set(range(n_images))


@given(n_images=st.integers(5, 400))
def test_about_a_fifth_is_held_back_from_the_generator_in_whole_stretches(n_images: int) -> None:
    parts = split_parts(n_images)
    taught = parts.taught.tolist()
    held_back = sorted({*parts.judged.tolist(), *parts.tuning.tolist()})
    assert not set(taught) & set(held_back)
    stretches = n_runs(held_back)
    assert stretches == min(8, n_images // 5)
    assert n_runs(taught) == stretches
    # Of each stretch a fifth, less than one image more or less.
    assert abs(len(held_back) - n_images / 5) < stretches


@given(n_images=st.integers(10, 400))
def test_the_score_is_not_fitted_on_what_the_judge_has_learnt_from(n_images: int) -> None:
    parts = split_parts(n_images)
    judged, tuning = parts.judged.tolist(), parts.tuning.tolist()
    assert not set(judged) & set(tuning)
    assert n_runs(tuning) == (2 if n_images >= 35 else 1)
    assert n_runs(judged) + n_runs(tuning) == n_runs(sorted(judged + tuning))


def test_forty_images_by_hand() -> None:
    parts = split_parts(40)
    assert parts.judged.tolist() == [4, 9, 19, 24, 29, 39]
    assert parts.tuning.tolist() == [14, 34]


def test_of_a_single_stretch_the_held_back_images_do_both() -> None:
    parts = split_parts(9)
    assert parts.taught.tolist() == list(range(8))
    assert parts.judged.tolist() == parts.tuning.tolist() == [8]


@pytest.mark.parametrize("n_images", [1, 4])
def test_of_a_handful_every_image_is_for_everything(n_images: int) -> None:
    parts = split_parts(n_images)
    for part in (parts.taught, parts.judged, parts.tuning):
        assert part.tolist() == list(range(n_images))


@given(n_images=st.integers(0, 400))
def test_a_generator_that_was_taught_nothing_leaves_all_images_to_the_judge_and_its_score(
    n_images: int,
) -> None:
    parts = unseen_parts(n_images)
    judged, tuning = parts.judged.tolist(), parts.tuning.tolist()
    assert not len(parts.taught)
    assert sorted(judged + tuning) == list(range(n_images)), "none is left out, none does both"
    assert abs(len(tuning) - n_images / 5) < max(1, min(8, n_images // 5))


def test_forty_unseen_images_by_hand() -> None:
    assert unseen_parts(40).tuning.tolist() == [4, 9, 14, 19, 24, 29, 34, 39]
    assert unseen_parts(4).judged.tolist() == [0, 1, 2, 3]
