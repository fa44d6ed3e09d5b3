"""What is said of the groups that a training learns from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from segpipe.datasets import Sample, write_dataset
from segpipe.errors import DatasetError
from segpipe.groups import write_groups
from segpipe.inspection.facts import SplitFacts
from segpipe.training.learning_groups import learning_groups, shared_groups_line

KEYS = [f"{video}_{frame:02d}" for video in ("day", "night", "rain", "snow") for frame in range(3)]


@pytest.fixture
def facts(tmp_path: Path) -> SplitFacts:
    dataset = write_dataset(str(tmp_path), "videos", ["ground", "car"], 255)
    return SplitFacts(dataset, "train", usable=[Sample(key, f"{key}.png", f"{key}.png") for key in KEYS])


def said(facts: SplitFacts, pattern: str | None, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, "segpipe.training"):
        learning_groups(facts, pattern)
    return caplog.messages[-1]


def test_without_groups_what_is_assumed_is_said_with_a_way_to_say_better(
    facts: SplitFacts, caplog: pytest.LogCaptureFixture
) -> None:
    assert learning_groups(facts, None) is None
    line = said(facts, None, caplog)
    assert "nothing says which images of split train belong together" in line
    assert "--group-by '^[^_/]+(?=_)' (4 groups)" in line


def test_groups_by_a_pattern_and_by_the_file(facts: SplitFacts, caplog: pytest.LogCaptureFixture) -> None:
    assert learning_groups(facts, "^[^_]+") == [key.partition("_")[0] for key in KEYS]
    assert "of 4 groups: whole ones are held back" in said(facts, "^[^_]+", caplog)
    write_groups(facts.dataset, {key: "one" if key < "night" else "two" for key in KEYS})
    assert learning_groups(facts, None) == ["one"] * 3 + ["two"] * 9
    assert "of 2 groups, too few" in said(facts, None, caplog)


def test_an_image_without_a_group_is_named(facts: SplitFacts) -> None:
    with pytest.raises(DatasetError, match="finds no group in the image key 'day_00'"):
        learning_groups(facts, "^[0-9]+")


def test_groups_that_teach_and_validate_are_named() -> None:
    (line,) = shared_groups_line(["a", "b", "c", "d", "e"], ["e", "d", "c", "b", "x"], "val")
    assert line.startswith("split val has images of groups that teach the networks ('b', 'c', 'd', ...)")
    assert shared_groups_line(["a"], ["b"], "val") == []
    assert shared_groups_line(None, None, "val") == []
