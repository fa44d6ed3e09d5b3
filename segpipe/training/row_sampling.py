"""Which rows are learnt from, and how often: once each, or as their weights ask."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def epoch_order(rows: Tensor, weights: Tensor, draws: torch.Generator) -> Tensor:
    """The rows (n,) of one epoch, shuffled: n in all, each in proportion to its weight (n,), up to rounding.

    Equal weights give every row once. Else systematic sampling: a row whose share of n is 2.3 comes twice or,
    with probability 0.3, three times (Cochran 1977, "Sampling Techniques", section 8.1).
    """
    if _equal(weights):
        return rows[torch.randperm(len(rows), generator=draws)]
    ends = weights.cumsum(0) / weights.sum() * len(rows)
    points = torch.arange(len(rows)) + torch.rand((), generator=draws, dtype=torch.float64)
    chosen = rows[torch.searchsorted(ends, points, right=True).clamp(max=len(rows) - 1)]
    return chosen[torch.randperm(len(rows), generator=draws)]


def draw_row(rows: Tensor, weights: Tensor, draws: random.Random) -> int:
    """One of the rows (n,), with probability in proportion to its weight (n,)."""
    if _equal(weights):
        return int(draws.choice(rows))
    return int(draws.choices(rows.tolist(), weights.tolist())[0])


def _equal(weights: Tensor) -> bool:
    return bool((weights == weights[0]).all())
