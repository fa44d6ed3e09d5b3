"""A model's routing policy: the certified threshold, what it promises, and how a score is shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from segpipe.confidence import guarantee
from segpipe.confidence.calibration_error import cross_validated_error
from segpipe.confidence.display import displayed, fit_display_map
from segpipe.confidence.guarantee import Certificate, MeanLossCertificate
from segpipe.errors import PolicyError

SCHEMA_VERSION = 2  # 2 added the mean loss, groups, guards and the calibration error
N_QUANTILES = 101  # the minimum, every percentile, the maximum

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class BadFraction:
    """Wanted: at most `max_bad_fraction` of the accepted masks have an IoU below `min_iou`."""

    min_iou: float
    max_bad_fraction: float


@dataclass(frozen=True)
class MeanLoss:
    """Wanted: the accepted masks lose at most `max_mean_loss` on average; a mask loses 1 - IoU."""

    max_mean_loss: float


@dataclass(frozen=True)
class BadFractionPromise:
    """At most `max_bad_fraction` of the accepted masks have an IoU below `min_iou`.

    Of the calibration images that the threshold accepts, `bad` are so; None when it accepts none.
    """

    min_iou: Share
    max_bad_fraction: OpenShare
    bad: Count | None
    target: Literal["bad_fraction"] = "bad_fraction"


@dataclass(frozen=True)
class MeanLossPromise:
    """The accepted masks lose at most `max_mean_loss` on average; a mask loses 1 - IoU.

    The calibration images that the threshold accepts lose `mean_loss`; None when it accepts none.
    """

    max_mean_loss: OpenShare
    mean_loss: Share | None
    target: Literal["mean_loss"] = "mean_loss"


@dataclass(frozen=True)
class Guard:
    """Wanted: a mask that shows `class_name` with a class confidence below `min_confidence` is reviewed."""

    class_name: str
    min_confidence: float


@dataclass(frozen=True)
class ClassGuard:
    """A guard on one of the model's classes; `class_index` is its place in their order."""

    class_name: str
    class_index: Count
    min_confidence: Share


