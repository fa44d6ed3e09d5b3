"""What is promised of rare classes and of unequal groups: each rule beside the one before it, simulated.

    python benchmarks/promise_rules.py [--draws 300]

Every line certifies new calibration sets as segpipe calibrate does (confidence/certificates.py) and holds
each threshold against the truth of its population. Beside the share of draws that break the promise stands
that of the rule before, on the same draws and in the same reading.

classes: of 400 or 10,000 images 1% or a fifth have a defect; promised at 5% / 95%. An all-background model
never shows it; a fair one misses it in 30% of the images with it, the more the lower its score (correlation
0.8), shows it in 10% of those without, and promises both. The rule before is the promise about masks, by
which a missed or invented defect is a bad mask.

groups: frames of videos that share so much of their variance; correlation of score and quality 0.8; alpha =
delta = 0.1; a fifth of the masks bad. The rule before draws one frame of each.

masks: a fifth of the groups has 20 frames, the others 2, the large ones are worse and no score knows it; a
tenth of the masks of small groups is bad. The rule before promises a random image of a random group, and is
read as one of the accepted masks here.

Prints one table and writes it below results/. Takes about four minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import click
import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy.stats import binom, norm

from segpipe.confidence.certificates import (
    BadFraction,
    CalibrationImages,
    ClassPixels,
    ClassTarget,
    Wanted,
    certificate_of,
)
from segpipe.confidence.guarantee import candidate_thresholds, certify, coverages_to_test
from segpipe.tables import columns

SIMULATION_ERROR = 0.001  # probability that a promise kept exactly at delta is called broken
MIN_IOU = 0.6
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """What one rule does over the draws: shares of them; mean coverage over all draws, 0 where it failed."""

    certifies: float
    coverage: float
    broken: float


@dataclass(frozen=True)
class Line:
    """One population: today's rule, the one before, and the share of draws that may break the promise."""

    part: str
    population: str
    rule: Rule
    before: Rule
    allowed: float
    kept: bool


@dataclass(frozen=True)
class Draw:
    """A threshold (None: none), the share of all that it truly accepts, whether it breaks the promise."""

    threshold: float | None
    coverage: float
    broken: bool


# --- rare classes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defects:
    """Images of which a share has a defect, and what the model makes of them."""

    name: str
    images: int
    share: float
    is_blind: bool


DEFECTS = (
    Defects("all background, 1% of 400", 400, 0.01, True),
    Defects("all background, 1% of 10,000", 10_000, 0.01, True),
    Defects("all background, a fifth of 400", 400, 0.2, True),
    Defects("misses 30%, a fifth of 400", 400, 0.2, False),
    Defects("misses 30%, 1% of 10,000", 10_000, 0.01, False),
)
OF_CLASSES = 0.05
CONFIDENCE = 0.95


def defect_images(of: Defects, random: np.random.Generator) -> tuple[Floats, Flags, Flags]:
    """Scores, whether there is a defect, whether the mask shows one, of new images."""
    scores, noise = random.normal(size=(2, of.images))
    has = random.random(of.images) < of.share
    quality = 0.8 * scores + 0.6 * noise
    wrong = quality < np.where(has, norm.ppf(0.3), norm.ppf(0.1))
    return scores, has, np.zeros_like(has) if of.is_blind else has ^ wrong


def accepted_and_wrong(rate: float, threshold: float, is_blind: bool) -> float:
    """Of the images concerned, the share that is accepted with a wrong mask, by integration."""
    if is_blind:
        return float(norm.sf(threshold))
    scores = np.linspace(threshold, max(threshold, 0) + 8, 4001)
    values = norm.pdf(scores) * norm.cdf((norm.ppf(rate) - 0.8 * scores) / 0.6)
    return float(np.trapezoid(values, scores))


