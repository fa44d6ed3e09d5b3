"""Whatever groups.csv holds: groups that can be written again, or one line."""

from __future__ import annotations

import itertools

from foreign_text import SHORT, damaged, is_one_line
from hypothesis import example, given
from hypothesis import strategies as st

from segpipe import storage
from segpipe.datasets import Dataset
from segpipe.errors import SegpipeError
from segpipe.groups import image_groups, read_groups, write_groups

NUMBERS = itertools.count()
CELLS = st.one_of(
    st.text(max_size=5), st.sampled_from(["a", "b/c", '"', "\0", "\x1b[31m", "a\nb", "\r", ",", " "])
)
ROWS = st.lists(st.lists(CELLS, max_size=4), max_size=4)
TABLES = st.builds(
    lambda head, rows, end: head + end + end.join(",".join(row) for row in rows),
    st.sampled_from(
        ["key,group", "group,key", "key,group,key", '"key","group"', "\ufeffkey,group", "key;group"]
    ),
    ROWS,
    st.sampled_from(["\n", "\r\n", "\r"]),
).map(lambda text: text.encode(errors="surrogatepass"))


@SHORT
@given(st.one_of(TABLES, damaged(b'key,group\n"a/1",v1\na/2,"v\n1"\nb,v2\n')))
@example(b"key,group\na," + b"x" * 1_000_000)
@example(b"key,group\n" + b"," * 1_000_000)
@example(b"key,group\na\0,b")
@example(b'key,group\n"a\r",v\n')
def test_a_groups_file(content: bytes) -> None:
    dataset = Dataset(f"memory://groups-{next(NUMBERS)}", "d", ("a", "b"), 255)
    storage.put(f"{dataset.root}/groups.csv", content)
    try:
        groups = read_groups(dataset)
        assert groups is not None
        assert all(key and group for key, group in groups.items())
        assert image_groups(dataset, list(groups), None) == list(groups.values())
    except SegpipeError as error:
        assert is_one_line(error)  # noqa: PT017 - most inputs are wrong, not all
        return
    write_groups(dataset, groups)
    assert read_groups(dataset) == groups
