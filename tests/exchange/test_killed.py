"""export, import and split, killed at each write: nothing half looks whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from accepted_output import Labelled
from labelled_layouts import Tree, picture, put, save, tree
from labelled_sets import write_set

from segpipe import storage
from segpipe.cli import run
from segpipe.datasets import open_dataset
from segpipe.errors import DatasetError
from segpipe.exchange.exports.table import EXPORTS
from segpipe.exchange.importing import import_dataset


class Killed(BaseException):
    """The end of the process, as far as one process can play it."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """From the write of this number on nothing is written or deleted any more; the first has the number 0."""
    written = 0

    def dying(work: Callable[..., None]) -> Callable[..., None]:
        def write(*given: object) -> None:
            nonlocal written
            written += 1
            if written > number:
                raise Killed
            work(*given)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "delete"):
            patch.setattr(storage, name, dying(getattr(storage, name)))
        with suppress(Killed):
            yield


def kills(command: list[str], target: Path, numbers: Iterable[int]) -> Iterator[Tree]:
    """What lies in the target after a kill at each of these writes of the command in turn."""
    for number in numbers:
        shutil.rmtree(target, ignore_errors=True)
        ended = False
        with killed_at(number):
            run(command)
            ended = True
        assert not ended
        yield tree(target)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segpipe: ")]
    assert len(lines) == 1
    return lines[0]


def remove_as_told(command: list[str], target: Path, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(command) == 1
    assert told in only_line(capsys)
    shutil.rmtree(target)


def assert_no_data_set(target: Path, left: Tree) -> None:
    assert "dataset.json" not in left
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        open_dataset(str(target))


@pytest.mark.parametrize("layout", EXPORTS)
def test_an_export_killed_at_each_write(
    labelled: Labelled, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "t"
    command = ["export", labelled.output, str(target), "--format", layout]
    assert run(command) == 0
    whole = tree(target)
    n_writes = len(whole) + 2  # the mark is written and removed
    # Every write of the format that training takes; of the others the first, one between and the last two.
    numbers = range(n_writes) if layout == "indexed-png" else (0, 1, 5, n_writes - 2, n_writes - 1)
    for left in kills(command, target, numbers):
        assert not left or "export-unfinished.txt" in left
        if left:
            remove_as_told(command, target, "holds an export that did not end: remove the folder", capsys)
    assert run(command) == 0
    assert tree(target) == whole


def test_an_export_killed_for_real(
    labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "t"
    command = ["export", labelled.output, str(target), "--format", "voc"]
    program = (
        "import os, signal, sys\n"
        "from segpipe import cli, storage\n"
        "put, names = storage.put, []\n"
        "def dying(uri, data):\n"
        "    put(uri, data)\n"
        "    names.append(uri)\n"
        "    if len(names) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.put = dying\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, *command], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert (target / "export-unfinished.txt").exists()
    assert run(command) == 1
    assert f"{target} holds an export that did not end: remove the folder" in only_line(capsys)
    with pytest.raises(DatasetError):
        import_dataset(str(target), str(tmp_path / "i"), "voc")
    shutil.rmtree(target)
    assert run(command) == 0


def test_an_import_killed_at_each_write_is_done_again(labelled: Labelled, tmp_path: Path) -> None:
    exported, target = tmp_path / "exported", tmp_path / "t"
    assert run(["export", labelled.output, str(exported), "--format", "voc"]) == 0
    command = ["import", str(exported), str(target), "--format", "voc"]
    assert run(command) == 0
    whole = tree(target)
    n_writes = len(whole) + 2  # the mark is written and removed
    for left in kills(command, target, range(n_writes)):
        if "dataset.json" not in left:
            assert_no_data_set(target, left)
        else:  # at the very last
            with pytest.raises(DatasetError, match=f"{target} holds an import that did not end"):
                open_dataset(str(target))
        assert run(command) == 0
        assert tree(target) == whole
    assert len(whole) == 2 * 6 + 1


def voc_split(root: Path, split: str, *keys: str) -> list[str]:
    """The command that imports it."""
    for key in keys:
        save(root / "JPEGImages" / f"{key}.jpg", picture(4, 6))
        save(root / "SegmentationClass" / f"{key}.png", np.zeros((4, 6), np.uint8))
    put(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(keys))
    return ["import", str(root), str(root.parent / "t"), "--format", "voc"]


def test_the_import_of_another_split_killed_at_each_write_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "t"
    assert run(voc_split(tmp_path / "first", "train", "a")) == 0
    first, command = tree(target), voc_split(tmp_path / "second", "val", "b")
    assert run(command) == 0
    whole = tree(target)
    assert len(whole) == len(first) + 2
    for number in range(4):  # the mark is written, image and mask, and it is removed
        shutil.rmtree(target / "val")
        with killed_at(number):
            run(command)
        if number:
            with pytest.raises(DatasetError, match=r"holds an import that did not end .*: run it again"):
                open_dataset(str(target))
        capsys.readouterr()
        assert run(command) == 0
        assert tree(target) == whole


def test_a_killed_import_is_gone_on_with_by_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, other = (
        voc_split(tmp_path / "set", "train", "a", "b"),
        voc_split(tmp_path / "other", "train", "c"),
    )
    with killed_at(4):
        run(command)
    for wrong in (other, [*command, "--drawn-on", "stored"]):
        capsys.readouterr()
        assert run(wrong) == 1
        said = only_line(capsys)
        assert f"{tmp_path}/t holds an import of {tmp_path}/set as voc that did not end: run that one" in said
    # An image that the source has no more must not stay in the data set.
    (tmp_path / "set" / "ImageSets" / "Segmentation" / "train.txt").write_text("b\n")
    assert run(command) == 1
    assert "t holds train/images/a.jpg of an import that did not end, and its source has it no" in only_line(
        capsys
    )
    (tmp_path / "t" / "import-unfinished.json").write_text("[")
    assert run(command) == 1
    assert "t holds an import that did not end: run that one again, remove the folder" in only_line(capsys)


def test_a_split_killed_at_each_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, target = write_set(tmp_path / "data", {"all": 5}, size=(16, 16)), tmp_path / "t"
    command = ["split", str(data), str(target), "--by", ".*"]
    assert run(command) == 0
    whole = tree(target)
    for left in kills(command, target, range(len(whole))):
        assert_no_data_set(target, left)
        if left:
            remove_as_told(command, target, "as a split that did not end: remove the folder", capsys)
        assert run(command) == 0
        assert tree(target) == whole
    assert len(whole) == 2 * 5 + 2
