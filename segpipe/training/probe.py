"""What a foreign network does with images, found by giving it some."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segpipe.config import working_size
from segpipe.errors import ModelError
from segpipe.inspection.scale import Grid
from segpipe.models.bundle import SecondLook
from segpipe.models.generators.foreign import (
    ForeignGenerator,
    ForeignSpec,
    Found,
    Values,
    judged_stride,
)
from segpipe.models.small_view import smaller_size
from segpipe.training.scale import asked_tile, margin_of
from segpipe.working_size import SIZE_MULTIPLE, choose_working_size

LARGEST_STRIDE = 64
# How far an image's outputs may depend on the other images of its batch, over the largest output.
ROUNDING = 1e-2


@dataclass(frozen=True)
class Probed:
    """channels: of the outputs. output_stride: H/h and W/w. one_size: another size of image was refused."""

    channels: int
    output_stride: int
    one_size: bool


def fitting_size(found: Found, image_size: str | None, shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The working size (height, width) of a network: its own, the one asked for, or one for such images.

    Raises ModelError when it takes another than the one asked for, or one that cannot be worked with.
    """
    asked = None if image_size is None else working_size(image_size)
    if found.own_size is None:
        return asked or choose_working_size(shapes)
    height, width = found.own_size
    if asked not in (None, found.own_size):
        raise ModelError(f"the network takes images of {height}x{width} only: leave out --image-size")
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ModelError(
            f"the network takes images of {height}x{width} only, which are no multiples of {SIZE_MULTIPLE}: "
            "export it with free sizes"
        )
    return found.own_size


def fitting_tile(found: Found, tile: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """The tile that was asked for, or the working size: attention and pooling see all of a tile.

    Raises ModelError when the network takes its own size only.
    """
    if found.own_size is not None and tile is not None:
        height, width = found.own_size
        raise ModelError(f"the network takes images of {height}x{width} only: leave out --tile")
    return asked_tile(tile, size)


def foreign_grid(size: tuple[int, int], tile: tuple[int, int], output_stride: int) -> Grid:
    """How a network of this stride sees images."""
    multiple = math.lcm(SIZE_MULTIPLE, output_stride)
    return Grid(size, tile, margin_of(tile), judged_stride(output_stride), multiple)


def foreign_spec(
    found: Found, probed: Probed, classes: tuple[str, ...], class_map: tuple[int | None, ...]
) -> ForeignSpec:
    """What a bundle says of a network; classes: of its outputs."""
    return ForeignSpec(
        files=digests_of(found.files),
        classes=classes,
        class_map=class_map,
        values=found.values,
        channels=found.channels,
        mean=found.mean,
        standard_deviation=found.standard_deviation,
        output_stride=probed.output_stride,
        one_size=probed.one_size,
    )


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each file, in hex, by its name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}


def probe(network: nn.Module, found: Found, size: tuple[int, int], other: tuple[int, int]) -> Probed:
    """Give it images of a size (height, width), one and two at once, and of another size.

    Raises ModelError when it takes none of that size, or gives no map of classes that are numbers.
    """
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        both, alone = _outputs(network, images), _outputs(network, images[:1])
    except ModelError:
        raise
    except Exception as error:  # whatever a network of others raises
        said = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the network takes no images of {size[0]}x{size[1]} ({said}): give --image-size HEIGHTxWIDTH"
        ) from error
    stride = _stride(both, size)
    _require_numbers(both, found.values)
    largest = both.abs().max().clamp(min=1e-6)
    if float((both[:1] - alone).abs().max() / largest) > ROUNDING:
        raise ModelError(
            "the network gives an image other outputs alone than beside another: export it for inference"
        )
    one_size = found.own_size is not None or (other != size and not _takes(network, other, stride))
    return Probed(both.shape[1], stride, one_size)


def second_look_of(network: nn.Module, sizes: Set[tuple[int, int]], stride: int) -> SecondLook | None:
    """The second look (see ModelSpec) that a network takes, whose images and tiles are of these sizes; None
    where it takes none, or they are so small already that it would be no smaller."""
    multiple = math.lcm(ForeignGenerator.size_multiple, stride)
    smaller = {smaller_size(size, multiple) for size in sizes}
    takes = smaller != sizes and all(_takes(network, size, stride) for size in smaller)
    return "half" if takes else None


@torch.inference_mode()
def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    outputs = network(images)
    if outputs.ndim != 4 or len(outputs) != len(images):
        raise ModelError(
            f"the network gives shape {tuple(outputs.shape)}, not one map per class (B, C, h, w)"
        )
    return outputs.float()


def _takes(network: nn.Module, size: tuple[int, int], stride: int) -> bool:
    try:
        outputs = _outputs(network, torch.zeros(1, 3, *size))
    except Exception:  # whatever a network of others raises
        return False
    return tuple(outputs.shape[-2:]) == (size[0] // stride, size[1] // stride)


def _stride(outputs: Tensor, size: tuple[int, int]) -> int:
    height, width = outputs.shape[-2:]
    stride = size[0] // max(1, height)
    if (height * stride, width * stride) != size or stride > LARGEST_STRIDE:
        raise ModelError(
            f"the network gives {height}x{width} for {size[0]}x{size[1]}: a whole fraction of it is needed"
        )
    return stride


def _require_numbers(outputs: Tensor, values: Values) -> None:
    if not outputs.isfinite().all():
        raise ModelError("the network gives outputs that are no numbers: are its weights whole?")
    if values == "probabilities" and (outputs.min() < -1e-3 or outputs.max() > 1 + 1e-3):
        raise ModelError(
            f"the network's outputs, {float(outputs.min()):.3g} to {float(outputs.max()):.3g}, are no "
            "probabilities: say --output logits"
        )
