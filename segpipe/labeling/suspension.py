"""A suspended policy accepts nothing: what is labelled under it goes to review until the next calibration.

Whether it is suspended is asked before each part is committed: a suspension counts from the next shard on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from segpipe.labeling.rows import sent_to_review
from segpipe.manifests.policies import is_suspended, suspension_uri

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.manifests.schema import Row

logger = logging.getLogger(__name__)


def find_suspension(output: str, policy: Policy | None) -> bool:
    """Whether the policy is suspended in OUTPUT; says so in the log, with the remedy. StorageError."""
    if policy is None or policy.threshold is None or not is_suspended(output, policy.policy_id):
        return False
    logger.warning(
        "policy %s is suspended: the audit has shown that its promise is broken; all masks go to review "
        "until segpipe calibrate, on images like these, makes another; evidence: %s",
        policy.policy_id,
        suspension_uri(output, policy.policy_id),
    )
    return True


def after_suspension(rows: Iterable[Row], suspended: bool) -> list[Row]:
    """The rows as they are, or, under a suspended policy, all that have a mask sent to review."""
    if not suspended:
        return list(rows)
    return [row if row.decision == "failed" else sent_to_review(row, "suspended") for row in rows]
