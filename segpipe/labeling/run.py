"""A labelling run: plan it, label what is pending, sum it up; every step can be repeated after a kill.

start_run and label_run each hold the claim of OUTPUT and model while they work, and label_run works out anew
what is pending once it holds it. So they are safe in separate tasks as well as in label_source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from segpipe import storage
from segpipe.errors import RunError
from segpipe.labeling.claim import Claim, hold_claim
from segpipe.labeling.engines.table import engine_of
from segpipe.labeling.engines.work import ServedModel, Work
from segpipe.labeling.inventory import check_places
from segpipe.labeling.items import ImageLabeler, PlannedImage
from segpipe.labeling.ledger import open_ledger
from segpipe.labeling.place import Place
from segpipe.labeling.plan import (
    RunPlan,
    check_run_id,
    finished_parts,
    make_plan,
    new_run_id,
    pending_images,
)
from segpipe.labeling.plan_files import PlannedImages
from segpipe.labeling.run_record import freeze_plan, load_header, load_plan, record_totals
from segpipe.labeling.stamps import first_stamp, rows_ahead, say_if_ahead
from segpipe.labeling.totals import RunSummary, summarise_run
from segpipe.logs import log_ids
from segpipe.manifests.chain import find_tip
from segpipe.manifests.policies import nearest_policy, policy_of_run
from segpipe.progress import Advance, track

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.config import LabelSettings

logger = logging.getLogger(__name__)
Track = Callable[[int, str], AbstractContextManager[Advance]]


def label_source(
    source: str,
    output: str,
    labeler: ImageLabeler,
    settings: LabelSettings,
    run_id: str | None = None,
    limit: int | None = None,
    progress: Track = track,
    served: ServedModel | None = None,
) -> RunSummary:
    """Label what SOURCE holds and this model has not labelled; the same run id again resumes that run.

    served: where the workers of an engine find the model; the engine local has none.

    Raises RunError, NotFoundError or StorageError; what is committed by then stays, and a resume goes on.
    """
    output, run_id = storage.normalise(output), _run_id(run_id)
    engine_of(settings)
    _refuse_before_claiming(source, output, run_id)
    with hold_claim(output, labeler.model_id, run_id, settings.claim_seconds) as claim:
        plan = _plan_or_resume(source, output, labeler, settings, run_id, limit, claim)
        _label_pending(plan, labeler, settings, progress, claim, served)
    return finish_run(plan)


def start_run(
    source: str,
    output: str,
    labeler: ImageLabeler,
    settings: LabelSettings,
    run_id: str | None = None,
    limit: int | None = None,
) -> RunPlan:
    """Plan and freeze a run of at most `limit` images, or take up the plan frozen under this run id.

    Raises RunError when that plan is for another source, model or policy, or there are no images;
    NotFoundError when SOURCE does not exist; StorageError when OUTPUT cannot be written.
    """
    output, run_id = storage.normalise(output), _run_id(run_id)
    engine_of(settings)
    _refuse_before_claiming(source, output, run_id)
    with hold_claim(output, labeler.model_id, run_id, settings.claim_seconds) as claim:
        return _plan_or_resume(source, output, labeler, settings, run_id, limit, claim)


def label_run(
    plan: RunPlan,
    labeler: ImageLabeler,
    settings: LabelSettings,
    progress: Track = track,
    served: ServedModel | None = None,
) -> None:
    """Label the planned images that are still pending and commit a part per shard.

    served: as in label_source. Raises RunError when the labeler is not the planned one, the claim is lost or
    nothing works any more.
    """
    _require_planned_labeler(plan, labeler)
    with hold_claim(plan.output, plan.model_id, plan.run_id, settings.claim_seconds) as claim:
        _label_pending(plan, labeler, settings, progress, claim, served)


def finish_run(plan: RunPlan) -> RunSummary:
    """Sum up the run from its committed parts and add the totals to its run.json.

    Raises RunError when planned images are still pending.
    """
    summary = summarise_run(plan)
    if summary.labelled_elsewhere and (pending := pending_images(plan).count):
        raise RunError(f"run {plan.run_id} has {pending} images to go: resume it with the same run id")
    record_totals(plan, asdict(summary), find_tip(uri for _, uri in finished_parts(plan)))
    return summary


def _refuse_before_claiming(source: str, output: str, run_id: str) -> None:
    """A run that cannot start leaves nothing in OUTPUT; a resumed one has its images in the frozen plan."""
    if load_header(output, run_id) is None:
        check_places(source, output)


def _run_id(run_id: str | None) -> str:
    return new_run_id(datetime.now(UTC)) if run_id is None else check_run_id(run_id)


def _plan_or_resume(
    source: str,
    output: str,
    labeler: ImageLabeler,
    settings: LabelSettings,
    run_id: str,
    limit: int | None,
    claim: Claim,
) -> RunPlan:
    plan = load_plan(output, run_id)
    if plan is not None:
        _require_source(plan, storage.normalise(source))
        _require_planned_labeler(plan, labeler)
        logger.info("resuming run %s of %d images", run_id, plan.images.count)
        return plan
    now = datetime.now(UTC)
    plan = make_plan(
        source,
        output,
        labeler.model_id,
        _policy_id(nearest_policy(output, labeler.policy)),
        settings,
        run_id,
        now,
        limit,
        model_digest=labeler.digest,
    )
    plan = replace(plan, image_range=labeler.image_range, tiling=labeler.tiling)
    _require_unused(plan)
    plan = freeze_plan(plan, settings, claim.require_newest)
    logger.info("planned run %s of %d images, %d already done", run_id, plan.images.count, plan.already_done)
    return plan


def _require_unused(plan: RunPlan) -> None:
    """Parts of a run whose plan is gone would count as parts of this one."""
    if finished_parts(plan):
        raise RunError(
            f"run id {plan.run_id} has parts under {plan.output} but its plan is gone: choose another run "
            "id, it labels what is left"
        )


def _require_source(plan: RunPlan, source: str) -> None:
    if plan.source != source:
        raise RunError(f"run {plan.run_id} labels {plan.source}, not {source}: choose another run id")


def _require_planned_labeler(plan: RunPlan, labeler: ImageLabeler) -> None:
    if labeler.model_id != plan.model_id:
        raise RunError(
            f"run {plan.run_id} uses model {plan.model_id}, not {labeler.model_id}: choose another run id"
        )
    if None not in (plan.model_digest, labeler.digest) and labeler.digest != plan.model_digest:
        raise RunError(
            f"run {plan.run_id} uses model {plan.model_digest}, not {labeler.digest}, which only begins with "
            "the same digits: choose another run id"
        )
    policy = policy_of_run(plan.output, labeler.policy, plan.policy_id)
    if _policy_id(policy) != plan.policy_id or (policy is None) != (labeler.policy is None):
        raise RunError(
            f"run {plan.run_id} was planned under policy {plan.policy_id}, the model now has "
            f"{_policy_id(labeler.policy)}: start a run with another id, it labels what is left"
        )


def _policy_id(policy: Policy | None) -> str | None:
    return policy.policy_id if policy else None


def _label_pending(
    plan: RunPlan,
    labeler: ImageLabeler,
    settings: LabelSettings,
    progress: Track,
    claim: Claim,
    served: ServedModel | None,
) -> None:
    pending, ledger = pending_images(plan), open_ledger(plan, labeler, settings, claim)
    place = _place(plan, labeler, settings, _first_stamp(plan) if pending.count else plan.created_at)
    with log_ids(run_id=plan.run_id), progress(pending.count, "labelling") as bar:
        work = Work(_planned(pending), labeler, served, place, claim, settings, bar.advance)
        with closing(engine_of(settings)(work)) as shards:
            for shard in shards:
                ledger.commit(shard)


def _planned(pending: PlannedImages) -> Iterator[PlannedImage]:
    for table in pending.tables():
        for batch in table.to_batches(max_chunksize=1024):
            yield from (PlannedImage(**row) for row in batch.to_pylist())


def _first_stamp(plan: RunPlan) -> datetime:
    now = datetime.now(UTC)
    ahead = rows_ahead(plan.output, now)
    say_if_ahead(ahead, now, plan.output)
    return first_stamp(ahead, now)


def _place(plan: RunPlan, labeler: ImageLabeler, settings: LabelSettings, stamps_from: datetime) -> Place:
    return Place(
        source=plan.source,
        output=plan.output,
        masks_root=plan.masks_root,
        confidence_maps_root=plan.confidence_maps_root if settings.confidence_maps else None,
        run_id=plan.run_id,
        model_id=plan.model_id,
        n_classes=len(labeler.classes),
        stamps_from=stamps_from,
    )
