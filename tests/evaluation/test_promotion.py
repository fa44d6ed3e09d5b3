"""A model is promoted when it is better beyond chance, and one command goes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_model import write_random_model, write_trusting_policy

import segpipe
from segpipe import storage
from segpipe.config import PromoteSettings
from segpipe.datasets import list_samples, open_dataset
from segpipe.errors import DatasetError, ModelError
from segpipe.evaluation.promotion import compare_paired, go_back, promote
from segpipe.models.promotion_line import promotions, resolve


@pytest.fixture
def good(trained_model: str, tmp_path: Path) -> str:
    return write_trusting_policy(str(shutil.copytree(trained_model, tmp_path / "good")))


@pytest.fixture
def poor(streets: str, tmp_path: Path) -> str:
    """Random weights for the classes of `streets`."""
    return write_trusting_policy(
        write_random_model(str(tmp_path / "poor"), classes=open_dataset(streets).classes)
    )


@pytest.fixture
def settings(streets: str, tmp_path: Path) -> Callable[..., PromoteSettings]:
    line = str(tmp_path / "line")

    def make(candidate: str, **values: object) -> PromoteSettings:
        fixed = {"line": line, "data": streets, "split": "calibration", "device": "cpu"}
        return PromoteSettings(candidate=candidate, **(fixed | values))  # type: ignore[arg-type]

    return make


def test_the_better_model_is_promoted_and_the_worse_is_not(
    good: str, poor: str, settings: Callable[..., PromoteSettings]
) -> None:
    line = settings(good).line
    first = promote(settings(poor))
    assert first.promoted
    assert first.comparison is None
    second = promote(settings(good))
    assert second.promoted
    assert second.replaces == first.model_id
    assert second.comparison is not None
    assert second.comparison.n == 40
    assert 0 < second.comparison.lower_bound < second.comparison.difference
    assert segpipe.load_model(line, "cpu").model_id == second.model_id
    third = promote(settings(poor))
    assert not third.promoted
    assert "not shown to be better" in third.reason
    assert segpipe.load_model(line, "cpu").model_id == second.model_id

    back = go_back(line)
    assert back.model_id == first.model_id
    assert segpipe.load_model(line, "cpu").model_id == first.model_id
    with pytest.raises(ModelError, match="no earlier model to go back to"):
        go_back(line)
    assert [entry.model_id for entry in promotions(line)] == [
        first.model_id, second.model_id, first.model_id
    ]  # fmt: skip


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_that_was_killed_is_finished_by_the_same_command(
    after: bool,
    good: str,
    poor: str,
    settings: Callable[..., PromoteSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = storage.create

    def killed(uri: str, data: bytes) -> None:
        if after:
            create(uri, data)
        raise KilledError

    for number, candidate in enumerate((poor, good), 1):
        with monkeypatch.context() as patched:
            patched.setattr(storage, "create", killed)
            with pytest.raises(KilledError):
                promote(settings(candidate))
        line = settings(candidate).line
        if after:
            with pytest.raises(ModelError, match=r"stands for .* already, since 20"):
                promote(settings(candidate))
        else:
            assert promote(settings(candidate)).promoted
        assert [entry.model for entry in promotions(line)] == [poor, good][:number]
        assert resolve(line) == candidate
    assert promotions(line)[-1].evidence["lower_bound"] > 0


def test_a_candidate_without_a_promise_is_refused(
    trained_model: str, settings: Callable[..., PromoteSettings]
) -> None:
    with pytest.raises(ModelError, match="run `segpipe calibrate` on it first"):
        promote(settings(trained_model))
    assert promotions(settings(trained_model).line) == []


def test_a_split_that_the_candidate_has_learnt_from_is_refused(
    good: str, settings: Callable[..., PromoteSettings]
) -> None:
    with pytest.raises(DatasetError, match="was trained on: compare on a split that no model learns from"):
        promote(settings(good, split="train"))


def test_the_model_in_use_is_no_candidate(good: str, settings: Callable[..., PromoteSettings]) -> None:
    promote(settings(good))
    with pytest.raises(ModelError, match="already"):
        promote(settings(good))
    with pytest.raises(ModelError, match="no earlier model"):
        go_back(settings(good).line)


def test_frames_of_a_group_count_as_one(
    good: str, poor: str, settings: Callable[..., PromoteSettings]
) -> None:
    promote(settings(poor))
    result = promote(settings(good, group_by="^.{4}"))
    assert result.comparison is not None
    assert 1 < result.comparison.n < 40


def test_groups_csv_says_what_counts_as_one(
    good: str, poor: str, streets: str, tmp_path: Path, settings: Callable[..., PromoteSettings]
) -> None:
    data = shutil.copytree(streets, tmp_path / "grouped")
    keys = [sample.key for sample in list_samples(open_dataset(streets), "calibration")]
    lines = [f"{key},video {number % 7}" for number, key in enumerate(keys)]
    (data / "groups.csv").write_text("\n".join(["key,group", *lines]))
    promote(settings(poor, data=str(data)))
    result = promote(settings(good, data=str(data)))
    assert result.comparison is not None
    assert result.comparison.n == 7


def test_the_comparison_is_that_of_the_differences() -> None:
    old = np.array([0.5, 0.6, 0.7, 0.2, 0.9, 0.4])
    new = old + np.array([0.1, 0.2, 0.1, 0.2, 0.1, 0.2])
    found = compare_paired(old, new, 0.95, 0)
    assert found.difference == pytest.approx(0.15)
    assert found.old_mean_iou == pytest.approx(0.55)
    # Of 64 equally likely resamples' halves, no mean is below 0.1, and few are near.
    assert 0.1 <= found.lower_bound < 0.15
    assert compare_paired(old, old + 0.05, 0.95, 0).lower_bound == pytest.approx(0.05)
    assert compare_paired(new, old, 0.95, 0).lower_bound < 0


def test_models_that_are_equally_good_are_rarely_promoted() -> None:
    rng = np.random.default_rng(0)
    promoted = 0
    for seed in range(200):
        old, new = rng.beta(5, 2, (2, 60))
        promoted += compare_paired(old, new, 0.95, seed).lower_bound > 0
    assert promoted <= 20, "one in twenty at 0.95; 20 of 200 come by chance once in 500 times"
