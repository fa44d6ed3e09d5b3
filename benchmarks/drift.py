"""The drift gate over simulated years of nights: how often it is wrong, and how soon it notices a change.

    python benchmarks/drift.py [--years 500] [--changed-years 100] [--differing-years 60]
                               [--workers 1] [--seed 0]

A year is one calibration and 365 nightly runs of 30 to 3,000 images (evenly spread on a log scale), of which
the first shard, at most 256 images, is tested. Stationary years draw calibration and nights from one
distribution of scores, each year from the next of several; in the others every night is shifted, and tested
by itself.

In years of nights that differ, each night's mean score is off by chance, with a given deviation, and the
night is tested with those before it, as a run is, with the deviation learnt from them and with it stated
(--drift-deviation); in some a lasting change comes on the 61st night. Beside both stands the rule until
November 2026, which tests each night by itself.

The rate is claimed of nights that do not differ, of nights that differ as was stated, and of those that
differ by what was learnt from the first 30. There a line says how many alarms a rate of exactly the stated
one exceeds with probability 0.001, if nights are independent (those of one year share their calibration, so
that alarms come in groups, which a line is not forgiven), and whether it kept to that.

Prints tables and writes results/drift.json. With the differing years alone (--years 0) it takes some five
minutes on one core, and keeps what the file has of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle, islice, product
from typing import Any

import click
import numpy as np
from machine import RESULTS, write_results
from scipy.stats import binom

from segpipe.confidence.certify import Asked, BadFraction, Measured, Origin, make_policy
from segpipe.confidence.drift import RunLevel, detect_drift, level_of
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings
from segpipe.tables import columns

CALIBRATION_IMAGES = (60, 100, 200, 400)
NIGHTS, FEWEST_IMAGES, MOST_IMAGES = 365, 30, 3000
RATE, SHARD_IMAGES = LabelSettings().drift_false_alarm_rate, LabelSettings().shard_images
# Far from any alarm: by Kolmogorov's law such a distance, times sqrt(nm / (n + m)), has a p-value of 0.001.
CALM_DISTANCE = 1.95
SIMULATION_ERROR = 0.001  # probability that a rate that is just kept is called broken

FIRST_NIGHTS = 30  # of which nothing is claimed where nights differ and nobody says by how much
DEVIATIONS = (0.0, 0.1, 0.2, 0.3)  # of nights' means, in standard deviations of a score

DIFFERING = (
    "nights that differ: alarms a night",
    f"the stated rate of {RATE}",
    "a lasting change on the 61st night",
)
WAYS = {"": "learnt", " stated": "stated", " before": "alone"}  # of testing a night: in a table, and here
Alarms = dict[str, np.ndarray]  # on the nights (years, nights), by the way of testing

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(size=n),
    "skewed": lambda random, n: -random.lognormal(size=n),
    "two modes": lambda random, n: random.normal(np.where(random.random(n) < 0.7, 2.0, -2.0), 1.0),
    "discrete": lambda random, n: np.round(2 * random.normal(size=n)) / 2,
    "a third equal": lambda random, n: np.where(random.random(n) < 1 / 3, -1.0, random.normal(size=n)),
}
CHANGES: dict[str, Draw] = {
    "mean -0.25 sd": lambda random, n: random.normal(-0.25, 1, n),
    "mean -0.5 sd": lambda random, n: random.normal(-0.5, 1, n),
    "mean -1 sd": lambda random, n: random.normal(-1, 1, n),
    "20% degraded": lambda random, n: random.normal(np.where(random.random(n) < 0.2, -6.0, 0.0), 1),
}


@click.command()
@click.option("--years", default=500, show_default=True, help="Stationary years per calibration size.")
@click.option("--changed-years", default=100, show_default=True, help="Years per size and kind of change.")
@click.option("--differing-years", default=60, show_default=True, help="Of nights that differ, per line.")
@click.option("--workers", default=1, show_default=True, help="Processes for the years that differ.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, changed_years: int, differing_years: int, workers: int, seed: int) -> None:
    """Simulate, print and keep false alarms and power."""
    random = np.random.default_rng(seed)
    differing = nights_that_differ(random, differing_years, workers)
    if years:
        stated = {"per_night": RATE, "years_with_any": min(1, NIGHTS * RATE)}
        found = {"seed": seed, "stated": stated} | independent_nights(random, years, changed_years)
    else:
        found = kept_of_independent_nights()
    print_false_alarms(found["false_alarms"])
    print_power(found["power"])
    write_results("drift", found | {"differing_years": differing_years} | differing)


def independent_nights(random: np.random.Generator, years: int, changed_years: int) -> dict[str, Any]:
    """Of nights that are tested by themselves: false alarms, and nights to the alarm after a change."""
    return {
        "false_alarms": [stationary_years(random, n, years) for n in CALIBRATION_IMAGES],
        "power": [
            nights_until_alarm(random, n, change, changed_years)
            for change in CHANGES
            for n in CALIBRATION_IMAGES
        ],
    }


def kept_of_independent_nights() -> dict[str, Any]:
    """The same from the results of the last run, each line of false alarms held to the rate."""
    kept = json.loads((RESULTS / "drift.json").read_text())
    rows = [row | held_to_the_rate(row["false_alarms"], row["nights"]) for row in kept["false_alarms"]]
    return {name: kept[name] for name in ("seed", "stated", "power")} | {"false_alarms": rows}


def nights_that_differ(random: np.random.Generator, years: int, workers: int) -> dict[str, Any]:
    """Alarms while nothing changes but the nights, what is claimed of them, and lasting changes."""
    quiet = list(product((100, 400), DEVIATIONS))
    changed = list(product((4, 256), (0.0, 0.2), (-0.5, -1.0)))
    with ProcessPoolExecutor(workers) as pool:
        randoms = iter(random.spawn(len(quiet) + len(changed)))  # alike with any number of workers
        years_of = [pool.submit(quiet_years, next(randoms), *line, years) for line in quiet]
        lines = [pool.submit(lasting_change, next(randoms), 200, *line, years) for line in changed]
    found = [(*line, year.result()) for line, year in zip(quiet, years_of, strict=True)]
    differing = {
        "nights_that_differ": [alarms_a_night(*one) for one in found],
        "stated_rate": [line for one in found for line in claims(*one)],
        "lasting_change": [line.result() for line in lines],
    }
    for title, rows in zip(DIFFERING, differing.values(), strict=True):
        print_rows(title, rows)
    return differing


def stationary_years(random: np.random.Generator, n_calibration: int, n_years: int) -> dict[str, Any]:
    """False alarms of years in which nothing changes."""
    shapes = list(islice(cycle(SHAPES), n_years))
    counts = np.array([false_alarms_of_a_year(random, n_calibration, SHAPES[name]) for name in shapes])
    return {
        "calibration_images": n_calibration,
        "years": n_years,
        "nights": n_years * NIGHTS,
        "false_alarms": int(counts.sum()),
        "per_night": float(counts.mean() / NIGHTS),
        "years_with_any": float((counts > 0).mean()),
        **held_to_the_rate(int(counts.sum()), n_years * NIGHTS),
        "per_night_by_shape": {
            name: float(counts[np.array(shapes) == name].mean() / NIGHTS) for name in SHAPES
        },
    }


def held_to_the_rate(alarmed: int, of_nights: int) -> dict[str, Any]:
    """The most alarms that chance makes of the stated rate, and whether there were no more."""
    at_most = int(binom.ppf(1 - SIMULATION_ERROR, of_nights, RATE))
    return {"at_most": at_most, "kept": alarmed <= at_most}


def false_alarms_of_a_year(random: np.random.Generator, n_calibration: int, draw: Draw) -> int:
    """Alarms among 365 nights drawn like the calibration."""
    return sum(alarms(random, draw(random, n_calibration), draw))


def alarms(random: np.random.Generator, calibration: np.ndarray, draw: Draw) -> Iterator[bool]:
    """Whether there is an alarm, for each night of a year."""
    calibration = np.sort(calibration)
    policy = policy_of(calibration)
    for scores in nights(random, draw):
        yield not is_calm(calibration, scores) and detect_drift(scores, policy, RATE).alarm


def is_calm(calibration: np.ndarray, scores: np.ndarray) -> bool:
    """Whether the distance to the sorted calibration scores themselves is far from an alarm; saves the test.

    The drift test's own distance is never larger, nor its p-value smaller.
    """
    scores, pooled = np.sort(scores), np.concatenate([calibration, scores])
    n, m = len(calibration), len(scores)
    below = (np.searchsorted(values, pooled, side="right") / len(values) for values in (calibration, scores))
    return float(np.abs(np.subtract(*below)).max()) * math.sqrt(n * m / (n + m)) < CALM_DISTANCE


def nights(random: np.random.Generator, draw: Draw) -> Iterator[np.ndarray]:
    """The scores of each night's first shard."""
    for log_images in random.uniform(math.log(FEWEST_IMAGES), math.log(MOST_IMAGES), NIGHTS):
        yield draw(random, min(round(math.exp(log_images)), SHARD_IMAGES))


