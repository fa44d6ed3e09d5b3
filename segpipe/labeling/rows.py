"""The manifest row of a labelled and of a failed image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from segpipe.labeling.audit_draw import is_drawn
from segpipe.labeling.items import FailedImage, File, FinishedImage, one_line
from segpipe.labeling.routing import route
from segpipe.manifests.schema import Row
from segpipe.storage import redact

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.manifests.schema import RoutingReason


@dataclass(frozen=True)
class Target:
    """Where masks go and whose name their rows carry; require_claim raises when the run must not write.

    confidence_maps_root: where confidence maps go; None: they are not wanted; audit_share (0 to 1): of the
    accepted masks.
    """

    masks_root: str
    confidence_maps_root: str | None
    run_id: str
    model_id: str
    policy: Policy | None
    palette: np.ndarray
    audit_share: float
    require_claim: Callable[[], None]


def labelled_row(image: FinishedImage, target: Target, mask: File, confidence_map: File | None) -> Row:
    """The row of an image once its mask is stored; raises PolicyError for another model's policy."""
    labeled = image.labeled
    by_class = [float(value) for value in labeled.class_confidences]
    decision, reason = route(labeled.discriminator_score, by_class, target.policy, target.model_id)
    accepted = decision == "accepted"
    return Row(
        image_uri=image.seen.planned.image_uri,
        image_etag=image.seen.etag,
        image_bytes=image.seen.bytes,
        image_width=image.width,
        image_height=image.height,
        mask_uri=mask.uri,
        mask_sha256=hashlib.sha256(mask.data).hexdigest(),
        decision=decision,
        reason=reason,
        confidence=_finite(labeled.confidence),
        discriminator_score=_finite(labeled.discriminator_score),
        class_fractions=[float(value) for value in labeled.class_fractions],
        class_confidences=[_finite(value) for value in by_class],
        audit=accepted and _is_audited(image, target),
        inclusion_probability=target.audit_share if accepted else 1.0,
        model_id=target.model_id,
        policy_id=target.policy.policy_id if target.policy else None,
        run_id=target.run_id,
        shard=image.seen.planned.shard,
        labeled_at=datetime.now(UTC),
        error=None,
        confidence_map_uri=confidence_map.uri if confidence_map else None,
    )


def _is_audited(image: FinishedImage, target: Target) -> bool:
    assert target.policy is not None  # else nothing is accepted
    uri, etag, share = image.seen.planned.image_uri, image.seen.etag, target.audit_share
    return is_drawn(uri, etag, target.model_id, target.policy.policy_id, share)


def sent_to_review(row: Row, reason: RoutingReason) -> Row:
    """The row for review whatever it was: a person sees it anyway, so it is no audit."""
    return replace(row, decision="review", reason=reason, audit=False, inclusion_probability=1.0)


def failed_row(image: FailedImage, target: Target) -> Row:
    """The row of an image that has no mask."""
    return Row(
        image_uri=image.seen.planned.image_uri,
        image_etag=image.seen.etag,
        image_bytes=image.seen.bytes,
        image_width=image.width,
        image_height=image.height,
        mask_uri=None,
        mask_sha256=None,
        decision="failed",
        reason=image.reason,
        confidence=None,
        discriminator_score=None,
        class_fractions=None,
        class_confidences=None,
        audit=False,
        inclusion_probability=0.0,
        model_id=target.model_id,
        policy_id=target.policy.policy_id if target.policy else None,
        run_id=target.run_id,
        shard=image.seen.planned.shard,
        labeled_at=datetime.now(UTC),
        error=redact(one_line(image.error)),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
