"""Small defects on drawn surfaces: 0.1% of the pixels of a third of the images, all defaults.

    python benchmarks/small_defects.py FOLDER [--seeds 0,1]

Draws brushed, unevenly lit surfaces of 480x640 pixels. In every third lies one dark or bright defect, round
to four times as long as wide, of 0.05 to 0.2% of the image; all have soft stains that are no defect. Trains
once per seed, which is of the drawing and of the training, and measures the IoU of the defect at the images'
own size on a split that training never saw.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
import numpy as np
from machine import write_results
from scipy.ndimage import gaussian_filter, zoom

from segpipe import storage
from segpipe.config import TrainSettings
from segpipe.datasets import IGNORED, Dataset, write_dataset, write_sample
from segpipe.evaluation.measure import evaluate
from segpipe.tables import columns
from segpipe.training.run import train

CLASSES = ("surface", "defect")
HEIGHT, WIDTH = 480, 640
IMAGES = {"train": 300, "val": 90, "test": 150}
EVERY = 3
SHARES = (0.0005, 0.002)  # of the image that a defect covers
CONTRASTS = (30.0, 60.0)  # grey levels
MOST_STAINS = 3


def draw_surface(random: np.random.Generator) -> np.ndarray:
    """HEIGHTxWIDTHx3 float, 0 to 255: grain, brushing, uneven light and stains."""
    grain = random.normal(0, 8, (HEIGHT, WIDTH))
    brushing = gaussian_filter(random.normal(0, 1, (HEIGHT, WIDTH)), (0.7, 25))
    light = zoom(random.normal(0, 1, (4, 5)), (HEIGHT / 4, WIDTH / 5), order=3)
    grey = 130 + grain + 8 * brushing / brushing.std() + 12 * light / light.std()
    for _ in range(random.integers(0, MOST_STAINS + 1)):
        grey = grey + random.choice((-25.0, 25.0)) * _ellipse(random, random.uniform(0.005, 0.02), 12.0)
    return grey[:, :, None] * random.uniform(0.9, 1.1, 3)


def draw_defect(random: np.random.Generator) -> np.ndarray:
    """HEIGHTxWIDTH, 0 to 1: how much of each pixel the defect covers."""
    return _ellipse(random, float(np.exp(random.uniform(*np.log(SHARES)))), 0.7)


def _ellipse(random: np.random.Generator, share: float, softness: float) -> np.ndarray:
    """An ellipse of this share of the image, whose edge is softened over so many pixels."""
    aspect, angle = np.exp(random.uniform(0, np.log(4))), random.uniform(0, np.pi)
    minor = np.sqrt(share * HEIGHT * WIDTH / (np.pi * aspect))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    y, x = y - random.uniform(20, HEIGHT - 20), x - random.uniform(20, WIDTH - 20)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = (along / (minor * aspect)) ** 2 + (across / minor) ** 2 < 1
    return gaussian_filter(inside.astype(float), softness)


def draw_sample(random: np.random.Generator, has_defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image HxWx3 uint8 and its mask HxW uint8."""
    image, mask = draw_surface(random), np.zeros((HEIGHT, WIDTH), np.uint8)
    if has_defect:
        covered = draw_defect(random)
        image = image + (random.choice((-1.0, 1.0)) * random.uniform(*CONTRASTS) * covered)[:, :, None]
        mask = (covered > 0.5).astype(np.uint8)
    return image.round().clip(0, 255).astype(np.uint8), mask


def draw_dataset(root: str, seed: int) -> Dataset:
    """All splits below root."""
    dataset, random = (
        write_dataset(root, f"defects-{seed}", CLASSES, IGNORED),
        np.random.default_rng(seed),
    )
    for split, count in IMAGES.items():
        for number in range(count):
            image, mask = draw_sample(random, number % EVERY == 0)
            write_sample(dataset, split, f"{split}_{number:04d}", image, mask)
    return dataset


@click.command()
@click.argument("folder")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated.")
@click.option("--epochs", type=int, help="Unset: the default.")
def main(folder: str, seeds: str, epochs: int | None) -> None:
    """Draw, train and measure below FOLDER."""
    root = storage.normalise(folder)
    rows = {seed: measure(f"{root}/{seed}", int(seed), epochs) for seed in seeds.split(",")}
    body = [(seed, f"{row['defect_iou']:.3f}", f"{row['minutes']:.1f}") for seed, row in rows.items()]
    click.echo("\n".join(columns([("seed", "defect IoU", "minutes"), *body])))
    write_results("small_defects", {"epochs": epochs, "seeds": rows})


def measure(root: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """One drawing, one training, one evaluation."""
    draw_dataset(f"{root}/data", seed)
    trained = train(TrainSettings(data=f"{root}/data", model=f"{root}/model", seed=seed, epochs=epochs))
    quality = evaluate(trained.model, f"{root}/data", "test")
    return {
        "defect_iou": quality.per_class_iou["defect"],
        "minutes": trained.seconds / 60,
        "epochs": trained.epochs,
        **asdict(quality),
    }


if __name__ == "__main__":
    main()
