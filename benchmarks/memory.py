"""Whether memory grows with the bucket: peak resident memory of labelling few and many images.

    python benchmarks/memory.py [--images 1000,20000]

Each run is a process of its own, `segpipe label` on small images of noise with an untrained model. Prints the
peak of each in MiB and the ratio of the last to the first, and writes results/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import torch
from machine import peak_bytes, write_results
from PIL import Image

from segpipe.digests import shown
from segpipe.models.bundle import (
    ModelCard,
    ModelSpec,
    build_networks,
    encode_weights,
    model_digest,
    save_bundle,
)
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION

PIXELS = 64
DIFFERENT_IMAGES = 50


@click.command()
@click.option("--images", default="1000,20000", show_default=True, help="Sizes of the buckets.")
def main(images: str) -> None:
    """Label buckets of these sizes and compare the peaks of memory."""
    counts = [int(count) for count in images.split(",")]
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save_model(f"{folder}/model")
        for count in counts:
            _fill(folder / f"in-{count}", count)
            started = time.perf_counter()
            peaks[count] = _peak_mebibytes(folder, count)
            seconds = time.perf_counter() - started
            click.echo(f"{count:7} images: peak {peaks[count]:7.0f} MiB, {count / seconds:6.1f} images/s")
    ratio = peaks[counts[-1]] / peaks[counts[0]]
    click.echo(f"{counts[-1]} images need {ratio:.2f} times the memory of {counts[0]}")
    write_results("memory", {"peak_mebibytes": peaks, "ratio": ratio})


def _save_model(url: str) -> None:
    spec = ModelSpec(
        architecture="unet",
        classes=("background", "thing"),
        ignore_index=255,
        working_size=(PIXELS, PIXELS),
        mean=MEAN,
        standard_deviation=STANDARD_DEVIATION,
        shown_masks="hard",
    )
    torch.manual_seed(0)
    weights = [encode_weights(network) for network in build_networks(spec)]
    model_id = shown(model_digest(spec, weights[0], weights[1]))
    nothing = {"training_data": {}, "training_settings": {}, "metrics": {}, "versions": {}}
    card = ModelCard(model_id=model_id, spec=spec, created_at="2026-01-01T00:00:00+00:00", **nothing)
    save_bundle(url, card, weights[0], weights[1])


def _fill(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number < DIFFERENT_IMAGES:
            content = BytesIO()
            Image.fromarray(random.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(
                content, "JPEG"
            )
            path.write_bytes(content.getvalue())
        else:
            path.hardlink_to(folder / f"{number % DIFFERENT_IMAGES:06d}.jpg")


def _peak_mebibytes(folder: Path, count: int) -> float:
    command = [
        "label",
        f"{folder}/in-{count}",
        f"{folder}/out-{count}",
        "--model",
        f"{folder}/model",
        "--json",
    ]
    process = subprocess.Popen([sys.executable, "-m", "segpipe", *command], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid) / 2**20)
        time.sleep(0.05)
    if process.returncode != 0:
        raise click.ClickException(f"segpipe label of {count} images failed")
    return peak


if __name__ == "__main__":
    main()
