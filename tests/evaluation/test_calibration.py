"""`calibrate` against scores, IoUs and class confidences taken from the labeler one image at a time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segpipe
from segpipe import storage
from segpipe.confidence.policy import MeanLossPromise, Policy, from_json, is_guarded
from segpipe.config import CalibrateSettings
from segpipe.datasets import list_samples, open_dataset, read_sample, write_dataset, write_sample
from segpipe.errors import DatasetError, PolicyError
from segpipe.evaluation.calibration import calibrate
from segpipe.groups import group_names
from segpipe.metrics import image_iou
from segpipe.models.bundle import read_card
from segpipe.reports.lines import policy_lines

MASKS_NOT: dict[str, Any] = {"min_iou": None, "max_bad_fraction": None}


@dataclass(frozen=True)
class Seen:
    score: float
    iou: float
    class_confidences: np.ndarray
    truth: np.ndarray
    mask: np.ndarray


@pytest.fixture
def model(trained_model: str, tmp_path: Path) -> str:
    return str(shutil.copytree(trained_model, tmp_path / "model"))


def judge(data: str, model: str) -> list[Seen]:
    dataset, labeler = open_dataset(data), segpipe.load_model(model, "cpu")
    found = []
    for sample in list_samples(dataset, "calibration"):
        image, truth = read_sample(dataset, sample)
        (labeled,) = labeler.label([image])
        iou = image_iou(truth, labeled.mask, len(labeler.classes), dataset.ignore_index, labeler.iou_rule)
        found.append(Seen(labeled.discriminator_score, iou, labeled.class_confidences, truth, labeled.mask))
    return found


@pytest.fixture(scope="module")
def easy_streets(streets: str, trained_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The calibration images, with the model's own masks as truth but for every 20th."""
    hard, labeler = open_dataset(streets), segpipe.load_model(trained_model, "cpu")
    root = str(tmp_path_factory.mktemp("easy"))
    easy = write_dataset(root, "easy streets", hard.classes, hard.ignore_index)
    for number, sample in enumerate(list_samples(hard, "calibration")):
        image, truth = read_sample(hard, sample)
        (labeled,) = labeler.label([image])
        write_sample(easy, "calibration", sample.key, image, truth if number % 20 == 0 else labeled.mask)
    return easy.root


@pytest.fixture(scope="module")
def easily_seen(easy_streets: str, trained_model: str) -> list[Seen]:
    return judge(easy_streets, trained_model)


def calibrated(streets: str, model: str, **values: Any) -> Policy:
    target = {} if "max_mean_loss" in values else {"min_iou": 0.05, "max_bad_fraction": 0.3}
    places = {"data": streets, "model": model, "split": "calibration", "device": "cpu"}
    return calibrate(CalibrateSettings(**{**places, **target, "confidence": 0.8, **values}))


