"""Run by try_wheel.sh with the wheel's own Python: WHEEL and the installed command."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def top_level(wheel: str) -> set[str]:
    """The folders that a wheel installs, without its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    return {top for top in tops if not top.endswith(".dist-info")}


def write_labelled(root: Path) -> None:
    """Six squares, bright on dark, in two splits."""
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number in numbers:
            mask = np.zeros((64, 64), np.uint8)
            mask[8 + number : 40, 8:40] = 1
            image = np.repeat(mask[:, :, None] * 180 + 30, 3, axis=2).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    described = {"name": "squares", "classes": ["dark", "bright"], "ignore_index": 255}
    (root / "dataset.json").write_text(json.dumps(described))


def main(wheel: str, segpipe: str) -> None:
    """Train, label and query with nothing but the wheel."""

    def run(*arguments: str) -> str:
        said = subprocess.run([segpipe, *arguments], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        return said.stdout

    assert top_level(wheel) == {"segpipe"}, top_level(wheel)
    assert run("--version").split()[-1] == importlib.metadata.version("segpipe")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_labelled(root / "data")
        size = ["--epochs", "1", "--image-size", "64x64"]
        run("train", "--data", f"{root}/data", "--model", f"{root}/model", *size)
        summary = json.loads(
            run("label", f"{root}/data/val/images", f"{root}/out", "--model", f"{root}/model", "--json")
        )
        assert (summary["planned"], summary["review"]) == (2, 2), summary
        counted = json.loads(
            run("query", f"{root}/out", "SELECT count(*) AS n FROM latest", "--format", "json")
        )
        assert counted == [{"n": 2}], counted
    print("the wheel: 1 passed, 0 failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
