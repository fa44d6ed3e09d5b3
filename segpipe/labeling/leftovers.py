"""What abandoned runs leave in OUTPUT, and taking it away.

Only plans without a part, superseded claims and unfinished files go, among them those of plans whose planner
was killed. Manifest parts, their compacted copies, masks, and the plan of any run that committed a part stay,
since they are the record of what was done.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.labeling.claim import delete_superseded, hold_claim, is_claimed
from segpipe.labeling.plan import RunPlan, finished_parts
from segpipe.labeling.run_record import delete_run, find_orphans, list_runs, load_header

UNFINISHED_AFTER = timedelta(days=1)  # no write of one file takes a day
_CLEANUP = "cleanup"
_CLAIM_SECONDS = 60.0


@dataclass(frozen=True)
class Removed:
    """What was removed from an output: ids of runs without a part, and how many old claims and files.

    damaged names the runs whose plan cannot be read; they are left as they are.
    """

    output: str
    runs: tuple[str, ...]
    claims: int
    unfinished_files: int
    damaged: tuple[str, ...]


def remove_leftovers(output: str, older_than: timedelta, now: datetime) -> Removed:
    """Remove what runs planned longer than `older_than` before `now` have left without committing a part.

    A run that is labelling, or that has committed a part and can be resumed, is not touched, nor is any plan
    of a model that is labelling right now. Raises StorageError when OUTPUT cannot be read or written.
    """
    output = storage.normalise(output)
    abandoned, damaged = _abandoned_runs(output, now.astimezone(UTC) - older_than)
    runs: list[str] = []
    for model_id, plans in groupby(abandoned, key=lambda plan: plan.model_id):
        runs += _remove_plans(output, model_id, list(plans))
    claims = sum(delete_superseded(output, model_id) for model_id in _claimed_models(output))
    n_files = _remove_orphans(output) + len(storage.delete_unfinished(output, now - UNFINISHED_AFTER))
    return Removed(output, tuple(runs), claims, n_files, damaged)


def _abandoned_runs(output: str, planned_before: datetime) -> tuple[list[RunPlan], tuple[str, ...]]:
    """The runs without a part, by model, as plans without their table; and those whose plan is damaged."""
    abandoned, damaged = [], []
    for run_id in list_runs(output):
        try:
            plan = load_header(output, run_id)
        except RunError:
            damaged.append(run_id)
            continue
        if plan is not None and plan.created_at < planned_before and not finished_parts(plan):
            abandoned.append(plan)
    return sorted(abandoned, key=lambda plan: (plan.model_id, plan.run_id)), tuple(damaged)


def _remove_plans(output: str, model_id: str, plans: Iterable[RunPlan]) -> list[str]:
    """Remove the plans under the model's claim, so that none is taken up meanwhile; none if it is in use."""
    if is_claimed(output, model_id, datetime.now(UTC)):
        return []
    with hold_claim(output, model_id, _CLEANUP, _CLAIM_SECONDS) as claim:
        removed = []
        for plan in plans:
            if _is_there(plan) and not finished_parts(plan):  # both as long as the claim is ours
                claim.require_alive()
                delete_run(plan)
                removed.append(plan.run_id)
        return removed


def _is_there(plan: RunPlan) -> bool:
    """Whether it is that plan still, and not one of another model that has taken its id."""
    try:
        return load_header(plan.output, plan.run_id) == plan
    except RunError:
        return False


def _remove_orphans(output: str) -> int:
    """Remove what planners that were killed have written of their plans; nothing while a run holds a claim.

    A planner holds the claim of its model, and a plan's file does not say whose it is: so all are held.
    """
    found = set(find_orphans(output))  # before the models: whoever starts later writes other files
    models, now = _claimed_models(output), datetime.now(UTC)
    if not found or any(is_claimed(output, model_id, now) for model_id in models):
        return 0
    with ExitStack() as held:
        claims = [held.enter_context(hold_claim(output, model, _CLEANUP, _CLAIM_SECONDS)) for model in models]
        orphans = found.intersection(find_orphans(output))  # a planner may have finished meanwhile
        for uri in orphans:
            for claim in claims:
                claim.require_alive()
            storage.delete(uri)
        return len(orphans)


def _claimed_models(output: str) -> list[str]:
    try:
        keys = [found.key for found in storage.list_objects(storage.join(output, "claims"))]
    except NotFoundError:
        return []
    return sorted({key.partition("/")[0] for key in keys if "/" in key})
