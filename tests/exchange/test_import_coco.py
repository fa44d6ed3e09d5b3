"""COCO from elsewhere: published layouts are found, one odd annotation is left out and named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_layouts import SQUARE, annotation, counts, image_entry, imported, picture, put, put_coco, save
from pycocotools import mask as coco_masks

from segpipe.cli import run
from segpipe.config import ImportSettings
from segpipe.errors import DatasetError
from segpipe.exchange.importing import import_dataset
from segpipe.exchange.imports.coco_shapes import OddShapeError, Runs, checked_shape, drawn, unpacked

CAT_AND_DOG = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def one_image(root: Path, *annotations: object, height: int = 20, width: int = 30) -> None:
    save(root / "train" / "a.png", picture(height, width))
    put_coco(
        root / "annotations" / "train.json", [image_entry("a.png", height, width)], annotations, CAT_AND_DOG
    )


def left_out(root: Path) -> list[dict[str, str]]:
    with (root.parent / f"{root.name}-imported" / "left_out.csv").open() as file:
        return list(csv.DictReader(file))


def test_coco_2017_as_downloaded(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        save(root / split / "000000000001.jpg", picture(20, 30))
        for kind in ("instances", "person_keypoints"):
            path = root / "annotations" / f"{kind}_{split}.json"
            put_coco(path, [image_entry("000000000001.jpg", 20, 30)], [annotation()])
        put(root / "annotations" / f"captions_{split}.json", json.dumps({"images": [], "annotations": []}))
    classes, masks = imported(root, "coco")
    assert classes == ("background", "cat")
    assert {name: counts(mask) for name, mask in masks.items()} == {
        "train2017/000000000001": {0: 584, 1: 16},
        "val2017/000000000001": {0: 584, 1: 16},
    }


def test_coco_2017_of_which_only_val_was_downloaded(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    save(root / "val2017" / "1.jpg", picture(20, 30))
    for split in ("train2017", "val2017"):
        path = root / "annotations" / f"instances_{split}.json"
        put_coco(path, [image_entry("1.jpg", 20, 30)] if split == "val2017" else
                 [image_entry(f"{n}.jpg", 20, 30, id=n) for n in (7, 8)], [annotation()])  # fmt: skip
    assert list(imported(root, "coco")[1]) == ["val2017/1"]
    (only,) = left_out(root)
    assert (only["file"], only["image"]) == ("annotations/instances_train2017.json", "")
    assert only["reason"] == "none of its 2 images is in the data set, not 7.jpg for one"


def test_roboflow(tmp_path: Path) -> None:
    root = tmp_path / "set"
    cells = [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "cell"}]
    for split in ("train", "valid"):
        save(root / split / "a_jpg.rf.abc.jpg", picture(20, 30))
        entry = image_entry("a_jpg.rf.abc.jpg", 20, 30)
        put_coco(root / split / "_annotations.coco.json", [entry], [annotation()], cells)
    classes, masks = imported(root, "coco")
    assert classes == ("background", "cells", "cell")
    assert {name: counts(mask) for name, mask in masks.items()} == {
        "train/a_jpg.rf.abc": {0: 584, 2: 16},
        "valid/a_jpg.rf.abc": {0: 584, 2: 16},
    }


@pytest.mark.parametrize(
    ("annotations", "image", "file_name", "name"),
    [
        ("annotations/instances_default.json", "images/a.png", "a.png", "default/a"),  # CVAT
        ("annotations/instances_train.json", "images/train/a.png", "a.png", "train/a"),  # CVAT with subsets
        ("annotations/train.json", "train/a.png", "train/a.png", "train/a"),
        ("annotations/train.json", "train/sub/a.png", "sub\\a.png", "train/sub/a"),
        ("annotations/train.json", "train/a.png", "./a.png", "train/a"),
        ("result.json", "images/a.png", "images/a.png", "train/images/a"),  # Label Studio
        ("result.json", "images/a.png", "images\\a.png", "train/images/a"),
        ("valid/_annotations.coco.json", "valid/a.png", "a.png", "valid/a"),
        ("_annotations.coco.json", "a.png", "a.png", "train/a"),
    ],
)
def test_where_images_lie(tmp_path: Path, annotations: str, image: str, file_name: str, name: str) -> None:
    root = tmp_path / "set"
    save(root / image, picture(20, 30))
    put_coco(root / annotations, [image_entry(file_name, 20, 30)], [annotation()])
    _, masks = imported(root, "coco")
    assert {found: counts(mask) for found, mask in masks.items()} == {name: {0: 584, 1: 16}}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (annotation(None, id=7), "it has no segmentation"),
        ({"id": 7, "image_id": 1, "category_id": 1, "bbox": [3, 3, 9, 9]}, "it has no segmentation"),
        (annotation([], id=7), "it has no segmentation"),
        (annotation([[2, 1, 9, 8]], id=7), "a polygon has 4 numbers"),  # two points, to pycocotools a box
        (annotation([[2, 1, 9, 8, 3]], id=7), "a polygon has 5 numbers"),
        (annotation([[2, 1, 9, 8, 3, None]], id=7), "a polygon is no list of numbers"),
        (annotation([2, 1, 9, 8], id=7), "a polygon has 4 numbers"),
        (annotation([[0, 0, 1e18, 0, 1e18, 1e18, 0, 4]], id=7), "over 10 image sizes outside"),
        (annotation([[0, 0, -1e18, 0, 4, 4]], id=7), "over 10 image sizes outside"),
        (annotation([[0, 0, 10**30, 0, 4, 4]], id=7), "over 10 image sizes outside"),
        (annotation([[0, 0, float("nan"), 0, 4, 4]], id=7), "or is no number"),
        (annotation([[0, 0, float("inf"), 0, 4, 4]], id=7), "over 10 image sizes outside"),
        (annotation({"size": [48, 48], "counts": [0, 2304]}, id=7), "for 48x48, the image is 30x20"),
        (annotation({"size": [30, 20], "counts": [0, 600]}, id=7), "for 20x30, the image is 30x20"),
        (annotation({"size": [20, 30], "counts": [0, 601]}, id=7), "add up to 601, not to 600"),
        (annotation({"size": [20, 30], "counts": [0, 10**18]}, id=7), "not to 600"),
        (annotation({"size": [20, 30], "counts": [-5, 605]}, id=7), "no whole numbers from 0"),
        (annotation({"size": [20, 30], "counts": [0.5, 599.5]}, id=7), "no whole numbers from 0"),
        (annotation({"size": [20, 30], "counts": "a"}, id=7), "cut off"),
        (annotation({"size": [20, 30], "counts": "\u00ff"}, id=7), "damaged"),
        (annotation({"counts": [0, 600]}, id=7), "lack size or counts"),
        (annotation(SQUARE, id=7, category_id=9), "no category has its category_id 9"),
        (annotation(SQUARE, id=7, category_id=[1]), "no category has its category_id a list"),
        (annotation(SQUARE, id=7, image_id=5), "no image has its image_id 5"),
        (annotation("polygon", id=7), "it has no segmentation"),
    ],
)  # fmt: skip
def test_one_odd_annotation_is_left_out_and_named(tmp_path: Path, odd: dict[str, Any], reason: str) -> None:
    root = tmp_path / "set"
    one_image(root, odd, annotation(id=8, category_id=2))
    classes, masks = imported(root, "coco")
    assert classes == ("background", "cat", "dog")
    assert counts(masks["train/a"]) == {0: 584, 2: 16}
    (only,) = left_out(root)
    assert (only["file"], only["annotation"]) == ("annotations/train.json", "annotation 7")
    assert only["image"] == ("a.png" if odd["image_id"] == 1 else "")
    assert reason in only["reason"]


@pytest.mark.parametrize(
    ("once", "twice", "name"),
    [
        ('"annotations":', '"annotations": [], "annotations":', "annotations"),
        ('"category_id": 2', '"category_id": 1, "category_id": 2', "category_id"),
        ('"name": "dog"', '"name": "cow", "name": "dog"', "name"),
    ],
)
def test_a_name_that_has_two_values_is_refused(tmp_path: Path, once: str, twice: str, name: str) -> None:
    """Every reader of JSON would take the later one, and the labels would be others without a word."""
    root = tmp_path / "set"
    one_image(root, annotation(id=8, category_id=2))
    file = root / "annotations/train.json"
    assert once in file.read_text()
    file.write_text(file.read_text().replace(once, twice, 1))
    with pytest.raises(DatasetError, match=rf"train\.json is not valid JSON \('{name}' is there twice\)"):
        imported(root, "coco")


def test_of_several_polygons_only_the_line_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    one_image(root, annotation([[1, 1, 8, 1, 8, 8, 1, 8], [20, 10, 25, 15]]))
    assert counts(imported(root, "coco")[1]["train/a"]) == {0: 551, 1: 49}
    assert [one["annotation"] for one in left_out(root)] == ["annotation 1"]


def test_one_polygon_without_its_list_is_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    one_image(root, annotation([1, 1, 8, 1, 8, 8, 1, 8]))
    assert counts(imported(root, "coco")[1]["train/a"]) == {0: 551, 1: 49}


def test_what_lies_partly_outside_is_cut_at_the_edge(tmp_path: Path) -> None:
    root = tmp_path / "set"
    one_image(root, annotation([[-10, 5, 40, 5, 40, 10, -10, 10]]))
    assert counts(imported(root, "coco")[1]["train/a"]) == {0: 450, 1: 150}  # 5 rows of 30


def test_packed_and_plain_run_lengths_crowds_and_categories_with_gaps(tmp_path: Path) -> None:
    root = tmp_path / "set"
    region = np.zeros((20, 30), np.uint8, order="F")
    region[5:9, 3:11] = 1
    packed = coco_masks.encode(region)
    crowd = {"size": [20, 30], "counts": packed["counts"].decode()}
    save(root / "train" / "a.png", picture(20, 30))
    put_coco(
        root / "annotations" / "train.json",
        [image_entry("a.png", 20, 30)],
        [annotation(category_id=90), annotation(crowd, id=2, category_id=27, iscrowd=1)],
        [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 27, "name": "backpack"}],
    )
    classes, masks = imported(root, "coco")
    assert classes == ("background", "person", "backpack", "toothbrush")
    assert counts(masks["train/a"]) == {0: 552, 2: 32, 3: 16}
    assert (masks["train/a"][5:9, 3:11] == 2).all()


def test_packed_run_lengths_as_pycocotools_packs_them() -> None:
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (7, 5), (100, 300), (64, 2)):
        for share in (0, 0.01, 0.5, 1):
            region = np.asfortranarray(rng.random(shape) < share, np.uint8)
            text = coco_masks.encode(region)["counts"].decode()
            assert np.array_equal(drawn(Runs(text), *shape), region.astype(bool))
    with pytest.raises(OddShapeError, match="damaged"):
        unpacked("o" * 50)


@pytest.mark.parametrize("segmentation", [None, [], {}])
def test_a_file_of_boxes_is_imported_as_background(tmp_path: Path, segmentation: object) -> None:
    root = tmp_path / "set"
    one_image(root, annotation(segmentation))
    assert counts(imported(root, "coco")[1]["train/a"]) == {0: 600}
    assert len(left_out(root)) == 1


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (annotation(SQUARE, category_id=7), "annotation 1: no category has its category_id 7"),
        (
            annotation({"size": [48, 48], "counts": [0, 2304]}),
            "image a.png, annotation 1: its run lengths are for 48x48, the image is 30x20",
        ),
    ],
)
def test_a_file_of_which_no_annotation_can_be_used_is_refused(
    tmp_path: Path, odd: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one_image(tmp_path / "set", odd)
    assert run(["import", str(tmp_path / "set"), str(tmp_path / "t"), "--format", "coco"]) == 1
    message = capsys.readouterr().err
    assert "annotations/train.json: no annotation can be used" in message
    assert said in message
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image_entry("gone.png", 20, 30, id=2), "there is no such file"),
        (image_entry("../outside.png", 20, 30, id=2), "there is no such file"),
        (image_entry("/etc/hostname", 20, 30, id=2), "there is no such file"),
        (image_entry("", 20, 30, id=2), "there is no such file"),
        (image_entry("b.png", 1_000_000, 1_000_000, id=2), "1000000x1000000 is over 100000000 pixels"),
        (image_entry("b.png", 10**18, 10**18, id=2), "1 to 100000000 can be read"),
        (image_entry("b.png", 0, 30, id=2), "1 to 100000000 can be read"),
        (image_entry("b.png", None, 30, id=2), "1 to 100000000 can be read"),
        (image_entry("b.png", 20.5, 30, id=2), "no whole numbers"),
        (image_entry("b.png", 10_000, 10_000, id=2), r"b.png is (30, 20), its mask (10000, 10000)"),
        (image_entry("b.png", 30, 20, id=2), r"b.png is (30, 20), its mask (20, 30)"),
        (image_entry("a.png", 20, 30, id=2), "another image of this file has its name"),
        (image_entry("b.png", 20, 30, id=1), "another image has the id 1"),
        (image_entry("b.png", 20, 30, id=[2]), "no entry with an id"),
        (image_entry("broken.png", 20, 30, id=2), "broken.png cannot be used: the file is empty"),
        ("b.png", "no entry with an id"),
    ],
)
def test_one_odd_image_is_left_out_and_named(tmp_path: Path, entry: Any, reason: str) -> None:
    root = tmp_path / "set"
    save(tmp_path / "outside.png", picture(20, 30))
    for name in ("a.png", "b.png"):
        save(root / "train" / name, picture(20, 30))
    put(root / "train" / "broken.png", b"")
    put_coco(root / "annotations" / "train.json", [image_entry("a.png", 20, 30), entry], [annotation()])
    began = time.monotonic()
    _, masks = imported(root, "coco")
    assert {name: counts(mask) for name, mask in masks.items()} == {"train/a": {0: 584, 1: 16}}
    (only,) = left_out(root)
    assert reason in only["reason"]
    assert time.monotonic() - began < 30  # no 10^12 pixels were ever asked for


def test_huge_numbers_end_no_process(tmp_path: Path) -> None:
    """In a process of its own: pycocotools itself ends with signal 11."""
    root = tmp_path / "set"
    big = [[0, 0, 1e18, 0, 1e18, 1e18]]
    long = [[0, 0, 300, 200] * 10_000]
    one_image(root, annotation(big), annotation(long, id=2), annotation(id=3, category_id=2))
    script = "import sys; from segpipe.cli import run; sys.exit(run(sys.argv[1:]))"
    arguments = ["import", str(root), str(tmp_path / "t"), "--format", "coco", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == 2
    assert "annotation 1: a polygon lies over 10 image sizes outside" in done.stderr
    assert "annotation 2: its polygons are over 2000000 pixels long together" in done.stderr


def test_a_long_polygon_is_refused_by_its_length() -> None:
    with pytest.raises(OddShapeError, match="over 2000000 pixels long"):
        checked_shape([[0, 0, 1000, 0] * 2_001], 1_000, 1_000)
    assert checked_shape([[0, 0, 1000, 0] * 900], 1_000, 1_000)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{", b"\xff\xfe\x00", b'{"a": 1' + b"0" * 5_000 + b"}", b"null", b"[]"]
)
def test_what_is_no_coco_file_is_named(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "set" / "annotations" / "train.json", content)
    assert run(["import", str(tmp_path / "set"), str(tmp_path / "t"), "--format", "coco"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "annotations/train.json" in said
    assert "unexpected" not in said


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        ([{"id": 1, "name": "mouse"}, {"id": 2, "name": "mouse"}], "two categories of the name 'mouse'"),
        ([{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}], "two categories of the id 1"),
        ([{"id": "1", "name": "cat"}], "lacks a whole number as id, or a name"),
        ([{"id": 1, "name": " "}], "lacks a whole number as id, or a name"),
        (["cat"], "lacks a whole number as id, or a name"),
        ([{"id": n, "name": f"c{n}"} for n in range(300)], "301 names; segmentation needs 2 to 255"),
        ([], "1 names; segmentation needs 2 to 255"),
    ],
)
def test_categories_are_refused_before_anything_is_copied(
    tmp_path: Path, categories: list[Any], said: str
) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.png", picture(20, 30))
    put_coco(root / "annotations" / "train.json", [image_entry("a.png", 20, 30)], [], categories)
    with pytest.raises(DatasetError, match=said):
        import_dataset(str(root), str(tmp_path / "t"), "coco")
    assert not (tmp_path / "t").exists()


def test_two_images_of_one_key_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder in ("annotations/train.json", "train/_annotations.coco.json"):
        put_coco(root / folder, [image_entry("a.png", 20, 30)], [annotation()])
    save(root / "train" / "a.png", picture(20, 30))
    with pytest.raises(DatasetError, match=r"not the only image that becomes a in train: rename"):
        import_dataset(str(root), str(tmp_path / "t"), "coco")
    assert not (tmp_path / "t").exists()


def test_images_of_other_formats_become_what_training_reads(tmp_path: Path) -> None:
    root = tmp_path / "set"
    names = ("a.bmp", "b.tif", "c.webp", "d.gif", "e.jpg", "f.png")
    for name in names:
        save(root / "train" / name, np.full((20, 30, 3), 90, np.uint8))
    put_coco(
        root / "annotations" / "train.json",
        [image_entry(name, 20, 30, id=number) for number, name in enumerate(names)],
        [annotation(image_id=number) for number in range(len(names))],
    )
    _, masks = imported(root, "coco")
    assert {name: counts(mask) for name, mask in masks.items()} == {
        f"train/{key}": {0: 584, 1: 16} for key in "abcdef"
    }
    written = {path.name for path in (tmp_path / "set-imported" / "train" / "images").iterdir()}
    assert written == {"a.png", "b.png", "c.png", "d.png", "e.jpg", "f.png"}
    assert (tmp_path / "set-imported/train/images/e.jpg").read_bytes() == (root / "train/e.jpg").read_bytes()


def corner(mask: np.ndarray) -> str:
    """Where a 4x4 square of class 1 lies."""
    (rows, columns) = np.nonzero(mask == 1)
    assert len(rows) == 16
    return f"{'top' if rows.max() < 4 else 'bottom'} {'left' if columns.max() < 4 else 'right'}"


@pytest.mark.parametrize(
    ("orientation", "size", "drawn_on", "expected"),
    [
        # Stored as 30x20 and turned by 90 degrees: the declared size tells.
        (6, (20, 30), "displayed", "top right"),
        (6, (20, 30), "stored", "top right"),
        (6, (30, 20), "displayed", "top left"),
        (6, (30, 20), "stored", "top left"),
        (8, (20, 30), "displayed", "bottom left"),
        (5, (20, 30), "displayed", "top left"),
        (7, (20, 30), "displayed", "bottom right"),
        # By 180 degrees, or mirrored, it does not.
        (3, (20, 30), "displayed", "top left"),
        (3, (20, 30), "stored", "bottom right"),
        (2, (20, 30), "stored", "top right"),
        (4, (20, 30), "stored", "bottom left"),
    ],
)
def test_masks_of_turned_photos_lie_as_people_see_them(
    tmp_path: Path, orientation: int, size: tuple[int, int], drawn_on: Any, expected: str
) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.jpg", picture(20, 30), orientation)
    put_coco(root / "annotations" / "train.json", [image_entry("a.jpg", *size)], [annotation()])
    _, masks = imported(root, "coco", ImportSettings(drawn_on=drawn_on))
    assert masks["train/a"].shape == ((30, 20) if orientation > 4 else (20, 30))
    assert corner(masks["train/a"]) == expected


def test_what_is_assumed_of_turned_photos_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    save(root / "train" / "half.jpg", picture(20, 30), 3)
    save(root / "train" / "square.jpg", picture(20, 20), 6)
    save(root / "train" / "quarter.jpg", picture(20, 30), 6)
    entries = [
        image_entry("half.jpg", 20, 30),
        image_entry("square.jpg", 20, 20, id=2),
        image_entry("quarter.jpg", 20, 30, id=3),
    ]
    put_coco(root / "annotations" / "train.json", entries, [annotation()])
    arguments = ["import", str(root), str(tmp_path / "t"), "--format", "coco", "--json"]
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["turned_as_assumed"] == 2
    assert "2 photos carry an EXIF turn that sizes cannot tell" in said.err
    assert "--drawn-on stored if that is wrong" in said.err


def test_a_tiff_whose_reader_turns_it_itself(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.tif", picture(20, 30), 6)
    put_coco(root / "annotations" / "train.json", [image_entry("a.tif", 20, 30)], [annotation()])
    _, masks = imported(root, "coco")
    assert corner(masks["train/a"]) == "top right"


def test_a_size_that_no_turn_explains_names_the_turn(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.jpg", picture(20, 30), 6)
    put_coco(root / "annotations" / "train.json", [image_entry("a.jpg", 20, 31)], [annotation()])
    with pytest.raises(DatasetError, match=r"is \(20, 30\) \(stored as \(30, 20\) and turned by EXIF\)"):
        import_dataset(str(root), str(tmp_path / "t"), "coco")


def test_what_file_managers_leave_behind_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    one_image(root, annotation())
    put(root / "annotations" / "._train.json", b"\0\5\26\7Mac OS X")
    put(root / ".git" / "config.json", b"{")
    assert list(imported(root, "coco")[1]) == ["train/a"]


def test_control_characters_of_a_name_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.png", picture(20, 30))
    entries = [image_entry("a.png", 20, 30), image_entry("\x1b[31mred\n.png", 20, 30, id=2)]
    put_coco(root / "annotations" / "train.json", entries, [annotation()])
    assert run(["import", str(root), str(tmp_path / "t"), "--format", "coco"]) == 0
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "image \\u001b[31mred\\n.png" in said
