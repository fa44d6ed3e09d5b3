"""The curves of a training: one row per epoch, as CSV and as a picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

import pandas as pd
from matplotlib.figure import Figure


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


def history_csv(records: list[EpochRecord]) -> bytes:
    """The rows as CSV, a header first."""
    return pd.DataFrame([asdict(record) for record in records]).to_csv(index=False).encode()


def history_png(records: list[EpochRecord]) -> bytes:
    """Loss, discriminator health and validation quality over the epochs."""
    frame = pd.DataFrame([asdict(record) for record in records]).set_index("epoch")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "losses": ["pixel_loss", "adversarial_loss", "discriminator_loss"],
        "discriminator health: share called right": ["real_accuracy", "fake_accuracy"],
        "validation": ["validation_mean_iou", "validation_pixel_accuracy"],
    }
    for axes, (title, columns) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for column in columns:
            values = frame[column].astype(float).dropna()
            axes.plot(
                values.index, values, marker="." if len(values) < 20 else None, label=column.replace("_", " ")
            )
        axes.set(title=title, xlabel="epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    if frame["validation_mean_iou"].notna().any():
        figure.axes[2].set_ylim(0, 1)
    figure.axes[1].set_ylim(0, 1)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
