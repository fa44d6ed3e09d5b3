"""How long the judge and its verdict take, over the time of the generator whose masks they judge.

    OMP_NUM_THREADS=1 python benchmarks/judge_cost.py [--batches 15]

The default networks with random weights, which take as long as trained ones, on random images; a line per
size of image and number of classes. Generator, with the mask that it makes whether it is judged or not, and
judge take turns, batch by batch, in float32: the median of the ratios counts. Prints the table and writes it
below results/.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median

import click
import torch
from machine import write_results

from segpipe.confidence.score import BELIEF
from segpipe.config import DEFAULT_ARCHITECTURE
from segpipe.models.bundle import Bundle, ModelSpec, build_networks
from segpipe.models.judge import shown_as
from segpipe.models.masks import class_logits
from segpipe.models.preprocess import shown_image
from segpipe.models.small_view import seen_again
from segpipe.models.verdict import give_verdict
from segpipe.tables import columns
from segpipe.training.whole_images import networks_in_training

IMAGES = 4
LIMIT = 0.6


@dataclass(frozen=True)
class Kind:
    """Images of one size in pixels, and how many classes there are."""

    height: int
    width: int
    classes: int


KINDS = (Kind(256, 352, 11), Kind(256, 256, 2), Kind(512, 512, 19))


def judge_cost(bundle: Bundle, images: torch.Tensor, batches: int) -> float:
    """The median ratio of as many batches; images (n, 3, height, width), prepared."""
    _once(bundle, images)  # the first takes longer
    return median(_once(bundle, images) for _ in range(batches))


@torch.inference_mode()
def _once(bundle: Bundle, images: torch.Tensor) -> float:
    judge = bundle.discriminator.judge
    started = time.perf_counter()
    logits = class_logits(bundle.generator(images)).float()
    labels = logits.argmax(dim=1)
    generated = time.perf_counter()
    shown = shown_as(labels, logits)
    small = shown_image(images, (logits.shape[2], logits.shape[3]))
    again = seen_again(bundle.spec, bundle.generator, images, labels, "cpu")
    give_verdict(judge, judge(small, shown), shown, again, bundle.spec)
    return (time.perf_counter() - generated) / (generated - started)


def bundle_of(kind: Kind) -> Bundle:
    """The default networks for images of this kind, their weights as they begin."""
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture=DEFAULT_ARCHITECTURE,
        classes=tuple(f"class {number}" for number in range(kind.classes)),
        ignore_index=255,
        working_size=(kind.height, kind.width),
        mean=(0.5, 0.5, 0.5),
        standard_deviation=(0.25, 0.25, 0.25),
        shown_masks="hard",
        second_look="half",
        belief_kind=BELIEF,
    )
    generator, discriminator = build_networks(spec)
    networks = [
        network.to(memory_format=torch.channels_last).eval() for network in (generator, discriminator.judge)
    ]
    return networks_in_training(spec, *networks)


@click.command()
@click.option("--batches", default=15, show_default=True, help="Whose median counts.")
def main(batches: int) -> None:
    """Measure every kind, print the table and keep it."""
    costs = [judge_cost(bundle_of(kind), random_images(kind), batches) for kind in KINDS]
    body = [
        (f"{kind.height}x{kind.width}", str(kind.classes), f"{cost:.2f}", "yes" if cost <= LIMIT else "NO")
        for kind, cost in zip(KINDS, costs, strict=True)
    ]
    click.echo("\n".join(columns([("image", "classes", "judge / generator", f"<= {LIMIT}"), *body])))
    figures = [asdict(kind) | {"ratio": cost} for kind, cost in zip(KINDS, costs, strict=True)]
    write_results("judge_cost", {"batches": batches, "limit": LIMIT, "kinds": figures})


def random_images(kind: Kind) -> torch.Tensor:
    """A batch as the networks take it."""
    images = torch.randn(IMAGES, 3, kind.height, kind.width, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
