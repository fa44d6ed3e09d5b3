"""A network trained with transformers' own loop, adopted: are its masks its own, does the judge know them?

    python benchmarks/adopted.py DATA --folder FOLDER [--network segformer|upernet] [--minutes 5]

Teaches a small network, from random weights, three fifths of split train (in whole runs of keys) for so many
minutes, adopts it with a judge that learns on the other two, and measures on split val: the share of pixels
where segpipe's mask is transformers' own, for images at the working size of a second model, which is adopted
at --scale fit; and each score's gap closed, clean and with a random half of the images degraded. Prints the
table; writes it below results/. What lies in FOLDER already is not made again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from damaged_half import damaged_half
from machine import write_results
from torch import nn
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from segpipe import storage
from segpipe.confidence.selective import gap_closed
from segpipe.config import AdoptSettings
from segpipe.datasets import Dataset, list_samples, open_dataset, read_sample, write_dataset, write_sample
from segpipe.degradations import degrade
from segpipe.evaluation.measure import measure
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.models.preprocess import resize_image, resize_mask
from segpipe.tables import columns
from segpipe.training.adopt import adopt
from segpipe.working_size import choose_working_size

STRETCHES, TAUGHT_SHARE = 5, 0.6
BATCH, RATE = 4, 1e-3
NETWORKS = ("segformer", "upernet")
SCORES = ("discriminator", "max_softmax", "entropy", "soft_dice", "flip_tta")


@click.command()
@click.argument("data")
@click.option("--folder", required=True, help="Where the divided data, the network and the model go.")
@click.option("--network", type=click.Choice(NETWORKS), default=NETWORKS[0], show_default=True)
@click.option("--minutes", default=5.0, show_default=True, help="Of training the network.")
@click.option("--epochs", type=int, help="Of the judge; unset: adopt's default.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Draws of the degraded half.")
def main(data: str, folder: str, network: str, minutes: float, epochs: int | None, seeds: str) -> None:
    """Teach, adopt and measure."""
    torch.manual_seed(0)
    divided = divide(open_dataset(data), Path(folder) / "data")
    trained, model = Path(folder) / network, str(Path(folder) / f"{network}-model")
    shapes = [read_sample(divided, sample)[1].shape for sample in list_samples(divided, "judging")]
    size = choose_working_size(shapes)
    if not trained.exists():
        teach(network, divided, size, minutes, trained)
    place = {"path": str(trained), "data": divided.root, "split": "judging"}
    labeler = adopted(AdoptSettings(**place, model=model, epochs=epochs))
    fitted = adopted(AdoptSettings(**place, model=f"{model}-fitted", scale="fit", epochs=1))
    validation = open_dataset(data)
    result = {
        "data": validation.name,
        "network": network,
        "minutes": minutes,
        "mean_iou_judging_split": labeler.bundle.card.metrics["mean_iou"],
        "pixel_agreement": agreement(fitted, trained, validation),
        "gap_closed": {
            "clean": closed(labeler, validation, None),
            "half_degraded": _means([closed(labeler, validation, int(seed)) for seed in seeds.split(",")]),
        },
    }
    report(result)


def adopted(settings: AdoptSettings) -> Labeler:
    """The model that lies there, or is made now."""
    if not storage.exists(storage.join(settings.model, "model.json")):
        adopt(settings)
    return load_without_policy(settings.model, "cpu")


def divide(dataset: Dataset, folder: Path) -> Dataset:
    """Splits network and judging of split train."""
    if storage.exists(storage.join(str(folder), "judging-done")):
        return open_dataset(str(folder))
    divided = write_dataset(str(folder), dataset.name, list(dataset.classes), dataset.ignore_index)
    samples = list_samples(dataset, "train")
    for row, sample in enumerate(samples):
        place = row * STRETCHES / len(samples) % 1
        split = "network" if place < TAUGHT_SHARE else "judging"
        write_sample(divided, split, sample.key, *read_sample(dataset, sample))
    storage.put(storage.join(str(folder), "judging-done"), b"")
    return divided


def teach(kind: str, dataset: Dataset, size: tuple[int, int], minutes: float, folder: Path) -> None:
    """Save a network that transformers' own loss has taught for so long, and its processor."""
    processor = SegformerImageProcessorPil(do_resize=False, do_reduce_labels=False)
    pairs = [read_sample(dataset, sample) for sample in list_samples(dataset, "network")]
    images = np.stack([resize_image(image, size) for image, _ in pairs])
    masks = torch.from_numpy(np.stack([resize_mask(mask, size) for _, mask in pairs])).long()
    masks = masks.where(masks != dataset.ignore_index, 255)
    network = untaught(kind, dataset.classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    network.train()
    started, steps = time.monotonic(), 0
    while (share := (time.monotonic() - started) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, steps / 50 + 0.02) * (1 - share)
        rows = np.random.default_rng(steps).integers(len(images), size=BATCH)
        flip = slice(None, None, -1 if steps % 2 else 1)
        given = processor(list(images[rows][:, :, flip]), return_tensors="pt")["pixel_values"]
        labels = masks[rows].flip(-1) if steps % 2 else masks[rows]
        loss = network(pixel_values=given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    click.echo(f"{steps} steps, loss {float(loss.detach()):.3f}")
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def untaught(kind: str, classes: Sequence[str]) -> nn.Module:
    """A small network of random weights."""
    names = dict(enumerate(classes))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    if kind == "segformer":
        return transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(decoder_hidden_size=128, semantic_loss_ignore_index=255, **labels)
        )
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 3, 1],
        hidden_sizes=[32, 64, 128, 192],
        out_features=[f"stage{stage}" for stage in (1, 2, 3, 4)],
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=64,
            auxiliary_in_channels=128,
            auxiliary_channels=32,
            loss_ignore_index=255,
            **labels,
        )
    )


