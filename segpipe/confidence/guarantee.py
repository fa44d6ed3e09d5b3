"""A threshold with a promise: among the masks accepted, few are bad or little is lost, with given confidence.

Fixed-sequence testing, a case of Learn-then-Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021). Assumes
that calibration images and the images to come are exchangeable: drawn alike and independently. Frames of one
video are not independent: name their sequence as their group. Another domain is not the same draw; then the
promise is void.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincinv
from scipy.stats import binom, nbinom

from segpipe.confidence.betting import betting_p_value, losses_needed
from segpipe.errors import PolicyError

COVERAGE_STEP = 0.02  # finer steps would test nearly the same images again
BAD_TOLERATED_AT_START = 3  # a first test that forgives no bad image often ends the sequence by bad luck
LOSS_TOLERATED_AT_START = 0.8  # of the largest mean loss: of few images only a far smaller one would pass
SHARE_SPENT_ON_START = 0.25  # but it must not reach far into the doubtful images to afford that
RARE = 1e-9  # below it a binomial count is a Poisson one
MOST_BAD_CONSIDERED = 500  # beyond it the answer is thousands of labels, which is no advice
SEED = 0  # of draws that may look at neither scores nor labels


@dataclass(frozen=True)
class Certificate:
    """What the calibration images prove about the share of bad masks.

    `threshold` is the score from which masks are accepted, None when nothing can be promised. `accepted` of
    the `n_calibration` images score at least that, `bad` of them are bad, and `p_value` is the probability of
    so few if the promise were false (0, None and 1 without a threshold). `tested` thresholds were tested.
    `labelled_images_needed` says how many more labelled images would be needed, at the bad fraction observed,
    before something can be promised: 0 when it already is, None when no number is expected to help. With
    groups, all these count groups, not images.
    """

    threshold: float | None
    accepted: int
    bad: int | None
    p_value: float
    n_calibration: int
    max_bad_fraction: float
    confidence: float
    tested: int
    labelled_images_needed: int | None


@dataclass(frozen=True)
class MeanLossCertificate:
    """What the calibration images prove about the mean loss of the accepted masks.

    As Certificate, with `mean_loss`, 0 to 1, of the accepted images in place of `bad` (None without
    a threshold). `labelled_images_needed` supposes that further accepted images lose what those of the first
    tested threshold, or of a stricter one, lost: the same losses over and over until the test passes.
    """

    threshold: float | None
    accepted: int
    mean_loss: float | None
    p_value: float
    n_calibration: int
    max_mean_loss: float
    confidence: float
    tested: int
    labelled_images_needed: int | None


@dataclass(frozen=True)
class _Sequence:
    """Thresholds from strict to loose, and what each accepts of the calibration images."""

    thresholds: NDArray[np.float64]
    accepted: NDArray[np.int64]
    bad: NDArray[np.int64]


def certify(
    scores: ArrayLike,
    bad: ArrayLike,
    candidate_thresholds: ArrayLike,
    max_bad_fraction: float,
    confidence: float,
    group: Sequence[object] | None = None,
) -> Certificate:
    """Find the loosest threshold at which at most `max_bad_fraction` of accepted masks is bad.

    `scores` (n,) are the calibration images' raw scores, `bad` (n,) whether each mask is bad. An image is
    accepted when its score >= threshold; a NaN score never is. The candidates must be fixed without looking
    at `bad`; they are tested from the highest down with p = P(Binomial(accepted, max_bad_fraction) <= bad),
    as long as p <= 1 - confidence, and the last that passed is used.

    `group` (n,) names what each image belongs to, such as its video: images of a group may depend on each
    other, groups may not. One image of each is drawn (see one_per_group) and the test is made on those, so
    the promise is about a random image of a random group: each group weighs one, however many images it has.

    Thresholds too strict to pass with no bad image at all are skipped, not tested. That looks at scores and
    never at labels; it leaves the error probability at 1 - confidence if the bad fraction does not fall as
    the threshold loosens, and otherwise raises it by at most the probability that anything is skipped.

    Raises PolicyError when lengths differ, there is no image, an image has no group label where others may
    have, or a number is out of range.
    """
    score_values, is_bad = _checked_images(scores, bad)
    check_target("max bad fraction", max_bad_fraction, confidence)
    drawn = _drawn(len(score_values), group)
    sequence = _accepted_and_bad(score_values[drawn], is_bad[drawn], _strict_to_loose(candidate_thresholds))
    first = int(np.searchsorted(sequence.accepted, fewest_accepted(0, max_bad_fraction, confidence)))
    p_values = binom.cdf(sequence.bad, sequence.accepted, max_bad_fraction)
    passed = _passed_in_a_row(p_values[first:], confidence)
    last = first + len(passed) - 1
    return Certificate(
        threshold=float(sequence.thresholds[last]) if passed else None,
        accepted=int(sequence.accepted[last]) if passed else 0,
        bad=int(sequence.bad[last]) if passed else None,
        p_value=passed[-1] if passed else 1.0,
        n_calibration=len(drawn),
        max_bad_fraction=float(max_bad_fraction),
        confidence=float(confidence),
        tested=min(len(passed) + 1, len(p_values) - first),
        labelled_images_needed=0
        if passed
        else _labelled_images_needed(sequence, first, len(drawn), max_bad_fraction, confidence),
    )


def certify_mean_loss(
    scores: ArrayLike,
    losses: ArrayLike,
    candidate_thresholds: ArrayLike,
    max_mean_loss: float,
    confidence: float,
    group: Sequence[object] | None = None,
) -> MeanLossCertificate:
    """Find the loosest threshold at which the mean loss of accepted masks is at most `max_mean_loss`.

    As certify, with `losses` (n,) from 0 to 1, such as 1 - IoU, in place of `bad`, and with the betting
    p-value of Waudby-Smith and Ramdas (2024) on the losses of the accepted images, in an order shuffled
    beforehand (seeded). Raises PolicyError as certify does.
    """
    score_values, loss_values = _checked_losses(scores, losses)
    check_target("max mean loss", max_mean_loss, confidence)
    drawn = np.random.default_rng(SEED).permutation(_drawn(len(score_values), group))
    drawn_scores, drawn_losses = score_values[drawn], loss_values[drawn]
    thresholds = _strict_to_loose(candidate_thresholds)
    accepted = [drawn_losses[drawn_scores >= threshold] for threshold in thresholds]
    fewest = losses_needed([0.0], max_mean_loss, confidence) or math.inf
    first = int(np.searchsorted([len(part) for part in accepted], fewest))
    p_values = (betting_p_value(part, max_mean_loss, confidence) for part in accepted[first:])
    passed = _passed_in_a_row(p_values, confidence)
    last = first + len(passed) - 1
    return MeanLossCertificate(
        threshold=float(thresholds[last]) if passed else None,
        accepted=len(accepted[last]) if passed else 0,
        mean_loss=float(accepted[last].mean()) if passed else None,
        p_value=passed[-1] if passed else 1.0,
        n_calibration=len(drawn),
        max_mean_loss=float(max_mean_loss),
        confidence=float(confidence),
        tested=min(len(passed) + 1, len(accepted) - first),
        labelled_images_needed=0
        if passed
        else _labelled_for_mean_loss(accepted[: first + 1], len(drawn), max_mean_loss, confidence),
    )


def one_per_group(group: Sequence[object]) -> NDArray[np.int64]:
    """Row numbers of one image per group, drawn at random (seeded), in the order of the groups' names.

    `group` (n,) holds one label per image, compared as text. The draw depends on the labels and on the order
    of the images within their group, and in no group on the size of another. Raises PolicyError for an image
    without a label (None, NaN or empty): it may belong with any other.
    """
    labels, sizes = _labels(group)
    drawn = np.floor(np.random.default_rng(SEED).random(len(sizes)) * sizes).astype(np.int64)
    return np.argsort(labels, kind="stable")[np.cumsum(sizes) - sizes + drawn]


def one_per_group_by_size(group: Sequence[object]) -> NDArray[np.int64]:
    """As one_per_group, of groups that are kept in proportion to their size, the largest one surely.

    So each image drawn is a random one of all images, and no two are of one group.
    """
    rows = one_per_group(group)
    _, sizes = _labels(group)
    kept = np.random.default_rng(SEED + 1).random(len(sizes)) < sizes / sizes.max(initial=1)
    return rows[kept]


def _labels(group: Sequence[object]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """The label of each image as text, and how many images have each, in the order of the labels."""
    for row, label in enumerate(group):
        if label is None or label == "" or label != label:
            raise PolicyError(
                f"image {row} has no group ({label!r}): name one for every image, for one that belongs to "
                "none a name of its own"
            )
    labels = np.asarray([str(label) for label in group])
    return labels, np.unique(labels, return_counts=True)[1]


def candidate_thresholds(scores: ArrayLike, coverages: Sequence[float]) -> tuple[float, ...]:
    """Thresholds, strict to loose, that accept at least each given share of the (unlabelled) `scores`.

    Coverages are in (0, 1]. A NaN score counts as below every threshold, so some coverages may be out of
    reach and are left out; equal thresholds are given once. Raises PolicyError for a coverage out of range
    or no scores.

    Scores of images other than the calibration images make a fixed sequence in the strict sense. Quantiles of
    the calibration scores themselves are as valid, ties aside, where bad masks get no rarer as the score
    falls: given how many images lie above the score at which the promise turns false, each of the rest is at
    least as likely bad as allowed. The tests simulate both, and a score that breaks that order.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not values.size:
        raise PolicyError("no scores to take thresholds from: give the scores of at least one image")
    if not all(0 < coverage <= 1 for coverage in coverages):
        raise PolicyError("a coverage is outside (0, 1]: give shares of images to accept")
    falling = -np.sort(-values)  # NaN sorts last
    ranks = [max(math.ceil(coverage * len(falling) - 1e-9), 1) for coverage in coverages]
    at_ranks = falling[np.array(ranks, dtype=np.int64) - 1]
    return tuple(float(value) for value in np.unique(at_ranks[np.isfinite(at_ranks)])[::-1])


