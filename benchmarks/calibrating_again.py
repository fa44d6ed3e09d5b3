"""Calibrating again on the same, growing images: how often is a policy issued whose promise is broken?

    python benchmarks/calibrating_again.py [--draws 1000]

A mask's score and quality are normal with a given correlation, a fifth of the masks is bad, alpha =
delta = 0.1. Three users: one labels "about N more" as the tool says until something is certified;
one calibrates at 60, 100, 150, ... 300 images and uses each policy; one calibrates seven times, at
100, 150, ... 400. A draw is broken when any policy that it issues truly accepts more than alpha bad
masks. Each is simulated by the rule of before (every look tested at delta) and by that of now
(segpipe.confidence.looks). However many looks there are, now at most 1.5 delta may be broken; a
policy names the confidence that holds for its looks together. Prints one table and writes it below
results/. Takes some minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy.stats import norm

from segpipe.confidence.guarantee import Certificate, candidate_thresholds, certify, coverages_to_test
from segpipe.confidence.looks import calibration_level
from segpipe.tables import columns

ALPHA = DELTA = 0.1
SHARE_BAD = 0.2
MOST_IMAGES = 2000
MOST_LOOKS = 10
CORRELATIONS = (0.3, 0.6, 0.8)
PLANS: dict[str, tuple[int, ...] | None] = {
    "as the tool advises, from 60": None,
    "60 to 300 images": (60, 100, 150, 200, 250, 300),
    "seven times, 100 to 400": tuple(range(100, 401, 50)),
}

Floats = NDArray[np.float64]
Levels = Callable[[int], float]


@dataclass(frozen=True)
class Line:
    """One user under one rule: shares of the draws, mean coverages where something is certified."""

    user: str
    correlation: float
    rule: str
    allowed: float
    broken: float
    certified: float
    first_coverage: float
    last_coverage: float
    looks: float


@dataclass(frozen=True)
class Drawn:
    """What came of one draw: the true bad share and the coverage of each policy that was issued."""

    bad_shares: tuple[float, ...]
    coverages: tuple[float, ...]
    looks: int


def certified(scores: Floats, bad: NDArray[np.bool_], level: float) -> Certificate:
    """As segpipe calibrate does it."""
    coverages = coverages_to_test(len(scores), ALPHA, 1 - level)
    return certify(scores, bad, candidate_thresholds(scores, coverages), ALPHA, 1 - level)


def truth(threshold: float, correlation: float, scores: Floats) -> tuple[float, float]:
    """Bad share and coverage of what a threshold accepts; the bad share integrated over the scores."""
    above = scores[scores >= threshold]
    limit = norm.ppf(SHARE_BAD)
    bad = norm.cdf((limit - correlation * above) / np.sqrt(1 - correlation**2))
    return float(bad.mean()), float(norm.sf(threshold))


def draw(plan: tuple[int, ...] | None, correlation: float, levels: Levels, seed: int, grid: Floats) -> Drawn:
    """One user's looks at one growing set of images."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=MOST_IMAGES)
    quality = correlation * scores + np.sqrt(1 - correlation**2) * rng.normal(size=MOST_IMAGES)
    bad = quality < norm.ppf(SHARE_BAD)
    found: list[tuple[float, float]] = []
    looks = 0
    for number, n in enumerate(sizes(plan, scores, bad, levels), 1):
        looks = number
        certificate = certified(scores[:n], bad[:n], levels(number))
        if certificate.threshold is not None:
            found.append(truth(certificate.threshold, correlation, grid))
    return Drawn(tuple(one for one, _ in found), tuple(one for _, one in found), looks)


def sizes(
    plan: tuple[int, ...] | None, scores: Floats, bad: NDArray[np.bool_], levels: Levels
) -> Iterator[int]:
    """How many images each look has; what is advised is told for the level that the next look has."""
    if plan is not None:
        yield from plan
        return
    n = 60
    for number in range(1, MOST_LOOKS + 1):
        yield n
        if certified(scores[:n], bad[:n], levels(number)).threshold is not None:
            return
        more = certified(scores[:n], bad[:n], levels(number + 1)).labelled_images_needed
        if not more or n + more > MOST_IMAGES:
            return
        n += more


def measure(user: str, correlation: float, rule: str, levels: Levels, draws: int) -> Line:
    """All draws of one user under one rule."""
    grid = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    found = [draw(PLANS[user], correlation, levels, seed, grid) for seed in range(draws)]
    issued = [one for one in found if one.coverages]
    looks = max(one.looks for one in found)
    return Line(
        user=user,
        correlation=correlation,
        rule=rule,
        allowed=min(1.0, sum(levels(number) for number in range(1, looks + 1))),
        broken=float(np.mean([any(bad > ALPHA for bad in one.bad_shares) for one in found])),
        certified=len(issued) / draws,
        first_coverage=float(np.mean([one.coverages[0] for one in issued])) if issued else 0.0,
        last_coverage=float(np.mean([one.coverages[-1] for one in issued])) if issued else 0.0,
        looks=float(np.mean([one.looks for one in found])),
    )


def of_now(number: int) -> float:
    """The error of a look by the rule of now."""
    return calibration_level(number, 1 - DELTA)


def of_before(_number: int) -> float:
    """The error of a look by the rule of before."""
    return DELTA


@click.command()
@click.option("--draws", default=1000, show_default=True, help="Draws per line.")
def main(draws: int) -> None:
    """Simulate every user under both rules."""
    lines = [
        measure(user, correlation, rule, levels, draws)
        for user in PLANS
        for correlation in CORRELATIONS
        for rule, levels in (("before", of_before), ("now", of_now))
    ]
    header = ("user", "correlation", "rule", "broken", "certified", "coverage first/last", "looks")
    rows = [
        (
            line.user, f"{line.correlation:g}", line.rule, f"{line.broken:.1%}", f"{line.certified:.0%}",
            f"{line.first_coverage:.2f}/{line.last_coverage:.2f}", f"{line.looks:.1f}",
        )
        for line in lines
    ]  # fmt: skip
    click.echo("\n".join(columns([header, *rows])))
    write_results("calibrating_again", {"draws": draws, "lines": [asdict(line) for line in lines]})


if __name__ == "__main__":
    main()
