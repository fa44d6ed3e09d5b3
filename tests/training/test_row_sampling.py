"""How often each row is learnt from."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpipe.training.row_sampling import draw_row, epoch_order


@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=60), st.integers(0, 2**31))
def test_an_epoch_has_each_row_as_often_as_its_weight_asks(weights: list[float], seed: int) -> None:
    rows = torch.arange(len(weights)) + 7
    order = epoch_order(rows, torch.tensor(weights, dtype=torch.float64), torch.Generator().manual_seed(seed))
    counts = Counter(order.tolist())
    assert len(order) == len(weights)
    for row, weight in zip(rows.tolist(), weights, strict=True):
        assert abs(counts[row] - len(weights) * weight / sum(weights)) < 1 + 1e-6


@given(st.integers(1, 60), st.integers(0, 2**31))
def test_equal_weights_give_every_row_once(n_rows: int, seed: int) -> None:
    order = epoch_order(torch.arange(n_rows), torch.full((n_rows,), 2.5), torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(n_rows))


def test_over_many_epochs_the_shares_are_the_weights() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = torch.tensor([1.0, 2.0, 0.25, 0.75])
    counts = Counter(
        row for _ in range(4000) for row in epoch_order(torch.arange(4), weights, draws).tolist()
    )
    assert [counts[row] / 16000 for row in range(4)] == pytest.approx([0.25, 0.5, 0.0625, 0.1875], abs=0.005)


def test_single_draws_follow_the_weights_too() -> None:
    draws = random.Random(0)
    rows, weights = torch.tensor([3, 5, 9]), torch.tensor([1.0, 3.0, 0.0])
    counts = Counter(draw_row(rows, weights, draws) for _ in range(8000))
    assert counts[5] / 8000 == pytest.approx(0.75, abs=0.02)
    assert counts[9] == 0
    equal = Counter(draw_row(rows, torch.ones(3), draws) for _ in range(6000))
    assert [equal[row] / 6000 for row in (3, 5, 9)] == pytest.approx([1 / 3] * 3, abs=0.03)
