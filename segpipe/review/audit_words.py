"""What the audits say, in words that are true on every night."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from segpipe.name_groups import quoted
from segpipe.printable import printable
from segpipe.review.class_audit_words import found_of_class

if TYPE_CHECKING:
    from segpipe.review.audit import PolicyAudit, Unjudged
    from segpipe.review.audit_nights import Window


def in_words(audit: PolicyAudit) -> str:
    """The verdict on a policy's promise, and what to do."""
    of_group = f"group {printable(audit.group)}: " if audit.group else ""
    return of_group + _verdict(audit)


def _verdict(audit: PolicyAudit) -> str:
    if audit.suspended or audit.state == "broken":
        whose = "all masks of this group" if audit.group else "all masks"
        return (
            f"BROKEN: {'; '.join(_broken(audit))}; under this policy {whose} "
            "go to review: look at the masks found bad, then calibrate on images like these, or retrain"
        )
    if audit.target == "classes":
        return "nothing is promised of masks as such; what is promised of classes follows"
    if audit.uncovered and audit.uncovered == audit.accepted:
        return "not covered: of no accepted mask is it known to which group of images it belongs"
    if not audit.drawn:
        return "not watched: no accepted mask was drawn for the audit (see --audit-share of segpipe label)"
    if audit.kept_over:
        return f"promise kept {_over(audit, audit.kept_over)}; all nights: {_found(audit)}"
    if audit.recent is None or audit.recent.estimate is None:
        return f"not yet enough audits: {_found(audit)}{_two_bounds(audit)}{_more(audit)}"
    standing = _standing(audit, audit.recent)
    return f"{standing}; all nights: {_found(audit)}{_two_bounds(audit)}{_more(audit)}"


def unjudged_in_words(found: Unjudged) -> str:
    """Which policies cannot be judged, why, and which of them accept nothing already."""
    if found.model_id is None:
        return found.why
    named = f"policy {found.policy_ids[0]} of model {found.model_id}"
    others = (
        f", nor what grows of its model: {', '.join(found.policy_ids[1:])}" if found.policy_ids[1:] else ""
    )
    suspended = f"; suspended already: {', '.join(found.suspended)}" if found.suspended else ""
    return f"{named} cannot be audited{others}{suspended}: {found.why}"


def waiting_in_words(audit: PolicyAudit) -> str | None:
    """Which answers are missing; None when none is."""
    if not audit.open:
        return None
    held_back = f", {audit.held_back} answered ones wait behind the oldest" if audit.held_back else ""
    return f"{audit.open} audits to answer{held_back}: {audit.oldest_open} is next (answer or skip it)"


def skips_in_words(audit: PolicyAudit) -> str | None:
    """What the skipped audits could hide; None without any."""
    if not audit.skipped:
        return None
    without, with_them = (f"{bound:.3g}" for bound in (audit.upper, audit.upper_with_skips))
    hidden = (
        f"; if all of them are bad, the {_what(audit)} may be up to {with_them} and not {without}"
        if with_them != without
        else f"; nothing is known of the {_what(audit)}"
        if not audit.audited
        else ""
    )
    return (
        f"{audit.skipped} of {audit.skipped + audit.audited}{hidden}: a promise counts as kept only with "
        "skipped masks counted as bad"
    )


def uncovered_in_words(audit: PolicyAudit) -> str | None:
    """Which accepted masks are left out, as their group of images is not known; None without any."""
    if not audit.uncovered:
        return None
    those = f"{audit.uncovered} of {audit.accepted} accepted masks, such as {audit.uncovered_example}, are of"
    if audit.group_by is None:
        return (
            f"{those} no group that is known: the promise counts groups that groups.csv named, which names "
            "calibration images only; calibrate with --group-by"
        )
    return (
        f"{those} no group that the promise's pattern {quoted(audit.group_by)} surely finds, and count for "
        "nothing; calibrate with a --group-by that finds one in the path of each image below SOURCE"
    )


def night_in_words(audit: PolicyAudit) -> str | None:
    """That the promise is not one of each night; None where there is nothing to say about a night."""
    if audit.night_above is None or audit.estimate is None:
        return None
    return (
        f"the promise is of all accepted masks, not of each night: were {audit.estimate:.3g} of them bad, a "
        f"night of {audit.masks_a_night} would be above {audit.limit:.3g} by chance with probability "
        f"{audit.night_above:.2g}, some {365 * audit.night_above:.0f} nights a year"
    )


def _broken(audit: PolicyAudit) -> Iterator[str]:
    """What is shown broken; of a policy that was suspended before, and is not now, what is found of masks."""
    of_classes = [one for one in audit.classes if one.state == "broken"]
    if audit.target != "classes" and (audit.lower > audit.limit or not of_classes):
        yield f"{_found(audit)}, promised were at most {audit.limit:.3g}"
    for one in of_classes if of_classes or audit.target != "classes" else audit.classes:
        yield found_of_class(one)


def _standing(audit: PolicyAudit, recent: Window) -> str:
    """Where the promise stands that is neither shown kept nor broken."""
    found = f"{_what(audit)} {recent.estimate:.3g} {_over(audit, recent)}"
    before = f"; last shown kept on {audit.last_kept}" if audit.last_kept else ""
    if audit.got_worse:
        return f"got worse{before}: {found}"
    if recent.lower > audit.limit:
        return (
            f"worse than promised{before}: {found}, not yet on enough nights ({audit.nights}) to say that it "
            "will stay so: look at the masks found bad"
        )
    if before:
        return f"not shown kept any more{before}: {found}"
    if audit.no_better:
        return f"not yet known, and the audits look no better than promised: {found}"
    return f"not yet enough audits: {found}"


def _over(audit: PolicyAudit, window: Window) -> str:
    """What these nights' audits say about the masks accepted then."""
    audits = f"{window.audited} audits" + (f", {window.skipped} skipped" if window.skipped else "")
    nights = window.since if window.nights == 1 else f"{window.since} to {window.until}"
    return (
        f"over the last {audits} ({nights}): of the masks accepted then between {window.lower:.3g} and "
        f"{window.upper_with_skips:.3g} {'are bad' if audit.bad is not None else 'is the mean loss'}"
    )


def _two_bounds(audit: PolicyAudit) -> str:
    """Why a bound that is no worse than promised does not show the promise kept; else nothing."""
    if audit.estimate is None or audit.upper > audit.limit:
        return ""
    return (
        " by one look at all answers, without the skipped masks, which shows nothing by itself: a promise is "
        "shown kept by the last nights, at a part of the error, with skipped masks counted as bad"
    )


def _more(audit: PolicyAudit) -> str:
    if not audit.more_needed:
        return ""
    which = "good ones" if audit.estimate is None else "more like these"
    return f"; {audit.more_needed} {which} would show it kept"


def _found(audit: PolicyAudit) -> str:
    if audit.estimate is None:
        return f"{_what(audit)} unknown, no audit is answered"
    counted = f"{audit.bad} bad of {audit.audited}" if audit.bad is not None else f"{audit.audited} audits"
    return f"{_what(audit)} {audit.estimate:.3g} ({counted}), at most {audit.upper:.3g}"


def _what(audit: PolicyAudit) -> str:
    return "bad share" if audit.bad is not None else "mean loss"
