"""What looks unlike the images that taught a judge, against scipy's Mahalanobis distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from segpipe.models.familiarity import Familiarity


def drawn(count: int, seed: int) -> torch.Tensor:
    """Features that depend on each other, of different centres and spreads."""
    draws = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 0.1, 1.0]])
    return torch.randn(count, 3, generator=draws) @ mixing + torch.tensor([5.0, -2.0, 0.0])


@pytest.fixture
def learnt() -> Familiarity:
    familiarity = Familiarity(3)
    familiarity.learn(drawn(200, 0), drawn(100, 1))
    return familiarity


def test_before_anything_is_learnt_all_is_familiar() -> None:
    assert Familiarity(3)(1e6 * torch.randn(4, 3)).tolist() == [0, 0, 0, 0]


def test_nine_in_ten_of_those_held_back_are_familiar(learnt: Familiarity) -> None:
    found = learnt(drawn(100, 1))
    assert (found == 0).sum() == 90
    assert (found <= 0).all()


def test_what_is_farther_is_less_familiar_by_the_logarithm_of_how_many_times_as_far(
    learnt: Familiarity,
) -> None:
    taught, far = drawn(200, 0).double().numpy(), drawn(5, 2).double().numpy() * 20
    deviation = taught.std(axis=0, ddof=1) + 1e-6
    standard = (taught - taught.mean(axis=0)) / deviation
    precision = np.linalg.inv(0.9 * np.cov(standard.T) + 0.1 * np.eye(3))
    middle = np.zeros(3)
    distances = [mahalanobis((one - taught.mean(axis=0)) / deviation, middle, precision) for one in far]
    expected = -np.log(np.array(distances) / np.sqrt(3) / learnt.radius.item())
    assert expected.max() < 0
    assert learnt(torch.from_numpy(far)).tolist() == pytest.approx(expected, rel=1e-4)


def test_twice_as_far_is_half_the_odds(learnt: Familiarity) -> None:
    away = torch.tensor([[100.0, 0.0, 0.0]]) - learnt.mean
    near, far = learnt(learnt.mean + away), learnt(learnt.mean + 2 * away)
    assert (near - far).exp().item() == pytest.approx(2, rel=1e-5)


def test_a_feature_that_never_varied_gives_finite_distances() -> None:
    familiarity, constant = Familiarity(2), torch.ones(20, 2)
    familiarity.learn(constant, constant)
    assert familiarity(torch.tensor([[1.0, 1.0], [7.0, 1.0]])).isfinite().all()
