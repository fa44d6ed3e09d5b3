"""What the audits say of a promise about a class, in words that are true on every night."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segpipe.review.class_audit import ClassAudit, ClassWindow


def class_in_words(found: ClassAudit) -> str:
    """The verdict on one promise about a class."""
    if found.state == "not_covered":
        return (
            "not covered: the promise counts each group of images once, and of how many images of a group it "
            "is about a draw does not tell; calibrate with --promise-about masks for one that is audited"
        )
    if found.state == "broken":
        return f"BROKEN: {found_of_class(found)}"
    if found.kept_over:
        return f"promise kept {_over_images(found, found.kept_over)}; all nights: {found_of_class(found)}"
    if found.recent is None or found.recent.estimate is None:
        return f"not yet enough: {found_of_class(found)}{_more_images(found)}"
    told = f"{_over_images(found, found.recent)}; all nights: {found_of_class(found)}"
    if found.recent.lower > found.limit:
        return f"worse than promised {told}; not yet on enough nights ({found.nights}) to suspend the policy"
    if found.no_better:
        return f"not yet known, and the answers look no better than promised: {told}"
    return f"not yet enough: {told}{_more_images(found)}"


def found_of_class(found: ClassAudit) -> str:
    """What all nights say of one promise about a class."""
    if found.estimate is None:
        counted = f"no audited image {_with(found)} is known"
    else:
        counted = (
            f"share {_wrong(found)} {found.estimate:.3g} ({found.wrong} of {found.audited} audited images "
            f"{_with(found)}, {found.reviewed} such in review), at most {found.upper:.3g}"
        )
    return f"{counted}, promised at most {found.limit:.3g}{_unseen(found)}"


def _unseen(found: ClassAudit) -> str:
    if not found.unseen:
        return ""
    others = found.unseen - found.stood_for
    drawn = f"those drawn at random stand for {found.stood_for}" if found.stood_for else ""
    could_be = "any could be such" if not found.stood_for else f"any of the other {others} could be such"
    return f"; {found.unseen} masks in review are not answered: " + ", and ".join(
        part for part in (drawn, could_be if others else "") if part
    )


def _over_images(found: ClassAudit, window: ClassWindow) -> str:
    hidden = f" and {window.hidden} without an answer taken for wrong ones" if window.hidden else ""
    nights = window.since if window.since == window.until else f"{window.since} to {window.until}"
    return (
        f"over the last {window.audited} audited images {_with(found)}{hidden} ({nights}): of all such "
        f"images then between {window.lower:.3g} and {window.upper_with_hidden:.3g} are {_wrong(found)}"
    )


def _more_images(found: ClassAudit) -> str:
    if not found.more_needed:
        return ""
    return f"; {found.more_needed} more audited images {_with(found)} like these would show it kept"


def _with(found: ClassAudit) -> str:
    return f"{'with' if found.kind == 'miss' else 'without'} {found.class_name!r}"


def _wrong(found: ClassAudit) -> str:
    return "accepted without it" if found.kind == "miss" else "accepted with it shown"
