"""Plain aligned text."""

from __future__ import annotations

from segpipe.tables import columns, result_lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert list(columns([("decision", "n"), ("failed", "12")])) == ["decision  n", "failed    12"]
    assert list(columns([])) == []


def test_a_result_is_facts_first_then_a_table_per_mapping() -> None:
    result = {
        "mean_iou": 0.123456,
        "per_class": {"road": 0.5, "car": None},
        "n": 3,
        "scores": {"entropy": {"aurc": 0.25}, "soft_dice": {"aurc": 0.5}},
    }
    assert list(result_lines(result)) == [
        "mean iou  0.1235",
        "n         3",
        "",
        "per class",
        "  road  0.5",
        "  car   -",
        "",
        "scores",
        "             aurc",
        "  entropy    0.25",
        "  soft_dice  0.5",
    ]
