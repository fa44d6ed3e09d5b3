"""Names chosen by whoever can write to a bucket steer no terminal, forge no line and leave no Markdown."""

from __future__ import annotations

import json
import logging
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from segpipe import cli, storage
from segpipe.console import Invocation
from segpipe.errors import StorageError
from segpipe.logs import json_formatter, text_formatter
from segpipe.manifests.schema import rows_table
from segpipe.manifests.store import commit_part
from segpipe.printable import (
    markdown,
    markdown_block,
    markdown_cells,
    markdown_code,
    markdown_link,
    printable,
    printable_lines,
)
from segpipe.tables import columns

EVIL = "a\x1b]0;title\x07\x1b[31m\nsegpipe: all is well\r\u202egpj\u200b\u2066\x9b1m"


def is_harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\r\u202e\u200b\u2066\x9b")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u65e5\u672c.png", "caf\u00e9 \u65e5\u672c.png"),
        ("a b\u00a0c", "a b\u00a0c"),
        ("\x1b[31m", "\\u001b[31m"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\u202e\u200b\ufeff\u2028", "\\u202e\\u200b\\ufeff\\u2028"),
        ("\U000e0041", "\\udb40\\udc41"),
        ("a\u3164b", "a\\u3164b"),
    ],
)
def test_what_steers_or_hides_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_what_is_shown_is_shown_as_it_is(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert "\n" not in printable(text)


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_json_stays_the_same_json(text: str) -> None:
    written = json.dumps({"a": [text]}, ensure_ascii=False, indent=2)
    assert json.loads(printable_lines(written)) == {"a": [text]}


def test_an_error_is_printable_from_the_start() -> None:
    assert is_harmless(str(StorageError(f"{EVIL} does not exist")))


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("segpipe", logging.INFO, "f", 1, "looked at %s", (message,), None)


def test_a_log_line_is_one_line() -> None:
    line = text_formatter().format(record(EVIL))
    assert is_harmless(line)
    assert "\n" not in line


def test_a_traceback_stays_readable_in_the_log() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        about = record("x")
        about.exc_info = (ValueError, error, error.__traceback__)
    text = text_formatter().format(about)
    assert is_harmless(text)
    assert text.startswith("looked at x\nTraceback (most recent call last):\n")


def test_a_json_log_keeps_the_name_and_holds_nothing_raw() -> None:
    line = json_formatter().format(record(EVIL))
    assert is_harmless(line)
    assert json.loads(line)["message"] == f"looked at {EVIL}"


def test_a_tables_columns_hold() -> None:
    lines = list(columns([("name", "n"), (EVIL, "1")]))
    assert len(lines) == 2
    assert all(is_harmless(line) and "\n" not in line for line in lines)


def queue_of(uri: str) -> Any:
    item = SimpleNamespace(item_id="1", confidence=0.5, image_uri=uri, mask_uri=uri)
    return SimpleNamespace(items=[item], waiting=1, minutes=1.0)


def test_what_a_command_prints_is_printable(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("segpipe.review.queue.make_queue", lambda *_: queue_of(EVIL))
    done = CliRunner().invoke(cli.cli, ["review", "list", str(tmp_path)], obj=Invocation())
    assert done.exit_code == 0
    assert is_harmless(done.output)
    assert len(done.output.splitlines()) == 4  # header, item, blank, sum


@pytest.mark.parametrize("layout", ["table", "json"])
def test_a_querys_rows_are_printable(layout: str, tmp_path: Any, make_row: Any) -> None:
    output = str(tmp_path)
    row = make_row(image_uri=f"s3://bucket/{EVIL}", run_id="r")
    commit_part(output, date(2026, 11, 23), "r", 0, rows_table([row], ["sky", "road"]))
    command = ["query", output, "SELECT image_uri FROM labels", "--format", layout]
    done = CliRunner().invoke(cli.cli, command, obj=Invocation())
    assert done.exit_code == 0, done.output
    assert is_harmless(done.output)


def test_a_key_in_an_error_of_storage_is_printable(tmp_path: Any) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read(f"{tmp_path}/{EVIL}")
    assert is_harmless(str(caught.value))


# --- Markdown, by another implementation of it ---

HTML = MarkdownIt("gfm-like", {"html": True, "linkify": False})
NASTY = [
    "a`b", "``", "`", "[x](javascript:alert(1))", "![x](http://evil/x.png)", "<img src=x onerror=alert(1)>",
    "a|b", "a\n\n# heading", "**b**", "~~s~~", "\\`", "&lt;", "](http://evil)", "<http://evil>", "a ` `` b`",
]  # fmt: skip


def texts_and_tags(text: str) -> tuple[str, set[str]]:
    """What a reader sees of inline Markdown, and the kinds of elements in it."""
    children = [child for token in HTML.parse(text) for child in (token.children or [])]
    seen = "".join(child.content for child in children)
    return seen, {child.type for child in children} | {token.type for token in HTML.parse(text)}


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_nothing_but_text_in_markdown(name: str) -> None:
    seen, kinds = texts_and_tags(f"- **Source**: {markdown(name)}")
    assert seen == f"Source: {printable(name)}"
    assert not kinds & {
        "link_open",
        "image",
        "html_inline",
        "html_block",
        "code_inline",
        "heading_open",
        "s_open",
    }


@pytest.mark.parametrize("name", NASTY)
def test_a_name_as_code_is_all_in_the_code(name: str) -> None:
    children = [child for token in HTML.parse(f"x {markdown_code(name)} y") for child in token.children or []]
    assert [child.content for child in children if child.type == "code_inline"] == [printable(name)]
    assert "".join(child.content for child in children if child.type == "text") == "x  y"


@pytest.mark.parametrize("name", NASTY)
def test_no_command_ends_the_block_it_stands_in(name: str) -> None:
    tokens = HTML.parse("\n".join([*markdown_block([f"segpipe query {name}", "```", "last"]), "after"]))
    assert tokens[0].type == "fence"
    assert tokens[0].content == f"segpipe query {printable(name)}\n```\nlast\n"


@pytest.mark.parametrize("name", NASTY)
def test_a_link_leads_to_what_it_shows(name: str) -> None:
    children = [
        child for token in HTML.parse(markdown_link(f"https://host/{name}")) for child in token.children or []
    ]
    links = [child.attrs["href"] for child in children if child.type == "link_open"]
    assert len(links) == 1
    assert str(links[0]).startswith("https://host/")
    assert "".join(child.content for child in children) == f"https://host/{printable(name)}"


def test_cells_that_are_no_text_stay_what_they_are() -> None:
    assert markdown_cells({"source": "a|b", "n": 3, "none": None}) == {
        "source": "a\\|b",
        "n": 3,
        "none": None,
    }
