"""A threshold with a promise: of the masks accepted, at most a given fraction is bad, with given confidence.

Fixed-sequence testing, a case of Learn-then-Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021). Assumes
that calibration images and the images to come are exchangeable: drawn alike and independently. Frames of one
video are not independent, and another domain is not the same draw; then the promise is void.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, nbinom

from segpipe.errors import PolicyError

COVERAGE_STEP = 0.02  # finer steps would test nearly the same images again
BAD_TOLERATED_AT_START = 3  # a first test that forgives no bad image often ends the sequence by bad luck
SHARE_SPENT_ON_START = 0.25  # but it must not reach far into the doubtful images to afford that
MOST_BAD_CONSIDERED = 500  # beyond it the answer is thousands of labels, which is no advice


@dataclass(frozen=True)
class Certificate:
    """What the calibration images prove.

    `threshold` is the score from which masks are accepted, None when nothing can be promised. `accepted` of
    the `n_calibration` images score at least that, `bad` of them are bad, and `p_value` is the probability of
    so few if the promise were false (0, 0 and 1 without a threshold). `tested` thresholds were tested.
    `labelled_images_needed` says how many more labelled images would be needed, at the bad fraction observed,
    before something can be promised: 0 when it already is, None when no number is expected to help.
    """

    threshold: float | None
    accepted: int
    bad: int
    p_value: float
    n_calibration: int
    max_bad_fraction: float
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
) -> Certificate:
    """Find the loosest threshold at which at most `max_bad_fraction` of accepted masks is bad.

    `scores` (n,) are the calibration images' raw scores, `bad` (n,) whether each mask is bad. An image is
    accepted when its score >= threshold; a NaN score never is. The candidates must be fixed without looking
    at `bad`; they are tested from the highest down with p = P(Binomial(accepted, max_bad_fraction) <= bad),
    as long as p <= 1 - confidence, and the last that passed is used.

    Thresholds too strict to pass with no bad image at all are skipped, not tested. That looks at scores and
    never at labels; it leaves the error probability at 1 - confidence if the bad fraction does not fall as
    the threshold loosens, and otherwise raises it by at most the probability that anything is skipped.

    Raises PolicyError when lengths differ, there is no image, or a number is out of range.
    """
    score_values, is_bad = _checked_images(scores, bad)
    _check_target(max_bad_fraction, confidence)
    sequence = _accepted_and_bad(score_values, is_bad, _strict_to_loose(candidate_thresholds))
    p_values = binom.cdf(sequence.bad, sequence.accepted, max_bad_fraction)
    first = _first_that_could_pass(sequence.accepted, max_bad_fraction, confidence)
    passed = _passed_in_a_row(p_values[first:] <= 1 - confidence)
    last = first + passed - 1
    return Certificate(
        threshold=float(sequence.thresholds[last]) if passed else None,
        accepted=int(sequence.accepted[last]) if passed else 0,
        bad=int(sequence.bad[last]) if passed else 0,
        p_value=float(p_values[last]) if passed else 1.0,
        n_calibration=len(score_values),
        max_bad_fraction=float(max_bad_fraction),
        confidence=float(confidence),
        tested=min(passed + 1, len(p_values) - first),
        labelled_images_needed=0
        if passed
        else _labelled_images_needed(sequence, first, len(score_values), max_bad_fraction, confidence),
    )


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
    _check_target(max_bad_fraction, confidence)
    enough = [fewest_accepted(bad, max_bad_fraction, confidence) for bad in range(BAD_TOLERATED_AT_START + 1)]
    affordable = [n for n in enough if n <= SHARE_SPENT_ON_START * n_calibration] or enough[:1]
    start = affordable[-1] if affordable[-1] <= n_calibration else 1
    return (*np.arange(start / n_calibration, 1 - COVERAGE_STEP / 2, COVERAGE_STEP).tolist(), 1.0)


def fewest_accepted(bad: int, max_bad_fraction: float, confidence: float) -> int:
    """Fewest accepted images with which `bad` bad ones still pass the binomial test.

    The smallest n with P(Binomial(n, max_bad_fraction) <= bad) <= 1 - confidence, from the negative binomial.
    """
    return bad + 1 + int(nbinom.ppf(confidence, bad + 1, max_bad_fraction))


def _checked_images(scores: ArrayLike, bad: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    score_values, labels = np.asarray(scores, dtype=np.float64), np.asarray(bad)
    if score_values.ndim != 1 or score_values.shape != labels.shape:
        raise PolicyError(
            f"scores {score_values.shape} and bad {labels.shape} differ: give one of each per image"
        )
    if not score_values.size:
        raise PolicyError("no calibration images: a promise needs labelled images")
    if not np.isin(labels, (0, 1)).all():
        raise PolicyError("bad holds values other than true and false: give one flag per image, not its IoU")
    return score_values, labels.astype(np.bool_)


def _check_target(max_bad_fraction: float, confidence: float) -> None:
    if not 0 < max_bad_fraction < 1:
        raise PolicyError(f"max bad fraction {max_bad_fraction} is outside (0, 1): 0.05 allows 5% bad masks")
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


def _first_that_could_pass(accepted: NDArray[np.int64], max_bad_fraction: float, confidence: float) -> int:
    return int(np.searchsorted(accepted, fewest_accepted(0, max_bad_fraction, confidence)))


def _passed_in_a_row(passes: NDArray[np.bool_]) -> int:
    return int(np.logical_and.accumulate(passes).sum())


def _labelled_images_needed(
    sequence: _Sequence, first: int, n_calibration: int, max_bad_fraction: float, confidence: float
) -> int | None:
    """More images until one threshold passes at its observed bad fraction.

    Thresholds looser than the first tested cannot come into play before that one passes.
    """
    enough = _images_by_bad(max_bad_fraction, confidence)
    totals = [
        math.ceil(needed * n_calibration / accepted)
        for accepted, bad in zip(sequence.accepted[: first + 1], sequence.bad[: first + 1], strict=True)
        if accepted and (needed := _accepted_needed(bad / accepted, enough)) is not None
    ]
    return max(min(totals) - n_calibration, 1) if totals else None


def _images_by_bad(max_bad_fraction: float, confidence: float) -> NDArray[np.int64]:
    bad = np.arange(MOST_BAD_CONSIDERED + 1)
    return bad + 1 + nbinom.ppf(confidence, bad + 1, max_bad_fraction).astype(np.int64)


def _accepted_needed(bad_fraction: float, enough: NDArray[np.int64]) -> int | None:
    would_pass = np.flatnonzero(bad_fraction * enough <= np.arange(len(enough)))
    return int(enough[would_pass[0]]) if would_pass.size else None
