"""What a foreign network does with images, found by giving it some."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segpipe.errors import ModelError
from segpipe.models.generators.foreign import Found, Values

LARGEST_STRIDE = 64
# How far an image's outputs may depend on the other images of its batch, over the largest output.
ROUNDING = 1e-2


@dataclass(frozen=True)
class Probed:
    """channels: of the outputs. output_stride: H/h and W/w. one_size: another size of image was refused."""

    channels: int
    output_stride: int
    one_size: bool


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
