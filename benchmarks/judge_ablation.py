"""What each idea of stage 2 is worth, on training images held back from generator and judge.

    python benchmarks/judge_ablation.py DATA --model FOLDER --earlier FOLDER [--views-share 0.3] [--seeds 0]

Teaches the judge of the model in FOLDER anew from its adversarial weights, by segpipe's own stage 2: once as
segpipe train does, then each time without one thing; before that, a judge not taught at all. The generator
stands still and is the same each time; --earlier holds it as it was earlier in its training, as
*.safetensors. Every judge ranks the tuning images, which teach neither network: clean; with a random half in
one of segpipe's six degradations; with a random half in one of four ways that no judge is trained on
(unseen_damage.py); the mean over several draws.

The score's fit uses the same images, so each table has three scores: the first part, which needs no fit; the
fit as trained, which has seen the images it is measured on; and the fit made on one half of the images and
measured on the other, and the other way round. The interval is a bootstrap over the images of the difference
to the product; they are few, and frames of one video are not independent, so it is too narrow there.
K-fold generators are not among the variants: each fold is a training of stage 1. The validation split is not
looked at. Prints a table after each seed and writes it below results/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from machine import write_results
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from unseen_damage import damage_unseen

from segpipe.confidence.combination import class_diversity, fit_combination
from segpipe.confidence.selective import gap_closed
from segpipe.config import CACHE_BYTES
from segpipe.datasets import open_dataset
from segpipe.degradations import degrade
from segpipe.models.bundle import Bundle, build_networks, load_bundle
from segpipe.models.generators.protocol import Generator, build_generator
from segpipe.tables import columns
from segpipe.training.holdout import Parts, split_parts
from segpipe.training.judge_loop import BATCH, VIEWS_SHARE, Scoring, Teachers
from segpipe.training.judge_masks import MIXTURE, Mixture, Source
from segpipe.training.labelled_pixels import LabelledPixels, load_split

Floats = NDArray[np.float64]
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]

PRODUCT = "as the product"
UNTAUGHT = "not taught"
HALF_DAMAGED: dict[str, Damage] = {"half degraded": degrade, "half damaged unseen": damage_unseen}
CONDITIONS = ("clean", *HALF_DAMAGED)
SCORES = ("first part", "fit", "fit on the other half")
RESAMPLES = 500


@dataclass(frozen=True)
class Ranking:
    """Of one draw: true IoUs (n,) and each score (n,) of the same images."""

    ious: Floats
    scores: dict[str, Floats]


def variants() -> dict[str, Mixture]:
    """What the judge is shown, by the name of what is left out."""
    return {
        PRODUCT: MIXTURE,
        "no earlier checkpoints": without(Source.EARLIER, MIXTURE),
        "no mismatched pairs": without(Source.MISMATCHED, MIXTURE),
        "in-sample only": in_sample(MIXTURE),
        "no degraded images": replace(MIXTURE, degraded=0.0),
    }


def without(left_out: Source, mixture: Mixture) -> Mixture:
    """The mixture without a source, the others in their proportions."""
    kept = {source: share for source, share in mixture.sources.items() if source is not left_out}
    whole = sum(kept.values())
    return replace(mixture, sources={source: share / whole for source, share in kept.items()})


def in_sample(mixture: Mixture) -> Mixture:
    """The mixture with nothing but images that the generator was taught."""
    own = mixture.sources[Source.OWN_UNSEEN] + mixture.sources[Source.OWN_SEEN]
    return replace(
        mixture, sources={**mixture.sources, Source.OWN_UNSEEN: 0.0, Source.OWN_SEEN: own}, unseen=0.0
    )


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="Folder of the model, its judge untouched.")
@click.option("--earlier", required=True, help="Folder of earlier generators, *.safetensors.")
@click.option(
    "--views-share", default=VIEWS_SHARE, show_default=True, help="Views of stage 2 over stage 1's."
)
@click.option("--draws", default=10, show_default=True, help="Draws of the damaged halves.")
@click.option("--seeds", default="0", show_default=True, help="Trainings of each judge.")
def main(data: str, model: str, earlier: str, views_share: float, draws: int, seeds: str) -> None:
    """Teach and measure every variant on DATA's training split."""
    bundle, dataset = load_bundle(model, "cpu"), open_dataset(data)
    teachers = Teachers(bundle.generator, earlier_generators(bundle, Path(earlier)))
    found: dict[str, list[dict[str, list[Ranking]]]] = {name: [] for name in (UNTAUGHT, *variants())}
    with load_split(dataset, "train", bundle.spec, CACHE_BYTES) as labelled:
        parts = split_parts(len(labelled))
        views = bundle.card.metrics["epochs"] * len(parts.taught) * views_share
        for done, seed in enumerate((int(seed) for seed in seeds.split(",")), start=1):
            for name, scoring in judges(bundle, teachers, labelled, parts, views, seed):
                found[name].append(measure(scoring, draws))
                click.echo(f"seed {seed}, {name}: {one_line(found[name][-1])}")
            report(dataset.name, bundle.model_id, views_share, draws, seeds.split(",")[:done], found)


