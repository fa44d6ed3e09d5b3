"""Each part of a run names the SHA-256 of the one committed before it, run.json the last and their number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from segpipe import storage
from segpipe.errors import RunError, StorageError
from segpipe.labeling.run import finish_run, label_run, label_source, start_run
from segpipe.manifests.chain import find_tip


def parts_of(output: str, run_id: str) -> list[Path]:
    return sorted(Path(output, "manifests").rglob(f"{run_id}-*.parquet"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def links(output: str, run_id: str) -> list[dict[str, Any]]:
    metadata = [pq.read_schema(path).metadata for path in parts_of(output, run_id)]
    return [json.loads(one[b"segpipe.chain"]) for one in metadata]


def whole_chain(output: str, run_id: str) -> list[dict[str, Any]]:
    digests = [sha256(path) for path in parts_of(output, run_id)]
    return [
        {"number": number, "previous": previous} for number, previous in enumerate([None, *digests[:-1]], 1)
    ]


def recorded(output: str, run_id: str) -> dict[str, Any]:
    return json.loads(Path(output, "runs", run_id, "run.json").read_text())


@pytest.fixture
def places(tmp_path, fill) -> tuple[str, str]:
    fill(str(tmp_path / "in"), 10)
    return str(tmp_path / "in"), str(tmp_path / "out")


def test_the_parts_of_a_run_are_a_chain(places, settings, make_labeler) -> None:
    label_source(*places, make_labeler(), settings, "r1")
    output = places[1]
    assert links(output, "r1") == whole_chain(output, "r1")
    last = sha256(parts_of(output, "r1")[-1])
    assert recorded(output, "r1")["chain"] == {"parts": 3, "digest": last, "unchained": 0}


def test_a_resumed_run_continues_the_chain(places, settings, make_labeler) -> None:
    source, output = places

    def stop(batch: list[np.ndarray]) -> None:
        if len(batch) == 1:  # the last one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_source(source, output, make_labeler(before=stop), settings, "r1")
    assert len(parts_of(output, "r1")) == 2
    label_source(source, output, make_labeler(), settings, "r1")
    assert links(output, "r1") == whole_chain(output, "r1")
    assert recorded(output, "r1")["chain"]["parts"] == 3


def test_a_run_of_an_earlier_version_is_resumed_with_a_chain_of_its_new_parts(
    places, settings, make_labeler
) -> None:
    source, output = places
    label_source(source, output, make_labeler(), settings, "r1")
    first, *later = parts_of(output, "r1")
    table = pq.read_table(first)
    kept = {name: value for name, value in table.schema.metadata.items() if name != b"segpipe.chain"}
    pq.write_table(table.replace_schema_metadata(kept), first)
    for path in later:
        path.unlink()
    label_source(source, output, make_labeler(), settings, "r1")
    second, third = parts_of(output, "r1")[1:]
    assert [json.loads(pq.read_schema(path).metadata[b"segpipe.chain"]) for path in (second, third)] == [
        {"number": 1, "previous": None},
        {"number": 2, "previous": sha256(second)},
    ]
    assert recorded(output, "r1")["chain"] == {"parts": 2, "digest": sha256(third), "unchained": 1}


def test_summing_up_again_says_the_same(places, settings, make_labeler) -> None:
    source, output = places
    plan = start_run(source, output, make_labeler(), settings, "r1")
    label_run(plan, make_labeler(), settings)
    finish_run(plan)
    once = recorded(output, "r1")
    finish_run(plan)
    assert recorded(output, "r1") == once


@pytest.mark.parametrize("said", ["x", "[]", "{}", '{"number": 0, "previous": null}', '{"number": "1"}'])
def test_a_part_with_a_damaged_link_is_named(said: str, places, settings, make_labeler) -> None:
    label_source(*places, make_labeler(), settings, "r1")
    part = parts_of(places[1], "r1")[0]
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"segpipe.chain": said}), part)
    with pytest.raises(StorageError, match=r"r1-00000\.parquet is damaged"):
        find_tip([str(part)])


# --- the model's full digest --------------------------------------------------------------------------------


def test_a_run_is_not_resumed_with_a_model_that_only_shares_the_first_digits(
    places, settings, make_labeler
) -> None:
    source, output = places
    twins = [make_labeler(digest="aaaaaaaaaaaa" + digit * 52) for digit in "01"]
    plan = start_run(source, output, twins[0], settings, "r1")
    assert recorded(output, "r1")["model_digest"] == twins[0].digest
    with pytest.raises(RunError, match="which only begins with the same digits") as refused:
        label_source(source, output, twins[1], settings, "r1")
    assert "\n" not in str(refused.value)
    with pytest.raises(RunError, match="same digits"):
        label_run(plan, twins[1], settings)
    assert label_source(source, output, twins[0], settings, "r1").review == 10


def test_a_plan_of_a_version_without_full_digests_is_resumed(places, settings, make_labeler) -> None:
    source, output = places
    plan = start_run(source, output, make_labeler(), settings, "r1")
    uri = storage.join(plan.output, "runs/r1/plan.parquet")
    table = pq.read_table(uri)
    header = json.loads(table.schema.metadata[b"segpipe.plan"])
    del header["model_digest"]
    pq.write_table(table.replace_schema_metadata({"segpipe.plan": json.dumps(header)}), uri)
    assert label_source(source, output, make_labeler(digest="a" * 64), settings, "r1").review == 10
