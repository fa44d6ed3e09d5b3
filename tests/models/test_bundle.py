"""A bundle is whole, its own, and never unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save

import segpipe
from segpipe import storage
from segpipe.confidence.score import SCORE_PARTS
from segpipe.digests import shown
from segpipe.errors import ModelError
from segpipe.models.bundle import encode_weights, load_bundle, model_digest, read_card, spec_json


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


def copied_with(copied: Path, spec: dict[str, object], **card: object) -> str:
    content = json.loads((copied / "model.json").read_text())
    content = content | card | {"spec": content["spec"] | spec}
    (copied / "model.json").write_text(json.dumps(content))
    return str(copied)


HUGE, NAN = 1e300, float("nan")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"working_size": [0, 32]}, "spec.working_size.0"),
        ({"working_size": [32, -32]}, "spec.working_size.1"),
        ({"working_size": [1, 1]}, "spec.working_size.0"),
        ({"working_size": [33, 32]}, "multiple of 16"),
        ({"working_size": [2**63, 32]}, "spec.working_size.0"),
        ({"working_size": [10**400, 32]}, "spec.working_size.0"),
        ({"working_size": [8192, 8192]}, "working_size: over 2097152 pixels"),
        ({"working_size": [64]}, "spec.working_size"),
        ({"classes": ["road", "car", "road"]}, "classes: a name is there twice"),
        ({"classes": ["road", "", "sky"]}, "spec.classes.1"),
        ({"classes": ["road", "\x1b[31mcar", "sky"]}, "spec.classes.1"),
        ({"classes": ["road", "car\n", "sky"]}, "spec.classes.1"),
        ({"classes": ["road"]}, "spec.classes"),
        ({"ignore_index": 1}, "ignore_index: 1 is a class"),
        ({"ignore_index": 256}, "spec.ignore_index"),
        ({"mean": [0.5, NAN, 0.5]}, "spec.mean.1"),
        ({"mean": [0.5, HUGE, 0.5]}, "spec.mean.1"),
        ({"standard_deviation": [0, 0.2, 0.2]}, "spec.standard_deviation.0"),
        ({"standard_deviation": [-0.2, 0.2, 0.2]}, "spec.standard_deviation.0"),
        ({"standard_deviation": [0.2, 0.2, HUGE]}, "spec.standard_deviation.2"),
        ({"standard_deviation": [0.2, 0.2, float("inf")]}, "spec.standard_deviation.2"),
        ({"image_range": [5, 5]}, "LOW must be below HIGH"),
        ({"image_range": [5, NAN]}, "is not a range"),
        ({"image_range": [0, float("inf")]}, "is not a range"),
        ({"image_range": [0, 1, 2]}, "spec.image_range"),
        ({"surplus": 1}, "spec.surplus"),
        ({"\n\x1b[31m": 1}, "spec"),
    ],
)
def test_a_spec_that_no_model_can_have_is_one_clear_line(
    copied: Path, spec: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelError, match=f"damaged model.json .*{said}.*copy the bundle again") as caught:
        read_card(copied_with(copied, spec))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        '{"bundle_version": 2, "spec": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"bundle_version": ' + "9" * 5000 + "}",
        '{"bundle_version": 2, "model_id": "' + "x" * 5_000_000 + '"}',
        '{"bundle_version": 2, "model_id": "\ud800"}',
        '{"bundle_version": NaN}',
    ],
    ids=["nested", "long number", "large", "half a character", "nan"],
)
def test_a_hostile_model_json_is_one_short_line(copied: Path, content: str) -> None:
    (copied / "model.json").write_text(content, errors="surrogatepass")
    with pytest.raises(ModelError, match="model at ") as caught:
        read_card(str(copied))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_weights_that_are_no_numbers_are_refused(copied: Path) -> None:
    bundle = load_bundle(str(copied), "cpu")
    bundle.generator.get_parameter(next(name for name, _ in bundle.generator.named_parameters())).fill_(NAN)
    weights = (
        save({name: value.contiguous() for name, value in bundle.generator.state_dict().items()}),
        encode_weights(bundle.discriminator),
    )
    digest = model_digest(bundle.spec, *weights)
    (copied / "generator.safetensors").write_bytes(weights[0])
    with pytest.raises(ModelError, match="weights that are no numbers") as caught:
        load_bundle(copied_with(copied, {}, model_id=shown(digest), digest=digest), "cpu")
    assert "\n" not in str(caught.value)


# --- the full digest ----------------------------------------------------------------------------------------


def test_a_new_bundle_holds_its_full_digest(trained_model: str) -> None:
    card, bundle = read_card(trained_model), load_bundle(trained_model, "cpu")
    assert card.digest == bundle.digest
    assert (len(str(card.digest)), str(card.digest)[:12]) == (64, card.model_id)


def test_a_models_identity_covers_how_its_score_takes_probabilities(trained_model: str) -> None:
    spec = read_card(trained_model).spec
    unnamed = spec.model_copy(update={"belief_kind": None})
    assert (spec.belief, unnamed.belief) == ("plain", "softened")
    assert model_digest(spec, b"", b"") != model_digest(unnamed, b"", b"")


def test_a_bundle_from_before_full_digests_loads_and_has_one(copied: Path) -> None:
    digest = read_card(str(copied)).digest
    content = json.loads((copied / "model.json").read_text())
    del content["digest"]
    (copied / "model.json").write_text(json.dumps(content))
    assert read_card(str(copied)).digest is None
    assert load_bundle(str(copied), "cpu").digest == digest


def test_a_bundle_that_shares_only_the_first_digits_is_refused(copied: Path) -> None:
    model_id = read_card(str(copied)).model_id
    with pytest.raises(ModelError, match="its files were changed"):
        load_bundle(copied_with(copied, {}, digest=model_id + "0" * 52), "cpu")


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


def test_a_range_is_part_of_what_a_model_is_and_without_one_its_digest_is_as_ever(copied: Path) -> None:
    spec = read_card(str(copied)).spec
    assert b"image_range" not in spec_json(spec)
    ranged = [spec.model_copy(update={"image_range": one}) for one in (None, (0.0, 4095.0), (0.0, 4096.0))]
    digests = [model_digest(one, b"generator", b"discriminator") for one in ranged]
    assert digests[0] == model_digest(spec, b"generator", b"discriminator")
    assert len(set(digests)) == 3
    assert type(spec).model_validate_json(ranged[1].model_dump_json()) == ranged[1]
