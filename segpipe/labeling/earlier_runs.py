"""The scores of the runs before this one, which tell how much runs under a policy differ."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow.dataset as ds

from segpipe.manifests.damage import naming_the_damaged
from segpipe.manifests.parts import manifests_root
from segpipe.manifests.policies import family_ids
from segpipe.manifests.store import scan_manifest
from segpipe.storage.retry import explained

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

MOST_RUNS = 60  # of the last ones
_COLUMNS = ("run_id", "image_uri", "discriminator_score", "labeled_at")

Scored = list[tuple[str, float]]


def earlier_scores(output: str, policy: Policy, run_id: str) -> list[Scored]:
    """The first shard, as (image URI, raw score), of each run under the policy but this one, oldest first.

    Runs under what it has grown from, or what has grown from the same, count too: only the threshold differs.

    Without the images that were taken for drifted: all of a run, or those of a group. StorageError.
    """
    of_policy = ds.field("policy_id").isin(family_ids(output, policy, MOST_RUNS))
    first = ds.field("shard") == 0
    scored = ds.field("discriminator_score").is_valid() & (ds.field("reason") != "drift")
    of_others = ds.field("run_id") != run_id
    runs: defaultdict[str, Scored] = defaultdict(list)
    labelled: dict[str, datetime] = {}
    with explained(manifests_root(output)), naming_the_damaged(output):
        for batch in scan_manifest(output, _COLUMNS, of_policy & first & scored & of_others):
            for row in batch.to_pylist():
                name = row["run_id"]
                runs[name].append((row["image_uri"], row["discriminator_score"]))
                labelled[name] = max(labelled.get(name, row["labeled_at"]), row["labeled_at"])
    kept = sorted(runs, key=lambda name: (labelled[name], name))
    return [runs[name] for name in kept[-MOST_RUNS:]]
