"""What generators label in fields where there is nothing, of a group that they have not seen.

    OMP_NUM_THREADS=1 python benchmarks/empty_fields.py DATA --folder FOLDER [--views 5000] [--seeds 0,1]
        [--architecture unet]

Microscopy, grouped as by `unseen_groups.py --by-look`, whose generators in FOLDER are taken, or trained as
it does. Fields of the first images left out that have one: 48x48 pixels of background alone, mirrored until
they fill an image; and grey ones of noise. Prints the share of pixels that are labelled as objects, nan where
no image has a field, and writes it below results/.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from machine import write_results
from unseen_groups import Case, Labelled, kind_of_generator, load, stage_1

from segpipe.config import DEFAULT_ARCHITECTURE
from segpipe.datasets import Sample, open_dataset, read_sample
from segpipe.kinds import ARCHITECTURES
from segpipe.models.generators.protocol import Generator
from segpipe.models.masks import class_logits
from segpipe.models.preprocess import normalise, resize_image
from segpipe.tables import columns
from segpipe.training.holdout import split_parts
from segpipe.training.labelled_pixels import load_samples

FIELD, IMAGE, STEP = 48, 256, 24
MOST_FIELDS = 20
LEVELS, DEVIATIONS = (20, 60, 200), (1, 4)  # grey levels of 0 to 255


@click.command()
@click.argument("data")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="For generators.")
@click.option("--views", default=5000, show_default=True, help="Of each training.")
@click.option("--seeds", default="0,1", show_default=True)
@click.option("--architecture", default=DEFAULT_ARCHITECTURE, type=click.Choice(list(ARCHITECTURES)))
def main(data: str, folder: Path, views: int, seeds: str, architecture: str) -> None:
    """Measure each generator, print the table and keep it."""
    labelled = load(open_dataset(data), None, architecture)
    cases = [
        Case(labelled.dataset.name, group, views, seed, architecture)
        for group in sorted(set(labelled.groups))
        for seed in map(int, seeds.split(","))
    ]
    rows = [{"group": case.group, "seed": case.seed, **measured(case, labelled, folder)} for case in cases]
    body = [(row["group"], str(row["seed"]), f"{row['fields']:.3f}", f"{row['noise']:.3f}") for row in rows]
    means = [f"{np.mean([row[kind] for row in rows]):.3f}" for kind in ("fields", "noise")]
    click.echo("\n".join(columns([("group", "seed", "fields", "noise"), *body, ("average", "", *means)])))
    made = labelled.dataset.name.lower() + kind_of_generator(architecture, views)
    write_results(f"empty_fields-{made}", {"generators": rows})


def measured(case: Case, labelled: Labelled, folder: Path) -> dict[str, float]:
    """Shares of the pixels that are labelled as objects, 0 to 1."""
    samples, groups = labelled.others(case.group)
    with load_samples(labelled.dataset, samples, labelled.spec, 2**34) as pixels:
        generator = stage_1(case, labelled.spec, pixels, split_parts(len(samples), groups), folder).generator
    fields = (field for sample in labelled.of(case.group) for field in fields_of(labelled, sample))
    return {
        "fields": invented(generator, labelled, list(islice(fields, MOST_FIELDS))),
        "noise": invented(generator, labelled, noise()),
    }


def fields_of(labelled: Labelled, sample: Sample) -> list[np.ndarray]:
    """The first field of an image that shows background alone, as an image; none where there is none."""
    image, mask = read_sample(labelled.dataset, sample)
    for top in range(0, mask.shape[0] - FIELD + 1, STEP):
        for left in range(0, mask.shape[1] - FIELD + 1, STEP):
            if not mask[top : top + FIELD, left : left + FIELD].any():
                return [filled(image[top : top + FIELD, left : left + FIELD])]
    return []


def filled(field: np.ndarray) -> np.ndarray:
    """A field mirrored until it fills an image."""
    return np.pad(field, ((0, IMAGE - FIELD), (0, IMAGE - FIELD), (0, 0)), mode="symmetric")


def noise() -> list[np.ndarray]:
    """Grey images of one level and a little noise."""
    random = np.random.default_rng(0)
    grey = [
        random.normal(level, deviation, (IMAGE, IMAGE, 1)) for level in LEVELS for deviation in DEVIATIONS
    ]
    return [np.repeat(one.round().clip(0, 255).astype(np.uint8), 3, axis=2) for one in grey]


@torch.inference_mode()
def invented(generator: Generator, labelled: Labelled, images: Sequence[np.ndarray]) -> float:
    """The share of pixels that are not labelled as the first class, background."""
    if not images:
        return float("nan")
    spec = labelled.spec
    stacked = torch.from_numpy(np.stack([resize_image(image, spec.working_size) for image in images]))
    batch = normalise(stacked.permute(0, 3, 1, 2), spec.mean, spec.standard_deviation)
    return float((class_logits(generator(batch)).argmax(dim=1) > 0).float().mean())


if __name__ == "__main__":
    main()
