"""Exports, read back by each format's own reader or one written for the test."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from accepted_output import CLASSES, Labelled, accept, png_of
from deep_images import png16
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from labelled_layouts import counts
from matplotlib.path import Path as Outline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools.coco import COCO

from segpipe import storage
from segpipe.cli import run
from segpipe.datasets import list_samples, open_dataset, read_image, read_sample
from segpipe.errors import StorageError
from segpipe.exchange.export import export
from segpipe.exchange.exports.polygons import polygons
from segpipe.exchange.exports.runs import column_runs, row_runs
from segpipe.exchange.exports.table import EXPORTS
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part

FORMATS = tuple(EXPORTS)


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def read_indexed_png(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    dataset = open_dataset(str(target))
    assert (dataset.classes, dataset.ignore_index) == (CLASSES, 255)
    for sample in list_samples(dataset, "train"):
        yield sample.key, read_sample(dataset, sample)[1]


def read_coco(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(target / "annotations" / "train.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            region = coco.annToMask(annotation).astype(bool)
            mask[region] = annotation["category_id"] - 1
            assert annotation["area"] == region.sum()
            left, top, width, height = annotation["bbox"]
            assert region[top : top + height, left : left + width].sum() == region.sum()
        assert (target / "train" / image["file_name"]).exists()
        yield image["file_name"].rpartition(".")[0], mask


def read_voc(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    lines = (target / "labelmap.txt").read_text().splitlines()
    assert lines[2] == "cell, round:128,0,0::"
    for key in (target / "ImageSets" / "Segmentation" / "train.txt").read_text().split("\n")[:-1]:
        assert len(list((target / "JPEGImages").glob(f"{key}.*"))) == 1
        yield key, pixels_of(target / "SegmentationClass" / f"{key}.png")


def read_cityscapes(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    labels = json.loads((target / "labels.json").read_text())
    assert [label["name"] for label in labels] == list(CLASSES)
    for path in sorted((target / "gtFine" / "train").rglob("*_gtFine_labelIds.png")):
        stem = path.name.removesuffix("_gtFine_labelIds.png")
        image = target / "leftImg8bit" / "train" / "segpipe" / f"{stem}_leftImg8bit.png"
        mask = pixels_of(path)
        assert pixels_of(image).shape[:2] == mask.shape
        colours = pixels_of(path.with_name(f"{stem}_gtFine_color.png"))
        for label in labels:
            assert (colours[mask == label["id"]] == label["color"]).all()
        yield stem.removeprefix("segpipe_"), mask


def read_cvat(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    root = ElementTree.parse(target / "annotations.xml").getroot()
    names = [label.findtext("name") for label in root.findall("meta/job/labels/label")]
    assert names == list(CLASSES)
    for image in root.findall("image"):
        mask = np.full((int(image.attrib["height"]), int(image.attrib["width"])), 255, np.uint8)
        for drawn in image.findall("mask"):
            left, top, width, height = (
                int(drawn.attrib[name]) for name in ("left", "top", "width", "height")
            )
            runs = [int(run) for run in drawn.attrib["rle"].split(",")]
            region = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width).astype(bool)
            mask[top : top + height, left : left + width][region] = names.index(drawn.attrib["label"])
        yield image.attrib["name"].rpartition(".")[0], mask


def read_yolo_seg(target: Path) -> Iterator[tuple[str, np.ndarray]]:
    description = yaml.safe_load((target / "data.yaml").read_text())
    assert description["names"] == dict(enumerate(CLASSES))
    for image in sorted((target / description["train"]).iterdir()):
        height, width = pixels_of(image).shape[:2]
        mask = np.full((height, width), 255, np.uint8)
        for line in (target / "labels" / "train" / f"{image.stem}.txt").read_text().splitlines():
            number, *values = line.split()
            corners = np.array(values, float).reshape(-1, 2)
            assert ((corners >= 0) & (corners <= 1)).all()
            mask[filled(corners, (height, width))] = int(number)
        yield image.stem, mask


def filled(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre lies in a polygon."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    centres = np.stack([(columns.ravel() + 0.5) / shape[1], (rows.ravel() + 0.5) / shape[0]], axis=1)
    return Outline(np.concatenate([corners, corners[:1]])).contains_points(centres).reshape(shape)


READERS = {
    "indexed-png": read_indexed_png,
    "coco": read_coco,
    "voc": read_voc,
    "cityscapes": read_cityscapes,
    "yolo-seg": read_yolo_seg,
    "cvat": read_cvat,
}


@pytest.mark.parametrize("layout", FORMATS)
def test_masks_come_back_as_they_were(labelled: Labelled, tmp_path: Path, layout: str) -> None:
    target = tmp_path / "exported"
    result = export(labelled.output, str(target), layout, "train")
    assert result.images == len(labelled.masks)
    found = dict(READERS[layout](target))
    assert len(found) == len(labelled.masks)
    for key, mask in found.items():
        assert np.array_equal(mask, labelled.mask_of(target, key)), key


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_run_lengths_and_polygons_keep_every_pixel(region: np.ndarray) -> None:
    runs = row_runs(region)
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(region.shape), region)
    columns = column_runs(region)
    assert np.array_equal(np.repeat(np.arange(len(columns)) % 2, columns).reshape(region.T.shape).T, region)
    union, area = np.zeros_like(region), 0.0
    for polygon in polygons(region):
        union |= filled(polygon, region.shape)
        area += shoelace(polygon) * region.size
    assert np.array_equal(union, region)
    assert area == pytest.approx(region.sum())


def shoelace(corners: np.ndarray) -> float:
    """The area of a closed polygon."""
    (x, y), (next_x, next_y) = corners[:-1].T, corners[1:].T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def test_what_is_exported_can_be_trained_on_and_says_where_it_is_from(
    labelled: Labelled, storage_root: str
) -> None:
    target = storage.join(storage_root, "exported")
    export(labelled.output, target, "indexed-png", "night")
    dataset = open_dataset(target)
    assert len(list_samples(dataset, "night")) == len(labelled.masks)
    index = list(csv.DictReader(io.StringIO(storage.read_bytes(f"{target}/images.csv").decode())))
    assert {row["image_uri"] for row in index} == set(labelled.masks)
    assert all(row["image_etag"] and len(row["mask_sha256"]) == 64 for row in index)


def test_a_turned_photo_is_exported_as_people_see_it(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(content, "JPEG", exif=exif)
    output = str(tmp_path / "labels")
    row = accept(tmp_path / "raw" / "p.jpg", content.getvalue(), np.ones((10, 4), np.uint8), output, make_row)
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([row], CLASSES))
    export(output, str(tmp_path / "voc"), "voc", "train")
    (image,) = (tmp_path / "voc" / "JPEGImages").iterdir()
    assert image.suffix == ".png"
    assert pixels_of(image).shape == (10, 4, 3)


def test_deep_images_are_exported_as_the_model_saw_them(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    values = np.random.default_rng(0).integers(1000, 2001, (4, 6), np.uint16)
    plain, content = png_of(values), io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    output, mask = str(tmp_path / "labels"), np.ones((4, 6), np.uint8)
    rows = [
        accept(tmp_path / "raw" / f"{run_id}.tif", data, mask, output, make_row, run_id=run_id)
        for run_id, data in (("with", plain), ("without", content.getvalue()), ("lost", plain))
    ]
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table(rows, CLASSES))
    storage.put(f"{output}/runs/with/run.json", b'{"image_range": [1000, 2000]}')
    storage.put(f"{output}/runs/without/run.json", b'{"image_range": null}')
    export(output, str(tmp_path / "set"), "indexed-png", "train")
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.image_range is None
    found = {one.key.split("-")[0]: read_image(dataset, one) for one in list_samples(dataset, "train")}
    np.testing.assert_array_equal(found["with"][..., 0], np.rint((values - 1000.0) / 1000 * 255))
    for name in ("without", "lost"):
        np.testing.assert_array_equal(found[name][..., 0], (values * 255.0 / 65535).round())


def test_colour_of_16_bits_is_exported_as_8(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    values = np.arange(0, 9 << 12, 1 << 12, dtype=np.uint16).reshape(1, 3, 3)
    data = png16(np.repeat(values, 2, axis=0), 2)
    output = str(tmp_path / "labels")
    row = accept(tmp_path / "raw" / "p.png", data, np.ones((2, 3), np.uint8), output, make_row)
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([row], CLASSES))
    export(output, str(tmp_path / "voc"), "voc", "train")
    (image,) = (tmp_path / "voc" / "JPEGImages").iterdir()
    assert image.read_bytes()[24] == 8  # bits a channel, in the header of a PNG
    assert pixels_of(image)[0].ravel().tolist() == [value << 4 for value in range(9)]


def test_an_image_that_changed_is_left_out_and_said(
    labelled: Labelled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (labelled.raw / "noise.png").unlink()
    (labelled.raw / "all one.png").write_bytes(png_of(np.zeros((5, 8, 3), np.uint8)))
    caplog.set_level("INFO", "segpipe")
    assert export(labelled.output, str(tmp_path / "t"), "coco", "train").images == len(labelled.masks) - 2
    assert "noise.png is left out: it is not there any more" in caplog.text
    assert "all one.png is left out: it was replaced" in caplog.text


def test_class_names_beyond_the_first_plane_of_unicode_are_yaml(
    tmp_path: Path, make_row: Callable[..., Row]
) -> None:
    output = str(tmp_path / "labels")
    row = accept(
        tmp_path / "raw" / "a.png", png_of(np.zeros((2, 2, 3), np.uint8)), np.zeros((2, 2), np.uint8),
        output, make_row,
    )  # fmt: skip
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([row], ('\N{AUTOMOBILE} "it"',)))
    export(output, str(tmp_path / "yolo"), "yolo-seg", "train")
    description = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert description["names"] == {0: '\N{AUTOMOBILE} "it"'}


@pytest.mark.parametrize("layout", FORMATS)
def test_each_mask_that_was_changed_is_left_out_by_name(
    labelled: Labelled, tmp_path: Path, layout: str
) -> None:
    changed, truncated, *_ = sorted(Path(labelled.output, "masks").rglob("*.png"))
    changed.write_bytes(encode_mask(np.zeros((17, 13), np.uint8), class_palette(3)))
    truncated.write_bytes(truncated.read_bytes()[:60])
    result = export(labelled.output, str(tmp_path / "t"), layout, "train")
    assert (result.images, result.left_out) == (len(labelled.masks) - 2, 2)
    with (tmp_path / "t" / "left_out.csv").open() as file:
        reasons = {row["reason"] for row in csv.DictReader(file)}
    assert reasons == {f"{mask} is not the mask of the manifest: restore it" for mask in (changed, truncated)}


def test_a_folder_that_is_not_empty_and_an_empty_export_are_refused(
    labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert run(["export", labelled.output, str(tmp_path / "full"), "--format", "voc"]) == 1
    assert "is not empty: export to a folder of its own" in capsys.readouterr().err
    assert run(["export", labelled.output, str(tmp_path / "ok"), "--format", "voc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(labelled.masks)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("split", ["", "/abs", "../x", "a/b", "..", " "])
def test_a_split_that_is_no_folder_name_is_wrong_usage(
    layout: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "t"
    assert run(["export", "/nowhere", str(target), "--format", layout, "--split", split]) == 2
    assert "--split" in capsys.readouterr().err
    assert not target.exists()


def exported_masks(target: Path, layout: str) -> dict[str, np.ndarray]:
    return dict(READERS[layout](target))


@pytest.mark.parametrize("layout", FORMATS)
def test_an_image_beyond_the_usual_limit_is_exported(
    tmp_path: Path, make_row: Callable[..., Row], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As label --max-image-pixels accepted it: the row says how large the image is."""
    monkeypatch.setattr("segpipe.exchange.exports.items.MAX_PIXELS", 100)
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:20] = 1
    output = str(tmp_path / "labels")
    content = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 4), np.uint8), "RGBA").save(content, "TIFF")
    row = accept(tmp_path / "raw" / "a.tif", content.getvalue(), mask, output, make_row, image_width=30,
                 image_height=20)  # fmt: skip
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([row], CLASSES))
    result = export(output, str(tmp_path / "t"), layout, "train")
    assert (result.images, result.left_out) == (1, 0)
    (found,) = exported_masks(tmp_path / "t", layout).values()
    assert np.array_equal(found == 1, mask == 1)


