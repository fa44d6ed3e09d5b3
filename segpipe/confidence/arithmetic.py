"""Whether a policy's numbers agree with each other: what its own file is enough to recompute, recomputed.

It catches a policy that was damaged or made up carelessly, not one made up with care: the calibration images
are not in the file. Never trust a policy from a place you do not trust: calibrate the model yourself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from segpipe.confidence import class_test
from segpipe.confidence.betting import LARGEST_BET
from segpipe.confidence.display import displayed
from segpipe.confidence.growing import bad_ratio, capital_needed, most_log_capital
from segpipe.name_groups import compiled
from segpipe.printable import printable

if TYPE_CHECKING:
    from segpipe.confidence.growing import Evidence, Growth
    from segpipe.confidence.policy import (
        BadFractionPromise,
        ClassPromise,
        GroupCertificate,
        MaskPromise,
        MeanLossPromise,
        Policy,
    )

N_QUANTILES = 101  # the minimum, every percentile, the maximum
ROUNDING = 1e-9  # of quantiles, which are interpolated
TOLERANCE = 1e-6  # of the p-value, relative: it is recomputed, maybe by another version of scipy


def disagreements(policy: Policy) -> Iterator[str]:
    """What in the policy cannot be, a phrase each; nothing for every policy that make_policy makes."""
    yield from _score_map(policy)
    if policy.model_digest is not None and not policy.model_digest.startswith(policy.model_id):
        yield f"model_digest does not begin with model_id {policy.model_id}"
    yield from _look(policy)
    yield from _evidence(policy)
    if (
        policy.certified_threshold is not None
        and (found := _mean_iou_found(policy.promised, policy.accepted)) is not None
    ):
        yield from _shown(policy, found)
    yield from _certificates(policy)
    if policy.growth is not None:
        yield from _grown(policy, policy.growth)


def _look(policy: Policy) -> Iterator[str]:
    if policy.look is None:
        return
    if policy.look.confidence != policy.confidence:
        yield f"confidence {policy.confidence:g} is not that of look, {policy.look.confidence:g}"
    if policy.look.level > (1 - policy.confidence) * (1 + TOLERANCE):
        yield f"the level {policy.look.level:g} of look is above 1 - confidence {policy.confidence:g}"


def _evidence(policy: Policy) -> Iterator[str]:
    """What a threshold rests on, the policy's own or that of one group."""
    yield from _counts(policy)
    if len(policy.score_quantiles) != N_QUANTILES or not _rises(policy.score_quantiles):
        yield f"score_quantiles are not {N_QUANTILES} rising numbers"
        return
    certified = policy.certified_threshold
    yield from _without_threshold(policy) if certified is None else _with(policy, certified)
    yield from _class_promises(policy)


def _certificates(policy: Policy) -> Iterator[str]:
    if (policy.per is None) != (not policy.certificates) or (
        policy.certificates and policy.threshold is not None
    ):
        yield "certificates are there with per alone, and without a threshold for all"
    if policy.per is not None and not _compiles(policy.per):
        yield "per is no regular expression"
    groups = [one.group for one in policy.certificates]
    if len(set(groups)) < len(groups) or sum(one.n_images for one in policy.certificates) > policy.n_images:
        yield "certificates name a group twice, or more images than there are"
    for one in policy.certificates:
        yield from (f"certificate of {printable(one.group)}: {what}" for what in _of_group(policy, one))


def _of_group(policy: Policy, certificate: GroupCertificate) -> Iterator[str]:
    own = policy.of_group(certificate)
    if _promised(own) != _promised(policy):
        yield "it promises something else than the policy"
    yield from _evidence(own)


def _promised(policy: Policy) -> tuple[object, ...]:
    """What is promised, without what was found."""
    masks = asdict(policy.promised) | {"bad": None, "mean_loss": None}
    return masks, *(
        (one.kind, one.class_index, one.max_share, one.min_object_px) for one in policy.class_promises
    )


def _compiles(pattern: str) -> bool:
    try:
        compiled(pattern)
    except re.error:
        return False
    return True


