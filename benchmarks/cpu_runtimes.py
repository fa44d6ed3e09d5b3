"""Whether another runtime for the networks would label more on this processor than torch does.

    python benchmarks/cpu_runtimes.py DATA --model BUNDLE [--images 64] [--rounds 5]

Torch as segpipe runs it, torch.compile with frozen weights (inductor; needs a C++ compiler) and OpenVINO
(needs `pip install openvino`; left out without it) run in turn on one core, several rounds: the generator
alone, the judge alone, and the whole of `segpipe label` from local files. Prints medians of CPU milliseconds
an image, how many times as fast that is as torch in the same round, the seconds that compiling took, and how
near masks and scores are to float32's; and what no runtime could surpass, if both networks did nothing but
multiply, as fast as this core multiplies large matrices. Writes results/. The bundle must label images at one
size.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pyarrow.parquet as parquet
import torch
from machine import write_results
from network_variants import BATCH, changed, precision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.datasets import list_samples, open_dataset
from segpipe.images import decode_mask, decode_scaled
from segpipe.labeling.run import label_source
from segpipe.models import inference
from segpipe.models.bundle import Bundle
from segpipe.models.inference import generate, normalised
from segpipe.models.judge import Judge, Judgement, ShownMask, show
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.models.masks import class_logits
from segpipe.models.preprocess import shown_image
from segpipe.models.small_view import smaller_size

TORCH, INDUCTOR, OPENVINO = "torch, as segpipe does", "inductor, frozen weights", "OpenVINO"
MATRICES = "as fast as matrices are multiplied"
MATRIX = 2048
PARTS = ("generator", "judge", "label")


@dataclass(frozen=True)
class Runtime:
    """A labeler whose networks are ready, and the seconds until they were."""

    labeler: Labeler
    ready_after: float


@dataclass(frozen=True)
class Labels:
    """What `segpipe label` said of images: masks and scores by their image."""

    masks: dict[str, np.ndarray]
    scores: dict[str, float]


@click.command()
@click.argument("data")
@click.option("--model", required=True, help="A model bundle that fits images to one size.")
@click.option("--split", default="val", show_default=True)
@click.option(
    "--images", default=64, show_default=True, help=f"A multiple of {BATCH}; the split is repeated."
)
@click.option("--rounds", default=5, show_default=True)
def main(data: str, model: str, split: str, images: int, rounds: int) -> None:
    """Measure BUNDLE's networks on DATA's images."""
    if images % BATCH:
        raise click.UsageError(
            f"--images must be a multiple of {BATCH}: compiled networks take whole batches"
        )
    torch.set_num_threads(1)
    labeler = load_without_policy(model, "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # By default inductor loads what it finds under a name in /tmp that anyone can guess.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        _copy_images(data, split, images, folder / "images")
        figures = _measure(labeler, folder, rounds)
    name = open_dataset(data).name
    write_results(f"cpu_runtimes-{name}", {"data": name, "images": images, "rounds": rounds} | figures)


def _copy_images(data: str, split: str, images: int, folder: Path) -> None:
    folder.mkdir()
    for number, sample in enumerate(islice(cycle(list_samples(open_dataset(data), split)), images)):
        content = storage.read_bytes(sample.image_uri)
        (folder / f"{number:05d}{Path(sample.image_uri).suffix}").write_bytes(content)


def _measure(labeler: Labeler, folder: Path, rounds: int) -> dict[str, Any]:
    batch = _first_batch(labeler, folder / "images")
    runtimes = {name: _ready(labeler, make, batch) for name, make in _runtimes().items()}
    with precision(bfloat16=False, device="cpu"):
        exact = _label(labeler, folder, "float32")
    labels = {name: _label(runtime.labeler, folder, "warm") for name, runtime in runtimes.items()}
    spent, product = _timed(runtimes, batch, folder, rounds)
    found: dict[str, dict[str, Any]] = {
        name: {"seconds_to_compile": round(runtime.ready_after, 1)}
        | _speed(spent[name], spent[TORCH])
        | _nearness(labels[name], exact)
        for name, runtime in runtimes.items()
    }
    found[MATRICES] = _at_most(labeler.bundle, batch, product, spent[TORCH])
    _tell(found)
    return {
        "bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "runtimes": found,
    }


def _timed(
    runtimes: Mapping[str, Runtime], batch: Tensor, folder: Path, rounds: int
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """CPU milliseconds an image by runtime and part, one of each round; median CPU seconds of a product."""
    spent: dict[str, dict[str, list[float]]] = {name: {part: [] for part in PARTS} for name in runtimes}
    matrix, products = torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16), []
    for _ in range(rounds):
        products.append(_cpu_seconds(partial(torch.mm, matrix, matrix)))
        for name, runtime in runtimes.items():
            for part, (work, images) in _works(runtime.labeler, batch, folder).items():
                spent[name][part].append(_cpu_seconds(work) / images * 1000)
    return spent, median(products)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of the process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _first_batch(labeler: Labeler, folder: Path) -> Tensor:
    """(B,3,h,w) normalised, as the networks take it."""
    paths = sorted(folder.iterdir())[:BATCH]
    decoded = [decode_scaled(path.read_bytes(), 10**9, labeler.smallest_decode).pixels for path in paths]
    pixels = np.stack([labeler.prepare(image) for image in decoded])
    return normalised(labeler.bundle, torch.from_numpy(pixels))


def _runtimes() -> dict[str, Callable[[Labeler, Tensor], Labeler]]:
    """Those that this machine has."""
    found: dict[str, Callable[[Labeler, Tensor], Labeler]] = {TORCH: lambda labeler, _: labeler}
    if shutil.which("g++") or shutil.which("clang++"):
        found[INDUCTOR] = lambda labeler, _: changed(labeler, torch.compile)
    if importlib.util.find_spec("openvino"):
        found[OPENVINO] = _on_openvino
    return found


def _ready(labeler: Labeler, make: Callable[[Labeler, Tensor], Labeler], batch: Tensor) -> Runtime:
    """The labeler on a runtime, after a first batch, at which inductor compiles."""
    started = time.perf_counter()
    made = make(labeler, batch)
    with torch._inductor.config.patch(freezing=True):
        _judge(made.bundle, batch, _generate(made.bundle, batch))
    return Runtime(made, time.perf_counter() - started)


def _generate(bundle: Bundle, batch: Tensor) -> Tensor:
    return class_logits(generate(bundle, batch, "cpu"))


def _judge(bundle: Bundle, batch: Tensor, logits: Tensor) -> Judgement:
    with torch.inference_mode(), inference.autocast("cpu"):
        judgement: Judgement = bundle.discriminator.judge(
            shown_image(batch, (logits.shape[2], logits.shape[3])), show(logits)
        )
    return judgement


def _works(labeler: Labeler, batch: Tensor, folder: Path) -> Mapping[str, tuple[Callable[[], object], int]]:
    """What is timed, and of how many images."""
    logits = _generate(labeler.bundle, batch)
    return {
        "generator": (lambda: _generate(labeler.bundle, batch), len(batch)),
        "judge": (lambda: _judge(labeler.bundle, batch, logits), len(batch)),
        "label": (lambda: _run(labeler, folder, "timed"), len(list((folder / "images").iterdir()))),
    }


def _run(labeler: Labeler, folder: Path, name: str) -> Path:
    output = folder / name
    shutil.rmtree(output, ignore_errors=True)
    label_source(str(folder / "images"), str(output), labeler, LabelSettings())
    return output


def _label(labeler: Labeler, folder: Path, name: str) -> Labels:
    output = _run(labeler, folder, name)
    rows = parquet.read_table(output / "manifests").select(["image_uri", "discriminator_score"]).to_pylist()
    masks = (output / "masks").rglob("*.png")
    return Labels(
        {path.name: decode_mask(path.read_bytes()) for path in masks},
        {row["image_uri"]: row["discriminator_score"] for row in rows},
    )


def _speed(spent: dict[str, list[float]], own: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and of the ratios to torch within each round median, lowest and highest."""
    figures: dict[str, Any] = {}
    for part in PARTS:
        ratios = [torchs / mine for torchs, mine in zip(own[part], spent[part], strict=True)]
        figures[f"{part}_milliseconds"] = round(median(spent[part]), 2)
        figures[f"{part}_times_as_fast"] = [
            round(of(ratios), 3)  # type: ignore[operator]
            for of in (median, min, max)
        ]
    return figures


