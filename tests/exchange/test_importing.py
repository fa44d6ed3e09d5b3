"""Public layouts become a data set: written here by hand, read by segpipe's own reader of C1."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from accepted_output import CLASSES, Labelled, accept, png_of
from labelled_layouts import annotation, image_entry, imported, picture, put, put_coco, save, tree

from segpipe.cli import run
from segpipe.config import ImportSettings
from segpipe.datasets import list_samples, open_dataset, read_sample, write_dataset
from segpipe.errors import DatasetError
from segpipe.exchange.export import export
from segpipe.exchange.importing import import_dataset
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part


def test_camvid_as_segnet_lays_it_out(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "0001TP.png", picture(4, 6))
    save(root / "trainannot" / "0001TP.png", np.array([[0, 3, 11, 10, 8, 5]] * 4, np.uint8))
    save(root / "val" / "0002TP.png", picture(4, 6))
    save(root / "valannot" / "0002TP.png", np.full((4, 6), 11, np.uint8))
    classes, masks = imported(root, "camvid")
    assert (len(classes), classes[0], classes[8], classes[10]) == (11, "sky", "car", "bicyclist")
    assert masks["train/0001TP"][0].tolist() == [0, 3, 255, 10, 8, 5]
    assert (masks["val/0002TP"] == 255).all()


def test_cityscapes_with_its_own_ids(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    name = "train/aachen/aachen_000000_000019"
    save(root / "leftImg8bit" / f"{name}_leftImg8bit.png", picture(2, 5))
    save(root / "gtFine" / f"{name}_gtFine_labelIds.png", np.array([[7, 33, 26, 0, 4]] * 2, np.uint8))
    save(root / "gtFine" / f"{name}_gtFine_color.png", picture(2, 5))
    classes, masks = imported(root, "cityscapes")
    assert (len(classes), classes[0], classes[13], classes[18]) == (19, "road", "car", "bicycle")
    assert masks["train/aachen/aachen_000000_000019"][0].tolist() == [0, 18, 13, 255, 255]


def test_voc_with_its_lists_and_its_void(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for key in ("2007_1", "2007_2", "2007_3"):
        save(root / "JPEGImages" / f"{key}.jpg", picture(3, 4))
    save(root / "SegmentationClass" / "2007_1.png", np.array([[0, 15, 255, 20]] * 3, np.uint8))
    save(root / "SegmentationClass" / "2007_2.png", np.zeros((3, 4), np.uint8))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    (lists / "trainval.txt").write_text("2007_1\n2007_2\n")
    classes, masks = imported(root, "voc")
    assert (len(classes), classes[0], classes[15], classes[20]) == (21, "background", "person", "tvmonitor")
    assert masks["train/2007_1"][0].tolist() == [0, 15, 255, 20]
    assert set(masks) == {"train/2007_1", "val/2007_2"}


def test_coco_with_polygons_runs_and_overlaps(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    save(root / "train" / "a.jpg", picture(6, 8))
    square = {"category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    # Columns of six: two columns of nothing, then two whole ones.
    columns = {"category_id": 9, "segmentation": {"size": [6, 8], "counts": [12, 12, 24]}}
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 6, "width": 8}],
        "annotations": [{"id": 1, "image_id": 3} | square, {"id": 2, "image_id": 3} | columns],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    classes, masks = imported(root, "coco")
    assert classes == ("background", "cat", "dog")
    expected = np.zeros((6, 8), np.uint8)
    expected[:4, :4] = 1
    expected[:, 2:4] = 2
    assert np.array_equal(masks["train/a"], expected)


def test_a_mask_that_does_not_fit_is_named(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "a.png", picture(4, 6))
    save(root / "trainannot" / "a.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png is \(6, 4\), its mask \(4, 6\)"):
        import_dataset(str(root), str(tmp_path / "target"), "camvid")
    save(root / "trainannot" / "a.png", np.full((4, 6), 12, np.uint8))
    with pytest.raises(DatasetError, match="holds 12, and there are 11 classes"):
        import_dataset(str(root), str(tmp_path / "target"), "camvid")
    assert not (tmp_path / "target" / "dataset.json").exists()


@pytest.mark.parametrize("layout", ["camvid", "cityscapes", "voc", "coco"])
def test_another_layout_is_one_line(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    assert run(["import", str(tmp_path / "raw"), str(tmp_path / "target"), "--format", layout]) == 1
    assert f"has no images in the layout of {layout}" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["voc", "cityscapes", "coco"])
def test_what_segpipe_exports_it_imports(labelled: Labelled, tmp_path: Path, layout: str) -> None:
    target = tmp_path / "exported"
    export(labelled.output, str(target), layout, "train")
    classes, masks = imported(target, layout)
    assert classes == CLASSES
    assert len(masks) == len(labelled.masks)
    for name, mask in masks.items():
        key = name.rpartition("/")[2].removeprefix("segpipe_")
        expected = labelled.mask_of(target, key)
        kept = expected != 255 if layout == "coco" else np.ones_like(expected, bool)
        assert np.array_equal(mask[kept], expected[kept])


@pytest.mark.parametrize("layout", ["voc", "coco", "cityscapes"])
def test_odd_class_names_come_back(tmp_path: Path, make_row: Callable[..., Row], layout: str) -> None:
    classes, mask = ("#1: road", "# 2", "background"), np.array([[0, 1, 2, 2]] * 3, np.uint8)
    output = str(tmp_path / "labels")
    row = accept(tmp_path / "raw" / "a.png", png_of(picture(3, 4)), mask, output, make_row)
    assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table([row], classes))
    export(output, str(tmp_path / "set"), layout, "train")
    found, masks = imported(tmp_path / "set", layout)
    assert found == classes
    assert [one.tolist() for one in masks.values()] == [mask.tolist()]


def test_what_no_annotation_covers_is_background_wherever_it_stands(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    save(root / "train" / "a.jpg", picture(2, 4))
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [
            {"image_id": 3, "category_id": 7, "segmentation": {"size": [2, 4], "counts": [0, 2, 6]}}
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "background"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    classes, masks = imported(root, "coco")
    assert classes == ("cat", "background")
    assert masks["train/a"].tolist() == [[0, 1, 1, 1]] * 2


def test_a_voc_export_named_trainval_comes_back(labelled: Labelled, tmp_path: Path) -> None:
    export(labelled.output, str(tmp_path / "voc"), "voc", "trainval")
    assert len(imported(tmp_path / "voc", "voc")[1]) == len(labelled.masks)


def deep_set(root: Path) -> np.ndarray:
    """A TIFF and a PNG of 12 bits in 16, and their upper 8 bits as BMP and GIF, in the layout of camvid."""
    values = np.random.default_rng(0).integers(0, 4096, (4, 6), np.uint16)
    eight = [(name, (values >> 4).astype(np.uint8)) for name in ("c.bmp", "d.gif")]
    for name, pixels in (("a.tif", values), ("b.png", values), *eight):
        save(root / "train" / name, pixels)
        save(root / "trainannot" / f"{name[0]}.png", np.zeros((4, 6), np.uint8))
    return values


def test_images_are_imported_with_the_range_of_their_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, target = deep_set(tmp_path / "deep"), tmp_path / "target"
    command = ["import", str(tmp_path / "deep"), str(target), "--format", "camvid"]
    assert run([*command, "--image-range", "0", "4095"]) == 0
    assert "nearly black" not in capsys.readouterr().err
    dataset = open_dataset(str(target))
    assert dataset.image_range == (0.0, 4095.0)
    expected = np.rint(values / 4095 * 255)
    found = {sample.key: read_sample(dataset, sample)[0] for sample in list_samples(dataset, "train")}
    assert (target / "train/images/a.tif").read_bytes() == (tmp_path / "deep/train/a.tif").read_bytes()
    for key in ("a", "b"):
        np.testing.assert_array_equal(found[key], np.repeat(expected[:, :, None], 3, axis=2))
    for key in ("c", "d"):
        np.testing.assert_array_equal(found[key][..., 0], np.rint((values >> 4) / 4095 * 255))


def test_images_that_an_import_makes_nearly_black_are_said_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = deep_set(tmp_path / "deep")
    assert run(["import", str(tmp_path / "deep"), str(tmp_path / "target"), "--format", "camvid"]) == 0
    said = capsys.readouterr().err
    assert "2 images are nearly black" in said
    low, high = np.floor(np.percentile([values] * 2, 0.1)), np.ceil(np.percentile([values] * 2, 99.9))
    assert f"--image-range {low:.0f} {high:.0f}" in said


@pytest.mark.parametrize("given", [("5", "5"), ("9", "1"), ("0", "inf"), ("nan", "1")])
def test_a_range_that_is_none_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, str]
) -> None:
    deep_set(tmp_path / "deep")
    command = ["import", str(tmp_path / "deep"), str(tmp_path / "target"), "--format", "camvid"]
    assert run([*command, "--image-range", *given]) == 2
    assert "--image-range" in capsys.readouterr().err
    assert run([*command, "--image-range", "-5.5", "1000"]) == 0
    assert open_dataset(str(tmp_path / "target")).image_range == (-5.5, 1000.0)


def layout_of(root: Path, split: str, keys: str, classes: str = "cat") -> Path:
    """COCO with an image and an annotation for each letter, and one odd annotation."""
    for number, key in enumerate(keys):
        save(root / split / f"{key}.png", picture(4 + number, 6))
    put_coco(
        root / "annotations" / f"{split}.json",
        [image_entry(f"{key}.png", 4 + number, 6, id=number) for number, key in enumerate(keys)],
        [*(annotation(image_id=number) for number in range(len(keys))), annotation(None, id=7, image_id=0)],
        [{"id": 1, "name": classes}],
    )
    return root


def test_another_split_joins_the_same_classes_and_nothing_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"

    def import_into(root: Path) -> str:
        """What is said; nothing where it worked."""
        status = run(["import", str(root), str(target), "--format", "coco"])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segpipe: ")]
        assert (status, len(lines)) in ((0, 0), (1, 1))
        return "".join(lines)

    assert import_into(layout_of(tmp_path / "first", "train", "ab")) == ""
    train, description = tree(target / "train"), (target / "dataset.json").read_bytes()
    assert import_into(layout_of(tmp_path / "second", "val", "c")) == ""
    dataset = open_dataset(str(target))
    assert [len(list_samples(dataset, split)) for split in ("train", "val")] == [2, 1]
    # What was left out of the first import is still named.
    left_out = (target / "left_out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in left_out] == [
        "file",
        "annotations/train.json",
        "annotations/val.json",
    ]
    whole = tree(target)
    others = layout_of(tmp_path / "third", "train", "d")
    assert (
        f"{target} has a split 'train' already, with images/a.png: import into another folder"
        in import_into(others)
    )
    dogs = layout_of(tmp_path / "fourth", "test", "e", "dog")
    assert f"{target} is a data set of other classes, background, cat, not background, dog" in import_into(
        dogs
    )
    assert tree(target) == whole
    assert (target / "dataset.json").read_bytes() == description
    assert tree(target / "train") == train


def test_a_target_with_images_of_no_known_import_is_refused(tmp_path: Path) -> None:
    root, target = layout_of(tmp_path / "set", "train", "ab"), tmp_path / "target"
    put(target / "README.md", "of streets")
    put(target / "val" / "masks" / "x.png", b"")
    said = r"target holds val/masks/x\.png and no dataset\.json, as an import that did not end: remove"
    with pytest.raises(DatasetError, match=said):
        import_dataset(str(root), str(target), "coco")
    (target / "val" / "masks" / "x.png").unlink()
    import_dataset(str(root), str(target), "coco")
    with pytest.raises(DatasetError, match="is the source itself: import into another folder"):
        import_dataset(str(root), f"{root}/", "coco")


def test_a_target_with_another_index_range_or_list_of_what_was_left_out_is_refused(
    tmp_path: Path,
) -> None:
    root, target = layout_of(tmp_path / "set", "train", "ab"), tmp_path / "target"
    write_dataset(str(target), "streets", ("background", "cat"), 9)
    with pytest.raises(
        DatasetError, match=r"target ignores index 9, imports ignore 255: import into another"
    ):
        import_dataset(str(root), str(target), "coco")
    write_dataset(str(target), "streets", ("background", "cat"), 255)
    put(target / "left_out.csv", "image_uri,image_etag,reason\n")
    with pytest.raises(DatasetError, match=r"left_out\.csv is of no import: move it away"):
        import_dataset(str(root), str(target), "coco")
    (target / "left_out.csv").unlink()
    deep = ImportSettings(image_range=(0, 4095))
    with pytest.raises(DatasetError, match=r"target has the image range none, not \[0, 4095\]: import into"):
        import_dataset(str(root), str(target), "coco", deep)
    import_dataset(str(root), str(target), "coco")
    assert open_dataset(str(target)).name == "streets"
