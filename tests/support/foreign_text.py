"""What anyone may have written where a file of ours is expected, for property tests."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from segpipe.printable import is_printable

EXAMPLES = int(os.environ.get("SEGPIPE_FUZZ_EXAMPLES", "40"))
SHORT = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
EDGES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 10**400, 0.0, -0.0, 1e-300, 1e300, float("nan"), float("inf")),
    *(None, True, "", "x", "\ud800", "\x1b[31m", "a\nb", [], {}, [[]], {"": {}}),
]
ANY = st.recursive(
    st.one_of(st.sampled_from(EDGES), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """The content with something in it exchanged, added or left out."""
    if isinstance(content, dict) and content and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(content)))
        match draw(st.sampled_from(["change", "change", "change", "remove", "add"])):
            case "remove":
                return {key: value for key, value in content.items() if key != name}
            case "add":
                return content | {draw(st.text(max_size=4)): draw(ANY)}
        return content | {name: draw(changed(content[name]))}
    if isinstance(content, list) and content and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(content) - 1))
        return [*content[:place], draw(changed(content[place])), *content[place + 1 :]]
    return draw(ANY)


def texts(content: dict[str, Any]) -> st.SearchStrategy[str]:
    """JSON of the changed content, now and then cut or with a character exchanged."""
    whole = changed(content).map(json.dumps)
    cut = st.builds(lambda text, at: text[: at % (len(text) + 1)], whole, st.integers(0, 10_000))
    odd = st.builds(
        lambda text, at, put: text[: at % len(text)] + put + text[at % len(text) + 1 :],
        whole,
        st.integers(0, 10_000),
        st.text(max_size=2),
    )
    return st.one_of(whole, whole, cut, odd)


def is_one_line(error: Exception | str) -> bool:
    """Whether a terminal shows the message as one line and nothing steers it."""
    return bool(str(error)) and is_printable(str(error))


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content whole, cut, with some bytes exchanged, or something else altogether."""
    cut = st.integers(0, len(content)).map(lambda at: content[:at])
    exchanged = st.lists(
        st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=3)), min_size=1, max_size=4
    ).map(lambda changes: _exchanged(content, changes))
    return st.one_of(st.just(content), cut, exchanged, exchanged, st.binary(max_size=60))


def _exchanged(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for at, put in changes:
        content = content[:at] + put + content[at + 1 :]
    return content