@dataclass(frozen=True)
class Policy:
    """What one model may accept without a human, and why.

    A mask is accepted when its raw discriminator score is at least `threshold` (None accepts nothing) and no
    guard holds it back. What is then `promised` about the accepted masks holds with `confidence`; it rests on
    the `accepted` of `n_calibration` labelled images (see guarantee.Certificate, also for `p_value` and
    `labelled_images_needed`). Where the `n_images` calibration images came in groups, one image of each was
    used for that: `accepted`, `bad`, `n_calibration` and `labelled_images_needed` count groups, and each
    group weighs one.

    `score_quantiles` are the 0th to 100th percentiles of those n_calibration images' scores. `display_scores`
    and `display_values` are the knots of the increasing map from score to expected IoU, `calibration_error`
    its expected calibration error (0 to 1) on images it was not fitted to, None where they were too few to
    tell. `policy_id` digests everything else; `created_at` is ISO 8601 in UTC.
    """

    policy_id: str
    model_id: str
    promised: Annotated[BadFractionPromise | MeanLossPromise, Field(discriminator="target")]
    confidence: OpenShare
    threshold: float | None
    accepted: Count
    p_value: Share
    n_calibration: Count
    n_images: Count
    labelled_images_needed: Count | None
    guards: tuple[ClassGuard, ...]
    score_quantiles: tuple[float, ...]
    display_scores: tuple[float, ...]
    display_values: tuple[Share, ...]
    calibration_error: Share | None
    calibration_fingerprint: str
    created_at: str

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def make_policy(
    scores: ArrayLike,
    image_ious: ArrayLike,
    model_id: str,
    target: BadFraction | MeanLoss,
    confidence: float,
    calibration_fingerprint: str,
    created_at: str,
    *,
    candidate_thresholds: ArrayLike | None = None,
    group: Sequence[str] | None = None,
    guards: Sequence[ClassGuard] = (),
    class_confidences: ArrayLike | None = None,
) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1; a mask is bad
    when its IoU is below the target's minimum. `group` (n,) names what each image belongs to (see
    guarantee.certify). `guards` need `class_confidences` (n, K), 0 to 1, NaN for a class not in the mask: an
    image that a guard holds back counts as not accepted, so the promise is about what is accepted really.
    `candidate_thresholds` may come from any images but these images' labels: best from the scores of other
    images; by default they are quantiles of `scores` at pre-set coverages. Both keep the promise within
    1 - confidence in simulation, the first with the weaker assumption: see guarantee.candidate_thresholds.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), or no score is finite.
    """
    score_values, ious = _checked_calibration(scores, image_ious)
    drawn = _one_per_group(len(score_values), group)
    score_quantiles = _quantiles(score_values[drawn])
    acceptable = np.where(_held_back(guards, class_confidences, len(score_values)), -np.inf, score_values)
    if candidate_thresholds is None:
        candidate_thresholds = _quantile_thresholds(acceptable[drawn], target, confidence)
    promised, certificate = _certified(
        target, acceptable[drawn], ious[drawn], candidate_thresholds, confidence
    )
    finite = np.isfinite(score_values)
    display_scores, display_values = fit_display_map(score_values[finite], ious[finite])
    policy = Policy(
        policy_id="",
        model_id=model_id,
        promised=promised,
        confidence=certificate.confidence,
        threshold=certificate.threshold,
        accepted=certificate.accepted,
        p_value=certificate.p_value,
        n_calibration=certificate.n_calibration,
        n_images=len(score_values),
        labelled_images_needed=certificate.labelled_images_needed,
        guards=tuple(guards),
        score_quantiles=score_quantiles,
        display_scores=display_scores,
        display_values=display_values,
        calibration_error=cross_validated_error(
            score_values[finite], ious[finite], None if group is None else np.asarray(group)[finite]
        ),
        calibration_fingerprint=calibration_fingerprint,
        created_at=created_at,
    )
    return dataclasses.replace(policy, policy_id=_content_digest(policy))


def on_classes(guards: Sequence[Guard], classes: Sequence[str]) -> tuple[ClassGuard, ...]:
    """The guards with the place of their class; PolicyError when the model has no such class."""
    unknown = [guard.class_name for guard in guards if guard.class_name not in classes]
    if unknown:
        raise PolicyError(
            f"cannot guard {unknown[0]!r}, the model has no such class: its classes are {', '.join(classes)}"
        )
    return tuple(
        ClassGuard(guard.class_name, classes.index(guard.class_name), guard.min_confidence)
        for guard in guards
    )


def is_guarded(policy: Policy, class_confidences: Sequence[float]) -> bool:
    """Whether a mask must go to review whatever its score: it shows a guarded class too doubtfully.

    `class_confidences` (K,) are 0 to 1 in the order of the model's classes, NaN for a class not in the mask.
    """
    return _holds_back(policy.guards, class_confidences)


def display_confidence(policy: Policy, score: float) -> float:
    """Expected mask IoU, 0 to 1, for a raw score: linear between the policy's knots, constant outside.

    0 for a NaN score: a mask that could not be judged earns no confidence.
    """
    return float(displayed(score, (policy.display_scores, policy.display_values)))


def promise(policy: Policy) -> str:
    """The sentence a user signs; without a threshold, what would be needed for one."""
    grouped = policy.n_calibration < policy.n_images
    weights = ", each group of images counting once" if grouped else ""
    target = f"{_wanted(policy.promised)}, with {_percent(policy.confidence)} confidence{weights}"
    counted = _counted(policy.n_calibration, grouped, "calibration")
    if policy.threshold is not None:
        found = _found(policy.promised)
        return f"{target} (accepted {policy.accepted} of {counted}, {found})"
    return f"nothing is accepted: {counted} cannot prove that {target}; {_remedy(policy)}"


def check_policy_for_model(policy: Policy, model_id: str) -> None:
    """Raise PolicyError when the policy was made for another model: its threshold means nothing here."""
    if policy.model_id != model_id:
        raise PolicyError(
            f"policy {policy.policy_id} was made for model {policy.model_id}, not for {model_id}: "
            "run segpipe calibrate on this model"
        )


def to_json(policy: Policy) -> str:
    """The policy as the text of policy.json, promise and target beside the rest: what from_json reads."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **_content(policy)}, indent=2, allow_nan=False)


