"""What a person is sent, and what stops a push before anything is sent."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segpipe import storage
from segpipe.cli import run
from segpipe.errors import ArchivedError, DeniedError, ReviewError, StorageError
from segpipe.images import class_palette, encode_mask
from segpipe.review.brush import decode_brush
from segpipe.review.drafts import draft_task
from segpipe.review.queue_item import QueueItem

CLASSES = ("road", "car")
MASK = np.array([[0, 0, 1], [0, 1, 0]], np.uint8)


@pytest.fixture
def item(tmp_path: Path) -> QueueItem:
    content = encode_mask(MASK, class_palette(2))
    uri = storage.normalise(tmp_path / "mask.png")
    storage.put(uri, content)
    return QueueItem("i1", "s3://raw/a.png", uri, hashlib.sha256(content).hexdigest(), "m1", 0.25, True)


def test_a_task_has_the_mask_as_one_region_per_class_and_nothing_of_the_audit(item: QueueItem) -> None:
    task = draft_task(item, CLASSES, with_score=True)
    assert task["data"] == {"image": "s3://raw/a.png", "segpipe_item_id": "i1"}
    (draft,) = task["predictions"]
    assert (draft["model_version"], draft["score"]) == ("m1", 0.25)
    regions = {region["value"]["brushlabels"][0]: region for region in draft["result"]}
    assert set(regions) == {"road", "car"}
    for index, name in enumerate(CLASSES):
        assert (regions[name]["original_height"], regions[name]["original_width"]) == (2, 3)
        assert np.array_equal(decode_brush(regions[name]["value"]["rle"], 2, 3), index == MASK)


def test_the_score_can_be_kept_from_the_reviewer(item: QueueItem) -> None:
    assert "score" not in draft_task(item, CLASSES, with_score=False)["predictions"][0]
    assert (
        "score" not in draft_task(replace(item, confidence=None), CLASSES, with_score=True)["predictions"][0]
    )


def test_what_label_studio_would_take_and_show_wrong_is_refused(item: QueueItem) -> None:
    with pytest.raises(ReviewError, match="is not the mask of the manifest: it was changed"):
        draft_task(replace(item, mask_sha256="0" * 64), CLASSES, with_score=True)
    with pytest.raises(ReviewError, match=r"gone\.png is not there any more: restore it"):
        draft_task(replace(item, mask_uri=item.mask_uri.replace("mask", "gone")), CLASSES, with_score=True)
    with pytest.raises(ReviewError, match="holds class 1 of 1: label the image again"):
        draft_task(item, ("road",), with_score=True)


@pytest.mark.parametrize(
    ("server", "token", "message"),
    [
        ("studio:8080", "t", "studio:8080 is no address of Label Studio: give http://HOST:PORT"),
        ("http://127.0.0.1:9", "", "no token for Label Studio: set LABEL_STUDIO_API_KEY"),
        ("http://127.0.0.1:9", "two\nlines", "no token for Label Studio: set LABEL_STUDIO_API_KEY"),
    ],
)
def test_a_wrong_address_or_token_is_one_line(
    server: str, token: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    assert run(["review", "pull", "/nowhere", "--label-studio", server, "--project", "streets"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [DeniedError("m.png: denied"), ArchivedError("m.png: in cold storage")])
def test_what_concerns_one_mask_alone_is_no_trouble_of_the_others(
    error: StorageError, item: QueueItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> bytes:
        raise error

    monkeypatch.setattr(storage, "read_bytes", refused)
    with pytest.raises(ReviewError, match=str(error)):
        draft_task(item, CLASSES, with_score=True)
