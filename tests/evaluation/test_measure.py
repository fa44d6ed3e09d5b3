"""`evaluate` and `calibrate` against the same figures computed from the labeler's masks by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, one_hot

import segpipe
from segpipe import storage
from segpipe.confidence.baselines import flip_tta
from segpipe.confidence.policy import from_json
from segpipe.confidence.score import SCORE_PARTS
from segpipe.config import CalibrateSettings
from segpipe.datasets import list_samples, open_dataset, read_sample, write_dataset
from segpipe.errors import DatasetError
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.measure import evaluate, measure, measure_split, summarise
from segpipe.models.bundle import Bundle, ModelCard, ModelSpec, build_networks
from segpipe.models.inference import predict, prepare
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.models.preprocess import MEAN, STANDARD_DEVIATION
from segpipe.reports.confidence import write_report
from segpipe.reports.content import ReportFacts


def truth_and_masks(streets: str, model: str, split: str) -> list[tuple[np.ndarray, np.ndarray, float]]:
    dataset, labeler = open_dataset(streets), segpipe.load_model(model, "cpu")
    found = []
    for sample in list_samples(dataset, split):
        image, truth = read_sample(dataset, sample)
        (labeled,) = labeler.label([image])
        found.append((truth, labeled.mask, labeled.discriminator_score))
    return found


def iou(truth: np.ndarray, mask: np.ndarray) -> float:
    known = truth != 255
    classes = np.union1d(truth[known], mask[known])
    shares = [
        ((truth == c) & (mask == c) & known).sum() / (((truth == c) | (mask == c)) & known).sum()
        for c in classes
    ]
    return float(np.mean(shares))


def test_quality_is_what_the_masks_of_the_labeler_give(streets: str, trained_model: str) -> None:
    result = evaluate(trained_model, streets, "val", "cpu")
    found = truth_and_masks(streets, trained_model, "val")
    truth = np.concatenate([pair[0].ravel() for pair in found])
    mask = np.concatenate([pair[1].ravel() for pair in found])
    assert result.n == len(found) == 6
    assert result.pixel_accuracy == pytest.approx((truth == mask).mean(), abs=1e-3)
    assert result.mean_iou == pytest.approx(iou(truth, mask), abs=1e-3)
    assert result.mean_image_iou == pytest.approx(np.mean([iou(t, m) for t, m, _ in found]), abs=1e-3)
    assert list(result.per_class_iou) == list(open_dataset(streets).classes)
    routing_and_its_parts = {"discriminator", *SCORE_PARTS}
    rivals = {"adversarial", "max_softmax", "entropy", "soft_dice", "soft_iou", "flip_tta"}
    assert set(result.scores) == routing_and_its_parts | rivals
    assert set(result.scores["discriminator"]) == {"aurc", "e_aurc", "augrc", "gap_closed", "spearman"}


def test_every_image_is_measured_as_the_labeler_labels_it(streets: str, trained_model: str) -> None:
    labeler = load_without_policy(trained_model, "cpu")
    measured = measure_split(labeler, streets, "val", labeler.iou_rule)
    dataset = open_dataset(streets)
    assert measured.keys == tuple(sample.key for sample in list_samples(dataset, "val"))
    assert all(values.shape == (6,) for values in measured.scores.values())
    for row, sample in enumerate(list_samples(dataset, "val")):
        image, truth = read_sample(dataset, sample)
        (labeled,) = labeler.label([image])
        assert measured.image_ious[row] == pytest.approx(iou(truth, labeled.mask), abs=1e-2)
        score = measured.scores["discriminator"][row]
        assert score == pytest.approx(labeled.discriminator_score, abs=1e-3)
        assert measured.confidences[row] == pytest.approx(labeled.confidence, abs=1e-3)
        np.testing.assert_allclose(measured.class_confidences[row], labeled.class_confidences, atol=1e-2)


def test_the_routing_score_is_the_fit_of_its_parts(streets: str, trained_model: str) -> None:
    labeler = load_without_policy(trained_model, "cpu")
    scores = measure_split(labeler, streets, "val", labeler.iou_rule).scores
    fit = labeler.bundle.card.metrics["score_combination"]
    combined = fit["bias"] + sum(fit[name] * scores[name] for name in SCORE_PARTS)
    np.testing.assert_allclose(scores["discriminator"], combined, atol=1e-3)


@pytest.mark.parametrize("shown", ["hard", "soft"])
def test_the_adversarial_score_is_the_game_discriminators_on_what_it_played_with(
    streets: str, trained_model: str, shown: str
) -> None:
    labeler = load_without_policy(trained_model, "cpu")
    bundle = labeler.bundle
    card = bundle.card.model_copy(update={"spec": bundle.spec.model_copy(update={"shown_masks": shown})})
    played = replace(labeler, bundle=replace(bundle, card=card))
    dataset = open_dataset(streets)
    image, truth = read_sample(dataset, list_samples(dataset, "val")[0])
    measured = measure(played, ["one"], [[(image, truth)]], 255)
    with torch.inference_mode():
        pixels = (torch.tensor(image) / 255 - torch.tensor(MEAN)) / torch.tensor(STANDARD_DEVIATION)
        batch = pixels.permute(2, 0, 1)[None].float()
        probabilities = bundle.generator(batch).softmax(dim=1)
        hard = one_hot(probabilities.argmax(dim=1), 7).permute(0, 3, 1, 2).float()
        small = avg_pool2d(batch, 2)
        realness = bundle.discriminator.adversary(small, hard if shown == "hard" else probabilities)
    assert measured.scores["adversarial"][0] == pytest.approx(realness.mean().item(), abs=2e-2)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    ("architecture", "classes"),
    [("unet", ("a", "b", "c")), ("plain", ("a", "b")), ("plain", ("a", "b", "c"))],
)
def test_every_score_is_that_of_the_networks_asked_one_by_one(
    architecture: Literal["unet", "plain"], classes: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    labeler = untrained_labeler(architecture, classes)
    bundle, images = labeler.bundle, list(torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy())
    passes: list[int] = []
    bundle.generator.register_forward_hook(lambda *_: passes.append(1))
    measured = measure(labeler, list("abc"), [[(image, image[..., 0] % 2) for image in images]], 255)
    assert len(passes) == 3, "the images, the smaller view of them, and their mirror images"
    batch = prepare(bundle, images, "cpu")
    with torch.inference_mode():
        alone, mirrored = predict(bundle, batch, "cpu"), predict(bundle, batch.flip(-1), "cpu")
        logits = bundle.generator(batch)
        soft = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        small = avg_pool2d(batch, batch.shape[-1] // logits.shape[-1])
        realness = bundle.discriminator.adversary(small, soft).mean(dim=(1, 2, 3))
    mask, turned = alone.logits.softmax(dim=1), mirrored.logits.softmax(dim=1)
    expected = {
        "discriminator": alone.verdict.score,
        "adversarial": realness,
        "flip_tta": flip_tta(mask, turned),
        "max_softmax": mask.amax(dim=1).mean(dim=(1, 2)),
        **dict(zip(SCORE_PARTS, alone.verdict.parts.unbind(dim=1), strict=True)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured.scores[name], values.numpy(), atol=1e-5, err_msg=name)


def test_a_model_whose_generator_played_no_game_has_every_score_but_the_games(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labeler = untrained_labeler("unet", ("a", "b"), shown_masks=None)
    images = list(torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy())
    measured = measure(labeler, list("abc"), [[(image, image[..., 0] % 2) for image in images]], 255)
    result = summarise(measured)
    assert "adversarial" in result.scores, "null says that there is none"
    assert result.scores["adversarial"] is None
    rivals = {"max_softmax", "entropy", "soft_dice", "soft_iou", "flip_tta"}
    known = {name for name, score in result.scores.items() if score is not None}
    assert known == {"discriminator", *SCORE_PARTS} | rivals
    about = ReportFacts("m", "0" * 12, "d", "val", "", calibration_split=False, policy_problem=None)
    page = storage.read_bytes(write_report(measured, result, None, about, str(tmp_path))).decode()
    assert "soft dice" in page
    assert "adversarial" not in page


def untrained_labeler(
    architecture: Literal["unet", "plain"],
    classes: tuple[str, ...],
    shown_masks: Literal["soft"] | None = "soft",
) -> Labeler:
    spec = ModelSpec(
        architecture=architecture,
        classes=classes,
        ignore_index=255,
        working_size=(64, 64),
        mean=MEAN,
        standard_deviation=STANDARD_DEVIATION,
        shown_masks=shown_masks,
        second_look="half",
    )
    card = ModelCard(
        model_id="0" * 12,
        spec=spec,
        training_data={},
        training_settings={},
        metrics={},
        versions={},
        created_at="",
    )
    generator, discriminator = build_networks(spec)
    return Labeler(Bundle(card, generator.eval(), discriminator.eval()), None, "cpu")


def test_an_image_without_a_labelled_pixel_is_told_and_left_out(streets: str, trained_model: str) -> None:
    labeler = load_without_policy(trained_model, "cpu")
    dataset = open_dataset(streets)
    pairs = [read_sample(dataset, sample) for sample in list_samples(dataset, "val")[:3]]
    blank = (pairs[0][0], np.full_like(pairs[0][1], 255))
    measured = measure(labeler, ["a", "b", "c", "blank"], [[*pairs, blank]], 255)
    assert np.isnan(measured.image_ious).tolist() == [False, False, False, True]
    without = measure(labeler, ["a", "b", "c"], [pairs], 255)
    assert summarise(measured).mean_image_iou == pytest.approx(summarise(without).mean_image_iou, abs=1e-6)
    with pytest.raises(DatasetError, match="every pixel of the truth is ignored"):
        summarise(measure(labeler, ["blank"], [[blank]], 255))


def test_another_datas_classes_are_refused(trained_model: str, tmp_path: Path) -> None:
    write_dataset(str(tmp_path), "cells", ["background", "cell"], 255)
    with pytest.raises(DatasetError, match="has the classes background, cell but the model knows sky"):
        evaluate(trained_model, str(tmp_path), "val", "cpu")


def calibration(streets: str, model: str, split: str = "calibration", **values: float) -> CalibrateSettings:
    target = {"min_iou": 0.2, "max_bad_fraction": 0.3, "confidence": 0.8} | values
    return CalibrateSettings(data=streets, model=model, split=split, device="cpu", **target)  # type: ignore[arg-type]


def test_calibrate_writes_a_policy_whose_counts_are_true(
    streets: str, trained_model: str, tmp_path: Path
) -> None:
    model = str(tmp_path / "copy")
    shutil.copytree(trained_model, model)
    found = truth_and_masks(streets, model, "calibration")
    ious = np.asarray([iou(truth, mask) for truth, mask, _ in found])
    easy = float(np.quantile(ious, 0.05))
    # Two of 40 are bad, wherever so small a training ranks them.
    policy = calibrate(calibration(streets, model, min_iou=easy, max_bad_fraction=0.5))
    scores = np.asarray([score for *_, score in found])
    assert policy.threshold is not None
    accepted = scores >= policy.threshold - 1e-4
    assert policy.n_calibration == 40
    assert policy.accepted == accepted.sum()
    assert policy.promised.bad == (ious[accepted] < easy - 1e-6).sum()
    assert policy == from_json(storage.read_bytes(f"{model}/policy.json").decode())
    assert segpipe.load_model(model, "cpu").policy == policy


def test_a_target_out_of_reach_accepts_nothing(streets: str, trained_model: str, tmp_path: Path) -> None:
    model = str(tmp_path / "copy")
    shutil.copytree(trained_model, model)
    policy = calibrate(calibration(streets, model, min_iou=0.99, max_bad_fraction=0.01, confidence=0.95))
    assert policy.threshold is None


def test_calibrating_on_the_training_images_is_refused(streets: str, trained_model: str) -> None:
    with pytest.raises(DatasetError, match="was trained on split train"):
        calibrate(calibration(streets, trained_model, split="train"))


@pytest.mark.parametrize("content", ["{", "{}", '{"threshold": -9}'])
def test_a_damaged_policy_hinders_neither_evaluation_nor_a_new_calibration(
    streets: str, trained_model: str, tmp_path: Path, content: str
) -> None:
    model = str(tmp_path / "copy")
    shutil.copytree(trained_model, model)
    storage.put(f"{model}/policy.json", content.encode())
    assert evaluate(model, streets, "val", "cpu").n == 6
    assert calibrate(calibration(streets, model)) == segpipe.load_model(model, "cpu").policy


def test_calibrating_on_the_validation_images_is_warned_of(
    streets: str, trained_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(tmp_path / "copy")
    shutil.copytree(trained_model, model)
    calibrate(calibration(streets, model))
    assert "picked the model's best weights" not in caplog.text
    calibrate(calibration(streets, model, split="val"))
    assert "picked the model's best weights" in caplog.text
