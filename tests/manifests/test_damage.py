"""A damaged file under OUTPUT is one line that names it and the remedy, whoever meets it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited_output import AuditedOutput, audited_output
from PIL import Image

from segpipe.cli import run
from segpipe.config import CompactSettings, LabelSettings, VerifySettings
from segpipe.errors import RunError, StorageError
from segpipe.labeling.run import finish_run, label_source, start_run
from segpipe.labeling.run_record import load_plan
from segpipe.manifests import parts
from segpipe.manifests.compaction import compact
from segpipe.manifests.policies import keep_policy
from segpipe.manifests.query import query
from segpipe.manifests.reviews import append_reviews, known_review_ids
from segpipe.manifests.verification import verify
from segpipe.models.labeler import load_model
from tests.support.random_model import write_random_model, write_trusting_policy

SETTINGS = LabelSettings(shard_images=4, batch_images=4, fetch_threads=2)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil_the_middle(path: Path) -> None:
    """The footer stays whole, the pages do not."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])


def make_text(path: Path) -> None:
    path.write_text("<html>Sign in to continue</html>")


def make_foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), path)


def change_a_type(path: Path) -> None:
    pq.write_table(pa.table({"image_uri": [[1]], "review_id": [[2]]}), path)


DAMAGES = [truncate, make_text, make_foreign, change_a_type]
IN_ANY_PLACE = [*DAMAGES, spoil_the_middle]