def coverages_to_test(n_calibration: int, max_bad_fraction: float, confidence: float) -> tuple[float, ...]:
    """Coverages from strict to loose, in (0, 1], for a sequence over `n_calibration` labelled images.

    They depend on these three numbers alone, as a fixed sequence must. The first accepts enough images to
    forgive up to three bad ones, fewer if that takes over a quarter of the images. Where even all images
    without a bad one are too few, they start at one image, only to tell how many more are needed.
    """
    check_target("max bad fraction", max_bad_fraction, confidence)
    enough = [fewest_accepted(bad, max_bad_fraction, confidence) for bad in range(BAD_TOLERATED_AT_START + 1)]
    affordable = [n for n in enough if n <= SHARE_SPENT_ON_START * n_calibration] or enough[:1]
    return _coverages(n_calibration, affordable[-1])


def coverages_to_test_mean_loss(
    n_calibration: int, max_mean_loss: float, confidence: float
) -> tuple[float, ...]:
    """As coverages_to_test, for certify_mean_loss.

    The first accepts a quarter of the images: more where so few cannot pass without any loss, fewer where
    fewer pass at a mean loss of 0.8 times the largest one.
    """
    check_target("max mean loss", max_mean_loss, confidence)
    fewest = losses_needed([0.0], max_mean_loss, confidence) or n_calibration + 1
    plenty = losses_needed([LOSS_TOLERATED_AT_START * max_mean_loss], max_mean_loss, confidence)
    affordable = int(SHARE_SPENT_ON_START * n_calibration)
    return _coverages(n_calibration, max(fewest, min(affordable, plenty or affordable)))


