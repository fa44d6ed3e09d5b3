"""`segpipe verify` finds nothing in what labelling has left, and each kind of later change."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segpipe import cli, load_model
from segpipe.confidence.policy import ClassGuard, from_json, sealed, to_json
from segpipe.config import CompactSettings, LabelSettings, VerifySettings
from segpipe.errors import NotFoundError
from segpipe.labeling.run import label_source
from segpipe.manifests.compaction import compact
from segpipe.manifests.verification import Verification, verify
from tests.support.random_model import write_random_model, write_trusting_policy

ALL = VerifySettings()
SETTINGS = LabelSettings(shard_images=4, batch_images=4, fetch_threads=2, audit_share=0.5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run r0 of three images without a policy, r1 of 10 in three parts under one; one image is broken."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "in").mkdir()
    model = write_random_model(str(folder / "model"))
    random = np.random.default_rng(0)
    for number in range(13):
        pixels = random.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{number:02d}.png")
        if number == 2:
            label_source(str(folder / "in"), str(folder / "out"), load_model(model, "cpu"), SETTINGS, "r0")
            write_trusting_policy(model)
    (folder / "in" / "05.png").write_bytes(b"no image")
    label_source(str(folder / "in"), str(folder / "out"), load_model(model, "cpu"), SETTINGS, "r1")
    return folder / "out"


@pytest.fixture
def output(labelled: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy where the original was, so that the rows' addresses hold."""
    kept = tmp_path / "kept"
    shutil.copytree(labelled, kept)
    yield labelled
    shutil.rmtree(labelled)
    shutil.copytree(kept, labelled)


def check(output: Path, **settings: Any) -> Verification:
    return verify(str(output), VerifySettings(**settings))


def told(result: Verification) -> str:
    return "\n".join(f"{one.kind}: {one.place}: {one.what}" for one in result.examples)


def part(output: Path, run: str = "r1", shard: int = 0) -> Path:
    (found,) = (output / "manifests").rglob(f"{run}-{shard:05d}.parquet")
    return found


