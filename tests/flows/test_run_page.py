"""A run's page shows names as they are: none of them becomes markup, ends a block or leads elsewhere."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from markdown_it import MarkdownIt

from flows.run_page import summary_markdown, worst_row
from segpipe.labeling.totals import RunSummary, WorstImage
from segpipe.models.labeler import Labeler

IDLE = dict.fromkeys(("read", "decode", "infer", "encode", "write", "wait"), 0.0)
NO_POLICY = cast(Labeler, SimpleNamespace(policy=None))


def summary(**places: str) -> RunSummary:
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(RunSummary)} | {
        "run_id": "run-1",
        "source": "s3://raw/a",
        "output": "s3://labels/a",
        "model_id": "0123456789ab",
        "policy_id": None,
        "seconds": 1.0,
        "images_per_second": 1.0,
        "legs": IDLE,
        "bottleneck": None,
        "reasons": {"no_policy": 1},
        "skipped": {},
        "drift": None,
        "worst": (),
    }
    return RunSummary(**fields | places)


@pytest.mark.parametrize(
    "name", ["a`b", "a```b", "a\n\n# forged", "[x](javascript:alert)", "<b>", "a\x1b[31m\u202e", "a|b"]
)
def test_a_name_is_only_text_on_the_page(name: str) -> None:
    plain = summary_markdown(summary(), NO_POLICY, "s3://models/m", None)
    odd = summary_markdown(
        summary(source=f"s3://raw/{name}", output=f"s3://labels/{name}"), NO_POLICY, "s3://models/m", None
    )
    parse = MarkdownIt("commonmark").enable("table").parse
    assert [token.type for token in parse(odd)] == [token.type for token in parse(plain)]
    kinds = [{child.type for child in token.children or []} for token in parse(odd)]
    assert kinds == [{child.type for child in token.children or []} for token in parse(plain)]
    assert "\x1b" not in odd
    assert "\u202e" not in odd


def test_only_web_addresses_are_links_in_the_table_of_the_worst() -> None:
    bad = WorstImage(
        image_uri="s3://raw/[x](http://evil)",
        mask_uri="https://host/a](http://evil).png",
        decision="failed",
        reason="unreadable",
        confidence=None,
        error="<img src=x>",
    )
    row = worst_row(bad)
    assert row["image"] == r"s3://raw/\[x\](http://evil)"
    assert row["mask"] == r"[https://host/a\](http://evil).png](https://host/a%5D%28http://evil%29.png)"
    assert row["error"] == r"\<img src=x\>"
