"""The command line as a user meets it: exit status, what is on stdout, and one clear line on stderr."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import BaseModel

from segpipe import cli
from segpipe.config import CalibrateSettings, EvaluateSettings, LabelSettings, TrainSettings
from segpipe.errors import StorageError
from segpipe.manifests.query import query
from segpipe.manifests.reviews import Review, Verdict, append_reviews, item_id

VERBS = {
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "calibrate": CalibrateSettings,
    "plan": None,
    "label": LabelSettings,
    "query": None,
}
HEAVY = ("torch", "pyarrow", "pandas", "prefect", "duckdb", "fsspec", "matplotlib", "scipy", "numpy")
PROMISE = ["--min-iou", "0.6", "--max-bad-fraction", "0.05", "--confidence", "0.9"]
CALIBRATE = ["calibrate", "--model", "m", "--data", "d", "--split", "val"]


def test_help_comes_at_once_because_nothing_heavy_is_imported() -> None:
    script = f"import sys, segpipe.cli; print([name for name in {HEAVY} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n  {verb} " not in listed] == []


@pytest.mark.parametrize(("verb", "settings"), VERBS.items())
def test_the_help_of_a_verb_shows_each_setting_and_its_default(
    verb: str, settings: type[BaseModel] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([verb, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, field in (settings.model_fields if settings else {}).items():
        assert f"--{name.replace('_', '-')}" in said
        if not field.is_required() and field.annotation is not bool and field.default not in (None, ()):
            assert f"[default: {field.default}" in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--model", "m"], "--data"),
        (["train", "--data", "d", "--model", "m", "--epochs", "0"], "--epochs"),
        (["train", "--data", "d", "--model", "m", "--epochs", "many"], "--epochs"),
        (["train", "--data", "d", "--model", "m", "--image-size", "240"], "--image-size"),
        (["train", "--data", "d", "--model", "m", "--gan-loss", "dcgan"], "--gan-loss"),
        (["train", "--data", "d", "--model", "m", "--unlabelled", "s3://b"], "--unlabelled"),
        ([*CALIBRATE, *PROMISE, "--confidence", "1"], "--confidence"),
        (CALIBRATE, "give one target"),
        ([*CALIBRATE, "--min-iou", "0.6"], "--max-bad-fraction"),
        ([*CALIBRATE, *PROMISE, "--max-mean-loss", "0.3"], "--max-mean-loss alone"),
        ([*CALIBRATE, *PROMISE, "--guard", "person"], "--guard"),
        ([*CALIBRATE, *PROMISE, "--guard", "person:2"], "person:0.5"),
        ([*CALIBRATE, *PROMISE, "--group-by", "("], "--group-by"),
        (["label", "s3://bucket"], "OUTPUT"),
        (["label", "a", "b", "--model", "m", "--limit", "0"], "--limit"),
        (["label", "a", "b", "--model", "m", "--shard-images", "0"], "--shard-images"),
        (["label", "a", "b", "--model", "m", "--shard-images", "9" * 20], "--shard-images"),
        (["label", "a", "b", "--model", "m", "--limit", "9" * 20], "--limit"),
        (["label", "a", "b", "--model", "m", "--claim-seconds", "inf"], "--claim-seconds"),
        (["label", "a", "b", "--model", "m", "--decode-seconds", "1e10"], "--decode-seconds"),
        (["review", "list", "out", "--minutes", "inf"], "--minutes"),
        (["review", "list", "out", "--limit", "9" * 20], "--limit"),
        (["query", "out", "SELECT 1", "--format", "xml"], "--format"),
        (["lable"], "lable"),
    ],
)
def test_wrong_usage_exits_2_and_names_what_is_wrong(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert named in said.err.splitlines()[-1]
    assert "pydantic" not in said.err


def test_what_cannot_be_found_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nowhere")
    assert cli.run(["evaluate", "--model", missing, "--data", missing, "--split", "val"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("segpipe: ")
    assert missing in line


def test_an_unexpected_error_is_one_line_unless_debug_asks_for_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segpipe.manifests import query

    monkeypatch.setattr(query, "query", lambda *_: {}["gone"])
    assert cli.run(["query", "out", "SELECT 1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "segpipe: unexpected KeyError: 'gone' (run again with --debug for the traceback)"
    for arguments in (["query", "out", "SELECT 1", "--debug"], ["--debug", "query", "out", "SELECT 1"]):
        assert cli.run(arguments) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_secrets_are_not_shown_with_or_without_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segpipe.manifests import query

    def refuse(*_: object) -> None:
        raise StorageError("cannot read s3://user:hunter2-hunter2@bucket/key:\nrefused")

    monkeypatch.setattr(query, "query", refuse)
    for arguments in (["query", "out", "SELECT 1"], ["query", "out", "SELECT 1", "--debug"]):
        assert cli.run(arguments) == 1
        said = capsys.readouterr()
        assert "hunter2" not in said.out + said.err
        assert "bucket/key: refused" in said.err.splitlines()[-1]


def test_an_interrupted_training_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segpipe.training import run

    def interrupted(_: TrainSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert cli.run(["train", "--data", "d", "--model", "m"]) == 130
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]


def test_training_passes_every_option_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segpipe.training import run

    seen: list[TrainSettings] = []
    result = run.TrainResult("m", "0123456789ab", 3, 2, 0.5, float("nan"), 1.25)
    monkeypatch.setattr(run, "train", lambda settings: seen.append(settings) or result)

    options = [
        "--objective",
        "adversarial",
        "--architecture",
        "plain",
        "--gan-loss",
        "wgan-gp",
        "--epochs",
        "3",
    ]
    options += [
        "--image-size",
        "64x96",
        "--device",
        "cpu",
        "--seed",
        "7",
        "--resume",
        "--learning-rate",
        "0.0002",
    ]
    assert cli.run(["train", "--data", "d", "--model", "m", *options, "--json"]) == 0

    expected = TrainSettings(
        data="d", model="m", objective="adversarial", architecture="plain", gan_loss="wgan-gp", epochs=3,
        image_size="64x96", device="cpu", seed=7, resume=True, learning_rate=0.0002,
    )  # fmt: skip
    assert seen == [expected]
    printed = json.loads(capsys.readouterr().out)
    assert (printed["mean_iou"], printed["pixel_accuracy"]) == (0.5, None)


def write_squares(root: Path, split: str, count: int) -> None:
    """Labelled images of a bright square on a dark ground, each square elsewhere."""
    from segpipe.datasets import write_dataset, write_sample

    dataset = write_dataset(str(root), "squares", ("ground", "square"), 255)
    random = np.random.default_rng(count)
    for number in range(count):
        mask = np.zeros((32, 48), np.uint8)
        top, left = random.integers(0, (16, 32))
        mask[top : top + 16, left : left + 16] = 1
        image = np.repeat(mask[..., None] * 200 + random.integers(0, 40, (*mask.shape, 1)), 3, 2).astype(
            np.uint8
        )
        write_sample(dataset, split, f"{number:03d}", image, mask)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for split, count in (("train", 16), ("val", 4), ("calibration", 60)):
        write_squares(root, split, count)
    return root


Ask = Callable[..., dict[str, Any]]
CERTIFY = ["--min-iou", "0.01", "--max-bad-fraction", "0.2", "--confidence", "0.9"]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """A function that runs a command that must succeed, without noise, and returns its JSON."""

    def run(*arguments: str) -> dict[str, Any]:
        status = cli.run([*arguments, "--json"])
        said = capsys.readouterr()
        assert status == 0, said.err
        assert "Warning" not in said.err
        return json.loads(said.out)

    return run


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the squares, without a policy."""
    model = str(tmp_path_factory.mktemp("trained") / "model")
    options = ["--epochs", "6", "--image-size", "32x48", "--device", "cpu"]
    assert cli.run(["train", "--data", str(squares), "--model", model, *options]) == 0
    return model