def agreement(labeler: Labeler, folder: Path, dataset: Dataset) -> float:
    """Share of the pixels where both masks are the same, of images at the working size."""
    kind = transformers.AutoModelForSemanticSegmentation
    network = kind.from_pretrained(folder, local_files_only=True).eval()
    processor = SegformerImageProcessorPil.from_pretrained(folder)
    size, equal = labeler.bundle.spec.working_size, []
    for sample in list_samples(dataset, "val"):
        image = resize_image(read_sample(dataset, sample)[0], size)
        with torch.no_grad():
            outputs = network(**processor(image, return_tensors="pt"))
        (theirs,) = processor.post_process_semantic_segmentation(outputs, [size])
        (ours,) = labeler.label([image])
        equal.append(float((theirs.numpy() == ours.mask).mean()))
    return statistics.mean(equal)


def closed(labeler: Labeler, dataset: Dataset, seed: int | None) -> dict[str, float]:
    """Gap closed by each score on split val; a seed degrades a random half of its images."""
    samples, damage = list_samples(dataset, "val"), None if seed is None else degrade
    batches = damaged_half(dataset, samples, labeler.batch_size, damage, seed or 0)
    found = measure(labeler, [sample.key for sample in samples], batches, dataset.ignore_index)
    return {name: gap_closed(1 - found.image_ious, found.scores[name]) for name in SCORES}


def _means(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(run[name] for run in runs) for name in SCORES}


def report(result: dict[str, Any]) -> None:
    """Print the figures and keep them."""
    click.echo(f"pixel agreement {result['pixel_agreement']:.5f}")
    gaps = result["gap_closed"]
    rows = [(name, *(f"{gaps[condition][name]:.3f}" for condition in gaps)) for name in SCORES]
    click.echo("\n".join(columns([("gap closed", *gaps), *rows])))
    write_results(f"adopted-{result['data'].lower()}-{result['network']}", result)


if __name__ == "__main__":
    main()