@pytest.fixture
def audited(tmp_path: Path) -> AuditedOutput:
    """Four audited masks in two parts, and an answer about two of them."""
    made = audited_output(str(tmp_path / "out"))
    made.answer(made.label(2), "accepted")
    made.label(2)
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of it as it was: in `in` eight images, labelled in two parts into `labels`."""
    place = tmp_path_factory.mktemp("damage") / "it"
    source = place / "in"
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(source / f"{number}.png")
    model = load_model(write_random_model(str(place / "model")), "cpu")
    label_source(str(source), str(place / "labels"), model, SETTINGS, "r1")
    shutil.copytree(place, place.with_name("as it was"))
    return place


@pytest.fixture
def labelled(place: Path) -> tuple[Path, Path, str]:
    """Source, OUTPUT and model of a run of eight images in two parts; at one place, which the rows name."""
    shutil.rmtree(place)
    shutil.copytree(place.with_name("as it was"), place)
    parts._say_left_out.cache_clear()  # what an earlier test heard of files at this place
    return place / "in", place / "labels", str(place / "model")


def said_by(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that fails."""
    assert run(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segpipe: ")]
    return line


# --- reviews ---


@pytest.mark.parametrize("damage", IN_ANY_PLACE)
@pytest.mark.parametrize(
    "command",
    [["query", "FROM accepted"], ["audit"], ["export", "TARGET", "--format", "voc"]],
    ids=lambda command: command[0],
)
def test_a_damaged_review_part_is_named_by_whoever_reads_decisions(
    audited: AuditedOutput,
    damage: Callable[[Path], None],
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(tmp_path / "out" / "reviews" / "00000001.parquet")
    verb, *rest = [str(tmp_path / "target") if word == "TARGET" else word for word in command]
    line = said_by([verb, audited.output, *rest], capsys)
    assert line.startswith(f"segpipe: {audited.output}/reviews/00000001.parquet is damaged (")
    assert line.endswith("restore it, or remove it and pull again")


def test_a_pull_beside_a_damaged_review_part_adds_nothing(audited: AuditedOutput, tmp_path: Path) -> None:
    make_foreign(tmp_path / "out" / "reviews" / "00000001.parquet")
    with pytest.raises(StorageError, match=r"reviews/00000001\.parquet is damaged"):
        known_review_ids(audited.output)
    with pytest.raises(StorageError, match=r"reviews/00000001\.parquet is damaged"):
        append_reviews(audited.output, [])
    assert len(list((tmp_path / "out" / "reviews").iterdir())) == 1


@pytest.mark.parametrize("damage", IN_ANY_PLACE)
def test_verify_finds_a_damaged_review_part_and_goes_on(
    audited: AuditedOutput, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    damage(tmp_path / "out" / "reviews" / "00000001.parquet")
    result = verify(audited.output, VerifySettings())
    assert result.findings["review"] == 1
    assert (result.parts, result.rows) == (2, 4)


# --- parts and copies ---


@pytest.mark.parametrize("damage", [truncate, make_text, spoil_the_middle, change_a_type])
@pytest.mark.parametrize("verb", ["query", "plan", "label", "audit"])
def test_a_damaged_part_is_named_by_whoever_reads_rows(
    labelled: tuple[Path, Path, str],
    damage: Callable[[Path], None],
    verb: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output, model = labelled
    (part,) = (output / "manifests").rglob("r1-00001.parquet")
    damage(part)
    labelling = [str(source), str(output), "--model", model]
    commands = {
        "query": ["query", str(output), "FROM latest"],
        "audit": ["audit", str(output)],
        "plan": ["plan", *labelling],
        "label": ["label", *labelling, "--device", "cpu"],
    }
    line = said_by(commands[verb], capsys)
    assert line.startswith(f"segpipe: {part} is damaged (")
    assert line.endswith(
        "restore it, or remove it and label again (segpipe verify will go on naming the gap)"
    )


@pytest.mark.parametrize("damage", IN_ANY_PLACE)
def test_verify_finds_a_damaged_part(
    labelled: tuple[Path, Path, str], damage: Callable[[Path], None]
) -> None:
    _, output, _ = labelled
    (part,) = (output / "manifests").rglob("r1-00001.parquet")
    damage(part)
    assert verify(str(output), VerifySettings()).findings["part"] == 1


@pytest.mark.parametrize("run_id", ["r1", "r2"], ids=["resumed", "anew"])
def test_a_part_that_was_removed_and_labelled_again_leaves_the_gap_alone(
    labelled: tuple[Path, Path, str], run_id: str
) -> None:
    source, output, model = labelled
    (part,) = (output / "manifests").rglob("r1-00000.parquet")
    truncate(part)
    (said,) = (one for one in verify(str(output), VerifySettings()).examples if one.kind == "part")
    assert said.what.endswith("remove it and label again (segpipe verify will go on naming the gap)")
    part.unlink()
    label_source(str(source), str(output), load_model(model, "cpu"), SETTINGS, run_id)
    result = verify(str(output), VerifySettings())
    assert (result.rows, result.findings) == (8, {"chain": 2})


@pytest.mark.parametrize("damage", IN_ANY_PLACE)
def test_a_damaged_copy_is_named_and_need_only_be_removed(
    labelled: tuple[Path, Path, str], damage: Callable[[Path], None]
) -> None:
    _, output, _ = labelled
    compact(str(output), CompactSettings(min_parts=2))
    copy = output / "manifests_compacted" / "00000000.parquet"
    damage(copy)
    with pytest.raises(StorageError, match=rf"{copy} is .*: remove it, it holds copies only"):
        query(str(output), "SELECT image_uri, error, labeled_at FROM latest")
    assert verify(str(output), VerifySettings()).findings["copy"] >= 1
    copy.unlink()
    assert query(str(output), "FROM latest").num_rows == 8


def test_wrong_sql_over_whole_files_is_no_damage(labelled: tuple[Path, Path, str]) -> None:
    from segpipe.errors import SegpipeError

    with pytest.raises(SegpipeError, match="query failed") as refused:
        query(str(labelled[1]), "SELECT CAST(image_uri AS INTEGER) FROM labels")
    assert not isinstance(refused.value, StorageError)


# --- what a run keeps ---


@pytest.mark.parametrize("damage", [truncate, make_text, make_foreign, spoil_the_middle])
def test_a_damaged_plan_asks_for_another_run_id(
    labelled: tuple[Path, Path, str], damage: Callable[[Path], None]
) -> None:
    _, output, _ = labelled
    plan = output / "runs" / "r1" / "plan.parquet"
    damage(plan)
    with pytest.raises(
        RunError, match=rf"{plan} is damaged \(\w+\): restore it, or start a run with another"
    ):
        load_plan(str(output), "r1")


@pytest.mark.parametrize("damage", [truncate, make_text, make_foreign, spoil_the_middle])
def test_verify_finds_a_damaged_plan_and_a_report_says_what_it_lacks(
    labelled: tuple[Path, Path, str], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    _, output, _ = labelled
    plan = output / "runs" / "r1" / "plan.parquet"
    damage(plan)
    result = verify(str(output), VerifySettings())
    assert [(one.kind, one.place) for one in result.examples] == [("run", "runs/r1/plan.parquet")]
    line = said_by(["report", str(output)], capsys)
    assert line.startswith(f"segpipe: {plan} is damaged (")
    assert line.endswith("without its plan a run can neither be resumed nor reported")
    assert "Buffer" not in line


@pytest.mark.parametrize("verb", ["report", "plan", "export"])
@pytest.mark.parametrize("text", ["", "[]", '{"run_id": "r1", "pla'])
def test_a_damaged_run_record_is_said_by_whoever_tells_of_the_run(
    labelled: tuple[Path, Path, str],
    verb: str,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output, model = labelled
    write_trusting_policy(model)
    Image.new("RGB", (30, 20)).save(source / "new.png")
    label_source(str(source), str(output), load_model(model, "cpu"), SETTINGS, "r1a")
    for record in (output / "runs").glob("*/run.json"):
        record.write_text(text)
    assert run(reading(verb, labelled, tmp_path)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "run.json is damaged (" in line]
    assert len(said) == 1
    assert "restore it, or resume run r1" in said[0]


@pytest.mark.parametrize("text", ["", "[]", "no json", "[" * 100_000, '"text"'])
def test_a_damaged_run_record_is_written_anew_and_said(
    labelled: tuple[Path, Path, str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, output, model = labelled
    record = output / "runs" / "r1" / "run.json"
    record.write_text(text)
    with caplog.at_level(logging.WARNING):
        finish_run(start_run(str(source), str(output), load_model(model, "cpu"), SETTINGS, "r1"))
    assert [line for line in caplog.messages if line.startswith(f"{record} is damaged")]
    written = json.loads(record.read_text())
    assert (written["run_id"], written["planned"], written["totals"]["review"]) == ("r1", 8, 8)
    assert verify(str(output), VerifySettings()).findings == {}


def test_a_policy_that_is_no_text_is_named(
    audited: AuditedOutput, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Path(audited.output) / "policies" / f"{audited.policy.policy_id}.json"
    kept.write_bytes(b"\xff\xfe\x00")
    line = said_by(["audit", audited.output], capsys)
    of_policy = (
        f"segpipe: policy {audited.policy.policy_id} of model {audited.policy.model_id} cannot be audited: "
    )
    assert line.startswith(f"{of_policy}{kept} is not JSON (")
    assert "put the policy.json of that calibration there, or remove it and label again" in line
    result = verify(audited.output, VerifySettings())
    assert result.findings["policy"] >= 1
    assert result.examples[0].what == line.removeprefix(of_policy)


@pytest.mark.parametrize(("found", "kept"), [(b"", True), (b"\n", True), (b"{}", False)])
def test_a_policy_is_kept_in_place_of_an_empty_file_only(
    audited: AuditedOutput, found: bytes, kept: bool
) -> None:
    place = Path(audited.output) / "policies" / f"{audited.policy.policy_id}.json"
    text = place.read_bytes()
    place.write_bytes(found)
    keep_policy(audited.output, audited.policy.policy_id, text.decode())
    assert place.read_bytes() == (text if kept else found)


# --- a copy ---


def test_verify_says_that_a_copy_names_the_masks_of_the_original(
    labelled: tuple[Path, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    _, output, _ = labelled
    copy = output.with_name("copy")
    shutil.copytree(output, copy)
    with caplog.at_level(logging.WARNING):
        result = verify(str(copy), VerifySettings())
    assert (result.findings, result.masks, result.masks_elsewhere) == ({}, 8, 8)
    (line,) = caplog.messages
    assert line.startswith(f"8 masks that rows name lie outside {copy}, {output}/masks/")
    assert "this is a copy" in line
    assert verify(str(output), VerifySettings()).masks_elsewhere == 0


# --- what is none of segpipe's ---


def put_in(output: Path, name: str) -> Path:
    """The folder of the parts gets a file of other columns."""
    (day,) = (output / "manifests").iterdir()
    make_foreign(day / name)
    return day / name


READERS = ["query", "audit", "export", "report", "plan", "label", "compact"]


def reading(verb: str, labelled: tuple[Path, Path, str], tmp_path: Path) -> list[str]:
    source, output, model = labelled
    labelling = [str(source), str(output), "--model", model]
    return {
        "query": ["query", str(output), "SELECT count(*) AS n FROM labels", "--format", "csv"],
        "audit": ["audit", str(output)],
        "export": ["export", str(output), str(tmp_path / "target"), "--format", "voc"],
        "report": ["report", str(output)],
        "plan": ["plan", *labelling],
        "label": ["label", *labelling, "--device", "cpu"],
        "compact": ["compact", str(output), "--min-parts", "2"],
    }[verb]


@pytest.mark.parametrize("name", ["foreign.parquet", "r1-00000 (1).parquet", "Copy of r1-00000.parquet"])
def test_a_file_under_another_name_is_left_out_and_said(
    labelled: tuple[Path, Path, str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, output, _ = labelled
    foreign = put_in(output, name)
    shutil.copy(foreign.with_name("r1-00000.parquet"), foreign.with_name("copy.parquet"))
    with caplog.at_level(logging.WARNING):
        assert query(str(output), "FROM labels").num_rows == 8
        assert query(str(output), "FROM runs").num_rows == 1
    (line,) = caplog.messages
    first = min(name, "copy.parquet")
    assert line.startswith(
        f"2 Parquet files below {output}/manifests are not named like a part of a run, run_"
    )
    assert line.endswith(f"/{first} for example: they are left out, remove them")
    assert compact(str(output), CompactSettings(min_parts=2)).rows == 8


@pytest.mark.parametrize("verb", READERS)
def test_whoever_reads_rows_says_that_a_file_is_left_out(
    labelled: tuple[Path, Path, str], verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in(labelled[1], "foreign.parquet")
    run(reading(verb, labelled, tmp_path))
    assert capsys.readouterr().err.count("/foreign.parquet for example: they are left out") == 1


def test_verify_names_a_file_under_another_name_and_counts_no_row_of_it(
    labelled: tuple[Path, Path, str],
) -> None:
    _, output, _ = labelled
    foreign = put_in(output, "foreign.parquet")
    shutil.copy(foreign.with_name("r1-00000.parquet"), foreign.with_name("copy.parquet"))
    result = verify(str(output), VerifySettings())
    assert (result.findings, result.parts, result.rows) == ({"part": 2}, 2, 8)
    assert {one.what for one in result.examples} == {
        "is not named like a part of a run: no command reads it, remove it"
    }


@pytest.mark.parametrize("verb", READERS)
def test_a_file_of_other_columns_under_the_name_of_a_part_is_refused(
    labelled: tuple[Path, Path, str], verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = put_in(labelled[1], "r1-00002.parquet")
    line = said_by(reading(verb, labelled, tmp_path), capsys)
    assert line.startswith(f"segpipe: {foreign} is no part of a run (it has other columns): ")
    assert line.endswith("restore the part, or remove the file and label again")
