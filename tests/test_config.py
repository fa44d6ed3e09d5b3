"""Settings: what is accepted, what is refused, and that each field explains itself."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from segpipe.config import (
    CalibrateSettings,
    EvaluateSettings,
    LabelSettings,
    StorageSettings,
    TrainSettings,
    class_share,
    guarded_class,
)

ALL = [TrainSettings, EvaluateSettings, CalibrateSettings, LabelSettings, StorageSettings]
PLACES = {"data": "s3://bucket/data", "model": "s3://bucket/model"}
BAD_FRACTION = {"min_iou": 0.6, "max_bad_fraction": 0.05}
PROMISE = {**PLACES, "split": "val", **BAD_FRACTION}


@pytest.mark.parametrize("kind", ALL)
def test_every_field_explains_itself(kind: type[BaseModel]) -> None:
    silent = [
        name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")
    ]
    assert silent == []


def test_a_form_that_was_saved_with_the_former_default_may_name_a_generator() -> None:
    assert TrainSettings(**PLACES, generator="/g", architecture="unet").generator == "/g"
    with pytest.raises(ValidationError, match="both say what the generator is"):
        TrainSettings(**PLACES, generator="/g", architecture="plain")


def test_training_defaults_are_the_documented_ones() -> None:
    settings = TrainSettings(**PLACES)
    chosen = (
        settings.architecture,
        settings.objective,
        settings.gan_loss,
        settings.split,
        settings.val_split,
    )
    assert chosen == ("unet-ibn", "hybrid", "bce", "train", "val")
    assert (settings.epochs, settings.image_size, settings.device, settings.seed, settings.resume) == (
        None,
        None,
        "auto",
        0,
        False,
    )


@pytest.mark.parametrize("size", ["240x320", "1x1", "1080x1920"])
def test_image_size_takes_height_by_width(size: str) -> None:
    assert TrainSettings(**PLACES, image_size=size).image_size == size


def test_a_size_that_no_bundle_may_have_is_refused_before_training() -> None:
    assert TrainSettings(**PLACES, image_size="1024x2048").image_size == "1024x2048"
    for size in ("1024x2080", "8192x8192", "99999x99999"):
        with pytest.raises(ValidationError, match="1024x2048 is the most"):
            TrainSettings(**PLACES, image_size=size)


@pytest.mark.parametrize(
    "size", ["", "240", "240X320", "240x", "0x320", "-1x2", "240x320x3", "a240x320", "240x320\n"]
)
def test_image_size_refuses_anything_else_and_shows_an_example(size: str) -> None:
    with pytest.raises(ValidationError, match="for example 240x320"):
        TrainSettings(**PLACES, image_size=size)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("epochs", 0), ("seed", -1), ("batch_size", 0), ("learning_rate", 0), ("adversarial_weight", -0.1)],
        *[
            ("gan_loss", "dcgan"),
            ("architecture", "resnet"),
            ("objective", "gan"),
            *[("device", name) for name in ("tpu", "cuda:", "cuda:-1", "cuda:01", "cuda:0\n", "")],
            ("model", ""),
        ],
    ],
)
def test_training_refuses_what_cannot_work(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainSettings(**{**PLACES, field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize("field", ["min_iou", "max_bad_fraction", "max_mean_loss", "confidence"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.1])
def test_a_promise_of_nothing_or_everything_is_refused(field: str, value: float) -> None:
    target = {"max_mean_loss": 0.3} if field == "max_mean_loss" else BAD_FRACTION
    with pytest.raises(ValidationError) as refused:
        CalibrateSettings(**{**PLACES, "split": "val", **target, field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"min_iou": 0.6},
        {"max_bad_fraction": 0.1},
        {**BAD_FRACTION, "max_mean_loss": 0.3},
        {"min_iou": 0.6, "max_mean_loss": 0.3},
        {"max_bad_fraction": 0.1, "max_mean_loss": 0.3},
    ],
)
def test_calibration_takes_exactly_one_target(target: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="give one target: --min-iou with --max-bad-fraction, or"):
        CalibrateSettings(**PLACES, split="val", **target)


@pytest.mark.parametrize(
    ("guard", "expected"),
    [("person:0.5", ("person", 0.5)), ("a:b:1", ("a:b", 1.0)), ("traffic light:0", ("traffic light", 0.0))],
)
def test_a_guard_is_a_class_and_a_confidence(guard: str, expected: tuple[str, float]) -> None:
    assert CalibrateSettings(**PROMISE, guard=(guard,)).guard == (guard,)
    assert guarded_class(guard) == expected


@pytest.mark.parametrize(
    "guard", ["", "person", ":0.5", "person:", "person:half", "person:1.1", "person:nan"]
)
def test_a_malformed_guard_is_refused_with_an_example(guard: str) -> None:
    with pytest.raises(ValidationError, match=r"for example person:0\.5"):
        CalibrateSettings(**PROMISE, guard=("road:0.2", guard))


@pytest.mark.parametrize(
    "share", ["", "crack", ":0.5", "crack:", "crack:0", "crack:1", "crack:-0.1", "crack:nan", "crack:1e-300"]
)
@pytest.mark.parametrize("kind", ["miss", "false_alarm"])
def test_a_malformed_promise_about_a_class_is_refused_with_an_example(kind: str, share: str) -> None:
    with pytest.raises(ValidationError, match=r"for example crack:0\.05"):
        CalibrateSettings(**PLACES, split="val", **{kind: ("road:0.2", share)})


def test_a_class_is_promised_once_of_each_kind_alone_or_with_masks() -> None:
    for masks in ({}, {"min_iou": 0.6, "max_bad_fraction": 0.1}, {"max_mean_loss": 0.3}):
        both = CalibrateSettings(**PLACES, split="val", **masks, miss=("a:b:0.05",), false_alarm=("a:b:0.1",))
        assert [class_share(one) for one in (*both.miss, *both.false_alarm)] == [("a:b", 0.05), ("a:b", 0.1)]
    with pytest.raises(ValidationError, match="'crack' is given twice"):
        CalibrateSettings(**PLACES, split="val", miss=("crack:0.05", "crack:0.1"))
    for wrong in ({"min_iou": 0.6}, {"min_iou": 0.6, "max_bad_fraction": 0.1, "max_mean_loss": 0.2}):
        with pytest.raises(ValidationError, match="give one target"):
            CalibrateSettings(**PLACES, split="val", **wrong, miss=("crack:0.05",))
    with pytest.raises(ValidationError, match="goes with --miss"):
        CalibrateSettings(**PROMISE, min_object_px=5)


@pytest.mark.parametrize("target", [{"min_iou": 0.6, "max_bad_fraction": 1e-300}, {"max_mean_loss": 1e-7}])
def test_a_share_that_no_data_set_can_prove_is_refused(target: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to"):
        CalibrateSettings(**PLACES, split="val", **target)


def test_two_guards_of_one_class_are_refused() -> None:
    with pytest.raises(ValidationError, match="'person' is guarded twice"):
        CalibrateSettings(**PROMISE, guard=("person:0.5", "person:0.7"))


def test_a_pattern_that_does_not_compile_is_refused() -> None:
    assert CalibrateSettings(**PROMISE, group_by="^[^_]+").group_by == "^[^_]+"
    with pytest.raises(ValidationError, match="is not a regular expression"):
        CalibrateSettings(**PROMISE, group_by="^[_")
    with pytest.raises(ValidationError, match="an empty regular expression names no group"):
        CalibrateSettings(**PROMISE, group_by="")


@pytest.mark.parametrize("kind", ALL)
def test_a_misspelt_setting_is_refused_not_ignored(kind: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="batch_imges"):
        kind(**{**PROMISE, "batch_imges": 4})


def test_label_defaults_are_the_documented_ones() -> None:
    settings = LabelSettings()
    assert settings.drift_false_alarm_rate == 0.0001
    assert 365 * settings.drift_false_alarm_rate < 0.037  # what its description promises for a year of nights
    assert (settings.drift_warn_only, settings.confidence_maps) == (False, False)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_false_alarm_rate_of_never_or_always_is_refused(rate: float) -> None:
    with pytest.raises(ValidationError):
        LabelSettings(drift_false_alarm_rate=rate)


def test_settings_cannot_change_under_a_run() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        LabelSettings().batch_images = 4  # type: ignore[misc]


def test_label_settings_survive_json() -> None:
    settings = LabelSettings(shard_images=32, device="cpu")
    assert LabelSettings.model_validate_json(settings.model_dump_json()) == settings
