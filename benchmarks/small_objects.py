"""Small objects in large images: nuclei of 10 pixels in 4096x4096, fitted, at their own scale, and cut up.

    python benchmarks/small_objects.py [--side 4096] [--views 4000] [--seed 0]

Draws stained tissue with nuclei 10 pixels wide, trains the default networks three times for about so many
views (images fitted to the working size; at the scale that --scale auto chooses; and fitted, on the same
images cut into 1024x1024 beforehand) and prints the nuclei's IoU on images no training saw. Writes results/.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from machine import write_results
from scipy import ndimage

from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, write_dataset, write_sample
from segpipe.evaluation.measure import evaluate
from segpipe.tables import columns
from segpipe.training.run import train

SPLITS = {"train": 10, "val": 2, "test": 3}
NUCLEUS = 10  # pixels wide
SPACING = 40  # a nucleus to so many squared pixels
CUT = 1024
Pair = tuple[np.ndarray, np.ndarray]


@click.command()
@click.option("--side", default=4096, show_default=True, help="Height and width of the images, in pixels.")
@click.option("--views", default=4000, show_default=True, help="Images or crops that each training sees.")
@click.option("--seed", default=0, show_default=True)
@click.option("--most-cost", default=200.0, show_default=True, help="Of --scale auto.")
@click.option("--ways", default="fit,auto,cut", show_default=True)
def main(side: int, views: int, seed: int, most_cost: float, ways: str) -> None:
    """Draw, train and measure."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        whole, cut = write_sets(Path(name), side, seed)
        for way in ways.split(","):
            data = cut if way == "cut" else whole
            settings = settings_of(way, data, f"{name}/{way}", views, seed, most_cost)
            found[way] = measure(settings)
            click.echo(f"{way}: {found[way]}")
    click.echo("\n".join(columns([(way, f"{one['nucleus_iou']:.3f}") for way, one in found.items()])))
    write_results("small_objects", {"side": side, "views": views, "seed": seed, "ways": found})


def settings_of(
    way: str, data: Dataset, model: str, views: int, seed: int, most_cost: float
) -> TrainSettings:
    """All defaults, but for the scale and how long."""
    images = SPLITS["train"] * (1 if way != "cut" else len(cuts_of(data)))
    scale = "auto" if way == "auto" else "fit"
    epochs = max(1, round(views / images))
    return TrainSettings(
        data=data.root, model=model, epochs=epochs, scale=scale, most_cost=most_cost, seed=seed, device="cpu"
    )


def cuts_of(data: Dataset) -> list[Path]:
    """Images that the first image was cut into."""
    return list((Path(data.root.removeprefix("file://")) / "train/images").glob("00-*"))


def measure(settings: TrainSettings) -> dict[str, float]:
    """Train and evaluate; seconds are of the process, all cores."""
    started = time.process_time()
    train(settings)
    trained = time.process_time() - started
    result = evaluate(settings.model, settings.data, "test", "cpu")
    return {"nucleus_iou": result.per_class_iou["nucleus"] or 0.0, "training_core_seconds": trained}


def write_sets(folder: Path, side: int, seed: int) -> tuple[Dataset, Dataset]:
    """The images whole, and cut up."""
    whole, cut = (
        write_dataset(str(folder / name), name, ("tissue", "nucleus"), 255) for name in ("whole", "pieces")
    )
    draws = np.random.default_rng(seed)
    for split, count in SPLITS.items():
        for number in range(count):
            image, mask = draw(side, draws)
            write_sample(whole, split, f"{number:02}", image, mask)
            for piece, (part, its_mask) in enumerate(pieces(image, mask)):
                write_sample(cut, split, f"{number:02}-{piece:03}", part, its_mask)
    return whole, cut


def draw(side: int, draws: np.random.Generator) -> Pair:
    """Tissue of uneven colour with dark nuclei, and specks of the same colour that are too small for one."""
    coarse = draws.normal(0, 1, (side // 64 + 2, side // 64 + 2, 3)).astype(np.float32)
    shade = ndimage.zoom(coarse, (64, 64, 1), order=1)[:side, :side]
    image = np.array([215, 160, 195], np.float32) + 14 * shade
    image += draws.normal(0, 9, (side, side, 1)).astype(np.float32)
    mask = np.zeros((side, side), np.uint8)
    for is_nucleus in (False, True):
        for top, left in draws.integers(0, side - 2 * NUCLEUS, (side * side // SPACING**2, 2)):
            wide = NUCLEUS * draws.uniform(0.85, 1.15) if is_nucleus else draws.uniform(2, 4)
            shape = ellipse(wide, draws)
            at = slice(top, top + len(shape)), slice(left, left + len(shape))
            darkness = draws.uniform(45, 85)
            image[at][shape] -= np.array([1.0, 0.9, 0.5], np.float32) * darkness
            mask[at][shape] = is_nucleus
    return image.clip(0, 255).astype(np.uint8), mask


def ellipse(wide: float, draws: np.random.Generator) -> np.ndarray:
    """One about so many pixels wide, in a square of bool."""
    ratio, angle = draws.uniform(0.8, 1.25), draws.uniform(0, np.pi)
    y, x = np.mgrid[: 2 * NUCLEUS, : 2 * NUCLEUS] - NUCLEUS + 0.5
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (along / ratio) ** 2 + (across * ratio) ** 2 < (wide / 2) ** 2


def pieces(image: np.ndarray, mask: np.ndarray) -> Iterator[Pair]:
    """Both cut into squares."""
    for top in range(0, len(mask), CUT):
        for left in range(0, len(mask), CUT):
            at = slice(top, top + CUT), slice(left, left + CUT)
            yield image[at], mask[at]


if __name__ == "__main__":
    main()
