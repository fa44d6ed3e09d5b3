"""What a generator is: whatever turns images into class logits."""

from __future__ import annotations

from torch import nn

from segpipe.kinds import GENERATORS, module_of


class Generator(nn.Module):
    """(B,3,H,W) normalised images -> logits (B,1 or K,h,w); one channel is the sigmoid of two classes.

    An interface alone: a torch module, so that it can be trained, moved and stored, with no code to inherit.
    output_stride: H/h and W/w. judged_stride: H and W over those of the grid that its masks are judged on.
    size_multiple: what H and W must be multiples of.
    """

    output_stride: int
    judged_stride: int
    size_multiple: int


def build_generator(name: str, mask_channels: int) -> Generator:
    """A new generator of a kind in segpipe.kinds; mask_channels 1 (sigmoid) or K (softmax). RunError."""
    generator: Generator = module_of(GENERATORS, name, "generator").build(mask_channels)
    return generator
