"""What the report of an evaluation says: every sentence and number of its page, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from segpipe.confidence.calibration_error import expected_calibration_error
from segpipe.confidence.policy import Policy
from segpipe.confidence.promise import meaning
from segpipe.confidence.selective import SelectiveMetrics
from segpipe.printable import printable
from segpipe.redaction import redact
from segpipe.reports.measured import Measured, Routing, routing_under
from segpipe.reports.page import (
    Figure,
    GroupPart,
    GroupRow,
    ImageRow,
    Merit,
    Page,
    Picture,
    PolicyPart,
    ScoreRow,
)
from segpipe.reports.summary import promise_line

if TYPE_CHECKING:
    from segpipe.evaluation.by_group import GroupEvaluation
    from segpipe.evaluation.measure import Evaluation

WORST_IMAGES = 10
MOST_GROUPS = 50
HIGHER_IS_BETTER = frozenset({"gap_closed", "spearman"})
MERIT_NAMES = {"aurc": "AURC", "e_aurc": "e-AURC", "augrc": "AUGRC", "spearman": "Spearman"}


@dataclass(frozen=True)
class ReportFacts:
    """What was evaluated: model and data are URLs, `created_at` is ISO 8601 in UTC.

    calibration_split: whether these are the very images that the policy was calibrated on. policy_problem:
    why a policy that is there could not be used.
    """

    model: str
    model_id: str
    data: str
    split: str
    created_at: str
    calibration_split: bool = False
    policy_problem: str | None = None


def page_content(
    measured: Measured,
    evaluation: Evaluation,
    policy: Policy | None,
    about: ReportFacts,
    pictures: tuple[Picture, ...],
) -> Page:
    """The page about the measured images, at least one, of an evaluation."""
    merits = tuple(field.name for field in fields(SelectiveMetrics))
    scores = {name: found for name, found in evaluation.scores.items() if found is not None}
    return Page(
        title=f"Masks and their confidence on split {about.split}",
        facts=(
            ("model", f"{about.model_id} ({redact(about.model)})"),
            ("data", redact(about.data)),
            ("split", about.split),
            ("images", str(evaluation.n)),
            ("made", about.created_at),
        ),
        remarks=tuple(_remarks(evaluation, measured, about)),
        quality=_quality(evaluation, measured),
        policy=_policy_part(measured, policy, about),
        merits=tuple((_merit_name(merit), merit in HIGHER_IS_BETTER) for merit in merits),
        scores=tuple(_score_row(name, scores, merits) for name in scores),
        groups=_group_part(evaluation.groups),
        pictures=pictures,
        classes=tuple(Figure(name, iou) for name, iou in evaluation.per_class_iou.items()),
        worst=tuple(_worst(measured, policy)),
    )


def _remarks(evaluation: Evaluation, measured: Measured, about: ReportFacts) -> Iterator[str]:
    without_truth = evaluation.n - len(measured.keys)
    if without_truth:
        yield (
            f"Without one labelled pixel, so that no IoU is known: {without_truth} of {evaluation.n} images. "
            "What compares scores with IoU leaves them out."
        )
    yield from (f"Warning: {redact(line)}" for line in evaluation.warnings)
    if about.policy_problem is not None:
        yield f"The policy was left aside: {redact(about.policy_problem)}"


def _quality(evaluation: Evaluation, measured: Measured) -> tuple[Figure, ...]:
    return (
        Figure("pixel accuracy", evaluation.pixel_accuracy),
        Figure("mean IoU", evaluation.mean_iou),
        Figure("mean image IoU", evaluation.mean_image_iou),
        Figure("calibration error", expected_calibration_error(measured.confidences, measured.ious)),
    )


def _merit_name(merit: str) -> str:
    return MERIT_NAMES.get(merit, merit.replace("_", " "))


def _score_row(name: str, scores: dict[str, dict[str, float]], merits: tuple[str, ...]) -> ScoreRow:
    return ScoreRow(
        name.replace("_", " "),
        tuple(Merit(scores[name][merit], _is_best(name, merit, scores)) for merit in merits),
    )


def _is_best(name: str, merit: str, scores: dict[str, dict[str, float]]) -> bool:
    """NaN is never best; of equals all are."""
    sign = 1 if merit in HIGHER_IS_BETTER else -1
    defined = [sign * other[merit] for other in scores.values() if not math.isnan(other[merit])]
    return bool(defined) and sign * scores[name][merit] == max(defined)


def _group_part(groups: dict[str, GroupEvaluation]) -> GroupPart | None:
    if not groups:
        return None
    worst_first = sorted(groups, key=lambda name: groups[name].mean_image_iou)
    rows = tuple(_group_row(name, groups[name]) for name in worst_first[:MOST_GROUPS])
    return GroupPart(rows, len(worst_first) - len(rows))


def _group_row(name: str, group: GroupEvaluation) -> GroupRow:
    return GroupRow(
        name=name,
        images=group.n,
        iou=group.mean_image_iou,
        confidence=group.mean_confidence,
        gap_closed=group.gap_closed,
        best_gap_closed=group.best_gap_closed,
        best_score=group.best_score.replace("_", " "),
    )


def _policy_part(measured: Measured, policy: Policy | None, about: ReportFacts) -> PolicyPart:
    if policy is None:
        promise = "unknown: see above" if about.policy_problem is not None else promise_line(None)
        return PolicyPart(promise, (), (), ())
    return PolicyPart(
        promise=promise_line(policy),
        facts=tuple(_policy_facts(policy)),
        outcome=tuple(_outcome(measured, routing_under(policy, measured))),
        remarks=tuple(_policy_remarks(policy, about)),
    )


def _policy_facts(policy: Policy) -> Iterator[tuple[str, str]]:
    yield "policy", f"{policy.policy_id}, made {policy.created_at}"
    yield from thresholds(policy)
    for guard in policy.guards:
        yield "guard", f"{guard.class_name} below {guard.min_confidence:g} goes to review"
    if policy.calibration_error is not None:
        error = f"{policy.calibration_error:.3f}, on calibration images not fitted to"
        yield "calibration error", f"{error}{floor_in_words(policy)}"
    if policy.accepts_some:
        yield "meaning", meaning(policy)


def floor_in_words(policy: Policy) -> str:
    """What of the calibration error is chance, as the end of a line; nothing where it is not known."""
    floor = policy.calibration_error_floor
    return "" if floor is None else f"; a perfect map would show about {floor:.3f} on so many images"


def thresholds(policy: Policy) -> Iterator[tuple[str, str]]:
    """The score from which masks are accepted, of all images or of each group by itself."""
    if policy.per is None:
        yield "threshold", _shown_threshold(policy.threshold)
    for one in policy.certificates:
        yield f"threshold of {printable(one.group)}", _shown_threshold(one.threshold)


def _shown_threshold(threshold: float | None) -> str:
    return "none" if threshold is None else f"{threshold:.6g}"


def _outcome(measured: Measured, routing: Routing) -> Iterator[Figure]:
    n_accepted = int(routing.accepted.sum())
    accepted_ious = measured.ious[routing.accepted]
    yield Figure("accepted", n_accepted)
    yield Figure("share accepted", n_accepted / len(measured.ious))
    if routing.min_iou is None:
        yield Figure("mean loss of accepted", float((1 - accepted_ious).mean()) if n_accepted else None)
    else:
        n_bad = int((accepted_ious < routing.min_iou).sum())
        yield Figure("bad among accepted", n_bad)
        yield Figure("share bad", n_bad / n_accepted if n_accepted else None)


def _policy_remarks(policy: Policy, about: ReportFacts) -> Iterator[str]:
    if about.calibration_split:
        yield (
            "These are the images the policy was calibrated on: the counts repeat the evidence behind the "
            "promise and are no independent check of it."
        )
    else:
        yield (
            "The promise rests on the calibration images alone. Counts on another split prove nothing: they "
            "illustrate it if that split is like the calibration images, and tell little if it is not."
        )
    if policy.n_calibration < policy.n_images:
        yield "The promise counts each group of images once, the counts here count every image."


def _worst(measured: Measured, policy: Policy | None) -> Iterator[ImageRow]:
    """Images whose score ranks highest above the rank of their IoU, ties sharing a mean rank."""
    accepted = None if policy is None else routing_under(policy, measured).accepted
    excess = rankdata(measured.routing_scores) - rankdata(measured.ious)
    worst = np.argsort(-excess, kind="stable")[:WORST_IMAGES]
    for image in worst[excess[worst] > 0]:
        yield ImageRow(
            key=measured.keys[image],
            score=float(measured.routing_scores[image]),
            confidence=float(measured.confidences[image]),
            iou=float(measured.ious[image]),
            decision=None if accepted is None else "accepted" if accepted[image] else "review",
        )
