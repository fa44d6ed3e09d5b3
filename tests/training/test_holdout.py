"""Who learns from which labelled image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
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


group_sizes = st.lists(st.integers(2, 60), min_size=4, max_size=12)


def names_of(sizes: list[int]) -> list[str]:
    return [f"video {number}" for number, size in enumerate(sizes) for _ in range(size)]


@given(sizes=group_sizes, seed=st.integers(0, 9))
def test_of_four_groups_or_more_each_is_in_one_part_only(sizes: list[int], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(names_of(sizes)).tolist()
    for parts in (split_parts(len(groups), groups), unseen_parts(len(groups), groups)):
        of_part = [
            {groups[row] for row in part.tolist()} for part in (parts.taught, parts.judged, parts.tuning)
        ]
        assert sum(map(len, of_part)) == len(sizes)
        assert sum(map(len, (parts.taught, parts.judged, parts.tuning))) == len(groups)
        assert of_part[1]
        assert of_part[2]


@given(sizes=group_sizes)
def test_the_generator_keeps_the_most_of_groups_of_about_a_size(sizes: list[int]) -> None:
    groups = names_of([20 + size % 5 for size in sizes] * 3)
    assert 0.7 < len(split_parts(len(groups), groups).taught) / len(groups) < 0.9


def test_twenty_groups_by_hand() -> None:
    """A fifth of twenty is four; a quarter of those is one."""
    groups = names_of([10] * 20)
    parts = split_parts(200, groups)
    assert [len(part) for part in (parts.taught, parts.judged, parts.tuning)] == [160, 30, 10]


def test_a_group_that_is_most_of_the_images_stays_with_the_generator() -> None:
    groups = names_of([500, 20, 20, 20])
    assert {groups[row] for row in split_parts(560, groups).taught.tolist()} >= {"video 0"}


def test_fewer_than_four_groups_are_held_back_by_stretches() -> None:
    groups = names_of([100, 50, 30])
    with_groups, without = split_parts(180, groups), split_parts(180)
    assert with_groups.judged.tolist() == without.judged.tolist()


def test_stretches_lie_within_a_group_whose_keys_lie_between_those_of_another() -> None:
    """Of 40 frames 8 stretches of five have their last held back; of two cameras by turns, the last of each
    five frames of one camera."""
    parts = split_parts(40, ["left", "right"] * 20)
    held_back = torch.cat([parts.judged, parts.tuning]).sort().values.tolist()
    assert held_back == [8, 9, 18, 19, 28, 29, 38, 39]
