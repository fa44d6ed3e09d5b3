"""The log of decisions, and what it changes in the views."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from threading import Barrier
from typing import Any

import pytest

from segpipe import storage
from segpipe.manifests.query import query
from segpipe.manifests.reviews import Review, append_reviews, item_id, read_reviews
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def review(about: Row, verdict: str, minute: int = 0, **values: Any) -> Review:
    item = item_id(about.image_uri, about.image_etag, about.model_id, str(about.mask_sha256))
    final = {"accepted": about.mask_uri, "corrected": f"/out/reviews/masks/{item}-{minute}.png"}.get(verdict)
    defaults = {
        "review_id": f"{item}-{minute}",
        "item_id": item,
        "image_uri": about.image_uri,
        "image_etag": about.image_etag,
        "model_id": about.model_id,
        "draft_mask_sha256": about.mask_sha256,
        "verdict": verdict,
        "final_mask_uri": final,
        "final_mask_sha256": final and f"hash of {final}",
        "draft_iou": None,
        "overlap_pixels": 0,
        "audit": about.audit,
        "inclusion_probability": about.inclusion_probability,
        "reviewer": "a@example.com",
        "minutes": 1.5,
        "reviewed_at": NOON.replace(minute=minute),
        "origin": "test",
    }
    return Review(**(defaults | values))


@pytest.fixture
def label(storage_root: str, make_row: Callable[..., Row]) -> Callable[..., Row]:
    """Commits a row to OUTPUT and gives it."""
    n_parts = iter(range(100))

    def commit(image: str, decision: str, **values: Any) -> Row:
        shard, model = next(n_parts), values.get("model_id", "m")
        row = make_row(
            image_uri=f"/bucket/{image}.jpg",
            mask_uri=f"/out/masks/{model}/{image}.png",
            mask_sha256=f"{model}-{image}",
            decision=decision,
            shard=shard,
            **values,
        )
        assert commit_part(storage_root, date(2026, 11, 23), "r", shard, rows_table([row], ["a", "b"]))
        return row

    return commit


def images(output: str, view: str) -> dict[str, str]:
    """Image to mask of a view."""
    found = query(output, f"SELECT image_uri, mask_uri FROM {view} ORDER BY image_uri").to_pylist()
    assert len({row["image_uri"] for row in found}) == len(found)
    return {row["image_uri"][len("/bucket/") : -len(".jpg")]: row["mask_uri"] for row in found}


def test_a_decision_is_written_once_however_often_it_is_given(
    storage_root: str, label: Callable[..., Row]
) -> None:
    one, two = review(label("a", "review"), "accepted"), review(label("b", "review"), "rejected")
    assert append_reviews(storage_root, [one]) == [one]
    assert append_reviews(storage_root, [one, two, two]) == [two]
    assert append_reviews(storage_root, [one, two]) == []
    assert read_reviews(storage_root).to_pylist() == [vars(one), vars(two)]


def test_two_writers_at_once_write_each_decision_once(storage_root: str, label: Callable[..., Row]) -> None:
    rows = [label(f"image{number}", "review") for number in range(6)]
    start = Barrier(3)

    def write(chosen: Iterable[Row]) -> list[Review]:
        start.wait()
        return [added for row in chosen for added in append_reviews(storage_root, [review(row, "accepted")])]

    with ThreadPoolExecutor(3) as threads:
        added = [one for result in threads.map(write, [rows[:4], rows[2:], rows[::-1]]) for one in result]
    ids = read_reviews(storage_root)["review_id"].to_pylist()
    assert sorted(ids) == sorted({review(row, "accepted").review_id for row in rows})
    assert sorted(one.review_id for one in added) == sorted(ids)


def test_decisions_move_masks_between_the_views(storage_root: str, label: Callable[..., Row]) -> None:
    kept, drawn = label("kept", "review"), label("drawn", "review")
    refused, put_off = label("refused", "review"), label("put off", "review")
    good, bad = label("good", "accepted"), label("bad", "accepted", audit=True)
    for image, decision, audit in (("open", "review", False), ("audited", "accepted", True)):
        label(image, decision, audit=audit)
    assert set(images(storage_root, "accepted")) == {"good", "audited", "bad"}
    assert set(images(storage_root, "review_queue")) == {
        "open", "kept", "drawn", "refused", "put off", "audited", "bad",
    }  # fmt: skip
    append_reviews(
        storage_root,
        [
            review(kept, "accepted"),
            review(drawn, "corrected"),
            review(refused, "rejected"),
            review(put_off, "skipped"),
            review(bad, "rejected"),
        ],
    )
    accepted = images(storage_root, "accepted")
    assert set(accepted) == {"good", "audited", "kept", "drawn"}
    assert accepted["kept"] == kept.mask_uri
    assert accepted["good"] == good.mask_uri
    assert accepted["drawn"].startswith("/out/reviews/masks/")
    assert set(images(storage_root, "review_queue")) == {"open", "audited"}


def test_the_newest_decision_about_a_mask_holds(storage_root: str, label: Callable[..., Row]) -> None:
    row = label("a", "review")
    append_reviews(storage_root, [review(row, "corrected", minute=2)])
    append_reviews(storage_root, [review(row, "accepted", minute=1)])  # comes late
    assert images(storage_root, "accepted")["a"].endswith("-2.png")
    append_reviews(storage_root, [review(row, "rejected", minute=3)])
    assert images(storage_root, "accepted") == {}


def test_a_correction_outlives_the_next_model(storage_root: str, label: Callable[..., Row]) -> None:
    row = label("a", "review")
    append_reviews(storage_root, [review(row, "corrected")])
    label("a", "review", model_id="n", labeled_at=NOON)
    assert images(storage_root, "accepted")["a"].startswith("/out/reviews/masks/")
    assert images(storage_root, "review_queue") == {}
    label("a", "review", model_id="n", labeled_at=NOON.replace(hour=13), image_etag="changed")
    assert images(storage_root, "accepted") == {}
    assert set(images(storage_root, "review_queue")) == {"a"}


def test_the_log_is_one_numbered_part_per_addition(storage_root: str, label: Callable[..., Row]) -> None:
    for image in ("a", "b"):
        append_reviews(storage_root, [review(label(image, "review"), "accepted")])
    keys = [found.key for found in storage.list_objects(storage.join(storage_root, "reviews"))]
    assert sorted(keys) == ["00000001.parquet", "00000002.parquet"]


def test_a_part_that_was_taken_away_leaves_no_number_to_be_tried_for_ever(
    storage_root: str, label: Callable[..., Row]
) -> None:
    for image in ("a", "b"):
        append_reviews(storage_root, [review(label(image, "review"), "accepted")])
    storage.delete(storage.join(storage_root, "reviews/00000001.parquet"))
    append_reviews(storage_root, [review(label("c", "review"), "accepted")])
    keys = [found.key for found in storage.list_objects(storage.join(storage_root, "reviews"))]
    assert sorted(keys) == ["00000002.parquet", "00000003.parquet"]