def test_a_mean_loss_policy_states_the_mean_loss_of_what_it_accepts(
    easy_streets: str, easily_seen: list[Seen], model: str
) -> None:
    policy = calibrated(easy_streets, model, max_mean_loss=0.4)
    assert policy.threshold is not None
    losses = [1 - image.iou for image in easily_seen if image.score >= policy.threshold - 1e-4]
    assert policy.accepted == len(losses)
    assert isinstance(policy.promised, MeanLossPromise)
    assert policy.promised.mean_loss == pytest.approx(np.mean(losses), abs=1e-3)
    assert policy == from_json(storage.read_bytes(f"{model}/policy.json").decode())
    assert policy.model_digest == read_card(model).digest


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_policy_names_the_device_and_the_precision_of_its_scores(
    streets: str, model: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segpipe.models.device.has_bfloat16", lambda device: precision == "bfloat16")
    policy = calibrated(streets, model)
    assert (policy.device, policy.precision) == ("cpu", precision)
    monkeypatch.setattr("segpipe.models.device.has_bfloat16", lambda device: precision != "bfloat16")
    assert segpipe.load_model(model, "cpu").policy is None


def test_guarded_images_are_not_among_the_accepted(streets: str, model: str) -> None:
    seen = judge(streets, model)
    classes = open_dataset(streets).classes
    most_shown = int(np.nanargmax(np.mean([~np.isnan(image.class_confidences) for image in seen], axis=0)))
    by_image = np.array([image.class_confidences[most_shown] for image in seen])
    minimum = float(np.nanquantile(by_image, 0.3)) + 1e-6
    policy = calibrated(streets, model, guard=(f"{classes[most_shown]}:{minimum}",))
    assert [guard.class_index for guard in policy.guards] == [most_shown]
    assert policy.threshold is not None
    let_through = [image for image in seen if not is_guarded(policy, image.class_confidences)]
    assert 0 < len(let_through) < len(seen) == policy.n_calibration
    assert policy.accepted == sum(image.score >= policy.threshold - 1e-4 for image in let_through)


def test_keys_are_grouped_by_the_pattern(streets: str, model: str) -> None:
    keys = [sample.key for sample in list_samples(open_dataset(streets), "calibration")]
    policy = calibrated(streets, model, group_by=r"\d$")
    assert policy.n_calibration == len({key[-1] for key in keys})
    assert policy.n_images == len(keys)
    alone = calibrated(streets, model, group_by=".+")
    apart = calibrated(streets, model)
    assert alone.n_calibration == apart.n_calibration == len(keys)


def test_the_same_images_make_the_same_policy(streets: str, model: str) -> None:
    first, again = (calibrated(streets, model, group_by=r"\d$", max_mean_loss=0.9) for _ in range(2))
    assert replace(again, created_at=first.created_at, policy_id=first.policy_id) == first


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("^[^_]+", ["0001TP", "0016E5"]),
        ("_(.)", ["0", "9"]),
        ("TP|E5", ["TP", "E5"]),
        ("(TP)|(E5)", None),
        ("x*", None),
        ("^7", None),
    ],
)
def test_a_group_is_the_first_match_or_its_first_group(pattern: str, names: list[str] | None) -> None:
    keys = ["0001TP_006690", "0016E5_900000"]
    if names is not None:
        assert group_names(keys, pattern) == names
        return
    with pytest.raises(DatasetError, match=r"finds no group in the image key '00(01TP_006690|16E5_900000)'"):
        group_names(keys, pattern)


def test_images_without_a_truth_are_refused_for_what_they_are(
    streets: str, model: str, tmp_path: Path
) -> None:
    blank = tmp_path / "blank"
    shutil.copytree(streets, blank)
    for mask in (blank / "calibration" / "masks").iterdir():
        Image.new("L", Image.open(mask).size, 255).save(mask)
    with pytest.raises(DatasetError, match="split calibration has no labelled pixel"):
        calibrated(str(blank), model)


def test_a_class_that_the_model_has_not_cannot_be_guarded(streets: str, model: str) -> None:
    with pytest.raises(PolicyError, match="its classes are sky, "):
        calibrated(streets, model, guard=("unicorn:0.5",))
    assert not Path(model, "policy.json").exists()


