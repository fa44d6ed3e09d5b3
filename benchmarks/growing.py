"""A certificate that grows with the reviews: simulated, and end to end through label, review and recalibrate.

    python benchmarks/growing.py table [--draws 60] [--seed 0]
    python benchmarks/growing.py starts [--draws 100] [--seed 0]
    python benchmarks/growing.py skips [--draws 400] [--seed 0]
    python benchmarks/growing.py scenes --work FOLDER [--nights 30] [--images 100] [--skipped 0.03]
    python benchmarks/growing.py data ROOT --name NAME --work FOLDER --min-iou IOU [--nights 8] [--images 150]

`table`: score and quality are normal with a given correlation, a fifth of the masks is bad, alpha = delta =
0.1. Day 0 certifies on n0 images; then so many masks are drawn and answered a night, for 60 nights. Beside
the policy that grows: the same certificate for ever with all of the error; all stricter thresholds to be
proven by the draws, calibration's too; and certifying anew every night on all labels so far, as if each time
were the first. Broken: what the threshold truly accepts is bad in more than alpha, on any night.

`starts`: where the sequence of thresholds may begin, in the same simulation: with the surest fifth of the
calibration images (the product), 8%, 40%; where calibration's labels let evidence grow fastest, which the
draws do not depend on, so that it costs no error; and at three places at once, a third of the error each.

`skips`: one threshold, 1,500 drawn masks, a fifth from scratch, and people who with the draft find bad only
one in so many of the bad masks. How often the threshold is proven: where it is false, at truly 10% bad with
every skipped one among them (at most 5% is the aim), and where it is true, at 4% of the answered. Beside
today's rule, by which a skipped mask is one bad mask, stands the one before, by which one with the draft is
as many as the ratio.

`scenes` draws labelled scenes and trains a small model in FOLDER, unless one is there, and then labels so
many new scenes each night. `data` does that with real images: it divides those of a labelled data set at
random over training, validation, calibration and the nights. As they are too few for the nights, every
image, calibration's too, is a view of one: a random part, turned or mirrored, one in six degraded.
Calibration has one view of each of its images, so that they are independent; the nights draw from theirs.

A simulated reviewer answers what is drawn from the truth: who mends 90% of the wrong pixels of a draft, draws
a fifth from scratch, skips 3% (or --skipped) and is up to three nights late. Tasks come from the queue,
answers and masks go to the files of `segpipe review pull`. Each night: segpipe label, the answers that are
due, segpipe recalibrate; these, train and calibrate are the commands themselves. Writes
results/growing*.json and a plot of coverage and true bad share per night. `table`, `starts`
and `skips` take some two minutes on one core, the others some twenty.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
from machine import RESULTS, write_results
from numpy.typing import NDArray
from promise import qualities, true_risks
from scipy.stats import norm

from demo import scenes as scene_painter
from segpipe import storage
from segpipe.confidence.certify import Asked, BadFraction, Measured, Origin, make_policy
from segpipe.confidence.growing import (
    BETS,
    COVERAGES,
    Draws,
    bad_ratio,
    capital_needed,
    evidence_at,
    limit_with_draft,
    log_capital,
    loosest_proven,
)
from segpipe.confidence.grown_policy import grown_threshold
from segpipe.confidence.guarantee import candidate_thresholds, certify, coverages_to_test
from segpipe.config import QueueSettings
from segpipe.datasets import (
    Dataset,
    list_samples,
    list_splits,
    open_dataset,
    read_sample,
    write_dataset,
    write_sample,
)
from segpipe.degradations import degrade
from segpipe.images import class_palette, decode_mask, encode_image, encode_mask
from segpipe.manifests.query import query
from segpipe.manifests.reviews import Review, append_reviews
from segpipe.metrics import IOU_RULE, image_iou
from segpipe.review.agreement import draft_iou
from segpipe.review.queue import QueueItem, make_queue
from segpipe.tables import columns

ALPHA, CONFIDENCE, SHARE_BAD, NIGHTS = 0.1, 0.9, 0.2, 60
CELLS = ((0.8, 100, 20), (0.6, 100, 20), (0.6, 100, 5), (0.8, 400, 20))  # correlation, n0, labels a night
LOOKED_AT = range(0, NIGHTS + 1, 3)
START_CELLS = ((0.8, 100, 20), (0.6, 100, 20), (0.6, 100, 5), (0.4, 100, 20))
GOOD_IOU, BAD_IOU = 0.9, 0.1
CREATED = "2026-11-29T00:00:00+00:00"

IMAGES = 100  # new scenes a night
MENDED, SKIPPED, LATEST = 0.9, 0.03, 3
DRAW_SHARE, MIN_IOU = 0.2, 0.6
SCENES_TRAINED = ("--epochs", "8", "--image-size", "64x96")
TRAIN, VALIDATION, CALIBRATION = (240, 48), (40, 8), (100, 20)  # good and degraded scenes
VIEWS_TRAINED = ("--epochs", "10", "--image-size", "96x96")
# Which part of a data set's images, and how many views of each.
PARTS = {"train": (0.4, 2), "val": (0.1, 1), "calibration": (0.25, 1), "nights": (0.25, 0)}
SMALLEST_PART, SHARE_DEGRADED = 0.5, 1 / 6
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Arrive = Callable[[int, str], dict[str, Pixels]]


@click.group()
def main() -> None:
    """Say what growing certificates are worth."""


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The true coverage (0 to 1) on each night looked at, and whether a night accepted too many bad ones."""

    coverage: dict[int, float]
    broken: bool


