"""A line of models: its newest promotion counts, and none is lost or overwritten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from segpipe import storage
from segpipe.errors import ModelError
from segpipe.models.promotion_line import Promotion, last_number, promote, promotions, resolve, standing


def promotion(model: str) -> Promotion:
    return Promotion(f"/models/{model}", model, "better", {"n": 3}, "2026-11-24T00:00:00+00:00")


def test_a_line_stands_for_its_newest_model(storage_root: str) -> None:
    assert resolve(storage_root) == storage_root
    assert promotions(storage_root) == []
    for number, model in enumerate("abc"):
        promote(storage_root, promotion(model), number)
        assert resolve(storage_root) == f"/models/{model}"
    assert promotions(storage_root) == [promotion(model) for model in "abc"]


def test_of_two_promotions_at_once_one_is_told_to_look_again(storage_root: str) -> None:
    start = Barrier(4)

    def try_to(model: str) -> str | None:
        start.wait()
        try:
            promote(storage_root, promotion(model), 0)
        except ModelError:
            return None
        return model

    with ThreadPoolExecutor(4) as threads:
        (winner,) = [model for model in threads.map(try_to, "abcd") if model]
    assert promotions(storage_root) == [promotion(winner)]
    with pytest.raises(ModelError, match="another promotion came in between"):
        promote(storage_root, promotion("e"), 0)


def test_a_promotion_that_was_removed_leaves_no_number_to_be_tried_again(storage_root: str) -> None:
    for number, model in enumerate("abc"):
        promote(storage_root, promotion(model), number)
    storage.delete(storage.join(storage_root, "promotions/00000002.json"))
    storage.put(storage.join(storage_root, "promotions/notes.json"), b"{}")
    assert last_number(storage_root) == 3
    promote(storage_root, promotion("d"), 3)
    assert promotions(storage_root) == [promotion(model) for model in "acd"]
    assert resolve(storage_root) == "/models/d"


DAMAGED = [
    b"", b"[]", b'{"model": "/m"}', b"\xff", b"[" * 100_000,
    b'{"model": "/m", "model": "/n", "model_id": "a", "reason": "", "evidence": {}, "promoted_at": ""}',
    b'{"model": 7, "model_id": "a", "reason": "", "evidence": {}, "promoted_at": ""}',
    b'{"model": "/m", "model_id": "a", "reason": "", "evidence": [], "promoted_at": ""}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_promotion_is_named(storage_root: str, content: bytes) -> None:
    promote(storage_root, promotion("a"), 0)
    storage.put(storage.join(storage_root, "promotions/00000002.json"), content)
    with pytest.raises(ModelError, match=r"00000002\.json is no promotion"):
        resolve(storage_root)


@pytest.mark.parametrize(
    ("history", "left"),
    [
        ("A B C", "A B C"),
        ("A B C <B", "A B"),
        ("A B C <B <A", "A"),
        ("A B C <B <A D", "A D"),
        ("A B <A B", "A B"),
        ("A B A", "A B A"),
        ("A B A <B", "A B"),
        ("A B <A <B", "A B"),
    ],
)
def test_a_way_back_undoes_what_was_promoted_since(history: str, left: str) -> None:
    entries = [
        replace(promotion(name.strip("<")), evidence={} if name.startswith("<") else {"n": 3})
        for name in history.split()
    ]
    assert [entry.model_id for entry in standing(entries)] == left.split()
