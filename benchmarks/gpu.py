"""What segpipe does with one GPU: one command, no network, at most eight minutes, one result file.

    python benchmarks/gpu.py [--device auto|cpu|cuda:N] [--seconds 450] [--tiny] [--results FOLDER]

Draws its own images. Trains two epochs; compares masks and scores with the CPU's; times both networks alone
on batches that lie on the device; then, for three image sizes, decoding and encoding alone, a torch
DataLoader loop, and segpipe with 1, 2 and 4 processes on the device, which share the cores, with the device's
utilisation where nvidia-smi is there. Each part is a process of its own with its share of the time: one that
fails or is late is named in the results and costs the others nothing. --tiny is for trying the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
import torch
from machine import RESULTS, write_results
from PIL import Image
from rivals import with_data_loader

from segpipe.config import LabelSettings, TrainSettings
from segpipe.images import class_palette, decode_scaled, encode_mask
from segpipe.labeling.run import label_source
from segpipe.models.device import choose_device, precision_of, wait_for
from segpipe.models.full_size import raised_each
from segpipe.models.inference import normalised, predict
from segpipe.models.labeler import BATCH_IMAGES, Labeler, load_without_policy
from segpipe.models.preprocess import resize_image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests/support"))
SIZES = ("480x360", "960x720", "1920x1080")
TINY_SIZES = ("128x96",)
DIFFERENT_IMAGES = 32
BATCHES = (8, 16, 32, 64, 128)
Figures = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Job:
    """What all parts share: a folder for what is made, the device, and whether it is only tried."""

    folder: Path
    device: str
    tiny: bool

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def seconds(self) -> float:
        """For each rate that is measured."""
        return 0.2 if self.tiny else 3.5

    @property
    def processes(self) -> tuple[int, ...]:
        return (1, 2) if self.tiny else (1, 2, 4)


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seconds", default=450.0, show_default=True, help="For all parts together.")
@click.option("--tiny", is_flag=True, help="Tiny images, few of them: tries the command, measures nothing.")
@click.option("--results", default=str(RESULTS), help="Folder of the result file.")
@click.option("--part", hidden=True)
@click.option("--folder", hidden=True)
@click.option("--label", hidden=True, type=int)
def main(
    device: str,
    seconds: float,
    tiny: bool,
    results: str,
    part: str | None,
    folder: str | None,
    label: int | None,
) -> None:
    """Measure what one GPU brings."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            _measure_all(Job(Path(made), choose_device(device), tiny), seconds, Path(results))
        return
    job = Job(Path(folder), device, tiny)
    if label is not None:
        _label(job, label)
    elif part is not None:
        _run_part(job, part)


def _measure_all(job: Job, seconds: float, results: Path) -> None:
    started, figures = time.perf_counter(), {}
    parts = _parts(job)
    for name, (_, share) in parts.items():
        click.echo(f"--- {name}")
        whole = sum(share for _, share in parts.values())
        figures[name] = measured_within(job, name, seconds * share / whole)
    facts = {"seconds": round(time.perf_counter() - started, 1), "precision": precision_of(job.device)}
    write_results(
        f"gpu-{'tiny-' if job.tiny else ''}{job.device.replace(':', '-')}", facts | figures, results
    )


def _parts(job: Job) -> dict[str, tuple[Callable[[Job], Figures], float]]:
    """Each part and its share of the time."""
    sizes = TINY_SIZES if job.tiny else SIZES
    throughput = {f"throughput at {size}": (_throughput_at(size), 2.0) for size in sizes}
    return {
        "training": (_training, 2.0),
        "agreement with the CPU": (_agreement, 1.0),
        "networks alone": (_networks_alone, 1.0),
    } | throughput