def edit(output: Path, change: Callable[[dict[str, Any]], dict[str, Any]], run: str = "r1") -> None:
    """Change the rows of the run's last part, whose digest only run.json names."""
    path = part(output, run, 2 if run == "r1" else 0)
    table = pq.read_table(path)
    rows = [row | change(row) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    seal(output, run)


def seal(output: Path, run: str) -> None:
    """As one does who knows of the chain: its end is made to fit."""
    record = output / "runs" / run / "run.json"
    content = json.loads(record.read_text())
    last = part(output, run, 2 if run == "r1" else 0)
    content["chain"]["digest"] = hashlib.sha256(last.read_bytes()).hexdigest()
    record.write_text(json.dumps(content))


def test_what_labelling_left_has_no_finding(labelled: Path) -> None:
    result = check(labelled)
    assert (result.findings, result.examples) == ({}, ())
    assert (result.runs, result.parts, result.rows) == (2, 4, 13)
    assert (result.masks, result.masks_read) == (12, 12)
    assert (result.unchained_parts, result.open_chains) == (0, 0)


def test_compaction_leaves_no_finding_either(output: Path) -> None:
    compact(str(output), CompactSettings(min_parts=2))
    result = check(output)
    assert (result.findings, result.copies) == ({}, 1)


@pytest.mark.parametrize(
    ("run", "change", "said"),
    [
        ("r1", {"decision": "review"}, "decision review for the reason confident"),
        ("r1", {"reason": "audit"}, "decision accepted for the reason audit"),
        ("r1", {"decision": "sent"}, "decision sent"),
        ("r1", {"discriminator_score": -99.0}, "accepted, but score -99 is below the threshold -90"),
        ("r1", {"discriminator_score": None}, "accepted, but score nan is below"),
        ("r1", {"decision": "review", "reason": "low_confidence"}, "low_confidence, but score"),
        ("r1", {"decision": "review", "reason": "no_policy"}, "no_policy, but policy_id"),
        ("r1", {"decision": "review", "reason": "drift"}, "drift, but its part tells of no alarm"),
        ("r1", {"decision": "review", "reason": "suspended"}, "suspended, but the policy is not"),
        ("r1", {"confidence": 0.123}, "confidence 0.123, the policy shows"),
        ("r1", {"confidence": None}, "confidence None"),
        ("r1", {"inclusion_probability": 0.0, "audit": True}, "audit True, but its draw at 0.0"),
        ("r1", {"inclusion_probability": 1.0, "audit": False}, "audit False, but its draw at 1.0"),
        ("r1", {"mask_uri": None}, "accepted, but without a mask"),
        ("r1", {"mask_sha256": None}, "accepted, but without a mask"),
        ("r1", {"error": "x"}, "accepted, but with an error"),
        ("r1", {"decision": "failed", "reason": "unreadable"}, "failed, but with a mask"),
        ("r1", {"decision": "failed", "reason": "unreadable"}, "failed, but without an error"),
        ("r1", {"model_id": "f" * 12}, "of model ffffffffffff under a policy of model"),
        ("r1", {"policy_id": "f" * 12}, "policies/ffffffffffff.json: rows name it"),
        ("r1", {"policy_id": None}, "accepted, confident without a policy"),
        ("r1", {"run_id": "r9"}, "is of run r9, shard 2"),
        ("r1", {"shard": 7}, "is of run r1, shard 7"),
        ("r1", {"mask_sha256": "0" * 64}, "is not what its digest says"),
        ("r1", {"mask_uri": "/nowhere/x.png"}, "/nowhere/x.png is not there"),
        ("r0", {"decision": "accepted", "reason": "confident"}, "accepted, confident without a policy"),
        ("r0", {"reason": "low_confidence"}, "review, low_confidence without a policy"),
    ],
)
def test_an_edited_row_is_found_even_where_the_chain_was_made_to_fit(
    output: Path, run: str, change: dict[str, Any], said: str
) -> None:
    edit(output, lambda row: change if row["decision"] != "failed" else {}, run)
    result = check(output)
    assert said in told(result)
    assert "chain" not in result.findings


def test_a_guard_that_would_have_held_a_mask_back_is_seen(output: Path) -> None:
    (kept,) = (output / "policies").glob("*.json")
    policy = from_json(kept.read_text())
    guarded = sealed(replace(policy, guards=tuple(ClassGuard(str(i), i, 1.0) for i in range(3))))
    kept.unlink()
    (output / "policies" / f"{guarded.policy_id}.json").write_text(to_json(guarded))
    edit(output, lambda row: {"policy_id": guarded.policy_id})
    assert "accepted, but a guard holds it back" in told(check(output))


def test_each_row_edited_from_review_to_accepted_is_a_finding(output: Path) -> None:
    edit(output, lambda row: {"decision": "accepted"}, "r0")
    assert check(output).findings["row"] == 3


def test_a_double_row_is_found(output: Path) -> None:
    path = part(output, shard=2)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    seal(output, "r1")
    assert check(output).findings["double"] == table.num_rows
    assert "2 rows for one image" in told(check(output))


def test_a_missing_and_an_exchanged_mask_are_found(output: Path) -> None:
    first, second, *_ = sorted((output / "masks").rglob("*.png"))
    first.unlink()
    second.write_bytes(b"another")
    result = check(output)
    assert result.findings == {"mask": 2}
    assert f"{first} is not there" in told(result)
    assert f"{second} is not what its digest says" in told(result)


def test_a_sample_reads_fewer_masks_but_misses_none(output: Path) -> None:
    assert check(output, masks=5).masks_read == 5
    assert check(output, masks=0).masks_read == 0
    sorted((output / "masks").rglob("*.png"))[3].unlink()
    assert check(output, masks=0).findings == {"mask": 1}


# --- policies -----------------------------------------------------------------------------------------------


def test_an_edited_a_forged_and_an_exchanged_policy_are_found(output: Path) -> None:
    (kept,) = (output / "policies").glob("*.json")
    text = kept.read_text()
    kept.write_text(text.replace('"threshold": -90.0', '"threshold": -91.0'))
    assert "was edited" in told(check(output))
    kept.write_text(to_json(sealed(replace(from_json(text), p_value=1e-9))))
    assert "does not add up" in told(check(output))
    kept.write_text(to_json(sealed(replace(from_json(text), warnings=("x",)))))
    assert "holds policy" in told(check(output))
    kept.unlink()
    assert "rows name it, but it is not there" in told(check(output))


# --- the chain ----------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    """The same rows in other bytes."""
    pq.write_table(pq.read_table(path), path, compression="none")


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (0, r"r1-00000.parquet: is not what run_date="),
        (1, r"r1-00001.parquet: is not what run_date="),
        (2, r"r1-00002.parquet: is not what run.json names as the last part"),
    ],
)
def test_a_changed_part_breaks_the_chain(output: Path, shard: int, said: str) -> None:
    rewrite(part(output, shard=shard))
    result = check(output)
    assert result.findings == {"chain": 1}
    assert said in told(result)


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (0, "is number 2 of its run's chain, after number 0"),
        (1, "is number 3 of its run's chain, after number 1"),
        (2, "its run has 2 parts in the chain and 0 outside, run.json counts 3 and 0"),
    ],
)
def test_a_part_taken_away_breaks_the_chain(output: Path, shard: int, said: str) -> None:
    part(output, shard=shard).unlink()
    assert said in told(check(output))


def test_a_part_put_in_without_a_link_is_counted(output: Path) -> None:
    path = part(output, shard=2)
    table = pq.read_table(path)
    kept = {name: text for name, text in table.schema.metadata.items() if name != b"segpipe.chain"}
    pq.write_table(table.replace_schema_metadata(kept), path.with_name("r1-00003.parquet"))
    assert "3 parts in the chain and 1 outside, run.json counts 3 and 0" in told(check(output))


