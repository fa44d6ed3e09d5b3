"""The audit of promises about classes over simulated years: how often it is wrong, and how soon it notices.

    python benchmarks/class_audit.py [--years 300] [--workers 1] [--seed 0]

Each night 1,000 images, of which a twentieth has the class and three in ten are sent to review; the audits
are a share of the accepted ones. Of those with the class as many as is promised are accepted without it, or
more, or fewer. "by the draws alone" is the rule until November 2026, which counts the masks in review by the
draw of the first queue, however many later ones have answered since.

Prints a table and writes results/class_audit.json. Takes about ten minutes on one core.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import repeat
from typing import Any

import click
import numpy as np
from audit import DELTA, FIRST, NIGHTS, print_rows
from machine import write_results
from scipy.stats import binom

from segpipe.confidence.confidence_sequence import p_values_above
from segpipe.review.class_audit import ClassNight, class_bets, class_kept_over

IMAGES, WITH_CLASS, IN_REVIEW, CLASS_LIMIT = 1000, 0.05, 0.3, 0.1


@dataclass(frozen=True)
class ClassYears:
    """How many of the images with the class are missed, on average; the audit shares of two kinds of masks,
    of which the second are missed three times as often; how much of the review is answered, and how many of
    the rest are drawn at random and answered, too; whether nights differ; whether later queues bring all the
    others."""

    missed: float
    shares: tuple[float, float] = (0.1, 0.1)
    answered: float = 1.0
    drawn: int = 0
    differ: bool = False
    later: bool = False

    def night(self, random: np.random.Generator, number: int) -> ClassNight:
        """One night's masks."""
        missed = min(random.exponential(self.missed), 0.6) if self.differ else self.missed
        chances, wrong = [], []
        for share, of_kind in zip(self.shares, (0.5 * missed, 1.5 * missed), strict=True):
            n = random.binomial(IMAGES, WITH_CLASS / 2)
            for is_wrong, expected in ((True, of_kind), (False, 1 - IN_REVIEW - of_kind)):
                seen = random.binomial(random.binomial(n, max(expected, 0)), share)
                chances += [share] * seen
                wrong += [is_wrong] * seen
        of_class = round(IMAGES * IN_REVIEW * WITH_CLASS)
        reviewed, others = (
            random.binomial(n, self.answered) for n in (of_class, round(IMAGES * IN_REVIEW) - of_class)
        )
        rest = round(IMAGES * IN_REVIEW) - reviewed - others
        such = random.hypergeometric(of_class - reviewed, rest - of_class + reviewed, self.drawn)
        bet_on = reviewed + (such * rest / self.drawn if self.drawn else rest)
        known, unseen = (of_class, 0) if self.later else (reviewed + such, rest - self.drawn)
        return ClassNight(
            FIRST + timedelta(number), min(self.shares), tuple(chances), tuple(wrong), (), known,
            unseen, unseen if self.drawn else 0, 0.0, bet_on, reviewed + rest,
        )  # fmt: skip

    def year(self, random: np.random.Generator) -> list[ClassNight]:
        return [self.night(random, number) for number in range(NIGHTS)]


CLASS_YEARS = {
    "as promised": ClassYears(0.1),
    "as promised, nights differ by as much": ClassYears(0.1, differ=True),
    "as promised, audit shares 0.2 and 0.02": ClassYears(0.1, (0.2, 0.02)),
    "as promised, half of the review answered": ClassYears(0.1, answered=0.5),
    "1.2 times": ClassYears(0.12),
    "1.2 times, audit shares 0.2 and 0.02": ClassYears(0.12, (0.2, 0.02)),
    "twice": ClassYears(0.2),
    "twice, a tenth of the review answered": ClassYears(0.2, answered=0.1),
    "three times": ClassYears(0.3),
    "half": ClassYears(0.05),
    "a quarter": ClassYears(0.025),
    "as promised, of the review 6 drawn and answered": ClassYears(0.1, answered=0, drawn=6),
    "the same, nights differ by as much": ClassYears(0.1, answered=0, drawn=6, differ=True),
    "the same, audit shares 0.2 and 0.02": ClassYears(0.1, (0.2, 0.02), answered=0, drawn=6),
    "twice, a tenth answered, 6 drawn": ClassYears(0.2, answered=0.1, drawn=6),
    "three times, a tenth answered, 6 drawn": ClassYears(0.3, answered=0.1, drawn=6),
    "three times, a tenth answered": ClassYears(0.3, answered=0.1),
} | {
    f"{name}, {answered}": ClassYears(missed, shares, 80 / 300, 20, differ, later=answered == "three queues")
    for answered in ("three queues", "the first of three queues")
    for name, missed, shares, differ in (
        ("as promised", 0.1, (0.1, 0.1), False),
        ("the same, nights differ by as much", 0.1, (0.1, 0.1), True),
        ("the same, audit shares 0.2 and 0.02", 0.1, (0.2, 0.02), False),
        ("twice", 0.2, (0.1, 0.1), False),
        ("three times", 0.3, (0.1, 0.1), False),
    )
}  # of 100 masks each; the first draws a fifth of its own


@click.command()
@click.option("--years", default=300, show_default=True, help="Per line.")
@click.option("--workers", default=1, show_default=True, help="Processes.")
@click.option("--seed", default=0, show_default=True)
def main(years: int, workers: int, seed: int) -> None:
    """Simulate, print and keep how often it is called broken or kept."""
    randoms = np.random.default_rng(seed).spawn(len(CLASS_YEARS))
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(of_classes, randoms, CLASS_YEARS, CLASS_YEARS.values(), repeat(years)))
    print_rows(f"{CLASS_LIMIT:.0%} may be missed", rows)
    write_results("class_audit", {"seed": seed, "delta": DELTA, "years": years, "classes": rows})


def of_classes(random: np.random.Generator, name: str, kind: ClassYears, years: int) -> dict[str, Any]:
    """Years in which it is ever called broken, and when; how often kept, asked on one night a month."""
    until, by_draws, kept, asked, first_kept = [], [], 0, range(30, NIGHTS + 1, 30), []
    for _ in range(years):
        nights = kind.year(random)
        losses, weights = class_bets(nights)
        until.append(first_alarm(losses, weights))
        by_draws.append(first_alarm(losses[0], weights[0]))
        said = [class_kept_over(nights[:n], CLASS_LIMIT, DELTA / 2) is not None for n in asked]
        kept += sum(said)
        first_kept.append(next((n for n, is_said in zip(asked, said, strict=True) if is_said), NIGHTS + 1))
    return {
        "class missed": name,
        "years with broken": float((np.array(until) <= NIGHTS).mean()),
        "by chance up to": float(binom.isf(0.001, years, DELTA / 2)) / years,
        "median nights to it": float(np.median(until)),
        "by the draws alone": float((np.array(by_draws) <= NIGHTS).mean()),
        "nights by the draws alone": float(np.median(by_draws)),
        "kept is said": kept / (len(asked) * years),
        "median nights to that": float(np.median(first_kept)),
    }


def first_alarm(losses: np.ndarray, weights: np.ndarray) -> float:
    """The number of the first night on which it is called broken; beyond the year without one."""
    alarms = p_values_above(losses, CLASS_LIMIT, weights) <= DELTA / 2
    return float(np.argmax(alarms)) + 1 if alarms.any() else NIGHTS + 1


if __name__ == "__main__":
    main()
