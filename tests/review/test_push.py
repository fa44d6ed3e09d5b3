"""What push does where Label Studio misbehaves, and with masks that cannot be sent.

The server is one of the test.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import httpx
import numpy as np
import pytest
from fake_studio import fake_studio
from reviewed_output import CLASSES, ReviewedOutput

from segpipe import storage
from segpipe.cli import run
from segpipe.config import PushSettings, QueueSettings
from segpipe.errors import ReviewError
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.query import query
from segpipe.manifests.queues import read_selected
from segpipe.review.label_config import label_config
from segpipe.review.label_studio import open_label_studio
from segpipe.review.push import SENDINGS, TASKS_PER_REQUEST, push


def test_drafts_that_the_server_drops_are_sent_again(made: ReviewedOutput) -> None:
    made.label("https://raw/a.png", "https://raw/b.png")
    with fake_studio(drops_drafts=1) as studio:
        assert made.push(studio).pushed == 2
        tasks = studio.tasks.values()
        assert sorted(task["data"]["image"] for task in tasks) == ["https://raw/a.png", "https://raw/b.png"]
        assert {task["total_predictions"] for task in tasks} == {1}


def test_a_server_that_always_drops_them_is_named_and_keeps_no_bare_task(made: ReviewedOutput) -> None:
    made.label("https://raw/a.png")
    with fake_studio(drops_drafts=SENDINGS) as studio:
        with pytest.raises(ReviewError, match="without their drafts 3 times: push again"):
            made.push(studio)
        assert studio.tasks == {}


def test_of_two_projects_that_two_pushes_make_at_once_the_oldest_is_taken(
    made: ReviewedOutput,
) -> None:
    made.label("https://raw/a.png")
    with fake_studio() as studio:
        studio.made_by_another = {"title": "streets", "label_config": label_config(CLASSES)}
        assert made.push(studio).project_url == f"{studio.url}/projects/1/data"
        assert [project["id"] for project in studio.projects] == [1], "ours, newer and empty, is gone"


@pytest.mark.parametrize("title", ["  streets ", "streets"])
def test_blanks_around_a_name_are_not_part_of_it(made: ReviewedOutput, title: str) -> None:
    made.label("https://raw/a.png")
    with fake_studio() as studio, open_label_studio(studio.url, "token") as server:
        for _ in range(2):
            push(made.root, PushSettings(project=title), QueueSettings(), server)
        assert [project["title"] for project in studio.projects] == ["streets"]


@pytest.mark.parametrize("verb", ["push", "pull"])
@pytest.mark.parametrize("title", ["", "   ", " ab "])
def test_a_name_that_is_none_is_wrong_usage(
    verb: str, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["review", verb, "/nowhere", "--label-studio", "http://127.0.0.1:9", "--project", title]) == 2
    assert "--project" in capsys.readouterr().err


def test_images_that_label_studio_cannot_show_are_left_out_and_named(
    made: ReviewedOutput, caplog: pytest.LogCaptureFixture
) -> None:
    shown = "https://raw/a.png?size=3", "https://raw/b.png", "s3://raw/it's <b>&amp; #1; ü.png"
    odd = {
        "/raw/disk.png": "Label Studio needs images in S3 or on the web",
        "s3://raw/what?.png": "Label Studio cuts its key at the question mark",
        "s3://raw//a.png": "Label Studio takes the slash at its start for none",
        "s3://raw/two\nlines.png": "has a control character",
        "s3://raw/\x1b[2J.png": "has a control character",
        "s3://raw/nul\0.png": "has a control character",
        "s3://raw/a.png ": "a blank at its end",
    }
    made.label(*shown, *odd)
    with fake_studio() as studio:
        summary = made.push(studio)
        sent = {task["data"]["image"] for task in studio.tasks.values()}
        assert made.push(studio).already_there == 3
    assert sent == set(shown)
    assert (summary.pushed, summary.left_out, summary.waiting) == (3, 7, 0)
    assert set(summary.not_sent) == set(odd)
    for image, reason in odd.items():
        assert reason in summary.not_sent[image]
    assert "/raw/disk.png is left out: Label Studio needs images in S3 or on the web" in caplog.text
    assert caplog.text.count("is left out") == 14
    assert all(line.isprintable() for line in caplog.messages)
    (left,) = query(made.root, "SELECT count(*) AS n FROM review_queue").to_pylist()
    assert left["n"] == 10


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that is said to be so large."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)), (b"IDAT", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (png_header(20_000, 20_000), "20000x20000 is over 100000000 pixels"),
        (b"no picture", "cannot be read: no image: it begins with b'no pictu'"),
        (encode_mask(np.full((4, 4), 2, np.uint8), class_palette(3)), "holds class 2 of 2"),
    ],
)
def test_a_mask_that_cannot_be_sent_keeps_no_other_back(
    mask: bytes, reason: str, made: ReviewedOutput, caplog: pytest.LogCaptureFixture
) -> None:
    made.label("https://raw/good.png")
    made.label("https://raw/odd.png", mask=mask)
    with fake_studio() as studio:
        summary = made.push(studio)
        assert [task["data"]["image"] for task in studio.tasks.values()] == ["https://raw/good.png"]
    assert (summary.pushed, summary.left_out) == (1, 1)
    assert reason in summary.not_sent["https://raw/odd.png"]
    assert f"https://raw/odd.png is left out: {made.masks['https://raw/odd.png']}" in caplog.text


def test_a_mask_that_was_changed_or_removed_is_left_out_until_it_is_back(made: ReviewedOutput) -> None:
    made.label("https://raw/a.png", "https://raw/b.png", "https://raw/c.png")
    first, second = made.masks["https://raw/a.png"], made.masks["https://raw/b.png"]
    content = storage.read_bytes(first)
    storage.put(first, b"other bytes")
    storage.delete(second)
    with fake_studio() as studio:
        summary = made.push(studio)
        assert summary.pushed == 1
        assert "is not the mask of the manifest" in summary.not_sent["https://raw/a.png"]
        assert "is not there any more" in summary.not_sent["https://raw/b.png"]
        for uri in (first, second):
            storage.put(uri, content)
        assert made.push(studio).pushed == 2


def test_a_mask_of_a_model_with_other_classes_is_not_sent_under_false_names(made: ReviewedOutput) -> None:
    made.label("https://raw/old.png", classes=("car", "road"), model_id="old")
    made.label("https://raw/new.png")
    with fake_studio() as studio:
        summary = made.push(studio)
    assert summary.pushed == 1
    assert summary.not_sent == {
        "https://raw/old.png": "its model had the classes car, road: label the image again"
    }


@pytest.mark.parametrize("confidence", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_score_that_is_none_is_not_sent(confidence: float, made: ReviewedOutput) -> None:
    made.label("https://raw/a.png", confidence=confidence)
    with fake_studio() as studio:
        assert made.push(studio).pushed == 1


@pytest.mark.parametrize("odd", [{0}, {29}, {3, 4, 17}, set(range(30))])
def test_a_task_that_the_server_refuses_keeps_no_other_back(odd: set[int], made: ReviewedOutput) -> None:
    images = [f"https://raw/{number:02d}.png" for number in range(30)]
    made.label(*images)
    refused = {images[number] for number in odd}
    with fake_studio() as studio:
        studio.refuses = refused
        summary = made.push(studio)
        assert set(summary.not_sent) == refused
        assert summary.pushed == 30 - len(odd)
        assert sorted(task["data"]["image"] for task in studio.tasks.values()) == sorted(
            set(images) - refused
        )
        assert all("answered 400 to POST" in reason for reason in summary.not_sent.values())
        studio.refuses = set()
        assert made.push(studio).pushed == len(odd)


def test_an_answer_to_the_import_that_is_none_is_one_line(made: ReviewedOutput) -> None:
    made.label("https://raw/a.png")
    with fake_studio() as studio:
        studio.import_answer = [1]
        with pytest.raises(ReviewError, match="is no Label Studio, by its answer to /api/projects/1/import"):
            made.push(studio)


def test_a_name_with_a_control_character_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["review", "push", "/x", "--label-studio", "http://127.0.0.1:9", "--project", "night\x1b[2J"]
    assert run(command) == 2
    assert "--project" in (said := capsys.readouterr().err)
    assert "\x1b" not in said


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_request_a_push_is_finished_by_the_next(
    after: bool, made: ReviewedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [f"s3://raw/{number:02d}.png" for number in range(3)]
    made.label(*images)
    monkeypatch.setattr("segpipe.review.push.TASKS_PER_REQUEST", 2)
    for survived in range(40):
        with fake_studio() as studio:
            with monkeypatch.context() as patched:
                requests = killing(patched, survived, after=after)
                with suppress(KilledError):
                    made.push(studio)
            made.push(studio)
            assert [project["title"] for project in studio.projects] == ["streets"]
            assert sorted(task["data"]["image"] for task in studio.tasks.values()) == images
            assert {task["total_predictions"] for task in studio.tasks.values()} == {1}
            assert [bucket["bucket"] for bucket in studio.buckets] == ["raw"]
        if len(requests) <= survived:
            break
    assert ("POST", "import") in requests
    assert len(requests) == survived, "all were tried"


def test_what_a_killed_push_had_drawn_is_drawn(made: ReviewedOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    made.label(*(f"https://raw/{number:02d}.png" for number in range(20)))
    asked = {"limit": 10, "random_share": 0.5}
    with fake_studio() as studio:
        with monkeypatch.context() as patched:
            killing(patched, 0, after=False)
            with pytest.raises(KilledError):
                made.push(studio, **asked)
        (before,) = read_selected(made.root).selections.values()
        assert len(before.drawn) == 5
        assert made.push(studio, **asked).pushed == 10
        sent = {task["data"]["segpipe_item_id"] for task in studio.tasks.values()}
        assert sent == {*before.drawn, *before.chosen}
        assert len(read_selected(made.root).selections) == 1


def killing(patched: pytest.MonkeyPatch, survived: int, *, after: bool) -> list[tuple[str, str]]:
    """Let so many requests be answered, and kill before or after the server has done the next."""
    requests: list[tuple[str, str]] = []
    send = httpx.HTTPTransport.handle_request

    def one(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        requests.append((request.method, request.url.path.rpartition("/")[2]))
        if len(requests) > survived and not after:
            raise KilledError
        answer = send(transport, request)
        if len(requests) > survived:
            raise KilledError
        return answer

    patched.setattr(httpx.HTTPTransport, "handle_request", one)
    return requests


def test_a_process_killed_outright_is_finished_by_the_next(made: ReviewedOutput) -> None:
    images = [f"https://raw/{number:02d}.png" for number in range(60)]
    made.label(*images)
    with fake_studio() as studio:
        studio.holds_after = 1  # import: the second is never answered
        command = [sys.executable, "-m", "segpipe", "review", "push", made.root]
        command += ["--label-studio", studio.url, "--project", "streets"]
        process = subprocess.Popen(
            command, env=os.environ | {"LABEL_STUDIO_API_KEY": "token"}, stderr=subprocess.DEVNULL
        )
        assert studio.held.wait(120)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert len(studio.tasks) == TASKS_PER_REQUEST
        studio.holds_after = None
        studio.let_go.set()
        made.push(studio)
        assert sorted(task["data"]["image"] for task in studio.tasks.values()) == images