def _at_most(bundle: Bundle, batch: Tensor, product: float, own: dict[str, list[float]]) -> dict[str, float]:
    """What would be gained if the networks' products took no longer than those of matrices, and the rest of
    them no time."""
    logits = _generate(bundle, batch)
    works = {"generator": lambda: _generate(bundle, batch), "judge": lambda: _judge(bundle, batch, logits)}
    least = {
        part: _operations(work) * product / MATRIX**3 / 2 * 1000 / len(batch) for part, work in works.items()
    }
    today = {part: median(own[part]) for part in PARTS}
    whole = today["label"] - sum(today[part] - least[part] for part in works)
    figures = {f"{part}_milliseconds": round(least[part], 2) for part in works}
    return figures | {
        f"{part}_times_as_fast": round(today[part] / best, 3)
        for part, best in (least | {"label": whole}).items()
    }


def _operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _nearness(labels: Labels, exact: Labels) -> dict[str, float]:
    """To float32: the share of pixels labelled alike, and how far scores are off on average."""
    same = [np.mean(labels.masks[name] == mask) for name, mask in exact.masks.items()]
    off = [abs(labels.scores[uri] - score) for uri, score in exact.scores.items()]
    return {
        "pixels_as_float32": round(float(np.mean(same)), 5),
        "score_off_float32": round(float(np.mean(off)), 5),
    }


