"""Pictures of how good masks are and how well scores know it: arrays in, PNG bytes out."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from segpipe.confidence.calibration_error import expected_calibration_error
from segpipe.confidence.selective import aurc, gap_closed, risk_coverage_curve
from segpipe.reports.measured import ROUTING_SCORE, Routing
from segpipe.reports.reliability import ReliabilityBin, reliability_bins

# Okabe and Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY, PALE = "#CC79A7", "#56B4E9", "#000000", "#767676", "#B0B0B0"
RIVAL_COLOURS = (ORANGE, GREEN, PURPLE, VERMILLION, SKY, BLACK)
RIVAL_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

WIDTH = 5.0  # inches: with fonts of 10 to 12 points still readable across a phone
DPI = 180
FEW_POINTS = 20
LONGEST_NAME = 28


def risk_coverage_png(losses: ArrayLike, scores: Mapping[str, ArrayLike]) -> bytes:
    """Mean loss of the accepted masks against the share accepted, per score, with oracle and random order.

    `losses` (n,) are 1 - IoU; `scores` (n,) per name, higher is surer; `discriminator` is drawn thick. Raises
    ValueError for no image, unequal lengths or NaN.
    """
    values = np.asarray(losses, dtype=np.float64)
    figure, axes = _blank(height=3.8 + 0.2 * len(scores))
    styles = zip(cycle(RIVAL_COLOURS), cycle(RIVAL_LINES), strict=False)
    for name in sorted(scores, key=lambda name: name != ROUTING_SCORE):
        if name == ROUTING_SCORE:
            style: dict[str, Any] = {"color": BLUE, "linewidth": 3, "zorder": 3}
        else:
            colour, line = next(styles)
            style = {"color": colour, "linestyle": line, "linewidth": 1.2}
        _plot_risk(axes, values, np.asarray(scores[name]), name.replace("_", " "), style)
    _plot_risk(axes, values, np.zeros(len(values)), "random order", {"color": GREY, "linestyle": ":"})
    _plot_risk(axes, values, -values, "oracle order", {"color": GREY, "linestyle": "--"})
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    _label(axes, "coverage: share accepted, surest first", "risk: mean loss (1 − IoU)")
    _legend(figure, columns=1)
    return _encoded(figure)


def _plot_risk(
    axes: Axes, losses: NDArray[np.float64], scores: NDArray[np.float64], name: str, style: dict[str, Any]
) -> None:
    curve = risk_coverage_curve(losses, scores)
    closed = gap_closed(losses, scores)
    merit = f"AURC {aurc(losses, scores):.3f}"
    if not math.isnan(closed):
        merit += f", gap closed {round(closed, 2) + 0.0:.0%}"  # + 0.0 makes -0% plain 0%
    marker = "." if len(curve.risk) < FEW_POINTS else None
    axes.plot(curve.coverage, curve.risk, label=f"{name}: {merit}", marker=marker, **style)


def calibration_png(confidences: ArrayLike, ious: ArrayLike, n_bins: int = 10) -> bytes:
    """Reliability diagram: confidence that is shown (expected IoU) against true IoU in equal-count bins.

    Two (n,) arrays of 0..1. Raises ValueError for no image, unequal lengths or NaN.
    """
    error = expected_calibration_error(confidences, ious, n_bins)
    bins = reliability_bins(confidences, ious, n_bins)
    figure, axes = _blank(height=5.6)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    axes.scatter(confidences, ious, color=PALE, label="one image", zorder=1, **_cloud(np.size(ious)))
    means = [group.confidence for group in bins], [group.iou for group in bins]
    label = f"bin of {_bin_sizes(bins)} images\nexpected calibration error {error:.3f}"
    axes.plot(*means, color=BLUE, marker="o", linewidth=2, label=label, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _label(axes, "confidence shown (expected IoU)", "true IoU")
    _legend(figure, columns=1)
    return _encoded(figure)


def _bin_sizes(bins: Sequence[ReliabilityBin]) -> str:
    sizes = sorted({group.images for group in bins})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def score_iou_png(scores: ArrayLike, ious: ArrayLike, routing: Routing | None) -> bytes:
    """Each image's raw routing score against its true IoU, (n,) both; the threshold and the minimum IoU."""
    score_values, true = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    figure, axes = _blank(height=4.2)
    for name, members, style in _kinds(true, routing):
        axes.scatter(
            score_values[members],
            true[members],
            label=f"{name} ({np.count_nonzero(members)})",
            **_cloud(len(true)) | style,
        )
    if routing is not None:
        _draw_threshold(axes, routing.threshold)
        _draw_min_iou(axes, routing.min_iou)
    axes.set_ylim(0, 1)
    _label(axes, "discriminator score (raw)", "true IoU")
    _legend(figure, columns=2)
    return _encoded(figure)


