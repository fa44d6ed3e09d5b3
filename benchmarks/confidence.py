"""Every confidence score on validation images, clean and with half of them degraded.

    python benchmarks/confidence.py DATA --model FOLDER [--members FOLDER] [--member-epochs N] [--seeds 0,1,2]

Takes the model in FOLDER, or trains it there with the defaults first. Measures on split val each score's
AURC, gap closed and the like: on the clean images, and for every seed on the same images with a random half
of them degraded (noise, blur, dark, fog, JPEG damage, white balance). The discriminator's score is held
against each rival by a paired bootstrap over the images; frames of one video are not independent, so where
DATA is video the interval is too narrow. Then the time of the judge over the generator's, and how far the
confidence shown is from the truth. Prints the tables; writes them and the curves below results/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from damaged_half import damaged_half
from ensemble import members, pairwise_dice
from judge_cost import judge_cost
from machine import RESULTS, write_results
from torch import nn

from segpipe import storage
from segpipe.confidence.calibration_error import expected_calibration_error
from segpipe.confidence.score import SCORE_PARTS
from segpipe.confidence.selective import coverage_at_risk, gap_closed, paired_bootstrap, selective_metrics
from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, list_samples
from segpipe.degradations import degrade
from segpipe.evaluation.measure import Measurements, measure, open_matching_dataset, read_in_batches
from segpipe.models.inference import prepare
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.reports.plots import calibration_png, risk_coverage_png
from segpipe.tables import columns
from segpipe.training.run import train

SPLIT = "val"
NETWORKS = 5
ENSEMBLE = "five_networks"
SINGLE_NETWORK_RIVALS = ("max_softmax", "entropy", "soft_dice", "soft_iou", "flip_tta")
TIMED_BATCHES = 9


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="Folder of the model; trained there when it holds none.")
@click.option("--members", "members_folder", help="Folder of the other four networks; trained when missing.")
@click.option("--member-epochs", default=12, show_default=True, help="Passes of each of those four.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Draws of the degraded half.")
def main(data: str, model: str, members_folder: str | None, member_epochs: int, seeds: str) -> None:
    """Measure every score on DATA's validation split."""
    if not storage.exists(storage.join(storage.normalise(model), "model.json")):
        train(TrainSettings(data=data, model=model))
    labeler = load_without_policy(model, "cpu")
    dataset = open_matching_dataset(labeler, data)
    others = (
        members(data, labeler.bundle.spec, Path(members_folder), member_epochs, NETWORKS - 1)
        if members_folder
        else []
    )
    clean = measured(labeler, dataset, others, None)
    halves = [measured(labeler, dataset, others, int(seed)) for seed in seeds.split(",")]
    result = {
        "data": dataset.name,
        "split": SPLIT,
        "n": len(clean.keys),
        "model_id": labeler.model_id,
        "member_epochs": member_epochs if others else None,
        "networks_in_ensemble": 1 + len(others) if others else None,
        "degradation_seeds": [int(seed) for seed in seeds.split(",")],
        "clean": figures([clean]),
        "half_degraded": figures(halves),
        "judge_time_per_generator_time": cost_of_judge(labeler, dataset),
    }
    write(dataset.name, result, clean, halves[0])


def measured(
    labeler: Labeler, dataset: Dataset, others: Sequence[nn.Module], seed: int | None
) -> Measurements:
    """All scores on the split; a seed degrades a random half of its images."""
    samples = list_samples(dataset, SPLIT)
    damage = None if seed is None else degrade
    batches = list(damaged_half(dataset, samples, labeler.batch_size, damage, seed or 0))
    found = measure(labeler, [sample.key for sample in samples], batches, dataset.ignore_index)
    if others:
        networks = [labeler.bundle.generator, *others]
        agreement = [
            pairwise_dice(networks, prepare(labeler.bundle, [image for image, _ in pairs], "cpu"))
            for pairs in batches
        ]
        found.scores[ENSEMBLE] = torch.cat(agreement).numpy()
    return found


