"""What earlier versions have written (models, OUTPUTs and the rest), and what they answer about it.

fixtures/VERSION/old is the tree below memory://old; what ends in .xz is compressed there. All addresses in it
are memory:// ones, so they mean the same on every machine. Only what a user sees is asked: the command line
and `segpipe.load_model`.
"""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from PIL import Image

from segpipe import cli, load_model

FIXTURES = Path(__file__).parent.parent / "old_state" / "fixtures"
ROOT = "memory://old"
# In memory an object's ETag is made of the time it was written, and a manifest row names its image's ETag.
WRITTEN = datetime(2026, 11, 20, tzinfo=UTC)

STREETS = f"{ROOT}/streets"  # splits train, val, calibration, test, and learnt: seen by both models
FIRST, SECOND, LINE, STOPPED = (f"{ROOT}/models/{name}" for name in ("first", "second", "line", "stopped"))
SOURCES = f"{ROOT}/sources.toml"
RAW, OUTPUT = f"{ROOT}/raw-17", f"{ROOT}/labels/raw-17"  # night-0, night-1 finished; night-2 half finished
DRIFTED = f"{ROOT}/raw-19", f"{ROOT}/labels/raw-19"  # a half-finished run under a drift alarm
DISTRUSTED = f"{ROOT}/raw-20", f"{ROOT}/labels/raw-20"  # the policy is suspended
CPU = ("--device", "cpu")
STOPPED_TRAINING = (
    *("--data", STREETS, "--model", STOPPED, "--architecture", "plain", "--epochs", "4"),
    *("--image-size", "32x64", "--corrections", OUTPUT, *CPU),
)
VIEWS = {
    "labels": "SELECT * FROM labels ORDER BY run_id, image_uri",
    "latest": "SELECT * FROM latest ORDER BY image_uri",
    "accepted": "SELECT * FROM accepted ORDER BY image_uri",
    "review_queue": "SELECT * FROM review_queue ORDER BY image_uri",
    "failures": "SELECT * FROM failures ORDER BY image_uri",
    "runs": "SELECT * REPLACE (round(mean_confidence, 9) AS mean_confidence) FROM runs ORDER BY run_id",
}


# --- the storage --------------------------------------------------------------------------------------------


def read_tree(version: str) -> dict[str, bytes]:
    """What a version has left: the content of each object by its path below memory://old."""
    folder = FIXTURES / version / "old"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix().removesuffix(".xz"): _content(path) for path in files}


def _content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def put_tree(tree: Mapping[str, bytes]) -> None:
    """Make these objects all that is below memory://old."""
    remove_tree()
    for key, content in tree.items():
        put(f"{ROOT}/{key}", content)


def put(uri: str, content: bytes) -> None:
    """Write an object as if it had been there since WRITTEN."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file(uri, content)
    memory.store[memory._strip_protocol(uri)].created = WRITTEN


def remove_tree() -> None:
    """Leave nothing below memory://old."""
    memory = fsspec.filesystem("memory")
    if memory.exists(ROOT):
        memory.rm(ROOT, recursive=True)


def objects_below(folder: str) -> dict[str, bytes]:
    """The content of each object below a folder, by its path below memory://old."""
    stored = dict(fsspec.filesystem("memory").store)  # a copy at once: threads may be writing
    found = {path.removeprefix("/old/"): file.getvalue() for path, file in stored.items()}
    return {key: found[key] for key in sorted(found) if f"{ROOT}/{key}".startswith(f"{folder}/")}


# --- what users ask -----------------------------------------------------------------------------------------


def said(*arguments: str, status: int = 0) -> str:
    """What a command prints; it must end with this exit status."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        found = cli.run(arguments)
    assert found == status, f"segpipe {' '.join(arguments)} ended with {found}, not {status}"
    return printed.getvalue()


def told(*arguments: str, status: int = 0) -> Any:
    """What a command prints as JSON."""
    return json.loads(said(*arguments, "--json", status=status))


def asked(output: str, sql: str) -> list[dict[str, Any]]:
    """The records that a query gives."""
    return json.loads(said("query", output, sql, "--format", "json"))


def views(output: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each view."""
    return {view: asked(output, sql) for view, sql in VIEWS.items()}


def decisions(output: str, run_id: str) -> dict[str, dict[str, Any]]:
    """Decision and reason of each image of a run, and whether it is audited."""
    found = asked(output, f"SELECT image_uri, decision, reason, audit FROM labels WHERE run_id = '{run_id}'")
    assert len({row["image_uri"] for row in found}) == len(found), "an image has two rows"
    return {row.pop("image_uri"): row for row in found}


def label(place: tuple[str, str], run_id: str, *options: str) -> Any:
    """What a labelling run with the line's model, new or resumed, says it has done."""
    return told("label", *place, "--model", LINE, *CPU, "--run-id", run_id, *options)


# --- what a version answers ---------------------------------------------------------------------------------


def answers(version: str) -> dict[str, Any]:
    """All that is to stay as it is, each from the tree as it was left."""
    tree = read_tree(version)
    asks = {
        "models": lambda: {url: model_answer(url) for url in (FIRST, SECOND)},
        "line": line_answer,
        "views": lambda: views(OUTPUT),
        "queue": lambda: [item["item_id"] for item in told("review", "list", OUTPUT)["items"]],
        "audits": lambda: {
            OUTPUT: told("audit", OUTPUT),
            DISTRUSTED[1]: told("audit", DISTRUSTED[1], status=3),
        },
        "pending": pending_answer,
        "resumed": lambda: resumed_answer((RAW, OUTPUT), "night-2"),
        "resumed_after_drift": lambda: resumed_answer(DRIFTED, "drifted"),
        "anew": anew_answer,
    }
    found = {}
    for name, ask in asks.items():
        put_tree(tree)
        found[name] = ask()
    remove_tree()
    return found


def model_answer(url: str) -> dict[str, Any]:
    """Who the model is, what it promises, and what it makes of the test split's images."""
    model = load_model(url, "cpu")
    stored = objects_below(f"{STREETS}/test/images")
    images = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in stored.values()]
    return {
        "model_id": model.model_id,
        "classes": list(model.classes),
        "policy_id": model.policy.policy_id,
        "threshold": model.policy.threshold,
        "images": {
            key: {
                "score": float(labeled.discriminator_score),
                "confidence": float(labeled.confidence),
                "pixels": np.bincount(labeled.mask.ravel(), minlength=len(model.classes)).tolist(),
            }
            for key, labeled in zip(stored, model.label(images), strict=True)
        },
    }


def line_answer() -> list[str]:
    """The model that a line stands for, and after each way back."""
    newest, earlier = load_model(LINE, "cpu").model_id, told("rollback", LINE)["model_id"]
    return [newest, earlier, load_model(LINE, "cpu").model_id]


def pending_answer() -> list[str]:
    """The images that the half-finished run has still to label."""
    before = decisions(OUTPUT, "night-2")
    return sorted(resumed_answer((RAW, OUTPUT), "night-2").keys() - before.keys())


def resumed_answer(place: tuple[str, str], run_id: str) -> dict[str, dict[str, Any]]:
    """The decisions of a half-finished run once it has been resumed."""
    label(place, run_id)
    return decisions(place[1], run_id)


def anew_answer() -> dict[str, dict[str, Any]]:
    """The decisions about all images of the source, labelled into an empty OUTPUT."""
    label((RAW, f"{ROOT}/labels/anew"), "anew", "--audit-share", "0.5")
    return decisions(f"{ROOT}/labels/anew", "anew")
