"""The report of an evaluation: its pictures and its page, written to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.confidence.policy import Policy
from segpipe.reports import plots
from segpipe.reports.content import ReportFacts, page_content
from segpipe.reports.measured import Measured, measured_images, routing_under
from segpipe.reports.page import Picture, render

if TYPE_CHECKING:
    from segpipe.evaluation.measure import Evaluation, Measurements

INDEX = "index.html"
TEMPLATE = "confidence.html"
PROBE = ".segpipe-probe"


def check_writable(url: str) -> None:
    """Write and delete an empty file where the report is to go. Raises StorageError when that cannot be."""
    probe = storage.join(storage.normalise(url), PROBE)
    storage.put(probe, b"")
    storage.delete(probe)


def write_report(
    measurements: Measurements,
    evaluation: Evaluation,
    policy: Policy | None,
    about: ReportFacts,
    url: str,
) -> str:
    """Write the pictures as PNG files and one self-contained index.html into a folder at any fsspec URL.

    `evaluation` is that of `measurements`, at least one of whose images has an IoU. Returns the page's URL.
    Raises StorageError.
    """
    measured = measured_images(measurements)
    pictures = tuple(_pictures(measured, evaluation, policy))
    page = page_content(measured, evaluation, policy, about, pictures)
    root = storage.normalise(url)
    for picture in pictures:
        storage.put(storage.join(root, picture.file), picture.png)
    index = storage.join(root, INDEX)
    storage.put(index, render(TEMPLATE, page).encode())
    return index


def _pictures(measured: Measured, evaluation: Evaluation, policy: Policy | None) -> Iterator[Picture]:
    routing = None if policy is None else routing_under(policy, measured)
    yield Picture(
        "risk-coverage.png",
        "Risk and coverage",
        "Accept the surest images first: how much do the accepted masks lose on average? Lower is better; "
        "the oracle knows every IoU.",
        plots.risk_coverage_png(1 - measured.ious, measured.scores),
    )
    yield Picture(
        "calibration.png",
        "Calibration",
        "Does the confidence that is shown mean what it says? Bins of equally many images: on the diagonal "
        "it does, above it is too modest, below too sure.",
        plots.calibration_png(measured.confidences, measured.ious),
    )
    yield Picture(
        "score-iou.png",
        "Score and true IoU",
        "Every image: the raw score that routes it against how good its mask is.",
        plots.score_iou_png(measured.routing_scores, measured.ious, routing),
    )
    yield Picture(
        "score-histogram.png",
        "Distribution of the score",
        "How many images have which raw score, and what share would be accepted.",
        plots.score_histogram_png(measured.routing_scores, routing),
    )
    yield Picture(
        "class-iou.png",
        "IoU of each class",
        "Pixels of the whole split pooled.",
        plots.class_iou_png(evaluation.per_class_iou),
    )
