"""The group of a name: one rule for image keys and image URIs."""

from __future__ import annotations

import re

import pytest

from segpipe import name_groups
from segpipe.errors import PatternError
from segpipe.name_groups import group_if_known, group_of, group_of_address


@pytest.mark.parametrize(
    ("name", "pattern", "group"),
    [
        ("cam7/2026/0001.jpg", r"cam\d+", "cam7"),
        ("s3://lake/cam7/2026/0001.jpg", r"/(cam\d+)/", "cam7"),
        ("cam7_cam8", r"cam(\d)", "7"),  # the first match
        ("cam7-left", r"(cam\d)-(left|right)", "cam7"),  # its first group
        ("yard/0001.jpg", r"cam\d+", None),
        ("yard/0001.jpg", r"x*", None),  # an empty match names nothing
        ("yard-2", r"(cam\d)?yard", None),  # nor does a group that took no part
        ("hof/größe", r"[^/]+$", "größe"),
        ("", r".", None),
    ],
)
def test_a_name_belongs_to_the_first_match_or_its_first_group(
    name: str, pattern: str, group: str | None
) -> None:
    assert group_of(name, pattern) == group


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"^(\w+\s?)*$", r"(x+x+)+y", r"^([^/]+/)+(?=z)"])
def test_nested_repetition_ends_at_once(pattern: str) -> None:
    """Each would take re longer than anyone lives."""
    assert group_of("a" * 60 + "x" * 60 + "!", pattern) is None


def test_a_pattern_that_does_not_end_is_named_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_groups, "LONGEST_SEARCH", 0.05)
    with pytest.raises(PatternError, match=r"'\(a\|a\)\*\$' does not end on the name 'a{60}!'"):
        group_of("a" * 60 + "!", "(a|a)*$")


def test_where_one_name_must_not_stop_the_work_an_endless_search_finds_no_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(name_groups, "LONGEST_SEARCH", 0.05)
    endless = "b/" + "a" * 60 + "!"
    with pytest.raises(PatternError):
        group_of_address(endless, "(a|a)*$")
    for search in (group_of, group_of_address):
        assert group_if_known(search, endless, "(a|a)*$") is None
        assert group_if_known(search, "b/aa", "(a|a)*$") == "a"


@pytest.mark.parametrize("address", ["yard/2026/1.jpg", "s3://lake/yard/1.jpg"])
def test_where_no_end_of_an_address_names_a_group_each_is_searched_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def told(name: str, pattern: str) -> str | None:
        searched.append(name)
        return group_of(name, pattern)

    monkeypatch.setattr(name_groups, "group_of", told)
    assert group_of_address(address, r"cam\d") is None
    ends = {address[start:] for start in range(len(address)) if start == 0 or address[start - 1] == "/"}
    assert sorted(searched) == sorted(ends)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(re.error):
        group_of("cam7", "(")


@pytest.mark.parametrize(
    ("address", "pattern", "group"),
    [
        ("s3://lake/cam7/2026/0001.jpg", r"cam\d+", "cam7"),
        ("s3://lake/cam7/cam7_0001.jpg", r"cam\d+", "cam7"),
        ("s3://lake/2026/cam7_cam8.jpg", r"cam\d+", "cam7"),  # in the key alone it is the first, too
        ("s3://lake/cam1-archive/cam3_7.png", r"cam\d+", None),
        ("s3://cam1/in/cam3_7.png", r"cam\d+", "cam3"),  # a bucket's name is part of no key
        ("s3://cam1/in/7.png", r"cam\d+", "cam1"),  # but says it where nothing else does
        ("s3://cam1/cam2/cam3_7.png", r"cam\d+", None),
        ("s3://cam1/cam3/7.png", r"/(cam\d+)/", None),
        ("/lake/cam7/0001.jpg", r"/(cam\d+)/", "cam7"),
        ("/lake/seq_1/seq_2.jpg", "^[^_]+", None),
        ("yard.jpg", r"cam\d+", None),
    ],
)
def test_an_address_names_a_group_where_it_is_the_same_wherever_the_key_begins(
    address: str, pattern: str, group: str | None
) -> None:
    assert group_of_address(address, pattern) == group
