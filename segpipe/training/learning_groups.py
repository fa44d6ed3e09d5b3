"""Which images of a training belong together, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from segpipe.groups import image_groups
from segpipe.inspection.facts import SplitFacts
from segpipe.inspection.key_groups import suggested_groups
from segpipe.training.holdout import FEWEST_GROUPS

logger = logging.getLogger(__name__)
NAMED = 3


def learning_groups(facts: SplitFacts, pattern: str | None) -> list[str] | None:
    """The group of each usable image of a split, and a log line on what follows from them; None where nothing
    names groups. Raises DatasetError for an image without a group."""
    groups, keys = groups_of(facts, pattern), keys_of(facts)
    logger.info("%s", _assumed(groups, facts.split, keys))
    return groups


def groups_of(facts: SplitFacts, pattern: str | None) -> list[str] | None:
    """As image_groups, of the usable images of a split."""
    return image_groups(facts.dataset, keys_of(facts), pattern)


def keys_of(facts: SplitFacts) -> list[str]:
    """Of the usable images of a split."""
    return [sample.key for sample in facts.usable]


def _assumed(groups: Sequence[str] | None, split: str, keys: Sequence[str]) -> str:
    stretches = "what is held back for the judge is stretches of neighbouring keys"
    if groups is None:
        return f"nothing says which images of split {split} belong together: {stretches}{_hint(split, keys)}"
    count = len(set(groups))
    if count < FEWEST_GROUPS:
        return (
            f"the images of split {split} are of {count} group{'s' * (count != 1)}, too few to hold whole "
            f"ones back: {stretches} within them, and of other groups the score will know less than it "
            "seems to"
        )
    return f"the images of split {split} are of {count} groups: whole ones are held back for the judge"


def _hint(split: str, keys: Sequence[str]) -> str:
    found = suggested_groups({split: keys})
    if not found:
        return ""
    return (
        f"; if the keys name videos, cameras or patients, say so with groups.csv or --group-by "
        f"'{found[0].pattern}' ({found[0].groups} groups)"
    )


def shared_groups_line(
    taught: Sequence[str] | None, validating: Sequence[str] | None, split: str
) -> list[str]:
    """A warning where validation images are of groups that teach; none where nobody knows of groups."""
    shared = sorted(set(taught or ()) & set(validating or ()))
    if not shared:
        return []
    named = ", ".join(repr(name) for name in shared[:NAMED]) + (", ..." if len(shared) > NAMED else "")
    return [
        f"split {split} has images of groups that teach the networks ({named}): what is measured on it, and "
        "picks the best weights, is better than on images of another group; validate on groups of their own"
    ]
