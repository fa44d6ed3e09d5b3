"""Is the promise kept? Certification simulated on populations whose true quality is known.

    python benchmarks/promise.py [--draws 1000]

A mask's score and quality are normal with a given correlation. A fifth of the masks is bad; for the mean loss
a mask's loss is Beta(1/4, 1), a fifth on average: most lose little, some nearly all. Each draw is a new
calibration set, from which the threshold is certified as segpipe calibrate does it, at alpha = delta = 0.1;
the promise is broken when what the threshold truly accepts is bad, or loses, more than alpha. That may happen
in at most a share delta of the draws. The oracle knows the truth and accepts the most that keeps the promise.
In the grouped cells the images are frames of sequences, which share 90% of their variance. Where they are
given as groups the rule changed in November 2026: it uses all frames of each where there are enough groups.
Beside it stands the rule before, one frame of each, on the same draws. All other lines are of the rule that
was there before, too; where frames are ignored, they show what that costs. promise_rules.py has the other
rules that changed, and frames that share less.
Prints one table and writes it below results/. Takes about two minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy.stats import binom, norm

from segpipe.confidence.certificates import BadFraction, CalibrationImages, MeanLoss, Wanted, certificate_of
from segpipe.confidence.guarantee import (
    candidate_thresholds,
    certify,
    certify_mean_loss,
    coverages_to_test,
    coverages_to_test_mean_loss,
    one_per_group,
)
from segpipe.tables import columns

ALPHA = DELTA = 0.1
SHARE_BAD = 0.2
SHARED_BY_SEQUENCE = 0.9
FRAMES = 20
MIN_IOU, GOOD_IOU, BAD_IOU = 0.5, 1.0, 0.0
SIMULATION_ERROR = 0.001  # probability that a promise kept exactly at delta is called broken

Bound = Literal["bad fraction", "mean loss"]
BOUNDS: tuple[Bound, ...] = ("bad fraction", "mean loss")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One population and one size; `images` counts independent ones, or sequences of 20 frames."""

    bound: Bound
    correlation: float
    images: int
    frames: Literal["none", "ignored", "given"] = "none"


@dataclass(frozen=True)
class Rule:
    """Shares of the draws, and the mean coverage of all images over the draws that certify anything."""

    certified: float
    mean_coverage: float
    violations: float


@dataclass(frozen=True)
class Outcome:
    """What the rule does, what the one before did on the same draws (None: the same), and the limit."""

    rule: Rule
    before: Rule | None
    oracle_coverage: float
    allowed: float
    kept: bool


@dataclass(frozen=True)
class Truth:
    """What thresholds on a grid of scores accept of the population, and the true risk of that."""

    scores: Floats
    coverages: Floats
    risks: Floats


def cells() -> Iterator[Cell]:
    """Everything that is simulated."""
    for bound in BOUNDS:
        for correlation in (0.3, 0.6, 0.8):
            for images in (100, 200, 400):
                yield Cell(bound, correlation, images)
    for bound in BOUNDS:
        for images in (50, 200):
            yield Cell(bound, 0.8, images, "ignored")
            yield Cell(bound, 0.8, images, "given")


def true_risks(bound: Bound, correlation: float) -> Truth:
    """Risk above each threshold, integrated over the scores and over the quality at each score."""
    scores = np.linspace(-5, 5, 1001)
    density = norm.pdf(scores)
    noise = norm.ppf((np.arange(500) + 0.5) / 500)
    risk = losses(bound, qualities(scores[:, None], noise, correlation)).mean(axis=1)
    accepted = np.cumsum(density[::-1])[::-1]
    lost = np.cumsum((density * risk)[::-1])[::-1]
    return Truth(scores, norm.sf(scores), lost / accepted)


def qualities(scores: Floats, noise: Floats, correlation: float) -> Floats:
    """Standard normal qualities that correlate so with standard normal scores."""
    return correlation * scores + np.sqrt(1 - correlation**2) * noise


def losses(bound: Bound, quality: Floats) -> Floats:
    """1 for a bad mask and 0 for a good one, or the loss."""
    if bound == "bad fraction":
        return (quality < norm.ppf(SHARE_BAD)).astype(np.float64)
    return norm.cdf(-quality) ** 4  # Beta(1/4, 1) distributed


def simulate(cell: Cell, draws: int, random: np.random.Generator) -> Outcome:
    """Certify on as many calibration sets as there are draws, and hold each against the truth."""
    truth = true_risks(cell.bound, cell.correlation)
    sets = [calibration_set(cell, random) for _ in range(draws)]
    rule = held([certified_threshold(cell, *one) for one in sets], truth)
    before = [threshold_before(cell, *one) for one in sets] if cell.frames == "given" else None
    allowed = float(binom.ppf(1 - SIMULATION_ERROR, draws, DELTA) / draws)
    return Outcome(
        rule=rule,
        before=None if before is None else held(before, truth),
        oracle_coverage=float(truth.coverages[truth.risks <= ALPHA].max(initial=0)),
        allowed=allowed,
        kept=rule.violations <= allowed,
    )


