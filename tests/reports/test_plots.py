"""The pictures decode, and their ink says what the numbers say."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageColor

from segpipe.reports import plots
from segpipe.reports.measured import Routing

IOUS = np.linspace(0.05, 0.95, 200)
ANY_ORDER = np.random.default_rng(3).permutation(200).astype(float)


def pixels(png: bytes) -> np.ndarray:
    with Image.open(BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        assert 800 <= image.width <= 1200
        assert 200 <= image.height <= 1500
        return np.asarray(image.convert("RGB"))


def inked(png: bytes, colour: str) -> np.ndarray:
    """Where the picture has exactly this colour, (H, W) bool."""
    return (pixels(png) == ImageColor.getrgb(colour)).all(axis=2)


def mean_height(png: bytes) -> float:
    """How high the blue ink lies on average, in pixels above the bottom."""
    ink = inked(png, plots.BLUE)
    return float(ink.shape[0] - np.nonzero(ink)[0].mean())


def test_a_better_discriminator_has_a_lower_risk_coverage_curve() -> None:
    good = plots.risk_coverage_png(1 - IOUS, {"discriminator": IOUS, "entropy": ANY_ORDER})
    bad = plots.risk_coverage_png(1 - IOUS, {"discriminator": -IOUS, "entropy": ANY_ORDER})
    assert mean_height(good) < mean_height(bad)


def test_every_rival_has_its_own_ink_and_the_discriminator_has_most() -> None:
    names = ["max_softmax", "entropy", "soft_dice", "flip_tta", "adversarial"]
    scores = {name: np.roll(IOUS, 7 * number) for number, name in enumerate(names)}
    png = plots.risk_coverage_png(1 - IOUS, scores | {"discriminator": ANY_ORDER})
    ink = {colour: inked(png, colour).sum() for colour in plots.RIVAL_COLOURS[: len(names)]}
    assert min(ink.values()) > 0
    assert inked(png, plots.BLUE).sum() > max(ink.values())


def test_more_scores_than_colours_can_be_drawn_without_a_discriminator() -> None:
    pixels(plots.risk_coverage_png(1 - IOUS, {f"score {n}": np.roll(IOUS, n) for n in range(14)}))


def test_too_sure_a_confidence_lies_below_the_diagonal() -> None:
    too_sure = plots.calibration_png(np.clip(IOUS + 0.3, 0, 1), IOUS)
    too_modest = plots.calibration_png(np.clip(IOUS - 0.3, 0, 1), IOUS)

    def left_of_ink(png: bytes) -> float:
        return float(np.nonzero(inked(png, plots.BLUE))[1].mean())

    assert left_of_ink(too_sure) > left_of_ink(too_modest) + 100


@pytest.mark.parametrize("n_accepted", [0, 20, 100, 200])
def test_the_area_of_the_accepted_in_the_histogram_is_their_share(n_accepted: int) -> None:
    accepted = np.arange(200) >= 200 - n_accepted
    png = plots.score_histogram_png(IOUS, Routing(accepted, 0.5, 0.5))
    blue, orange = inked(png, plots.BLUE).sum(), inked(png, plots.ORANGE).sum()
    # Half a bin of 14 at the threshold, its line, and the legend's two patches.
    assert blue / (blue + orange) == pytest.approx(n_accepted / 200, abs=0.03)


def test_bars_are_as_long_as_the_class_iou() -> None:
    lengths = inked(plots.class_iou_png({"sky": 0.8, "road": 0.4, "absent": None}), plots.BLUE).sum(axis=1)
    long = lengths > 0.75 * lengths.max()
    short = (lengths > 0) & ~long
    assert np.median(lengths[short]) / np.median(lengths[long]) == pytest.approx(0.5, abs=0.02)


def test_names_are_shown_as_they_are_and_never_as_formulas() -> None:
    pixels(plots.class_iou_png({"a $\\frac{ class": 0.5, "x" * 500: 0.2}))


def test_accepted_but_bad_images_stand_out_only_where_there_are_some() -> None:
    scores = IOUS
    accepted = scores >= 0.5
    marked = plots.score_iou_png(scores, IOUS, Routing(accepted, 0.5, 0.9))
    unmarked = plots.score_iou_png(scores, IOUS, Routing(accepted, 0.5, 0.1))
    assert inked(marked, plots.BLUE).sum() < inked(unmarked, plots.BLUE).sum()


@pytest.mark.parametrize("scores", [np.full(200, 0.3), np.where(IOUS < 0.1, -np.inf, IOUS)])
@pytest.mark.parametrize("routing", [None, Routing(np.zeros(200, dtype=bool), None, None)])
def test_equal_or_infinite_scores_can_be_drawn(scores: np.ndarray, routing: Routing | None) -> None:
    pixels(plots.score_iou_png(scores, IOUS, routing))
    pixels(plots.score_histogram_png(scores, routing))


def test_one_image_can_be_drawn() -> None:
    pixels(plots.risk_coverage_png([0.3], {"discriminator": [1.5]}))
    pixels(plots.calibration_png([0.3], [0.7]))
    pixels(plots.score_iou_png([0.3], [0.7], None))
    pixels(plots.score_histogram_png([0.3], None))
