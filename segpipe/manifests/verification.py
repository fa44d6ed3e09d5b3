"""`segpipe verify`: is OUTPUT as labelling has left it?

Every row against its reason, score, policy and mask; the parts of each run against their chain; compacted
copies against the parts; grown policies against the answers they rest on. What it cannot show: whoever may
write everything under OUTPUT can make it agree with itself.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segpipe import storage
from segpipe.concurrency import ordered_map
from segpipe.confidence.drift import drift_of_metadata
from segpipe.confidence.group_drift import group_drift_of_metadata
from segpipe.confidence.policy import Policy
from segpipe.errors import NotFoundError, StorageError
from segpipe.manifests import compacted, evidence_checks
from segpipe.manifests.chain import ChainedPart, link_of_metadata, part_digest
from segpipe.manifests.duckdb_engine import scratch
from segpipe.manifests.findings import Finding, Findings
from segpipe.manifests.parts import (
    PART_NAME,
    list_parquet,
    manifests_root,
    require_output,
    telling_damage,
)
from segpipe.manifests.policies import (
    UNREADABLE,
    grown_numbers,
    is_suspended,
    kept_policies,
    read_grown,
    suspended_groups,
)
from segpipe.manifests.reviews import REVIEW_SCHEMA, review_parts
from segpipe.manifests.row_checks import CHECKED_COLUMNS, Grounds, row_problems
from segpipe.manifests.run_checks import check_runs
from segpipe.manifests.schema import FARTHEST_AHEAD
from segpipe.manifests.store import open_parquet, part_rows
from segpipe.printable import printable
from segpipe.progress import track
from segpipe.redaction import redact

if TYPE_CHECKING:
    from segpipe.config import VerifySettings

logger = logging.getLogger(__name__)

_READERS = 16
_ROWS_AT_ONCE = 50_000
_TABLES = """
    CREATE TABLE rows (part VARCHAR, image_uri VARCHAR, image_etag VARCHAR, model_id VARCHAR, run_id VARCHAR,
        decision VARCHAR, mask_uri VARCHAR, mask_sha256 VARCHAR);
    CREATE TABLE present (uri VARCHAR)"""
_ADD_ROWS = """
    INSERT INTO rows
    SELECT $part, image_uri, image_etag, model_id, run_id, decision, mask_uri, mask_sha256 FROM new"""
_DOUBLES = """
    SELECT image_uri, min(part) AS part, count(*) AS n FROM rows GROUP BY run_id, image_uri HAVING n > 1
    UNION ALL
    SELECT image_uri, min(part) AS part, count(*) AS n FROM rows WHERE decision <> 'failed'
    GROUP BY model_id, image_uri, image_etag HAVING n > 1 AND count(DISTINCT run_id) = n"""
_EXPECTED = """
    CREATE TABLE masks AS
    SELECT mask_uri AS uri, mask_sha256 AS digest, part || ': ' || image_uri AS place FROM rows
    WHERE mask_uri IS NOT NULL
    UNION ALL
    SELECT final_mask_uri, final_mask_sha256, 'review ' || review_id FROM review_parts
    WHERE final_mask_uri IS NOT NULL"""
_MISSING = """
    CREATE TABLE missing AS
    SELECT uri, place FROM masks ANTI JOIN present USING (uri) WHERE starts_with(uri, $masks)"""
_ELSEWHERE = "SELECT count(DISTINCT uri), min(uri) FROM masks WHERE NOT starts_with(uri, $output)"
_TO_READ = """
    CREATE TABLE to_read AS
    SELECT uri, digest, place FROM masks ANTI JOIN missing USING (uri) ORDER BY random() LIMIT $n"""
_MORE = "SELECT count(*) FROM (FROM copied EXCEPT ALL FROM originals)"
_FEWER = "SELECT count(*) FROM (FROM originals EXCEPT ALL FROM copied)"


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what was found.

    unchained_parts are of versions without a chain, open_chains runs that have not ended, so that nothing
    names their last part; masks_read of the masks were read and compared with their digests; masks_elsewhere
    lie outside OUTPUT, as those of a copy do. findings counts by kind, examples tells the first of them.
    """

    output: str
    runs: int
    parts: int
    unchained_parts: int
    open_chains: int
    rows: int
    masks: int
    masks_read: int
    masks_elsewhere: int
    copies: int
    findings: dict[str, int]
    examples: tuple[Finding, ...]


def verify(output: str, settings: VerifySettings) -> Verification:
    """Look at all of OUTPUT; raises NotFoundError where nothing was labelled, StorageError."""
    output = storage.normalise(output)
    require_output(output)
    found = Findings()
    policies = _read_policies(output, found)
    grown = _read_grown(output, policies.values(), found)
    with scratch() as connection:
        connection.execute(_TABLES)
        connection.execute(evidence_checks.TABLE)
        parts = _check_parts(output, policies, connection, found)
        _check_doubles(connection, found)
        masks, masks_read = _check_masks(output, settings.masks, connection, found)
        evidence_checks.check_evidence(grown, policies.values(), connection, found)
        copies = _check_copies(output, {part.key: part.digest for part in parts}, connection, found)
        rows = _count(connection, "SELECT count(*) FROM rows")
        masks_elsewhere = _say_if_elsewhere(output, connection)
    runs, open_chains = check_runs(output, parts, policies, found)
    return Verification(
        output=output,
        runs=runs,
        parts=len(parts),
        unchained_parts=sum(part.link is None for part in parts),
        open_chains=open_chains,
        rows=rows,
        masks=masks,
        masks_read=masks_read,
        masks_elsewhere=masks_elsewhere,
        copies=copies,
        findings=dict(sorted(found.counts.items())),
        examples=tuple(found.examples),
    )


