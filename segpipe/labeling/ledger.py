"""What exists once per run, whoever works through its shards: the gate, the suspension and the commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from segpipe.confidence.drift import Drift
from segpipe.confidence.policy import to_json
from segpipe.labeling.claim import Claim
from segpipe.labeling.decisions import (
    Rules,
    decide,
    find_suspended_groups,
    find_suspension,
    groups_drifted,
    groups_tested_for_drift,
    has_drifted,
    log_drift,
    log_group_drift,
    tested_for_drift,
)
from segpipe.labeling.earlier_runs import earlier_scores
from segpipe.labeling.items import FinishedShard, ImageLabeler
from segpipe.labeling.plan import RunPlan, finished_parts
from segpipe.labeling.totals import read_totals, to_metadata
from segpipe.manifests.chain import Tip, find_tip, link_after, link_metadata
from segpipe.manifests.policies import keep_policy, policy_of_run
from segpipe.manifests.schema import rows_table
from segpipe.manifests.store import commit_part, part_uri

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings

logger = logging.getLogger(__name__)


@dataclass
class Ledger:
    """The state of a run that is going on.

    drift: the verdict on its first shard, None before it and where nothing is at stake; drift_by_group: those
    on the groups that have certificates of their own, none before it and without such; suspended: whether
    the policy was found suspended, suspended_groups: which certificates of its groups were, which stays so to
    the run's end; tip: the part committed last.
    """

    plan: RunPlan
    policy: Policy | None
    classes: tuple[str, ...]
    settings: LabelSettings
    claim: Claim
    drift: Drift | None
    tip: Tip | None
    suspended: bool = False
    drift_by_group: Mapping[str, Drift] = field(default_factory=dict)
    suspended_groups: frozenset[str] = frozenset()

    def commit(self, shard: FinishedShard) -> None:
        """Decide about the shard's masks and create its part, once the run surely holds its claim.

        Raises RunError when the claim is lost, PolicyError, StorageError.
        """
        if self.drift is None and not self.drift_by_group:
            self._test_drift(shard)
        self.suspended = self.suspended or find_suspension(self.plan.output, self.policy)
        self.suspended_groups |= find_suspended_groups(self.plan.output, self.policy, self.suspended_groups)
        rules = Rules(
            self.policy,
            self.settings.audit_share,
            has_drifted(self.drift, self.settings),
            self.suspended,
            groups_drifted(self.drift_by_group, self.settings),
            self.suspended_groups,
            self.settings.from_scratch_share,
        )
        rows = decide(shard.rows, rules)
        self.claim.require_newest()
        link = link_after(self.tip)
        timing = (shard.seconds, shard.legs, shard.threads)
        metadata = to_metadata(*timing, self.drift, self.drift_by_group) | link_metadata(link)
        digest = _commit(self.plan, shard.shard, rows_table(rows, self.classes, metadata))
        self.tip = Tip(link.number, digest) if digest else self._committed_meanwhile(shard.shard)

    def _committed_meanwhile(self, shard: int) -> Tip | None:
        logger.warning(
            "shard %d of run %s had been committed meanwhile: its part stays", shard, self.plan.run_id
        )
        uri = part_uri(self.plan.output, self.plan.run_date, self.plan.run_id, shard)
        return find_tip([uri]) or self.tip

    def _test_drift(self, first: FinishedShard) -> None:
        if self.policy is None or not (self.policy.accepts_some or self.policy.growth):
            return
        earlier = earlier_scores(self.plan.output, self.policy, self.plan.run_id)
        self.drift = tested_for_drift(first.rows, self.policy, self.settings, earlier)
        log_drift(self.drift, self.plan.run_id, self.settings)
        self.drift_by_group = groups_tested_for_drift(first.rows, self.policy, self.settings, earlier)
        log_group_drift(self.drift_by_group, self.plan.run_id, self.settings)


def open_ledger(plan: RunPlan, labeler: ImageLabeler, settings: LabelSettings, claim: Claim) -> Ledger:
    """The ledger of a run, with what its committed parts say; keeps the policy in OUTPUT. StorageError."""
    parts = finished_parts(plan)
    drift, drift_by_group = _committed_drift(parts, plan, settings)
    tip = find_tip(uri for _, uri in parts)
    policy = policy_of_run(plan.output, labeler.policy, plan.policy_id)
    for kept in (labeler.policy, policy):  # also the one that a grown policy has grown from
        if kept is not None:
            keep_policy(plan.output, kept.policy_id, to_json(kept))
    return Ledger(
        plan,
        policy,
        tuple(labeler.classes),
        settings,
        claim,
        drift,
        tip,
        drift_by_group=drift_by_group,
    )


def _committed_drift(
    parts: list[tuple[int, str]], plan: RunPlan, settings: LabelSettings
) -> tuple[Drift | None, Mapping[str, Drift]]:
    """The verdicts that the run's first part was committed with; none when there is no part or no verdict."""
    if not parts:
        return None, {}
    first = read_totals(min(parts)[1])
    log_drift(first.drift, plan.run_id, settings)
    log_group_drift(first.drift_by_group, plan.run_id, settings)
    return first.drift, first.drift_by_group


def _commit(plan: RunPlan, shard: int, table: pa.Table) -> str | None:
    """The SHA-256 of the shard's new part; None when there is one already."""
    # In a thread, since a signal interrupts the main one only: a part that is under way when the run is told
    # to stop lands before the claim is let go; afterwards it could double another run's rows.
    with ThreadPoolExecutor(1) as committer:
        return committer.submit(commit_part, plan.output, plan.run_date, plan.run_id, shard, table).result()
