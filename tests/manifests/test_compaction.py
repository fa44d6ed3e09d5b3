"""Whatever happens during compactions, every reader sees each committed row once, plain pandas too."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from unittest import mock

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from segpipe import cli, storage
from segpipe.config import CompactSettings
from segpipe.errors import NotFoundError, StorageError
from segpipe.manifests import compaction
from segpipe.manifests.compacted import compacted_root, current_view
from segpipe.manifests.compaction import compact
from segpipe.manifests.query import query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part, part_uri, read_manifest, table_bytes
from tests.conftest import ROW_DEFAULTS

DAY = date(2026, 11, 23)
SOON = CompactSettings(min_parts=2, file_megabytes=1)


def commit(output: str, *numbers: int) -> None:
    """One part per number, with two rows."""
    for number in numbers:
        rows = [Row(**ROW_DEFAULTS | {"image_uri": f"{number}.{i}", "shard": number}) for i in range(2)]
        commit_part(output, DAY, "r", number, rows_table(rows, ["sky", "road"]))


def seen(output: str) -> list[str]:
    return sorted(read_manifest(output, columns=["image_uri"])["image_uri"].to_pylist())


def seen_by_pandas(output: str) -> list[str]:
    return sorted(pd.read_parquet(storage.join(output, "manifests"))["image_uri"])


def images(*numbers: int) -> list[str]:
    return sorted(f"{number}.{i}" for number in numbers for i in range(2))


def test_a_compaction_copies_the_parts_and_leaves_them(storage_root: str) -> None:
    output = storage.normalise(storage_root)
    commit(output, *range(5))
    before = [(item.key, item.etag) for item in storage.list_objects(f"{output}/manifests")]
    table = read_manifest(output).sort_by("image_uri")
    summary = compact(output, SOON)
    assert (summary.files, summary.parts, summary.rows) == (1, 5, 10)
    assert (summary.total_files, summary.waiting_parts) == (1, 0)
    assert [(item.key, item.etag) for item in storage.list_objects(f"{output}/manifests")] == before
    assert [item.key for item in storage.list_objects(compacted_root(output))] == ["00000000.parquet"]
    again = read_manifest(output).sort_by("image_uri")
    assert again.replace_schema_metadata(None).equals(table.replace_schema_metadata(None))


def test_rows_are_read_from_the_copy_and_later_parts_beside_it(tmp_path: Path) -> None:
    output = str(tmp_path)
    commit(output, 0, 1, 2)
    compact(output, SOON)
    commit(output, 3)
    view = current_view(output)
    assert [file.key for file in view.files] == ["00000000.parquet"]
    assert [part.key for part in view.parts] == ["run_date=2026-11-23/r-00003.parquet"]
    assert seen(output) == images(0, 1, 2, 3)
    assert query(output, "SELECT count(*) AS n FROM labels")["n"].to_pylist() == [8]


def test_few_parts_are_left_until_there_are_enough(tmp_path: Path) -> None:
    commit(str(tmp_path), 0, 1, 2)
    summary = compact(str(tmp_path), CompactSettings(min_parts=4))
    assert (summary.files, summary.waiting_parts) == (0, 3)
    assert not (tmp_path / "manifests_compacted").exists()


def test_a_file_takes_as_many_parts_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(str(tmp_path), *range(7))
    size = os.path.getsize(part_uri(str(tmp_path), DAY, "r", 0))
    chosen = compaction._first_parts(current_view(str(tmp_path)).parts, 3 * size + 100)
    assert len(chosen) == 3
    assert len(compaction._first_parts(current_view(str(tmp_path)).parts, 1)) == 1


def test_the_folder_of_copies_alone_reads_right_in_pandas(tmp_path: Path) -> None:
    for start in range(0, 9, 3):
        commit(str(tmp_path), *range(start, start + 3))
        compact(str(tmp_path), SOON)
    frame = pd.read_parquet(tmp_path / "manifests_compacted")
    assert sorted(frame["image_uri"]) == images(*range(9))
    assert set(frame["run_date"].astype(str)) == {"2026-11-23"}


def test_a_copy_of_a_part_that_is_gone_no_longer_counts(tmp_path: Path) -> None:
    commit(str(tmp_path), 0, 1, 2)
    compact(str(tmp_path), SOON)
    os.unlink(part_uri(str(tmp_path), DAY, "r", 1))
    assert seen(str(tmp_path)) == images(0, 2)


def test_a_part_edited_after_compaction_is_read_as_pandas_reads_it(storage_root: str) -> None:
    output = storage.normalise(storage_root)
    commit(output, 0, 1, 2)
    compact(output, SOON)
    edited = [Row(**ROW_DEFAULTS | {"image_uri": "edited", "shard": 1})]
    storage.put(part_uri(output, DAY, "r", 1), table_bytes(rows_table(edited, ["sky", "road"])))
    assert seen(output) == ["0.0", "0.1", "2.0", "2.1", "edited"]
    assert current_view(output).files == ()
    assert compact(output, SOON).waiting_parts == 0  # into a copy of their own
    assert seen(output) == ["0.0", "0.1", "2.0", "2.1", "edited"]


def test_a_copy_of_an_earlier_version_goes_on_counting(tmp_path: Path) -> None:
    commit(str(tmp_path), 0, 1, 2)
    compact(str(tmp_path), SOON)
    copy = tmp_path / "manifests_compacted" / "00000000.parquet"
    table = pq.read_table(copy)
    kept = {name: text for name, text in table.schema.metadata.items() if name == b"segpipe.parts"}
    pq.write_table(table.replace_schema_metadata(kept), copy)
    view = current_view(str(tmp_path))
    assert ([file.key for file in view.files], view.parts) == (["00000000.parquet"], ())
    assert seen(str(tmp_path)) == images(0, 1, 2)


def test_a_copy_notes_what_it_copied(tmp_path: Path) -> None:
    commit(str(tmp_path), 0, 1)
    compact(str(tmp_path), SOON)
    metadata = pq.read_metadata(tmp_path / "manifests_compacted" / "00000000.parquet").metadata
    noted = json.loads(metadata[b"segpipe.copied"])
    for part in storage.list_objects(str(tmp_path / "manifests")):
        digest = hashlib.sha256(storage.read_bytes(part.uri)).hexdigest()
        assert noted[part.key] == {"size": part.size, "etag": part.etag, "digest": digest}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"segpipe.parts": "{"},
        {"segpipe.parts": "7"},
        {"segpipe.parts": "[[]]"},
        {"segpipe.parts": "[" * 100_000},
        {"segpipe.parts": "[]", "segpipe.copied": '{"a": 1}'},
        {"segpipe.parts": "[]", "segpipe.copied": '{"a": {"size": 1}}'},
        {"segpipe.parts": "[]", "segpipe.copied": "[]"},
    ],
)
def test_a_copy_with_damaged_metadata_is_named(tmp_path: Path, metadata: dict[str, str]) -> None:
    commit(str(tmp_path), 0, 1)
    table = pq.read_table(part_uri(str(tmp_path), DAY, "r", 0)).replace_schema_metadata(metadata)
    storage.put(str(tmp_path / "manifests_compacted" / "00000000.parquet"), table_bytes(table))
    with pytest.raises(StorageError, match=r"00000000\.parquet is no compacted manifest") as caught:
        read_manifest(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_of_compactions_that_meet_each_part_is_copied_once(storage_root: str) -> None:
    output = storage.normalise(storage_root)
    commit(output, *range(8))
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: compact(output, SOON), range(4)))
    assert sum(summary.parts for summary in summaries) == 8
    assert seen(output) == images(*range(8))
    assert current_view(output).parts == ()


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(str(tmp_path), 0, 1, 2)
    assert cli.run(["compact", str(tmp_path), "--min-parts", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["files"], said["parts"], said["rows"], said["waiting_parts"]) == (1, 3, 6, 0)
    assert cli.run(["compact", str(tmp_path / "none")]) == 1
    assert "no manifest under" in capsys.readouterr().err


def test_an_output_without_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no manifest under"):
        compact(str(tmp_path), SOON)


def test_a_foreign_file_among_the_copies_is_named(tmp_path: Path) -> None:
    commit(str(tmp_path), 0, 1)
    storage.put(str(tmp_path / "manifests_compacted" / "00000000.parquet"), b"no parquet")
    with pytest.raises(StorageError, match=r"00000000\.parquet is no compacted manifest"):
        read_manifest(str(tmp_path))


# Kills itself at the n-th of the calls that a compaction makes to storage or to Arrow.
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from segpipe import storage
    from segpipe.config import CompactSettings
    from segpipe.manifests import compacted, compaction, store

    output, kill_at, calls = sys.argv[1], int(sys.argv[2]), 0

    def counted(function):
        def call(*arguments):
            step()
            result = function(*arguments)
            step()
            return result
        return call

    def step():
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    storage.create = counted(storage.create)
    compaction.current_view = counted(compaction.current_view)
    compaction._copy = counted(compaction._copy)
    compaction.compact(output, CompactSettings(min_parts=2))
    """
)
STEPS = 8  # the view, the copy, the create and the view after it, each before and after


