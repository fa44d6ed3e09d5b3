"""The demo's own parts; the whole of it runs as `make demo`."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from demo import demo, scenes
from segpipe import storage
from segpipe.errors import RunError
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

TRUTH = np.repeat(np.array([0, 1], np.uint8), 50).reshape(10, 10)  # upper half sky, lower half building


def _row(places: demo.Places, key: str, decision: Any, mask: np.ndarray | None) -> Row:
    mask_uri = None
    if mask is not None:
        mask_uri = f"{places.output}/masks/m/{key}.png"
        storage.put(mask_uri, encode_mask(mask, class_palette(len(scenes.CLASSES))))
    reasons: dict[str, Any] = {"accepted": "confident", "review": "low_confidence", "failed": "unreadable"}
    return Row(
        image_uri=f"{places.bucket}/{key}",
        image_etag="e",
        image_bytes=1,
        image_width=10,
        image_height=10,
        mask_uri=mask_uri,
        mask_sha256=None,
        decision=decision,
        reason=reasons[decision],
        confidence=None,
        discriminator_score=None,
        class_fractions=None,
        class_confidences=None,
        audit=False,
        inclusion_probability=0.0,
        model_id="m",
        policy_id=None,
        run_id="r",
        shard=0,
        labeled_at=datetime(2026, 1, 1, tzinfo=UTC),
        error=None,
    )


def test_compare_counts_bad_masks_by_the_truth_not_by_the_score(tmp_path: Path) -> None:
    places = demo.Places(tmp_path)
    half_wrong = np.where(np.arange(100).reshape(10, 10) < 25, 1, TRUTH).astype(np.uint8)
    rows = [
        _row(places, "a/1.jpg", "accepted", TRUTH),
        _row(places, "a/2.jpg", "accepted", 1 - TRUTH),
        _row(places, "a/3.jpg", "review", half_wrong),
        _row(places, "broken/x.jpg", "failed", None),
    ]
    commit_part(places.output, date(2026, 1, 1), "r", 0, rows_table(rows, scenes.CLASSES))
    accepted, review, failed = demo.compare(places, {f"a/{n}.jpg": TRUTH for n in (1, 2, 3)})
    assert accepted == demo.Outcome("accepted", 2, 0.5, 1)
    # Sky: 25 right of 50; building: 50 right of 75; their mean is 7/12.
    assert review.mean_iou == pytest.approx(7 / 12)
    assert (review.images, review.bad) == (1, int(demo.MIN_IOU > 7 / 12))
    assert failed == demo.Outcome("failed", 1, None, 0)


# Where each of 100 masks is bad with a chance of 5%, 9 and more are in 6.3% of cases, 10 in 2.8%.
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (5, "kept"),
        (6, "nothing against the promise, as up to 9"),
        (9, "nothing against"),
        (10, "not kept this time"),
    ],
)
def test_verdict_admits_a_broken_promise_and_knows_chance(bad: int, said: str) -> None:
    verdict = demo._verdict(demo.Outcome("accepted", 100, 0.8, bad))
    assert f"{bad} of 100" in verdict
    assert verdict.split(": ")[1].startswith(said)


def test_verdict_without_accepted_masks_divides_by_nothing() -> None:
    assert "nothing was accepted" in demo._verdict(demo.Outcome("accepted", 0, None, 0))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "bucket" / "photo.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    result = CliRunner().invoke(demo.main, ["--workdir", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds other files" in result.output
    assert precious.read_bytes() == b"mine"


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    workdir = tmp_path / "new"
    places = demo._fresh_places(workdir)
    (Path(places.output) / "manifests").mkdir(parents=True)
    assert demo._fresh_places(workdir) == places
    assert not Path(places.output).exists()
    with pytest.raises(RunError, match="holds other files"):
        demo._fresh_places(tmp_path)


def test_next_commands_start_an_installed_program(tmp_path: Path) -> None:
    commands = [shlex.split(command) for command in demo._next_commands(demo.Places(tmp_path))]
    assert len(commands) == 3
    assert {Path(command[0]).resolve() for command in commands} == {
        Path(sys.executable).with_name("segpipe").resolve()
    }


def test_calibration_and_bucket_have_the_same_mix() -> None:
    """The promise holds for images like the calibration images only."""
    good, degraded = demo.CALIBRATION
    assert demo.BUCKET[0] / demo.BUCKET[1] == pytest.approx(good / degraded)
