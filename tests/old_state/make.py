"""Made fixtures/0.1.0 with the code of commit d0b110d; kept to say what is in it, not to be run again.

    git worktree add ../before d0b110d
    PYTHONPATH=../before:tests/support python tests/old_state/make.py

It calls what that commit had inside, so it stays as it is when modules move. A version that writes anything
otherwise gets a folder of its own beside 0.1.0; what is there already is never made again.

Each step is a process of its own over memory://old: two of them end in the middle of a labelling run, as if
they had been killed. Weights are rounded, so that they compress to an eighth; whoever reads them sees no
difference to others.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import old_state as old
import torch
from old_state import CPU, LINE, OUTPUT, ROOT, put, said, told
from PIL import Image

import segpipe
from segpipe import load_model, storage
from segpipe.config import QueueSettings
from segpipe.degradations import degrade
from segpipe.labeling import run as labelling
from segpipe.labeling.announcements import announce_new
from segpipe.labeling.sources import Source, find_sources, read_sources
from segpipe.models import device
from segpipe.review.brush import encode_brush
from segpipe.review.drafts import draft_task
from segpipe.review.label_studio import Project
from segpipe.review.pull import pull
from segpipe.review.queue import QueueItem, make_queue
from segpipe.scenes import CLASSES, draw_scene, write_labelled
from segpipe.training import run as training
from segpipe.training import stages

VERSION = segpipe.__version__
TARGET = old.FIXTURES / VERSION
MANY = f"{ROOT}/many"  # what the models learn from, and other things that are not kept
LEFT_OUT = ("many/", "models/first/curves.png", "models/second/curves.png")
HEIGHT, WIDTH = 32, 64
OF_TRAINING = ("--image-size", f"{HEIGHT}x{WIDTH}", *CPU)
ON_CALIBRATION = ("--data", old.STREETS, "--split", "calibration", *CPU)
PROMISES = {
    "first": ("--min-iou", "0.3", "--max-bad-fraction", "0.3", "--confidence", "0.5"),
    "bad-fraction": ("--min-iou", "0.5", "--max-bad-fraction", "0.3", "--confidence", "0.5"),
    "mean-loss": ("--max-mean-loss", "0.48", "--confidence", "0.5", "--guard", "car:0.5"),
}
MARGIN = 0.05  # in scores and class confidences: no processor's precision moves an image across a threshold
BROKEN = b"this is not an image\n"


# --- steps, in order ----------------------------------------------------------------------------------------


def draw_streets() -> None:
    rng = np.random.default_rng(15)
    for split, good, degraded in (("train", 10, 2), ("val", 4, 0), ("calibration", 24, 8), ("test", 8, 2)):
        write_labelled(old.STREETS, split, good, degraded, rng, HEIGHT, WIDTH)
    for split, good, degraded in (("train", 80, 20), ("val", 8, 0)):
        write_labelled(MANY, split, good, degraded, rng, HEIGHT, WIDTH)
    for kind in ("images", "masks"):  # a split of one image that both models have learnt from
        put(f"{old.STREETS}/learnt/{kind}/00003.png", storage.read_bytes(f"{MANY}/train/{kind}/00003.png"))


def train_both() -> None:
    encode = training.encode_weights
    training.encode_weights = lambda network: encode(_rounded_network(network))
    for model, architecture, epochs in ((old.FIRST, "plain", 16), (old.SECOND, "unet", 10)):
        options = ("--architecture", architecture, "--epochs", str(epochs), *OF_TRAINING)
        said("train", "--data", MANY, "--model", model, *options)


def calibrate_both() -> None:
    said("calibrate", "--model", old.FIRST, *ON_CALIBRATION, *PROMISES["first"])
    for promise in ("bad-fraction", "mean-loss"):
        said("calibrate", "--model", old.SECOND, *ON_CALIBRATION, *PROMISES[promise])
        storage.put(f"{MANY}/{promise}.json", storage.read_bytes(f"{old.SECOND}/policy.json"))


def draw_buckets() -> None:
    rng = np.random.default_rng(16)
    keys = [f"camera-{number % 3 + 1}/{number:05d}.jpg" for number in range(21)]
    _fill("raw-17", [*keys[:12], "odd/street (2).png", "odd/a.b.jpg"], _clear_cases(rng, 0.8))
    put(f"{ROOT}/raw-17/broken.jpg", BROKEN)
    put(f"{ROOT}/raw-17/notes.txt", b"camera 3 was wet\n")
    _fill("many/later", keys[12:], _clear_cases(rng, 0.4))
    _fill("raw-18", keys[:1], _clear_cases(rng, 0.0))
    _fill("raw-19", keys[:14], (degrade(_scene(rng, 1.0), rng) for _ in keys))
    _fill("raw-20", keys[:10], _clear_cases(rng, 0.0))


def night_0() -> None:
    """The first model is the first of its line."""
    _promote(old.FIRST)
    options = ("--limit", "6", "--audit-share", "1")
    said("label", old.RAW, OUTPUT, "--model", LINE, *CPU, "--run-id", "night-0", *options)
    item = _queue(OUTPUT)[0]
    _pull(OUTPUT, [_annotation(1, item, _redrawn(item), "2026-11-20T08:00:00Z")])


def night_1() -> None:
    """The second model and its first policy: a finished run, compacted and mostly reviewed."""
    _promote(old.SECOND)
    _use_policy("bad-fraction")
    options = ("--shard-images", "12", "--audit-share", "0.5", "--confidence-maps")
    said("label", old.RAW, OUTPUT, "--model", LINE, *CPU, "--run-id", "night-1", *options)
    told("compact", OUTPUT, "--min-parts", "2")
    drawn = {row["image_uri"] for row in old.asked(OUTPUT, "FROM reviews")}
    queue = [item for item in _queue(OUTPUT) if item.image_uri not in drawn]
    audits = [item for item in queue if item.is_audit]
    doubtful = [item for item in queue if not item.is_audit]
    assert len(audits) >= 4, audits
    assert len(doubtful) >= 5, doubtful
    decided = [
        (audits[0], _draft(audits[0])),
        (audits[1], _redrawn(audits[1])),
        (audits[2], _refused()),
        (doubtful[0], _draft(doubtful[0])),
        (doubtful[1], _redrawn(doubtful[1])),
        (doubtful[2], _refused()),
        (doubtful[3], {"was_cancelled": True, "result": []}),
    ]
    at = "2026-11-21T08:{:02d}:00Z"
    annotations = [
        _annotation(number, item, answer, at.format(number))
        for number, (item, answer) in enumerate(decided, start=2)
    ]
    _pull(OUTPUT, annotations)
    changed = _annotation(7, doubtful[2], _redrawn(doubtful[2]), "2026-11-22T08:00:00Z")
    _pull(OUTPUT, [changed])  # refused at first


def night_2() -> None:
    """New images and the second policy: killed after two shards of four."""
    for key, content in old.objects_below(f"{MANY}/later").items():
        put(f"{ROOT}/raw-17/{key.removeprefix('many/later/')}", content)
    put(f"{ROOT}/raw-17/broken.png", BROKEN)
    _use_policy("mean-loss")
    _kill_before_shard(2)
    options = ("--shard-images", "3", "--audit-share", "0.5", "--claim-seconds", "5")
    said("label", old.RAW, OUTPUT, "--model", LINE, *CPU, "--run-id", "night-2", *options)


def drift() -> None:
    """Killed after the first of two shards, whose scores have drifted."""
    _kill_before_shard(1)
    options = ("--shard-images", "10", "--drift-false-alarm-rate", "0.5", "--claim-seconds", "5")
    said("label", old.DRIFTED[0], old.DRIFTED[1], "--model", LINE, *CPU, "--run-id", "drifted", *options)


def distrust() -> None:
    """People refuse every audited mask: the policy is suspended."""
    source, output = old.DISTRUSTED
    said("label", source, output, "--model", LINE, *CPU, "--run-id", "distrusted", "--audit-share", "1")
    audits = [item for item in _queue(output) if item.is_audit]
    at = "2026-11-23T08:{:02d}:00Z"
    _pull(output, [_annotation(n, item, _refused(), at.format(n)) for n, item in enumerate(audits)])
    told("audit", output, status=3)


def watch() -> None:
    """All sources are announced but raw-18: that watch was killed before its message was sent."""
    text = f"""
        state = "{ROOT}/state"
        [defaults]
        model = "{LINE}"
        settings = {{ shard_images = 64, device = "cpu" }}
        [[source]]
        pattern = "{ROOT}/raw-*"
        output = "{ROOT}/labels/{{name}}"
        settings = {{ drift_warn_only = true }}
    """
    put(old.SOURCES, "\n".join(line.strip() for line in text.strip().splitlines()).encode())
    found, problems = find_sources(read_sources(old.SOURCES))
    assert not problems

    def send(source: Source, _: object) -> None:
        if source.url.endswith("raw-18"):
            raise ConnectionError

    in_order = sorted(found, key=lambda source: source.url.endswith("raw-18"))
    try:
        list(announce_new(f"{ROOT}/state", in_order, lambda _: False, send))
    except ConnectionError:
        return
    raise AssertionError("raw-18 was announced")


def stop_training() -> None:
    """Stopped in the second of four epochs; it also learns from what people have drawn."""
    save = stages.save_checkpoint

    def keep(model_url: str, checkpoint: stages.Checkpoint) -> None:
        tensors = {
            group: {name: _rounded(tensor) for name, tensor in state.items()}
            for group, state in checkpoint.tensors.items()
        }
        save(model_url, replace(checkpoint, tensors=tensors))
        if checkpoint.data["epoch"] == 2:
            raise KeyboardInterrupt

    stages.save_checkpoint = keep
    said("train", *old.STOPPED_TRAINING, status=130)


def publish() -> None:
    for key, content in old.objects_below(ROOT).items():
        if key.startswith(LEFT_OUT):
            continue
        packed = key.endswith(".safetensors")
        path = TARGET / "old" / f"{key}{'.xz' if packed else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME) if packed else content)


def expect() -> None:
    """What this commit answers, from the published files alone and in either precision the same."""
    exact = old.answers(VERSION)
    device.has_bfloat16 = lambda _: False
    again = old.answers(VERSION)
    measured = exact.pop("models"), again.pop("models")
    assert exact == again
    assert {row["reason"] for row in again["resumed_after_drift"].values()} == {"drift"}
    text = json.dumps({"models": measured[1], **again}, indent=1, ensure_ascii=False)
    (TARGET / "expected.json").write_text(f"{text}\n")


STEPS: tuple[Callable[[], None], ...] = (
    draw_streets, train_both, calibrate_both, draw_buckets, night_0, night_1, night_2, drift, distrust, watch,
    stop_training, publish, expect,
)  # fmt: skip
KILLED = (night_2, drift)


# --- what the steps are made of -----------------------------------------------------------------------------


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """A weight in steps of half its standard deviation."""
    if not tensor.is_floating_point() or tensor.ndim < 2 or not (spread := float(tensor.std())):
        return tensor
    return torch.round(tensor / (spread / 2)) * (spread / 2)


def _rounded_network(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(_rounded(tensor))
    return network


def _promote(model: str) -> None:
    compared = ("--data", old.STREETS, "--split", "test", *CPU)
    found = told("promote", "--line", LINE, "--candidate", model, *compared)
    assert found["promoted"], found["reason"]


def _use_policy(promise: str) -> None:
    storage.put(f"{old.SECOND}/policy.json", storage.read_bytes(f"{MANY}/{promise}.json"))


def _scene(rng: np.random.Generator, degraded_share: float) -> np.ndarray:
    image, _ = draw_scene(rng, HEIGHT, WIDTH)
    return degrade(image, rng) if rng.random() < degraded_share else image


def _fill(folder: str, keys: Sequence[str], images: Iterator[np.ndarray]) -> None:
    for key, image in zip(keys, images, strict=False):
        put(f"{ROOT}/{folder}/{key}", _encoded(image, key))


def _encoded(image: np.ndarray, key: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG" if key.endswith("png") else "JPEG", quality=95)
    return content.getvalue()


def _clear_cases(rng: np.random.Generator, degraded_share: float) -> Iterator[np.ndarray]:
    """Scenes of which either policy is sure whether it accepts their mask."""
    labeler = load_model(old.SECOND, "cpu")
    policies = [
        json.loads(storage.read_bytes(f"{MANY}/{name}.json")) for name in ("bad-fraction", "mean-loss")
    ]
    while True:
        image = _scene(rng, degraded_share)
        decoded = np.asarray(Image.open(io.BytesIO(_encoded(image, "a.jpg"))))
        labeled = labeler.label([image, decoded])
        if all(_is_clear(one, policy) for one in labeled for policy in policies):
            yield image


def _is_clear(labeled: Any, policy: dict[str, Any]) -> bool:
    from_score = abs(labeled.discriminator_score - policy["threshold"])
    guards = [
        abs(labeled.class_confidences[guard["class_index"]] - guard["min_confidence"])
        for guard in policy["guards"]
        if labeled.class_fractions[guard["class_index"]] > 0
    ]
    return min([from_score, *guards]) > MARGIN


def _kill_before_shard(number: int) -> None:
    """The process ends there and then; what it has written by then is all that is left."""
    commit = labelling.commit_part

    def killed(output: str, run_date: Any, run_id: str, shard: int, table: Any) -> bool:
        if shard == number:
            save()
            os._exit(9)
        return commit(output, run_date, run_id, shard, table)

    labelling.commit_part = killed


class _LabelStudio:
    """What `review pull` asks a server for, of these annotated tasks."""

    server = "http://studio.example:8080"

    def __init__(self, tasks: list[dict[str, Any]]) -> None:
        self._tasks = tasks

    def projects(self, title: str) -> list[Project]:
        return [Project(1, title, "")]

    def people(self) -> dict[int, str]:
        return {1: "reviewer@studio.example"}

    def tasks(self, _: Project) -> list[dict[str, Any]]:
        return self._tasks

    def annotated(self, _: Project, ids: list[int]) -> list[dict[str, Any]]:
        return [task for task in self._tasks if task["id"] in ids]


def _pull(output: str, tasks: list[dict[str, Any]]) -> None:
    summary = pull(output, "streets", _LabelStudio(tasks))  # type: ignore[arg-type]
    assert summary.accepted + summary.corrected + summary.rejected + summary.skipped == len(tasks), summary


def _queue(output: str) -> list[QueueItem]:
    return list(make_queue(output, QueueSettings()).items)


def _annotation(number: int, item: QueueItem, answer: dict[str, Any], updated_at: str) -> dict[str, Any]:
    """A task with one annotation."""
    made = {"id": number, "unique_id": f"annotation-{number}", "updated_at": updated_at, "lead_time": 90.0}
    return {
        "id": number,
        "data": {"image": item.image_uri, "segpipe_item_id": item.item_id},
        "total_annotations": 1,
        "annotations": [made | {"completed_by": 1, "was_cancelled": False} | answer],
    }


def _draft(item: QueueItem) -> dict[str, Any]:
    return {"result": draft_task(item, CLASSES, with_score=False)["predictions"][0]["result"]}


def _redrawn(item: QueueItem) -> dict[str, Any]:
    """The draft with a car painted into its middle."""
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[14:22, 20:40] = True
    answer = _draft(item)
    region = answer["result"][0]
    value = {"format": "rle", "rle": encode_brush(drawn), "brushlabels": ["car"]}
    return {"result": [*answer["result"], region | {"id": "painted", "value": value}]}


def _refused() -> dict[str, Any]:
    verdict = {"id": "verdict", "type": "choices", "from_name": "verdict", "to_name": "image"}
    return {"result": [verdict | {"value": {"choices": ["reject"]}}]}


# --- running the steps --------------------------------------------------------------------------------------


def save() -> None:
    """Leave the whole tree to the next step."""
    tree = {key: np.frombuffer(content, np.uint8) for key, content in old.objects_below(ROOT).items()}
    np.savez(os.environ["OLD_STATE"], **tree)


def load() -> None:
    if Path(os.environ["OLD_STATE"]).exists():
        with np.load(os.environ["OLD_STATE"]) as kept:
            old.put_tree({key: kept[key].tobytes() for key in kept.files})


def run_all() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OLD_STATE": f"{folder}/tree.npz"}
        for step in STEPS:
            status = subprocess.run([sys.executable, __file__, step.__name__], env=environment).returncode
            assert status == (9 if step in KILLED else 0), f"{step.__name__} ended with {status}"


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run_all()
    else:
        load()
        next(step for step in STEPS if step.__name__ == sys.argv[1])()
        save()
