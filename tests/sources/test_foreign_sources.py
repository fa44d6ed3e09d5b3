"""Whatever a sources file or an event message holds: a value, or one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from foreign_text import ANY, SHORT, changed, damaged, is_one_line, texts
from hypothesis import example, given
from hypothesis import strategies as st

from segpipe import storage
from segpipe.errors import RunError, SegpipeError
from segpipe.sources.event_queue import created_objects
from segpipe.sources.sources_file import find_sources, holder_of, read_sources

URL = "memory://foreign-sources/sources.toml"
SOURCE = {
    "pattern": "memory://foreign-images/raw-*",
    "output": "memory://foreign-labels/{name}",
    "model": "memory://models/m",
    "settings": {"drift_warn_only": True},
}
FILE = {
    "state": "memory://foreign-labels/state",
    "queue": "https://queue",
    "defaults": {"model": "memory://models/m", "settings": {"shard_images": 4}},
    "source": [SOURCE, SOURCE | {"pattern": "memory://foreign-images/raw-1"}],
}
TOO_DEEP = ["state = " + "[" * 100_000, "a = " + "{a=" * 50_000, "a." * 2_000 + "a = 1"]


def toml(value: Any) -> str:
    """A value in TOML's inline form, as far as there is one."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case float():
            return repr(value)
        case None:
            return '"none"'
    return json.dumps(value)


def toml_file(content: Any) -> str:
    if not isinstance(content, dict):
        return toml(content)
    return "".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in content.items())


FILES = changed(FILE).map(toml_file)
PLACES = st.one_of(
    st.text(max_size=6),
    st.text("*?[]!-a{}name/.~:\\ ", max_size=12),
    st.sampled_from(
        ["s3://raw-*", "memory://foreign-images/[", "memory://**", "{name}", "/tmp/{name}/..", "~"]
    ),
)


@st.composite
def files_with_odd_places(draw: st.DrawFn) -> str:
    source = SOURCE | {draw(st.sampled_from(["pattern", "output", "model"])): draw(PLACES)}
    return toml_file(FILE | {"source": [source], "state": draw(PLACES)})


def read_everywhere(content: bytes) -> None:
    storage.put(URL, content)
    storage.put("memory://foreign-images/raw-1/a.png", b"x")
    try:
        file = read_sources(URL)
    except SegpipeError as error:
        assert is_one_line(error)  # noqa: PT017
        return
    assert all(is_one_line(problem.message) and is_one_line(problem.where) for problem in file.problems)
    for uri in ("memory://foreign-images/raw-1/a.png", "s3://raw-\ud800/a.png", "memory:///", "a"):
        try:
            holder_of(uri, file)
        except SegpipeError as error:
            assert is_one_line(error)  # noqa: PT017
    if all(entry.pattern.startswith("memory://foreign-images/") for entry in file.entries):
        sources, problems = find_sources(file)
        assert all(source.digest and source.output for source in sources)
        assert all(is_one_line(problem.message) for problem in problems)


@SHORT
@example(b'"\\n" = 0')
@example(b'[defaults]\n"\\u001b" = 0')
@example(b'[[source]]\npattern = "a"\n"\\n" = 0')
@given(st.one_of(FILES, files_with_odd_places()).map(lambda text: text.encode(errors="surrogatepass")))
def test_a_sources_file(content: bytes) -> None:
    read_everywhere(content)


@SHORT
@given(damaged(toml_file(FILE).encode()))
def test_a_damaged_sources_file(content: bytes) -> None:
    read_everywhere(content)


@pytest.mark.parametrize("text", TOO_DEEP)
def test_a_sources_file_nested_too_deeply(text: str) -> None:
    storage.put(URL, text.encode())
    with pytest.raises(RunError, match=r"no TOML file|unknown") as caught:
        read_sources(URL)
    assert is_one_line(caught.value)


RECORD = {
    "eventName": "ObjectCreated:Put",
    "s3": {"bucket": {"name": "raw-1"}, "object": {"key": "a+b%2Bc.jpg", "size": 3}},
}
MESSAGES: list[dict[str, Any]] = [
    {"Records": [RECORD, RECORD]},
    {"detail-type": "Object Created", "detail": {"bucket": {"name": "raw-1"}, "object": {"key": "a.jpg"}}},
    {"Event": "s3:TestEvent"},
]
PLAIN = st.sampled_from(MESSAGES).flatmap(texts)
WRAPPED = PLAIN.map(lambda text: json.dumps({"Type": "Notification", "Message": text}))
NAMED = st.builds(
    lambda bucket, key: json.dumps(
        {"detail-type": "Object Created", "detail": {"bucket": {"name": bucket}, "object": {"key": key}}}
    ),
    ANY,
    ANY,
)


def receive(body: str) -> None:
    try:
        uris = created_objects(body)
    except ValueError as error:
        assert str(error).startswith("it is no S3 event notification")  # noqa: PT017
        return
    storage.put(URL, toml_file(FILE | {"source": [SOURCE | {"pattern": "s3://*"}]}).encode())
    file = read_sources(URL)
    for uri in uris:
        assert uri.startswith("s3://")
        uri.encode()
        try:
            if source := holder_of(uri, file):
                assert source.digest
        except SegpipeError as error:
            assert is_one_line(error)  # noqa: PT017


@SHORT
@given(st.one_of(PLAIN, WRAPPED, NAMED, st.text()))
@example("[" * 100_000)
@example(json.dumps({"Message": "[" * 100_000}))
@example(
    json.dumps({"Records": [{**RECORD, "s3": {"bucket": {"name": "raw-\ud800"}, "object": {"key": "a"}}}]})
)
@example(json.dumps({"Records": [{**RECORD, "s3": {"bucket": {"name": None}, "object": {"key": "a"}}}]}))
@example(
    json.dumps({"Records": [{**RECORD, "s3": {"bucket": {"name": "raw-1"}, "object": {"key": "\ud800"}}}]})
)
def test_an_event_message(body: str) -> None:
    receive(body)
