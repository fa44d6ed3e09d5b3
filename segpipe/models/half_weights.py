"""Weights kept in the precision that they are computed in."""

from __future__ import annotations

import torch
from torch import nn

from segpipe.models.bundle import Bundle

# What autocast brings to bfloat16 before each use.
_CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def hold_in_bfloat16(bundle: Bundle) -> None:
    """Bring the networks' convolutions to bfloat16 for good: autocast, which would anew for each batch, gives
    the same figures. A foreign generator labels in float32 and stays as it is.
    """
    networks = [bundle.discriminator] if bundle.spec.foreign else [bundle.generator, bundle.discriminator]
    for module in (module for network in networks for module in network.modules()):
        if type(module) in _CAST:
            module.to(torch.bfloat16)
