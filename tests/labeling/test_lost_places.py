"""SOURCE or OUTPUT that goes away in the middle of a run: the run stops in words, before it does harm."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import NotFoundError, RunError, StorageError
from segpipe.labeling.giving_up import stop_when_source_is_gone
from segpipe.labeling.items import LONG_AGO, Legs, Outcome
from segpipe.labeling.run import label_source
from segpipe.manifests.query import query
from segpipe.manifests.schema import Row
from segpipe.storage.local import Local

ONE_BY_ONE = LabelSettings(shard_images=4, batch_images=1, fetch_threads=1, claim_seconds=20)


class Once:
    """Does something when the n-th picture comes to be judged."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.at, self.act, self.seen = at, act, 0

    def __call__(self, _: list[Any]) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.act()


def remove_all(root: str) -> None:
    for found in list(storage.list_objects(root)):
        storage.delete(found.uri)


def failed(output: str) -> int:
    return query(output, "SELECT count(*) AS n FROM labels WHERE decision = 'failed'").to_pylist()[0]["n"]


@pytest.fixture
def labeler(make_labeler: Callable[..., Any]) -> Any:
    return make_labeler(computed_at_once=1, judged_at_once=1)


@pytest.mark.parametrize("are_folders_left", [True, False])
def test_a_source_deleted_in_mid_run_stops_it_with_one_line_and_fills_no_manifest(
    source: str, output: str, labeler: Any, fill: Callable[..., list[str]], are_folders_left: bool
) -> None:
    uris = fill(source, 40)
    kept = {uri: storage.read_bytes(uri) for uri in uris}
    gone = (lambda: remove_all(source)) if are_folders_left else (lambda: shutil.rmtree(source))
    labeler.before = Once(10, gone)
    why = "is empty now" if are_folders_left else "is gone"
    with pytest.raises(RunError, match=rf"{source} {why}, so run r1 stops .*bring it back and resume"):
        label_source(source, output, labeler, ONE_BY_ONE, "r1")
    assert failed(output) == 0
    for uri, data in kept.items():
        storage.put(uri, data)
    labeler.before = lambda images: None
    assert label_source(source, output, labeler, ONE_BY_ONE, "r1").review == 40


def test_a_bucket_deleted_in_mid_run_stops_it(
    s3_bucket: str, output: str, labeler: Any, fill: Callable[..., list[str]]
) -> None:
    import boto3

    fill(f"s3://{s3_bucket}", 24)

    def delete() -> None:
        remove_all(f"s3://{s3_bucket}")
        boto3.client("s3").delete_bucket(Bucket=s3_bucket)

    labeler.before = Once(6, delete)
    with pytest.raises(RunError, match=rf"s3://{s3_bucket} is gone, so run r1 stops"):
        label_source(f"s3://{s3_bucket}", output, labeler, ONE_BY_ONE, "r1")
    assert failed(output) == 0


def test_a_source_that_holds_nothing_but_its_output_any_more_is_empty(
    source: str, labeler: Any, fill: Callable[..., list[str]]
) -> None:
    uris = fill(source, 24)
    labeler.before = Once(6, lambda: [storage.delete(uri) for uri in uris])
    with pytest.raises(RunError, match="is empty now"):
        label_source(source, f"{source}/labels", labeler, ONE_BY_ONE, "r1")
    assert failed(f"{source}/labels") == 0


def test_single_images_that_are_gone_are_rows(
    source: str, output: str, labeler: Any, fill: Callable[..., list[str]]
) -> None:
    uris = sorted(fill(source, 40))
    labeler.before = Once(3, lambda: [storage.delete(uri) for uri in uris[20:32]])
    summary = label_source(source, output, labeler, ONE_BY_ONE.model_copy(update={"shard_images": 40}), "r1")
    assert (summary.review, summary.failed, summary.reasons["storage"]) == (28, 12, 12)