@pytest.fixture
def model(trained: str, tmp_path: Path) -> str:
    """A copy of the trained model, to be calibrated or not."""
    return str(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture
def bucket(squares: Path, tmp_path: Path) -> str:
    """Five images, one text under an image's name, and one under its own."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for path in sorted((squares / "calibration" / "images").iterdir())[:5]:
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("camera 3 was wet")
    return str(folder)


def test_evaluate_prints_what_contract_c3_names(squares: Path, trained: str, ask: Ask) -> None:
    measured = ask("evaluate", "--data", str(squares), "--model", trained, "--split", "val")
    names = {"n", "pixel_accuracy", "mean_iou", "per_class_iou", "mean_image_iou", "scores", "groups"}
    names |= {"warnings"}
    assert set(measured) == names
    assert measured["n"] == 4
    assert set(measured["per_class_iou"]) == {"ground", "square"}
    scores = {"discriminator", "adversarial", "max_softmax", "entropy", "soft_dice", "soft_iou", "flip_tta"}
    parts = {"expected_iou", "correctness", "realness", "image_iou", "own_iou", "familiarity"}
    parts |= {"own_accuracy", "own_precision", "sure_precision", "agreement"}
    assert set(measured["scores"]) == scores | parts
    figures = {"aurc", "e_aurc", "augrc", "gap_closed", "spearman"}
    assert all(set(score) == figures for score in measured["scores"].values())


def test_evaluate_prints_tables_for_people(
    squares: Path, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", "--data", str(squares), "--model", trained, "--split", "val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["n", "4"]
    assert ["aurc", "e_aurc", "augrc", "gap_closed", "spearman"] in [line.split() for line in lines]
    assert any(line.split()[:1] == ["max_softmax"] for line in lines)


def test_evaluate_writes_a_report_with_the_numbers_that_it_prints(
    squares: Path, model: str, tmp_path: Path, ask: Ask
) -> None:
    evaluate = ["evaluate", "--data", str(squares), "--model", model, "--split", "val"]
    policy = ask("calibrate", "--data", str(squares), "--model", model, "--split", "calibration", *CERTIFY)
    measured = ask(*evaluate, "--report", str(tmp_path / "report"))
    assert measured == ask(*evaluate)

    page = (tmp_path / "report/index.html").read_text()
    assert len(list((tmp_path / "report").glob("*.png"))) == page.count("<img") == 5
    shown = {float(number) for number in re.findall(r'<data value="([^"]+)">', page)}
    merits = [value for score in measured["scores"].values() for value in score.values()]
    quality = [measured[name] for name in ("pixel_accuracy", "mean_iou", "mean_image_iou")]
    printed = {*quality, *merits, *measured["per_class_iou"].values()} - {None}
    assert printed <= shown
    assert policy["policy_id"] in page
    assert "at most 20% of accepted masks have IoU below 0.01" in page
    assert "prove nothing" in page


def test_a_report_on_the_calibration_images_says_so(
    squares: Path, model: str, tmp_path: Path, ask: Ask
) -> None:
    on_calibration = ["--data", str(squares), "--model", model, "--split", "calibration"]
    ask("calibrate", *on_calibration, *CERTIFY)
    ask("evaluate", *on_calibration, "--report", str(tmp_path / "report"))
    assert "no independent check" in (tmp_path / "report/index.html").read_text()


def test_a_damaged_policy_hinders_no_report_and_is_spoken_of(
    squares: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(model) / "policy.json").write_text("{")
    evaluate = ["evaluate", "--data", str(squares), "--model", model, "--split", "val"]
    assert cli.run([*evaluate, "--report", str(tmp_path / "report")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("n ")
    damaged, *_, written = said.err.splitlines()
    assert "policy.json is not JSON" in damaged
    assert written == f"report: {tmp_path}/report/index.html"
    page = (tmp_path / "report/index.html").read_text()
    assert "policy.json is not JSON" in page
    assert "has no policy" not in page


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    squares: Path, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    evaluate = ["evaluate", "--data", str(squares), "--model", trained, "--split", "val", "--json"]
    for place in ("file", "file/report"):
        assert cli.run([*evaluate, "--report", str(tmp_path / place)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert str(tmp_path / "file") in line
        assert "unexpected" not in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_without_a_policy_all_images_go_to_review_and_the_way_out_is_named(
    bucket: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.run(["label", bucket, str(output), "--model", model]) == 0
    said = capsys.readouterr().out
    table = [line.split() for line in said.splitlines()]
    assert table[:3] == [
        ["decision", "reason", "images", "share"],
        ["review", "no_policy", "5", "83.3%"],
        ["failed", "unreadable", "1", "16.7%"],
    ]
    assert "6 images (1 .txt left aside)" in said
    assert "every mask goes to review" in said
    assert f"segpipe calibrate --model {model} " in said
    assert f"{output}/manifests" in said


def test_calibrate_then_label_accepts_with_the_promise_in_sight(
    squares: Path, bucket: str, model: str, tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = ask("calibrate", "--data", str(squares), "--model", model, "--split", "calibration", *CERTIFY)
    assert policy["threshold"] is not None
    assert json.loads((Path(model) / "policy.json").read_text())["policy_id"] == policy["policy_id"]

    assert cli.run(["label", bucket, str(tmp_path / "out"), "--model", model]) == 0
    said = capsys.readouterr().out
    assert "at most 20% of accepted masks have IoU below 0.01, with 90% confidence" in said
    assert set(pd.read_parquet(tmp_path / "out/manifests").reason) <= {
        "confident",
        "low_confidence",
        "unreadable",
    }


def test_calibrate_says_what_is_promised_guarded_and_shown(
    squares: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-mean-loss", "0.95", "--guard", "square:0.01", "--guard", "ground:0.02"]
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    assert cli.run(["calibrate", *where, *options]) == 0
    policy = json.loads((Path(model) / "policy.json").read_text())
    said = capsys.readouterr().out
    assert "accepted masks have a mean IoU of at least 0.05, with 90% confidence" in said
    assert "square below 0.01 goes to review" in said
    assert "ground below 0.02 goes to review" in said
    assert f"calibration error  {policy['calibration_error']:.3f}" in said
    assert policy["policy_id"] in said


def test_a_promise_about_a_class_alone_is_said_and_routes_and_is_audited(
    squares: Path,
    bucket: str,
    model: str,
    tmp_path: Path,
    ask: Ask,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    assert cli.run(["calibrate", *where, "--false-alarm", "square:0.99", "--min-object-px", "100000"]) == 0
    said = capsys.readouterr().out
    assert "of the images without 'square' (at least 100000 pixels of it) at most 99% are accepted" in said
    assert "is right or wrong as a whole" in said
    output = str(tmp_path / "labels")
    found = ask("label", bucket, output, "--model", model, "--audit-share", "1")
    assert found["accepted"] > 0
    assert cli.run(["audit", output]) == 0
    said = capsys.readouterr().out
    assert "nothing is promised of masks as such; what is promised of classes follows" in said
    assert re.search(r"false alarm square +not yet enough: no audited image without 'square' is known", said)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--miss", "square:0.1", "--min-object-px", "100000"], "with 'square' are needed (there are 0)"),
        (["--false-alarm", "ground:0.1"], "without 'ground' are needed (there are 0)"),
    ],
)
def test_of_a_class_that_no_image_has_or_every_one_nothing_is_proven_and_nothing_accepted(
    squares: Path,
    bucket: str,
    model: str,
    tmp_path: Path,
    ask: Ask,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    needed: str,
) -> None:
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    assert cli.run(["calibrate", *where, *CERTIFY, *options]) == 0
    assert f"22 more labelled images {needed}" in capsys.readouterr().out  # 0.9^22 is below 0.1
    output = str(tmp_path / "labels")
    found = ask("label", bucket, output, "--model", model, "--audit-share", "1")
    assert (found["accepted"], found["review"]) == (0, 5)
    assert cli.run(["audit", output]) == 0
    assert "5 in review are not answered" in capsys.readouterr().out.replace("masks ", "")


def test_answers_late_twice_changed_and_out_of_order_end_in_the_same_policy(
    squares: Path, model: str, tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two nights of 25 images, all drawn; calibration alone proves nothing of masks that must be perfect."""
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    policy = ask(
        "calibrate", *where, "--min-iou", "0.999", "--max-bad-fraction", "0.4", "--confidence", "0.6",
        "--grow", "--draw-share", "1",
    )  # fmt: skip
    assert policy["threshold"] is None
    source, output = tmp_path / "raw", str(tmp_path / "labels")
    source.mkdir()
    images = sorted((squares / "calibration" / "images").iterdir())
    nights = [labelled(images[start : start + 25], source, output, model, ask) for start in (0, 25)]
    say(output, nights[1], "accepted", 1)  # the first night is still open
    (found,) = cli_json(ask, "recalibrate", output)
    assert (found["counted"], found["held_back"], found["written"]) == (0, 25, False)
    say(output, nights[0], "rejected", 2)
    say(output, nights[1], "accepted", 3)  # once more
    (found,) = cli_json(ask, "recalibrate", output)
    assert (found["counted"], found["written"]) == (50, False)
    say(output, nights[0], "accepted", 4)  # they have changed their minds
    say(output, nights[0][:5], "rejected", 0)  # by a clock set back: an older answer, which holds no more
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(cli.run, [["recalibrate", output]] * 2)) == [0, 0]
    capsys.readouterr()
    (found,) = cli_json(ask, "recalibrate", output)
    assert (found["number"], found["counted"]) == (1, 50)
    assert found["threshold"] == policy["growth"]["thresholds"][-1]
    third = labelled(images[50:], source, output, model, ask)
    assert {row["decision"] for row in third} == {"accepted"}
    say(output, third, "accepted", 5)
    (audited,) = cli_json(ask, "audit", output)
    assert (audited["audited"], audited["bad"], audited["open"]) == (10, 0, 0)


