"""A model's routing policy: the certified threshold, what it promises, and how a score is shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from scipy.optimize import isotonic_regression

from segpipe.confidence import guarantee
from segpipe.confidence.guarantee import Certificate
from segpipe.errors import PolicyError

SCHEMA_VERSION = 1
N_QUANTILES = 101  # the minimum, every percentile, the maximum

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Policy:
    """What one model may accept without a human, and why.

    A mask is accepted when its raw discriminator score is at least `threshold`; None accepts nothing. The
    promise: of the accepted masks, at most `max_bad_fraction` have an IoU below `min_iou`, with
    `confidence`; it rests on `bad` bad masks among `accepted` of `n_calibration` labelled images (see
    guarantee.Certificate, also for `labelled_images_needed`). `score_quantiles` are the calibration scores'
    0th to 100th percentiles. `display_scores` and `display_values` are the knots of the increasing map from
    score to expected IoU. `policy_id` digests everything else; `created_at` is ISO 8601 in UTC.
    """

    policy_id: str
    model_id: str
    min_iou: Share
    max_bad_fraction: OpenShare
    confidence: OpenShare
    threshold: float | None
    accepted: Count
    bad: Count
    p_value: Share
    n_calibration: Count
    score_quantiles: tuple[float, ...]
    display_scores: tuple[float, ...]
    display_values: tuple[Share, ...]
    calibration_fingerprint: str
    created_at: str
    labelled_images_needed: int | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def make_policy(
    scores: ArrayLike,
    image_ious: ArrayLike,
    model_id: str,
    min_iou: float,
    max_bad_fraction: float,
    confidence: float,
    calibration_fingerprint: str,
    created_at: str,
    candidate_thresholds: ArrayLike | None = None,
) -> Policy:
    """Certify a threshold on labelled images and fit the score's display map.

    `scores` (n,) are raw discriminator scores, `image_ious` (n,) each mask's mean IoU, 0 to 1; a mask is bad
    when its IoU < `min_iou`. `candidate_thresholds` may come from any images but these images' labels: best
    from the scores of other images; by default they are quantiles of `scores` at pre-set coverages. Both keep
    the promise within 1 - confidence in simulation, the first with the weaker assumption: see
    guarantee.candidate_thresholds.

    Raises PolicyError when the inputs are empty, differ in length or are out of range (a NaN IoU is an image
    without a labelled pixel: leave it out), or no score is finite.
    """
    score_values, ious = _checked_calibration(scores, image_ious, min_iou)
    if candidate_thresholds is None:
        coverages = guarantee.coverages_to_test(len(score_values), max_bad_fraction, confidence)
        candidate_thresholds = guarantee.candidate_thresholds(score_values, coverages)
    certificate = guarantee.certify(
        score_values, ious < min_iou, candidate_thresholds, max_bad_fraction, confidence
    )
    finite = np.isfinite(score_values)
    display_scores, display_values = _display_map(score_values[finite], ious[finite])
    quantiles = np.quantile(score_values[finite], np.linspace(0, 1, N_QUANTILES))
    policy = Policy(
        policy_id="",
        model_id=model_id,
        min_iou=float(min_iou),
        score_quantiles=tuple(quantiles.tolist()),
        display_scores=display_scores,
        display_values=display_values,
        calibration_fingerprint=calibration_fingerprint,
        created_at=created_at,
        **_proof(certificate),
    )
    return dataclasses.replace(policy, policy_id=_content_digest(policy))


def display_confidence(policy: Policy, score: float) -> float:
    """Expected mask IoU, 0 to 1, for a raw score: linear between the policy's knots, constant outside.

    0 for a NaN score: a mask that could not be judged earns no confidence.
    """
    if np.isnan(score):
        return 0.0
    return float(np.interp(score, policy.display_scores, policy.display_values))


def promise(policy: Policy) -> str:
    """The sentence a user signs; without a threshold, what would be needed for one."""
    target = (
        f"at most {_percent(policy.max_bad_fraction)} of accepted masks have IoU below "
        f"{_iou(policy.min_iou)}, with {_percent(policy.confidence)} confidence"
    )
    if policy.threshold is not None:
        return (
            f"{target} (accepted {policy.accepted} of {policy.n_calibration} calibration images, "
            f"{policy.bad} bad)"
        )
    return (
        f"nothing is accepted: {policy.n_calibration} calibration images cannot prove that {target}; "
        f"{_remedy(policy.labelled_images_needed)}"
    )


def check_policy_for_model(policy: Policy, model_id: str) -> None:
    """Raise PolicyError when the policy was made for another model: its threshold means nothing here."""
    if policy.model_id != model_id:
        raise PolicyError(
            f"policy {policy.policy_id} was made for model {policy.model_id}, not for {model_id}: "
            "run segpipe calibrate on this model"
        )


def to_json(policy: Policy) -> str:
    """The policy as the text of policy.json; from_json(to_json(policy)) == policy."""
    return json.dumps(
        {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(policy)}, indent=2, allow_nan=False
    )


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
    scores: ArrayLike, image_ious: ArrayLike, min_iou: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    score_values = np.asarray(scores, dtype=np.float64)
    ious = np.asarray(image_ious, dtype=np.float64)
    if not 0 < min_iou <= 1:
        raise PolicyError(f"min IoU {min_iou} is outside (0, 1]: 0.6 is a usual choice")
    if score_values.ndim != 1 or score_values.shape != ious.shape:
        raise PolicyError(
            f"scores {score_values.shape} and image IoUs {ious.shape} differ: give one of each per image"
        )
    if not np.isfinite(score_values).any():
        raise PolicyError(
            "no calibration image has a finite score: calibrate on at least one image it can judge"
        )
    outside = np.flatnonzero(~((ious >= 0) & (ious <= 1)))
    if outside.size:
        raise PolicyError(
            f"calibration image {outside[0]} has IoU {ious[outside[0]]}, outside 0..1: "
            "leave out images without a labelled pixel"
        )
    return score_values, ious


def _proof(certificate: Certificate) -> dict[str, Any]:
    proof = dataclasses.asdict(certificate)
    del proof["tested"]
    return proof


def _display_map(
    scores: NDArray[np.float64], ious: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots of the isotonic fit: the ends of each of its flat steps (Zadrozny and Elkan 2002)."""
    knots, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mean_iou = np.bincount(group, weights=ious) / sizes
    fitted = np.clip(isotonic_regression(mean_iou, weights=sizes).x, 0, 1)
    rises = np.diff(fitted) > 0
    step_ends = np.concatenate([[True], rises]) | np.concatenate([rises, [True]])
    return tuple(knots[step_ends].tolist()), tuple(fitted[step_ends].tolist())


def _content_digest(policy: Policy) -> str:
    content = dataclasses.asdict(policy)
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
    missing = {field.name for field in dataclasses.fields(Policy)} - content.keys()
    if missing:
        raise PolicyError(f"policy.json lacks {min(missing)}: run segpipe calibrate again")
    try:
        return TypeAdapter(Policy).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyError(
            f"policy.json is damaged at {where} ({first['msg']}): run segpipe calibrate again"
        ) from error


def _check_unedited(policy: Policy) -> None:
    if policy.policy_id != _content_digest(policy):
        raise PolicyError(
            f"policy.json was edited: its content does not match its policy_id {policy.policy_id}: "
            "run segpipe calibrate again"
        )


def _remedy(labelled_images_needed: int | None) -> str:
    if labelled_images_needed is None:
        return (
            "more labels are not expected to help: improve the model, lower min IoU or raise max bad fraction"
        )
    return f"about {labelled_images_needed} more labelled images are needed"


def _percent(share: float) -> str:
    return f"{share * 100:.10g}%"


def _iou(value: float) -> str:
    return max(f"{value:.2f}", f"{value:.10g}", key=len)
