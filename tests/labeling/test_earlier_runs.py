"""What the runs before this one tell of how much runs differ: read from the manifest as it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited_output import AuditedOutput, audited_output

from segpipe.config import LabelSettings
from segpipe.labeling import decisions
from segpipe.labeling.earlier_runs import MOST_RUNS, earlier_scores
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def labelled(tmp_path: Path) -> AuditedOutput:
    return audited_output(str(tmp_path / "out"))


def run_of(out: AuditedOutput, number: int, scores: list[float | None], **values: Any) -> list[Row]:
    """A run on the day of this number."""
    named = {"run_id": f"run{number}", "shard": 0, "labeled_at": NOON + timedelta(number)} | values
    rows = [
        row
        for score in scores
        for row in out.rows(1, discriminator_score=score, audit=False, inclusion_probability=0.0, **named)
    ]
    table = rows_table(rows, ["a", "b"])
    assert commit_part(out.output, named["labeled_at"].date(), named["run_id"], named["shard"], table)
    return rows


def test_the_first_shards_of_the_policys_runs_in_the_order_of_their_stamps(labelled: AuditedOutput) -> None:
    run_of(labelled, 2, [0.3, None])
    run_of(labelled, 1, [0.1, 0.2])
    run_of(labelled, 3, [0.9])
    run_of(labelled, 3, [0.8], shard=1)
    run_of(labelled, 4, [0.7], policy_id="another")
    run_of(labelled, 5, [0.6], decision="review", reason="drift")
    run_of(labelled, 6, [0.5])
    found = earlier_scores(labelled.output, labelled.policy, "run6")
    assert [[score for _, score in run] for run in found] == [[0.1, 0.2], [0.3], [0.9]]
    assert found[0][0][0].startswith("/bucket/")


def test_of_many_runs_the_last(labelled: AuditedOutput) -> None:
    for number in range(MOST_RUNS + 3):
        run_of(labelled, number, [number / 100])
    found = earlier_scores(labelled.output, labelled.policy, "another")
    assert [score for ((_, score),) in found] == [number / 100 for number in range(3, MOST_RUNS + 3)]


def test_an_output_without_a_run(tmp_path: Path, labelled: AuditedOutput) -> None:
    assert earlier_scores(str(tmp_path / "empty"), labelled.policy, "r") == []


def test_small_runs_off_in_the_same_way_are_noticed_together(labelled: AuditedOutput) -> None:
    """Ten runs of three images, all among the lowest tenth of the calibration's scores."""
    verdicts = []
    for number in range(10):
        rows = run_of(labelled, number, [0.02, 0.05, 0.08])
        earlier = earlier_scores(labelled.output, labelled.policy, f"run{number}")
        verdicts.append(decisions.tested_for_drift(rows, labelled.policy, LabelSettings(), earlier))
    assert verdicts[0] is not None
    assert verdicts[0].p_value is None, "three scores alone are too few"
    assert verdicts[-1] is not None
    assert verdicts[-1].alarm
    assert verdicts[-1].earlier_runs == 9


def test_each_group_is_tested_with_its_own_runs_before(tmp_path: Path) -> None:
    out = audited_output(str(tmp_path / "out"), cameras=2)
    random = np.random.default_rng(3)
    earlier = [
        [
            (f"/cam{camera}/{n}.jpg", float(score))
            for camera in (0, 1)
            for n, score in enumerate(random.random(3))
        ]
        for _ in range(9)
    ]
    low = [(uri, 0.05) if "cam1" in uri else (uri, score) for uri, score in earlier[0]]
    rows = [out.rows(1, image_uri=uri, discriminator_score=score)[0] for uri, score in low]
    before = [[(uri, 0.05) if "cam1" in uri else (uri, score) for uri, score in run] for run in earlier]
    found = decisions.groups_tested_for_drift(rows, out.policy, LabelSettings(), before)
    assert {group: drift.alarm for group, drift in found.items()} == {"cam0": False, "cam1": True}
    assert {drift.earlier_runs for drift in found.values()} == {9}
