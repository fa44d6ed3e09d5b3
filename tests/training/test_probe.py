"""What is found of a foreign network by giving it images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.training.probe import second_look_of


class NotBelow(nn.Module):
    """A network that refuses images smaller than so."""

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[2:]) < self.smallest:
            raise ValueError("too small")
        return nn.functional.avg_pool2d(images, 4)


@pytest.mark.parametrize(("smallest", "second_look"), [(96, "half"), (97, None)])
def test_a_network_looks_again_only_if_it_takes_half_of_all_sizes(
    smallest: int, second_look: str | None
) -> None:
    """Half of 320 is 160; half of 160 is 80, in whole thirty-twos 96."""
    assert second_look_of(NotBelow(smallest), {(320, 320), (160, 160)}, stride=4) == second_look
    assert second_look_of(NotBelow(smallest), {(320, 320)}, stride=4) == "half"