def odd_images() -> dict[str, bytes]:
    """What label accepts, by name."""
    pixels = np.zeros((4, 6, 3), np.uint8)

    def encoded(image: Image.Image, layout: str, **options: Any) -> bytes:
        content = io.BytesIO()
        image.save(content, layout, **options)
        return content.getvalue()

    grey16 = Image.fromarray(np.zeros((4, 6), np.uint16))
    rgb = Image.fromarray(pixels)
    bad_exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    text = PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    return {
        "bad-exif.jpg": encoded(rgb, "JPEG", exif=bad_exif),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(rgb.convert("L"), "JPEG"),
        "long text.png": encoded(rgb, "PNG", pnginfo=text),
        "palette.png": encoded(rgb.convert("P"), "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "grey16.tif": encoded(grey16, "TIFF"),
        "one.gif": encoded(rgb.convert("P"), "GIF"),
        "a.webp": encoded(rgb, "WEBP"),
        "jpeg under another name.tif": encoded(rgb, "JPEG"),
    }


@pytest.mark.parametrize("layout", FORMATS)
def test_every_kind_of_image_that_label_accepts_is_exported(
    tmp_path: Path, make_row: Callable[..., Row], layout: str
) -> None:
    output, mask = str(tmp_path / "labels"), np.ones((4, 6), np.uint8)
    rows = [
        accept(tmp_path / "raw" / name, content, mask, output, make_row)
        for name, content in odd_images().items()
    ]
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table(rows, CLASSES))
    result = export(output, str(tmp_path / "t"), layout, "train")
    assert (result.images, result.left_out) == (len(rows), 0)
    found = exported_masks(tmp_path / "t", layout).values()
    assert [counts(mask) for mask in found] == [{1: 24}] * len(rows)
    for path in (tmp_path / "t").rglob("*"):
        if path.suffix in (".jpg", ".png"):
            assert Image.open(path).size == (6, 4)


