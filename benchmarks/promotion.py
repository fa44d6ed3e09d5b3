"""Which test may call a new model better? Few images and skewed differences, simulated.

    python benchmarks/promotion.py [--draws 400]

Each line draws the differences of n images' IoUs (new - old) and says how often each test at delta = 0.05
calls the new model better: a BCa bootstrap (the rule of before), t, t with Johnson's correction for skewness
(1978), sign flips, and betting on differences mapped to 0..1 (the rule of now). Where the mean difference is
0 that may happen in 5% of the draws. Prints one table and writes it below results/. Takes three minutes on a
core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy import stats

from segpipe.confidence.betting import betting_p_value
from segpipe.tables import columns

DELTA = 0.05
SIZES = (10, 30, 60, 120, 400)
RESAMPLES = 500
FLIPS = 499

Floats = NDArray[np.float64]
Test = Callable[[Floats, np.random.Generator], bool]


@dataclass(frozen=True)
class Population:
    """Differences of IoUs, and whether their mean is 0."""

    name: str
    is_equal: bool
    draw: Callable[[int, np.random.Generator], Floats]


def one_in(n: int, loss: float) -> Callable[[int, np.random.Generator], Floats]:
    """A small gain, spread a little, but for one image in n, which loses; on average nothing."""
    gain = loss / (n - 1)
    return lambda size, rng: np.where(
        rng.random(size) < 1 / n, -loss, rng.uniform(0.9 * gain, 1.1 * gain, size)
    )


POPULATIONS = (
    Population("equal, normal, sd 0.05", True, lambda n, rng: rng.normal(0, 0.05, n)),
    Population("equal, two Beta(5, 2)", True, lambda n, rng: rng.beta(5, 2, n) - rng.beta(5, 2, n)),
    Population("equal, one in 20 loses 0.38", True, one_in(20, 0.38)),
    Population("equal, one in 50 loses 0.49", True, one_in(50, 0.49)),
    Population("better by 0.01, sd 0.05", False, lambda n, rng: rng.normal(0.01, 0.05, n)),
    Population("better by 0.03, sd 0.1", False, lambda n, rng: rng.normal(0.03, 0.1, n)),
    Population("better by 0.05, sd 0.1", False, lambda n, rng: rng.normal(0.05, 0.1, n)),
)


def bootstrap(differences: Floats, rng: np.random.Generator) -> bool:
    """Bias-corrected and accelerated."""
    found = stats.bootstrap(
        (differences,), np.mean, confidence_level=1 - DELTA, n_resamples=RESAMPLES, alternative="greater",
        method="BCa", rng=rng,
    )  # fmt: skip
    return bool(found.confidence_interval.low > 0)


def student(differences: Floats, _rng: np.random.Generator) -> bool:
    """The one-sided t test."""
    return bool(stats.ttest_1samp(differences, 0, alternative="greater").pvalue <= DELTA)


def johnson(differences: Floats, _rng: np.random.Generator) -> bool:
    """t, its numerator corrected by the third moment."""
    n, mean, variance = len(differences), differences.mean(), differences.var(ddof=1)
    third = ((differences - mean) ** 3).mean()
    corrected = mean + third / (6 * variance * n) + third * mean**2 / (3 * variance**2)
    return bool(stats.t.sf(corrected * np.sqrt(n / variance), n - 1) <= DELTA)


def sign_flips(differences: Floats, rng: np.random.Generator) -> bool:
    """A randomisation test: each difference could have had the other sign."""
    sums = rng.choice([-1, 1], (FLIPS, len(differences))) @ differences
    return bool((1 + (sums >= differences.sum() - 1e-12).sum()) / (FLIPS + 1) <= DELTA)


def betting(differences: Floats, _rng: np.random.Generator) -> bool:
    """As segpipe promote does it."""
    return betting_p_value((1 - differences) / 2, 0.5, 1 - DELTA) <= DELTA


TESTS: dict[str, Test] = {
    "bootstrap": bootstrap,
    "t": student,
    "Johnson": johnson,
    "sign flips": sign_flips,
    "betting": betting,
}


@click.command()
@click.option("--draws", default=400, show_default=True, help="Draws per line.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
def main(draws: int, seed: int) -> None:
    """Simulate every population and size."""
    rng = np.random.default_rng(seed)
    lines = []
    for population in POPULATIONS:
        for n in SIZES:
            found = [np.clip(population.draw(n, rng), -1, 1) for _ in range(draws)]
            shares = {name: float(np.mean([test(one, rng) for one in found])) for name, test in TESTS.items()}
            lines.append({"population": population.name, "is_equal": population.is_equal, "n": n, **shares})
    rows = [
        (str(line["population"]), str(line["n"]), *(f"{line[name]:.1%}" for name in TESTS)) for line in lines
    ]
    click.echo("\n".join(columns([("differences", "n", *TESTS), *rows])))
    write_results("promotion", {"seed": seed, "draws": draws, "delta": DELTA, "lines": lines})


if __name__ == "__main__":
    main()
