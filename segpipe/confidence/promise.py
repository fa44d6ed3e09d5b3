"""A policy's promise in words: what a user signs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from scipy.stats import binom

from segpipe.confidence.guarantee import fewest_accepted
from segpipe.confidence.policy import (
    BadFractionPromise,
    ClassesOnly,
    ClassPromise,
    GroupCertificate,
    MaskPromise,
    MeanLossPromise,
    Policy,
)
from segpipe.name_groups import quoted
from segpipe.printable import printable

GROUPS_NAMED = 6
NIGHTS = (50, 1000)  # accepted masks of a small and of a large one


def promise(policy: Policy) -> str:
    """The sentence a user signs; without a threshold, what would be needed for one."""
    target = f"{_wanted(policy)}, with {_percent(policy.confidence)} confidence{_weights(policy)}"
    if policy.per is not None:
        return _by_group(policy, target)
    if policy.threshold is not None:
        return f"{target} ({'; '.join(_grounds(policy))})"
    return f"nothing is accepted: {_rests_on(policy)} cannot prove that {target}; {_remedy(policy)}"


def meaning(policy: Policy) -> str:
    """What the promise says of one night and of a year, and what its confidence is about."""
    return (
        f"the {_percent(policy.confidence)} are about this calibration, which is right or wrong as a whole, "
        f"on every night alike; what is promised is the average over a year of nights{_of_a_night(policy)}"
    )


def not_audited(policy: Policy) -> Iterator[str]:
    """What of the promise `segpipe audit` cannot watch."""
    if policy.class_promises and policy.counts_groups_once:
        yield (
            "segpipe audit does not cover what is promised about classes where each group of images counts "
            "once: calibrate with --promise-about masks, or again on new images now and then"
        )
    if policy.group_by is None and policy.counts_groups_once:
        yield (
            "segpipe audit does not cover a promise that counts the groups of groups.csv, which names no "
            "labelled images: calibrate with --group-by"
        )


def _of_a_night(policy: Policy) -> str:
    """How often chance alone puts a night above the limit."""
    match policy.promised:
        case BadFractionPromise(max_bad_fraction=limit):
            kept = 0.8 * limit
            over = [float(binom.sf(math.floor(limit * n + 1e-9), n, kept)) for n in NIGHTS]
            said = ", in ".join(
                f"{part:.0%} of nights of {n} accepted" for n, part in zip(NIGHTS, over, strict=True)
            )
            return f": at truly {_percent(kept)}, more than {_percent(limit)} is bad in {said}"
        case _:
            return ": a small night can be worse by chance"


def growth_in_words(policy: Policy) -> str | None:
    """How the certificate grows, and what that costs; None for one that does not."""
    if policy.growth is None or not isinstance(policy.promised, BadFractionPromise):
        return None
    limit = policy.promised.max_bad_fraction
    at_once = fewest_accepted(0, limit, policy.tested_confidence)
    growing = fewest_accepted(0, limit, (1 + policy.tested_confidence) / 2)
    return (
        f"with the reviews of at least {_percent(policy.growth.draw_share)} of all masks, as the reviewers "
        f"judge them (segpipe recalibrate); half of the error is kept for that: {growing} accepted "
        f"calibration images without a bad one prove something, instead of {at_once}"
    )


def _grounds(policy: Policy) -> Iterator[str]:
    """What a threshold rests on."""
    if policy.certified_threshold is not None:
        yield _evidence(policy)
    if policy.growth is not None and (evidence := policy.growth.evidence) is not None:
        yield (
            f"grown with {evidence.drawn} reviewed masks drawn blind, {evidence.bad} bad of "
            f"{evidence.accepted} accepted among them"
        )


def _by_group(policy: Policy, target: str) -> str:
    """What each group's own certificate says, and what becomes of the other groups."""
    proven = [one for one in policy.certificates if one.threshold is not None]
    unproven = [one for one in policy.certificates if one.threshold is None]
    if not proven:
        of_each = "; ".join(_some([_why_not(policy, one) for one in unproven]))
        return f"nothing is accepted: of no group is it proven that {target}: {of_each}"
    certified = ", ".join(
        _some([f"{printable(one.group)} ({_evidence(policy.of_group(one))})" for one in proven])
    )
    others = "; ".join(_some([_why_not(policy, one) for one in unproven]))
    reviewed = f"; without a certificate, so all to review: {others}" if others else ""
    return (
        f"{target}, of each of {len(proven)} groups by itself, so that of many certificates some may be "
        f"wrong: {certified}{reviewed}; every other group goes to review"
    )


def _why_not(policy: Policy, one: GroupCertificate) -> str:
    return f"{printable(one.group)} ({_remedy(policy.of_group(one))})"