def figures(runs: Sequence[Measurements]) -> dict[str, Any]:
    """Means over the runs; of the bootstrap intervals the lowest low and the highest high end."""
    per_run = [_run_figures(run) for run in runs]
    names = list(per_run[0]["scores"])
    return {
        "mean_image_iou": _mean([run["mean_image_iou"] for run in per_run]),
        "calibration_error": _mean([run["calibration_error"] for run in per_run]),
        "scores": {
            name: {
                figure: _mean([run["scores"][name][figure] for run in per_run])
                for figure in per_run[0]["scores"][name]
            }
            for name in names
        },
        "gap_closed_per_run": {
            name: [run["scores"][name]["gap_closed"] for run in per_run] for name in names
        },
        "discriminator_minus_rival": {
            rival: {
                "difference": _mean([run["against"][rival].difference for run in per_run]),
                "low": min(run["against"][rival].low for run in per_run),
                "high": max(run["against"][rival].high for run in per_run),
            }
            for rival in per_run[0]["against"]
        },
    }


def _run_figures(run: Measurements) -> dict[str, Any]:
    known = ~np.isnan(run.image_ious)
    losses = 1 - run.image_ious[known]
    scores = {name: values[known] for name, values in run.scores.items()}
    allowed = float(losses.mean()) / 2
    return {
        "mean_image_iou": 1 - float(losses.mean()),
        "calibration_error": expected_calibration_error(run.confidences[known], 1 - losses),
        "scores": {
            name: asdict(selective_metrics(losses, values))
            | {"coverage_at_half_risk": coverage_at_risk(losses, values, allowed)}
            for name, values in scores.items()
        },
        "against": {
            name: paired_bootstrap(losses, scores["discriminator"], values, gap_closed, resamples=1000)
            for name, values in scores.items()
            if name not in ("discriminator", *SCORE_PARTS)
        },
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def cost_of_judge(labeler: Labeler, dataset: Dataset) -> float:
    """The median ratio of judge_cost.py on validation images."""
    pairs = next(read_in_batches(dataset, list_samples(dataset, SPLIT), labeler.batch_size))
    batch = prepare(labeler.bundle, [image for image, _ in pairs], "cpu")
    return judge_cost(labeler.bundle, batch, TIMED_BATCHES)


def write(name: str, result: dict[str, Any], clean: Measurements, half: Measurements) -> None:
    """Print the tables, keep everything below results/."""
    RESULTS.mkdir(exist_ok=True)
    for condition, run in (("clean", clean), ("half-degraded", half)):
        known = ~np.isnan(run.image_ious)
        shown = {
            score: values[known]
            for score, values in run.scores.items()
            if score in ("discriminator", "adversarial", ENSEMBLE, *SINGLE_NETWORK_RIVALS)
        }
        curves = risk_coverage_png(1 - run.image_ious[known], shown)
        (RESULTS / f"confidence-{name}-{condition}.png").write_bytes(curves)
        reliability = calibration_png(run.confidences[known], run.image_ious[known])
        (RESULTS / f"confidence-{name}-{condition}-calibration.png").write_bytes(reliability)
    for condition in ("clean", "half_degraded"):
        click.echo(f"\n{name}, {condition}: mean image IoU {result[condition]['mean_image_iou']:.3f}")
        click.echo("\n".join(columns(_table(result[condition]))))
        click.echo(f"calibration error of the confidence shown: {result[condition]['calibration_error']:.3f}")
    click.echo(f"\ntime of the judge over the generator's: {result['judge_time_per_generator_time']:.2f}")
    write_results(f"confidence-{name}", result)


def _table(part: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "score", "gap closed", "Spearman", "AURC", "AUGRC", "discriminator ahead by (95%)"
    for name, row in part["scores"].items():
        against = part["discriminator_minus_rival"].get(name)
        ahead = "-"
        if against:
            ahead = f"{against['difference']:+.2f} ({against['low']:+.2f} to {against['high']:+.2f})"
        yield (
            name,
            f"{row['gap_closed']:.2f}",
            f"{row['spearman']:.2f}",
            f"{row['aurc']:.4f}",
            f"{row['augrc']:.4f}",
            ahead,
        )


if __name__ == "__main__":
    main()
