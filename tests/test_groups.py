"""groups.csv: which images belong together, read with one clear line for what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from segpipe.datasets import Dataset
from segpipe.errors import DatasetError
from segpipe.groups import image_groups, read_groups, write_groups


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path), "streets", ("road", "car"), 255)


def put(dataset: Dataset, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    Path(dataset.root, "groups.csv").write_bytes(data)


def test_what_is_written_reads_back(dataset: Dataset) -> None:
    groups = {"b/größe, 2": 'camera "3"', "a": "日本"}
    write_groups(dataset, groups)
    assert read_groups(dataset) == groups
    assert Path(dataset.root, "groups.csv").read_text().splitlines()[:2] == ["key,group", "a,日本"]


def test_other_columns_and_a_byte_order_mark_are_no_matter(dataset: Dataset) -> None:
    put(dataset, "\ufeffgroup,weather,key\r\nv1,wet,a\r\nv1,dry,b\r\n")
    assert read_groups(dataset) == {"a": "v1", "b": "v1"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must begin with the line key,group"),
        ("key;group\na;v1\n", "commas between its columns"),
        ("key,group\na,v1\na,v1\n", "line 3: 'a' is named before"),
        ("key,group\na,v1\na,v2\n", "line 3: 'a' is named before"),
        ("key,group\na,\n", "line 2: give a key and a group"),
        ("key,group\na\n", "line 2: give a key and a group"),
        ("key,group\n,v1\n", "line 2: give a key and a group"),
        (b"key,group\n\xff,v1\n", "no CSV file in UTF-8"),
        ('key,group\n"a"b,v1\n', "no CSV file in UTF-8"),
    ],
)
def test_what_is_no_table_of_groups_is_refused(dataset: Dataset, content: str | bytes, said: str) -> None:
    put(dataset, content)
    with pytest.raises(DatasetError, match=said) as refused:
        read_groups(dataset)
    assert f"{dataset.root}/groups.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_pattern_comes_first_then_the_file_then_nothing(dataset: Dataset) -> None:
    assert image_groups(dataset, ["a_1", "b_1"], None) is None
    put(dataset, "key,group\na_1,x\nb_1,x\nz_9,y\n")
    assert image_groups(dataset, ["a_1", "b_1"], None) == ["x", "x"]
    assert image_groups(dataset, ["a_1", "b_1"], "^[^_]+") == ["a", "b"]


def test_an_image_without_a_line_is_named(dataset: Dataset) -> None:
    put(dataset, "key,group\na_1,x\n")
    with pytest.raises(DatasetError, match="no line for the image 'b_1' nor for 1 more"):
        image_groups(dataset, ["a_1", "b_1", "c_1"], None)
