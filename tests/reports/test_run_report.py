"""The page about a labelling run: whole, true to the manifest, and nothing fetched from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_model import write_random_model

from segpipe.cli import run
from segpipe.manifests.query import query


@pytest.fixture
def places(tmp_path: Path, encoded: Callable[..., bytes]) -> tuple[str, str, str]:
    """Source, OUTPUT and model: 14 images, one of them with an odd name, and one file that is none."""
    raw, random = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    for name in [f"{number:02d}.png" for number in range(13)] + ["<script>alert(1)<!--.png"]:
        (raw / name).write_bytes(encoded(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)))
    (raw / "broken.jpg").write_bytes(b"no image")
    return str(raw), str(tmp_path / "out"), write_random_model(str(tmp_path / "model"))


def label(places: tuple[str, str, str], run_id: str, *options: str) -> None:
    source, output, model = places
    assert (
        run(["label", source, output, "--model", model, "--run-id", run_id, "--device", "cpu", *options]) == 0
    )


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(["report", *arguments]) == 0
    return Path(capsys.readouterr().out.strip()).read_text()


def test_the_page_says_what_was_decided_and_shows_it(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    label(places, "night-1", "--confidence-maps")
    page = report(capsys, places[1])
    assert "<h1>0 accepted, 14 to review, 1 failed</h1>" in page
    assert "<td>review</td><td>no_policy</td><td>14</td><td>93.3%</td>" in page
    assert "is the bottleneck" in page
    shown = re.findall(r'alt="(image|mask|doubt) of ([^"]+)"', page)
    assert [kind for kind, _ in shown] == ["image", "mask", "doubt"] * 12, "twelve of the fourteen"
    assert "unreadable: " in page
    assert ">road</li>" in re.sub(r"\s*<span[^>]*></span>\s*", ">", page)


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_name(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    label(places, "night-1")
    page = report(capsys, places[1])
    assert all(found.startswith("data:") for found in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "<script" not in page
    assert not re.search(r"url\(|@import", page)


def test_an_image_that_is_gone_is_said_and_hides_no_other(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    label(places, "night-1")
    for image in Path(places[0]).glob("0*.png"):
        image.unlink()
    page = html.unescape(report(capsys, places[1]))
    assert "cannot be shown: " in page
    assert page.count('alt="mask of') >= 2


def test_what_was_changed_since_is_said_in_place_of_the_picture(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    label(places, "night-1")
    rows = query(places[1], "SELECT image_uri, mask_uri FROM labels WHERE mask_uri IS NOT NULL").to_pylist()
    replaced, changed = rows[:7], rows[7:]
    for row in replaced:
        Path(row["image_uri"]).write_bytes(Path(row["image_uri"]).read_bytes() + b" ")
    for row in changed:
        Path(row["mask_uri"]).write_bytes(Path(row["mask_uri"]).read_bytes() + b" ")
    page = html.unescape(report(capsys, places[1]))
    assert 'alt="mask of' not in page
    assert page.count("was replaced since it was labelled") >= 5
    assert page.count("is not the mask of the manifest") >= 5


def test_the_newest_run_is_shown_or_the_one_that_is_named(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    label(places, "night-1", "--limit", "5")
    label(places, "night-2")
    assert "<h1>0 accepted, 9 to review, 1 failed</h1>" in report(capsys, places[1])
    to = str(tmp_path / "elsewhere" / "page.html")
    assert "<h1>0 accepted, 5 to review, 0 failed</h1>" in report(
        capsys, places[1], "--run", "night-1", "--to", to
    )
    assert Path(to).exists()
    assert (Path(places[1]) / "runs" / "night-2" / "report.html").exists()


def test_a_run_that_is_not_there_is_one_line(
    places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    label(places, "night-1")
    assert run(["report", places[1], "--run", "night-9"]) == 1
    assert "has no run night-9" in capsys.readouterr().err
