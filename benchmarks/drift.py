"""The drift gate over simulated years of nights: how often it is wrong, and how soon it notices a change.

    python benchmarks/drift.py [--years 500] [--changed-years 100] [--differing-years 8] [--seed 0]

A year is one calibration and 365 nightly runs of 30 to 3,000 images (evenly spread on a log scale), of which
the first shard, at most 256 images, is tested. Stationary years draw calibration and nights from one
distribution of scores, each year from the next of several; in the others every night is shifted, and tested
by itself.

In years of nights that differ, each night's mean score is off by chance, with a given deviation, and the
night is tested with those before it, as a run is; in some a lasting change comes on the 61st night. Beside
it stands the rule until November 2026, which tests each night by itself. Prints tables and writes
results/drift.json. With the differing years alone (--years 0 --changed-years 0) it takes some four minutes,
and keeps what the file has of the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import click
import numpy as np
from machine import RESULTS, write_results

from segpipe.confidence.certify import BadFraction, make_policy
from segpipe.confidence.drift import RunLevel, detect_drift, level_of
from segpipe.confidence.policy import Policy
from segpipe.config import LabelSettings
from segpipe.tables import columns

CALIBRATION_IMAGES = (60, 100, 200, 400)
NIGHTS, FEWEST_IMAGES, MOST_IMAGES = 365, 30, 3000
RATE, SHARD_IMAGES = LabelSettings().drift_false_alarm_rate, LabelSettings().shard_images
# Far from any alarm: by Kolmogorov's law such a distance, times sqrt(nm / (n + m)), has a p-value of 0.001.
CALM_DISTANCE = 1.95

DEVIATIONS = (0.0, 0.1, 0.2, 0.3)  # of nights' means, in standard deviations of a score

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
@click.option("--differing-years", default=8, show_default=True, help="Of nights that differ, per line.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, changed_years: int, differing_years: int, seed: int) -> None:
    """Simulate, print and keep false alarms and power."""
    random = np.random.default_rng(seed)
    differing = [
        years_that_differ(random, n, deviation, differing_years)
        for n in (100, 400)
        for deviation in DEVIATIONS
    ]
    lasting = [
        lasting_change(random, 200, deviation, images, shift, differing_years)
        for images in (4, 256)
        for deviation in (0.0, 0.2)
        for shift in (-0.5, -1.0)
    ]
    print_rows("nights that differ", differing)
    print_rows("a lasting change on the 61st night", lasting)
    found = {"differing_years": differing_years, "nights_that_differ": differing, "lasting_change": lasting}
    if not years:
        kept = json.loads((RESULTS / "drift.json").read_text())
        del kept["date"], kept["machine"]
        write_results("drift", {**kept, **found})
        return
    false_alarms = [stationary_years(random, n, years) for n in CALIBRATION_IMAGES]
    power = [
        nights_until_alarm(random, n, change, changed_years) for change in CHANGES for n in CALIBRATION_IMAGES
    ]
    print_false_alarms(false_alarms)
    print_power(power)
    stated = {"per_night": RATE, "years_with_any": min(1, NIGHTS * RATE)}
    write_results(
        "drift", {"seed": seed, "stated": stated, "false_alarms": false_alarms, "power": power, **found}
    )


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
        "per_night_by_shape": {
            name: float(counts[np.array(shapes) == name].mean() / NIGHTS) for name in SHAPES
        },
    }


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


def years_that_differ(
    random: np.random.Generator, n_calibration: int, deviation: float, years: int
) -> dict[str, Any]:
    """The share of nights with an alarm while nothing changes but the nights."""
    found = [
        year_of_nights(random, n_calibration, [deviation * one for one in random.normal(size=120)], 256)
        for _ in range(years)
    ]
    now, before = (np.array(one) for one in zip(*found, strict=True))
    return {
        "calibration": n_calibration,
        "deviation": deviation,
        "before, alarms a night": float(before.mean()),
        "first 8 nights": float(now[:, :8].mean()),
        "9th to 30th": float(now[:, 8:30].mean()),
        "later": float(now[:, 30:].mean()),
        "alarms later": int(now[:, 30:].sum()),
        "of nights": int(now[:, 30:].size),
    }


def lasting_change(
    random: np.random.Generator, n_calibration: int, deviation: float, images: int, shift: float, years: int
) -> dict[str, Any]:
    """Nights from the change to the first alarm, and the share of the changed nights that are reviewed."""
    found = []
    for _ in range(years):
        means = deviation * random.normal(size=120) + np.repeat([0.0, shift], 60)
        found.append(year_of_nights(random, n_calibration, means.tolist(), images))
    now, before = (np.array(one)[:, 60:] for one in zip(*found, strict=True))
    return {
        "images": images,
        "deviation": deviation,
        "change": shift,
        "nights": median_of_first(now),
        "nights before": median_of_first(before),
        "reviewed": float(now.mean()),
        "reviewed before": float(before.mean()),
    }


def year_of_nights(
    random: np.random.Generator, n_calibration: int, means: list[float], images: int
) -> tuple[list[bool], list[bool]]:
    """Whether there is an alarm on each night: with the nights before, and by the night alone."""
    calibration = np.sort(random.normal(size=n_calibration))
    policy, earlier, now, before = policy_of(calibration), [], [], []
    for mean in means:
        scores = random.normal(mean, 1, images)
        now.append(detect_drift(scores, policy, RATE, earlier[-60:]).alarm)
        before.append(not is_calm(calibration, scores) and detect_drift(scores, policy, RATE).alarm)
        if not now[-1]:
            earlier.append(level_of(scores, policy) or RunLevel(1, 0.0))
    return now, before


def median_of_first(alarmed: np.ndarray) -> float | None:
    """The median number of the first night with an alarm (years, nights); None where most have none."""
    first = [float(np.argmax(year)) + 1 if year.any() else math.inf for year in alarmed]
    return median if math.isfinite(median := float(np.median(first))) else None


def policy_of(calibration: np.ndarray) -> Policy:
    """A policy calibrated on these scores; only its quantiles of them matter here."""
    made = make_policy(calibration, np.ones(len(calibration)), "-", BadFraction(0.5, 0.1), 0.9, "-", "-")
    return replace(made, threshold=float(calibration.min()))


def print_false_alarms(rows: list[dict[str, Any]]) -> None:
    """Per calibration size, next to what is stated."""
    header = ("calibration", "years", "false alarms", "per night", "years with any")
    body = [
        (
            str(row["calibration_images"]),
            str(row["years"]),
            str(row["false_alarms"]),
            f"{row['per_night']:.6f}",
            f"{row['years_with_any']:.2%}",
        )
        for row in rows
    ]
    stated = ("stated", "", "", f"<= {RATE:.6f}", f"<= {min(1, NIGHTS * RATE):.2%}")
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
    body = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    click.echo("\n".join([title, *columns([list(rows[0]), *body]), ""]))


def nights_text(count: float) -> str:
    """A number of nights; a year and more is not told apart."""
    return f"{count:.0f}" if count <= NIGHTS else "> a year"


if __name__ == "__main__":
    main()
