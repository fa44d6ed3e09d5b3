"""What push does where Label Studio misbehaves; the server is one of the test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from fake_studio import FakeStudio, fake_studio

from segpipe import storage
from segpipe.cli import run
from segpipe.config import PushSettings, QueueSettings
from segpipe.errors import ReviewError
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.query import query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review.label_config import label_config
from segpipe.review.label_studio import open_label_studio
from segpipe.review.push import SENDINGS, PushSummary, push

CLASSES = ("road", "car")


@pytest.fixture
def output(tmp_path: Path, make_row: Callable[..., Row]) -> Callable[..., str]:
    """(URIs of images) -> an OUTPUT in which each waits for a decision."""

    def make(*image_uris: str) -> str:
        root, content = str(tmp_path / "labels"), encode_mask(np.eye(4, dtype=np.uint8), class_palette(2))
        mask_uri = f"{root}/masks/m.png"
        storage.put(mask_uri, content)
        digest = hashlib.sha256(content).hexdigest()
        rows = [
            make_row(image_uri=uri, mask_uri=mask_uri, mask_sha256=digest, decision="review")
            for uri in image_uris
        ]
        assert commit_part(root, date(2026, 11, 24), "r", 0, rows_table(rows, CLASSES))
        return root

    return make


def pushed(output: str, studio: FakeStudio) -> PushSummary:
    with open_label_studio(studio.url, "token") as server:
        return push(output, PushSettings(project="streets"), QueueSettings(), server)


def test_drafts_that_the_server_drops_are_sent_again(output: Callable[..., str]) -> None:
    made = output("https://raw/a.png", "https://raw/b.png")
    with fake_studio(drops_drafts=1) as studio:
        assert pushed(made, studio).pushed == 2
        tasks = studio.tasks.values()
        assert sorted(task["data"]["image"] for task in tasks) == ["https://raw/a.png", "https://raw/b.png"]
        assert {task["total_predictions"] for task in tasks} == {1}


def test_a_server_that_always_drops_them_is_named_and_keeps_no_bare_task(output: Callable[..., str]) -> None:
    made = output("https://raw/a.png")
    with fake_studio(drops_drafts=SENDINGS) as studio:
        with pytest.raises(ReviewError, match="without their drafts 3 times: push again"):
            pushed(made, studio)
        assert studio.tasks == {}


def test_of_two_projects_that_two_pushes_make_at_once_the_oldest_is_taken(
    output: Callable[..., str],
) -> None:
    made = output("https://raw/a.png")
    with fake_studio() as studio:
        studio.made_by_another = {"title": "streets", "label_config": label_config(CLASSES)}
        assert pushed(made, studio).project_url == f"{studio.url}/projects/1/data"
        assert [project["id"] for project in studio.projects] == [1], "ours, newer and empty, is gone"


@pytest.mark.parametrize("title", ["  streets ", "streets"])
def test_blanks_around_a_name_are_not_part_of_it(output: Callable[..., str], title: str) -> None:
    made = output("https://raw/a.png")
    with fake_studio() as studio, open_label_studio(studio.url, "token") as server:
        for _ in range(2):
            push(made, PushSettings(project=title), QueueSettings(), server)
        assert [project["title"] for project in studio.projects] == ["streets"]


@pytest.mark.parametrize("verb", ["push", "pull"])
@pytest.mark.parametrize("title", ["", "   ", " ab "])
def test_a_name_that_is_none_is_wrong_usage(
    verb: str, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["review", verb, "/nowhere", "--label-studio", "http://127.0.0.1:9", "--project", title]) == 2
    assert "--project" in capsys.readouterr().err


def test_images_that_label_studio_cannot_show_are_left_out_and_named(
    output: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    made = output("/raw/disk.png", "s3://raw/what?.png", "https://raw/a.png?size=3", "https://raw/b.png")
    caplog.set_level("WARNING", "segpipe")
    with fake_studio() as studio:
        summary = pushed(made, studio)
        sent = {task["data"]["image"] for task in studio.tasks.values()}
        assert pushed(made, studio).already_there == 2
    assert sent == {"https://raw/a.png?size=3", "https://raw/b.png"}
    assert (summary.pushed, summary.left_out, summary.waiting) == (2, 2, 0)
    assert "/raw/disk.png is left out: Label Studio needs images in S3 or on the web" in caplog.text
    assert "s3://raw/what?.png is left out: Label Studio cuts its key at the question mark" in caplog.text
    (left,) = query(made, "SELECT count(*) AS n FROM review_queue").to_pylist()
    assert left["n"] == 4