@dataclass
class Population:
    """What thresholds truly accept at one correlation."""

    correlation: float

    def __post_init__(self) -> None:
        self.truth = true_risks("bad fraction", self.correlation)

    def draw(self, n: int, random: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores (n,), and whether each mask is bad."""
        scores, noise = random.normal(size=(2, n))
        return scores, qualities(scores, noise, self.correlation) < norm.ppf(SHARE_BAD)

    def coverage(self, threshold: float | None) -> float:
        return 0.0 if threshold is None else float(norm.sf(threshold))

    def is_broken(self, threshold: float | None) -> bool:
        """Whether more than alpha of what the threshold accepts is bad."""
        if threshold is None:
            return False
        return float(np.interp(threshold, self.truth.scores, self.truth.risks)) > ALPHA

    def oracle(self) -> float:
        return float(self.truth.coverages[self.truth.risks <= ALPHA].max())

    def found(self, thresholds: Mapping[int, float | None]) -> Found:
        coverage = {night: self.coverage(threshold) for night, threshold in thresholds.items()}
        return Found(coverage, any(self.is_broken(one) for one in thresholds.values()))


def certified(scores: Floats, bad: NDArray[np.bool_], confidence: float) -> float | None:
    """As segpipe calibrate does it."""
    candidates = candidate_thresholds(scores, coverages_to_test(len(scores), ALPHA, confidence))
    return certify(scores, bad, candidates, ALPHA, confidence).threshold


def simulated(cell: tuple[float, int, int], random: np.random.Generator) -> dict[str, Found]:
    """One calibration and 60 nights, by each method."""
    correlation, n0, labels = cell
    population = Population(correlation)
    scores, bad = population.draw(n0, random)
    asked = Asked(BadFraction(0.5, ALPHA), CONFIDENCE, draw_share=1.0)
    measured = Measured(scores, np.where(bad, BAD_IOU, GOOD_IOU))
    root = make_policy(measured, asked, Origin("m" * 12, "f" * 64, CREATED))
    drawn_scores, drawn_bad = population.draw(labels * NIGHTS, random)
    once = certified(scores, bad, CONFIDENCE)

    def until(night: int) -> Draws:
        n = labels * night
        none = np.zeros(n, np.bool_)
        return Draws(drawn_scores[:n], drawn_bad[:n], np.ones(n), none, none)

    def from_the_strictest(night: int) -> float | None:
        assert root.growth is not None
        proven = loosest_proven(until(night), root.growth.thresholds, ALPHA, CONFIDENCE, 1.0)
        return min((one for one in (root.threshold, proven) if one is not None), default=None)

    def naively(night: int) -> float | None:
        n = labels * night
        together = np.concatenate([scores, drawn_scores[:n]]), np.concatenate([bad, drawn_bad[:n]])
        return certified(*together, CONFIDENCE)

    return {
        "for ever": population.found(dict.fromkeys(LOOKED_AT, once)),
        "grows": population.found({night: grown_threshold(root, until(night)) for night in LOOKED_AT}),
        "all proven by draws": population.found({night: from_the_strictest(night) for night in LOOKED_AT}),
        "naive": population.found({night: naively(night) for night in LOOKED_AT}),
    }


@main.command()
@click.option("--draws", default=60, show_default=True, help="Calibrations per line.")
@click.option("--seed", default=0, show_default=True)
def table(draws: int, seed: int) -> None:
    """Simulate calibrations and their nights."""
    random, rows = np.random.default_rng(seed), []
    for cell in CELLS:
        runs = [simulated(cell, random) for _ in range(draws)]
        rows.append(
            {"correlation": cell[0], "n0": cell[1], "labels": cell[2]}
            | {"oracle": Population(cell[0]).oracle()}
            | {method: summed([run[method] for run in runs]) for method in runs[0]}
        )
        click.echo("\n".join(columns(list(lines(rows[-1])))))
    write_results("growing", {"alpha": ALPHA, "confidence": CONFIDENCE, "draws": draws, "rows": rows})


def summed(runs: Sequence[Found], nights: Sequence[int] = (0, 30, 60)) -> dict[str, float]:
    """Mean coverage on these nights, and the share of the draws that were ever broken."""
    mean = {f"night {night}": float(np.mean([run.coverage[night] for run in runs])) for night in nights}
    return mean | {"ever broken": float(np.mean([run.broken for run in runs]))}


def lines(row: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield f"{row['correlation']}, {row['n0']}, {row['labels']}", "0", "30", "60", "ever broken"
    for method in ("for ever", "grows", "all proven by draws", "naive"):
        *coverages, broken = row[method].values()
        yield method, *(f"{coverage:.3f}" for coverage in coverages), f"{broken:.1%}"
    yield "oracle", "", "", f"{row['oracle']:.2f}", ""


# --- where the sequence begins ------------------------------------------------------------------------------


def started(cell: tuple[float, int, int], random: np.random.Generator) -> dict[str, Found]:
    """One calibration and 60 nights, by where the thresholds to be proven begin."""
    correlation, n0, labels = cell
    population = Population(correlation)
    scores, bad = population.draw(n0, random)
    drawn_scores, drawn_bad = population.draw(labels * NIGHTS, random)
    calibrated = certified(scores, bad, (1 + CONFIDENCE) / 2)

    def grown(starts: Sequence[float], night: int) -> float | None:
        n, none = labels * night, np.zeros(labels * night, np.bool_)
        draws = Draws(drawn_scores[:n], drawn_bad[:n], np.ones(n), none, none)
        confidence = 1 - (1 - CONFIDENCE) / len(starts)
        proven = [
            loosest_proven(draws, looser_than(calibrated, scores, start), ALPHA, confidence, 1.0)
            for start in starts
        ]
        return min((one for one in (calibrated, *proven) if one is not None), default=None)

    starts = {
        "at 20%, the product": [0.2],
        "at 8%": [0.08],
        "at 40%": [0.4],
        "where calibration's labels say": [fastest_start(scores, bad, calibrated)],
        "at 20, 40 and 60%": [0.2, 0.4, 0.6],
    }
    return {
        name: population.found({night: grown(ones, night) for night in LOOKED_AT})
        for name, ones in starts.items()
    }


def looser_than(calibrated: float | None, scores: Floats, start: float) -> list[float]:
    """Thresholds from this coverage of the calibration images on, below calibration's own."""
    coverages = np.round(np.arange(start, 1.001, 0.04), 2)
    thresholds = candidate_thresholds(scores, coverages.tolist())
    return [one for one in thresholds if calibrated is None or one < calibrated]


def fastest_start(scores: Floats, bad: NDArray[np.bool_], calibrated: float | None) -> float:
    """The coverage at which a drawn mask brings most evidence, by the bad share among calibration images."""
    found = {}
    for coverage in COVERAGES:
        (threshold,) = candidate_thresholds(scores, [coverage])
        accepted = scores >= threshold
        if calibrated is None or threshold < calibrated:
            share = (bad[accepted].sum() + 1) / (accepted.sum() + 2)
            gains = (1 - share) * np.log1p(BETS * ALPHA / (1 - ALPHA)) + share * np.log1p(-BETS)
            found[coverage] = float(accepted.mean() * gains.max())
    return max(found, key=lambda coverage: found[coverage]) if max(found.values(), default=0) > 0 else 0.2


@main.command()
@click.option("--draws", default=100, show_default=True, help="Calibrations per line.")
@click.option("--seed", default=0, show_default=True)
def starts(draws: int, seed: int) -> None:
    """Simulate where the sequence of thresholds may begin."""
    random, rows = np.random.default_rng(seed), []
    for cell in START_CELLS:
        runs = [started(cell, random) for _ in range(draws)]
        row = {"correlation": cell[0], "n0": cell[1], "labels": cell[2]}
        rows.append(row | {start: summed([run[start] for run in runs], (0, 15, 30, 60)) for start in runs[0]})
        body = [
            (start, *(f"{coverage:.3f}" for coverage in coverages), f"{broken:.1%}")
            for start in runs[0]
            for *coverages, broken in [rows[-1][start].values()]
        ]
        click.echo("\n".join(columns([(str(cell), "0", "15", "30", "60", "ever broken"), *body])))
    write_results("growing-starts", {"alpha": ALPHA, "confidence": CONFIDENCE, "draws": draws, "rows": rows})


# --- skipped masks and the reviewers' ratio -----------------------------------------------------------------

ANSWERS, SCRATCH, GOOD_SHARE = 1500, 0.2, 0.04
SKIP_CELLS = (
    (1, 0.0),
    (1, 0.03),
    (3, 0.0),
    (3, 0.03),
    (4, 0.0),
    (4, 0.03),
    (4, 0.06),
)  # ratio, share skipped


def answered_draws(ratio: float, skipped: float, bad_share: float, random: np.random.Generator) -> Draws:
    """Masks of which a share is skipped; of the others a share is truly bad, found so only from scratch."""
    from_scratch, skips = random.random(ANSWERS) < SCRATCH, random.random(ANSWERS) < skipped
    found_bad = random.random(ANSWERS) < bad_share / np.where(from_scratch, 1, ratio)
    ones = np.ones(ANSWERS)
    return Draws(ones, skips | found_bad, ones, from_scratch, skips)


def is_proven(draws: Draws) -> bool:
    """By the rule that segpipe recalibrate follows."""
    return evidence_at(draws, 0.0, ALPHA, CONFIDENCE, 1.0).log_capital >= capital_needed(CONFIDENCE)


def was_proven(draws: Draws) -> bool:
    """By the rule before: a skipped mask costs as much as one that is found bad."""
    found = evidence_at(draws, 0.0, ALPHA, CONFIDENCE, 1.0)
    ratio = bad_ratio(
        found.bad_from_scratch, found.answered_from_scratch,
        found.bad_with_draft, found.answered_with_draft, CONFIDENCE,
    )  # fmt: skip
    limits = np.where(draws.from_scratch, ALPHA, limit_with_draft(ALPHA, ratio))
    capital = log_capital(draws.bad.astype(np.float64), np.ones(ANSWERS), limits)
    return float(capital.max()) >= capital_needed(CONFIDENCE)


@main.command()
@click.option("--draws", default=400, show_default=True, help="Sequences of masks per line.")
@click.option("--seed", default=0, show_default=True)
def skips(draws: int, seed: int) -> None:
    """Simulate what skipped masks cost."""
    random, rows = np.random.default_rng(seed), []
    for ratio, skipped in SKIP_CELLS:
        rows.append({"ratio": ratio, "skipped": skipped})
        for name, bad_share in (("false", (ALPHA - skipped) / (1 - skipped)), ("true", GOOD_SHARE)):
            sets = [answered_draws(ratio, skipped, bad_share, random) for _ in range(draws)]
            rows[-1] |= {f"{name}, proven": float(np.mean([is_proven(one) for one in sets]))}
            rows[-1] |= {f"{name}, before": float(np.mean([was_proven(one) for one in sets]))}
    click.echo(
        "\n".join(columns([list(rows[0]), *([f"{value:.3g}" for value in row.values()] for row in rows)]))
    )
    write_results("growing-skips", {"alpha": ALPHA, "confidence": CONFIDENCE, "draws": draws, "rows": rows})


# --- end to end ---------------------------------------------------------------------------------------------


@dataclass
class Reviewer:
    """Answers what is drawn, from the truth of each image (HxW class indices), by its URI."""

    output: str
    classes: Sequence[str]
    ignore_index: int
    min_iou: float
    random: np.random.Generator
    skipped: float = SKIPPED
    truth: dict[str, Pixels] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    due: dict[int, list[Review]] = field(default_factory=dict)
    answered: int = 0

    def look(self, night: int) -> None:
        """Take what is drawn and new to the reviewer, and answer it then or some nights later."""
        drawn = query(self.output, "SELECT image_uri FROM labels WHERE drawn").to_pylist()
        uris = {row["image_uri"] for row in drawn}
        for item in make_queue(self.output, QueueSettings(limit=100_000)).items:
            if item.image_uri in uris and item.item_id not in self.asked:
                self.asked.add(item.item_id)
                late = int(self.random.integers(0, LATEST + 1))
                self.due.setdefault(night + late, []).append(self._review(item))

    def answer(self, night: int) -> None:
        """Hand in what is due."""
        ready = [review for day in list(self.due) if day <= night for review in self.due.pop(day)]
        at = datetime.now(UTC)
        moments = (at + timedelta(microseconds=number) for number in range(len(ready)))
        append_reviews(
            self.output,
            [replace(one, reviewed_at=moment) for one, moment in zip(ready, moments, strict=True)],
        )
        self.answered += len(ready)

    def is_bad(self, row: Mapping[str, Any]) -> bool:
        """Whether the mask of a manifest row is truly bad."""
        mask, truth = decode_mask(storage.read_bytes(row["mask_uri"])), self.truth[row["image_uri"]]
        return image_iou(truth, mask, len(self.classes), self.ignore_index, IOU_RULE) < self.min_iou

    def _review(self, item: QueueItem) -> Review:
        row = self._row(item)
        told = {
            "review_id": item.item_id, "item_id": item.item_id, "image_uri": item.image_uri,
            "image_etag": row["image_etag"], "model_id": item.model_id,
            "draft_mask_sha256": item.mask_sha256, "overlap_pixels": 0, "audit": row["audit"],
            "inclusion_probability": row["inclusion_probability"], "reviewer": "simulated", "minutes": 1.0,
            "reviewed_at": datetime.now(UTC), "origin": "benchmark", "from_scratch": item.from_scratch,
        }  # fmt: skip
        if self.random.random() < self.skipped:
            none = dict.fromkeys(("final_mask_uri", "final_mask_sha256", "draft_iou"))
            return Review(verdict="skipped", **none, **told)
        return Review(**self._answer(item), **told)

    def _answer(self, item: QueueItem) -> dict[str, Any]:
        draft = decode_mask(storage.read_bytes(item.mask_uri))
        final, n_classes = self._final(item, draft), len(self.classes)
        content = encode_mask(final, class_palette(n_classes))
        uri = storage.join(self.output, f"reviews/masks/{item.item_id}/{item.item_id}.png")
        storage.put(uri, content)
        return {
            "verdict": "accepted" if np.array_equal(final, draft) else "corrected",
            "final_mask_uri": uri,
            "final_mask_sha256": hashlib.sha256(content).hexdigest(),
            "draft_iou": draft_iou(draft, final, n_classes, "every_class"),
            "draft_iou_graded": draft_iou(draft, final, n_classes, "graded"),
        }

    def _final(self, item: QueueItem, draft: Pixels) -> Pixels:
        """What they leave: the truth from scratch, and with a draft the truth where they mend it."""
        truth = self.truth[item.image_uri]
        unlabelled = truth == self.ignore_index
        if item.from_scratch:
            return np.where(unlabelled, draft, truth)
        mended = self.random.random(draft.shape) < MENDED
        return np.where(mended & ~unlabelled, truth, draft)

    def _row(self, item: QueueItem) -> dict[str, Any]:
        rows = shown(self.output, f"mask_sha256 = '{item.mask_sha256}'")
        return next(row for row in rows if row["image_uri"] == item.image_uri)


@dataclass(frozen=True)
class Night:
    """What a night's run accepted, and how much of that and of all masks is truly bad.

    `number`, `threshold` and `promise` are those of the policy that the morning's recalibration left.
    """

    images: int
    coverage: float
    bad_share: float | None
    share_bad_of_all: float | None
    answered: int
    number: int
    threshold: float | None
    promise: str


@main.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--nights", default=30, show_default=True)
@click.option("--images", default=IMAGES, show_default=True, help="New scenes a night; a sixth is degraded.")
@click.option("--min-iou", default=0.6, show_default=True, help="A mask below this is bad.")
@click.option("--skipped", default=SKIPPED, show_default=True, help="Share of the drawn that nobody answers.")
@click.option("--seed", default=0, show_default=True)
def scenes(work: Path, nights: int, images: int, min_iou: float, skipped: float, seed: int) -> None:
    """Nights of drawn scenes."""
    labelled, random = str(work / "labelled"), np.random.default_rng(seed)
    if not storage.exists(labelled):
        for split, (good, degraded) in (("train", TRAIN), ("val", VALIDATION), ("calibration", CALIBRATION)):
            scene_painter.write_labelled(labelled, split, good, degraded, random)

    def arrive(night: int, folder: str) -> dict[str, Pixels]:
        degraded = images // 6
        new = np.random.default_rng((seed, night, 1))
        truth = scene_painter.write_raw_bucket(folder, images - degraded, degraded, new)
        return {f"{folder}/{key}": mask for key, mask in truth.items()}

    told = run_nights(work, SCENES_TRAINED, nights, arrive, min_iou, random, skipped)
    size = "" if images == IMAGES else f"-{images}"
    skipping = "" if skipped == SKIPPED else f"-skipping-{round(100 * skipped)}"
    keep(f"growing-scenes{size}{skipping}", {"images": images, "skipped": skipped} | told)


@main.command()
@click.argument("root")
@click.option("--name", required=True, help="Of the results.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--nights", default=8, show_default=True)
@click.option("--images", default=150, show_default=True, help="New views a night.")
@click.option("--min-iou", type=float, required=True, help="A mask below this is bad; the task decides.")
@click.option("--seed", default=0, show_default=True)
def data(root: str, name: str, work: Path, nights: int, images: int, min_iou: float, seed: int) -> None:
    """Nights of a labelled data set's images."""
    dataset, random = open_dataset(root), np.random.default_rng(seed)
    parts = divided(dataset, random)
    labelled = str(work / "labelled")
    if not storage.exists(labelled):
        write_views(labelled, dataset, parts, random)

    def arrive(night: int, folder: str) -> dict[str, Pixels]:
        new, truth = np.random.default_rng((seed, night, 1)), {}
        for number, place in enumerate(new.integers(len(parts["nights"]), size=images)):
            image, mask = view(*parts["nights"][place], new)
            uri = f"{folder}/{number:04d}.png"
            storage.put(uri, encode_image(image))
            truth[uri] = mask
        return truth

    told = run_nights(work, VIEWS_TRAINED, nights, arrive, min_iou, random)
    keep(f"growing-{name}", {"images": {part: len(pairs) for part, pairs in parts.items()}} | told)


def divided(dataset: Dataset, random: np.random.Generator) -> dict[str, list[tuple[Pixels, Pixels]]]:
    """All labelled images of a data set, each with its mask, at random in the parts of PARTS."""
    samples = [one for split in list_splits(dataset) for one in list_samples(dataset, split)]
    shares = np.cumsum([share for share, _ in PARTS.values()])[:-1]
    places = np.split(random.permutation(len(samples)), np.round(shares * len(samples)).astype(int))
    return {
        part: [read_sample(dataset, samples[place]) for place in chosen]
        for part, chosen in zip(PARTS, places, strict=True)
    }


def write_views(
    labelled: str,
    dataset: Dataset,
    parts: Mapping[str, Sequence[tuple[Pixels, Pixels]]],
    random: np.random.Generator,
) -> None:
    """The labelled splits, as views."""
    written = write_dataset(labelled, "views", dataset.classes, dataset.ignore_index)
    for part, pairs in parts.items():
        for number, pair in enumerate(pairs):
            for again in range(PARTS[part][1]):
                write_sample(written, part, f"{number:04d}-{again}", *view(*pair, random))


def view(image: Pixels, mask: Pixels, random: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A random part of an image (HxWx3) and its mask (HxW), turned and mirrored, one in six degraded."""
    height, width = (int(side * random.uniform(SMALLEST_PART, 1)) for side in mask.shape)
    top, left = (
        int(random.integers(side - part + 1)) for side, part in zip(mask.shape, (height, width), strict=True)
    )
    turns, mirrored = int(random.integers(4)), random.random() < 0.5

    def seen(pixels: Pixels) -> Pixels:
        part = np.rot90(pixels[top : top + height, left : left + width], turns)
        return np.ascontiguousarray(part[:, ::-1] if mirrored else part)

    shown = seen(image)
    return degrade(shown, random) if random.random() < SHARE_DEGRADED else shown, seen(mask)


def segpipe(*words: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "segpipe", *words, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run_nights(
    work: Path,
    training: Sequence[str],
    nights: int,
    arrive: Arrive,
    min_iou: float,
    random: np.random.Generator,
    skipped: float = SKIPPED,
) -> dict[str, Any]:
    """Train and calibrate; label, answer and recalibrate, night after night; compare with the truth."""
    labelled, model, source = (str(work / name) for name in ("labelled", "model", "source"))
    output = str(work / f"output-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    if not storage.exists(f"{model}/model.json"):
        segpipe("train", "--data", labelled, "--model", model, *training)
    share, target = str(DRAW_SHARE), ("--min-iou", str(min_iou), "--max-bad-fraction", str(ALPHA))
    certified = ("--confidence", str(CONFIDENCE), "--grow", "--draw-share", share)
    policy = segpipe(
        "calibrate", "--model", model, "--data", labelled, "--split", "calibration", *target, *certified
    )
    click.echo(f"calibrated: {policy}")
    dataset = open_dataset(labelled)
    reviewer = Reviewer(output, dataset.classes, dataset.ignore_index, min_iou, random, skipped)
    told = []
    for night in range(nights):
        reviewer.truth |= arrive(night, f"{source}/night-{night:02d}")
        run = segpipe("label", source, output, "--model", model, "--audit-share", share)
        reviewer.look(night)
        reviewer.answer(night)
        (grown,) = segpipe("recalibrate", output)
        told.append(found_on(run["run_id"], reviewer, grown))
        click.echo(f"night {night}: {told[-1]}")
    accepted = shown(output, "decision = 'accepted'")
    return {
        "alpha": ALPHA, "confidence": CONFIDENCE, "min_iou": min_iou, "draw_share": DRAW_SHARE,
        "calibrated": policy,
        "true_bad_share": share_bad(accepted, reviewer),
        "true_bad_share_of_all": share_bad(shown(output, "mask_uri IS NOT NULL"), reviewer),
        "recalibrated": {name: fact for name, fact in grown.items() if name != "oldest_open"},
        "nights": [asdict(night) for night in told],
    }  # fmt: skip


def found_on(run_id: str, reviewer: Reviewer, grown: Mapping[str, Any]) -> Night:
    rows = shown(reviewer.output, f"run_id = '{run_id}'")
    accepted = [row for row in rows if row["decision"] == "accepted"]
    return Night(
        images=len(rows),
        coverage=len(accepted) / max(len(rows), 1),
        bad_share=share_bad(accepted, reviewer),
        share_bad_of_all=share_bad(rows, reviewer),
        answered=reviewer.answered,
        number=grown["number"],
        threshold=grown["threshold"],
        promise=grown["promise"],
    )


def shown(output: str, which: str) -> list[dict[str, Any]]:
    return query(output, f"SELECT * FROM labels WHERE {which}").to_pylist()


def share_bad(rows: Sequence[Mapping[str, Any]], reviewer: Reviewer) -> float | None:
    """The true share of bad masks; None of none."""
    return float(np.mean([reviewer.is_bad(row) for row in rows])) if rows else None


def keep(name: str, told: dict[str, Any]) -> None:
    """Figures and a plot of them."""
    write_results(name, told)
    nights = np.arange(len(told["nights"]))
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    above.step(nights, [night["coverage"] for night in told["nights"]], where="mid")
    above.set(ylabel="coverage", ylim=(0, 1), title="A certificate that grows with the reviews")
    shares = [np.nan if night["bad_share"] is None else night["bad_share"] for night in told["nights"]]
    below.plot(nights, shares, "o", label="true bad share of the night's accepted masks")
    of_all = [night["share_bad_of_all"] for night in told["nights"]]
    below.plot(nights, of_all, ".", color="0.6", label="true bad share of the night's masks")
    below.axhline(told["alpha"], color="black", linestyle="--", label="promised at most, of all accepted")
    if told["true_bad_share"] is not None:
        below.axhline(told["true_bad_share"], color="C1", label="true bad share of all accepted")
    below.set(xlabel="night", ylabel="bad share", ylim=(0, None))
    below.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