def _counts(policy: Policy) -> Iterator[str]:
    if not 1 <= policy.n_calibration <= policy.n_images:
        yield f"n_calibration {policy.n_calibration} is not from 1 to n_images {policy.n_images}"
    if policy.whole_groups is not None:
        yield from _counts_of_whole_groups(policy, policy.whole_groups)
    elif policy.accepted > policy.n_calibration:
        yield f"accepted {policy.accepted} is more than n_calibration {policy.n_calibration}"
    elif policy.accepted + (policy.held_back or 0) > policy.n_calibration:
        yield f"accepted {policy.accepted} and held_back {policy.held_back} are more than n_calibration"
    suffice = policy.labelled_images_needed == 0
    # Of masks there may be enough where it is a class that is not proven.
    if suffice != (policy.certified_threshold is not None) and not (suffice and policy.class_promises):
        yield "labelled_images_needed is 0 with a threshold, and never without"


def _counts_of_whole_groups(policy: Policy, n_groups: int) -> Iterator[str]:
    """Then accepted counts images; at least two a group, and one of each group was drawn, or of some."""
    if policy.promises_about is None or not 1 <= 2 * n_groups <= policy.n_images:
        yield f"whole_groups {n_groups} of n_images {policy.n_images}"
    if policy.accepted > policy.n_images or policy.n_calibration > n_groups:
        yield f"accepted {policy.accepted} of n_images {policy.n_images} in whole_groups {n_groups}"


def _score_map(policy: Policy) -> Iterator[str]:
    if not 1 <= len(policy.display_scores) == len(policy.display_values):
        yield "display_scores and display_values are not as many"
    if not all(low < high for low, high in pairwise(policy.display_scores)):
        yield "display_scores do not increase"
    if not _rises(policy.display_values):
        yield "display_values fall"


def _rises(values: Sequence[float]) -> bool:
    return all(low <= high for low, high in pairwise(values))


def _without_threshold(policy: Policy) -> Iterator[str]:
    if (policy.accepted, policy.p_value, _found(policy.promised)) != (0, 1, None):
        yield "without a threshold accepted is 0, p_value 1 and what was found among the accepted null"


def _found(promised: MaskPromise) -> float | None:
    match promised.target:
        case "bad_fraction":
            return promised.bad
        case "mean_loss":
            return promised.mean_loss
        case "classes":
            return None


def _with(policy: Policy, threshold: float) -> Iterator[str]:
    if policy.accepted < 1:
        yield f"with a threshold accepted {policy.accepted}"
    elif policy.whole_groups is None:
        yield from _counted_by_quantiles(policy, threshold)
    error, of_it = 1 - policy.tested_confidence, "" if policy.growth is None else "half of "
    if policy.p_value > (error / 2 if of_it else error) * (1 + TOLERANCE):  # the other half is for growth
        yield f"p_value {policy.p_value:g} is above {of_it}1 - confidence {policy.tested_confidence:g}"
    match policy.promised.target:
        case "bad_fraction":
            yield from _counted_bad(policy, policy.promised)
        case "mean_loss":
            yield from _averaged(policy, policy.promised)
        case "classes":
            yield from _of_classes_alone(policy)


def _counted_by_quantiles(policy: Policy, threshold: float) -> Iterator[str]:
    if policy.accepted > _most_accepted(policy, threshold):
        yield f"so many of those scores are not at least threshold {threshold:g}: accepted {policy.accepted}"
    if policy.accepted < _fewest_accepted(policy, threshold):
        yield f"more of those scores are at least threshold {threshold:g}: accepted {policy.accepted}"


def _most_accepted(policy: Policy, threshold: float) -> int:
    """How many calibration scores can be at least `threshold`, going by their quantiles.

    A quantile below it lies above the score of the rank before, so that one is below it, too.
    """
    surely_below = threshold - ROUNDING * max(1, abs(threshold))
    below = sum(value < surely_below for value in policy.score_quantiles)
    n, last = _scored(policy), max(below - 1, 0)
    return n - math.ceil(last * (n - 1) / (N_QUANTILES - 1))


