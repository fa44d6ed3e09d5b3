"""Every score on groups that no network has seen: one group (sequence, stain) is left out at a time.

    OMP_NUM_THREADS=1 python benchmarks/unseen_groups.py DATA --folder FOLDER (--group-by REGEX | --by-look)
        [--views 24000] [--seeds 0,1] [--only GROUP,GROUP] [--networks 5] [--adopted] [--architecture unet]

Takes all labelled images of DATA's splits train and val, and for each group and seed trains both stages on
the other groups with the defaults of `segpipe train`, but that the last averaged weights are taken: there is
no validation. Measures on the group left out mean IoU and every score's gap closed: on clean images, with a
random half degraded as in training, and with a random half damaged in ways that no training shows. --by-look
groups microscopy: bright (stained or grey) or dark images, dark ones by size. Trained generators are kept in
FOLDER by the digest of what made them, figures by that of all of segpipe and this file: an interrupted run
goes on. How far the score is ahead of each single network has an interval, by which images happen to be in
the group (paired bootstrap); what another training would give is not in it.
--networks adds the rival of so many networks, the generator's own seed and those that follow it: the mean
pairwise Dice of their masks, which costs a training and a pass each. --adopted has the generators judged as
if they came from elsewhere: no earlier ones and no game, and all images count as unseen by them.
Prints the table; writes it and a picture below results/, of some groups or other seeds under their own name.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from damaged_half import damaged_half
from ensemble import pairwise_dice
from machine import RESULTS, write_results
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from unseen_damage import damage_unseen

import segpipe
from segpipe.confidence.selective import gap_closed, paired_bootstrap, selective_metrics
from segpipe.config import DEFAULT_ARCHITECTURE, TrainSettings
from segpipe.datasets import Dataset, Sample, list_samples, open_dataset, read_sample
from segpipe.degradations import degrade
from segpipe.evaluation.measure import Pair, measure, summarise
from segpipe.groups import group_names
from segpipe.kinds import ARCHITECTURES
from segpipe.models.bundle import ModelSpec, build_networks
from segpipe.models.generators.protocol import Generator
from segpipe.models.inference import prepare
from segpipe.models.judge import Discriminator
from segpipe.models.labeler import Labeler
from segpipe.tables import columns
from segpipe.training.gan_loop import Progress, Training
from segpipe.training.holdout import Parts, split_parts, unseen_parts
from segpipe.training.judge_loop import VIEWS_SHARE, Scoring, Teachers
from segpipe.training.labelled_pixels import LabelledPixels, load_samples
from segpipe.training.recipe import VIEWS
from segpipe.training.scale import Scale
from segpipe.training.specs import spec_of
from segpipe.training.whole_images import networks_in_training
from segpipe.working_size import choose_working_size

SPLITS = ("train", "val")
ONE_PASS = ("max_softmax", "entropy", "soft_dice", "soft_iou")
RIVALS = (*ONE_PASS, "flip_tta")
RESAMPLES = 1000
SEEDS = "0,1"
SHOWN = ("discriminator", *RIVALS, "expected_iou")
NETWORKS = "several networks"
CONDITIONS = {"clean": None, "half degraded": degrade, "half damaged unseen": damage_unseen}
# Of these modules a trained generator is made; what else changes leaves it as it is.
STAGE_1 = ("training/gan_*.py", "training/gan_losses/*.py", "training/pixel_losses.py", "training/views.py")
STAGE_1 += (
    "training/augmentation.py",
    "training/rare_classes.py",
    "training/recipe.py",
    "models/discriminators/*.py",
)
STAGE_1 += (
    "models/generators/unet*.py",
    "models/preprocess.py",
    "training/row_sampling.py",
    "training/holdout.py",
)
VALIDATED = 8  # images, for the sake of the history alone
BRIGHT, COLOURFUL = 90, 12  # mean grey level, and mean difference of the channels
FLAT = Scale(None, None, None, "", ())


@dataclass(frozen=True)
class Case:
    """One training: which group of which data set is left out, how long, with which seed, of what."""

    data: str
    group: str
    views: int
    seed: int
    architecture: str


@dataclass(frozen=True)
class Labelled:
    """All labelled images of a data set, each of a group, and the spec of a model of them."""

    dataset: Dataset
    samples: list[Sample]
    groups: list[str]
    spec: ModelSpec

    def of(self, group: str) -> list[Sample]:
        """The images of a group."""
        return [one for one, name in zip(self.samples, self.groups, strict=True) if name == group]

    def others(self, group: str) -> tuple[list[Sample], list[str]]:
        """The images of all other groups, and the group of each."""
        pairs = [pair for pair in zip(self.samples, self.groups, strict=True) if pair[1] != group]
        return [one for one, _ in pairs], [name for _, name in pairs]


@dataclass(frozen=True)
class Trained:
    """What stage 1 leaves to stage 2; adversary: None of a generator from elsewhere."""

    generator: Generator
    earlier: list[Generator]
    adversary: dict[str, torch.Tensor] | None


@click.command()
@click.argument("data")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="For generators and figures.")
@click.option("--group-by", help="Regular expression whose match in a key names the group.")
@click.option("--by-look", is_flag=True, help="Group by brightness, colour and size.")
@click.option("--views", default=VIEWS, show_default=True, help="Of each training's first stage.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option("--networks", default=1, show_default=True, help="Whose agreement is a rival.")
@click.option("--adopted", is_flag=True, help="Judge the generators as if from elsewhere.")
@click.option("--architecture", default=DEFAULT_ARCHITECTURE, type=click.Choice(list(ARCHITECTURES)))
@click.option("--only", help="Leave out these groups alone, comma-separated.")
def main(
    data: str,
    folder: Path,
    group_by: str | None,
    by_look: bool,
    views: int,
    seeds: str,
    networks: int,
    adopted: bool,
    architecture: str,
    only: str | None,
) -> None:
    """Leave out, train and measure."""
    if by_look == (group_by is not None):
        raise click.UsageError("give --group-by REGEX or --by-look")
    labelled = load(open_dataset(data), group_by, architecture)
    groups = only.split(",") if only else sorted(set(labelled.groups))
    rows = []
    for group in groups:
        for seed in map(int, seeds.split(",")):
            case = Case(labelled.dataset.name, group, views, seed, architecture)
            rows.append(asdict(case) | done_once(case, labelled, folder, networks, adopted))
            click.echo(f"{group}, seed {seed}: mean IoU {rows[-1]['clean']['mean_iou']:.3f}")
    made = labelled.dataset.name + kind_of_generator(architecture, views)
    write(made + kind_of(networks, adopted) + part_of(only, seeds), rows)


def load(dataset: Dataset, group_by: str | None, architecture: str) -> Labelled:
    """All images of splits train and val."""
    samples = [sample for split in SPLITS for sample in list_samples(dataset, split)]
    if group_by is not None:
        groups = group_names([sample.key for sample in samples], group_by)
    else:
        groups = [look(read_sample(dataset, sample)[0]) for sample in samples]
    shapes = [read_sample(dataset, sample)[1].shape for sample in samples[:: max(1, len(samples) // 100)]]
    size = choose_working_size([(height, width) for height, width in shapes])
    spec = spec_of(dataset, architecture, "hard", size, FLAT, None, "half")
    return Labelled(dataset, samples, groups, spec)


def look(image: np.ndarray) -> str:
    """Which kind of microscopy an image HxWx3 is."""
    colour = float((image.max(axis=2).astype(int) - image.min(axis=2)).mean())
    if image.mean() >= BRIGHT or colour >= COLOURFUL:
        return "bright"
    longest = max(image.shape[:2])
    return "dark-small" if longest <= 256 else "dark-medium" if longest <= 360 else "dark-large"


def done_once(case: Case, labelled: Labelled, folder: Path, networks: int, adopted: bool) -> dict[str, Any]:
    """The figures of a case that lie in the folder, or that it gives now."""
    made = hashlib.sha256(digest(case, ("**/*.py",)).encode() + Path(__file__).read_bytes()).hexdigest()[:24]
    path = folder / "figures" / f"{made}{kind_of(networks, adopted)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures(case, labelled, folder, networks, adopted)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def kind_of_generator(architecture: str, views: int) -> str:
    """What results of other generators than the default, or not of full length, have in their name."""
    made = "" if architecture == DEFAULT_ARCHITECTURE else f"-{architecture}"
    return made + ("" if views == VIEWS else f"-{views}-views")


def kind_of(networks: int, adopted: bool) -> str:
    """What figures of this kind have in their name."""
    return (f"-{networks}-networks" if networks > 1 else "") + ("-adopted" if adopted else "")


def part_of(only: str | None, seeds: str) -> str:
    """What results of some groups alone, or of other seeds, have in their name."""
    parts = [f"-without-{only}" if only else "", f"-seeds-{seeds}" if seeds != SEEDS else ""]
    return re.sub(r"[^\w.-]", "+", "".join(parts))


def digest(case: Case, patterns: Sequence[str]) -> str:
    """Of a case, and of the modules of segpipe that the patterns name."""
    root = Path(segpipe.__file__).parent
    files = sorted({file for pattern in patterns for file in root.glob(pattern)})
    whole = hashlib.sha256(json.dumps(asdict(case)).encode())
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:24]


def figures(case: Case, labelled: Labelled, folder: Path, networks: int, adopted: bool) -> dict[str, Any]:
    """Quality and gaps closed of one training, and the core minutes that it took."""
    samples, groups = labelled.others(case.group)
    parts = split_parts(len(samples), groups)
    with load_samples(labelled.dataset, samples, labelled.spec, 2**34) as pixels:
        trained, *more = [
            stage_1(replace(case, seed=case.seed + number), labelled.spec, pixels, parts, folder)
            for number in range(networks)
        ]
        if adopted:
            trained, parts = Trained(trained.generator, [], None), unseen_parts(len(samples), groups)
        started = time.process_time()
        discriminator = stage_2(case, labelled.spec, pixels, parts, trained)
    minutes = (time.process_time() - started) / 60
    bundle = networks_in_training(labelled.spec, trained.generator, discriminator.judge)
    bundle.discriminator.adversary = discriminator.adversary
    labeler = Labeler(bundle, None, "cpu")
    others = [one.generator for one in more]
    found = {name: measured(labeler, others, labelled, case, name) for name in CONDITIONS}
    combination = discriminator.judge.combination.tolist()
    return {**found, "judge_core_minutes": minutes, "score_combination": combination}


def stage_1(case: Case, spec: ModelSpec, pixels: LabelledPixels, parts: Parts, folder: Path) -> Trained:
    """The generator that was made of the same before, or a new one."""
    path = folder / "generators" / f"{digest(case, STAGE_1)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(play(case, spec, pixels, parts), path)
    state = load_file(path)
    networks = [_generator(spec, _under("generator", state))]
    networks += [_generator(spec, _under(f"earlier_{number}", state)) for number in (0, 1)]
    return Trained(networks[0], networks[1:], _under("adversary", state))


def play(case: Case, spec: ModelSpec, pixels: LabelledPixels, parts: Parts) -> dict[str, torch.Tensor]:
    """The game's last averaged generator, two earlier ones, and the adversary."""
    torch.manual_seed(case.seed)
    generator, discriminator = build_networks(spec)
    adversary = discriminator.adversary
    assert adversary is not None
    epochs = max(2, round(case.views / len(parts.taught)))
    training = Training.begin(
        TrainSettings(data="-", model="-", epochs=epochs, seed=case.seed, architecture=case.architecture),
        spec,
        (_channels_last(generator), _channels_last(adversary)),
        pixels,
        parts.taught,
        _first(pixels, VALIDATED),
        "cpu",
    )
    progress = training.fresh_progress()
    started = time.process_time()
    training.run(progress, _keep_nothing)
    click.echo(f"{case.group}, seed {case.seed}: {(time.process_time() - started) / 60:.1f} core minutes")
    earlier = {f"earlier_{number}": state for number, state in enumerate(progress.earlier_generators)}
    kept = {
        "generator": training.averaged.module.state_dict(),
        "adversary": adversary.state_dict(),
        **earlier,
    }
    return {
        f"{name}/{key}": value.detach().clone().contiguous()
        for name, state in kept.items()
        for key, value in state.items()
    }