def labelled(images: list[Path], source: Path, output: str, model: str, ask: Ask) -> list[dict[str, Any]]:
    """The rows of these images, which have come since the last run."""
    for path in images:
        shutil.copy(path, source)
    run = ask("label", str(source), output, "--model", model, "--audit-share", "1")
    return query(output, f"SELECT * FROM labels WHERE run_id = '{run['run_id']}'").to_pylist()


def say(output: str, rows: list[dict[str, Any]], verdict: Verdict, day: int) -> None:
    """The same of all these masks, on a day."""
    shared = ("image_uri", "image_etag", "model_id", "audit", "inclusion_probability")
    append_reviews(
        output,
        [
            Review(
                **{name: row[name] for name in shared}, verdict=verdict,
                review_id=f"{row['image_uri']} {day}", draft_mask_sha256=row["mask_sha256"],
                item_id=item_id(row["image_uri"], row["image_etag"], row["model_id"], row["mask_sha256"]),
                final_mask_uri=row["mask_uri"], final_mask_sha256=row["mask_sha256"], draft_iou=None,
                overlap_pixels=0, reviewer=None, minutes=None, origin="test",
                reviewed_at=datetime(2026, 1, 1 + day, tzinfo=UTC),
            )
            for row in rows
        ],
    )  # fmt: skip