def _read_policies(output: str, found: Findings) -> dict[str, Policy]:
    policies = {}
    for policy_id, kept in kept_policies(output).items():
        if isinstance(kept, Policy):
            policies[policy_id] = kept
        else:
            found.add("policy", f"policies/{policy_id}.json", str(kept))
    return policies


def _read_grown(output: str, kept: Iterable[Policy], found: Findings) -> list[Policy]:
    grown = []
    for root in [policy for policy in kept if policy.growth and policy.growth.root is None]:
        for number in grown_numbers(output, root.policy_id):
            try:
                grown.append(read_grown(output, root, number))
            except UNREADABLE as error:
                found.add("policy", f"policies/{root.policy_id}, number {number}", str(error))
    return grown


# --- parts and rows -----------------------------------------------------------------------------------------


def _check_parts(
    output: str, policies: dict[str, Policy], connection: duckdb.DuckDBPyConnection, found: Findings
) -> list[ChainedPart]:
    """Each part by itself and its rows, which go to the table `rows`; damaged parts are left out."""
    suspended = frozenset(name for name, policy in policies.items() if is_suspended(output, policy.family))
    by_group = frozenset(
        (name, group) for name, policy in policies.items() for group in suspended_groups(output, policy)
    )
    listed = _keys_of_parts(output, found)
    unknown: set[str] = set()
    checked = []

    def read(key: str) -> tuple[str, bytes]:
        return key, storage.read_bytes(storage.join(manifests_root(output), key))

    with ThreadPoolExecutor(_READERS) as pool, track(len(listed), "verify", "parts") as bar:
        for key, content in ordered_map(pool, read, listed, 2 * _READERS):
            bar.advance()
            try:
                link, drifted, drifted_groups, table = _parse_part(key, content)
            except StorageError as error:
                found.add("part", key, str(error))
                continue
            checked.append(ChainedPart(key, part_digest(content), link))
            _check_rows(key, table, Grounds(policies, suspended, drifted, drifted_groups, by_group), found)
            unknown |= set(table["policy_id"].unique().to_pylist()) - policies.keys() - {None}
            connection.register("new", table)
            connection.execute(_ADD_ROWS, {"part": key})
            connection.execute(evidence_checks.ADD_ROWS)
    for policy_id in sorted(unknown):
        found.add("policy", f"policies/{policy_id}.json", "rows name it, but it is not there or no policy")
    return checked


def _keys_of_parts(output: str, found: Findings) -> list[str]:
    """The parts' keys; what is not named like one, which no command reads, is found."""
    keys = [item.key for item in list_parquet(manifests_root(output))]
    for key in keys:
        if not PART_NAME.fullmatch(key):
            found.add("part", key, "is not named like a part of a run: no command reads it, remove it")
    return [key for key in keys if PART_NAME.fullmatch(key)]


def _parse_part(key: str, content: bytes) -> tuple[Any, bool, frozenset[str], pa.Table]:
    """A part's link, whether it tells of a drift alarm, of which groups, and its rows.

    StorageError for a damaged one.
    """
    table = part_rows(key, content)
    with telling_damage(key):
        metadata = pq.read_metadata(pa.BufferReader(content)).metadata or {}
        drift = drift_of_metadata(metadata)
        alarmed = frozenset(group for group, one in group_drift_of_metadata(metadata).items() if one.alarm)
        return link_of_metadata(metadata), drift is not None and drift.alarm, alarmed, table


def _check_rows(key: str, table: pa.Table, grounds: Grounds, found: Findings) -> None:
    name = PART_NAME.fullmatch(key)
    assert name is not None  # of such parts alone
    for row in table.select(CHECKED_COLUMNS).to_pylist():
        place = f"{key}: {row['image_uri']}"
        if (row["run_id"], row["shard"]) != (name["run_id"], int(name["shard"])):
            found.add("row", place, f"is of run {row['run_id']}, shard {row['shard']}")
        for problem in row_problems(row, grounds):
            found.add("row", place, problem)
    far_ahead = pc.greater_equal(table["labeled_at"], pa.scalar(datetime.now(UTC) + FARTHEST_AHEAD))
    for uri in table["image_uri"].filter(far_ahead).to_pylist():
        found.add("row", f"{key}: {uri}", "is stamped more than a year from now: no clock is so wrong")


def _check_doubles(connection: duckdb.DuckDBPyConnection, found: Findings) -> None:
    for image_uri, part, n in connection.execute(_DOUBLES).fetchall():
        found.add("double", f"{part}: {image_uri}", f"{n} rows for one image")


