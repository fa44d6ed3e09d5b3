"""A certificate that grows with the reviews: simulated, and end to end through label, review and recalibrate.

    python benchmarks/growing.py table [--draws 60] [--seed 0]
    python benchmarks/growing.py scenes --work FOLDER [--nights 30] [--images 100]
    python benchmarks/growing.py data ROOT --model FOLDER --calibration SPLIT --split SPLIT --work FOLDER

`table`: score and quality are normal with a given correlation, a fifth of the masks is bad, alpha = delta =
0.1. Day 0 certifies on n0 images; then so many masks are drawn and answered a night, for 60 nights. Beside
the policy that grows: the same certificate for ever with all of the error; all stricter thresholds to be
proven by the draws, calibration's too; and certifying anew every night on all labels so far, as if each time
were the first. Broken: what the threshold truly accepts is bad in more than alpha, on any night.

`scenes` draws labelled scenes and trains a small model in FOLDER, unless one is there, and then labels so
many new scenes each night; `data` does that with the images of a labelled split and a model that has not
learnt from it. A simulated reviewer answers what is drawn from the truth: he mends 90% of the wrong pixels of
a draft, draws a fifth from scratch, skips 3% and is up to three nights late. Each night: segpipe label, the
answers that are due, segpipe recalibrate. Writes results/growing*.json and a plot of coverage and true bad
share per night. `table` takes some two minutes on one core, `scenes` some six.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from segpipe import load_model, storage
from segpipe.confidence.certify import BadFraction, make_policy
from segpipe.confidence.growing import Draws, loosest_proven
from segpipe.confidence.grown_policy import grown_threshold
from segpipe.confidence.guarantee import candidate_thresholds, certify, coverages_to_test
from segpipe.confidence.policy import Policy
from segpipe.config import CalibrateSettings, LabelSettings, QueueSettings, TrainSettings
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.evaluation.calibration import calibrate
from segpipe.images import decode_mask
from segpipe.labeling.run import label_source
from segpipe.manifests.query import query
from segpipe.manifests.reviews import Review, append_reviews
from segpipe.metrics import image_iou
from segpipe.review.agreement import draft_iou
from segpipe.review.queue import QueueItem, make_queue
from segpipe.review.recalibration import recalibrate
from segpipe.tables import columns
from segpipe.training.run import train

ALPHA, CONFIDENCE, SHARE_BAD, NIGHTS = 0.1, 0.9, 0.2, 60
CELLS = ((0.8, 100, 20), (0.6, 100, 20), (0.6, 100, 5), (0.8, 400, 20))  # correlation, n0, labels a night
LOOKED_AT = range(0, NIGHTS + 1, 3)
GOOD_IOU, BAD_IOU = 0.9, 0.1
CREATED = "2026-11-29T00:00:00+00:00"

MENDED, SKIPPED, LATEST = 0.9, 0.03, 3
DRAW_SHARE, MIN_IOU = 0.2, 0.6
EPOCHS, IMAGE_SIZE = 6, "64x96"
TRAIN, VALIDATION, CALIBRATION = (200, 40), (30, 6), (100, 20)
Floats = NDArray[np.float64]


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
    root = make_policy(
        scores, np.where(bad, BAD_IOU, GOOD_IOU), "m" * 12, BadFraction(0.5, ALPHA), CONFIDENCE, "f" * 64,
        CREATED, draw_share=1.0,
    )  # fmt: skip
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


def summed(runs: Sequence[Found]) -> dict[str, float]:
    """Mean coverage on nights 0, 30 and 60, and the share of the draws that were ever broken."""
    mean = {f"night {night}": float(np.mean([run.coverage[night] for run in runs])) for night in (0, 30, 60)}
    return mean | {"ever broken": float(np.mean([run.broken for run in runs]))}


def lines(row: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield f"{row['correlation']}, {row['n0']}, {row['labels']}", "0", "30", "60", "ever broken"
    for method in ("for ever", "grows", "all proven by draws", "naive"):
        *coverages, broken = row[method].values()
        yield method, *(f"{coverage:.3f}" for coverage in coverages), f"{broken:.1%}"
    yield "oracle", "", "", f"{row['oracle']:.2f}", ""


# --- end to end ---------------------------------------------------------------------------------------------


@dataclass
class Reviewer:
    """Answers what is drawn, from the truth of each image (HxW class indices), by its URI."""

    output: str
    classes: Sequence[str]
    ignore_index: int
    random: np.random.Generator
    truth: dict[str, np.ndarray] = field(default_factory=dict)
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

    def _review(self, item: QueueItem) -> Review:
        draft = decode_mask(storage.read_bytes(item.mask_uri))
        skipped = self.random.random() < SKIPPED
        final = self._final(item, draft)
        verdict = "skipped" if skipped else "accepted" if np.array_equal(final, draft) else "corrected"
        n = len(self.classes)
        return Review(
            review_id=item.item_id, item_id=item.item_id, image_uri=item.image_uri,
            image_etag=self._etag(item), model_id=item.model_id, draft_mask_sha256=item.mask_sha256,
            verdict=verdict, final_mask_uri=None, final_mask_sha256=None,
            draft_iou=None if skipped else draft_iou(draft, final, n, "every_class"),
            draft_iou_graded=None if skipped else draft_iou(draft, final, n, "graded"),
            overlap_pixels=0, audit=item.is_audit, inclusion_probability=1.0, reviewer="simulated",
            minutes=1.0, reviewed_at=datetime.now(UTC), origin="benchmark", from_scratch=item.from_scratch,
        )  # fmt: skip

    def _final(self, item: QueueItem, draft: np.ndarray) -> np.ndarray:
        """What they leave: the truth from scratch, and with a draft the truth where they mend it."""
        truth = self.truth[item.image_uri]
        unlabelled = truth == self.ignore_index
        if item.from_scratch:
            return np.where(unlabelled, draft, truth)
        mended = self.random.random(draft.shape) < MENDED
        return np.where(mended & ~unlabelled, truth, draft)

    def _etag(self, item: QueueItem) -> str:
        sql = f"SELECT image_etag FROM labels WHERE mask_sha256 = '{item.mask_sha256}'"
        sql += " AND image_uri = '" + item.image_uri.replace("'", "''") + "'"
        return str(query(self.output, sql).to_pylist()[0]["image_etag"])


@dataclass(frozen=True)
class Night:
    """What a night's run accepted, and how much of that is truly bad; `number` is the policy's."""

    images: int
    coverage: float
    bad_share: float | None
    answered: int
    number: int
    threshold: float | None


@main.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--nights", default=30, show_default=True)
@click.option("--images", default=100, show_default=True, help="New scenes a night; a sixth is degraded.")
@click.option("--seed", default=0, show_default=True)
def scenes(work: Path, nights: int, images: int, seed: int) -> None:
    """Nights of drawn scenes."""
    data, model, random = str(work / "labelled"), str(work / "model"), np.random.default_rng(seed)
    if not storage.exists(f"{model}/model.json"):
        for split, (good, degraded) in (("train", TRAIN), ("val", VALIDATION), ("calibration", CALIBRATION)):
            scene_painter.write_labelled(data, split, good, degraded, random)
        train(TrainSettings(data=data, model=model, epochs=EPOCHS, image_size=IMAGE_SIZE, seed=seed))
    calibrated(model, data, "calibration")

    def arrive(night: int, source: str) -> dict[str, np.ndarray]:
        folder = f"{source}/night-{night:02d}"
        degraded = images // 6
        truth = scene_painter.write_raw_bucket(
            folder, images - degraded, degraded, np.random.default_rng((seed, night, 1))
        )
        return {f"{folder}/{key}": mask for key, mask in truth.items()}

    told = run_nights(
        work, model, nights, arrive, (scene_painter.CLASSES, scene_painter.IGNORE_INDEX), random
    )
    keep("growing-scenes", told)


@main.command()
@click.argument("root")
@click.option("--model", required=True, help="A model that has not learnt from these splits.")
@click.option("--calibration", required=True, help="Split to calibrate on.")
@click.option("--split", required=True, help="Split whose images arrive.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--name", default="data", show_default=True, help="Of the results.")
@click.option("--nights", default=8, show_default=True)
@click.option("--seed", default=0, show_default=True)
def data(
    root: str, model: str, calibration: str, split: str, work: Path, name: str, nights: int, seed: int
) -> None:
    """Nights of a labelled data set."""
    random, dataset = np.random.default_rng(seed), open_dataset(root)
    calibrated(model, root, calibration)
    samples = list_samples(dataset, split)
    order = random.permutation(len(samples))

    def arrive(night: int, source: str) -> dict[str, np.ndarray]:
        truth = {}
        for place in np.array_split(order, nights)[night]:
            sample = samples[place]
            name = f"{sample.key.replace('/', '_')}.{sample.image_uri.rpartition('.')[2]}"
            uri = f"{source}/night-{night:02d}/{name}"
            storage.put(uri, storage.read_bytes(sample.image_uri))
            truth[uri] = read_sample(dataset, sample)[1]
        return truth

    told = run_nights(work, model, nights, arrive, (dataset.classes, dataset.ignore_index), random)
    keep(f"growing-{name}", told)


def calibrated(model: str, root: str, split: str) -> Policy:
    """A policy that grows."""
    policy = calibrate(
        CalibrateSettings(
            model=model, data=root, split=split, min_iou=MIN_IOU, max_bad_fraction=ALPHA,
            confidence=CONFIDENCE, grow=True, draw_share=DRAW_SHARE,
        )
    )  # fmt: skip
    accepted = f"{policy.accepted} of {policy.n_calibration} accepted"
    click.echo(f"calibrated: threshold {policy.threshold}, {accepted}")
    return policy


def run_nights(
    work: Path,
    model: str,
    nights: int,
    arrive: Any,
    labels: tuple[Sequence[str], int],
    random: np.random.Generator,
) -> dict[str, Any]:
    """Label, answer and recalibrate, night after night, and hold what was accepted against the truth."""
    source, output = str(work / "source"), str(work / f"output-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    reviewer = Reviewer(output, labels[0], labels[1], random)
    settings = LabelSettings(audit_share=DRAW_SHARE, device="cpu")
    labeler = load_model(model, "cpu")
    told = []
    for night in range(nights):
        reviewer.truth |= arrive(night, source)
        summary = label_source(source, output, labeler, settings, f"night-{night:02d}")
        reviewer.look(night)
        reviewer.answer(night)
        (grown,) = recalibrate(output)
        night_found = judged(output, summary.run_id, reviewer, labeler.iou_rule)
        told.append(Night(summary.planned, *night_found, reviewer.answered, grown.number, grown.threshold))
        click.echo(f"night {night}: {told[-1]}")
    return {
        "alpha": ALPHA, "confidence": CONFIDENCE, "min_iou": MIN_IOU, "draw_share": DRAW_SHARE,
        "first_threshold": labeler.policy.threshold if labeler.policy else None,
        "true_bad_share": overall(output, reviewer, labeler.iou_rule),
        "ratio": (grown.ratio, grown.ratio_lower, grown.ratio_upper),
        "nights": [asdict(night) for night in told],
    }  # fmt: skip


def judged(output: str, run_id: str, reviewer: Reviewer, rule: Any) -> tuple[float, float | None]:
    """Coverage of a run and the true bad share of what it accepted."""
    rows = query(output, f"SELECT * FROM labels WHERE run_id = '{run_id}'").to_pylist()
    bad = [is_bad(row, reviewer, rule) for row in rows if row["decision"] == "accepted"]
    return len(bad) / max(len(rows), 1), float(np.mean(bad)) if bad else None


def overall(output: str, reviewer: Reviewer, rule: Any) -> float | None:
    """The true bad share of all that was accepted."""
    rows = query(output, "SELECT * FROM labels WHERE decision = 'accepted'").to_pylist()
    return float(np.mean([is_bad(row, reviewer, rule) for row in rows])) if rows else None


def is_bad(row: Mapping[str, Any], reviewer: Reviewer, rule: Any) -> bool:
    mask = decode_mask(storage.read_bytes(row["mask_uri"]))
    truth = reviewer.truth[row["image_uri"]]
    return image_iou(truth, mask, len(reviewer.classes), reviewer.ignore_index, rule) < MIN_IOU


def keep(name: str, told: dict[str, Any]) -> None:
    """Figures and a plot of them."""
    write_results(name, told)
    nights = np.arange(len(told["nights"]))
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    above.step(nights, [night["coverage"] for night in told["nights"]], where="mid")
    above.set(ylabel="coverage", ylim=(0, 1), title="A certificate that grows with the reviews")
    shares = [np.nan if night["bad_share"] is None else night["bad_share"] for night in told["nights"]]
    below.plot(nights, shares, "o", label="true bad share of the night's accepted masks")
    below.axhline(told["alpha"], color="black", linestyle="--", label="promised at most, of all accepted")
    if told["true_bad_share"] is not None:
        below.axhline(told["true_bad_share"], color="C1", label="true bad share of all accepted")
    below.set(xlabel="night", ylabel="bad share", ylim=(0, None))
    below.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
