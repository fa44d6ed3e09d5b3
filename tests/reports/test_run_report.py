"""The page about a labelling run: whole, true to the manifest, and nothing fetched from elsewhere."""

from __future__ import annotations

import hashlib
import html
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from random_model import write_random_model

from segpipe import storage
from segpipe.cli import run
from segpipe.concurrency import Budget
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.query import query
from segpipe.reports import gallery
from segpipe.tiles import Tiling


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


def shown_from(folder: Path) -> gallery.Shown:
    return gallery.Shown(str(folder), class_palette(3), None, None, Budget(10**9))


def test_pictures_are_made_within_a_budget_and_drawn_small(
    tmp_path: Path, encoded: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flat image is a small file and large in memory; masks are not drawn at full size."""
    rows = [made_row(tmp_path, encoded, number) for number in range(6)]
    alive, most, drawn, changing = [0], [0], [], threading.Lock()
    decode, draw = gallery.decode_scaled, gallery.overlay

    def counted(*arguments: Any) -> Any:
        with changing:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        try:
            return decode(*arguments)
        finally:
            with changing:
                alive[0] -= 1

    def recorded(image: np.ndarray, *others: Any) -> np.ndarray:
        drawn.append(image.shape)
        return draw(image, *others)

    monkeypatch.setattr(gallery, "decode_scaled", counted)
    monkeypatch.setattr(gallery, "overlay", recorded)
    one = rows[0]["image_bytes"] + 28 * 1500 * 900
    show = partial(gallery.gallery_item, shown=replace(shown_from(tmp_path), memory=Budget(one)))
    with ThreadPoolExecutor(6) as pool:
        items = list(pool.map(show, rows))
    assert most == [1]
    assert drawn == [(384, 640, 3)] * 6
    assert [[pane.title for pane in item.panes] for item in items] == [["image", "mask"]] * 6


def made_row(folder: Path, encoded: Callable[..., bytes], number: int) -> dict[str, Any]:
    """What the page asks of the row of a flat image of 1500 x 900 whose mask is class 1 on its right half."""
    mask = np.zeros((900, 1500), np.uint8)
    mask[:, 750:] = 1
    image, png = folder / f"{number}.png", encode_mask(mask, class_palette(3))
    image.write_bytes(encoded(np.full((900, 1500, 3), 40 * number, np.uint8)))
    (folder / f"{number}.mask.png").write_bytes(png)
    blob = storage.read(str(image))
    return {
        "image_uri": str(image), "image_etag": blob.etag, "image_bytes": len(blob.data), "image_height": 900,
        "image_width": 1500, "mask_uri": str(folder / f"{number}.mask.png"),
        "mask_sha256": hashlib.sha256(png).hexdigest(), "decision": "review", "reason": "no_policy",
        "confidence": 0.5, "confidence_map_uri": None, "error": None,
    }  # fmt: skip


def test_the_mask_is_drawn_where_it_is(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    item = gallery.gallery_item(made_row(tmp_path, encoded, 1), shown_from(tmp_path))
    image, mask = (np.asarray(Image.open(BytesIO(pane.png))).astype(int) for pane in item.panes)
    assert image.shape == mask.shape == (192, 320, 3)
    assert abs(image - 40).max() <= 4
    assert abs(mask[:, :155] - [20, 20, 20]).max() <= 6  # half the image's 40, half of class 0's black
    assert abs(mask[:, 165:] - [84, 20, 20]).max() <= 6  # and of class 1's (128, 0, 0)


def test_borders_between_tiles_are_drawn(tmp_path: Path, encoded: Callable[..., bytes]) -> None:
    """900x1500 at 3 pixels to one is 300x500: tiles of 256 start at 0 and 48, and at 0, 128 and 256; borders
    lie in the middle of what they share: row 152, columns 192 and 320. It is drawn at 192x320."""
    shown = replace(shown_from(tmp_path), tiling=Tiling(3.0, (256, 256), 32, (16, 2), (1, 1)))
    item = gallery.gallery_item(made_row(tmp_path, encoded, 1), shown)
    lines = np.asarray(Image.open(BytesIO(item.panes[0].png))).mean(axis=2) > 150
    for axis, borders in ((1, [152]), (0, [192, 320])):
        drawn = np.flatnonzero(lines.mean(axis=axis) > 0.9)
        assert len(borders) <= len(drawn) <= 2 * len(borders)
        assert all(min(abs(at / 0.64 - border) for border in borders) < 3 for at in drawn)


def test_a_run_in_tiles_is_reported_and_planned_as_such(
    tmp_path: Path, places: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output, _ = places
    model = write_random_model(str(tmp_path / "tiled"), scale=1.0, tile=(32, 32), margin=8)
    label((source, output, model), "night-1")
    assert "1 pixels of an image to one of the networks, in tiles of at most 32x32" in report(capsys, output)
    capsys.readouterr()
    assert run(["plan", source, output, "--model", model, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    # 30x40: one tile of 32 high, two of 32 wide.
    assert planned["passes"]["tiles_per_image"] == 2
    assert planned["estimate"]["other_model"] is False


def test_a_deep_image_is_shown_in_the_range_of_the_model(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    row = made_row(tmp_path, encoded, 1)
    deep = encoded(np.full((900, 1500), 1500, np.uint16), "TIFF")
    Path(row["image_uri"]).write_bytes(deep)
    row |= {"image_etag": storage.etag(row["image_uri"]), "image_bytes": len(deep)}
    shown = replace(shown_from(tmp_path), image_range=(1000.0, 2000.0))
    image = np.asarray(Image.open(BytesIO(gallery.gallery_item(row, shown).panes[0].png)))
    assert abs(image.astype(int) - 128).max() <= 4


def test_a_row_that_gives_another_size_than_the_image_has_is_said_and_not_drawn(
    tmp_path: Path, encoded: Callable[..., bytes]
) -> None:
    for wrong in ({"image_height": 90}, {"image_height": 1500, "image_width": 900}):
        row = made_row(tmp_path, encoded, 1) | wrong
        item = gallery.gallery_item(row, shown_from(tmp_path))
        assert item.panes == ()
        assert "cannot be shown" in item.text
