"""How like the images that taught a judge another one looks to it.

Mahalanobis distance of features: Lee et al. 2018, "A simple unified framework for detecting
out-of-distribution samples and adversarial attacks".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Shared out between the measured covariance and that of features that know nothing of each other.
SHRINKAGE = 0.1
SMALLEST_DEVIATION = 1e-6
# Of the images held back so many in a hundred are as familiar as can be.
FAMILIAR_SHARE = 0.9


class Familiarity(nn.Module):
    """Features (B,F) -> (B,): 0 for what is as near to those it was taught on as images held back are;
    beyond, the logarithm of how many times as far, negative. Before `learn` everything is familiar.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("precision", torch.zeros(features, features))
        self.register_buffer("radius", torch.ones(()))
        self.mean: Tensor
        self.deviation: Tensor
        self.precision: Tensor
        self.radius: Tensor

    def forward(self, features: Tensor) -> Tensor:
        # In bfloat16 the differences of squares would be rounding.
        with torch.autocast(features.device.type, enabled=False):
            return -(self._distance(features.float()) / self.radius).clamp(min=1.0).log()

    def _distance(self, features: Tensor) -> Tensor:
        standard = (features - self.mean) / self.deviation
        squares = torch.einsum("bi,ij,bj->b", standard, self.precision, standard)
        return (squares.clamp(min=0) / len(self.mean)).sqrt()

    def learn(self, taught: Tensor, held_back: Tensor) -> None:
        """taught (N,F): features of images that taught the networks, N > 1; held_back (M,F): of others."""
        taught = taught.double()
        deviation = taught.std(dim=0) + SMALLEST_DEVIATION
        standard = (taught - taught.mean(dim=0)) / deviation
        covariance = (1 - SHRINKAGE) * torch.cov(standard.T)
        precision = torch.linalg.inv(covariance + SHRINKAGE * torch.eye(len(covariance), dtype=torch.double))
        self.mean.copy_(taught.mean(dim=0))
        self.deviation.copy_(deviation)
        self.precision.copy_(precision)
        distances = self._distance(held_back.to(self.mean))
        self.radius.copy_(distances.quantile(FAMILIAR_SHARE).clamp(min=SMALLEST_DEVIATION))
