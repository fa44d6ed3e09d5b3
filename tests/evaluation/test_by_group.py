"""`evaluate --group-by`: each group of images by itself, with figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segpipe.errors import DatasetError
from segpipe.evaluation.by_group import evaluate_groups
from segpipe.evaluation.measure import evaluate


def test_each_group_has_the_figures_of_its_own_images() -> None:
    found = evaluate_groups(
        ["b", "a", "b", "a", "unknown", "a"],
        np.array([0.2, 0.9, 0.4, 0.5, np.nan, 0.7]),
        np.array([0.5, 0.8, 0.7, 0.6, 0.9, 0.7]),
        {"wrong": -np.array([1.0, 9, 2, 3, 4, 5]), "right": np.array([1.0, 9, 2, 3, 4, 5])},
        routing="wrong",
    )
    assert list(found) == ["a", "b"]  # of "unknown" no IoU is known
    assert found["a"].n == 3
    assert found["a"].mean_image_iou == pytest.approx(0.7)
    assert found["a"].mean_confidence == pytest.approx(0.7)
    assert found["a"].gap_closed == pytest.approx(-1.0)
    assert (found["a"].best_score, found["a"].best_gap_closed) == ("right", pytest.approx(1.0))
    assert found["b"].gap_closed == pytest.approx(-1.0)


def test_one_image_has_no_order() -> None:
    found = evaluate_groups(["a"], np.array([0.5]), np.array([0.5]), {"score": np.array([1.0])}, "score")
    assert math.isnan(found["a"].gap_closed)
    assert math.isnan(found["a"].best_gap_closed)
    assert found["a"].best_score == "score"


def test_the_groups_of_a_split_add_up_to_it(streets: str, trained_model: str) -> None:
    whole = evaluate(trained_model, streets, "val", "cpu", group_by=r"\d$")
    assert sum(group.n for group in whole.groups.values()) == whole.n
    assert len(whole.groups) > 1
    weighted = sum(group.n * group.mean_image_iou for group in whole.groups.values()) / whole.n
    assert weighted == pytest.approx(whole.mean_image_iou)


def test_without_groups_there_are_none(streets: str, trained_model: str) -> None:
    assert evaluate(trained_model, streets, "val", "cpu").groups == {}


def test_an_image_that_the_pattern_does_not_name_is_refused(streets: str, trained_model: str) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        evaluate(trained_model, streets, "val", "cpu", group_by="nowhere")