def measured_within(job: Job, name: str, seconds: float) -> dict[str, Any]:
    """The figures of a part, as far as it came in so many seconds, and how it ended if it was not done."""
    said = job.folder / f"{name}.stderr"
    command = _command(job, "--part", name)
    with said.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=_environment(), start_new_session=True)
        try:
            status = process.wait(seconds)
            ended = None if status == 0 else f"failed: {_last_line(said)}"
        except subprocess.TimeoutExpired:
            ended = f"not done after its {seconds:.0f} s"
        finally:
            _kill_group(process.pid)
            process.wait()
    kept = _kept(job, name)
    figures = json.loads(kept.read_text()) if kept.exists() else {}
    if ended is not None:
        click.echo(f"{name} {ended}")
    return figures if ended is None else figures | {"ended": ended}


def _command(job: Job, *more: str) -> list[str]:
    command = [sys.executable, __file__, "--folder", str(job.folder), "--device", job.device, *more]
    return [*command, "--tiny"] if job.tiny else command


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def _last_line(said: Path) -> str:
    return (said.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1][:300]


def _kill_group(leader: int) -> None:
    """The part and all that it has started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _kept(job: Job, name: str) -> Path:
    return job.folder / f"{name}.json"


def _run_part(job: Job, name: str) -> None:
    """Each figure is kept as soon as it is there."""
    figures: dict[str, Any] = {}
    for label, value in _parts(job)[name][0](job):
        figures[label] = value
        click.echo(f"{label:44} {value}")
        written = _kept(job, name).with_suffix(".part")
        written.write_text(json.dumps(figures))
        written.replace(_kept(job, name))


# --- training, and the model of all other parts -------------------------------------------------------------


def _training(job: Job) -> Figures:
    from demo.scenes import write_labelled
    from segpipe.training.run import train

    height, width, images = (96, 128, 8) if job.tiny else (192, 256, 160)
    data, random = str(job.folder / "data"), np.random.default_rng(0)
    for split, count in (("train", images), ("val", max(4, images // 8))):
        write_labelled(data, split, count, 0, random, height, width)
    size = "32x48" if job.tiny else "256x352"
    settings = TrainSettings(
        data=data,
        model=job.model,
        epochs=2,
        image_size=size,
        batch_size=4 if job.tiny else 16,
        device=job.device,
    )
    result = train(settings)
    yield "seconds of two epochs, with the judge's", round(result.seconds, 1)
    yield "images", images
    yield "mean IoU after them", round(result.mean_iou, 4)


def _labeler(job: Job, device: str | None = None) -> Labeler:
    """Of the model that was trained, or of a random one where that has failed."""
    if not (job.folder / "model" / "model.json").exists():
        _write_random_model(job)
    return load_without_policy(job.model, device or job.device)


def _write_random_model(job: Job) -> None:
    from random_model import write_random_model

    from demo.scenes import CLASSES

    write_random_model(job.model, CLASSES, working_size=(32, 48) if job.tiny else (256, 352))


# --- the same masks? ----------------------------------------------------------------------------------------


def _agreement(job: Job) -> Figures:
    """Against the CPU in its own precision, whatever that is."""
    images = [
        _picture(size, number) for number in range(4 if job.tiny else 12) for size in ("352x256", "480x360")
    ]
    yield "precision on the CPU", precision_of("cpu")
    theirs, ours = (_labeler(job, device).label(images) for device in ("cpu", job.device))
    same = [float(np.mean(one.mask == other.mask)) for one, other in zip(ours, theirs, strict=True)]
    scores = np.array([[one.discriminator_score for one in found] for found in (ours, theirs)])
    yield "images", len(images)
    yield "pixels alike, mean", fmean(same)
    yield "pixels alike, worst image", min(same)
    yield "largest difference of scores", float(np.abs(scores[0] - scores[1]).max())
    yield "spread of scores over the images", float(np.ptp(scores[1]))


def _picture(size: str, number: int) -> np.ndarray:
    """A drawn street of WIDTHxHEIGHT, HxWx3 uint8; large ones are drawn small and enlarged."""
    from demo.scenes import draw_scene

    width, height = map(int, size.split("x"))
    image, _ = draw_scene(np.random.default_rng(number), min(height, 270), min(width, 480))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


# --- the device's own ideal ---------------------------------------------------------------------------------


def _networks_alone(job: Job) -> Figures:
    """Both networks, and the masks of 480x360 pixels, on batches that lie on the device; images a second."""
    labeler = _labeler(job)
    yield "images at once, chosen for the device", labeler.gathered_images or BATCH_IMAGES
    for batch in BATCHES[:2] if job.tiny else BATCHES:
        yield f"networks, batch {batch}", round(_networks_rate(job, labeler, batch, None), 1)
    batch = labeler.gathered_images or BATCH_IMAGES
    yield f"networks and masks, batch {batch}", round(_networks_rate(job, labeler, batch, (360, 480)), 1)
    if job.device != "cpu":
        yield "GB of device memory at the peak", round(torch.cuda.max_memory_allocated(job.device) / 1e9, 2)


@torch.inference_mode()
def _networks_rate(job: Job, labeler: Labeler, batch: int, size: tuple[int, int] | None) -> float:
    spec = labeler.bundle.spec
    pixels = np.stack(
        [resize_image(_picture("352x256", n), spec.working_size) for n in range(8)] * (batch // 8)
    )
    resident = normalised(labeler.bundle, torch.from_numpy(pixels).to(job.device))

    def once(_: int) -> None:
        prediction = predict(labeler.bundle, resident, job.device)
        if size is not None:
            raised_each(prediction.logits, prediction.labels, [size] * batch)

    once(0)
    wait_for(job.device)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < job.seconds:
        for number in range(4):  # the device is given work before it is asked whether it is done
            once(number)
        wait_for(job.device)
        done += 4
    return done * batch / (time.perf_counter() - started)


# --- from files to masks ------------------------------------------------------------------------------------


def _throughput_at(size: str) -> Callable[[Job], Figures]:
    return lambda job: _throughput(job, size)


def _throughput(job: Job, size: str) -> Figures:
    labeler, source = _labeler(job), job.folder / f"images-{size}"
    paths = _write_images(source, size, DIFFERENT_IMAGES)
    rates = {
        "networks and masks": _ideal(job, labeler, size),
        "decode": _cores_rate(job, paths, lambda path: _decode(path, labeler)),
        "encode": _encode_rate(job, labeler, paths),
    }
    for name, rate in rates.items():
        yield f"{name} alone", round(rate, 1)
    cores = 1 / (1 / rates["decode"] + 1 / rates["encode"])
    ideal = (
        min(cores, rates["networks and masks"])
        if job.device != "cpu"
        else 1 / (1 / cores + 1 / rates["networks and masks"])
    )
    yield "ideal of cores and device together", round(ideal, 1)
    count = max(DIFFERENT_IMAGES, int(ideal * job.seconds))
    paths = _write_images(source, size, count)
    batch = labeler.gathered_images or BATCH_IMAGES
    loader = paths[: max(4 * batch, count // 4)]
    yield "DataLoader loop", round(with_data_loader(loader, labeler, job.folder / f"loader-{size}", batch), 1)
    for processes in job.processes:
        with _utilisation(job.device) as utilisation:
            rate, legs = _segpipe_rate(job, source, paths, processes)
        yield f"segpipe, {processes} on the device", round(rate, 1)
        yield f"segpipe, {processes}, of the ideal", round(rate / ideal, 3)
        yield f"segpipe, {processes}, legs of the first, seconds", legs
        yield f"segpipe, {processes}, device", utilisation or "no nvidia-smi"


def _write_images(folder: Path, size: str, count: int) -> list[str]:
    """So many files of a few different images."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if path.exists():
            continue
        if number < DIFFERENT_IMAGES:
            Image.fromarray(_picture(size, number)).save(path, "JPEG", quality=90)
        else:
            path.hardlink_to(folder / f"{number % DIFFERENT_IMAGES:06d}.jpg")
    return [str(folder / f"{number:06d}.jpg") for number in range(count)]