def test_what_cannot_be_read_any_more_is_named_and_counted(
    labelled: Labelled, tmp_path: Path, make_row: Callable[..., Row], capsys: pytest.CaptureFixture[str]
) -> None:
    row = accept(
        tmp_path / "raw" / "z.png", b"no image", np.ones((2, 2), np.uint8), labelled.output, make_row
    )
    assert commit_part(labelled.output, date(2026, 11, 25), "s", 0, rows_table([row], CLASSES))
    next(Path(labelled.output, "masks").rglob("*noise*")).unlink()
    assert run(["export", labelled.output, str(tmp_path / "t"), "--format", "voc", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert (result["images"], result["left_out"]) == (len(labelled.masks) - 1, 2)
    assert "z.png is left out: no image: it begins with b'no image'" in said.err
    with (tmp_path / "t" / "left_out.csv").open() as file:
        assert {Path(one["image_uri"]).name for one in csv.DictReader(file)} == {"z.png", "noise.png"}


def test_an_export_of_which_nothing_can_be_read_says_why(
    labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(labelled.raw)
    assert run(["export", labelled.output, str(tmp_path / "t"), "--format", "voc"]) == 1
    assert "none of 6 images" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("layout", FORMATS)
def test_a_stopped_export_does_not_look_whole(labelled: Labelled, tmp_path: Path, layout: str) -> None:
    changed = next(Path(labelled.output, "masks").rglob("*noise*"))
    original = changed.read_bytes()
    changed.unlink()
    changed.mkdir()
    target = tmp_path / "t"
    with pytest.raises(StorageError, match="is a folder and no file"):
        export(labelled.output, str(target), layout, "train")
    assert "This export has not ended" in (target / "export-unfinished.txt").read_text()
    assert not (target / "images.csv").exists()
    changed.rmdir()
    changed.write_bytes(original)
    export(labelled.output, str(tmp_path / "again"), layout, "train")
    assert not (tmp_path / "again" / "export-unfinished.txt").exists()
    assert not (tmp_path / "again" / "left_out.csv").exists()


def test_yolo_folders_are_those_beside_the_file(labelled: Labelled, tmp_path: Path) -> None:
    """Ultralytics takes a path, even '.', from the working directory."""
    export(labelled.output, str(tmp_path / "t"), "yolo-seg", "train")
    description = yaml.safe_load((tmp_path / "t" / "data.yaml").read_text())
    assert set(description) == {"train", "val", "names"}
    assert (tmp_path / "t" / description["train"]).is_dir()


def test_polygons_of_a_large_region_are_cut_and_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.exchange.exports.polygons.LARGEST", 4)
    region = np.zeros((10, 11), bool)
    region[1:9, 2:10] = True
    region[4:6, 5:7] = False
    union = np.zeros_like(region)
    for polygon in polygons(region):
        union |= filled(polygon, region.shape)
    assert np.array_equal(union, region)