def _kinds(
    ious: NDArray[np.float64], routing: Routing | None
) -> list[tuple[str, NDArray[np.bool_], dict[str, Any]]]:
    if routing is None:
        return [("image", np.ones(len(ious), dtype=bool), {"color": BLUE})]
    review = ("review", ~routing.accepted, {"color": ORANGE, "marker": "^"})
    if routing.min_iou is None:
        return [("accepted", routing.accepted, {"color": BLUE}), review]
    bad = routing.accepted & (ious < routing.min_iou)
    return [
        ("accepted", routing.accepted & ~bad, {"color": BLUE}),
        ("accepted but bad", bad, {"color": BLACK, "marker": "x", "alpha": 1.0, "zorder": 3}),
        review,
    ]


def score_histogram_png(scores: ArrayLike, routing: Routing | None) -> bytes:
    """How the raw routing scores (n,) are distributed, and which of them are accepted."""
    values = np.asarray(scores, dtype=np.float64)
    finite = np.isfinite(values)
    n_bins = int(np.clip(np.sqrt(finite.sum()), 5, 40))
    edges = np.histogram_bin_edges(values[finite], bins=n_bins).tolist()
    figure, axes = _blank(height=3.8)
    if routing is None:
        axes.hist(values[finite], edges, color=BLUE, label=f"all {len(values)} images")
    else:
        parts = [routing.accepted, ~routing.accepted]
        axes.hist(
            [values[part & finite] for part in parts],
            edges,
            stacked=True,
            color=[BLUE, ORANGE],
            label=[
                f"{name} {part.mean():.1%} ({part.sum()})"
                for name, part in zip(("accepted", "review"), parts, strict=True)
            ],
        )
        _draw_threshold(axes, routing.threshold)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axes, "discriminator score (raw)", "images")
    _legend(figure, columns=2)
    return _encoded(figure)


def decided_scores_png(scores: ArrayLike, accepted: NDArray[np.bool_], threshold: float | None) -> bytes:
    """How the raw scores (n,) of a run are distributed, and which of them were accepted (n,)."""
    values = np.asarray(scores, dtype=np.float64)
    finite = np.isfinite(values)
    edges = np.histogram_bin_edges(values[finite], bins=int(np.clip(np.sqrt(finite.sum()), 5, 40))).tolist()
    figure, axes = _blank(height=3.8)
    parts = {"accepted": accepted & finite, "review": ~accepted & finite}
    axes.hist(
        [values[part] for part in parts.values()],
        edges,
        stacked=True,
        color=[BLUE, ORANGE],
        label=[f"{name} ({np.count_nonzero(part)})" for name, part in parts.items()],
    )
    _draw_threshold(axes, threshold)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _label(axes, "discriminator score (raw)", "images")
    _legend(figure, columns=2)
    return _encoded(figure)


def legs_png(legs: Mapping[str, float], bottleneck: str) -> bytes:
    """Seconds per leg of a run, in the order of the work; the bottleneck stands out."""
    figure, axes = _blank(height=0.9 + 0.42 * len(legs))
    names = list(legs)[::-1]
    bars = axes.barh(
        names,
        [legs[name] for name in names],
        color=[ORANGE if name == bottleneck else BLUE for name in names],
    )
    axes.bar_label(bars, fmt="%.3g s", padding=3, fontsize=10)
    axes.margins(x=0.18)
    _label(axes, "seconds, summed over threads", "")
    return _encoded(figure)


def class_iou_png(per_class_iou: Mapping[str, float | None]) -> bytes:
    """One bar per class, in the given order; None is a class that neither truth nor masks show."""
    figure, axes = _blank(height=0.9 + 0.3 * len(per_class_iou))
    places = np.arange(len(per_class_iou))
    axes.barh(places, [iou or 0.0 for iou in per_class_iou.values()], color=BLUE)
    for place, iou in zip(places, per_class_iou.values(), strict=True):
        text = "not in this split" if iou is None else f"{iou:.2f}"
        axes.annotate(
            text, (iou or 0.0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.set_yticks(places, [_shortened(name) for name in per_class_iou], parse_math=False)
    axes.set_xlim(0, 1.12)  # room for the number of a perfect class
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.invert_yaxis()
    _label(axes, "IoU over all pixels of the split", "")
    axes.grid(visible=False, axis="y")
    return _encoded(figure)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _blank(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=12)
    axes.set_ylabel(y, fontsize=12)
    axes.tick_params(labelsize=11)


def _legend(figure: Figure, columns: int) -> None:
    """Below the axes, where it hides nothing."""
    legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=10, frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):  # the points themselves may be tiny and pale
            handle.set_sizes([30])
            handle.set_alpha(1)


def _cloud(n_points: int) -> dict[str, Any]:
    """The more points, the smaller and the more transparent."""
    return {
        "s": float(np.clip(4000 / n_points, 6, 36)),
        "alpha": float(np.clip(60 / n_points**0.6, 0.2, 0.8)),
        "linewidths": 0.8,
    }


def _draw_threshold(axes: Axes, threshold: float | None) -> None:
    if threshold is None:
        return
    axes.axvline(threshold, color=BLACK, linewidth=1.2)
    axes.annotate(
        f"threshold {threshold:.3g}",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=10,
    )


def _draw_min_iou(axes: Axes, min_iou: float | None) -> None:
    if min_iou is None:
        return
    axes.axhline(min_iou, color=BLACK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"bad below\nIoU {min_iou:.3g}",
        (1, min_iou),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
    )


def _encoded(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()
