"""The curves of a training: one row per epoch, as CSV and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class RoundRecord:
    """One round of stage 2: mean losses; expected_iou is a squared error, the others are cross-entropies."""

    round: int
    correctness: float
    expected_iou: float
    image_iou: float
    presence: float
    realness: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's means. Outputs are the discriminator's raw maps; accuracies and quality are 0 to 1.

    validation figures are None in epochs that were not validated.
    """

    epoch: int
    pixel_loss: float
    adversarial_loss: float
    discriminator_loss: float
    real_output: float
    fake_output: float
    real_accuracy: float
    fake_accuracy: float
    learning_rate: float
    validation_mean_iou: float | None
    validation_pixel_accuracy: float | None


def history_csv(records: Sequence[EpochRecord] | Sequence[RoundRecord]) -> bytes:
    """The rows as CSV, a header first."""
    return pd.DataFrame([asdict(record) for record in records]).to_csv(index=False).encode()


def history_png(records: Sequence[EpochRecord], rounds: Sequence[RoundRecord]) -> bytes:
    """Loss, discriminator health and validation quality over the epochs, and the judge's losses."""
    played = pd.DataFrame([asdict(record) for record in records]).set_index("epoch")
    judged = pd.DataFrame([asdict(record) for record in rounds]).set_index("round")
    figure = Figure(figsize=(16, 3.6))
    losses, health, quality, judging = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.14, top=0.91, wspace=0.15)
    _draw(losses, played[["pixel_loss", "adversarial_loss", "discriminator_loss"]], "losses")
    _draw(health, played[["real_accuracy", "fake_accuracy"]], "discriminator health: share called right")
    _draw(quality, played[["validation_mean_iou", "validation_pixel_accuracy"]], "validation")
    _draw(judging, judged, "learning to judge: losses")
    health.set_ylim(0, 1)
    if played["validation_mean_iou"].notna().any():
        quality.set_ylim(0, 1)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw(axes: Axes, frame: pd.DataFrame, title: str) -> None:
    for column in frame:
        values = frame[column].astype(float).dropna()
        marker = "." if len(values) < 20 else None
        axes.plot(values.index, values, marker=marker, label=str(column).replace("_", " "))
    axes.set(title=title, xlabel=frame.index.name)
    axes.legend()
    axes.grid(alpha=0.3)