def _some(named: list[str]) -> list[str]:
    more = len(named) - GROUPS_NAMED
    return [*named[:GROUPS_NAMED], *([f"{more} more"] if more > 0 else [])]


def _evidence(policy: Policy) -> str:
    return f"accepted {policy.accepted} of {_rests_on(policy)}{''.join(f', {one}' for one in _found(policy))}"


def _rests_on(policy: Policy) -> str:
    if policy.whole_groups is not None:
        return f"{_counted(policy.n_images, False, 'calibration')} in {policy.whole_groups} groups"
    return _counted(policy.n_calibration, _is_grouped(policy), "calibration")


def _is_grouped(policy: Policy) -> bool:
    return policy.n_calibration < policy.n_images


def _weights(policy: Policy) -> str:
    found_by = "" if policy.group_by is None else f" (by {quoted(policy.group_by)})"
    if policy.promises_about == "masks":
        return f", each mask counting once, of groups{found_by} of at most {policy.largest_group} images"
    return f", each group of images{found_by} counting once" if _is_grouped(policy) else ""


def _wanted(policy: Policy) -> str:
    parts = [*_wanted_of_masks(policy.promised), *(_wanted_of_class(one) for one in policy.class_promises)]
    return ", and ".join(parts)


def _wanted_of_masks(promised: MaskPromise) -> Iterator[str]:
    match promised:
        case BadFractionPromise():
            yield (
                f"at most {_percent(promised.max_bad_fraction)} of accepted masks have IoU below "
                f"{_iou(promised.min_iou)}"
            )
        case MeanLossPromise():
            yield f"accepted masks have a mean IoU of at least {_iou(1 - promised.max_mean_loss)}"
        case ClassesOnly():
            return


def _wanted_of_class(one: ClassPromise) -> str:
    share, name = _percent(one.max_share), repr(one.class_name)
    size = "" if one.min_object_px == 1 else f" (at least {one.min_object_px} pixels of it)"
    if one.kind == "miss":
        return f"of the images that have {name}{size} at most {share} are accepted with a mask without it"
    return f"of the images without {name}{size} at most {share} are accepted with a mask that shows it"


def _found(policy: Policy) -> Iterator[str]:
    match policy.promised:
        case BadFractionPromise():
            yield f"{policy.promised.bad} bad"
        case MeanLossPromise():
            assert policy.promised.mean_loss is not None  # a threshold accepts something
            yield f"mean IoU {1 - policy.promised.mean_loss:.2f}"
        case ClassesOnly():
            pass
    for one in policy.class_promises:
        wrong = "accepted without it" if one.kind == "miss" else "accepted with it shown"
        yield f"of {_with_class(one, policy)} {one.found} {wrong}"


def _with_class(one: ClassPromise, policy: Policy, more: str = "") -> str:
    """So many images, or groups of them, that have the class or have it not."""
    preposition = "with" if one.kind == "miss" else "without"
    count = one.labelled_images_needed if more else one.n_images
    assert count is not None  # asked for only where there is one
    kind = "labelled" if more else "calibration"
    return f"{_counted(count, _is_grouped(policy), kind, more)} {preposition} {one.class_name!r}"


def _remedy(policy: Policy) -> str:
    parts = [*_remedy_of_masks(policy), *(_remedy_of_class(one, policy) for one in _unproven(policy))]
    said = "; ".join(parts) or (
        "each can be kept by itself, but no threshold keeps all: improve the model, or promise less"
    )
    return said if policy.growth is None else f"{said}; or reviews of drawn masks prove it in time"


def _unproven(policy: Policy) -> list[ClassPromise]:
    return [one for one in policy.class_promises if one.labelled_images_needed != 0]


def _remedy_of_masks(policy: Policy) -> Iterator[str]:
    more = policy.labelled_images_needed
    if isinstance(policy.promised, ClassesOnly) or more == 0:
        return
    if more is None:
        yield f"more labels are not expected to help: improve the model, {_easier(policy.promised)}"
        return
    yield f"about {_counted(more, _is_grouped(policy), 'labelled', 'more ')} {_are(more)} needed"


def _remedy_of_class(one: ClassPromise, policy: Policy) -> str:
    more = one.labelled_images_needed
    if more is None:
        wrong = "do not show" if one.kind == "miss" else "show"
        return (
            f"the surest masks of all wrongly {wrong} {one.class_name!r}: improve the model, or allow a "
            "larger share"
        )
    return (
        f"{_with_class(one, policy, 'more ')} {_are(more)} needed (there {_are(one.n_images)} {one.n_images})"
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


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
