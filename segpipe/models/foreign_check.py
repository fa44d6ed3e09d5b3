"""Two small images and what a foreign generator made of them: whether it does so here and now, too."""

from __future__ import annotations

from collections.abc import Sequence

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional

from segpipe.errors import ModelError
from segpipe.models.generators.foreign import NEVER, ForeignGenerator
from segpipe.models.preprocess import normalise

# Largest difference of a logit, over the largest logit: float32 on other machines stays far below.
TOLERANCE = 0.01
GRID = 32


def make_test_vector(
    generator: ForeignGenerator,
    size: tuple[int, int],
    mean: Sequence[float],
    standard_deviation: Sequence[float],
    device: str,
) -> bytes:
    """Drawn images of a size (height, width) with their logits, as safetensors.

    Raises ModelError for logits that are no numbers, which no check could find again.
    """
    images = _drawn_images(size)
    logits = _logits(generator, images, mean, standard_deviation, device)
    if not logits.isfinite().all():
        raise ModelError("the network's outputs for its test images are no numbers: it cannot be used")
    return save_tensors({"images": images, "logits": logits})


def check_test_vector(
    generator: ForeignGenerator,
    content: bytes,
    mean: Sequence[float],
    standard_deviation: Sequence[float],
    device: str,
) -> None:
    """Raises ModelError when the generator makes something else of the images than it made then."""
    try:
        tensors = load_tensors(content)
        images, expected = tensors["images"], tensors["logits"]
    except (safetensors.SafetensorError, KeyError) as error:
        raise ModelError("the model's test_vector.safetensors is damaged: copy the bundle again") from error
    found = _logits(generator, images, mean, standard_deviation, device)
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        raise ModelError(
            "the generator computes something else here than where the model was made: the logits of its "
            f"test images differ by {difference:.2g} of the largest, and {TOLERANCE} at most is rounding; "
            "install the versions that model.json names, or make the model here anew"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    known = expected > NEVER / 2
    largest = expected[known].abs().max().clamp(min=1e-6)
    return float((found - expected)[known].abs().max() / largest)


@torch.inference_mode()
def _logits(
    generator: ForeignGenerator,
    images: Tensor,
    mean: Sequence[float],
    standard_deviation: Sequence[float],
    device: str,
) -> Tensor:
    image = normalise(images.to(device), tuple(mean), tuple(standard_deviation))
    return functional.adaptive_avg_pool2d(generator(image), GRID).cpu().contiguous()


def _drawn_images(size: tuple[int, int]) -> Tensor:
    """(2,3,H,W) uint8: soft patches of colour with some grain."""
    draws = torch.Generator().manual_seed(0)
    patches = torch.rand(2, 3, 6, 6, generator=draws) * 255
    soft = functional.interpolate(patches, size=size, mode="bilinear", align_corners=False)
    grain = torch.randn(soft.shape, generator=draws) * 8
    return (soft + grain).clamp(0, 255).to(torch.uint8)
