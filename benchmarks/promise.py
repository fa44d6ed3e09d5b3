"""Is the promise kept? Certification simulated on populations whose true quality is known.

    python benchmarks/promise.py [--draws 1000]

A mask's score and quality are normal with a given correlation. A fifth of the masks is bad; for the mean loss
a mask's loss is Beta(1/4, 1), a fifth on average: most lose little, some nearly all. Each draw is a new
calibration set, from which the threshold is certified as segpipe calibrate does it, at alpha = delta = 0.1;
the promise is broken when what the threshold truly accepts is bad, or loses, more than alpha. That may happen
in at most a share delta of the draws. The oracle knows the truth and accepts the most that keeps the promise.
In the grouped cells the images are frames of sequences, which share 90% of their variance.
Prints one table and writes it below results/. Takes about two minutes on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy.stats import binom, norm

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
class Outcome:
    """Shares of the draws, coverages of all images; mean_coverage is over the draws that certify anything."""

    certified: float
    mean_coverage: float
    oracle_coverage: float
    violations: float
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
    found = [certified_threshold(cell, *calibration_set(cell, random)) for _ in range(draws)]
    thresholds = np.array([threshold for threshold in found if threshold is not None])
    violations = float((np.interp(thresholds, truth.scores, truth.risks) > ALPHA).sum() / draws)
    allowed = float(binom.ppf(1 - SIMULATION_ERROR, draws, DELTA) / draws)
    return Outcome(
        certified=len(thresholds) / draws,
        mean_coverage=float(norm.sf(thresholds).mean()) if thresholds.size else 0.0,
        oracle_coverage=float(truth.coverages[truth.risks <= ALPHA].max(initial=0)),
        violations=violations,
        allowed=allowed,
        kept=violations <= allowed,
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
    """The threshold, with candidates made from the same scores, as in segpipe calibrate."""
    group = np.repeat(np.arange(cell.images), FRAMES).tolist() if cell.frames == "given" else None
    drawn = scores if group is None else scores[one_per_group(group)]
    if cell.bound == "bad fraction":
        coverages = coverages_to_test(len(drawn), ALPHA, 1 - DELTA)
        return certify(
            scores, lost, candidate_thresholds(drawn, coverages), ALPHA, 1 - DELTA, group
        ).threshold
    coverages = coverages_to_test_mean_loss(len(drawn), ALPHA, 1 - DELTA)
    candidates = candidate_thresholds(drawn, coverages)
    return certify_mean_loss(scores, lost, candidates, ALPHA, 1 - DELTA, group).threshold


def table(results: list[tuple[Cell, Outcome]]) -> list[str]:
    """The results as aligned text."""
    header = ("bound", "frames", "corr.", "images", "certified", "coverage", "oracle", "violations", "kept")
    body = [
        (
            cell.bound,
            cell.frames,
            f"{cell.correlation:.1f}",
            f"{cell.images}" if cell.frames == "none" else f"{cell.images} x {FRAMES}",
            f"{outcome.certified:.1%}",
            f"{outcome.mean_coverage:.2f}" if outcome.certified else "-",
            f"{outcome.oracle_coverage:.2f}",
            f"{outcome.violations:.1%}",
            "yes" if outcome.kept else "NO",
        )
        for cell, outcome in results
    ]
    return list(columns([header, *body]))


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
