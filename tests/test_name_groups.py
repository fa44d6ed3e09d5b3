"""The group of a name: one rule for image keys and image URIs."""

from __future__ import annotations

import re

import pytest

from segpipe.name_groups import group_of


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


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(re.error):
        group_of("cam7", "(")
