"""Masks go to a real Label Studio as drafts, people decide, and their decisions come back exactly once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studio_night import CLASSES, HEIGHT, WIDTH, Night, one_more_car, region
from studio_server import TOKEN, Studio

from segpipe import load_model, storage
from segpipe.cli import run
from segpipe.config import PushSettings, QueueSettings
from segpipe.errors import ReviewError
from segpipe.manifests.query import query
from segpipe.review.brush import encode_brush
from segpipe.review.label_config import label_config, require_labels
from segpipe.review.label_studio import open_label_studio
from segpipe.review.pull import PullSummary, pull
from segpipe.review.push import push

pytestmark = pytest.mark.studio

NOTHING = {
    "accepted": 0, "corrected": 0, "rejected": 0, "skipped": 0, "known": 0, "foreign": 0, "refused": 0,
    "overlap_pixels": 0,
}  # fmt: skip


REJECT = [{"type": "choices", "from_name": "verdict", "to_name": "image", "value": {"choices": ["reject"]}}]


def test_sixty_masks_there_and_back(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(60)
    pushed = made.push(studio)
    assert (pushed.pushed, pushed.already_there, pushed.duplicates_removed, pushed.waiting) == (60, 0, 0, 0)
    assert made.push(studio).pushed == 0, "running it again adds nothing"

    tasks = studio.tasks(made.project)
    assert sorted(task["data"]["image"] for task in tasks) == sorted(made.masks)
    assert set(tasks[0]["data"]) == {"image", "segpipe_item_id"}, "nothing tells an audit"
    untouched, edited, refused, passed_over = tasks[:20], tasks[20:35], tasks[35:45], tasks[45:50]
    for task in untouched:
        draft = studio.draft(task)
        studio.submit(task, draft["result"], parent_prediction=draft["id"])
    for task in edited:
        draft = studio.draft(task)
        studio.submit(task, one_more_car(draft["result"], slice(0, 6)), parent_prediction=draft["id"])
    for task in refused:
        studio.submit(task, REJECT)
    for task in passed_over:
        studio.submit(task, [], was_cancelled=True)

    first = made.pull(studio)
    assert {name: first[name] for name in ("accepted", "corrected", "rejected", "skipped")} == {
        "accepted": 20, "corrected": 15, "rejected": 10, "skipped": 5
    }  # fmt: skip
    assert (first["known"], first["foreign"], first["refused"]) == (0, 0, 0)
    again = made.pull(studio)
    assert again == NOTHING | {"known": 50}

    final = made.final_masks()
    for image in (task["data"]["image"] for task in untouched):
        assert np.array_equal(final[image], made.masks[image])
    for image in (task["data"]["image"] for task in edited):
        expected = made.masks[image].copy()
        expected[:6, :10] = 1
        assert np.array_equal(final[image], expected)
    assert not {task["data"]["image"] for task in refused} & set(final)
    decisions = made.decisions()
    assert len(decisions) == 50
    assert {one["reviewer"] for one in decisions} == {"reviewer@example.com"}
    assert {one["minutes"] for one in decisions} == {0.5}
    changed = [one for one in decisions if one["verdict"] == "corrected"]
    assert all(one["overlap_pixels"] > 0 and 0 < one["draft_iou"] < 1 for one in changed)
    (left,) = query(made.output, "SELECT count(*) AS n FROM review_queue").to_pylist()
    assert left["n"] == 10


def test_an_export_of_what_people_decided_trains_a_model(
    studio: Studio, night: Callable[..., Night], tmp_path: Path
) -> None:
    made = night(8)
    made.push(studio)
    for task in studio.tasks(made.project):
        studio.submit(task, one_more_car(studio.draft(task)["result"], slice(0, 6)))
    assert made.pull(studio)["corrected"] == 8

    root = tmp_path / "streets"
    assert run(["export", made.output, str(root), "--format", "indexed-png"]) == 0
    shutil.copytree(root / "train", root / "val")
    for mask in (root / "train" / "masks").rglob("*.png"):
        assert (np.asarray(Image.open(mask))[:6, :10] == 1).all(), "what was drawn, not the draft"
    options = ["--epochs", "1", "--batch-size", "4", "--image-size", "32x48", "--device", "cpu"]
    options += ["--allow", "shared"]  # one folder is both splits here
    assert run(["train", "--data", str(root), "--model", str(tmp_path / "model"), *options]) == 0
    assert load_model(str(tmp_path / "model"), device="cpu").classes == CLASSES


def test_a_decision_that_is_changed_later_holds(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(2)
    made.push(studio)
    task, _ = studio.tasks(made.project)
    draft = studio.draft(task)
    annotation = studio.submit(task, draft["result"], parent_prediction=draft["id"])
    assert made.pull(studio) == NOTHING | {"accepted": 1}

    changed = one_more_car(draft["result"], slice(0, 3))
    studio.call("PATCH", f"/api/annotations/{annotation['id']}/", {"result": changed})
    assert made.pull(studio)["corrected"] == 1
    assert (made.final_masks()[task["data"]["image"]][:3, :10] == 1).all()

    studio.call("PATCH", f"/api/annotations/{annotation['id']}/", {"result": REJECT})
    assert made.pull(studio)["rejected"] == 1
    assert task["data"]["image"] not in made.final_masks()
    assert len(made.decisions()) == 3, "each decision stays in the log"


def test_by_another_address_of_the_server_no_decision_comes_twice(
    studio: Studio, night: Callable[..., Night]
) -> None:
    made = night(1)
    made.push(studio)
    (task,) = studio.tasks(made.project)
    studio.submit(task, studio.draft(task)["result"])
    assert studio.tasks(made.project)[0]["annotations"][0]["unique_id"], "a name that no address is part of"
    assert made.pull(studio) == NOTHING | {"accepted": 1}
    by_name = Studio(studio.url.replace("127.0.0.1", "localhost"))
    assert made.pull(by_name) == NOTHING | {"known": 1}
    (decision,) = made.decisions()
    assert decision["origin"].startswith(f"{studio.url}/tasks/{task['id']}/annotations/")


def test_killed_in_the_middle_nothing_is_doubled_or_lost(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(60)
    for enough in (1, 30):
        _killed(studio, made, "push", lambda enough=enough: _count(studio, made) >= enough)
    made.push(studio)
    tasks = studio.tasks(made.project)
    assert sorted(task["data"]["image"] for task in tasks) == sorted(made.masks)

    for task in tasks:
        studio.submit(task, one_more_car(studio.draft(task)["result"], slice(0, 6)))
    for enough in (1, 20, 45):
        _killed(studio, made, "pull", lambda enough=enough: len(_drawn(made)) >= enough)
    made.pull(studio)
    decisions = made.decisions()
    assert sorted(one["image_uri"] for one in decisions) == sorted(made.masks)
    assert {one["final_mask_uri"] for one in decisions} == _drawn(made)


def _killed(studio: Studio, made: Night, verb: str, far_enough: Callable[[], bool]) -> None:
    """Run the command and kill it once it is far enough, or let it end."""
    command = [
        sys.executable, "-m", "segpipe", "review", verb, made.output, "--label-studio", studio.url,
        "--project", made.project,
    ]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | {"LABEL_STUDIO_API_KEY": TOKEN})
    while process.poll() is None and not far_enough():
        time.sleep(0.01)
    process.kill()
    process.wait()


def _count(studio: Studio, made: Night) -> int:
    found = [one for one in studio.call("GET", "/api/projects/")["results"] if one["title"] == made.project]
    return found[0]["task_number"] if found else 0


def _drawn(made: Night) -> set[str]:
    return {
        f"{made.output}/reviews/masks/{one.key}"
        for one in storage.list_objects(f"{made.output}/reviews/masks")
    }


def test_two_pushes_at_once_leave_one_task_each(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(3)
    made.push(studio)
    tasks = studio.tasks(made.project)
    path = f"/api/projects/{studio.project_id(made.project)}/import"
    again = [{"data": task["data"], "predictions": [{"result": []}]} for task in tasks]
    studio.call("POST", path, again)
    assert len(studio.tasks(made.project)) == 6
    assert made.push(studio).duplicates_removed == 3
    assert [task["id"] for task in studio.tasks(made.project)] == [task["id"] for task in tasks]


def test_the_first_pushes_of_two_at_once_lose_no_decision(
    studio: Studio, night: Callable[..., Night]
) -> None:
    made = night(4)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: made.push(studio), range(2)))
    tasks = studio.tasks(made.project)
    assert sorted(task["data"]["image"] for task in tasks) == sorted(made.masks)

    (first, second) = tasks[:2]
    config = studio.call("GET", f"/api/projects/{studio.project_id(made.project)}/")["label_config"]
    twin = studio.call("POST", "/api/projects/", {"title": made.project, "label_config": config})
    path = f"/api/projects/{twin['id']}/import"
    studio.call("POST", path, [{"data": second["data"]}])
    (copy,) = studio.call("GET", "/api/tasks/", project=twin["id"], fields="task_only")["tasks"]
    for task in (first, copy):
        studio.submit(task, studio.draft(first)["result"] if task is first else REJECT)
    assert made.pull(studio) == NOTHING | {"accepted": 1, "rejected": 1}


def test_a_task_that_lost_its_draft_is_sent_again(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(3)
    made.push(studio)
    lost, answered, whole = studio.tasks(made.project)
    for task in (lost, answered):
        studio.call("DELETE", f"/api/predictions/{studio.draft(task)['id']}/")
    studio.submit(answered, REJECT)
    assert made.push(studio).pushed == 1
    kept_answer, kept, sent = studio.tasks(made.project)
    assert (kept_answer["id"], kept["id"]) == (answered["id"], whole["id"])
    assert sent["data"] == lost["data"]
    studio.submit(sent, studio.draft(sent)["result"])
    assert made.pull(studio) == NOTHING | {"accepted": 1, "rejected": 1}


def test_a_broken_annotation_is_refused_and_the_others_come(
    studio: Studio, night: Callable[..., Night]
) -> None:
    made = night(5)
    made.push(studio)
    broken, odd, lost, erased, good = studio.tasks(made.project)
    garbage = region(np.ones((HEIGHT, WIDTH), bool), "car")
    garbage["value"]["rle"] = [1, 2, 3]
    studio.submit(broken, [garbage])
    sizeless = region(np.ones((HEIGHT, WIDTH), bool), "car")
    del sizeless["original_width"]
    studio.submit(odd, [sizeless])
    studio.submit(erased, [region(np.zeros((HEIGHT, WIDTH), bool), "car")])
    for task in (lost, good):
        studio.submit(task, studio.draft(task)["result"])
    draft = f"{made.output}/masks/m/{list(made.masks).index(lost['data']['image']):03d}.png"
    content = storage.read_bytes(draft)
    storage.delete(draft)
    assert made.pull(studio) == NOTHING | {"accepted": 1, "rejected": 1, "refused": 3}
    storage.put(draft, content)
    assert made.pull(studio) == NOTHING | {"accepted": 1, "known": 2, "refused": 2}, "restored, it comes"


def test_what_is_not_of_this_output_is_left_alone(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(1)
    made.push(studio)
    path = f"/api/projects/{studio.project_id(made.project)}/import"
    studio.call("POST", path, [{"data": {"image": "s3://elsewhere/a.png", "segpipe_item_id": "x"}}])
    for task in studio.tasks(made.project):
        studio.submit(task, REJECT)
    assert made.pull(studio) == NOTHING | {"rejected": 1, "foreign": 1}


def test_a_bad_draft_is_left_out_and_named(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(3)
    storage.put(f"{made.output}/masks/m/002.png", b"other bytes")
    pushed = made.push(studio)
    assert (pushed.pushed, pushed.left_out) == (2, 1)
    (reason,) = pushed.not_sent.values()
    assert "002.png is not the mask of the manifest" in reason
    assert len(studio.tasks(made.project)) == 2


def test_odd_classes_and_titles_come_back_as_they_went(studio: Studio, night: Callable[..., Night]) -> None:
    # Label Studio itself must store them unchanged, or the next push would make another project.
    for title in (
        "<b>bold</b> & 'quoted'",
        "a  b {{x}} $y",
        "\N{SNOWMAN} stra\N{LATIN SMALL LETTER SHARP S}e",
    ):
        config = label_config(("<i>road</i>", 'a "b" & c', "100 $", " car ", "{{x}}", "&amp;"))
        with open_label_studio(studio.url, TOKEN) as server:
            made = server.create_project(title, config)
            assert server.projects(title) == [made]
            require_labels(
                made.label_config, ("<i>road</i>", 'a "b" & c', "100 $", " car ", "{{x}}", "&amp;"), title
            )


def test_one_odd_answer_is_named_and_the_others_come(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(4)
    made.push(studio)
    tasks = studio.tasks(made.project)
    for task in tasks[1:]:
        studio.submit(task, studio.draft(task)["result"])
    nested: list[object] = []
    for _ in range(400):
        nested = [nested]
    odd = region(np.ones((HEIGHT, WIDTH), bool), "car") | {"meta": nested}
    del odd["value"]["rle"]
    studio.submit(tasks[0], [odd])
    assert made.pull(studio) == NOTHING | {"accepted": 3, "refused": 1}


def test_the_server_fetches_the_image_from_the_bucket(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(1)
    made.push(studio)
    (task,) = studio.tasks(made.project)
    shown = studio.call("GET", f"/api/tasks/{task['id']}/", resolve_uri="true")["data"]["image"]
    assert shown != task["data"]["image"], "the browser is not given s3://"


def test_a_wrong_token_or_address_is_one_line(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(1)
    wrong = "f" * 40
    with open_label_studio(studio.url, wrong) as server, pytest.raises(ReviewError) as refused:
        pull(made.output, made.project, server)
    assert "refuses the token (401)" in str(refused.value)
    assert wrong not in str(refused.value)
    with (
        open_label_studio("http://127.0.0.1:9", TOKEN) as server,
        pytest.raises(ReviewError, match=r"does not answer"),
    ):
        pull(made.output, made.project, server)


def test_a_personal_access_token_works_too(studio: Studio, night: Callable[..., Night]) -> None:
    made = night(1)
    personal = studio.call("POST", "/api/token/", {})["token"]
    settings = PushSettings(project=made.project)
    with open_label_studio(studio.url, personal) as server:
        assert push(made.output, settings, QueueSettings(), server).pushed == 1
        assert isinstance(pull(made.output, made.project, server), PullSummary)


def test_masks_are_packed_as_the_tools_own_library_does(tmp_path: Path) -> None:
    program = Path(os.environ.get("SEGPIPE_TEST_LABEL_STUDIO", ".venv-studio/bin/label-studio"))
    mask = np.random.default_rng(0).random((37, 53)) > 0.7
    np.save(tmp_path / "mask.npy", mask)
    script = """
import json, sys, numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
mask = np.load(sys.argv[1])
ours = json.load(sys.stdin)
assert np.array_equal(decode_rle(ours).reshape(*mask.shape, 4)[..., 3] > 0, mask)
print(json.dumps(list(map(int, mask2rle(mask.astype(np.uint8) * 255)))))
"""
    done = subprocess.run(
        [program.with_name("python"), "-c", script, tmp_path / "mask.npy"],
        input=str(encode_brush(mask)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = encode_brush(mask), json.loads(done.stdout)
    assert theirs[: len(ours)] == ours
    assert set(theirs[len(ours) :]) <= {0}, "padding"
