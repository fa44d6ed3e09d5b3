"""What earlier versions have written loads, resumes, answers and routes as it did (contract C13).

Each test has the tree of a version in memory as that version left it, and what the version answered about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import old_state as old
import pytest
from old_state import CPU, LINE, OUTPUT, RAW, ROOT, asked, decisions, label, objects_below, said, told

from demo.scenes import write_labelled
from segpipe import load_model

VERSIONS = sorted(folder.name for folder in old.FIXTURES.iterdir())
SCORE_NOISE, PIXEL_NOISE = 0.04, 0.03  # of other processors, whose precision may be lower; pixels as a share
AUDITED = {OUTPUT: 0, old.DISTRUSTED[1]: 3}  # exit status


@dataclass(frozen=True)
class Version:
    """What a version has left below memory://old, by path, and its answers."""

    tree: Mapping[str, bytes]
    answers: Mapping[str, Any]


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    answers = json.loads((old.FIXTURES / request.param / "expected.json").read_text())
    return Version(old.read_tree(request.param), answers)


@pytest.fixture
def answers(version: Version) -> Iterator[Mapping[str, Any]]:
    """The version's answers, with its tree in memory."""
    old.put_tree(version.tree)
    yield version.answers
    old.remove_tree()


def check_same(found: Any, expected: Any, where: str = "") -> None:
    """All that is expected is found; what newer versions say beside it is theirs."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{where} lacks {name}"
            check_same(found[name], value, f"{where} {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            check_same(found[number], value, f"{where} {number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9), where
    else:
        assert found == expected, where


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [old.FIRST, old.SECOND])
def test_a_bundle_keeps_its_id_its_policy_and_its_masks(answers: Mapping[str, Any], model: str) -> None:
    found, expected = old.model_answer(model), dict(answers["models"][model])
    images = expected.pop("images")
    check_same(found, expected)
    for key, before in images.items():
        now = found["images"][key]
        assert now["score"] == pytest.approx(before["score"], abs=SCORE_NOISE), key
        moved = sum(abs(n - b) for n, b in zip(now["pixels"], before["pixels"], strict=True)) / 2
        assert moved <= PIXEL_NOISE * sum(before["pixels"]), key


def test_a_line_stands_for_its_newest_model_and_can_go_back(answers: Mapping[str, Any]) -> None:
    assert old.line_answer() == answers["line"]
    assert answers["line"][0] != answers["line"][1]


def test_a_line_compares_its_model_with_the_next_candidate(
    answers: Mapping[str, Any], tmp_path: Path
) -> None:
    write_labelled(str(tmp_path), "test", 30, 0, np.random.default_rng(3), height=32, width=64)
    options = ("--data", str(tmp_path), "--split", "test", *CPU)
    found = told("promote", "--line", LINE, "--candidate", old.FIRST, *options)
    assert (found["promoted"], found["replaces"], found["model_id"]) == (False, *answers["line"][:2])
    assert (found["comparison"]["n"], found["comparison"]["comparison_number"]) == (30, 1)
    assert len(objects_below(f"{LINE}/promotions")) == 2


@pytest.mark.parametrize("model", [old.FIRST, old.SECOND])
def test_a_bundle_remembers_what_it_has_learnt_from(
    answers: Mapping[str, Any], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promise = ("--min-iou", "0.1", "--max-bad-fraction", "0.5", "--confidence", "0.5")
    calibrate = ("calibrate", "--model", model, "--data", old.STREETS, *promise, *CPU)
    said(*calibrate, "--split", "learnt", status=1)
    complaint = capsys.readouterr().err
    assert "1 image among the images the model was trained on" in complaint
    assert "learnt/images/00003.png" in complaint
    policy = told(*calibrate, "--split", "calibration")
    assert (policy["model_id"], policy["n_images"]) == (answers["models"][model]["model_id"], 32)


def test_a_stopped_training_goes_on(answers: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said(*("train", *old.STOPPED_TRAINING, "--seed", "1", "--resume"), status=1)
    assert "seed differ from the stopped training" in capsys.readouterr().err
    result = told("train", *old.STOPPED_TRAINING, "--resume")
    assert "resuming after epoch 2 of 4" in capsys.readouterr().err
    assert result["epochs"] == 4
    assert load_model(old.STOPPED, "cpu").model_id == result["model_id"]
    assert not any("checkpoint" in key for key in objects_below(old.STOPPED))


# --- labelling ----------------------------------------------------------------------------------------------


def test_a_policy_routes_the_same_images_the_same_way(answers: Mapping[str, Any]) -> None:
    assert old.anew_answer() == answers["anew"]
    assert {row["decision"] for row in answers["anew"].values()} == {"accepted", "review", "failed"}


def test_a_half_finished_run_ends_with_one_row_per_image(answers: Mapping[str, Any]) -> None:
    before = decisions(OUTPUT, "night-2")
    planned = told("plan", RAW, OUTPUT, "--model", LINE)
    assert (planned["images"], planned["already_done"]) == (len(answers["pending"]), 21)
    summary = label((RAW, OUTPUT), "night-2")
    after = decisions(OUTPUT, "night-2")
    assert after == answers["resumed"]
    assert summary["planned"] == len(after) == len(before) + len(answers["pending"])
    assert summary["accepted"] + summary["review"] + summary["failed"] == len(after)
    assert sorted(after.keys() - before.keys()) == answers["pending"]
    doubles = "SELECT image_uri FROM labels GROUP BY image_uri, model_id HAVING count(*) > 1"
    assert asked(OUTPUT, doubles) == []


def test_what_was_finished_before_a_resume_is_not_touched(answers: Mapping[str, Any]) -> None:
    before = objects_below(OUTPUT)
    pending = [uri.removeprefix(f"{RAW}/") for uri in answers["pending"]]
    label((RAW, OUTPUT), "night-2")
    after = objects_below(OUTPUT)
    changed = [key for key, content in before.items() if after.get(key) != content]
    its_own = re.compile("|".join([r"/claims/", r"/runs/night-2/run\.json", *map(re.escape, pending)]))
    assert [key for key in changed if not its_own.search(key)] == []
    assert len(after) > len(before)


def test_nothing_is_left_to_do_after_a_resume(answers: Mapping[str, Any]) -> None:
    label((RAW, OUTPUT), "night-2")
    parts = objects_below(f"{OUTPUT}/manifests")
    assert told("plan", RAW, OUTPUT, "--model", LINE)["images"] == 0
    assert label((RAW, OUTPUT), "night-3")["planned"] == 0
    assert label((RAW, OUTPUT), "night-2")["planned"] == 10  # the same run once more
    assert objects_below(f"{OUTPUT}/manifests") == parts


def test_a_run_under_a_drift_alarm_goes_on_under_it(answers: Mapping[str, Any]) -> None:
    assert old.resumed_answer(old.DRIFTED, "drifted") == answers["resumed_after_drift"]


def test_a_suspended_policy_stays_suspended(answers: Mapping[str, Any]) -> None:
    source, output = old.DISTRUSTED
    accepted = [uri for uri, row in answers["anew"].items() if row["decision"] == "accepted"]
    for number, uri in enumerate(accepted):
        old.put(f"{source}/new/{number}.jpg", objects_below(RAW)[uri.removeprefix(f"{ROOT}/")])
    assert label((source, output), "next")["reasons"] == {"suspended": len(accepted)}


# --- questions ----------------------------------------------------------------------------------------------


def test_the_views_show_the_same_rows(answers: Mapping[str, Any]) -> None:
    check_same(old.views(OUTPUT), answers["views"])


def test_compaction_goes_on_where_it_was(answers: Mapping[str, Any]) -> None:
    kept = objects_below(f"{OUTPUT}/manifests_compacted")
    done = told("compact", OUTPUT, "--min-parts", "2")
    assert (done["files"], done["parts"], done["total_files"], done["waiting_parts"]) == (1, 2, 2, 0)
    assert kept.items() < objects_below(f"{OUTPUT}/manifests_compacted").items()
    check_same(old.views(OUTPUT), answers["views"])


def test_the_compacted_copies_are_what_is_read(answers: Mapping[str, Any]) -> None:
    """A part that a copy holds is not opened, and must be there all the same: it is the truth."""
    (copied,) = [key for key in objects_below(f"{OUTPUT}/manifests") if "night-0" in key]
    old.put(f"{ROOT}/{copied}", b"no Parquet")
    check_same(old.views(OUTPUT), answers["views"])


def test_what_people_decided_holds(answers: Mapping[str, Any]) -> None:
    verdicts = "SELECT verdict, count(*) AS n FROM reviews GROUP BY verdict ORDER BY verdict"
    found = {row["verdict"]: row["n"] for row in asked(OUTPUT, verdicts)}
    assert found == {"accepted": 2, "corrected": 4, "rejected": 1, "skipped": 1}
    masks = asked(OUTPUT, "SELECT mask_uri, mask_sha256 FROM accepted ORDER BY mask_uri")
    stored = {f"{ROOT}/{key}": hashlib.sha256(content) for key, content in objects_below(OUTPUT).items()}
    assert {row["mask_uri"]: row["mask_sha256"] for row in masks} == {
        row["mask_uri"]: stored[row["mask_uri"]].hexdigest() for row in masks
    }
    assert sum("/reviews/masks/" in row["mask_uri"] for row in masks) == 4


def test_the_queue_asks_the_same_questions(answers: Mapping[str, Any]) -> None:
    assert [item["item_id"] for item in told("review", "list", OUTPUT)["items"]] == answers["queue"]


def test_the_accepted_masks_can_be_exported(answers: Mapping[str, Any]) -> None:
    said("export", OUTPUT, f"{ROOT}/exported", "--format", "indexed-png")
    listed = objects_below(f"{ROOT}/exported")["exported/images.csv"].decode().splitlines()
    assert len(listed) == 1 + len(answers["views"]["accepted"])


@pytest.mark.parametrize("output", AUDITED)
def test_the_audits_say_the_same(answers: Mapping[str, Any], output: str) -> None:
    """But for what they prove: that is weighed by another rule now."""
    found = {audit["policy_id"]: audit for audit in told("audit", output, status=AUDITED[output])}
    expected = {audit["policy_id"]: audit for audit in answers["audits"][output]}
    weighed = ("lower", "upper", "p_value", "more_needed")
    assert all(name in audit for audit in found.values() for name in weighed)
    check_same(
        found,
        {
            policy_id: {name: value for name, value in audit.items() if name not in weighed}
            for policy_id, audit in expected.items()
        },
    )


@pytest.mark.parametrize(
    ("output", "run_id"),
    [(OUTPUT, "night-0"), (OUTPUT, "night-1"), (OUTPUT, "night-2"), (old.DISTRUSTED[1], "distrusted")],
)
def test_a_run_can_be_looked_at(answers: Mapping[str, Any], output: str, run_id: str) -> None:
    said("report", output, "--run", run_id, "--model", LINE)
    folder = f"{output}/runs/{run_id}"
    page = objects_below(folder)[f"{folder.removeprefix(f'{ROOT}/')}/report.html"].decode()
    assert run_id in page
    assert "<img" in page
