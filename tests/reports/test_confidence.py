"""A whole report: what is written where, and that the page is complete by itself."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from plain_policy import make_policy

from segpipe import storage
from segpipe.confidence.certify import BadFraction
from segpipe.confidence.policy import Policy
from segpipe.evaluation.measure import Measurements, summarise
from segpipe.reports.confidence import check_writable, write_report
from segpipe.reports.content import ReportFacts

ABOUT = ReportFacts("s3://models/streets", "0123456789ab", "s3://data/streets", "test", "2025-11-23")
PNGS = {"risk-coverage.png", "calibration.png", "score-iou.png", "score-histogram.png", "class-iou.png"}
CONFUSION = np.array([[80, 10], [5, 25]])


def measured(ious: np.ndarray, scores: np.ndarray, **fields: object) -> Measurements:
    """Measurements with these values; the confidence that is shown is the IoU, blurred."""
    values = {
        "classes": ("ground", "square"),
        "keys": tuple(f"image-{number}" for number in range(len(ious))),
        "image_ious": ious,
        "confidences": np.clip(0.1 + 0.8 * np.nan_to_num(ious), 0, 1),
        "class_confidences": np.full((len(ious), 2), 0.9),
        "scores": {"discriminator": scores, "entropy": -scores, "flip_tta": np.nan_to_num(ious)},
        "confusion": CONFUSION,
    }
    return Measurements(**values | fields)  # type: ignore[arg-type]


def policy() -> Policy:
    scores = np.arange(100.0)
    target = BadFraction(0.5, 0.2)
    return make_policy(scores, scores / 99, "0123456789ab", target, 0.9, "f" * 64, "2025-11-01")


SOME = measured(np.linspace(0.1, 0.9, 30), np.roll(np.linspace(-50.0, 150.0, 30), 5))


def test_the_report_is_five_pictures_and_one_page_anywhere(storage_root: str) -> None:
    url = write_report(SOME, summarise(SOME), policy(), ABOUT, f"{storage_root}/a report/")
    assert url == f"{storage.normalise(storage_root)}/a report/index.html"
    assert {item.key for item in storage.list_objects(f"{storage_root}/a report")} == PNGS | {"index.html"}


def test_the_check_of_the_place_leaves_it_as_it_was(storage_root: str) -> None:
    storage.put(f"{storage_root}/report/index.html", b"an earlier one")
    check_writable(f"{storage_root}/report")
    assert [item.key for item in storage.list_objects(storage_root)] == ["report/index.html"]


def test_the_page_holds_its_pictures_and_asks_for_nothing() -> None:
    source = storage.read_bytes(write_report(SOME, summarise(SOME), policy(), ABOUT, "memory://r")).decode()
    assert not re.search(r"http|<script|<iframe|<object|<embed|url\(|@import", source)
    assert re.findall(r"<link [^>]*>", source) == ['<link rel="icon" href="data:,">']
    assert 'name="viewport" content="width=device-width' in source
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', source))
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', source)
    assert len(shown) == source.count("<img")
    files = [storage.read_bytes(f"memory://r/{name}") for name in PNGS]
    assert sorted(base64.b64decode(picture, validate=True) for picture in shown) == sorted(files)
    for content in files:
        with Image.open(BytesIO(content)) as image:
            image.load()
            assert image.width >= 800


@pytest.mark.parametrize(
    "odd",
    [
        measured(np.array([0.7]), np.array([1.5])),
        measured(np.array([0.1, 0.5, 0.9]), np.array([2.0, 2.0, 2.0])),
        measured(np.array([0.5, 0.5, np.nan]), np.array([1.0, 2.0, 3.0])),
        measured(np.array([0.0, 1.0]), np.array([1.0, 2.0]), classes=("$x_{", "字", "never"),
                 confusion=np.pad(CONFUSION, (0, 1))),
    ],
    ids=["one image", "equal scores", "equal IoUs", "odd classes"],
)  # fmt: skip
def test_odd_measurements_have_a_whole_report(odd: Measurements) -> None:
    accepts_nothing = replace(policy(), threshold=None)
    source = storage.read_bytes(write_report(odd, summarise(odd), accepts_nothing, ABOUT, "memory://odd"))
    assert source.count(b"<img") == 5
    assert source.rstrip().endswith(b"</html>")


def test_ten_thousand_images_make_no_giant_page() -> None:
    random = np.random.default_rng(0)
    ious = random.random(10_000)
    many = measured(ious, ious + random.normal(0, 0.3, 10_000))
    url = write_report(many, summarise(many), policy(), ABOUT, "memory://many")
    assert len(storage.read_bytes(url)) < 3_000_000


def test_reports_load_neither_torch_nor_pyplot() -> None:
    script = (
        "import sys, segpipe.reports.confidence; "
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
