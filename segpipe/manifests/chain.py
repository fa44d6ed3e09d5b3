"""The chain of a run's parts: each names the digest of the part committed before it, run.json the last.

A part that is changed, exchanged, removed or put in later breaks it. It is not keyed: whoever can write all
of OUTPUT can write the chain anew, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from segpipe import storage
from segpipe.manifests.parts import telling_damage
from segpipe.storage.retry import explained

_KEY = "segpipe.chain"
_READERS = 16


@dataclass(frozen=True)
class Link:
    """A part's place in its run's chain: the how manyth it is, from 1 on; the SHA-256 of the one before, None
    of the first."""

    number: int
    previous: str | None


@dataclass(frozen=True)
class Tip:
    """The newest part of a chain: how many parts there are up to it, its SHA-256, and how many parts of the
    run are in no chain, since a version without one has begun it."""

    parts: int
    digest: str
    unchained: int = 0


def part_digest(content: bytes) -> str:
    """The SHA-256, in hex, of a part's bytes."""
    return hashlib.sha256(content).hexdigest()


def link_after(tip: Tip | None) -> Link:
    """The place of the part to be committed next."""
    return Link(1, None) if tip is None else Link(tip.parts + 1, tip.digest)


def link_metadata(link: Link) -> dict[str, str]:
    """A part's place as the metadata it is committed with."""
    return {_KEY: json.dumps({"number": link.number, "previous": link.previous})}


def link_of_metadata(metadata: Mapping[bytes, bytes] | None) -> Link | None:
    """A part's place; None for a part of a version without chain. ValueError, RecursionError: damaged."""
    if (text := (metadata or {}).get(_KEY.encode())) is None:
        return None
    said = json.loads(text)
    match said:
        case {"number": int(number), "previous": str() | None as previous} if number > 0:
            return Link(number, previous)
    raise ValueError(f"{_KEY} is {said!r}")


def find_tip(parts: Iterable[str]) -> Tip | None:
    """The newest of a run's parts (URIs), by what they say themselves; None when none is in a chain.

    Only the footers are read, and one part whole. Raises StorageError, also for a damaged part.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        links = list(pool.map(_read_link, uris := list(parts)))
    numbered = [(link.number, uri) for link, uri in zip(links, uris, strict=True) if link is not None]
    if not numbered:
        return None
    number, uri = max(numbered)
    return Tip(number, part_digest(storage.read_bytes(uri)), links.count(None))


def _read_link(uri: str) -> Link | None:
    filesystem, path = storage.arrow_filesystem(uri)
    with explained(uri), telling_damage(uri):
        return link_of_metadata(pq.read_schema(path, filesystem=filesystem).metadata)


@dataclass(frozen=True)
class ChainedPart:
    """A part as it is found: its key, its SHA-256, and the place it says it has, None in a part without."""

    key: str
    digest: str
    link: Link | None


def chain_problems(parts: Iterable[ChainedPart], recorded: Tip | None) -> Iterator[tuple[str, str]]:
    """(a part's key, what is wrong) in a run whose run.json names `recorded` as the end, None when none."""
    parts = list(parts)
    chained = [(part.link, part) for part in parts if part.link is not None]
    before, number_before = None, 0
    for link, part in sorted(chained, key=lambda one: (one[0].number, one[1].key)):
        if link.number != number_before + 1:
            yield part.key, f"is number {link.number} of its run's chain, after number {number_before}"
        elif link.previous != (before and before.digest):
            changed = part if before is None else before
            yield changed.key, f"is not what {part.key} names as the part before it"
        before, number_before = part, link.number
    if recorded is not None:
        yield from _end_problems(before, len(chained), len(parts) - len(chained), recorded)


def _end_problems(
    last: ChainedPart | None, chained: int, unchained: int, recorded: Tip
) -> Iterator[tuple[str, str]]:
    key = "run.json" if last is None else last.key
    if (chained, unchained) != (recorded.parts, recorded.unchained):
        yield (
            key,
            f"its run has {chained} parts in the chain and {unchained} outside, run.json counts "
            f"{recorded.parts} and {recorded.unchained}",
        )
    elif last is not None and last.digest != recorded.digest:
        yield key, "is not what run.json names as the last part"