def of_defects(of: Defects, random: np.random.Generator) -> tuple[Draw, Draw]:
    """By the promise about misses, and false alarms where the model has any, and by that about masks."""
    scores, has, shows = defect_images(of, random)
    ious = np.where(has == shows, 1.0, 0.5)
    pixels = ClassPixels(has.astype(np.int64)[:, None], shows.astype(np.int64)[:, None])
    images = CalibrationImages(scores, scores, ious, None, pixels)
    miss = ClassTarget("miss", "defect", 0, OF_CLASSES, 1)
    targets = (miss,) if of.is_blind else (miss, replace(miss, kind="false_alarm"))
    found = certificate_of("", images, Wanted(None, targets, CONFIDENCE, "groups", None))
    before = certificate_of(
        "", images, Wanted(BadFraction(MIN_IOU, OF_CLASSES), (), CONFIDENCE, "groups", None)
    )

    def held(threshold: float | None) -> Draw:
        if threshold is None:
            return Draw(None, 0.0, False)
        missed = accepted_and_wrong(0.3, threshold, of.is_blind)
        false = 0.0 if of.is_blind else accepted_and_wrong(0.1, threshold, False)
        return Draw(threshold, float(norm.sf(threshold)), max(missed, false) > OF_CLASSES)

    return held(found.threshold), held(before.threshold)


# --- groups -------------------------------------------------------------------------------------------------

ALPHA = DELTA = 0.1


@dataclass(frozen=True)
class Videos:
    """Videos of 20 frames that share so much of their variance."""

    videos: int
    shared: float


VIDEOS = tuple(Videos(videos, shared) for videos in (50, 100, 200) for shared in (0.9, 0.5, 0.2))