def fewest_accepted(bad: int, max_bad_fraction: float, confidence: float) -> int:
    """Fewest accepted images with which `bad` bad ones still pass the binomial test.

    The smallest n with P(Binomial(n, max_bad_fraction) <= bad) <= 1 - confidence, from the negative binomial;
    for a fraction below 1e-9 about that, at most 2**53.
    """
    if max_bad_fraction < RARE:  # the search for its quantile would not end
        return math.ceil(min(float(gammaincinv(bad + 1, confidence)) / max_bad_fraction, 2.0**53))
    return bad + 1 + int(nbinom.ppf(confidence, bad + 1, max_bad_fraction))


def _coverages(n_calibration: int, first_accepts: int) -> tuple[float, ...]:
    start = first_accepts if first_accepts <= n_calibration else 1
    return (*np.arange(start / n_calibration, 1 - COVERAGE_STEP / 2, COVERAGE_STEP).tolist(), 1.0)


def _checked_images(scores: ArrayLike, bad: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    score_values, labels = _one_of_each("bad", scores, bad)
    if not np.isin(labels, (0, 1)).all():
        raise PolicyError("bad holds values other than true and false: give one flag per image, not its IoU")
    return score_values, labels.astype(np.bool_)


def _checked_losses(scores: ArrayLike, losses: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    score_values, loss_values = _one_of_each("losses", scores, losses)
    outside = loss_values[~((loss_values >= 0) & (loss_values <= 1))]
    if outside.size:
        raise PolicyError(f"losses holds {outside[0]}, outside 0..1: give 1 - IoU or another such loss")
    return score_values, loss_values.astype(np.float64)


def _one_of_each(name: str, scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:
    score_values, label_values = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score_values.ndim != 1 or score_values.shape != label_values.shape:
        raise PolicyError(
            f"scores {score_values.shape} and {name} {label_values.shape} differ: give one of each per image"
        )
    if not score_values.size:
        raise PolicyError("no calibration images: a promise needs labelled images")
    return score_values, label_values


def _drawn(n_images: int, group: Sequence[object] | None) -> NDArray[np.int64]:
    if group is None:
        return np.arange(n_images)
    if len(group) != n_images:
        raise PolicyError(f"{n_images} scores and {len(group)} group labels differ: give one label per image")
    return one_per_group(group)


def check_target(name: str, limit: float, confidence: float) -> None:
    """Raise PolicyError for a limit or a confidence that is not between 0 and 1."""
    if not 0 < limit < 1:
        raise PolicyError(f"{name} {limit} is outside (0, 1): 0.1 is a usual choice")
    if not 0 < confidence < 1:
        raise PolicyError(f"confidence {confidence} is outside (0, 1): 0.95 is a usual choice")


def _strict_to_loose(thresholds: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(thresholds, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise PolicyError("a candidate threshold is not a finite number: take quantiles of finite scores")
    return np.unique(values)[::-1]


def _accepted_and_bad(
    scores: NDArray[np.float64], bad: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> _Sequence:
    surest_first = np.argsort(-scores)  # NaN sorts last, beyond every threshold
    bad_so_far = np.concatenate([[0], np.cumsum(bad[surest_first])])
    accepted = np.searchsorted(-scores[surest_first], -thresholds, side="right")
    return _Sequence(thresholds, accepted, bad_so_far[accepted])


def _passed_in_a_row(p_values: Iterable[float], confidence: float) -> list[float]:
    return [float(p_value) for p_value in takewhile(lambda p_value: p_value <= 1 - confidence, p_values)]


def _labelled_images_needed(
    sequence: _Sequence, first: int, n_calibration: int, max_bad_fraction: float, confidence: float
) -> int | None:
    """More images until one threshold passes at its observed bad fraction.

    Thresholds looser than the first tested cannot come into play before that one passes.
    """
    enough = _images_by_bad(max_bad_fraction, confidence)
    return _more_images(
        (
            (int(accepted), _accepted_needed(bad / accepted, enough))
            for accepted, bad in zip(sequence.accepted[: first + 1], sequence.bad[: first + 1], strict=True)
            if accepted
        ),
        n_calibration,
    )


def _labelled_for_mean_loss(
    accepted: list[NDArray[np.float64]], n_calibration: int, max_mean_loss: float, confidence: float
) -> int | None:
    """The same for the losses of the images that each threshold accepts."""
    return _more_images(
        ((len(part), losses_needed(part, max_mean_loss, confidence)) for part in accepted if part.size),
        n_calibration,
    )


def _more_images(accepted_and_needed: Iterable[tuple[int, int | None]], n_calibration: int) -> int | None:
    """Fewest more calibration images by which one threshold accepts as many as it needs."""
    totals = [
        math.ceil(needed * n_calibration / accepted)
        for accepted, needed in accepted_and_needed
        if needed is not None
    ]
    return max(min(totals) - n_calibration, 1) if totals else None


def _images_by_bad(max_bad_fraction: float, confidence: float) -> NDArray[np.int64]:
    bad = np.arange(MOST_BAD_CONSIDERED + 1)
    return bad + 1 + nbinom.ppf(confidence, bad + 1, max_bad_fraction).astype(np.int64)


def _accepted_needed(bad_fraction: float, enough: NDArray[np.int64]) -> int | None:
    would_pass = np.flatnonzero(bad_fraction * enough <= np.arange(len(enough)))
    return int(enough[would_pass[0]]) if would_pass.size else None
