"""The audit over simulated years of nights: how often it is wrong, and how soon it notices a fault.

    python benchmarks/audit.py [--years 300] [--faulty-years 60] [--told-years 12] [--seed 0]

Each night so many accepted masks are audited, and bad with a given probability. In stationary years it is
alpha, the worst that keeps the promise: the same every night, or that of a night drawn from a gamma
distribution with mean and standard deviation alpha, or that of scenes of five masks that fail together. In
faulty years half of alpha is bad for 200 nights (or for none), and from then on 2, 3 or 5 times alpha. Every
test is looked at after each night. The rivals may spend the whole of delta on false alarms, segpipe half of
it. "each audit by itself" is segpipe's rule until November 2026.

What is told is held against all masks, of which the audits are a draw: after a rise, with runs of different
audit shares, and where reviewers skip what is bad. Prints tables and writes results/audit.json. Takes about
four minutes on one core. Promises about classes: benchmarks/class_audit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Any

import click
import numpy as np
from machine import write_results
from scipy.stats import binom

from segpipe.confidence.confidence_sequence import BETS, p_values_above
from segpipe.review.audit_nights import Accepted, Drawn, Night, Window, kept_over, night_bets, nights_of
from segpipe.tables import columns

DELTA, NIGHTS, GOOD_NIGHTS = 0.1, 365, 200
CELLS = [(0.1, 5), (0.1, 20), (0.05, 20)]  # alpha, audits a night
FACTORS = (2, 3, 5)
BEFORE = "each audit by itself"
BETS_BEFORE = np.array([0.9, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])

# A year's verdicts (nights, audits a night) and alpha to whether there is an alarm after each night.
Test = Callable[[np.ndarray, float], np.ndarray]
Draw = Callable[[np.random.Generator, int, int, float], np.ndarray]
Cell = tuple[float, np.ndarray, np.ndarray]  # audit share; of each mask: bad, and skipped if drawn


def segpipe_audit(bad: np.ndarray, alpha: float) -> np.ndarray:
    """A bet a night, on its mean."""
    return p_values_above(bad.mean(axis=1), alpha) <= DELTA / 2


def each_audit(bad: np.ndarray, alpha: float) -> np.ndarray:
    """The rule before: a bet on each audit, part of the capital starting anew at each."""
    kept = 1 / (1 + np.log1p(np.arange(bad.size + 1)))
    grown = np.cumsum(np.log1p(np.outer(bad.ravel() / alpha - 1, BETS_BEFORE)), axis=0)
    before = np.vstack([np.zeros(len(BETS_BEFORE)), grown[:-1]])
    staked = grown + np.logaddexp.accumulate(np.log(kept[:-1] - kept[1:])[:, None] - before, axis=0)
    capital = np.logaddexp(np.logaddexp.reduce(staked, axis=1) - np.log(len(BETS_BEFORE)), np.log(kept[1:]))
    return (np.maximum.accumulate(capital) >= np.log(2 / DELTA))[bad.shape[1] - 1 :: bad.shape[1]]


def without_restarts(bad: np.ndarray, alpha: float) -> np.ndarray:
    """A bet a night, all of the capital at stake from the first."""
    grown = np.cumsum(np.log1p(np.outer(bad.mean(axis=1) / alpha - 1, BETS)), axis=0)
    log_capital = np.maximum.accumulate(np.logaddexp.reduce(grown, axis=1) - np.log(len(BETS)))
    return log_capital >= np.log(2 / DELTA)


def binomial(bad: np.ndarray, alpha: float, nights: int, level: float) -> np.ndarray:
    """A binomial test of the last `nights` nights at this level, each night."""
    counts, audits = bad.sum(axis=1), bad.shape[1]
    ends = np.arange(1, len(counts) + 1)
    starts = np.maximum(ends - nights, 0)
    total = np.concatenate([[0], np.cumsum(counts)])
    return binom.sf(total[ends] - total[starts] - 1, (ends - starts) * audits, alpha) <= level


def said_before(bad: np.ndarray, alpha: float) -> np.ndarray:
    """Whether the rule before said that the promise holds, after each night: once shown, until broken."""
    bets = np.log1p(np.outer((1 - bad.ravel()) / (1 - alpha) - 1, BETS_BEFORE))
    capital = np.logaddexp.reduce(np.cumsum(bets, axis=0), axis=1) - np.log(len(BETS_BEFORE))
    shown = (np.maximum.accumulate(capital) >= np.log(2 / DELTA))[bad.shape[1] - 1 :: bad.shape[1]]
    return shown & ~each_audit(bad, alpha)


TESTS: dict[str, Test] = {
    "segpipe audit": segpipe_audit,
    BEFORE: each_audit,
    "a bet a night, without restarts": without_restarts,
    "binomial, all so far, uncorrected": partial(binomial, nights=10**6, level=DELTA),
    "binomial, the night, uncorrected": partial(binomial, nights=1, level=DELTA),
    "binomial, the night, Bonferroni": partial(binomial, nights=1, level=DELTA / NIGHTS),
    "binomial, 7 nights, Bonferroni": partial(binomial, nights=7, level=DELTA / NIGHTS),
}


def independent(random: np.random.Generator, nights: int, audits: int, share: float) -> np.ndarray:
    """1 where an audited mask is bad (nights, audits)."""
    return (random.random((nights, audits)) < share).astype(float)


def differing(random: np.random.Generator, nights: int, audits: int, share: float) -> np.ndarray:
    """The same where nights differ by as much as is promised."""
    of_night = np.minimum(random.exponential(share, (nights, 1)), 1)
    return (random.random((nights, audits)) < of_night).astype(float)


def in_scenes(random: np.random.Generator, nights: int, audits: int, share: float) -> np.ndarray:
    """The same where five masks each are of one scene, and bad together."""
    return np.repeat(independent(random, nights, audits // 5, share), 5, axis=1)


DRAWS: dict[str, Draw] = {
    "independent": independent,
    "nights differ": differing,
    "scenes of five": in_scenes,
}


@click.command()
@click.option("--years", default=300, show_default=True, help="Stationary years per cell.")
@click.option("--faulty-years", default=60, show_default=True, help="Years per cell and fault.")
@click.option("--told-years", default=12, show_default=True, help="Years in which each night's words count.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, faulty_years: int, told_years: int, seed: int) -> None:
    """Simulate, print and keep false alarms, delays, and how true the words are."""
    random = np.random.default_rng(seed)
    false_alarms = [stationary(random, kind, *cell, years) for kind in DRAWS for cell in CELLS]
    delays = [
        faulty(random, *cell, factor, good_nights, faulty_years)
        for cell in CELLS
        for good_nights in (0, GOOD_NIGHTS)
        for factor in FACTORS
    ]
    told = [after_a_rise(random, n, factor, told_years) for n in (5, 20) for factor in (1.2, 1.5, 2, 3)]
    mixed = [of_different_shares(random, name, cells, told_years) for name, cells in SHARES.items()]
    skipped = [with_skips(random, share, told_years) for share in (0.0, 0.3, 0.6)]
    print_false_alarms(false_alarms)
    print_delays(delays)
    print_rows("after 100 nights of alpha / 4", told)
    print_rows("runs of different audit shares, 60 nights", mixed)
    print_rows("bad masks skipped, 1.2 times what is promised, 60 nights", skipped)
    figures = {"seed": seed, "delta": DELTA, "years": years, "faulty_years": faulty_years}
    found = {
        "after_a_rise": told,
        "different_shares": mixed,
        "skips": skipped,
        "told_years": told_years,
    }
    write_results("audit", {**figures, "false_alarms": false_alarms, "delays": delays, **found})


def stationary(
    random: np.random.Generator, kind: str, alpha: float, audits: int, years: int
) -> dict[str, Any]:
    """The share of years with any alarm, per test, when alpha is bad on average all the time."""
    tests = TESTS if kind == "independent" else {name: TESTS[name] for name in ("segpipe audit", BEFORE)}
    counts = dict.fromkeys(tests, 0)
    for _ in range(years):
        bad = DRAWS[kind](random, NIGHTS, audits, alpha)
        for name, test in tests.items():
            counts[name] += bool(test(bad, alpha).any())
    return {
        "kind": kind,
        "alpha": alpha,
        "audits_a_night": audits,
        "years_with_any": {name: count / years for name, count in counts.items()},
        "limit": float(binom.isf(0.001, years, DELTA / 2)) / years,
    }


def faulty(
    random: np.random.Generator, alpha: float, audits: int, factor: int, good_nights: int, years: int
) -> dict[str, Any]:
    """Nights from the fault to the alarm, per test: median, 90% quantile; alarms before it count apart."""
    waited: dict[str, list[float]] = {name: [] for name in TESTS}
    for _ in range(years):
        good = independent(random, good_nights, audits, alpha / 2)
        bad = np.vstack([good, independent(random, NIGHTS, audits, factor * alpha)])
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


# --- what is told, against all masks ------------------------------------------------------------------------


def after_a_rise(random: np.random.Generator, audits: int, factor: float, years: int) -> dict[str, Any]:
    """100 nights of alpha / 4, then 100 of `factor` alpha: of which "kept" is said, and how often wrongly."""
    alpha, share, told, before, wrong, nights_told = 0.1, 0.02, 0, 0, 0, []
    for _ in range(years):
        rates = np.repeat([alpha / 4, factor * alpha], 100)
        masks = [random.random(round(audits / share)) < rate for rate in rates]
        drawn = [random.choice(ones, audits, replace=False) for ones in masks]
        nights = [
            fixed_night(n, ones, found) for n, (ones, found) in enumerate(zip(masks, drawn, strict=True))
        ]
        windows = [kept_over(nights[: n + 1], alpha, DELTA / 2) for n in range(len(nights))]
        after = windows[100:]
        told += sum(window is not None for window in after)
        nights_told.append(next((n for n, window in enumerate(after) if window is None), len(after)))
        wrong += sum(is_wrong(window, masks, alpha) for window in windows)
        before += int(said_before(np.array(drawn, dtype=float), alpha)[100:].sum())
    return {
        "audits a night": audits,
        "then": f"{factor:g} alpha",
        "nights kept is said": told / years,
        "before": before / years,
        "nights until it is not": float(np.median(nights_told)),
        "said wrongly": wrong / (200 * years),
        "allowed": DELTA / 2,
    }


def is_wrong(window: Window | None, masks: Sequence[np.ndarray], alpha: float) -> bool:
    """Whether more than alpha of the masks accepted in a window that shows the promise kept are bad."""
    if window is None:
        return False
    last = (date.fromisoformat(window.until) - FIRST).days + 1
    return bool(np.concatenate(masks[last - window.nights : last]).mean() > alpha)


SHARES: dict[str, list[tuple[float, int, float]]] = {  # audit share, masks a night, how many of them are bad
    "3% of 200 at 0.5, 20% of 1,000 at 0.02: 17%": [(0.5, 200, 0.03), (0.02, 1000, 0.2)],
    "five shares, rarely drawn ones worse: 10%": [
        (share, 400, bad)
        for share, bad in zip((0.5, 0.2, 0.1, 0.05, 0.02), np.linspace(0.02, 0.18, 5), strict=True)
    ],
    "five shares, rarely drawn ones better: 10%": [
        (share, 400, bad)
        for share, bad in zip((0.5, 0.2, 0.1, 0.05, 0.02), np.linspace(0.18, 0.02, 5), strict=True)
    ],
}


def of_different_shares(
    random: np.random.Generator, name: str, cells: Sequence[tuple[float, int, float]], years: int
) -> dict[str, Any]:
    """60 nights of runs with these shares: how often the promise of a tenth is called broken, or kept."""
    alpha, broken, kept, broken_before, kept_before = 0.1, 0, 0, 0, 0
    for _ in range(10 * years):
        drawn, nights = [], []
        for number in range(60):
            of_night = [(share, random.random(masks) < bad) for share, masks, bad in cells]
            night, losses = drawn_night(
                random, number, [(share, ones, np.zeros(len(ones), bool)) for share, ones in of_night]
            )
            nights.append(night)
            drawn.append(losses)
        losses, weights = night_bets(nights)
        broken += bool(p_values_above(losses, alpha, weights)[-1] <= DELTA / 2)
        kept += kept_over(nights, alpha, DELTA / 2) is not None
        pooled = np.concatenate(drawn)[:, None]
        broken_before += bool(each_audit(pooled, alpha).any())
        kept_before += bool(said_before(pooled, alpha)[-1])
    n = 10 * years
    found = {"broken": broken / n, "broken before": broken_before / n, "kept": kept / n}
    return {"runs": name, **found, "kept before": kept_before / n}


def with_skips(random: np.random.Generator, skipped: float, years: int) -> dict[str, Any]:
    """60 nights of 1.2 alpha, a share of the bad ones skipped: how often it is called kept in the end."""
    alpha, kept, before = 0.05, 0, 0
    for _ in range(10 * years):
        nights, drawn = [], []
        for number in range(60):
            bad = random.random(1000) < 1.2 * alpha
            night, losses = drawn_night(random, number, [(0.02, bad, random.random(1000) < skipped)])
            nights.append(night)
            drawn.append(losses)
        kept += kept_over(nights, alpha, DELTA / 2) is not None
        before += bool(said_before(np.concatenate(drawn)[:, None], alpha)[-1])
    return {"bad masks skipped": f"{skipped:.0%}", "kept": kept / 10 / years, "before": before / 10 / years}


FIRST = date(2026, 1, 1)


def fixed_night(number: int, masks: np.ndarray, drawn: np.ndarray) -> Night:
    """A night with these masks, and of these a draw of fixed size."""
    day, share = FIRST + timedelta(number), len(drawn) / len(masks)
    accepted = [Accepted(day, share, len(masks), float(len(masks)))]
    (night,) = nights_of(accepted, [Drawn(day, share, 1.0, float(bad)) for bad in drawn])
    return night


def drawn_night(random: np.random.Generator, number: int, cells: Sequence[Cell]) -> tuple[Night, np.ndarray]:
    """A night of runs with different shares; and the answers one after the other, as they counted before."""
    day = FIRST + timedelta(number)
    accepted = [Accepted(day, share, len(bad), float(len(bad))) for share, bad, _ in cells]
    drawn = [one for cell in cells for one in _draw(random, day, cell)]
    (night,) = nights_of(accepted, drawn)
    return night, np.array([one.loss for one in drawn if one.loss is not None])


def _draw(random: np.random.Generator, day: date, cell: Cell) -> Iterator[Drawn]:
    share, bad, skipped = cell
    for number in np.flatnonzero(random.random(len(bad)) < share):
        is_skipped = bad[number] and skipped[number]
        yield Drawn(day, share, 1.0, None if is_skipped else float(bad[number]))


# --- tables -------------------------------------------------------------------------------------------------


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 90% quantile; a year and more counts as 366."""
    capped = np.minimum(values, NIGHTS + 1)
    return {
        "median": float(np.quantile(capped, 0.5, method="higher")),
        "in_90_percent": float(np.quantile(capped, 0.9, method="higher")),
    }


def print_false_alarms(rows: list[dict[str, Any]]) -> None:
    """Years with any false alarm, next to what segpipe may spend and what chance makes of that."""
    for kind in DRAWS:
        of_kind = [row for row in rows if row["kind"] == kind]
        header = (kind, *(f"{row['alpha']:g}, {row['audits_a_night']} a night" for row in of_kind))
        names = of_kind[0]["years_with_any"]
        body = [(name, *(f"{row['years_with_any'][name]:.1%}" for row in of_kind)) for name in names]
        allowed = ("segpipe may", *(f"{DELTA / 2:.0%}, by chance {row['limit']:.1%}" for row in of_kind))
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


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table of what was found."""
    body = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    click.echo("\n".join([f"\n{title}", *columns([list(rows[0]), *body])]))


def nights_text(found: dict[str, float]) -> str:
    """For example 4 (7); a year and more is not told apart."""
    median, late = (f"{value:.0f}" if value <= NIGHTS else "> a year" for value in found.values())
    return f"{median} ({late})"


if __name__ == "__main__":
    main()