def earlier_generators(bundle: Bundle, folder: Path) -> list[Generator]:
    """The generators in a folder, standing still."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise click.ClickException(f"{folder} holds no *.safetensors: give earlier states of the generator")
    found = []
    for path in paths:
        generator = build_generator(bundle.spec.architecture, bundle.spec.mask_channels)
        generator.load_state_dict(load_file(path))
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found.append(generator.eval().requires_grad_(False))
    return found


def judges(
    bundle: Bundle, teachers: Teachers, labelled: LabelledPixels, parts: Parts, views: float, seed: int
) -> Iterator[tuple[str, Scoring]]:
    """The judge before stage 2, whose score is its first part alone, then one per variant."""
    untaught = begin(bundle, teachers, labelled, parts, views, seed, MIXTURE)
    untaught.judge.eval()
    yield UNTAUGHT, untaught
    for name, mixture in variants().items():
        scoring = begin(bundle, teachers, labelled, parts, views, seed, mixture)
        scoring.run(keep_nothing)
        yield name, scoring


def begin(
    bundle: Bundle,
    teachers: Teachers,
    labelled: LabelledPixels,
    parts: Parts,
    views: float,
    seed: int,
    mixture: Mixture,
) -> Scoring:
    """Stage 2 as `segpipe train` begins it but for the mixture."""
    torch.manual_seed(seed)
    _, discriminator = build_networks(bundle.spec)
    judge = discriminator.judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Scoring.begin(seed, bundle.spec, teachers, judge, labelled, parts, views, "cpu", mixture)


def keep_nothing() -> None:
    """A judge is taught in one go."""


def measure(scoring: Scoring, draws: int) -> dict[str, list[Ranking]]:
    """Rankings of the tuning images per condition: one of the clean ones, one per draw of the damaged."""
    halves = fits_of_halves(scoring)
    found = {"clean": [rank(scoring, halves, *tuning(scoring, None, 0))]}
    for condition, damage in HALF_DAMAGED.items():
        drawn = (tuning(scoring, damage, draw) for draw in range(draws))
        found[condition] = [rank(scoring, halves, *views) for views in drawn]
    return found


def tuning(scoring: Scoring, damage: Damage | None, draw: int) -> tuple[Floats, Floats]:
    """Parts (n,P) and IoUs (n,) of the tuning images, a random half of them damaged."""
    rng = np.random.default_rng(draw)
    images, masks = scoring.labelled.batch(scoring.parts.tuning)
    half = rng.permutation(len(images))[: len(images) // 2]
    seen = images.float()
    if damage is not None:
        for row in half:
            worse = damage(images[row].permute(1, 2, 0).numpy(), rng)
            seen[row] = torch.from_numpy(worse.copy()).permute(2, 0, 1)
    judged = [scoring.judge_images(*batch) for batch in in_batches(seen, masks)]
    return np.concatenate([parts for parts, _ in judged]), np.concatenate([ious for _, ious in judged])


def in_batches(images: Tensor, masks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as large as stage 2's own."""
    return zip(images.split(BATCH), masks.split(BATCH), strict=True)