def _ideal(job: Job, labeler: Labeler, size: str) -> float:
    width, height = map(int, size.split("x"))
    return _networks_rate(job, labeler, labeler.gathered_images or BATCH_IMAGES, (height, width))


def _decode(path: str, labeler: Labeler) -> None:
    labeler.prepare(decode_scaled(Path(path).read_bytes(), 10**9, labeler.smallest_decode).pixels)


def _encode_rate(job: Job, labeler: Labeler, paths: list[str]) -> float:
    images = [np.asarray(Image.open(path)) for path in paths[:8]]
    masks, palette = [one.mask for one in labeler.label(images)], class_palette(len(labeler.classes))
    return _cores_rate(job, masks * 4, lambda mask: encode_mask(mask, palette))


def _cores_rate(job: Job, items: list[Any], work: Callable[[Any], Any]) -> float:
    """Items a second of threads on all cores."""
    work(items[0])
    done, started = 0, time.perf_counter()
    with ThreadPoolExecutor(job.cores) as pool:
        while time.perf_counter() - started < job.seconds:
            list(pool.map(work, items))
            done += len(items)
    return done / (time.perf_counter() - started)


def _segpipe_rate(job: Job, source: Path, paths: list[str], processes: int) -> tuple[float, dict[str, float]]:
    """Images a second from the first process that begins to the last that ends, models loaded before; and the
    legs of the first process."""
    places = [job.folder / f"{source.name}-{processes}-{number}" for number in range(processes)]
    for number, place in enumerate(places):
        (place / "in").mkdir(parents=True)
        for path in paths[number::processes]:
            (place / "in" / Path(path).name).hardlink_to(path)
    commands = [_command(replace(job, folder=place), "--label", str(n)) for n, place in enumerate(places)]
    started = [
        subprocess.Popen(command, env=_environment() | {"PROCESSES": str(processes)}) for command in commands
    ]
    while not all((place / "ready").exists() for place in places):
        if any(process.poll() is not None for process in started):
            raise click.ClickException("a labelling process has ended before it began")
        time.sleep(0.05)
    for place in places:
        (place / "go").touch()
    if any(process.wait() for process in started):
        raise click.ClickException("a labelling process has failed")
    found = [json.loads((place / "done").read_text()) for place in places]
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return len(paths) / seconds, found[0]["legs"]