@pytest.mark.parametrize("is_written", [False, True])
def test_a_calibration_killed_at_its_write_leaves_one_whole_policy_and_the_next_ends_it(
    streets: str, model: str, is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calibrated(streets, model, confidence=0.7)
    written: list[str] = []

    def killed(uri: str, data: bytes) -> None:
        written.append(uri)
        if is_written:
            put(uri, data)
        raise KeyboardInterrupt

    put = storage.put
    with monkeypatch.context() as patched:
        patched.setattr(storage, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            calibrated(streets, model)
    assert written == [f"{model}/policy.json"]
    left = segpipe.load_model(model, "cpu").policy
    assert left is not None
    assert (left == before) != is_written
    assert calibrated(streets, model) == segpipe.load_model(model, "cpu").policy


def counted(seen: list[Seen], data: str, name: str, at_least: int) -> list[tuple[float, bool, bool]]:
    """Score, whether the truth has the class, whether the mask shows it, of each image."""
    dataset, found = open_dataset(data), []
    index = list(dataset.classes).index(name)
    for image in seen:
        labelled = image.truth != dataset.ignore_index
        has, shows = ((mask[labelled] == index).sum() >= at_least for mask in (image.truth, image.mask))
        found.append((image.score, bool(has), bool(shows)))
    return found


@pytest.mark.parametrize("kind", ["miss", "false_alarm"])
@pytest.mark.parametrize("at_least", [1, 120])
def test_a_class_is_promised_by_the_labelled_pixels_of_each_image(
    easy_streets: str, easily_seen: list[Seen], model: str, kind: str, at_least: int
) -> None:
    seen = counted(easily_seen, easy_streets, "tree", at_least)
    concerned = [one for one in seen if one[1] == (kind == "miss")]
    policy = calibrated(
        easy_streets, model, **{kind: ("tree:0.3",)}, min_object_px=at_least, **MASKS_NOT, confidence=0.6
    )
    (promised,) = policy.class_promises
    assert promised.n_images == len(concerned)
    if len(concerned) < 3:
        assert policy.threshold is None
        return
    assert policy.threshold is not None
    wrong = [score for score, has, shows in concerned if has != shows]
    assert promised.found == sum(score >= policy.threshold - 1e-4 for score in wrong)
    assert policy == from_json(storage.read_bytes(f"{model}/policy.json").decode())


def test_a_class_the_model_has_not_cannot_be_promised(streets: str, model: str) -> None:
    with pytest.raises(PolicyError, match=r"cannot promise anything of 'unicorn'.* its classes are sky, "):
        calibrated(streets, model, miss=("unicorn:0.5",))
    assert not Path(model, "policy.json").exists()


def test_a_class_too_rare_for_the_promise_about_masks_is_named_with_its_number(
    easy_streets: str, easily_seen: list[Seen], model: str
) -> None:
    classes = open_dataset(easy_streets).classes
    has = {name: sum(one[1] for one in counted(easily_seen, easy_streets, name, 1)) for name in classes}
    rare = {name: count for name, count in has.items() if 0 < count < 0.9 * len(easily_seen)}
    assert rare
    policy = calibrated(easy_streets, model, max_bad_fraction=0.9)
    (said,) = [line for line in policy.warnings if "says nothing of a class" in line]
    assert all(f"'{name}' {count} (" in said for name, count in rare.items())
    assert all(f"'{name}'" not in said for name in set(classes) - set(rare))
    promised = calibrated(easy_streets, model, max_bad_fraction=0.9, miss=[f"{name}:0.5" for name in rare])
    assert not any("says nothing of a class" in line for line in promised.warnings)


def test_a_policy_that_may_grow_says_so_and_names_the_share_to_draw(streets: str, model: str) -> None:
    policy = calibrated(streets, model, grow=True, draw_share=0.1)
    assert policy.growth is not None
    assert (policy.growth.draw_share, policy.growth.number) == (0.1, 0)
    assert segpipe.load_model(model, "cpu").policy == policy
    assert any(name == "grows" and "10% of all masks" in text for name, text in policy_lines(policy))
    assert calibrated(streets, model).growth is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_iou": None, "max_bad_fraction": None, "max_mean_loss": 0.4}, "not with --max-mean-loss"),
        ({"per": "^a"}, "not with --per"),
        ({"miss": ("car:0.1",)}, "not with --miss"),
        ({"false_alarm": ("car:0.1",)}, "not with --false-alarm"),
        ({"grow": False}, "--draw-share goes with --grow"),
        ({"draw_share": 1e-9}, "--draw-share 1e-09 is below 0.0001: .* could never grow; 0.02 is usual"),
    ],
)
def test_what_cannot_grow_is_said_before_anything_is_read(values: dict[str, Any], said: str) -> None:
    given = {"model": "m", "data": "d", "split": "s", "min_iou": 0.5, "max_bad_fraction": 0.1}
    with pytest.raises(ValueError, match=said):
        CalibrateSettings(**(given | {"grow": True, "draw_share": 0.1} | values))