def nights_until_alarm(
    random: np.random.Generator, n_calibration: int, change: str, n_years: int
) -> dict[str, Any]:
    """The first night with an alarm when every night is changed; beyond the year counts as never."""
    waited = np.array([first_alarm(random, n_calibration, CHANGES[change]) for _ in range(n_years)])
    return {
        "calibration_images": n_calibration,
        "change": change,
        "years": n_years,
        "first_night": float((waited == 1).mean()),
        "median_nights": float(np.quantile(waited, 0.5, method="higher")),
        "nights_in_90_percent": float(np.quantile(waited, 0.9, method="higher")),
        "never_in_a_year": float((waited > NIGHTS).mean()),
    }


def first_alarm(random: np.random.Generator, n_calibration: int, changed: Draw) -> int:
    """The number of the first night with an alarm, 366 if there is none in a year."""
    year = alarms(random, SHAPES["normal"](random, n_calibration), changed)
    return next((night for night, alarm in enumerate(year, start=1) if alarm), NIGHTS + 1)


def quiet_years(random: np.random.Generator, n_calibration: int, deviation: float, years: int) -> Alarms:
    """Years of 120 nights in which nothing changes but the nights."""
    means = deviation * random.normal(size=(years, 120))
    return years_of_nights(random, n_calibration, means, 256, deviation)


