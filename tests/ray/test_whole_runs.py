"""A whole run, by the engine of one process and by Ray's workers: the same promises."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segpipe import storage
from segpipe.confidence.drift import detect_drift
from segpipe.config import VerifySettings
from segpipe.errors import RunError
from segpipe.images import decode_image, decode_mask
from segpipe.labeling import ledger as ledger_module
from segpipe.manifests.store import read_manifest
from segpipe.manifests.verification import verify

pytestmark = pytest.mark.ray


class KilledError(BaseException):
    """Ends a run as a kill would: nothing in between may catch it."""


def rows(output: str) -> list[dict[str, Any]]:
    return sorted(read_manifest(output).to_pylist(), key=lambda row: row["image_uri"])


def assert_rows(bench: Any) -> list[dict[str, Any]]:
    """One row per image, and behind each a mask that hashes to what it says."""
    found = rows(bench.output)
    assert [row["image_uri"] for row in found] == bench.uris
    for row in found:
        if row["mask_uri"]:
            data = storage.read_bytes(row["mask_uri"])
            assert hashlib.sha256(data).hexdigest() == row["mask_sha256"]
    return found


def assert_whole(bench: Any) -> list[dict[str, Any]]:
    """As assert_rows, and nothing for verify to find."""
    found = assert_rows(bench)
    assert verify(bench.output, VerifySettings()).findings == {}
    return found


def test_a_run_labels_every_image(either, policy_with) -> None:
    summary = either.label(policy_with(0.7))
    found = assert_whole(either)
    for row in found:
        pixels = decode_image(storage.read_bytes(row["image_uri"]))
        mask = decode_mask(storage.read_bytes(row["mask_uri"]))
        np.testing.assert_array_equal(mask, pixels.mean(axis=2) > 127)
        assert row["discriminator_score"] == pytest.approx(pixels.mean() / 255)
    decisions = Counter(row["decision"] for row in found)
    assert (summary.planned, summary.accepted, summary.review) == (
        24,
        decisions["accepted"],
        decisions["review"],
    )
    assert summary.images_per_second > 0
    assert summary.bottleneck
    parts = [key.rpartition("/")[2] for key in _keys(either.output, "manifests")]
    assert parts == [f"r1-{shard:05d}.parquet" for shard in range(6)]
    assert either.label(policy_with(0.7), None).planned == 0


def _keys(output: str, folder: str) -> list[str]:
    return [found.key for found in storage.list_objects(f"{output}/{folder}")]


def test_broken_images_become_rows(either) -> None:
    Path(either.uris[3]).write_bytes(b"<html>")
    Path(either.uris[9]).unlink()
    summary = either.label()
    assert summary.reasons["unreadable"] == 1
    assert summary.failed == 1
    assert summary.planned == 23


def test_a_model_that_fails_on_everything_ends_the_run_and_a_resume_labels_the_rest(either) -> None:
    for number in range(200):
        (either.orders / f"fail-{number:03d}").touch()
    with pytest.raises(RunError, match=r"images failed.*device lost.*resume"):
        either.label(max_failure_rate=0.05)
    for order in either.orders.glob("fail-*"):
        order.unlink()
    done = len(rows(either.output))
    assert done < 24
    assert either.label(max_failure_rate=1.0).planned == 24
    assert [row["image_uri"] for row in rows(either.output)] == either.uris


def test_a_drifted_run_goes_to_review_from_its_first_part_on(either, policy_with) -> None:
    policy = policy_with(2.0, 2.0, 3.0)
    summary = either.label(policy, shard_images=12)
    found = assert_whole(either)
    assert summary.reasons == {"drift": 24}
    tested = [row["discriminator_score"] for row in found if row["shard"] == 0]
    assert summary.drift == detect_drift(tested, policy, 0.0001)


@pytest.mark.parametrize("killed_at", [0, 1])
def test_a_run_killed_at_a_commit_resumes_under_its_verdict(
    either, policy_with, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    commit = ledger_module.commit_part

    def killed(out, run_date, run_id, shard, table) -> Any:
        if shard == killed_at:
            raise KilledError
        return commit(out, run_date, run_id, shard, table)

    policy = policy_with(2.0, 2.0, 3.0)
    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "commit_part", killed)
        with pytest.raises(KilledError):
            either.label(policy, shard_images=12)
    summary = either.label(policy, shard_images=12)
    assert (summary.planned, summary.review) == (24, 24)
    assert_whole(either)


def test_a_policy_that_is_suspended_in_mid_run_accepts_nothing_more(
    either, policy_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []
    found = ledger_module.find_suspension

    def suspended_later(output: str, policy: Any) -> bool:
        commits.append(1)
        return len(commits) > 2 or found(output, policy)

    monkeypatch.setattr(ledger_module, "find_suspension", suspended_later)
    summary = either.label(policy_with(0.01))
    assert summary.reasons["suspended"] == 16
    assert summary.reasons["confident"] == 8
    assert_rows(either)


def test_confidence_maps_are_written_beside_the_masks(either) -> None:
    either.label(confidence_maps=True)
    for row in assert_whole(either):
        assert storage.exists(row["confidence_map_uri"])


def test_what_is_written_down_says_which_engine(either) -> None:
    either.label()
    record = json.loads(storage.read_bytes(f"{either.output}/runs/r1/run.json"))
    assert record["settings"]["engine"] == either.settings.engine


def test_a_run_begun_by_one_engine_is_resumed_by_the_other(
    either, monkeypatch: pytest.MonkeyPatch, shared_ray
) -> None:
    commit = ledger_module.commit_part

    def killed(out, run_date, run_id, shard, table) -> Any:
        if shard == 2:
            raise KilledError
        return commit(out, run_date, run_id, shard, table)

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "commit_part", killed)
        with pytest.raises(KilledError):
            either.label()
    other = {"local": "ray", "ray": "local"}[either.settings.engine]
    settings = either.settings.model_copy(update={"engine": other, "workers": "auto"})
    assert replace(either, settings=settings).label().review == 24
    assert_whole(either)
