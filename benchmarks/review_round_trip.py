"""Real masks to a real Label Studio and back: is every pixel what people left, and what does it cost?

    make .venv-studio/installed.stamp
    python benchmarks/review_round_trip.py DATA --model BUNDLE [--images 60]

Labels images of DATA's split in a bucket of an S3 server that it starts (without a policy, so all go to
review), pushes the masks, and answers through the server's own interface: a third submitted untouched, a
quarter painted over, a sixth rejected, a twelfth skipped, the rest left open. Then it pulls, and pulls and
pushes again. Prints how many came back as they must, and the time of push and pull as a ratio to the server's
own import and export of the same tasks; writes results/.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import fsspec
import numpy as np
from machine import write_results
from s3_server import s3_server

from segpipe import load_model, storage
from segpipe.config import LabelSettings, PushSettings, QueueSettings
from segpipe.datasets import list_samples, open_dataset
from segpipe.images import decode_mask
from segpipe.labeling.run import label_source
from segpipe.manifests.query import query
from segpipe.review.brush import encode_brush
from segpipe.review.label_studio import LabelStudio, open_label_studio
from segpipe.review.pull import pull
from segpipe.review.push import push

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from studio_server import TOKEN, Studio, running_studio

PROJECT = "round trip"
STRIP = 10  # rows that are painted over
REJECT = [{"type": "choices", "from_name": "verdict", "to_name": "image", "value": {"choices": ["reject"]}}]


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="A model bundle.")
@click.option("--split", default="val", show_default=True)
@click.option("--images", default=60, show_default=True)
def main(data: str, model: str, split: str, images: int) -> None:
    """Send BUNDLE's masks of DATA's images to Label Studio and bring decisions back."""
    with tempfile.TemporaryDirectory() as folder, s3_server("moto"), running_studio(Path(folder)) as studio:
        output = _labelled(data, split, images, model)
        with open_label_studio(studio.url, TOKEN) as server:
            figures = _round_trip(output, studio, server)
    for name, value in figures.items():
        click.echo(f"{name:44} {value}")
    dataset = open_dataset(data).name
    write_results(f"review_round_trip-{dataset}", {"data": dataset, "images": images} | figures)


def _labelled(data: str, split: str, images: int, model: str) -> str:
    bucket = f"round-trip-{os.getpid()}"
    fsspec.filesystem("s3").mkdir(bucket)
    for sample in list_samples(open_dataset(data), split)[:images]:
        name = sample.image_uri.rpartition("/")[2]
        storage.put(f"s3://{bucket}/raw/{name}", storage.read_bytes(sample.image_uri))
    output = f"s3://{bucket}/labels"
    summary = label_source(f"s3://{bucket}/raw", output, load_model(model), LabelSettings())
    if summary.review != images:
        raise click.ClickException(f"{summary.review} of {images} images are to review: take fewer")
    return output


def _round_trip(output: str, studio: Studio, server: LabelStudio) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    settings, queue = PushSettings(project=PROJECT), QueueSettings()
    drafts = {row["image_uri"]: row["mask_uri"] for row in query(output, "SELECT * FROM latest").to_pylist()}
    with _timed(seconds, "push"):
        pushed = push(output, settings, queue, server)
    tasks = studio.tasks(PROJECT)
    _import_alone(studio, tasks, seconds)
    answers = {kind: chosen for kind, chosen in _shares(tasks).items() if kind != "open"}
    for kind, chosen in answers.items():
        for task in chosen:
            _answer(studio, task, kind)
    with _timed(seconds, "pull"):
        pulled = pull(output, PROJECT, server)
    with _timed(seconds, "export alone"):
        studio.tasks(PROJECT)
    again_pushed, again_pulled = push(output, settings, queue, server), pull(output, PROJECT, server)
    return {
        "pushed": pushed.pushed,
        "answered": {kind: len(chosen) for kind, chosen in answers.items()},
        "pulled": asdict(pulled),
        "final masks as people left them": _right(output, drafts, answers),
        "pushed by a second push": again_pushed.pushed,
        "new by a second pull": asdict(again_pulled),
        "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
        "push / import alone": round(seconds["push"] / seconds["import alone"], 2),
        "pull / export alone": round(seconds["pull"] / seconds["export alone"], 2),
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _import_alone(studio: Studio, tasks: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    """The same drafts into another project, by the server's own interface, in one request."""
    config = studio.call("GET", f"/api/projects/{studio.project_id(PROJECT)}/")["label_config"]
    bare = studio.call("POST", "/api/projects/", {"title": "import alone", "label_config": config})
    drafts = [
        {"data": task["data"], "predictions": [{"result": studio.draft(task)["result"]}]} for task in tasks
    ]
    with _timed(seconds, "import alone"):
        studio.call("POST", f"/api/projects/{bare['id']}/import", drafts)


def _shares(tasks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = ["untouched", "rejected", "painted", "untouched", "open", "painted"]
    names += ["untouched", "rejected", "painted", "untouched", "open", "skipped"]
    shares: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number, task in enumerate(tasks):
        shares[names[number % len(names)]].append(task)
    return shares


def _answer(studio: Studio, task: dict[str, Any], kind: str) -> None:
    draft = studio.draft(task)
    results = {
        "untouched": draft["result"],
        "painted": [*draft["result"], _painted(draft["result"][0])],
        "rejected": REJECT,
        "skipped": [],
    }
    studio.submit(task, results[kind], parent_prediction=draft["id"], was_cancelled=kind == "skipped")


def _painted(region: dict[str, Any]) -> dict[str, Any]:
    """A strip at the top in the class of this region, as the editor would send it."""
    strip = np.zeros((region["original_height"], region["original_width"]), bool)
    strip[:STRIP] = True
    painted = copy.deepcopy(region) | {"id": "painted"}
    painted["value"]["rle"] = encode_brush(strip)
    return painted


def _right(output: str, drafts: dict[str, str], answers: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    final = {row["image_uri"]: row["mask_uri"] for row in query(output, "SELECT * FROM accepted").to_pylist()}
    counted: Counter[str] = Counter()
    for kind, tasks in answers.items():
        for image in (task["data"]["image"] for task in tasks):
            counted[kind] += _as_left(kind, _mask(drafts[image]), final.get(image))
    return {kind: f"{counted[kind]} of {len(tasks)}" for kind, tasks in answers.items()}


def _as_left(kind: str, draft: np.ndarray, final_uri: str | None) -> bool:
    """Untouched: the draft's pixels; painted: those but for the strip; rejected or skipped: no final mask."""
    if kind in ("rejected", "skipped"):
        return final_uri is None
    if final_uri is None:
        return False
    final, expected = _mask(final_uri), draft.copy()
    if kind == "painted":
        expected[:STRIP] = draft.min()  # the first region is that of the lowest class
    return bool(np.array_equal(final, expected))


def _mask(uri: str) -> np.ndarray:
    return decode_mask(storage.read_bytes(uri))


if __name__ == "__main__":
    main()