def stage_2(
    case: Case, spec: ModelSpec, pixels: LabelledPixels, parts: Parts, trained: Trained
) -> Discriminator:
    """A judge that has learnt from all groups but one."""
    torch.manual_seed(case.seed)
    _, discriminator = build_networks(spec)
    if trained.adversary is None:
        discriminator.adversary = None
    else:
        assert discriminator.adversary is not None
        discriminator.adversary.load_state_dict(trained.adversary)
    judge = _channels_last(discriminator.judge)
    teachers = Teachers(trained.generator, trained.earlier)
    views = case.views * VIEWS_SHARE
    scoring = Scoring.begin(case.seed, spec, teachers, judge, pixels, parts, views, "cpu")
    scoring.run(lambda: None)
    return discriminator


def measured(
    labeler: Labeler, others: Sequence[Generator], labelled: Labelled, case: Case, condition: str
) -> dict[str, Any]:
    """The model on the group left out, and other generators beside its own."""
    samples = labelled.of(case.group)

    def batches() -> Iterator[list[Pair]]:
        return damaged_half(labelled.dataset, samples, labeler.batch_size, CONDITIONS[condition], case.seed)

    found = measure(labeler, [sample.key for sample in samples], batches(), labelled.dataset.ignore_index)
    scores = found.scores | ({NETWORKS: agreement(labeler, others, batches())} if others else {})
    return {
        "n": len(samples),
        "mean_iou": summarise(found).mean_iou,
        **_rankings(found.image_ious, scores),
    }


