"""The ledger of looks: each look is numbered, more of them cost what was said, and none is lost."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.confidence.looks import Look, calibration_level, comparison_level, next_level, together
from segpipe.errors import StorageError
from segpipe.evaluation import spent as spent_module
from segpipe.evaluation.spent import Question, Spent, spend


def ask(folder: Path, images: str, asked: str = "a", subject: str = "m") -> Spent:
    question = Question(subject, "a test", {"asked": asked}, set(images))
    return spend(str(folder), question, lambda number: 0.1 / number)


def test_looks_at_images_that_overlap_are_counted(tmp_path: Path) -> None:
    assert ask(tmp_path, "abc") == Spent(1, 0.1, 0.1)
    assert ask(tmp_path, "cde", "b") == Spent(2, 0.05, pytest.approx(0.15))
    assert ask(tmp_path, "fg", "c") == Spent(1, 0.1, 0.1), "other images"
    assert ask(tmp_path, "abc", "a", "another model") == Spent(1, 0.1, 0.1)
    assert ask(tmp_path, "g", "d") == Spent(2, 0.05, pytest.approx(0.15))


def test_the_same_test_again_is_no_further_look(tmp_path: Path) -> None:
    ask(tmp_path, "abc")
    ask(tmp_path, "abcd")
    assert ask(tmp_path, "abc") == Spent(1, 0.1, pytest.approx(0.15))
    assert ask(tmp_path, "abc", "b") == Spent(3, pytest.approx(0.1 / 3), pytest.approx(0.15 + 0.1 / 3))
    assert len(list(tmp_path.iterdir())) == 3


def test_of_two_looks_at_once_one_is_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, others = spent_module.add_record, []

    def late(*arguments: object) -> None:
        monkeypatch.setattr(spent_module, "add_record", add)
        others.append(ask(tmp_path, "ab", "quicker"))
        add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(spent_module, "add_record", late)
    assert ask(tmp_path, "bc").number == 2
    assert others == [Spent(1, 0.1, 0.1)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-5], "is not JSON"),
        (lambda text: "3", "does not hold a JSON object"),
        (
            lambda text: text.replace('version": 1', 'version": 2'),
            "has schema version 2, this segpipe reads 1",
        ),
        (lambda text: text.replace('"level": 0.1', '"level": 1.5'), "is damaged \\(level"),
        (lambda text: text.replace('"subject"', '"object"'), "is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_clear_line(tmp_path: Path, change: object, reason: str) -> None:
    ask(tmp_path, "abc")
    record = tmp_path / "00000001.json"
    record.write_text(change(record.read_text()))  # type: ignore[operator]
    with pytest.raises(StorageError, match=f"00000001.json {reason}.*: restore it; without it nobody knows"):
        ask(tmp_path, "xyz")


def test_a_removed_record_leaves_no_number_to_be_tried_for_ever(tmp_path: Path) -> None:
    ask(tmp_path, "a")
    ask(tmp_path, "b")
    (tmp_path / "00000001.json").unlink()
    assert ask(tmp_path, "a", "b").number == 1


@given(st.floats(0.01, 0.99), st.integers(1, 200))
def test_all_looks_together_stay_within_what_was_said(confidence: float, looks: int) -> None:
    error = Fraction(1 - confidence)
    series = [Fraction(1, k * (k + 1)) for k in range(1, looks + 1)]
    of_comparisons = [comparison_level(number, confidence) for number in range(1, looks + 1)]
    assert of_comparisons == pytest.approx([float(error * part) for part in series])
    assert sum(of_comparisons) < 1 - confidence
    of_calibrations = [calibration_level(number, confidence) for number in range(1, looks + 1)]
    assert of_calibrations == pytest.approx([float(error), *of_comparisons[1:]])
    assert sum(of_calibrations) < 1.5 * (1 - confidence)
    for number, level in enumerate(of_calibrations, 1):
        upcoming = next_level(Look(number, level, 0.5))
        assert upcoming == pytest.approx(calibration_level(number + 1, confidence))


def test_confidence_is_rounded_down() -> None:
    assert together(0.1) == 0.9
    assert together(0.1 + 0.1 / 6) == 0.8833
    assert together(0.1 + 0.1 / 6 + 0.1 / 12) == 0.875
    assert together(1.2) < 0
