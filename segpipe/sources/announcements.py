"""Each new source is announced once: an outbox in object storage between finding it and saying so.

STATE/found/<digest>.json is created before the message is sent, STATE/announced/<digest>.json after it has
arrived. A crash in between leaves the first without the second: the next watch asks whether the message had
arrived, by its id, which is made of the source, and sends it only if not. Two watches at once send one id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from uuid import UUID, uuid5

from segpipe import storage
from segpipe.errors import AlreadyExistsError, NotFoundError
from segpipe.redaction import redact
from segpipe.sources.sources_file import Source

_NAMESPACE = UUID("6f0c7ab8-52c1-4d8e-9a55-0a1b6f3f6a01")
Arrived = Callable[[UUID], bool]
Send = Callable[[Source, UUID], None]


def announce_new(state: str, sources: Iterable[Source], arrived: Arrived, send: Send) -> Iterator[Source]:
    """Announce the sources that STATE does not know as announced, and yield each that was sent now.

    `arrived` says whether a message of that id has been received before, `send` returns once it has. What
    they raise passes through, and the source is tried again next time. Raises StorageError.
    """
    known = _known(state, "announced")
    found_before = _known(state, "found")
    for source in sources:
        if source.digest in known:
            continue
        if announce(state, source, source.digest in found_before, arrived, send):
            yield source


def announce(state: str, source: Source, found_before: bool, arrived: Arrived, send: Send) -> bool:
    """Announce one source; False when an earlier watch had sent it and crashed before noting it."""
    message = message_id(source)
    _note(state, "found", source)
    sent_before = found_before and arrived(message)
    if not sent_before:
        send(source, message)
    _note(state, "announced", source)
    return not sent_before


def message_id(source: Source, about: str = "") -> UUID:
    """The id of the message about a source; `about` tells messages apart, for example by what is new."""
    return uuid5(_NAMESPACE, f"{source.digest}\n{about}")


def _known(state: str, kind: str) -> set[str]:
    with suppress(NotFoundError):
        listed = storage.list_objects(storage.join(storage.normalise(state), kind))
        return {item.key.removesuffix(".json") for item in listed}
    return set()


def _note(state: str, kind: str, source: Source) -> None:
    text = json.dumps({"source": redact(source.url), "output": redact(source.output)})
    with suppress(AlreadyExistsError):  # an earlier watch, or another at this moment
        storage.create(storage.join(storage.normalise(state), f"{kind}/{source.digest}.json"), text.encode())