def alarms_a_night(n_calibration: int, deviation: float, found: Alarms) -> dict[str, Any]:
    """The shares of nights with an alarm."""
    learnt = found["learnt"]
    return {
        "calibration": n_calibration,
        "deviation": deviation,
        "before": float(found["alone"].mean()),
        "first 8 nights": float(learnt[:, :8].mean()),
        "9th to 30th": float(learnt[:, 8:FIRST_NIGHTS].mean()),
        "later": float(learnt[:, FIRST_NIGHTS:].mean()),
        "stated": float(found["stated"].mean()),
    }


def claims(n_calibration: int, deviation: float, found: Alarms) -> Iterator[dict[str, Any]]:
    """What the stated rate is claimed of, and whether it was kept."""
    if not deviation:
        lines = {"do not differ": found["learnt"]}
    else:
        lines = {"differ as stated": found["stated"], "later, learnt": found["learnt"][:, FIRST_NIGHTS:]}
    for nights_that, alarmed in lines.items():
        yield {
            "calibration": n_calibration,
            "deviation": deviation,
            "nights that": nights_that,
            "nights": alarmed.size,
            "alarms": int(alarmed.sum()),
            **held_to_the_rate(int(alarmed.sum()), alarmed.size),
        }


def lasting_change(
    random: np.random.Generator, n_calibration: int, images: int, deviation: float, shift: float, years: int
) -> dict[str, Any]:
    """Nights from the change to the first alarm, and the share of the changed nights that are reviewed."""
    means = deviation * random.normal(size=(years, 120)) + np.repeat([0.0, shift], 60)
    found = years_of_nights(random, n_calibration, means, images, deviation)
    changed = {name: found[way][:, 60:] for name, way in WAYS.items()}
    return {
        "images": images,
        "deviation": deviation,
        "change": shift,
        **{f"nights{name}": median_of_first(alarmed) for name, alarmed in changed.items()},
        **{f"reviewed{name}": float(alarmed.mean()) for name, alarmed in changed.items()},
    }