def from_json(text: str) -> Policy:
    """Read policy.json; raises PolicyError for damaged, incomplete, edited or unknown-version content."""
    content = _json_object(text)
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise PolicyError(
            f"policy.json has schema version {version!r}, this segpipe reads {SCHEMA_VERSION}: "
            "run segpipe calibrate again"
        )
    policy = _typed(content)
    _check_unedited(policy)
    return policy


def _checked_calibration(
    scores: ArrayLike, image_ious: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    score_values = np.asarray(scores, dtype=np.float64)
    ious = np.asarray(image_ious, dtype=np.float64)
    if score_values.ndim != 1 or score_values.shape != ious.shape:
        raise PolicyError(
            f"scores {score_values.shape} and image IoUs {ious.shape} differ: give one of each per image"
        )
    outside = np.flatnonzero(~((ious >= 0) & (ious <= 1)))
    if outside.size:
        raise PolicyError(
            f"calibration image {outside[0]} has IoU {ious[outside[0]]}, outside 0..1: "
            "leave out images without a labelled pixel"
        )
    return score_values, ious


def _one_per_group(n_images: int, group: Sequence[str] | None) -> NDArray[np.int64]:
    if group is None:
        return np.arange(n_images)
    if len(group) != n_images:
        raise PolicyError(f"{n_images} scores and {len(group)} group labels differ: give one label per image")
    return guarantee.one_per_group(group)


def _held_back(
    guards: Sequence[ClassGuard], class_confidences: ArrayLike | None, n_images: int
) -> NDArray[np.bool_]:
    if not guards:
        return np.zeros(n_images, dtype=bool)
    by_image = np.asarray(class_confidences, dtype=np.float64)
    if by_image.ndim != 2 or len(by_image) != n_images:
        raise PolicyError(
            f"guards need class confidences ({n_images}, classes), not {by_image.shape}: "
            "give those of every calibration image"
        )
    return np.array([_holds_back(guards, row) for row in by_image])


def _holds_back(guards: Sequence[ClassGuard], class_confidences: Sequence[float]) -> bool:
    return any(class_confidences[guard.class_index] < guard.min_confidence for guard in guards)


def _quantile_thresholds(
    scores: NDArray[np.float64], target: BadFraction | MeanLoss, confidence: float
) -> tuple[float, ...]:
    match target:
        case BadFraction():
            coverages = guarantee.coverages_to_test(len(scores), target.max_bad_fraction, confidence)
        case MeanLoss():
            coverages = guarantee.coverages_to_test_mean_loss(len(scores), target.max_mean_loss, confidence)
    return guarantee.candidate_thresholds(scores, coverages)


def _certified(
    target: BadFraction | MeanLoss,
    scores: NDArray[np.float64],
    ious: NDArray[np.float64],
    thresholds: ArrayLike,
    confidence: float,
) -> tuple[BadFractionPromise, Certificate] | tuple[MeanLossPromise, MeanLossCertificate]:
    match target:
        case BadFraction(min_iou, limit):
            if not 0 < min_iou <= 1:
                raise PolicyError(f"min IoU {min_iou} is outside (0, 1]: 0.6 is a usual choice")
            counted = guarantee.certify(scores, ious < min_iou, thresholds, limit, confidence)
            return BadFractionPromise(float(min_iou), counted.max_bad_fraction, counted.bad), counted
        case MeanLoss(limit):
            averaged = guarantee.certify_mean_loss(scores, 1 - ious, thresholds, limit, confidence)
            return MeanLossPromise(averaged.max_mean_loss, averaged.mean_loss), averaged


def _quantiles(scores: NDArray[np.float64]) -> tuple[float, ...]:
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        raise PolicyError(
            "no calibration image has a finite score: calibrate on at least one image it can judge"
        )
    return tuple(np.quantile(finite, np.linspace(0, 1, N_QUANTILES)).tolist())


def _content(policy: Policy) -> dict[str, Any]:
    """Everything in one flat object, the promise's numbers beside the rest."""
    content = dataclasses.asdict(policy)
    return content | content.pop("promised")


def _content_digest(policy: Policy) -> str:
    content = _content(policy)
    del content["policy_id"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise PolicyError(f"policy.json is not JSON ({error}): run segpipe calibrate again") from error
    if not isinstance(content, dict):
        raise PolicyError("policy.json does not hold a JSON object: run segpipe calibrate again")
    return content


def _typed(content: dict[str, Any]) -> Policy:
    kind = MeanLossPromise if content.get("target") == "mean_loss" else BadFractionPromise
    of_promise = {field.name for field in dataclasses.fields(kind)}
    of_policy = {field.name for field in dataclasses.fields(Policy)} - {"promised"}
    missing = (of_policy | of_promise) - content.keys()
    if missing:
        first_missing = "target" if "target" in missing else min(missing)
        raise PolicyError(f"policy.json lacks {first_missing}: run segpipe calibrate again")
    nested = {name: value for name, value in content.items() if name not in of_promise}
    nested["promised"] = {name: content[name] for name in of_promise}
    try:
        return TypeAdapter(Policy).validate_json(json.dumps(nested))
    except ValidationError as error:
        first = error.errors()[0]
        nesting = ("promised", content["target"])
        where = ".".join(str(part) for part in first["loc"] if part not in nesting) or "target"
        raise PolicyError(
            f"policy.json is damaged at {where} ({first['msg']}): run segpipe calibrate again"
        ) from error


def _check_unedited(policy: Policy) -> None:
    if policy.policy_id != _content_digest(policy):
        raise PolicyError(
            f"policy.json was edited: its content does not match its policy_id {policy.policy_id}: "
            "run segpipe calibrate again"
        )


def _wanted(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return (
                f"at most {_percent(promised.max_bad_fraction)} of accepted masks have IoU below "
                f"{_iou(promised.min_iou)}"
            )
        case MeanLossPromise():
            return f"accepted masks have a mean IoU of at least {_iou(1 - promised.max_mean_loss)}"


def _found(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return f"{promised.bad} bad"
        case MeanLossPromise():
            assert promised.mean_loss is not None  # a threshold accepts something
            return f"mean IoU {1 - promised.mean_loss:.2f}"


def _remedy(policy: Policy) -> str:
    if policy.labelled_images_needed is None:
        return f"more labels are not expected to help: improve the model, {_easier(policy.promised)}"
    more, grouped = policy.labelled_images_needed, policy.n_calibration < policy.n_images
    return f"about {_counted(more, grouped, 'labelled', 'more ')} {'is' if more == 1 else 'are'} needed"


def _counted(count: int, grouped: bool, kind: str, more: str = "") -> str:
    """So many images of a kind, or groups of such images."""
    plural = "" if count == 1 else "s"
    return (
        f"{count} {more}group{plural} of {kind} images" if grouped else f"{count} {more}{kind} image{plural}"
    )


def _easier(promised: BadFractionPromise | MeanLossPromise) -> str:
    match promised:
        case BadFractionPromise():
            return "lower min IoU or raise max bad fraction"
        case MeanLossPromise():
            return "raise max mean loss"


def _percent(share: float) -> str:
    return f"{share * 100:.10g}%"


def _iou(value: float) -> str:
    return max(f"{value:.2f}", f"{value:.10g}", key=len)
