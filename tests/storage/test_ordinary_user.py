"""An ordinary user, without a home: what may not be read is said or becomes a row, what may is labelled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_model import write_random_model

NOBODY = 65534
# Run once as whoever we are, so that all is imported; a Python below root's home is closed to others.
AS_NOBODY = f"""
import json, os, sys
from segpipe import cli
place = sys.argv[1]
assert cli.run(["label", place + "/warm", place + "/warm-out", "--model", place + "/model"]) == 0
cli.run(["query", place + "/warm-out", "SELECT 1", "--format", "json"])
cli.run(["doctor", "--output", place + "/warm-out", "--source", place + "/warm"])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
os.environ.pop("HOME", None)
for command in json.loads(sys.argv[2]):
    print("status", cli.run([part.replace("PLACE", place) for part in command]), flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others may enter, with a model, images, and a folder of nobody's own to write to."""
    folder = Path(tempfile.mkdtemp(prefix="segpipe-test-"))
    folder.chmod(0o755)
    write_random_model(str(folder / "model"))
    rng = np.random.default_rng(3)
    for name in ("warm/a.png", "raw/open.png", "raw/secret.png", "closed/in/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name)
    (folder / "raw" / "secret.png").chmod(0)
    (folder / "closed" / "in").chmod(0)
    (folder / "mine").mkdir()
    (folder / "theirs").mkdir(mode=0o555)
    if os.geteuid() == 0:
        os.chown(folder / "mine", NOBODY, NOBODY)
    yield folder
    (folder / "closed" / "in").chmod(0o755)
    shutil.rmtree(folder)


def run_as_nobody(place: Path, *commands: list[str]) -> tuple[list[int], str, str]:
    """Exit statuses, and what was said on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(place), json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("status ")]
    return statuses, done.stdout, done.stderr


def test_an_ordinary_user_without_a_home_labels_what_may_be_read(place: Path) -> None:
    query = ["query", "PLACE/mine/out", "SELECT image_uri, reason FROM labels ORDER BY 1", "--format", "csv"]
    statuses, said, errors = run_as_nobody(
        place,
        ["label", "PLACE/raw", "PLACE/mine/out", "--model", "PLACE/model"],
        query,
        ["label", "PLACE/closed", "PLACE/mine/out2", "--model", "PLACE/model"],
        ["label", "PLACE/warm", "PLACE/theirs/out", "--model", "PLACE/model"],
        ["doctor", "--output", "PLACE/theirs/out", "--source", "PLACE/warm"],
    )
    assert statuses == [0, 0, 1, 1, 1], errors
    assert f"{place}/raw/open.png,no_policy\n{place}/raw/secret.png,denied\n" in said
    lines = [line for line in errors.splitlines() if line.startswith("segpipe: ")]
    assert "Traceback" not in errors
    assert f"{place}/closed/in" in lines[-2]
    assert "check the permissions of it and its folders for" in lines[-2]
    assert f"{place}/theirs/out" in lines[-1]
    assert "check the permissions of it and its folders for" in lines[-1]
    assert "FAIL  output" in said