@pytest.mark.server
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_kill_at_any_step_leaves_every_reader_right_and_the_next_compaction_ends_it(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "local" else f"s3://{request.getfixturevalue('s3_bucket')}"
    codes = []
    for kill_at in range(1, STEPS + 2):
        output = f"{root}/{kill_at}"
        commit(output, 0, 1, 2)
        codes.append(
            subprocess.run([sys.executable, "-c", KILLED, output, str(kill_at)], check=False).returncode
        )
        assert seen(output) == seen_by_pandas(output) == images(0, 1, 2)
        assert compact(output, SOON).waiting_parts == 0
        assert seen(output) == seen_by_pandas(output) == images(0, 1, 2)
    assert codes == [-signal.SIGKILL] * STEPS + [0]


# Reads both ways until the file "stop" appears; each read must show whole parts 0 to n, n never falling.
READER = textwrap.dedent(
    """
    import os, sys
    import pandas as pd
    from segpipe import storage
    from segpipe.manifests.store import read_manifest

    output, stop = sys.argv[1], sys.argv[2]
    newest, reads = 0, 0
    while not os.path.exists(stop):
        for read in (lambda: read_manifest(output, columns=["image_uri"]).to_pandas(),
                     lambda: pd.read_parquet(storage.join(output, "manifests"), columns=["image_uri"])):
            found = sorted(read()["image_uri"])
            n = len(found) // 2
            assert found == sorted(f"{number}.{i}" for number in range(n) for i in range(2)), found
            assert n >= newest, (n, newest)
            newest = n
            reads += 1
            print(n, flush=True)
    """
)


@pytest.mark.server
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_reader_in_a_loop_never_sees_a_double_or_a_gap(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "out") if place == "local" else f"s3://{request.getfixturevalue('s3_bucket')}/out"
    commit(root, 0, 1)
    stop, rounds = tmp_path / "stop", 8
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, root, str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout is not None
        for number in range(1, rounds):
            reader.stdout.readline()  # so that reads lie between and over the steps
            commit(root, 2 * number, 2 * number + 1)
            compact(root, SOON)
    finally:
        stop.touch()
        _, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert seen(root) == seen_by_pandas(root) == images(*range(2 * rounds))
    assert current_view(root).parts == ()


class Interleaved(RuleBasedStateMachine):
    """Commits, compactions that stop at a step, and compactions that meet, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.output = f"memory://interleaved-{id(self)}-{os.urandom(4).hex()}"
        self.committed = 0

    @rule(parts=st.integers(1, 4))
    def commit(self, parts: int) -> None:
        commit(self.output, *range(self.committed, self.committed + parts))
        self.committed += parts

    @rule(min_parts=st.integers(2, 5))
    def compact(self, min_parts: int) -> None:
        if self.committed:
            compact(self.output, CompactSettings(min_parts=min_parts))

    @rule(parts=st.integers(1, 3), before=st.booleans())
    def compact_while(self, parts: int, before: bool) -> None:
        """Another commits and compacts just before this one's create, or this one dies right after it."""
        if not self.committed:
            return
        create = storage.create

        def interrupted(uri: str, data: bytes) -> None:
            with mock.patch.object(storage, "create", create):
                if before:
                    self.commit(parts)
                    compact(self.output, SOON)
                create(uri, data)
            if not before:
                raise KeyboardInterrupt

        with mock.patch.object(storage, "create", interrupted), suppress(KeyboardInterrupt):
            compact(self.output, SOON)

    @invariant()
    def every_reader_sees_each_row_once(self) -> None:
        assert seen(self.output) == images(*range(self.committed))


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = hypothesis_settings(max_examples=25, stateful_step_count=8, deadline=None)