def outcome(error: Exception | None, is_decoded: bool = False) -> Outcome:
    row = Row(
        image_uri="a", image_etag="e", image_bytes=1, image_width=None, mask_uri=None, mask_sha256=None,
        image_height=5 if is_decoded else None, decision="failed", reason="storage", confidence=None,
        discriminator_score=None, class_fractions=None, class_confidences=None, audit=False,
        inclusion_probability=0.0, model_id="m", policy_id=None, run_id="r", shard=0, labeled_at=LONG_AGO,
        error="no",
    )  # fmt: skip
    return Outcome(row, Legs(), error)


GONE, DOWN, THERE = outcome(NotFoundError("gone")), outcome(StorageError("down")), outcome(None)


@pytest.mark.parametrize(
    ("outcomes", "asked_before"),
    [
        ([GONE] * 40, [0, 7, 15, 31]),  # by hand: the first, then the 8th, 16th and 32nd in a row
        ([GONE, THERE] * 40, [0]),  # images that vanish one by one cost no listing each
        ([GONE] * 7 + [THERE] + [GONE] * 8, [0, 15]),
        ([DOWN] * 40, []),
        ([outcome(NotFoundError("OUTPUT's bucket"), is_decoded=True)] * 40, []),
    ],
)
def test_source_is_looked_for_at_the_first_missing_image_and_where_many_are_in_a_row(
    outcomes: list[Outcome], asked_before: list[int]
) -> None:
    passed: list[Outcome] = []
    asked: list[int] = []
    for one in stop_when_source_is_gone(outcomes, lambda: asked.append(len(passed))):
        passed.append(one)
    assert asked == asked_before
    assert passed == outcomes


# --- OUTPUT ---


def test_an_output_emptied_in_mid_run_is_told_as_that_and_nothing_is_written_into_it(
    source: str, output: str, labeler: Any, fill: Callable[..., list[str]]
) -> None:
    fill(source, 24)
    # No part of a shard before is under way at that moment.
    in_one_shard = ONE_BY_ONE.model_copy(update={"shard_images": 24})
    labeler.before = Once(10, lambda: shutil.rmtree(output))
    with pytest.raises(
        RunError, match=r"claim of run r1, .*, is not there any more: OUTPUT was emptied, moved"
    ):
        label_source(source, output, labeler, in_one_shard, "r1")
    assert not (Path(output) / "manifests").exists()
    assert not (Path(output) / "claims").exists()
    labeler.before = lambda images: None
    assert label_source(source, output, labeler, ONE_BY_ONE, "r1").review == 24


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_an_output_that_takes_no_mask_any_more_stops_the_run_and_says_nothing_against_the_images(
    source: str, output: str, labeler: Any, fill: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:  # fmt: skip
    """Parts still fit: they are small, and a full disk has room for them long after it has none for masks."""
    fill(source, 24)
    put, stored = Local.put, []

    def put_until_full(self: Local, uri: str, data: bytes) -> None:
        if "/masks/" in uri and len(stored) >= 10:
            raise OSError(number, os.strerror(number))
        put(self, uri, data)
        stored.append(uri)

    with monkeypatch.context() as full:
        full.setattr(Local, "put", put_until_full)
        with pytest.raises(
            RunError, match=r"masks/.*; so run r1 stops before .* resume with the same run id"
        ):
            label_source(source, output, labeler, ONE_BY_ONE, "r1")
    assert failed(output) == 0
    assert label_source(source, output, labeler, ONE_BY_ONE, "r1").review == 24
    assert failed(output) == 0


def test_a_run_whose_plan_is_gone_while_its_parts_are_there_is_not_begun_anew_under_its_id(
    source: str, output: str, labeler: Any, fill: Callable[..., list[str]]
) -> None:
    fill(source, 8)
    label_source(source, output, labeler, ONE_BY_ONE, "r1", limit=4)
    shutil.rmtree(Path(output) / "runs")
    with pytest.raises(RunError, match=r"run id r1 has parts under .* but its plan is gone: choose another"):
        label_source(source, output, labeler, ONE_BY_ONE, "r1")
    assert label_source(source, output, labeler, ONE_BY_ONE, "r2").review == 4