def _fewest_accepted(policy: Policy, threshold: float) -> int:
    """How few calibration images the threshold can have accepted, going by the quantiles of their scores.

    A quantile of at least it lies at most at the score of the rank after, so that this one and all above are
    at least it, too; but for those that were held back.
    """
    if policy.guards and policy.held_back is None:
        return 0  # nobody knows how many the guards held back
    surely_above = threshold + ROUNDING * max(1, abs(threshold))
    below = sum(value < surely_above for value in policy.score_quantiles)
    if below == N_QUANTILES:
        return 0
    n, guarded = _scored(policy), (policy.held_back or 0) if policy.guards else 0
    return n - math.ceil(below * (n - 1) / (N_QUANTILES - 1)) - guarded


def _scored(policy: Policy) -> int:
    """Calibration images whose scores the quantiles are of, at most: what no guard held back has none."""
    return policy.n_calibration - (0 if policy.guards else policy.held_back or 0)


def _mean_iou_found(promised: MaskPromise, accepted: int) -> float | None:
    """What the mean IoU of the accepted calibration images was, or was at least."""
    match promised.target:
        case "mean_loss":
            return None if promised.mean_loss is None else 1 - promised.mean_loss
        case "bad_fraction":
            return None if promised.bad is None else promised.min_iou * (1 - promised.bad / max(accepted, 1))
        case "classes":
            return None


def _shown(policy: Policy, found: float) -> Iterator[str]:
    """The map that shows an IoU for each score was fitted to the same images, so it shows no lower mean."""
    same_images = policy.n_images == policy.n_calibration and not policy.guards and not policy.held_back
    if same_images and found > (most := _highest_mean_shown(policy)) + TOLERANCE:
        yield f"of accepted {policy.accepted} the mean IoU shown is at most {most:g}, and {found:g} was found"


