"""Mask quality after training, one recipe after the other, on any labelled data set (contract C1).

    python benchmarks/train_quality.py DATA --models FOLDER [--recipes hybrid,supervised,original]

Trains every recipe on split train with the same seed, evaluates the best checkpoint on split val at each
image's own size, prints one table with the ratio to the supervised recipe of the same run, and writes it
below results/.
Validation picks the checkpoint, so its figures are a little flattering; a held-out split tells the truth.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from machine import write_results

from segpipe.config import TrainSettings
from segpipe.datasets import open_dataset
from segpipe.evaluation.measure import evaluate
from segpipe.tables import columns
from segpipe.training.run import train

RECIPES: dict[str, dict[str, Any]] = {
    "hybrid": {"objective": "hybrid"},
    "supervised": {"objective": "supervised"},
    "original": {"architecture": "plain", "objective": "adversarial"},
}


@click.command()
@click.argument("data")
@click.option("--models", required=True, help="Folder for the trained bundles.")
@click.option("--recipes", default="hybrid,supervised,original", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", type=int, help="Passes of hybrid and supervised; unset: the default.")
@click.option("--original-epochs", default=4, show_default=True, help="Passes of the original recipe.")
@click.option("--original-size", default="96x128", show_default=True, help="Its working size; it is slow.")
def main(
    data: str,
    models: str,
    recipes: str,
    seed: int,
    epochs: int | None,
    original_epochs: int,
    original_size: str,
) -> None:
    """Train and evaluate each recipe on DATA."""
    own = {"original": {"epochs": original_epochs, "image_size": original_size}}
    rows = {}
    for name in recipes.split(","):
        values = RECIPES[name] | {"epochs": epochs} | own.get(name, {})
        rows[name] = measure(
            data, f"{models}/{name}", TrainSettings(data=data, model="-", seed=seed, **values)
        )
    click.echo("\n".join(columns(_table(rows))))
    name = open_dataset(data).name
    write_results(f"train_quality-{name}-{'+'.join(rows)}", {"data": name, "seed": seed, "recipes": rows})


def measure(data: str, model: str, settings: TrainSettings) -> dict[str, Any]:
    """Train one recipe and evaluate it."""
    trained = train(settings.model_copy(update={"model": model}))
    evaluation = asdict(evaluate(model, data, "val"))
    return {
        "settings": settings.model_dump(exclude={"data", "model", "resume"}),
        "minutes": trained.seconds / 60,
        "epochs": trained.epochs,
        "model_id": trained.model_id,
        **evaluation,
    }


def _table(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    base = rows.get("supervised")
    header = (
        "recipe",
        "mean IoU",
        "/ supervised",
        "pixel accuracy",
        "mean image IoU",
        "D gap closed",
        "minutes",
    )
    body = [
        (
            name,
            f"{row['mean_iou']:.3f}",
            f"{row['mean_iou'] / base['mean_iou']:.2f}" if base else "-",
            f"{row['pixel_accuracy']:.3f}",
            f"{row['mean_image_iou']:.3f}",
            f"{row['scores']['discriminator']['gap_closed']:.2f}",
            f"{row['minutes']:.1f}",
        )
        for name, row in rows.items()
    ]
    return [header, *body]


if __name__ == "__main__":
    main()