# --- masks --------------------------------------------------------------------------------------------------


def _check_masks(
    output: str, most: int | None, connection: duckdb.DuckDBPyConnection, found: Findings
) -> tuple[int, int]:
    """How many masks there are to be, and how many of them were read."""
    connection.register("review_parts", _check_reviews(output, found))
    connection.execute(_EXPECTED)
    _list_masks(storage.join(output, "masks"), connection)
    connection.execute(_MISSING, {"masks": storage.join(output, "masks") + "/"})
    for missing in _rows_of(connection.sql("FROM missing")):
        found.add("mask", missing["place"], f"{missing['uri']} is not there")
    there = _count(connection, "SELECT count(*) FROM masks ANTI JOIN missing USING (uri)")
    n_read = there if most is None else min(there, most)
    connection.execute(_TO_READ, {"n": n_read})
    _read_masks(_rows_of(connection.sql("FROM to_read")), n_read, found)
    return _count(connection, "SELECT count(*) FROM masks"), n_read


def _say_if_elsewhere(output: str, connection: duckdb.DuckDBPyConnection) -> int:
    """How many masks lie outside OUTPUT; no finding, since a copy that was left as it is has them so."""
    elsewhere, first = connection.execute(_ELSEWHERE, {"output": f"{output}/"}).fetchall()[0]
    if elsewhere:
        logger.warning(
            "%d masks that rows name lie outside %s, %s for example: this is a copy, whose readers get the "
            "original's masks; keep the original, or put the copy back in its place",
            elsewhere,
            redact(output),
            printable(redact(first)),
        )
    return int(elsewhere)


def _check_reviews(output: str, found: Findings) -> pa.Table:
    tables = [REVIEW_SCHEMA.empty_table()]
    for key, read in review_parts(output):
        if isinstance(read, pa.Table):
            tables.append(read)
        else:
            found.add("review", key, str(read))
    return pa.concat_tables(tables)


def _rows_of(result: duckdb.DuckDBPyRelation) -> Iterator[dict[str, Any]]:
    """In bounded memory: there may be millions."""
    return (row for batch in result.to_arrow_reader(_ROWS_AT_ONCE) for row in batch.to_pylist())


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    (count,) = connection.execute(sql).fetchall()[0]
    return int(count)


def _list_masks(root: str, connection: duckdb.DuckDBPyConnection) -> None:
    listed = storage.list_objects(root)
    with suppress(NotFoundError):
        while uris := [item.uri for item in islice(listed, _ROWS_AT_ONCE)]:
            connection.register("listed", pa.table({"uri": pa.array(uris, pa.string())}))
            connection.execute("INSERT INTO present SELECT uri FROM listed")


def _read_masks(masks: Iterable[dict[str, Any]], n: int, found: Findings) -> None:
    with ThreadPoolExecutor(_READERS) as pool, track(n, "verify", "masks") as bar:
        for place, problem in ordered_map(pool, _compare_mask, masks, 2 * _READERS):
            bar.advance()
            if problem:
                found.add("mask", place, problem)


def _compare_mask(mask: dict[str, Any]) -> tuple[str, str | None]:
    try:
        digest = hashlib.sha256(storage.read_bytes(mask["uri"])).hexdigest()
    except NotFoundError:
        return mask["place"], f"{mask['uri']} is not there"
    return mask["place"], None if digest == mask["digest"] else f"{mask['uri']} is not what its digest says"


# --- compacted copies ---------------------------------------------------------------------------------------


def _check_copies(
    output: str, digests: dict[str, str], connection: duckdb.DuckDBPyConnection, found: Findings
) -> int:
    try:
        files = compacted.read_files(output)
    except StorageError as error:
        found.add("copy", compacted.FOLDER, str(error))
        return 0
    for file in files:
        for key, copied in file.parts.items():
            if key not in digests:
                found.add("copy", key, f"{file.key} has copied it, but it is gone or damaged")
            elif copied is not None and copied.digest != digests[key]:
                found.add("copy", key, f"was changed after {file.key} copied it")
    for file in compacted.current_view(output).files:
        if file.parts.keys() <= digests.keys() and not _has_same_rows(output, file, connection):
            found.add("copy", f"{compacted.FOLDER}/{file.key}", "does not hold the rows of its parts")
    return len(files)


def _has_same_rows(output: str, file: compacted.CompactedFile, connection: duckdb.DuckDBPyConnection) -> bool:
    connection.register("copied", open_parquet(output, [f"{compacted.FOLDER}/{file.key}"]))
    connection.register("originals", open_parquet(output, [f"manifests/{key}" for key in file.parts]))
    try:
        return _count(connection, _MORE) == _count(connection, _FEWER) == 0
    except (duckdb.Error, pa.ArrowException):
        return False


def finding_lines(result: Verification) -> Iterator[str]:
    """The findings for people: the examples, and how many more there are."""
    for finding in result.examples:
        yield f"{finding.kind}: {finding.place}: {finding.what}"
    if (more := sum(result.findings.values()) - len(result.examples)) > 0:
        yield f"and {more} more"