def test_parts_of_an_earlier_version_count_as_unchained_and_are_no_finding(output: Path) -> None:
    for shard in range(3):
        table = pq.read_table(part(output, shard=shard))
        kept = {name: text for name, text in table.schema.metadata.items() if name != b"segpipe.chain"}
        pq.write_table(table.replace_schema_metadata(kept), part(output, shard=shard))
    record = output / "runs/r1/run.json"
    content = json.loads(record.read_text())
    del content["chain"], content["model_digest"]
    record.write_text(json.dumps(content))
    result = check(output)
    assert (result.findings, result.unchained_parts, result.parts) == ({}, 3, 4)


def test_a_run_that_has_not_ended_has_an_open_chain(output: Path) -> None:
    part(output, shard=2).unlink()
    record = output / "runs/r1/run.json"
    content = json.loads(record.read_text())
    del content["chain"], content["totals"]
    record.write_text(json.dumps(content))
    result = check(output)
    assert (result.findings, result.open_chains) == ({}, 1)


def test_an_ended_run_without_the_end_of_its_chain_is_found(output: Path) -> None:
    record = output / "runs/r1/run.json"
    content = json.loads(record.read_text())
    del content["chain"]
    record.write_text(json.dumps(content))
    assert "tells totals but not where the chain ends" in told(check(output))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"chain": 3}', '{"chain": {"x": 1}}', "[" * 100_000])
def test_a_damaged_run_record_is_found(output: Path, text: str) -> None:
    (output / "runs/r1/run.json").write_text(text)
    assert check(output).findings["run"] == 1


def test_a_run_that_has_lost_all_its_parts_is_found(output: Path) -> None:
    for shard in range(3):
        part(output, "r1", shard).unlink()
    assert "chain: runs/r1/run.json: its run has 0 parts in the chain" in told(check(output))


def test_a_lost_run_record_is_found(output: Path) -> None:
    (output / "runs/r1/run.json").unlink()
    assert "runs/r1/run.json: is not there" in told(check(output))


def test_two_models_with_the_same_first_digits_are_found(output: Path) -> None:
    record = output / "runs/r0/run.json"
    content = json.loads(record.read_text())
    assert len(content["model_digest"]) == 64
    content["model_digest"] = content["model_digest"][:12] + "0" * 52
    record.write_text(json.dumps(content))
    assert "2 different models begin with these digits" in told(check(output))


@pytest.mark.parametrize(
    "metadata",
    [
        {b"segpipe.chain": b"x"},
        {b"segpipe.chain": b"[" * 100_000},
        {b"segpipe.drift": b"x"},
        {b"segpipe.drift": b"7"},
        {b"segpipe.drift": b'{"a": 1}'},
    ],
    ids=["no chain", "nested", "no drift", "number", "no alarm"],
)
def test_damaged_metadata_is_found(output: Path, metadata: dict[bytes, bytes]) -> None:
    path = part(output, shard=1)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(dict(table.schema.metadata) | metadata), path)
    assert check(output).findings["part"] == 1


def test_a_damaged_and_a_foreign_part_are_found(output: Path) -> None:
    path = part(output, shard=1)
    path.write_bytes(b"no parquet")
    shutil.copy(part(output, shard=0), output / "manifests" / "foreign.parquet")
    result = check(output)
    assert "r1-00001.parquet is damaged" in told(result)
    assert "foreign.parquet: is not named like a part of a run" in told(result)


# --- compacted copies ---------------------------------------------------------------------------------------


def test_a_part_edited_after_compaction_is_found(output: Path) -> None:
    compact(str(output), CompactSettings(min_parts=2))
    edit(output, lambda row: {"image_bytes": 1})
    result = check(output)
    assert result.findings == {"copy": 1}
    assert "r1-00002.parquet: was changed after 00000000.parquet copied it" in told(result)


def test_an_edited_copy_is_found(output: Path) -> None:
    compact(str(output), CompactSettings(min_parts=2))
    copy = output / "manifests_compacted/00000000.parquet"
    metadata, table = pq.read_metadata(copy).metadata, pq.read_table(copy)
    rows = [row | {"decision": "accepted"} for row in table.to_pylist()]
    kept = {name: text for name, text in metadata.items() if name.startswith(b"segpipe")}
    edited = pa.Table.from_pylist(rows, schema=table.schema.with_metadata(kept))
    pq.write_table(edited, copy)
    assert "00000000.parquet: does not hold the rows of its parts" in told(check(output))


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_says_what_it_looked_at_and_exits_with_3_on_a_finding(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", str(output)]) == 0
    assert "unchained parts" in capsys.readouterr().out
    edit(output, lambda row: {"decision": "accepted"}, "r0")
    assert cli.run(["verify", str(output), "--masks", "1"]) == 3
    said = capsys.readouterr()
    assert "row: run_date=" in said.out
    assert "findings: OUTPUT is not as it was left" in said.err
    assert cli.run(["verify", str(output), "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert (result["findings"], len(result["examples"])) == ({"row": 3}, 3)


def test_where_nothing_was_labelled_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing was labelled under"):
        check(tmp_path)
