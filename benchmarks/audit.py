"""Audits over simulated years of nights: how often a kept promise is found broken, how soon a broken one is.

    python benchmarks/audit.py [--years 1000] [--faulty-years 200] [--seed 0]

Every night 10 audited masks get a verdict (2% of 500 accepted). In a kept year exactly the promised 5%
are bad, the worst case; in a faulty one 1% until night 120, then 2, 3 or 5 times the promised share.
Rivals: the
binomial test over all verdicts so far, looked at every night as if it were the only time; the same, corrected
for 365 looks; and it over the last 30 nights alone, corrected. Prints tables and writes results/audit.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy.stats import binom

from segpipe.confidence.sequential import evidence_of_a_break
from segpipe.tables import columns

NIGHTS, A_NIGHT, PROMISED, DELTA = 365, 10, 0.05, 0.05
GOOD, FAULT_NIGHT, TIMES = 0.01, 120, (2.0, 3.0, 5.0)
WINDOW = 30

Monitor = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def segpipe(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The evidence at the end of each night."""
    return evidence_of_a_break(losses, PROMISED)[A_NIGHT - 1 :: A_NIGHT] >= 1 / DELTA


def every_night(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A binomial test over all so far, each night as if it were the only one."""
    return _p_values(_by_night(losses).cumsum(), np.arange(1, NIGHTS + 1) * A_NIGHT) <= DELTA


def corrected(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The same at a 365th of the level."""
    return _p_values(_by_night(losses).cumsum(), np.arange(1, NIGHTS + 1) * A_NIGHT) <= DELTA / NIGHTS


def last_month(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Over the last 30 nights, corrected."""
    so_far = np.concatenate([[0.0], _by_night(losses).cumsum()])
    first = np.maximum(np.arange(1, NIGHTS + 1) - WINDOW, 0)
    last = np.arange(1, NIGHTS + 1)
    return _p_values(so_far[last] - so_far[first], (last - first) * A_NIGHT) <= DELTA / NIGHTS


MONITORS: dict[str, Monitor] = {
    "segpipe": segpipe,
    "test every night": every_night,
    "corrected for 365 looks": corrected,
    "last 30 nights, corrected": last_month,
}


@click.command()
@click.option("--years", default=1000, show_default=True, help="Years in which the promise is just kept.")
@click.option("--faulty-years", default=200, show_default=True, help="Years with a fault, per size of fault.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, faulty_years: int, seed: int) -> None:
    """Simulate, print and keep false alarms and delays."""
    random = np.random.default_rng(seed)
    kept = [random.random(NIGHTS * A_NIGHT) < PROMISED for _ in range(years)]
    false_alarms = {name: _share_with_alarm(monitor, kept) for name, monitor in MONITORS.items()}
    faulty = {times: [_faulty_year(random, times) for _ in range(faulty_years)] for times in TIMES}
    delays = {
        name: {f"{times:g} times": _delays(monitor, faulty[times]) for times in TIMES}
        for name, monitor in MONITORS.items()
    }
    _print(false_alarms, delays)
    given = {"seed": seed, "years": years, "faulty_years": faulty_years, "audits_a_night": A_NIGHT}
    stated = {"promised": PROMISED, "false_alarm_rate": DELTA, "fault_at_night": FAULT_NIGHT}
    write_results("audit", given | stated | {"false_alarms": false_alarms, "delays": delays})


def _by_night(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return losses.reshape(NIGHTS, A_NIGHT).sum(axis=1).astype(np.float64)


def _p_values(bad: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(binom.sf(bad - 1, n, PROMISED))


def _faulty_year(random: np.random.Generator, times: float) -> NDArray[np.float64]:
    share = np.repeat(np.where(np.arange(NIGHTS) < FAULT_NIGHT, GOOD, times * PROMISED), A_NIGHT)
    return (random.random(NIGHTS * A_NIGHT) < share).astype(np.float64)


def _share_with_alarm(monitor: Monitor, years: list[NDArray[Any]]) -> float:
    return float(np.mean([monitor(year).any() for year in years]))


def _delays(monitor: Monitor, years: list[NDArray[np.float64]]) -> dict[str, float | None]:
    """Nights from the fault to the alarm; null where fewer years than asked for have one."""
    alarms = [np.flatnonzero(monitor(year)) for year in years]
    waited = [float(found[0] - FAULT_NIGHT + 1) if found.size else np.inf for found in alarms]
    quantiles = {"median": 0.5, "90%": 0.9}
    found = {name: float(np.quantile(waited, share, method="higher")) for name, share in quantiles.items()}
    return {name: nights if np.isfinite(nights) else None for name, nights in found.items()}


def _print(false_alarms: dict[str, float], delays: dict[str, dict[str, dict[str, float | None]]]) -> None:
    header = (
        "",
        f"false alarms a year (<= {DELTA:.0%} wanted)",
        *(f"{times:g} times as bad" for times in TIMES),
    )
    body = [
        (name, f"{false_alarms[name]:.1%}", *(_nights(delays[name][f"{times:g} times"]) for times in TIMES))
        for name in MONITORS
    ]
    click.echo("\n".join(columns([header, *body])))


def _nights(delay: dict[str, float | None]) -> str:
    median, most = (f"{nights:.0f}" if nights is not None else "never" for nights in delay.values())
    return f"{median} nights, 90% in {most}"


if __name__ == "__main__":
    main()
