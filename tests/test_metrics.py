from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segpipe import metrics
from segpipe.errors import DatasetError
from segpipe.metrics import IouRule, confusion_matrix, image_iou, segmentation_metrics

IGNORE = 255
TRUTH = np.array([[0, 0, 1], [1, 1, IGNORE]], dtype=np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 2, 2]], dtype=np.uint8)


def test_confusion_matrix_counts_true_rows_against_predicted_columns():
    expected = [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    confusion = confusion_matrix(TRUTH, PREDICTION, 4, IGNORE)
    assert confusion.tolist() == expected
    assert confusion.dtype == np.int64


def test_metrics_of_a_hand_worked_image():
    quality = segmentation_metrics(confusion_matrix(TRUTH, PREDICTION, 4, IGNORE))
    assert quality.pixel_accuracy == pytest.approx(3 / 5)
    assert quality.per_class_iou == (pytest.approx(1 / 2), pytest.approx(2 / 4), 0.0, None)
    assert quality.mean_iou == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)


def test_image_iou_leaves_out_absent_classes_and_ignored_pixels():
    assert image_iou(TRUTH, PREDICTION, 4, IGNORE, "every_class") == pytest.approx(1 / 3)
    assert image_iou(TRUTH, TRUTH * (TRUTH != IGNORE), 4, IGNORE, "every_class") == 1.0


@pytest.mark.parametrize("rule", get_args(IouRule))
def test_an_image_with_every_pixel_ignored_has_no_iou(rule):
    assert math.isnan(image_iou(np.full((2, 2), IGNORE), np.zeros((2, 2), dtype=int), 2, IGNORE, rule))
    with pytest.raises(DatasetError, match="ignored"):
        segmentation_metrics(np.zeros((2, 2), dtype=np.int64))


def test_one_false_pixel_on_a_clean_image_makes_no_bad_mask_by_the_graded_rule():
    """Its class weighs one pixel of a hundredth of 10,000: (0.9999 + 0 * 0.01) / 1.01."""
    clean = np.zeros((100, 100), dtype=np.uint8)
    one_false = clean.copy()
    one_false[50, 50] = 1
    assert image_iou(clean, one_false, 2, IGNORE, "every_class") == pytest.approx(0.9999 / 2)
    assert image_iou(clean, one_false, 2, IGNORE, "graded") == pytest.approx(0.9999 / 1.01)


@pytest.mark.parametrize(("pixels", "weight"), [(20, 0.2), (100, 1.0), (1000, 1.0)])
def test_an_invented_class_weighs_by_its_size_and_in_full_from_a_hundredth(pixels, weight):
    clean = np.zeros(10_000, dtype=np.uint8)
    invented = clean.copy()
    invented[:pixels] = 1
    iou = image_iou(clean, invented, 2, IGNORE, "graded")
    assert iou == pytest.approx((1 - pixels / 10_000) / (1 + weight))


def test_a_missed_small_object_counts_in_full_by_either_rule():
    truth = np.zeros(10_000, dtype=np.uint8)
    truth[:3] = 1
    for rule in get_args(IouRule):
        assert image_iou(truth, np.zeros_like(truth), 2, IGNORE, rule) == pytest.approx(0.9997 / 2)


def test_the_share_of_an_invented_class_is_of_the_labelled_pixels():
    truth = np.full(10_000, IGNORE, dtype=np.uint8)
    truth[:1000] = 0
    mask = np.zeros(10_000, dtype=np.uint8)
    mask[:5], mask[5000:] = 1, 1
    assert image_iou(truth, mask, 2, IGNORE, "graded") == pytest.approx(0.995 / 1.5)


def test_a_large_image_is_counted_in_strips_and_none_is_lost(monkeypatch):
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 3, (2, 11, 5))
    whole = confusion_matrix(truth, prediction, 3, IGNORE)
    assert whole.sum() == 55
    for pixels in (1, 7, 10, 54, 55):
        monkeypatch.setattr(metrics, "PIXELS_AT_ONCE", pixels)
        assert np.array_equal(confusion_matrix(truth, prediction, 3, IGNORE), whole)


def test_many_classes_do_not_overflow_eight_bits():
    labels = np.arange(200, dtype=np.uint8)
    assert np.array_equal(confusion_matrix(labels, labels, 200, IGNORE), np.eye(200))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 3]], [[0, 0]], "truth holds class 3"),
        ([[0, 0]], [[0, 3]], "prediction holds class 3"),
        ([[0, 0]], [[0, -1]], "prediction holds class -1"),
        ([[0, 0]], [[0], [0]], "differ in shape"),
    ],
)
def test_wrong_masks_are_named_in_one_line(truth, prediction, message):
    with pytest.raises(DatasetError, match=message) as caught:
        confusion_matrix(np.array(truth), np.array(prediction), 3, IGNORE)
    assert "\n" not in str(caught.value)


label_maps = hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 3]))


@given(truth=label_maps, prediction=label_maps, ignored=hnp.arrays(np.bool_, (4, 5)))
def test_iou_agrees_with_counting_sets_of_pixels(truth, prediction, ignored):
    truth = np.where(ignored, IGNORE, truth)
    kept = {(int(i), int(j)) for i, j in np.argwhere(~ignored)}
    ious = []
    for label in range(4):
        true_pixels = {p for p in kept if truth[p] == label}
        predicted_pixels = {p for p in kept if prediction[p] == label}
        if true_pixels | predicted_pixels:
            ious.append(len(true_pixels & predicted_pixels) / len(true_pixels | predicted_pixels))
    value = image_iou(truth, prediction, 4, IGNORE, "every_class")
    assert (math.isnan(value) and not ious) or value == pytest.approx(sum(ious) / len(ious))


@given(truth=label_maps, prediction=label_maps)
def test_confusion_matrices_of_parts_add_up_to_the_whole(truth, prediction):
    parts = [confusion_matrix(truth[i : i + 2], prediction[i : i + 2], 4, IGNORE) for i in (0, 2)]
    assert np.array_equal(sum(parts), confusion_matrix(truth, prediction, 4, IGNORE))
