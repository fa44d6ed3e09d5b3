"""Reliability bins: worked out by hand, and against the calibration error that they must add up to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe.confidence.calibration_error import expected_calibration_error
from segpipe.reports.reliability import ReliabilityBin, reliability_bins


def test_bins_hold_equally_many_images_in_order_of_confidence() -> None:
    assert reliability_bins([0.9, 0.2, 0.7, 0.4], [1.0, 0.0, 0.5, 0.5], n_bins=2) == [
        ReliabilityBin(pytest.approx(0.3), 0.25, 2),
        ReliabilityBin(pytest.approx(0.8), 0.75, 2),
    ]


def test_one_confidence_is_one_bin() -> None:
    assert reliability_bins([0.5] * 40, [0.0] * 20 + [1.0] * 20) == [ReliabilityBin(0.5, 0.5, 40)]


def test_a_single_image_is_one_bin() -> None:
    assert reliability_bins([0.7], [0.1]) == [ReliabilityBin(0.7, 0.1, 1)]


shares = st.integers(0, 8).map(lambda eighths: eighths / 8)  # few values, so that many are equal


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=60), st.integers(1, 12), st.randoms())
def test_the_bins_add_up_to_the_calibration_error_in_any_order(
    images: list[tuple[float, float]], n_bins: int, random: object
) -> None:
    confidences, ious = np.asarray(images).T
    bins = reliability_bins(confidences, ious, n_bins)
    assert sum(group.images for group in bins) == len(images)
    assert [group.confidence for group in bins] == sorted(group.confidence for group in bins)
    gaps = sum(group.images * abs(group.confidence - group.iou) for group in bins) / len(images)
    assert gaps == pytest.approx(expected_calibration_error(confidences, ious, n_bins), abs=1e-12)
    random.shuffle(images)  # type: ignore[attr-defined]
    shuffled = np.asarray(images).T
    assert [group.images for group in reliability_bins(*shuffled, n_bins)] == [group.images for group in bins]
