"""Texts as a terminal or a page may get them: what steers one, or hides in it, is shown as JSON's escape.

Names of objects come from whoever can write to a bucket: colours, titles, forged lines, and characters that
turn the direction of writing or take no room.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

# Formats (Cf) hold the signs of direction and most of those without width; the rest is named.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WITHOUT_WIDTH = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u3164\uffa0]")


def printable(text: str) -> str:
    """One line in which nothing steers a terminal: such characters, a newline too, as JSON writes them."""
    if text.isprintable() and not _WITHOUT_WIDTH.search(text):
        return text
    return "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """The same for a text of several lines; JSON stays the JSON it was."""
    return "\n".join(map(printable, text.split("\n")))


def is_printable(text: str) -> bool:
    """Whether nothing in it would be escaped."""
    return printable(text) == text


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in _STEERING or _WITHOUT_WIDTH.match(character)
    return json.dumps(character)[1:-1] if hidden else character


_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&!#$])")


def markdown(text: str) -> str:
    """A text that Markdown shows as it is: no link, code, picture, HTML or column comes out of it."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def markdown_code(text: str) -> str:
    """A text as inline code, between more backticks than it holds in a row."""
    shown = printable(text)
    fence = "`" * (_longest_run_of_backticks(shown) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def markdown_block(lines: Iterable[str]) -> list[str]:
    """Lines as a block of code, none of which can end it."""
    shown = [printable(line) for line in lines]
    fence = "`" * max(3, _longest_run_of_backticks("\n".join(shown)) + 1)
    return [fence, *shown, fence]


def markdown_link(url: str) -> str:
    """A link that leads to the URL and shows it."""
    return f"[{markdown(url)}]({quote(url, safe=':/?#@%&=+,;~')})"


def markdown_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table whose texts are shown as Markdown, as Prefect does."""
    return {name: markdown(value) if isinstance(value, str) else value for name, value in row.items()}


def _longest_run_of_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
