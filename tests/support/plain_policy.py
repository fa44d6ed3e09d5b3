"""A policy from what a test knows, in one call."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from numpy.typing import ArrayLike

from segpipe.confidence import certify
from segpipe.confidence.certify import Asked, BadFraction, MeanLoss, Measured, Origin
from segpipe.confidence.policy import Policy


def make_policy(
    scores: ArrayLike,
    image_ious: ArrayLike,
    model_id: str,
    target: BadFraction | MeanLoss | None,
    confidence: float,
    calibration_fingerprint: str,
    created_at: str,
    **options: Any,
) -> Policy:
    """certify.make_policy; options are the other fields of Measured, Asked and Origin."""
    of_images, of_promise, of_origin = (
        {name: options.pop(name) for name in [one.name for one in fields(kind)] if name in options}
        for kind in (Measured, Asked, Origin)
    )
    assert not options, f"no field {', '.join(options)}"
    return certify.make_policy(
        Measured(scores, image_ious, **of_images),
        Asked(target, confidence, **of_promise),
        Origin(model_id, calibration_fingerprint, created_at, **of_origin),
    )
