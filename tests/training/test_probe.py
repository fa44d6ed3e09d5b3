"""What is found of a foreign network by giving it images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.models.generators.foreign import Found
from segpipe.training.probe import probe

FOUND = Found(
    files={},
    classes=None,
    first_class=0,
    values="logits",
    channels="rgb",
    mean=(0.5, 0.5, 0.5),
    standard_deviation=(0.25, 0.25, 0.25),
    own_size=None,
)


class NotBelow(nn.Module):
    """A network that refuses images smaller than so."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[2:]) < self.smallest:
            raise ValueError("too small")
        return nn.functional.avg_pool2d(images, 4)


@pytest.mark.parametrize(("smallest", "one_size"), [(64, False), (96, True)])
def test_a_network_that_refuses_the_second_look_takes_one_size_only(smallest: int, one_size: bool) -> None:
    """At half of 160 the judge would have it look again: 80, in whole thirty-twos 64."""
    assert probe(NotBelow(smallest), FOUND, (160, 160), (128, 128)).one_size == one_size
