"""A bundle is whole, its own, and never unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import segpipe
from segpipe import storage
from segpipe.confidence.score import SCORE_PARTS
from segpipe.errors import ModelError
from segpipe.models.bundle import encode_weights, load_bundle, model_digest, read_card


@pytest.fixture
def copied(trained_model: str, tmp_path: Path) -> Path:
    shutil.copytree(trained_model, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_bundle_copied_anywhere_gives_the_same_masks(trained_model: str, storage_root: str) -> None:
    for found in list(storage.list_objects(trained_model)):
        storage.put(storage.join(storage_root, found.key), storage.read_bytes(found.uri))
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    here, there = segpipe.load_model(trained_model, "cpu"), segpipe.load_model(storage_root, "cpu")
    assert here.model_id == there.model_id
    assert np.array_equal(here.label([image])[0].mask, there.label([image])[0].mask)


def test_a_missing_model_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model at .*nowhere.*segpipe train"):
        load_bundle(str(tmp_path / "nowhere"), "cpu")


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_a_missing_weight_file_is_named(copied: Path, name: str) -> None:
    (copied / f"{name}.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"incomplete: .*{name}\.safetensors"):
        load_bundle(str(copied), "cpu")


def test_weights_of_another_model_are_refused(copied: Path, trained_model: str) -> None:
    content = bytearray((copied / "generator.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "generator.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="its files were changed"):
        load_bundle(str(copied), "cpu")


def test_a_changed_working_size_is_refused_for_it_changes_every_mask(copied: Path) -> None:
    card = json.loads((copied / "model.json").read_text())
    card["spec"]["working_size"] = [64, 64]
    (copied / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="its files were changed"):
        load_bundle(str(copied), "cpu")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"bundle_version": 1}', "\x00\xff"])
def test_a_damaged_model_json_is_one_clear_line(copied: Path, content: str) -> None:
    (copied / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model at .*copy") as caught:
        load_bundle(str(copied), "cpu")
    assert "\n" not in str(caught.value)


def test_a_bundle_of_a_later_version_says_so(copied: Path) -> None:
    (copied / "model.json").write_text('{"bundle_version": 3}')
    with pytest.raises(ModelError, match="bundle version 3, not 2"):
        read_card(str(copied))


def test_a_bundle_from_before_the_judge_says_to_train_again(copied: Path) -> None:
    (copied / "model.json").write_text('{"bundle_version": 1}')
    with pytest.raises(ModelError, match="bundle version 1, not 2: retrain it"):
        load_bundle(str(copied), "cpu")


def test_the_model_is_another_one_when_only_its_judge_is(copied: Path) -> None:
    bundle = load_bundle(str(copied), "cpu")
    weights = encode_weights(bundle.generator), encode_weights(bundle.discriminator)
    assert model_digest(bundle.spec, *weights) == bundle.digest
    bundle.discriminator.judge.combination[0] += 1
    assert model_digest(bundle.spec, weights[0], encode_weights(bundle.discriminator)) != bundle.digest


def test_the_fit_of_the_score_is_kept_and_told(copied: Path) -> None:
    bundle = load_bundle(str(copied), "cpu")
    told = bundle.card.metrics["score_combination"]
    assert list(told) == ["bias", *SCORE_PARTS]
    assert list(told.values()) == pytest.approx(bundle.discriminator.judge.combination.tolist())


def test_a_loaded_model_stands_still(copied: Path) -> None:
    bundle = load_bundle(str(copied), "cpu")
    for network in (bundle.generator, bundle.discriminator):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_pickle_in_place_of_weights_is_never_run(copied: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    (copied / "generator.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        load_bundle(str(copied), "cpu")
    assert not (tmp_path / "sprung").exists()