def years_of_nights(
    random: np.random.Generator, n_calibration: int, means: np.ndarray, images: int, deviation: float
) -> Alarms:
    """Whether there is an alarm on each night (years, nights) with these means of the scores.

    Tested with the nights before, which tell the deviation, the same with the deviation stated, and alone.
    """
    found = [year_of_nights(random, n_calibration, year, images, deviation) for year in means]
    return {way: np.array([year[way] for year in found]) for way in WAYS.values()}


def year_of_nights(
    random: np.random.Generator, n_calibration: int, means: np.ndarray, images: int, deviation: float
) -> dict[str, list[bool]]:
    """One of those years."""
    calibration = np.sort(random.normal(size=n_calibration))
    policy = policy_of(calibration)
    year = [random.normal(mean, 1, images) for mean in means]
    return {
        "learnt": alarms_with_those_before(year, policy, None),
        "stated": alarms_with_those_before(year, policy, deviation),
        "alone": [
            not is_calm(calibration, scores) and detect_drift(scores, policy, RATE).alarm for scores in year
        ],
    }


def alarms_with_those_before(
    year: Sequence[np.ndarray], policy: Policy, deviation: float | None
) -> list[bool]:
    """Whether there is an alarm on each night; nights with one are not looked at later."""
    earlier: list[RunLevel] = []
    found = []
    for scores in year:
        found.append(detect_drift(scores, policy, RATE, earlier[-60:], deviation).alarm)
        if not found[-1]:
            earlier.append(level_of(scores, policy) or RunLevel(1, 0.0))
    return found


def median_of_first(alarmed: np.ndarray) -> float | None:
    """The median number of the first night with an alarm (years, nights); None where most have none."""
    first = [float(np.argmax(year)) + 1 if year.any() else math.inf for year in alarmed]
    return median if math.isfinite(median := float(np.median(first))) else None


def policy_of(calibration: np.ndarray) -> Policy:
    """A policy calibrated on these scores; only its quantiles of them matter here."""
    measured = Measured(calibration, np.ones(len(calibration)))
    made = make_policy(measured, Asked(BadFraction(0.5, 0.1), 0.9), Origin("-", "-", "-"))
    return replace(made, threshold=float(calibration.min()))


def print_false_alarms(rows: list[dict[str, Any]]) -> None:
    """Per calibration size, next to what is stated."""
    header = ("calibration", "years", "false alarms", "at most", "kept", "per night", "years with any")
    body = [
        (
            str(row["calibration_images"]),
            str(row["years"]),
            str(row["false_alarms"]),
            str(row["at_most"]),
            "yes" if row["kept"] else "NO",
            f"{row['per_night']:.6f}",
            f"{row['years_with_any']:.2%}",
        )
        for row in rows
    ]
    stated = ("stated", "", "", "", "", f"<= {RATE:.6f}", f"<= {min(1, NIGHTS * RATE):.2%}")
    click.echo("\n".join(columns([header, *body, stated])) + "\n")


def print_power(rows: list[dict[str, Any]]) -> None:
    """Nights until the alarm, per kind of change and calibration size."""
    header = ("change", "calibration", "first night", "median nights", "90% within", "never in a year")
    body = [
        (
            row["change"],
            str(row["calibration_images"]),
            f"{row['first_night']:.0%}",
            nights_text(row["median_nights"]),
            nights_text(row["nights_in_90_percent"]),
            f"{row['never_in_a_year']:.0%}",
        )
        for row in rows
    ]
    click.echo("\n".join(columns([header, *body])))


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of what was found."""
    body = [[shown(value) for value in row.values()] for row in rows]
    click.echo("\n".join([title, *columns([list(rows[0]), *body]), ""]))


def shown(value: Any) -> str:
    """A figure, yes or NO, or a word."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def nights_text(count: float) -> str:
    """A number of nights; a year and more is not told apart."""
    return f"{count:.0f}" if count <= NIGHTS else "> a year"


if __name__ == "__main__":
    main()
