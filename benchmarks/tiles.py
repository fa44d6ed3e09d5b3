"""What tiles change and cost: masks against those of one pass, at seams and elsewhere; time; memory.

    python benchmarks/tiles.py DATA --model MODEL [--split val] [--megapixels 100]

Puts images of DATA, at the size that the model knows, together to pictures of two megapixels, and compares
the masks of tiles with those of one pass over the whole picture, in float32. Then labels one drawn picture of
so many megapixels at its own size in a process of its own, and prints its peak of memory. Writes results/.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from machine import peak_bytes, write_results
from PIL import Image

from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.digests import shown
from segpipe.models import device, tiled
from segpipe.models.bundle import Bundle, ModelSpec, encode_weights, model_digest, save_bundle
from segpipe.models.labeler import load_without_policy
from segpipe.models.preprocess import resize_image
from segpipe.models.tiled_logits import whole_image
from segpipe.tables import columns

ROWS, WIDTH = 4, 2048
TILES = {"512": (512, 512), "1024": (1024, 1024)}
MARGINS = (0, 32, 64, 128)
SEAM = 8  # pixels on both sides
ROUNDS = 3


@click.command()
@click.argument("data")
@click.option("--model", required=True)
@click.option("--split", default="val", show_default=True)
@click.option("--pictures", default=4, show_default=True)
@click.option("--megapixels", default=100, show_default=True, help="0: no large picture.")
def main(data: str, model: str, split: str, pictures: int, megapixels: int) -> None:
    """Compare and time; then label one large picture."""
    bundle = load_without_policy(model, "cpu").bundle
    torch.set_num_threads(1)
    figures = compare(bundle, list(mosaics(bundle, data, split, pictures)))
    table = [(name, *(f"{value:.5g}" for value in one.values())) for name, one in figures.items()]
    click.echo("\n".join(columns([("tile, margin", *next(iter(figures.values()))), *table])))
    large = label_large(bundle, megapixels) if megapixels else None
    click.echo(f"large picture: {large}")
    made = f"tiles-{bundle.spec.architecture}"
    write_results(made, {"pictures": pictures, "tiles": figures, "large": large})


def mosaics(bundle: Bundle, data: str, split: str, count: int) -> Iterator[np.ndarray]:
    """Pictures of images at the working size, side by side."""
    dataset = open_dataset(data)
    height, width = bundle.spec.working_size
    each = ROWS * -(-WIDTH // width)
    samples = list_samples(dataset, split)
    for number in range(count):
        chosen = [samples[(number * each + place) % len(samples)] for place in range(each)]
        images = [resize_image(read_sample(dataset, sample)[0], (height, width)) for sample in chosen]
        rows = [np.hstack(images[row::ROWS])[:, :WIDTH] for row in range(ROWS)]
        yield np.vstack(rows)


def compare(bundle: Bundle, pictures: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Against one pass, by tile and margin; seconds are process time per megapixel, generator alone."""
    found = {}
    with single_precision():
        whole = [mask_of(bundle, picture, picture.shape[:2], 0) for picture in pictures]
        once = median_seconds(bundle, pictures[0], pictures[0].shape[:2], 0)
        for name, tile in TILES.items():
            for margin in MARGINS:
                masks = [mask_of(bundle, picture, tile, margin) for picture in pictures]
                taken = median_seconds(bundle, pictures[0], tile, margin)
                same = np.stack([one == other for one, other in zip(masks, whole, strict=True)])
                at_seams = seams(bundle, pictures[0].shape[:2], tile, margin)
                found[f"{name}, {margin}"] = {
                    "equal": same.mean(),
                    "equal_at_seams": same[:, at_seams].mean(),
                    "equal_elsewhere": same[:, ~at_seams].mean(),
                    "cost": pixels_seen(bundle, pictures[0].shape[:2], tile, margin),
                    "time_against_one_pass": taken / once,
                }
    return found


@contextmanager
def single_precision() -> Iterator[None]:
    """No bfloat16, whose rounding alone changes half a percent of the pixels."""
    known = device.has_bfloat16
    device.has_bfloat16 = lambda _device: False
    try:
        yield
    finally:
        device.has_bfloat16 = known


def in_tiles(bundle: Bundle, tile: tuple[int, int], margin: int) -> Bundle:
    spec = ModelSpec.model_validate(bundle.spec.model_dump() | {"scale": 1.0, "tile": tile, "margin": margin})
    return replace(bundle, card=bundle.card.model_copy(update={"spec": spec}))


def mask_of(bundle: Bundle, picture: np.ndarray, tile: tuple[int, int], margin: int) -> np.ndarray:
    """The generator's mask on its own grid."""
    model = in_tiles(bundle, tile, margin)
    with torch.inference_mode():
        logits = whole_image(model, tiled.prepare_scaled(model, picture), "cpu").logits
    return logits.argmax(0).numpy()


def median_seconds(bundle: Bundle, picture: np.ndarray, tile: tuple[int, int], margin: int) -> float:
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        mask_of(bundle, picture, tile, margin)
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def pixels_seen(bundle: Bundle, shape: tuple[int, int], tile: tuple[int, int], margin: int) -> float:
    return tiled.tiles_of(in_tiles(bundle, tile, margin), shape).cost / (shape[0] * shape[1])


def seams(bundle: Bundle, shape: tuple[int, int], tile: tuple[int, int], margin: int) -> np.ndarray:
    """Where a cell of the generator's grid is near a border between tiles."""
    stride = bundle.generator.output_stride
    near = np.zeros((shape[0] // stride, shape[1] // stride), bool)
    reach = SEAM // stride
    for one in tiled.tiles_of(in_tiles(bundle, tile, margin), shape).tiles:
        if one.down.end < shape[0]:
            near[one.down.end // stride - reach : one.down.end // stride + reach] = True
        if one.across.end < shape[1]:
            near[:, one.across.end // stride - reach : one.across.end // stride + reach] = True
    return near


def label_large(bundle: Bundle, megapixels: int) -> dict[str, Any]:
    """Peak memory and time of labelling one picture of so many megapixels at its own size."""
    side = int((megapixels * 1e6) ** 0.5)
    model = in_tiles(bundle, (1024, 1024), 128)
    with tempfile.TemporaryDirectory() as name:
        save(model, f"{name}/model")
        Path(name, "in").mkdir()
        draws = np.random.default_rng(0)
        coarse = Image.fromarray(draws.integers(0, 256, (side // 50, side // 50, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(f"{name}/in/large.jpg", quality=90)
        command = ["label", f"{name}/in", f"{name}/out", "--model", f"{name}/model", "--device", "cpu"]
        started, peak = time.perf_counter(), 0.0
        process = subprocess.Popen([sys.executable, "-m", "segpipe", *command], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid) / 2**20)
            time.sleep(0.05)
        if process.returncode != 0:
            raise click.ClickException("segpipe label failed")
        taken = time.perf_counter() - started
    return {"megapixels": side * side / 1e6, "peak_mebibytes": round(peak), "seconds": round(taken, 1)}


def save(bundle: Bundle, url: str) -> None:
    weights = encode_weights(bundle.generator), encode_weights(bundle.discriminator)
    digest = model_digest(bundle.spec, *weights)
    card = bundle.card.model_copy(update={"model_id": shown(digest), "digest": digest})
    save_bundle(url, card, *weights)


if __name__ == "__main__":
    main()
