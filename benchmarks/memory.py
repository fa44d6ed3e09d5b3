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
from machine import peak_bytes, write_results
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/support"))
from random_model import write_random_model

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
        write_random_model(f"{folder}/model", ("background", "thing"), working_size=(PIXELS, PIXELS))
        for count in counts:
            _fill(folder / f"in-{count}", count)
            started = time.perf_counter()
            peaks[count] = _peak_mebibytes(folder, count)
            seconds = time.perf_counter() - started
            click.echo(f"{count:7} images: peak {peaks[count]:7.0f} MiB, {count / seconds:6.1f} images/s")
    ratio = peaks[counts[-1]] / peaks[counts[0]]
    click.echo(f"{counts[-1]} images need {ratio:.2f} times the memory of {counts[0]}")
    write_results("memory", {"peak_mebibytes": peaks, "ratio": ratio})


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