def fits_of_halves(scoring: Scoring) -> tuple[Floats, Floats]:
    """The combinations that the first and the last half of the tuning images give, damaged as in training."""
    rows = scoring.parts.tuning
    middle = len(rows) // 2
    first, last = (
        replace(scoring, parts=replace(scoring.parts, tuning=half)).tuning_views()
        for half in (rows[:middle], rows[middle:])
    )
    diversity = class_diversity(scoring.labelled.counts.numpy())
    return fit_combination(*first, diversity), fit_combination(*last, diversity)


def rank(scoring: Scoring, halves: tuple[Floats, Floats], parts: Floats, ious: Floats) -> Ranking:
    """All scores of the images that have an IoU."""
    combination = scoring.judge.combination.double().numpy()
    of_first, of_last = halves
    middle = len(ious) // 2
    crossed = [scored(of_last, parts[:middle]), scored(of_first, parts[middle:])]
    scores = dict(
        zip(SCORES, (parts[:, 0], scored(combination, parts), np.concatenate(crossed)), strict=True)
    )
    known = np.isfinite(ious)
    return Ranking(ious[known], {name: values[known] for name, values in scores.items()})


def scored(combination: Floats, parts: Floats) -> Floats:
    """The score of parts (n,P) under a bias and weights (1+P,)."""
    return combination[0] + parts @ combination[1:]


def mean_gap(rankings: Sequence[Ranking], score: str, images: NDArray[np.intp] | None = None) -> float:
    """Gap closed, its mean over the draws; of these images only, if given."""
    chosen = slice(None) if images is None else images
    return float(np.mean([gap_closed(1 - one.ious[chosen], one.scores[score][chosen]) for one in rankings]))


def one_line(measured: dict[str, list[Ranking]]) -> str:
    """Gap closed by each score, clean / half degraded / half damaged unseen."""
    return "; ".join(
        f"{score} {' / '.join(f'{mean_gap(measured[condition], score):.2f}' for condition in CONDITIONS)}"
        for score in SCORES
    )


def report(
    data: str,
    model_id: str,
    views_share: float,
    draws: int,
    seeds: Sequence[str],
    found: dict[str, list[dict[str, list[Ranking]]]],
) -> None:
    """Print the table over the seeds so far and keep it."""
    rows = [
        figures(name, score, condition, runs, found[PRODUCT])
        for score in SCORES
        for name, runs in found.items()
        for condition in CONDITIONS
    ]
    click.echo("\n".join(columns(table(rows))))
    write_results(
        f"judge_ablation-{data}",
        {
            "data": data,
            "model_id": model_id,
            "images": len(found[PRODUCT][0]["clean"][0].ious),
            "views_share": views_share,
            "draws": draws,
            "seeds": [int(seed) for seed in seeds],
            "figures": rows,
        },
    )


def figures(
    name: str,
    score: str,
    condition: str,
    runs: Sequence[dict[str, list[Ranking]]],
    product: Sequence[dict[str, list[Ranking]]],
) -> dict[str, Any]:
    """Gap closed by one score of one variant under one condition, and by how much less than the product."""
    rankings, rivals = ([one for run in some for one in run[condition]] for some in (runs, product))
    n_images = len(rankings[0].ious)
    low, high = np.nanquantile(
        [
            mean_gap(rankings, score, images) - mean_gap(rivals, score, images)
            for images in np.random.default_rng(0).integers(n_images, size=(RESAMPLES, n_images))
        ],
        [0.025, 0.975],
    )
    return {
        "score": score,
        "variant": name,
        "condition": condition,
        "gap_closed": mean_gap(rankings, score),
        "per_seed": [mean_gap(run[condition], score) for run in runs],
        "minus_product": mean_gap(rankings, score) - mean_gap(rivals, score),
        "low": float(low),
        "high": float(high),
    }


def table(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line per score and variant, the conditions side by side."""
    yield "score", "variant", *(f"{name}, minus product (95%)" for name in CONDITIONS)
    for first in range(0, len(rows), len(CONDITIONS)):
        line = rows[first : first + len(CONDITIONS)]
        yield (
            line[0]["score"],
            line[0]["variant"],
            *map(cell, line),
        )


def cell(row: dict[str, Any]) -> str:
    """Gap closed, and the difference to the product with its interval."""
    interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
    return f"{row['gap_closed']:.2f}, {row['minus_product']:+.2f} ({interval})"


if __name__ == "__main__":
    main()