def cli_json(ask: Ask, *arguments: str) -> list[dict[str, Any]]:
    """What a command that prints a list prints."""
    return cast("list[dict[str, Any]]", ask(*arguments))


def test_a_certificate_per_group_is_said_group_by_group(
    squares: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    assert cli.run(["calibrate", *where, *CERTIFY, "--per", r"[0-5](?=\d\b)"]) == 0
    said = capsys.readouterr().out
    policy = json.loads((Path(model) / "policy.json").read_text())
    assert [one["group"] for one in policy["certificates"]] == list("012345")
    assert all(f"threshold of {group}" in said for group in "012345")
    assert policy["threshold"] is None


def test_calibrate_prints_the_policy_as_it_is_kept(squares: Path, model: str, ask: Ask) -> None:
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    printed = ask("calibrate", *where, *CERTIFY, "--group-by", "^..", "--guard", "square:0.1")
    assert printed == json.loads((Path(model) / "policy.json").read_text())
    assert (printed["n_calibration"], printed["n_images"]) == (6, 60)  # 000 to 059
    assert (printed["min_iou"], printed["max_bad_fraction"]) == (0.01, 0.2)
    assert printed["guards"] == [{"class_name": "square", "class_index": 1, "min_confidence": 0.1}]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--guard", "circle:0.5"], "'circle', the model has no such class: its classes are ground, square"),
        (["--group-by", r"^x\d"], r"'^x\d' finds no group in the image key '000'"),
        (["--miss", "circle:0.5"], "'circle', the model has no such class: its classes are ground, square"),
        (["--per", "^x+"], "finds no group in any image key, such as '000'"),
        (["--per", r"^\d"], r"'^\d' finds another group in the image key '000' than in the address"),
        (["--promise-about", "masks"], "has no groups"),
    ],
)
def test_a_guard_or_group_that_does_not_fit_is_one_line_and_leaves_no_policy(
    squares: Path, model: str, options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(squares), "--model", model, "--split", "calibration"]
    assert cli.run(["calibrate", *where, *CERTIFY, *options]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert named in said.err.splitlines()[-1]
    assert not (Path(model) / "policy.json").exists()


def test_label_says_whether_it_tested_for_drift(
    squares: Path, bucket: str, model: str, tmp_path: Path, ask: Ask
) -> None:
    assert ask("label", bucket, str(tmp_path / "reviewed"), "--model", model)["drift"] is None
    ask("calibrate", "--data", str(squares), "--model", model, "--split", "calibration", *CERTIFY)
    options = ["--model", model, "--drift-false-alarm-rate", "0.01"]
    assert ask("label", bucket, str(tmp_path / "out"), *options)["drift"] == {
        "p_value": None,
        "distance": None,
        "n_scores": 5,
        "alarm": False,
        "false_alarm_rate": 0.01,
        "tolerance": 0.0,
        "earlier_runs": 0,
    }


def test_label_writes_confidence_maps_when_asked(bucket: str, model: str, tmp_path: Path, ask: Ask) -> None:
    ask("label", bucket, str(tmp_path / "out"), "--model", model, "--confidence-maps")
    rows = pd.read_parquet(tmp_path / "out/manifests")
    mapped = rows[rows.decision != "failed"]
    assert [Path(uri).name for uri in mapped.confidence_map_uri] == [
        Path(uri).name for uri in mapped.mask_uri
    ]
    for row in mapped.itertuples():
        with Image.open(row.confidence_map_uri) as stored:
            assert (stored.mode, stored.size) == ("L", (row.image_width, row.image_height))
    assert rows[rows.decision == "failed"].confidence_map_uri.isna().all()


def test_plan_says_what_label_would_do_and_writes_nothing(
    bucket: str, model: str, tmp_path: Path, ask: Ask
) -> None:
    output = tmp_path / "out"
    planned = ask("plan", bucket, str(output), "--model", model)
    assert (planned["images"], planned["shards"], planned["already_done"]) == (6, 1, 0)
    assert planned["skipped"] == {".txt": 1}
    assert not output.exists()
    assert ask("plan", bucket, str(output), "--model", model, "--limit", "2")["images"] == 2


def test_label_goes_on_where_the_last_run_ended(bucket: str, model: str, tmp_path: Path, ask: Ask) -> None:
    output = str(tmp_path / "out")
    first = ask("label", bucket, output, "--model", model, "--limit", "2")
    rest = ask("label", bucket, output, "--model", model, "--run-id", "the-rest")
    again = ask("label", bucket, output, "--model", model, "--run-id", "the-rest")
    nothing = ask("label", bucket, output, "--model", model)

    assert [run["planned"] for run in (first, rest, again, nothing)] == [2, 4, 4, 0]
    assert (rest["run_id"], rest["already_done"], nothing["already_done"]) == ("the-rest", 2, 6)
    assert rest["accepted"] + rest["review"] + rest["failed"] == 4
    assert rest["seconds"] > 0
    assert rest["images_per_second"] == pytest.approx(4 / rest["seconds"])
    assert set(rest["legs"]) >= {"read", "decode", "infer", "encode", "write"}
    assert len(pd.read_parquet(f"{output}/manifests")) == 6


@pytest.mark.parametrize("files", [None, {}, {"readme.txt": "no images here"}])
def test_label_fails_when_there_is_nothing_to_label(
    files: dict[str, str] | None, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    if files is not None:
        source.mkdir()
        for name, text in files.items():
            (source / name).write_text(text)
    assert cli.run(["label", str(source), str(tmp_path / "out"), "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(source) in line


def test_an_interrupted_label_says_how_to_go_on_and_does(
    bucket: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from segpipe.labeling import ledger

    commit, commits = ledger.commit_part, []

    def interrupted_after_the_first(*arguments: Any) -> bool:
        if commits:
            raise KeyboardInterrupt
        commits.append(arguments)
        return commit(*arguments)

    label = ["label", bucket, str(tmp_path / "out"), "--model", model, "--shard-images", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "commit_part", interrupted_after_the_first)
        assert cli.run(label) == 130
    advice = capsys.readouterr().err.splitlines()[-1]
    run_id = advice.split("--run-id ")[1]

    assert ask(*label, "--run-id", run_id)["planned"] == 6
    assert len(pd.read_parquet(tmp_path / "out/manifests")) == 6


def test_query_prints_each_format(
    bucket: str, model: str, tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    ask("label", bucket, output, "--model", model)
    sql = "SELECT decision, count(*) AS n FROM latest GROUP BY ALL ORDER BY n"
    printed = {}
    for layout in ("table", "json", "csv"):
        assert cli.run(["query", output, sql, "--format", layout]) == 0
        printed[layout] = capsys.readouterr().out
    assert json.loads(printed["json"]) == [{"decision": "failed", "n": 1}, {"decision": "review", "n": 5}]
    assert printed["csv"] == "decision,n\nfailed,1\nreview,5\n"
    assert [line.split() for line in printed["table"].splitlines()] == [
        ["decision", "n"],
        ["failed", "1"],
        ["review", "5"],
    ]


def test_a_reader_that_stops_early_is_no_error(bucket: str, model: str, tmp_path: Path, ask: Ask) -> None:
    output = str(tmp_path / "out")
    ask("label", bucket, output, "--model", model)
    sql = "SELECT * FROM labels, range(2000)"
    command = f"{sys.executable} -m segpipe query {output} '{sql}' --format csv | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("image_uri,")
    assert done.stderr == ""


def every_text() -> list[tuple[list[str], str]]:
    """Commands that are right but for one text that is empty, of an argument or an option; and its name."""
    return [
        ([*path, *(part for one in command.params for part in given(one, empty))], named(empty))
        for path, command in commands(cli.cli, [])
        for empty in command.params
        if empty.type.name == "text"
    ]


def given(parameter: click.Parameter, empty: click.Parameter) -> list[str]:
    """As on the command line; nothing for an option that may be left out."""
    if parameter is not empty and not parameter.required:
        return []
    value = "" if parameter is empty else value_of(parameter)
    return [parameter.opts[0], value] if isinstance(parameter, click.Option) else [value]


def named(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name


def commands(group: click.Group, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, [*path, name])
        else:
            yield [*path, name], command


def value_of(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Choice):
        return str(parameter.type.choices[0])
    return "project" if parameter.name == "project" else "train"


EMPTY = every_text()


def test_every_command_takes_some_text() -> None:
    assert len(EMPTY) > 60
    assert {name for name, *_ in (arguments for arguments, _ in EMPTY)} >= {
        "train",
        "label",
        "import",
        "split",
    }


@pytest.mark.parametrize(
    ("arguments", "named"), EMPTY, ids=[f"{' '.join(one[:2])} {name}" for one, name in EMPTY]
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_text_is_wrong_usage_everywhere(
    arguments: list[str], named: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([value if one == "" else one for one in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert last.endswith("it is empty: give a value, or leave it out")
    assert f"'{named}'" in last


@pytest.mark.parametrize("name", ["a/b", "train/", "..", ".", "a\\b", "tr\nain"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "d", "--model", "m", "--split"],
        ["train", "--data", "d", "--model", "m", "--val-split"],
        ["inspect", "d", "--split"],
        ["split", "d", "t", "--by", "x", "--split"],
        ["evaluate", "--model", "m", "--data", "d", "--split"],
        [*CALIBRATE, *PROMISE, "--split"],
        ["adopt", "net", "--data", "d", "--model", "m", "--split"],
        ["promote", "--line", "l", "--candidate", "c", "--data", "d", "--split"],
    ],
    ids=lambda command: command[0],
)
def test_a_split_is_the_name_of_one_folder(
    command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*command, name]) == 2
    assert "is no split: give the name of one folder of the data set, as in train" in capsys.readouterr().err