def held(found: Sequence[float | None], truth: Truth) -> Rule:
    """The thresholds of the draws against the truth."""
    thresholds = np.array([threshold for threshold in found if threshold is not None])
    return Rule(
        certified=len(thresholds) / len(found),
        mean_coverage=float(norm.sf(thresholds).mean()) if thresholds.size else 0.0,
        violations=float((np.interp(thresholds, truth.scores, truth.risks) > ALPHA).sum() / len(found)),
    )


def calibration_set(cell: Cell, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Scores and losses of images, those of one sequence in a row."""
    if cell.frames == "none":
        scores, noise = random.normal(size=(2, cell.images))
    else:
        shared = np.repeat(random.normal(size=(2, cell.images)), FRAMES, axis=1)
        own = random.normal(size=shared.shape)
        scores, noise = np.sqrt(SHARED_BY_SEQUENCE) * shared + np.sqrt(1 - SHARED_BY_SEQUENCE) * own
    return scores, losses(cell.bound, qualities(scores, noise, cell.correlation))


def certified_threshold(cell: Cell, scores: Floats, lost: Floats) -> float | None:
    """The threshold that segpipe calibrate finds."""
    group = sequences(cell).astype(str) if cell.frames == "given" else None
    if cell.bound == "bad fraction":
        ious, target = np.where(lost > 0, BAD_IOU, GOOD_IOU), BadFraction(MIN_IOU, ALPHA)
        wanted = Wanted(target, (), 1 - DELTA, "groups", None)
    else:
        ious, wanted = 1 - lost, Wanted(MeanLoss(ALPHA), (), 1 - DELTA, "groups", None)
    return certificate_of("", CalibrationImages(scores, scores, ious, group, None), wanted).threshold


def threshold_before(cell: Cell, scores: Floats, lost: Floats) -> float | None:
    """The threshold by one frame of each sequence, however many there are."""
    group = sequences(cell).tolist()
    drawn = scores[one_per_group(group)]
    if cell.bound == "bad fraction":
        coverages = coverages_to_test(len(drawn), ALPHA, 1 - DELTA)
        candidates = candidate_thresholds(drawn, coverages)
        return certify(scores, lost, candidates, ALPHA, 1 - DELTA, group).threshold
    coverages = coverages_to_test_mean_loss(len(drawn), ALPHA, 1 - DELTA)
    candidates = candidate_thresholds(drawn, coverages)
    return certify_mean_loss(scores, lost, candidates, ALPHA, 1 - DELTA, group).threshold


def sequences(cell: Cell) -> NDArray[np.int64]:
    """The sequence of each frame."""
    return np.repeat(np.arange(cell.images), FRAMES)


def table(results: list[tuple[Cell, Outcome]]) -> list[str]:
    """The results as aligned text."""
    figures = ("certified", "coverage", "broken")
    header = ("bound", "frames", "corr.", "images", *figures, "before:", *figures[1:], "oracle", "kept")
    body = [
        (
            cell.bound,
            cell.frames,
            f"{cell.correlation:.1f}",
            f"{cell.images}" if cell.frames == "none" else f"{cell.images} x {FRAMES}",
            *told(outcome.rule),
            *told(outcome.before),
            f"{outcome.oracle_coverage:.2f}",
            "yes" if outcome.kept else "NO",
        )
        for cell, outcome in results
    ]
    return list(columns([header, *body]))


def told(rule: Rule | None) -> tuple[str, str, str]:
    """The figures of a rule; nothing of one that is the same as today's."""
    if rule is None:
        return ("", "", "")
    coverage = f"{rule.mean_coverage:.2f}" if rule.certified else "-"
    return f"{rule.certified:.1%}", coverage, f"{rule.violations:.1%}"


@click.command()
@click.option("--draws", default=1000, show_default=True, help="Calibration sets per cell.")
@click.option("--seed", default=0, show_default=True)
def main(draws: int, seed: int) -> None:
    """Simulate every cell, print the table and keep it."""
    randoms = np.random.default_rng(seed).spawn(len(list(cells())))
    results = [(cell, simulate(cell, draws, random)) for cell, random in zip(cells(), randoms, strict=True)]
    click.echo("\n".join(table(results)))
    allowed = results[0][1].allowed
    click.echo(
        f"kept: violations of at most {allowed:.1%}, which a promise broken in exactly {DELTA:.0%} of draws "
        f"exceeds with probability {SIMULATION_ERROR}"
    )
    figures = [asdict(cell) | asdict(outcome) for cell, outcome in results]
    write_results("promise", {"seed": seed, "draws": draws, "alpha": ALPHA, "delta": DELTA, "cells": figures})


if __name__ == "__main__":
    main()