def _highest_mean_shown(policy: Policy) -> float:
    """The highest mean of what is shown for the best `accepted` of the calibration scores.

    A score is at most the next quantile from its rank on. What the map shows does not fall with the score.
    """
    n, steps = policy.n_calibration, N_QUANTILES - 1
    ranks = (place * (n - 1) // steps for place in range(N_QUANTILES))  # the last that each quantile bounds
    counted = [max(0, rank - (n - policy.accepted) + 1) for rank in ranks]
    bounds = [value + ROUNDING * max(1, abs(value)) for value in policy.score_quantiles]
    shown = displayed(bounds, (policy.display_scores, policy.display_values))
    return float(shown @ np.diff(counted, prepend=0)) / max(policy.accepted, 1)


def _counted_bad(policy: Policy, promised: BadFractionPromise) -> Iterator[str]:
    if promised.bad is None or promised.bad > policy.accepted:
        yield f"bad {promised.bad} of accepted {policy.accepted}"
        return
    if policy.whole_groups is not None:
        yield from _bet(policy, promised.max_bad_fraction, policy.whole_groups)
        return
    p_value = float(binom.cdf(promised.bad, policy.accepted, promised.max_bad_fraction))
    if not math.isclose(policy.p_value, p_value, rel_tol=TOLERANCE):
        yield f"p_value {policy.p_value:g} of {promised.bad} bad of {policy.accepted} is {p_value:g}"


def _grown(policy: Policy, growth: Growth) -> Iterator[str]:
    """What a grown threshold rests on is in OUTPUT; here, whether its figures can be."""
    if policy.promised.target != "bad_fraction" or policy.class_promises or policy.per is not None:
        yield "only a promise about the share of bad masks can grow"
        return
    if not all(strict > loose for strict, loose in pairwise(growth.thresholds)):
        yield "growth.thresholds do not fall"
    if not (growth.evidence is None) == (growth.root is None) == (growth.number == 0):
        yield f"growth number {growth.number} with root {growth.root} and evidence or without"
    if growth.evidence is not None:
        yield from _growth_evidence(policy, growth, growth.evidence, policy.promised.max_bad_fraction)


def _growth_evidence(policy: Policy, growth: Growth, found: Evidence, limit: float) -> Iterator[str]:
    if not found.bad <= found.accepted <= found.drawn:
        yield f"growth: {found.bad} bad of {found.accepted} accepted of {found.drawn} drawn"
    answered, bad = found.answered_with_draft, found.bad_with_draft
    if not (bad <= answered and found.bad_from_scratch <= found.answered_from_scratch):
        yield "growth: more bad than answered"
    if answered + found.answered_from_scratch > found.accepted or bad + found.bad_from_scratch > found.bad:
        yield "growth: more answered than accepted, or more of them bad"
    ratio = bad_ratio(
        found.bad_from_scratch, found.answered_from_scratch, bad, answered, policy.tested_confidence
    ).estimate
    if not math.isclose(_known(ratio), _known(found.ratio), rel_tol=TOLERANCE):
        yield f"growth: ratio {found.ratio} of these counts is {ratio}"
    if found.log_capital > max(0, most_log_capital(found.accepted - found.bad, limit)) + TOLERANCE:
        yield f"growth: log_capital {found.log_capital:g} is too large for {found.accepted} accepted"
    if policy.threshold != found.first_threshold:
        yield from _loosened(policy, growth, found)


def _known(ratio: float | None) -> float:
    return -1.0 if ratio is None or math.isinf(ratio) else ratio


def _loosened(policy: Policy, growth: Growth, found: Evidence) -> Iterator[str]:
    if policy.threshold not in growth.thresholds:
        yield f"threshold {policy.threshold} is neither calibration's nor one that growth was to try"
    elif found.first_threshold is not None and policy.threshold > found.first_threshold:
        yield f"threshold {policy.threshold:g} is stricter than calibration's {found.first_threshold:g}"
    if found.log_capital < capital_needed(policy.tested_confidence) - TOLERANCE:
        yield f"growth: log_capital {found.log_capital:g} proves nothing at confidence {policy.confidence:g}"


def _averaged(policy: Policy, promised: MeanLossPromise) -> Iterator[str]:
    if promised.mean_loss is None:
        yield "mean_loss is null with a threshold"
    n_bets = policy.accepted if policy.whole_groups is None else policy.whole_groups
    yield from _bet(policy, promised.max_mean_loss, n_bets)


def _bet(policy: Policy, limit: float, n_bets: int) -> Iterator[str]:
    """The losses are not there; but no bet wins more than the largest one on a loss of 0."""
    log_smallest = -n_bets * math.log1p(LARGEST_BET * limit / (1 - limit))
    if policy.p_value < math.exp(log_smallest) * (1 - TOLERANCE):
        yield f"p_value {policy.p_value:g} is too small for accepted {policy.accepted}"


def _of_classes_alone(policy: Policy) -> Iterator[str]:
    largest = max((one.p_value for one in policy.class_promises), default=1.0)
    if not math.isclose(policy.p_value, largest, rel_tol=TOLERANCE):
        yield f"p_value {policy.p_value:g} is not the largest of its classes', {largest:g}"


def _class_promises(policy: Policy) -> Iterator[str]:
    named = [(one.kind, one.class_index) for one in policy.class_promises]
    if len(set(named)) < len(named) or (policy.promised.target == "classes" and not named):
        yield "class_promises promise nothing, or the same twice"
    for one in policy.class_promises:
        yield from _counted_class(policy, one)


def _counted_class(policy: Policy, one: ClassPromise) -> Iterator[str]:
    about = f"class_promises of {one.kind} {printable(one.class_name)}"
    if one.n_images > policy.n_calibration:
        yield f"{about}: n_images {one.n_images} is more than n_calibration {policy.n_calibration}"
    if policy.threshold is None:
        if (one.found, one.p_value) != (None, 1):
            yield f"{about}: without a threshold found is null and p_value 1"
    elif one.found is None or one.found > one.n_images or one.labelled_images_needed != 0:
        yield f"{about}: found {one.found} of {one.n_images}, {one.labelled_images_needed} more needed"
    else:
        yield from _tested_class(policy, one, about)


def _tested_class(policy: Policy, one: ClassPromise, about: str) -> Iterator[str]:
    assert one.found is not None  # there is a threshold
    p_value = class_test.p_value(one.found, one.n_images, one.max_share)
    if not math.isclose(one.p_value, p_value, rel_tol=TOLERANCE):
        yield f"{about}: p_value {one.p_value:g} of {one.found} of {one.n_images} is {p_value:g}"
    if one.p_value > (1 - policy.tested_confidence) * (1 + TOLERANCE):
        yield f"{about}: p_value {one.p_value:g} is above 1 - confidence {policy.tested_confidence:g}"
