"""Each source is announced exactly once, whatever moment the watch is killed at."""

from __future__ import annotations

from uuid import UUID

import pytest

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.sources.announcements import announce_new, message_id
from segpipe.sources.sources_file import Source

SOURCES = [Source(f"s3://raw-{name}", "s3://labels", "/model", LabelSettings()) for name in "abc"]


class KilledError(BaseException):
    """The process ends here."""


class Server:
    """Takes messages; kills the watch before or after it has taken one, if told to."""

    def __init__(self) -> None:
        self.messages: list[UUID] = []
        self.kill = ""

    def arrived(self, message: UUID) -> bool:
        return message in self.messages

    def send(self, _source: Source, message: UUID) -> None:
        self._die("before")
        self.messages.append(message)
        self._die("after")

    def _die(self, moment: str) -> None:
        if self.kill == moment:
            self.kill = ""
            raise KilledError


def watch(state: str, server: Server, sources: list[Source] = SOURCES) -> list[str]:
    return [source.url for source in announce_new(state, sources, server.arrived, server.send)]


def test_what_is_new_is_announced_once(storage_root: str) -> None:
    server = Server()
    assert watch(storage_root, server, SOURCES[:2]) == ["s3://raw-a", "s3://raw-b"]
    assert watch(storage_root, server) == ["s3://raw-c"]
    assert watch(storage_root, server) == []
    assert server.messages == [message_id(source) for source in SOURCES]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_watch_killed_around_the_sending_neither_loses_nor_doubles(tmp_path: str, moment: str) -> None:
    server = Server()
    server.kill = moment
    with pytest.raises(KilledError):
        watch(str(tmp_path), server)
    watch(str(tmp_path), server)
    assert sorted(server.messages) == sorted(message_id(source) for source in SOURCES)
    assert watch(str(tmp_path), server) == []


@pytest.mark.parametrize("step", range(6))
def test_a_watch_killed_at_any_note_neither_loses_nor_doubles(
    tmp_path: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, create, calls = Server(), storage.create, []

    def create_or_die(uri: str, data: bytes) -> None:
        calls.append(uri)
        if len(calls) == step + 1:
            raise KilledError
        create(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", create_or_die)
        with pytest.raises(KilledError):
            watch(str(tmp_path), server)
    watch(str(tmp_path), server)
    assert sorted(server.messages) == sorted(message_id(source) for source in SOURCES)


def test_a_message_that_is_refused_is_sent_again_next_time(tmp_path: str) -> None:
    server = Server()

    def refuse(_source: Source, _message: UUID) -> None:
        raise OSError("the server is down")

    with pytest.raises(OSError, match="down"):
        list(announce_new(str(tmp_path), SOURCES, server.arrived, refuse))
    assert len(watch(str(tmp_path), server)) == 3


def test_the_notes_hold_no_secret(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-value")
    source = Source("s3://raw-planted-secret-value", "s3://labels", "/model", LabelSettings())
    watch(str(tmp_path), Server(), [source])
    notes = [storage.read_bytes(item.uri) for item in storage.list_objects(str(tmp_path))]
    assert len(notes) == 2
    assert not any(b"planted-secret-value" in note for note in notes)