def agreement(labeler: Labeler, others: Sequence[Generator], batches: Iterator[list[Pair]]) -> np.ndarray:
    """How much the masks of the labeler's generator and the others agree, one number per image."""
    generators = [labeler.bundle.generator, *others]
    prepared = (prepare(labeler.bundle, [image for image, _ in pairs], labeler.device) for pairs in batches)
    return torch.cat([pairwise_dice(generators, batch) for batch in prepared]).numpy()


def _rankings(image_ious: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    known = ~np.isnan(image_ious)
    losses = 1 - image_ious[known]
    ranked = {name: values[known] for name, values in scores.items()}
    return {
        "mean_image_iou": float(1 - losses.mean()),
        "scores": {name: asdict(selective_metrics(losses, values)) for name, values in ranked.items()},
        "ahead": {
            rival: asdict(
                paired_bootstrap(
                    losses, ranked["discriminator"], ranked[rival], gap_closed, resamples=RESAMPLES
                )
            )
            for rival in RIVALS
        },
    }


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the gaps closed by group and on average; keep all figures, and a picture of these."""
    for condition in CONDITIONS:
        click.echo(f"\n{name}, {condition}: gap closed (mean over seeds)")
        click.echo("\n".join(columns([("group", "mean IoU", *shown(rows)), *_table(rows, condition)])))
        click.echo(
            "\n".join(columns([("group", "best of one pass", "ahead of it by"), *_ahead(rows, condition)]))
        )
    RESULTS.mkdir(exist_ok=True)
    picture(rows).savefig(RESULTS / f"unseen_groups-{name.lower()}.png", dpi=120, bbox_inches="tight")
    write_results(f"unseen_groups-{name.lower()}", {"cases": list(rows)})


def shown(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The scores that every case has."""
    return SHOWN + (NETWORKS,) * all(NETWORKS in row["clean"]["scores"] for row in rows)


def _table(rows: Sequence[dict[str, Any]], condition: str) -> Iterator[tuple[str, ...]]:
    groups, scores = sorted({row["group"] for row in rows}), shown(rows)
    found = {
        group: _means([row[condition] for row in rows if row["group"] == group], scores) for group in groups
    }
    found["average"] = {
        key: float(np.mean([figures[key] for figures in found.values()])) for key in ("mean_iou", *scores)
    }
    for group, figures in found.items():
        yield group, f"{figures['mean_iou']:.3f}", *(f"{figures[score]:.2f}" for score in scores)


def _ahead(rows: Sequence[dict[str, Any]], condition: str) -> Iterator[tuple[str, str, str]]:
    """Each group's best rival of one pass on average over the seeds, and how far the score is ahead of it.

    Of several seeds the mean, the lowest low end of their 95% intervals and the highest high one.
    """
    for group in sorted({row["group"] for row in rows}):
        runs = [row[condition]["ahead"] for row in rows if row["group"] == group]
        difference = {rival: float(np.mean([run[rival]["difference"] for run in runs])) for rival in ONE_PASS}
        best = min(difference, key=difference.__getitem__)
        low, high = min(run[best]["low"] for run in runs), max(run[best]["high"] for run in runs)
        yield group, best, f"{difference[best]:+.2f} ({low:+.2f} to {high:+.2f})"


def _means(runs: Sequence[dict[str, Any]], scores: Sequence[str]) -> dict[str, float]:
    gaps = {score: float(np.mean([run["scores"][score]["gap_closed"] for run in runs])) for score in scores}
    return {"mean_iou": float(np.mean([run["mean_iou"] for run in runs])), **gaps}


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Bars of the gap closed, a panel per condition, a cluster per group."""
    figure = Figure(figsize=(9, 2.6 * len(CONDITIONS)))
    axes = figure.subplots(len(CONDITIONS), sharex=True)
    for panel, condition in zip(axes, CONDITIONS, strict=True):
        table = list(_table(rows, condition))
        places = np.arange(len(table))
        for number, score in enumerate(shown(rows)):
            heights = [max(-1.0, float(row[2 + number])) for row in table]
            panel.bar(places + 0.11 * number, heights, 0.1, label=score.replace("_", " "))
        panel.set_xticks(places + 0.33, [row[0] for row in table])
        panel.set_ylabel(f"gap closed,\n{condition}")
        panel.axhline(0, color="black", linewidth=0.6)
    axes[0].legend(ncols=4, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _first(pixels: LabelledPixels, count: int) -> LabelledPixels:
    """The first few images."""
    return replace(pixels, sizes=pixels.sizes[:count], weights=pixels.weights[:count])


def _generator(spec: ModelSpec, state: dict[str, torch.Tensor]) -> Generator:
    generator, _ = build_networks(spec)
    generator.load_state_dict(state)
    return _channels_last(generator).eval().requires_grad_(False)  # type: ignore[no-any-return]


def _under(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}


def _channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)


def _keep_nothing(_: Progress) -> None:
    """What is not done to the end is done anew."""


if __name__ == "__main__":
    main()
