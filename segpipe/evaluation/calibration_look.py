"""A calibration as one look of several at the same images: what it may err, and what all of them promise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from segpipe import storage
from segpipe.confidence.looks import Look, calibration_level, next_level, together
from segpipe.confidence.policy import Policy, sealed
from segpipe.config import CalibrateSettings
from segpipe.errors import PolicyError
from segpipe.evaluation.spent import Question, Spent, spend
from segpipe.redaction import redact

FOLDER = "calibrations"  # in the model's folder


def look_again(
    settings: CalibrateSettings, digest: str, images: Collection[str], facts: Mapping[str, object]
) -> Look:
    """Enter a calibration into the model's ledger, before anybody sees its policy; which look it is.

    `digest` is the model's, `images` are the digests of the images' pixels; `facts` and the settings make it
    this calibration and no other. Raises PolicyError where earlier looks have spent all error there is,
    StorageError.
    """
    how = settings.model_dump(mode="json", exclude={"model", "data", "split", "device"})
    about = f"split {settings.split} of {redact(settings.data)}"
    spent = spend(
        storage.join(storage.normalise(settings.model), FOLDER),
        Question(digest, about, {**how, **facts}, images),
        lambda number: calibration_level(number, settings.confidence),
    )
    return Look(spent.number, spent.level, _confidence(spent, settings))


def under_look(look: Look, certified: Callable[[float], Policy]) -> Policy:
    """The policy that `certified` makes at the look's error, with the confidence of all looks together.

    What it advises to label is counted for the next look, since that is who will need it.
    """
    policy = certified(1 - look.level)
    if policy.labelled_images_needed:
        more = certified(1 - next_level(look)).labelled_images_needed
        policy = replace(policy, labelled_images_needed=more or None)
    return sealed(replace(policy, confidence=look.confidence, look=look))


def _confidence(spent: Spent, settings: CalibrateSettings) -> float:
    if spent.all_levels == spent.level:
        return round(1 - spent.level, 12)
    if (left := together(spent.all_levels)) <= 0:
        raise PolicyError(
            f"earlier calibrations of {settings.model} on images of split {settings.split} have spent all "
            "error that a promise may have: label other images, or ask for more confidence from the start"
        )
    return left