def _label(job: Job, number: int) -> None:
    """One of several processes on the device, with its part of the cores; folder is its own."""
    every, cores = int(os.environ["PROCESSES"]), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number::every] or cores[number % len(cores) :][:1])
    labeler = load_without_policy(str(job.folder.parent / "model"), job.device)
    first = next((job.folder / "in").iterdir())
    labeler.label([np.asarray(Image.open(first))])  # what is compiled, is now
    (job.folder / "ready").touch()
    while not (job.folder / "go").exists():
        time.sleep(0.005)
    began = time.time()
    summary = label_source(str(job.folder / "in"), str(job.folder / "out"), labeler, LabelSettings())
    if summary.failed:
        raise click.ClickException(f"{summary.failed} images have failed")
    done = {"began": began, "ended": time.time(), "legs": summary.legs}
    (job.folder / "done.part").write_text(json.dumps(done))
    (job.folder / "done.part").replace(job.folder / "done")


@contextmanager
def _utilisation(device: str) -> Iterator[dict[str, float]]:
    """Filled at its end with what nvidia-smi has said of a GPU in the block; stays empty without one."""
    found: dict[str, float] = {}
    command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    place = str(torch.device(device).index or 0)
    try:
        watching = subprocess.Popen([*command, "-i", place, "-lms", "250"], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield found
        return
    try:
        yield found
    finally:
        watching.terminate()
        lines, _ = watching.communicate()
        samples = np.array(
            [[float(part) for part in line.split(",")] for line in lines.splitlines() if "," in line]
        )
        if len(samples):
            busy = samples[samples[:, 0] > 0, 0]
            found["utilisation while busy, percent"] = round(float(busy.mean()), 1) if len(busy) else 0.0
            found["most memory, MiB"] = float(samples[:, 1].max())


if __name__ == "__main__":
    main()
