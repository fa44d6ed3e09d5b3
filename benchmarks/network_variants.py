"""Which way of running the networks is the quickest on this machine: precision, layout, compilation, threads.

    python benchmarks/network_variants.py DATA --model BUNDLE [--split val] [--rounds 5]

Every variant labels the same batches, in turn, several rounds: generator and judge as segpipe runs them, and
with one thing changed. Prints medians in images per second, each as a ratio to segpipe's own way in the same
round, and the share of pixels that are labelled alike; writes results/. A GPU is waited for, once a round.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from threading import Semaphore
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
from machine import write_results
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.models import device as devices
from segpipe.models import inference, small_view
from segpipe.models.bundle import Bundle
from segpipe.models.labeler import JudgedMask, Labeler, load_without_policy

BATCH = 8
OWN = "as segpipe does"


@dataclass(frozen=True)
class Variant:
    """How the networks are run; one_by_one: a batch has all cores, else each core a batch of its own."""

    labeler: Labeler
    bfloat16: bool
    one_by_one: bool = False


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="A model bundle.")
@click.option("--split", default="val", show_default=True)
@click.option("--images", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(data: str, model: str, split: str, images: int, rounds: int) -> None:
    """Measure BUNDLE's networks on DATA's images."""
    labeler = load_without_policy(model, "auto")
    batches = _batches(data, split, images, labeler)
    variants = _variants(labeler)
    answers = {name: _run(variant, batches)[1] for name, variant in variants.items()}  # warms up, compiles
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            rates[name].append(_run(variant, batches)[0])
    figures = {name: _figures(name, rates, answers) for name in variants}
    for name, figure in figures.items():
        click.echo(
            f"{name:28} {figure['images_per_second']:8.1f} images/s, "
            f"{figure['ratio_to_own']:.2f} of {OWN}, pixels alike {figure['pixels_alike']:.4f}"
        )
    dataset = open_dataset(data).name
    facts = {"data": dataset, "images": len(batches) * BATCH, "batch": BATCH, "rounds": rounds}
    write_results(f"network_variants-{labeler.device}", facts | {"variants": figures})


def _batches(data: str, split: str, images: int, labeler: Labeler) -> list[list[np.ndarray]]:
    dataset = open_dataset(data)
    samples = list_samples(dataset, split)[:images]
    prepared = [labeler.prepare(read_sample(dataset, sample)[0]) for sample in samples]
    return [prepared[at : at + BATCH] for at in range(0, len(prepared) // BATCH * BATCH, BATCH)]


def _variants(labeler: Labeler) -> dict[str, Variant]:
    native = devices.has_bfloat16(labeler.device)
    own = Variant(labeler, native)
    found = {
        OWN: own,
        "bfloat16" if not native else "float32": replace(own, bfloat16=not native),
        "not channels_last": replace(own, labeler=changed(labeler, _channels_first)),
        "normalisation fused": replace(own, labeler=changed(labeler, _fused)),
        "torch.compile": replace(own, labeler=changed(labeler, torch.compile)),
        "fused and compiled": replace(
            own, labeler=changed(labeler, lambda network: torch.compile(_fused(network)))
        ),
    }
    if labeler.device == "cpu":
        found["a batch on all cores"] = replace(own, one_by_one=True)
    else:
        found["CUDA graphs"] = replace(
            own,
            labeler=changed(labeler, lambda network: torch.compile(network, mode="reduce-overhead")),
        )
    return found


def changed(labeler: Labeler, change: Callable[[Any], Any]) -> Labeler:
    """The labeler with both networks as `change` makes them; its own stay as they are."""
    bundle = copy.deepcopy(labeler.bundle)
    judge = change(bundle.discriminator.judge)
    return replace(labeler, bundle=Bundle(bundle.card, change(bundle.generator), _Judging(judge)))


class _Judging(nn.Module):
    """A discriminator of which the judge alone is there."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge


def _channels_first(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.contiguous_format)


def _fused(network: nn.Module) -> nn.Module:
    """Batch normalisation folded into the convolution before it."""
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for place in range(len(module) - 1):
            if isinstance(module[place], nn.Conv2d) and isinstance(module[place + 1], nn.BatchNorm2d):
                module[place] = fuse_conv_bn_eval(module[place], module[place + 1])
                module[place + 1] = nn.Identity()
    return network


def _run(variant: Variant, batches: list[list[np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    """Images per second, and the masks."""
    labeler = variant.labeler
    threads = ThreadPoolExecutor(1) if variant.one_by_one else labeler.compute_threads()
    device = Semaphore(labeler.judged_at_once)

    def judge(batch: list[np.ndarray]) -> list[JudgedMask]:
        with device:
            return labeler.judge(batch)

    with precision(variant.bfloat16, labeler.device), threads as pool:
        list(pool.map(judge, batches[:1]))
        _wait(labeler.device)
        started = time.perf_counter()
        judged = list(pool.map(judge, batches))
        _wait(labeler.device)
        seconds = time.perf_counter() - started
    masks = [mask.logits.argmax(dim=0).cpu().numpy() for batch in judged for mask in batch]
    return len(masks) / seconds, masks


@contextmanager
def precision(bfloat16: bool, device: str) -> Iterator[None]:
    """The networks' precision in the meantime: bfloat16, or float32."""

    def chosen(_: str) -> AbstractContextManager[object]:
        return torch.autocast(device, dtype=torch.bfloat16) if bfloat16 else nullcontext()

    with patch.object(inference, "autocast", chosen), patch.object(small_view, "autocast", chosen):
        yield


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _figures(
    name: str, rates: dict[str, list[float]], answers: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    ratios = [rate / own for rate, own in zip(rates[name], rates[OWN], strict=True)]
    same = [np.mean(mine == its) for mine, its in zip(answers[OWN], answers[name], strict=True)]
    return {
        "images_per_second": round(median(rates[name]), 2),
        "ratio_to_own": round(median(ratios), 3),
        "lowest_and_highest_ratio": [round(min(ratios), 3), round(max(ratios), 3)],
        "pixels_alike": round(float(np.mean(same)), 5),
    }


if __name__ == "__main__":
    main()
