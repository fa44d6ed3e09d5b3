"""A kind of export or import is one file and one line of a table, which command line and errors read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accepted_output import Labelled

from segpipe.cli import run
from segpipe.errors import RunError
from segpipe.exchange.export import export
from segpipe.exchange.exports.table import EXPORTS, writer
from segpipe.exchange.importing import import_dataset
from segpipe.exchange.imports.table import IMPORTS, reader
from segpipe.kinds import Kind

NEW_FORMAT = """
def write(items, target):
    target.put("keys.txt", "\\n".join(item.key for item in items))
"""


@pytest.mark.parametrize("name", EXPORTS)
def test_each_export_format_is_in_the_help_and_can_be_written(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "--help"]) == 0
    assert f"{name} {EXPORTS[name].summary}" in " ".join(capsys.readouterr().out.split())
    assert callable(writer(name))


@pytest.mark.parametrize("name", IMPORTS)
def test_each_import_layout_is_in_the_help_and_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", "--help"]) == 0
    assert f"{name} {IMPORTS[name].summary}" in " ".join(capsys.readouterr().out.split())
    assert callable(reader(name))


def test_a_new_format_is_a_file_and_a_line(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_keys.py").write_text(NEW_FORMAT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(EXPORTS, "keys", Kind("only keys", "only_keys"))
    result = export(labelled.output, str(tmp_path / "t"), "keys", "train")
    assert len((tmp_path / "t" / "keys.txt").read_text().splitlines()) == result.images == len(labelled.masks)


@pytest.mark.parametrize(("verb", "table"), [("export", "exports"), ("import", "imports")])
def test_a_line_in_the_table_is_a_choice_of_the_command_line(verb: str, table: str) -> None:
    script = (
        f"from segpipe.kinds import Kind\nfrom segpipe.exchange.{table}.table import {verb.upper()}S\n"
        f"{verb.upper()}S['keys'] = Kind('nothing but keys', 'only_keys')\n"
        f"from segpipe.cli import run\nrun(['{verb}', '--help'])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "keys nothing but keys" in " ".join(said.stdout.split())
    assert "|keys]" in said.stdout


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "a", "b", "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert all(f"'{name}'" in said for name in EXPORTS)
    assert run(["import", "a", "b", "--format", "onnx"]) == 2
    said = capsys.readouterr().err
    assert all(f"'{name}'" in said for name in IMPORTS)
    with pytest.raises(RunError, match="'onnx': take one of indexed-png, coco, voc, cityscapes"):
        export(str(tmp_path), str(tmp_path / "t"), "onnx", "train")
    with pytest.raises(RunError, match="'onnx': take one of camvid, cityscapes, voc, coco"):
        import_dataset(str(tmp_path), str(tmp_path / "t"), "onnx")


def test_the_tables_are_light() -> None:
    script = (
        "import sys, segpipe.cli\n"
        "print([name for name in sys.modules if name in ('pycocotools', 'numpy', 'torch', 'PIL')])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
