"""The generator's second look at an image: smaller, mirrored, and turned back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segpipe.models.bundle import ModelSpec
from segpipe.models.generators.protocol import Generator
from segpipe.models.judge import ShownMask, show
from segpipe.models.small_view import seen_again
from tests.support.labelled_arrays import plain_spec

SPEC = plain_spec(("red", "green", "blue"), (80, 96))


class Strongest(nn.Module):
    """Names the strongest channel; remembers what it was given."""

    output_stride = judged_stride = 2
    size_multiple = 16

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.given.append(image)
        return nn.functional.avg_pool2d(image, 2)


def again(spec: ModelSpec, generator: Any, images: torch.Tensor, shown: ShownMask) -> torch.Tensor:
    network: Generator = generator
    return seen_again(spec, network, images, shown.one_hot.argmax(dim=1), "cpu")


def quarters() -> torch.Tensor:
    """1x3x80x96: red and green above, green and blue below."""
    colours = torch.eye(3)
    labels = torch.tensor([[0, 1], [1, 2]]).repeat_interleave(40, 0).repeat_interleave(48, 1)
    return colours[labels].permute(2, 0, 1)[None]


def test_an_image_is_seen_at_half_its_sides_and_mirrored() -> None:
    generator, images = Strongest(), quarters()
    again(SPEC, generator, images, show(Strongest()(images)))
    (given,) = generator.given
    # 40 and 48, in whole sixteens.
    assert given.shape == (1, 3, 48, 48)
    assert given[0, :, 4, 4].tolist() == [0, 1, 0], "what lay on the right above lies on the left"
    assert given[0, :, 44, 44].tolist() == [0, 1, 0]
    assert given[0, :, 44, 4].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("size", "seen"), [((416, 96), (208, 48)), ((16, 48), (16, 32)), ((32, 32), (32, 32))]
)
def test_the_smaller_view_is_one_that_the_generator_takes_and_never_larger(
    size: tuple[int, int], seen: tuple[int, int]
) -> None:
    generator, images = Strongest(), torch.rand(2, 3, *size)
    again(SPEC, generator, images, show(Strongest()(images)))
    assert generator.given[0].shape == (2, 3, *seen)


def test_labels_that_do_not_hang_on_size_or_side_are_all_seen_again() -> None:
    images = quarters()
    shown = show(Strongest()(images))
    found = again(SPEC, Strongest(), images, shown)
    assert found.dtype == torch.int64
    assert torch.equal(found, shown.one_hot.argmax(dim=1))


def test_what_lies_on_another_side_in_the_mirror_is_seen_as_it_is() -> None:
    class Sided(Strongest):
        """Calls the left half of whatever it sees red, and the right half blue."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(image), 3, image.shape[2] // 2, image.shape[3] // 2)
            logits[..., : logits.shape[3] // 2][:, 0] = 1
            logits[..., logits.shape[3] // 2 :][:, 2] = 1
            return logits

    images = quarters()
    shown = show(Sided()(images))
    found = again(SPEC, Sided(), images, shown)
    assert torch.equal(found, 2 - shown.one_hot.argmax(dim=1)), "no pixel is labelled alike both times"


def test_the_one_channel_of_two_classes_is_read_as_such() -> None:
    class Redness(Strongest):
        """The logit of the second of two classes: high where it is red."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image)[:, :1] - 0.5

    images = quarters()
    shown = show(torch.cat([-images[:, :1], images[:, :1] - 1], dim=1)[:, :, ::2, ::2])
    red = (images[:, 0, ::2, ::2] > 0.5).long()
    assert torch.equal(again(SPEC, Redness(), images, shown), red)


def test_the_second_look_is_on_the_grid_that_masks_are_judged_on() -> None:
    class Fine(Strongest):
        """A mask as fine as the image, judged at half of it."""

        output_stride = 1

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image

    images = quarters()
    shown = show(nn.functional.avg_pool2d(images, 2))
    assert torch.equal(again(SPEC, Fine(), images, shown), shown.one_hot.argmax(dim=1))


def test_a_bundle_from_before_looks_once() -> None:
    spec = SPEC.model_copy(update={"second_look": None})
    generator, images = Strongest(), quarters()
    shown = show(Strongest()(images))
    assert torch.equal(again(spec, generator, images, shown), shown.one_hot.argmax(dim=1))
    assert generator.given == []
