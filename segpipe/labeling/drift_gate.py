"""The drift gate: a run whose scores no longer look like the calibration's goes to review as a whole.

The run's first shard is tested before its part is committed. The verdict lies in the metadata of every part,
so that it holds for the whole run, resumes included, and no part is ever changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from segpipe.confidence.drift import Drift, detect_drift
from segpipe.labeling.rows import sent_to_review

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings
    from segpipe.manifests.schema import Row

logger = logging.getLogger(__name__)

_DRIFT = "segpipe.drift"


def judge(first_shard: Iterable[Row], policy: Policy | None, settings: LabelSettings) -> Drift | None:
    """Test the scores of a run's first shard; None where nothing is accepted, so that nothing is at stake."""
    if policy is None or policy.threshold is None:
        return None
    scores = [row.discriminator_score for row in first_shard if row.discriminator_score is not None]
    return detect_drift(scores, policy, settings.drift_false_alarm_rate)


def say(drift: Drift | None, run_id: str, settings: LabelSettings) -> None:
    """Log the verdict; with an alarm, what it leads to and what to do about it."""
    if drift is None:
        return
    if drift.p_value is None:
        logger.info("run %s is not tested for drift: %d scores are too few", run_id, drift.n_scores)
    elif drift.alarm:
        logger.warning(
            "drift: the images of run %s are not like the calibration images: p = %.2g over %d scores, alarm "
            "at %g; %s; look at the images, recalibrate or retrain",
            run_id,
            drift.p_value,
            drift.n_scores,
            drift.false_alarm_rate,
            "masks are accepted as usual" if settings.drift_warn_only else "all masks go to review",
        )
    else:
        logger.info("run %s shows no drift: p = %.2g over %d scores", run_id, drift.p_value, drift.n_scores)


def after_gate(row: Row, drift: Drift | None, settings: LabelSettings) -> Row:
    """The row as routed, or sent to review for drift; a failed row stays failed."""
    passes = drift is None or not drift.alarm or settings.drift_warn_only
    return row if passes or row.decision == "failed" else sent_to_review(row, "drift")


def to_metadata(drift: Drift | None) -> dict[str, str]:
    """The verdict as a part's metadata."""
    return {_DRIFT: json.dumps(None if drift is None else asdict(drift))}


def from_metadata(metadata: Mapping[bytes, bytes]) -> Drift | None:
    """The verdict in a part's metadata; None when there was no test, or in a part of an older version."""
    content = json.loads(metadata.get(_DRIFT.encode(), b"null"))
    return None if content is None else Drift(**content)