def _tell(found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, figures in found.items():
        click.echo(name)
        for figure, value in figures.items():
            click.echo(f"  {figure:28} {value}")


class _OnOpenVino(nn.Module):
    """A network of tensors alone, as OpenVINO compiled it for one shape."""

    def __init__(self, network: nn.Module, example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.compiled = _compiled_by_openvino(network, example)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        found = self.compiled([tensor.contiguous().numpy() for tensor in inputs], share_inputs=True)
        return [torch.from_numpy(found[index]) for index in range(len(found))]


class _OpenVinoGenerator(nn.Module):
    """What segpipe reads of a generator, with OpenVINO below: compiled for the first look and the second."""

    def __init__(self, generator: Any, example: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.judged_stride, self.output_stride = generator.judged_stride, generator.output_stride
        self.size_multiple = generator.size_multiple
        (images,) = example
        height, width = smaller_size((images.shape[2], images.shape[3]), self.size_multiple)
        looks = images, images[:, :, :height, :width]
        self.by_shape = {look.shape: _OnOpenVino(generator, (look,)) for look in looks}

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.by_shape[image.shape](image)[0]
        return found


class _JudgeOfTensors(nn.Module):
    """A judge that takes and gives tensors only; one-hot and softmax are made before it."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, image: Tensor, one_hot: Tensor, probabilities: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(self.judge(image, ShownMask(one_hot, probabilities))).values())


class _OpenVinoJudge(_OnOpenVino):
    """What segpipe reads of a judge, with OpenVINO below."""

    def __init__(self, judge: Judge, example: tuple[Tensor, ...]) -> None:
        super().__init__(_JudgeOfTensors(judge), example)
        self.combination = judge.combination

    def forward(self, image: Tensor, shown: ShownMask) -> Judgement:  # type: ignore[override]
        return Judgement(*super().forward(image, shown.one_hot, shown.probabilities))


def _on_openvino(labeler: Labeler, batch: Tensor) -> Labeler:
    logits = _generate(labeler.bundle, batch)
    shown = logits.softmax(dim=1).clone()
    image = batch[:, :, : logits.shape[2], : logits.shape[3]].clone()

    def change(network: nn.Module) -> nn.Module:
        if isinstance(network, Judge):
            return _OpenVinoJudge(network, (image, shown, shown))
        return _OpenVinoGenerator(network, (batch.clone(),))

    return changed(labeler, change)


def _logit(probabilities: Tensor, eps: float) -> Tensor:
    kept = probabilities.clamp(eps, 1 - eps)
    return kept.log() - (1 - kept).log()


def _vdot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum()


def _compiled_by_openvino(network: nn.Module, example: tuple[Tensor, ...]) -> Any:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # OpenVINO knows neither.
    with torch.no_grad(), patch.multiple(torch, logit=_logit, vdot=_vdot):
        traced = torch.jit.trace(network, example)
    # Not convert_model, which reports its use to a server.
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=example)
    model = frontend.convert(frontend.load(decoder))
    for model_input, tensor in zip(model.inputs, example, strict=True):
        model_input.get_node().set_partial_shape(openvino.PartialShape(list(tensor.shape)))
    model.validate_nodes_and_infer_types()
    on_one_core = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", on_one_core)


if __name__ == "__main__":
    main()
