"""The audit over simulated years of nights: how often it is wrong, and how soon it notices a fault.

    python benchmarks/audit.py [--years 400] [--faulty-years 100] [--seed 0]

Each night so many accepted masks are audited, and bad with a given probability. In stationary years it is
alpha itself, the worst that keeps the promise. In faulty years half of alpha is bad for 200 nights (or for
none), and from then on 2, 3 or 5 times alpha. Every test is looked at after each night. The rivals may spend
the whole of delta on false alarms, segpipe's two-sided interval half of it. Prints tables and writes
results/audit.json. Takes about a minute on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np
from machine import write_results
from scipy.stats import binom

from segpipe.confidence.confidence_sequence import BETS, p_values_above
from segpipe.tables import columns

DELTA, NIGHTS, GOOD_NIGHTS = 0.1, 365, 200
CELLS = [(0.1, 5), (0.1, 20), (0.05, 20)]  # alpha, audits a night
FACTORS = (2, 3, 5)

# A year's verdicts (nights, audits a night) and alpha to whether there is an alarm after each night.
Test = Callable[[np.ndarray, float], np.ndarray]


def segpipe_audit(bad: np.ndarray, alpha: float) -> np.ndarray:
    """The lower end of the confidence sequence is above alpha."""
    return p_values_above(bad.ravel(), alpha)[bad.shape[1] - 1 :: bad.shape[1]] <= DELTA / 2


def without_restarts(bad: np.ndarray, alpha: float) -> np.ndarray:
    """The same gamblers, all of whose capital is at stake from the first audit."""
    grown = np.cumsum(np.log1p(np.outer(bad.ravel() / alpha - 1, BETS)), axis=0)
    log_capital = np.maximum.accumulate(np.logaddexp.reduce(grown, axis=1) - np.log(len(BETS)))
    return log_capital[bad.shape[1] - 1 :: bad.shape[1]] >= np.log(2 / DELTA)


def binomial(bad: np.ndarray, alpha: float, nights: int, level: float) -> np.ndarray:
    """A binomial test of the last `nights` nights at this level, each night."""
    counts, audits = bad.sum(axis=1), bad.shape[1]
    ends = np.arange(1, len(counts) + 1)
    starts = np.maximum(ends - nights, 0)
    total = np.concatenate([[0], np.cumsum(counts)])
    return binom.sf(total[ends] - total[starts] - 1, (ends - starts) * audits, alpha) <= level


TESTS: dict[str, Test] = {
    "segpipe audit": segpipe_audit,
    "without restarts": without_restarts,
    "binomial, all so far, uncorrected": partial(binomial, nights=10**6, level=DELTA),
    "binomial, the night, uncorrected": partial(binomial, nights=1, level=DELTA),
    "binomial, all so far, Bonferroni": partial(binomial, nights=10**6, level=DELTA / NIGHTS),
    "binomial, the night, Bonferroni": partial(binomial, nights=1, level=DELTA / NIGHTS),
    "binomial, 7 nights, Bonferroni": partial(binomial, nights=7, level=DELTA / NIGHTS),
}


@click.command()
@click.option("--years", default=400, show_default=True, help="Stationary years per cell.")
@click.option("--faulty-years", default=100, show_default=True, help="Years per cell and fault.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, faulty_years: int, seed: int) -> None:
    """Simulate, print and keep false alarms and delays."""
    random = np.random.default_rng(seed)
    false_alarms = [stationary(random, *cell, years) for cell in CELLS]
    delays = [
        faulty(random, *cell, factor, good_nights, faulty_years)
        for cell in CELLS
        for good_nights in (0, GOOD_NIGHTS)
        for factor in FACTORS
    ]
    print_false_alarms(false_alarms)
    print_delays(delays)
    figures = {"seed": seed, "delta": DELTA, "years": years, "faulty_years": faulty_years}
    write_results("audit", {**figures, "false_alarms": false_alarms, "delays": delays})


def verdicts(random: np.random.Generator, nights: int, audits: int, share: float) -> np.ndarray:
    """1 where an audited mask is bad (nights, audits)."""
    return (random.random((nights, audits)) < share).astype(float)


def stationary(random: np.random.Generator, alpha: float, audits: int, years: int) -> dict[str, Any]:
    """The share of years with any alarm, per test, when the bad share is alpha all the time."""
    counts = dict.fromkeys(TESTS, 0)
    for _ in range(years):
        bad = verdicts(random, NIGHTS, audits, alpha)
        for name, test in TESTS.items():
            counts[name] += bool(test(bad, alpha).any())
    return {"alpha": alpha, "audits_a_night": audits} | {
        "years_with_any": {name: count / years for name, count in counts.items()}
    }


def faulty(
    random: np.random.Generator, alpha: float, audits: int, factor: int, good_nights: int, years: int
) -> dict[str, Any]:
    """Nights from the fault to the alarm, per test: median, 90% quantile; alarms before it count apart."""
    waited: dict[str, list[float]] = {name: [] for name in TESTS}
    for _ in range(years):
        good = verdicts(random, good_nights, audits, alpha / 2)
        bad = np.vstack([good, verdicts(random, NIGHTS, audits, factor * alpha)])
        for name, test in TESTS.items():
            after = test(bad, alpha)[good_nights:]
            waited[name].append(float(np.argmax(after)) + 1 if after.any() else np.inf)
    nights = {name: quantiles(values) for name, values in waited.items()}
    return {
        "alpha": alpha,
        "audits_a_night": audits,
        "good_nights": good_nights,
        "factor": factor,
        "nights": nights,
        "median_masks_reviewed": {name: found["median"] * audits for name, found in nights.items()},
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 90% quantile; a year and more counts as 366."""
    capped = np.minimum(values, NIGHTS + 1)
    return {
        "median": float(np.quantile(capped, 0.5, method="higher")),
        "in_90_percent": float(np.quantile(capped, 0.9, method="higher")),
    }


def print_false_alarms(rows: list[dict[str, Any]]) -> None:
    """Years with any false alarm, next to delta."""
    header = (
        "years with a false alarm",
        *(f"{row['alpha']:g}, {row['audits_a_night']} a night" for row in rows),
    )
    body = [(name, *(f"{row['years_with_any'][name]:.1%}" for row in rows)) for name in TESTS]
    allowed = ("allowed", *([f"{DELTA:.0%}"] * len(rows)))
    click.echo("\n".join(columns([header, *body, allowed])) + "\n")


def print_delays(rows: list[dict[str, Any]]) -> None:
    """Median nights to the alarm (within so many in 90% of the years), and how often segpipe's."""
    for row in rows:
        click.echo(
            f"alpha {row['alpha']:g}, {row['audits_a_night']} audits a night, after {row['good_nights']} "
            f"good nights: {row['factor']} times alpha"
        )
        ours = row["nights"]["segpipe audit"]["median"]
        body = [
            (f"  {name}", nights_text(found), f"{found['median'] / ours:.2g} x")
            for name, found in row["nights"].items()
        ]
        click.echo("\n".join(columns(body)))


def nights_text(found: dict[str, float]) -> str:
    """For example 4 (7); a year and more is not told apart."""
    median, late = (f"{value:.0f}" if value <= NIGHTS else "> a year" for value in found.values())
    return f"{median} ({late})"


if __name__ == "__main__":
    main()