def frames(
    sizes: NDArray[np.int64], shared: float, random: np.random.Generator
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Score and quality, standard normal with correlation 0.8, and the group, of the frames of each group."""
    member = np.repeat(np.arange(len(sizes)), sizes)
    together, own = random.normal(size=(2, len(sizes)))[:, member], random.normal(size=(2, len(member)))
    scores, noise = np.sqrt(shared) * together + np.sqrt(1 - shared) * own
    return scores, 0.8 * scores + 0.6 * noise, member


def true_bad_share(threshold: float, rate: float, shift: float = 0.0) -> float:
    """Of the frames from a threshold on, those that are bad: of quality below the `rate` quantile."""
    scores = np.linspace(threshold, max(threshold, 0) + 8, 4001)
    density = norm.pdf(scores)
    bad = norm.cdf((norm.ppf(rate) + shift - 0.8 * scores) / 0.6)
    return float((density * bad).sum() / density.sum())


def drawn_threshold(scores: Floats, bad: Flags, member: NDArray[np.int64]) -> float | None:
    """By one image of each group, as before."""
    rows = np.unique(member, return_index=True)[1]  # frames of a group are exchangeable here
    coverages = coverages_to_test(len(rows), ALPHA, 1 - DELTA)
    candidates = candidate_thresholds(scores[rows], coverages)
    return certify(scores[rows], bad[rows], candidates, ALPHA, 1 - DELTA).threshold


def of_videos(of: Videos, random: np.random.Generator) -> tuple[Draw, Draw]:
    """By the shipped rule and by one frame of each video."""
    scores, quality, member = frames(np.full(of.videos, 20), of.shared, random)
    bad = quality < norm.ppf(0.2)
    images = CalibrationImages(scores, scores, np.where(bad, 0.0, 1.0), member.astype(str), None)
    found = certificate_of("", images, Wanted(BadFraction(MIN_IOU, ALPHA), (), 1 - DELTA, "groups", None))

    def held(threshold: float | None) -> Draw:
        if threshold is None:
            return Draw(None, 0.0, False)
        return Draw(threshold, float(norm.sf(threshold)), true_bad_share(threshold, 0.2) > ALPHA)

    return held(found.threshold), held(drawn_threshold(scores, bad, member))


SHIFT = 0.8  # in quality, of the large groups


def of_unequal_groups(groups: int, random: np.random.Generator) -> tuple[Draw, Draw]:
    """By the promise about masks and by that about groups."""
    sizes = np.where(random.random(groups) < 0.2, 20, 2)
    scores, quality, member = frames(sizes, 0.5, random)
    bad = quality < norm.ppf(0.1) + np.where(sizes == 20, SHIFT, 0.0)[member]
    images = CalibrationImages(scores, scores, np.where(bad, 0.0, 1.0), member.astype(str), None)
    wanted = Wanted(BadFraction(MIN_IOU, ALPHA), (), 1 - DELTA, "masks", None)
    found = certificate_of("", images, wanted)

    def held(threshold: float | None) -> Draw:
        if threshold is None:
            return Draw(None, 0.0, False)
        share = np.array([true_bad_share(threshold, 0.1, shift) for shift in (0.0, SHIFT)])
        of_masks = float(np.array([0.8 * 2, 0.2 * 20]) @ share / (0.8 * 2 + 0.2 * 20))
        return Draw(threshold, float(norm.sf(threshold)), of_masks > ALPHA)

    return held(found.threshold), held(drawn_threshold(scores, bad, member))


# --- all of it ----------------------------------------------------------------------------------------------


def lines(draws: int, seed: int) -> Iterator[Line]:
    """Everything that is simulated."""
    random = np.random.default_rng(seed)
    for defects in DEFECTS:
        yield _line("classes", defects.name, lambda: of_defects(defects, random), draws, 1 - CONFIDENCE)  # noqa: B023
    for videos in VIDEOS:
        name = f"{videos.videos} videos of 20, sharing {videos.shared}"
        yield _line("groups", name, lambda: of_videos(videos, random), draws, DELTA)  # noqa: B023
    for groups in (150, 400, 1000):
        name = f"{groups} unequal groups"
        yield _line("masks", name, lambda: of_unequal_groups(groups, random), draws, DELTA)  # noqa: B023


def _line(
    part: str, population: str, draw: Callable[[], tuple[Draw, Draw]], draws: int, delta: float
) -> Line:
    found = [draw() for _ in range(draws)]
    rule, before = (_rule([pair[which] for pair in found]) for which in (0, 1))
    allowed = float(binom.ppf(1 - SIMULATION_ERROR, draws, delta) / draws)
    return Line(part, population, rule, before, allowed, rule.broken <= allowed)


def _rule(found: list[Draw]) -> Rule:
    return Rule(
        certifies=float(np.mean([one.threshold is not None for one in found])),
        coverage=float(np.mean([one.coverage for one in found])),
        broken=float(np.mean([one.broken for one in found])),
    )


def table(found: list[Line]) -> list[str]:
    """The lines as aligned text."""
    header = (
        "part",
        "population",
        "certifies",
        "coverage",
        "broken",
        "before:",
        "coverage",
        "broken",
        "kept",
    )
    body = [
        (
            line.part,
            line.population,
            f"{line.rule.certifies:.0%}",
            f"{line.rule.coverage:.2f}",
            f"{line.rule.broken:.1%}",
            f"{line.before.certifies:.0%}",
            f"{line.before.coverage:.2f}",
            f"{line.before.broken:.1%}",
            f"{'yes' if line.kept else 'NO'} (at most {line.allowed:.1%})",
        )
        for line in found
    ]
    return list(columns([header, *body]))


@click.command()
@click.option("--draws", default=300, show_default=True, help="Calibration sets per line.")
@click.option("--seed", default=0, show_default=True)
def main(draws: int, seed: int) -> None:
    """Simulate every line, print the table and keep it."""
    found = list(lines(draws, seed))
    click.echo("\n".join(table(found)))
    write_results("promise_rules", {"seed": seed, "draws": draws, "lines": [asdict(line) for line in found]})


if __name__ == "__main__":
    main()
