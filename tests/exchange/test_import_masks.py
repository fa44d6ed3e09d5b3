"""Layouts with a mask file per image: what a mask says of its classes, and what a message names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_layouts import counts, imported, picture, put, save
from PIL import Image

from segpipe.cli import run
from segpipe.config import ImportSettings
from segpipe.errors import DatasetError, NotFoundError
from segpipe.exchange.importing import import_dataset
from segpipe.images import class_palette

INDICES = np.array([[0, 0, 0, 1, 1, 1]] * 4, np.uint8)  # 12 pixels each


def coloured(first: tuple[int, int, int], second: tuple[int, int, int]) -> np.ndarray:
    """INDICES in these colours."""
    return np.array([first, second], np.uint8)[INDICES]


def with_palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    return image


def voc(root: Path, mask: np.ndarray | Image.Image, key: str = "a", label_map: str | None = None) -> None:
    save(root / "JPEGImages" / f"{key}.jpg", picture(4, 6))
    save(root / "SegmentationClass" / f"{key}.png", mask)
    put(root / "ImageSets" / "Segmentation" / "train.txt", f"{key}\n")
    if label_map is not None:
        put(root / "labelmap.txt", label_map)


def refused(root: Path, layout: str) -> str:
    """What is said."""
    target = root.parent / "refused"
    with pytest.raises((DatasetError, NotFoundError)) as error:
        import_dataset(str(root), str(target), layout)
    assert not (target / "dataset.json").exists()
    return str(error.value)


def test_voc_masks_of_colours_by_the_label_map_beside_them(tmp_path: Path) -> None:
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:48,112,32::\n"
    voc(tmp_path / "set", coloured((0, 0, 0), (48, 112, 32)), label_map=label_map)
    classes, masks = imported(tmp_path / "set", "voc")
    assert classes == ("background", "cat")
    assert np.array_equal(masks["train/a"], INDICES)


def test_voc_masks_of_vocs_own_colours(tmp_path: Path) -> None:
    pixels = coloured((0, 0, 0), (192, 128, 128))
    pixels[0, 0] = (224, 224, 192)  # void
    voc(tmp_path / "set", pixels)
    assert counts(imported(tmp_path / "set", "voc")[1]["train/a"]) == {0: 11, 15: 12, 255: 1}


def test_a_colour_that_no_label_map_names_is_refused_by_name(tmp_path: Path) -> None:
    voc(tmp_path / "set", coloured((0, 0, 0), (1, 2, 3)), label_map="background:0,0,0::\ncat:9,9,9::")
    said = refused(tmp_path / "set", "voc")
    assert "SegmentationClass/a.png holds the colour 1,2,3, which" in said
    assert "labelmap.txt does not name" in said


@pytest.mark.parametrize(
    ("label_map", "said"),
    [
        ("ground:0,0,0::\ncat:9,9,9::\ndog:9,9,9::", "gives 'cat' and 'dog' the colour 9,9,9: change one"),
        ("cat:0,0,0::\ncat:9,9,9::", "names the class 'cat' twice, with 0,0,0 and 9,9,9: leave one line"),
        ("cat:9,9,9::\ncat:9,9,9::", "names the class 'cat' twice, with 9,9,9 and 9,9,9: leave one line"),
        ("ground\ncat\ndog:128,0,0::", "gives 'cat' and 'dog' the colour 128,0,0"),  # VOC's, at place 1
    ],
)
def test_a_label_map_that_contradicts_itself_is_refused_whatever_the_masks_are_of(
    tmp_path: Path, label_map: str, said: str
) -> None:
    voc(tmp_path / "indices", INDICES, label_map=label_map)
    assert f"indices/labelmap.txt {said}" in refused(tmp_path / "indices", "voc")
    voc(tmp_path / "colours", coloured((0, 0, 0), (9, 9, 9)), label_map=label_map)
    assert f"colours/labelmap.txt {said}" in refused(tmp_path / "colours", "voc")


def test_what_is_ignored_may_have_several_colours_but_none_of_a_class(tmp_path: Path) -> None:
    lines = "name,r,g,b\nvoid,0,0,0\nVoid,7,7,7\nunlabelled,8,8,8\ncat,9,9,9\ncow,1,1,1\n"
    coloured_set(tmp_path / "set", lines)
    classes, masks = imported(tmp_path / "set", "colour-masks")
    assert (classes, counts(masks["train/a"])) == (("cat", "cow"), {0: 12, 255: 12})
    put(tmp_path / "set" / "class_dict.csv", lines + "dog,7,7,7\n")
    assert "gives 'what is ignored' and 'dog' the colour 7,7,7" in refused(tmp_path / "set", "colour-masks")


def coloured_set(root: Path, label_map: str) -> None:
    save(root / "images" / "a.jpg", picture(4, 6))
    save(root / "masks" / "a.png", coloured((0, 0, 0), (9, 9, 9)))
    put(root / "class_dict.csv", label_map)


def test_two_label_maps_must_say_the_same(tmp_path: Path) -> None:
    root = tmp_path / "set"
    coloured_set(root, "name,r,g,b\nground,0,0,0\ncat,9,9,9\n")
    put(root / "label_colors.txt", "9 9 9 cat\n0 0 0 ground\n0 0 1 void\n")  # in another order
    assert imported(root, "colour-masks")[0] == ("cat", "ground")
    for line, there in (("9 9 8 cat", "9,9,8"), ("", "not there")):
        put(root / "label_colors.txt", f"0 0 0 ground\n{line}\n")
        said = refused(root, "colour-masks")
        assert (
            f"label_colors.txt and {root}/class_dict.csv disagree on the class 'cat' ({there}; 9,9,9)" in said
        )


def test_a_palette_that_was_sorted_anew_is_read_by_its_colours(tmp_path: Path) -> None:
    """Index 0 has the colour of person (15), index 1 the background's."""
    voc(tmp_path / "set", with_palette(INDICES, (192, 128, 128), (0, 0, 0)))
    assert np.array_equal(imported(tmp_path / "set", "voc")[1]["train/a"], np.where(INDICES == 0, 15, 0))


@pytest.mark.parametrize("others", [[(7, 7, 7)], [(0, 0, 0)] * 255])  # unknown; at several indices
def test_a_palette_that_contradicts_in_part_is_refused_by_name(
    tmp_path: Path, others: list[tuple[int, int, int]]
) -> None:
    voc(tmp_path / "set", with_palette(INDICES, (192, 128, 128), *others))
    said = refused(tmp_path / "set", "voc")
    assert "SegmentationClass/a.png: its palette gives index 0 the colour that class 15 has" in said


@pytest.mark.parametrize(
    "palette",
    [
        [tuple(colour) for colour in class_palette(256).tolist()],  # VOC's
        [(0, 0, 0)] * 256,  # none to speak of
        [(0, 0, 0), (128, 0, 0), *[(0, 0, 0)] * 254],  # VOC's, filled up with black
        [(n, n, n) for n in range(256)],
        [(255, 0, 0), (0, 0, 255)],  # of some viewer
    ],
)
def test_a_palette_that_does_not_contradict_leaves_indices_as_they_are(
    tmp_path: Path, palette: list[tuple[int, int, int]]
) -> None:
    values = INDICES.copy()
    if len(palette) == 256:
        values[0, 0] = 255
    voc(tmp_path / "set", with_palette(values, *palette))
    assert np.array_equal(imported(tmp_path / "set", "voc")[1]["train/a"], values)


def test_voc_names_with_blanks_and_lists_with_flags(tmp_path: Path) -> None:
    root = tmp_path / "set"
    voc(root, INDICES, "my image 01")
    voc(root, INDICES, "b")
    put(root / "ImageSets" / "Segmentation" / "train.txt", "my image 01\r\nb  1\n\nb\n")
    assert set(imported(root, "voc")[1]) == {"train/my image 01", "train/b"}


def test_a_voc_list_without_masks_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    voc(root, INDICES)
    save(root / "JPEGImages" / "b.jpg", picture(4, 6))
    put(root / "ImageSets" / "Segmentation" / "test.txt", "b\n")
    assert run(["import", str(root), str(tmp_path / "t"), "--format", "voc", "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert (result["images"], result["left_out"]) == ({"train": 1}, 1)
    assert "ImageSets/Segmentation/test.txt: no image of it has a mask in SegmentationClass" in said.err


def test_a_voc_list_that_lacks_a_mask_or_an_image_says_what_lies_there(tmp_path: Path) -> None:
    root = tmp_path / "set"
    voc(root, INDICES)
    save(root / "JPEGImages" / "b.jpg", picture(4, 6))
    put(root / "ImageSets" / "Segmentation" / "train.txt", "a\nb\n")
    said = refused(root, "voc")
    assert "ImageSets/Segmentation/train.txt names b, which has no SegmentationClass/b.png" in said
    assert "SegmentationClass holds a.png" in said
    put(root / "ImageSets" / "Segmentation" / "train.txt", "a\n../../c\n")
    assert "names ../../c, which is not in JPEGImages" in refused(root, "voc")
    assert not (tmp_path / "refused").exists()


def test_a_label_map_that_names_too_much_or_nothing_is_refused_by_name(tmp_path: Path) -> None:
    voc(tmp_path / "none", INDICES, label_map="# label:color_rgb:parts:actions\n")
    assert "labelmap.txt names 0 classes" in refused(tmp_path / "none", "voc")
    voc(tmp_path / "light", INDICES, label_map="a:0,0,0::\nb:256,0,0::\n")
    assert "labelmap.txt: the colour of 'b' is not of 0 to 255" in refused(tmp_path / "light", "voc")
    voc(tmp_path / "many", INDICES, label_map="".join(f"c{n}:0,0,0::\n" for n in range(300)))
    assert "labelmap.txt names 300 classes" in refused(tmp_path / "many", "voc")
    voc(tmp_path / "bytes", INDICES)
    put(tmp_path / "bytes" / "labelmap.txt", b"\xff\xfe")
    assert "labelmap.txt is no text in UTF-8" in refused(tmp_path / "bytes", "voc")


def test_a_voc_photo_turned_by_exif(tmp_path: Path) -> None:
    root = tmp_path / "set"
    voc(root, INDICES)
    save(root / "JPEGImages" / "a.jpg", picture(4, 6), 6)  # displayed 4 wide, 6 high: a quarter clockwise
    stored = imported(root, "voc")[1]["train/a"]
    assert np.array_equal(stored, np.repeat([[0], [0], [0], [1], [1], [1]], 4, axis=1))
    save(root / "SegmentationClass" / "a.png", np.array([[1, 0, 0, 0]] * 6, np.uint8))
    assert np.array_equal(imported(root, "voc")[1]["train/a"], np.array([[1, 0, 0, 0]] * 6))
    save(root / "JPEGImages" / "a.jpg", picture(4, 6), 3)
    save(root / "SegmentationClass" / "a.png", INDICES)
    assert np.array_equal(imported(root, "voc")[1]["train/a"], INDICES)
    drawn_on_stored = ImportSettings(drawn_on="stored")
    assert np.array_equal(imported(root, "voc", drawn_on_stored)[1]["train/a"], INDICES[::-1, ::-1])


def cityscapes(root: Path, image: str, label: str, mask: np.ndarray) -> None:
    save(root / "leftImg8bit" / "train" / "x" / f"x_000000_000019_leftImg8bit{image}", picture(4, 6))
    save(root / "gtFine" / "train" / "x" / f"x_000000_000019_gtFine_{label}.png", mask)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tif"])
def test_cityscapes_with_images_of_any_format(tmp_path: Path, extension: str) -> None:
    cityscapes(tmp_path / "set", extension, "labelIds", INDICES * 26)
    _, masks = imported(tmp_path / "set", "cityscapes")
    assert {name: counts(mask) for name, mask in masks.items()} == {
        "train/x/x_000000_000019": {13: 12, 255: 12}
    }


def test_cityscapes_with_train_ids_alone(tmp_path: Path) -> None:
    mask = INDICES * 18
    mask[0, 0] = 255
    mask[0, 1] = 19
    cityscapes(tmp_path / "set", ".png", "labelTrainIds", mask)
    classes, masks = imported(tmp_path / "set", "cityscapes")
    assert classes[18] == "bicycle"
    assert counts(masks["train/x/x_000000_000019"]) == {0: 10, 18: 12, 255: 2}


def test_cityscapes_names_what_lies_there(tmp_path: Path) -> None:
    cityscapes(tmp_path / "set", ".png", "polygons", INDICES)
    said = refused(tmp_path / "set", "cityscapes")
    assert "x_000000_000019_leftImg8bit.png has neither ..._gtFine_labelIds.png nor" in said
    assert "gtFine/train/x holds x_000000_000019_gtFine_polygons.png" in said


@pytest.mark.parametrize(
    "labels", [b"{", b"{}", b"[1]", b'[{"name": "a", "id": "1", "trainId": 0}]', b"[" * 99999]
)
def test_cityscapes_labels_that_are_none_are_refused_by_name(tmp_path: Path, labels: bytes) -> None:
    cityscapes(tmp_path / "set", ".png", "labelIds", INDICES)
    put(tmp_path / "set" / "labels.json", labels)
    assert "labels.json" in refused(tmp_path / "set", "cityscapes")


LABEL_COLORS = "64 128 64\tAnimal\n128 128 128\t\tSky\n64 0 128\tCar\n0 0 0\tVoid\n"
CLASS_DICT = "name,r,g,b\nAnimal,64,128,64\nSky,128,128,128\nCar,64,0,128\nVoid,0,0,0\n"


@pytest.mark.parametrize(
    ("images", "masks", "ending", "name", "text"),
    [
        ("train", "trainannot", "", "label_colors.txt", LABEL_COLORS),
        ("train", "trainannot", "_L", "label_colors.txt", LABEL_COLORS),
        ("train", "train_labels", "_L", "class_dict.csv", CLASS_DICT),
        ("701_StillsRaw_full", "LabeledApproved_full", "_L", "label_colors.txt", LABEL_COLORS),
    ],
)
def test_camvid_masks_of_colours(
    tmp_path: Path, images: str, masks: str, ending: str, name: str, text: str
) -> None:
    root = tmp_path / "camvid"
    pixels = coloured((128, 128, 128), (64, 0, 128))
    pixels[0, 0] = (0, 0, 0)
    save(root / images / "0001TP_006690.png", picture(4, 6))
    save(root / masks / f"0001TP_006690{ending}.png", pixels)
    put(root / name, text)
    classes, found = imported(root, "camvid")
    assert classes == ("Animal", "Sky", "Car")
    assert {key: counts(mask) for key, mask in found.items()} == {
        "train/0001TP_006690": {1: 11, 2: 12, 255: 1}
    }


def test_camvid_masks_of_colours_without_a_label_map_name_the_mask_and_the_way_out(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "a.png", picture(4, 6))
    save(root / "trainannot" / "a.png", coloured((128, 128, 128), (64, 0, 128)))
    said = refused(root, "camvid")
    assert "trainannot/a.png is a mask of colours: put what they mean into the data set's root" in said
    assert "label_colors.txt" in said
    assert not (tmp_path / "refused").exists()


def test_segnets_masks_keep_their_meaning_with_a_label_map_beside_them(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "a.png", picture(4, 6))
    save(root / "trainannot" / "a.png", INDICES)
    put(root / "label_colors.txt", LABEL_COLORS)
    classes, masks = imported(root, "camvid")
    assert (len(classes), classes[1]) == (11, "building")
    assert np.array_equal(masks["train/a"], INDICES)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "a.png", picture(4, 6))
    save(root / "trainannot" / "a.png", INDICES)
    put(root / "train" / "b.png", b"")
    said = refused(root, "camvid")
    assert "train/b.png has no mask, neither trainannot/b.png nor trainannot/b_L.png" in said
    assert "trainannot holds a.png" in said
    save(root / "trainannot" / "b.png", INDICES)
    assert "train/b.png cannot be used: the file is empty; replace or remove it" in refused(root, "camvid")
    save(root / "train" / "b.png", picture(4, 6))
    put(root / "trainannot" / "b.png", b"\x89PNG\r\n\x1a\n")
    assert "trainannot/b.png cannot be used: damaged or cut off" in refused(root, "camvid")


def test_what_file_managers_leave_behind_is_no_image(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    save(root / "train" / "a.png", picture(4, 6))
    save(root / "trainannot" / "a.png", INDICES)
    put(root / "train" / "._a.png", b"\0\5\26\7")
    put(root / "train" / "Thumbs.db", b"x")
    assert list(imported(root, "camvid")[1]) == ["train/a"]


@pytest.mark.parametrize("ending", ["", "_mask", "_L"])
@pytest.mark.parametrize("split", ["", "night/"])
def test_colour_masks_with_a_label_map(tmp_path: Path, ending: str, split: str) -> None:
    root = tmp_path / "set"
    save(root / f"{split}images/sub/a.jpg", picture(4, 6))
    save(root / f"{split}masks/sub/a{ending}.png", coloured((128, 128, 128), (64, 0, 128)))
    put(root / "class_dict.csv", CLASS_DICT)
    classes, masks = imported(root, "colour-masks")
    assert classes == ("Animal", "Sky", "Car")
    assert {key: counts(mask) for key, mask in masks.items()} == {f"{split or 'train/'}sub/a": {1: 12, 2: 12}}


def test_colour_masks_say_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save(root / "images" / "a.jpg", picture(4, 6))
    save(root / "masks" / "b.png", coloured((0, 0, 0), (1, 1, 1)))
    assert "has no label map: put one of labelmap.txt, label_colors.txt, class_dict.csv" in refused(
        root, "colour-masks"
    )
    put(root / "labelmap.txt", "a:0,0,0::\nb:1,1,1::")
    assert "images/a.jpg has no PNG mask of its name: add it or remove it (masks holds b.png)" in refused(
        root, "colour-masks"
    )


def test_a_mask_in_a_format_that_changes_colours_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save(root / "images" / "a.jpg", picture(4, 6))
    save(root / "masks" / "a.jpg", coloured((0, 0, 0), (1, 1, 1)))
    put(root / "labelmap.txt", "a:0,0,0::\nb:1,1,1::")
    assert "images/a.jpg has no PNG mask of its name" in refused(root, "colour-masks")


def test_ids_from_1_are_refused_by_name(tmp_path: Path) -> None:
    label_map = "ground:0,0,0::\ndisc:128,0,0::\n"
    voc(tmp_path / "set", INDICES + 1, label_map=label_map)
    said = refused(tmp_path / "set", "voc")
    assert "JPEGImages/a.jpg (ImageSets/Segmentation/train.txt) holds 2, and there are 2 classes" in said


def test_an_export_that_did_not_end_is_not_imported(tmp_path: Path) -> None:
    voc(tmp_path / "set", INDICES)
    put(tmp_path / "set" / "export-unfinished.txt", "x")
    assert "holds an export that did not end: export it again" in refused(tmp_path / "set", "voc")


def test_a_source_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "gone" in refused(tmp_path / "gone", "voc")


@pytest.mark.parametrize("other", ["b/a.png", "a.png"])
def test_of_two_images_of_one_name_neither_is_taken(tmp_path: Path, other: str) -> None:
    root = tmp_path / "set"
    voc(root, INDICES)
    save(root / "JPEGImages" / other, picture(4, 6))
    if other == "b/a.png":
        assert set(imported(root, "voc")[1]) == {"train/a"}
    else:
        said = refused(root, "voc")
        assert "train.txt names a, which is both JPEGImages/a.jpg and JPEGImages/a.png: rename or" in said


@pytest.mark.parametrize("layout", ["camvid", "cityscapes", "colour-masks"])
def test_of_two_images_of_one_name_neither_is_taken_by_other_layouts(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "set"
    if layout == "camvid":
        save(root / "trainannot" / "a.png", INDICES)
        names = ["train/a.jpg", "train/a.png"]
    elif layout == "cityscapes":
        save(root / "gtFine/train/x/a_gtFine_labelIds.png", INDICES)
        names = ["leftImg8bit/train/x/a_leftImg8bit.jpg", "leftImg8bit/train/x/a_leftImg8bit.png"]
    else:
        coloured_set(root, "name,r,g,b\nground,0,0,0\ncat,9,9,9\n")
        names = ["images/a.png"]
    for name in names:
        save(root / name, picture(4, 6))
    assert "is not the only image that becomes" in refused(root, layout)


def test_of_two_masks_of_one_image_neither_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "set"
    coloured_set(root, "name,r,g,b\nground,0,0,0\ncat,9,9,9\n")
    save(root / "masks" / "a_mask.png", coloured((0, 0, 0), (9, 9, 9)))
    said = refused(root, "colour-masks")
    assert "images/a.jpg has two masks, masks/a.png and masks/a_mask.png: remove or rename one" in said
    save(root / "images" / "a_mask.jpg", picture(4, 6))  # then it is that one's
    assert set(imported(root, "colour-masks")[1]) == {"train/a", "train/a_mask"}


def test_of_camvids_two_masks_or_folders_of_masks_neither_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save(root / "train" / "a.png", picture(4, 6))
    for name in ("a", "a_L"):
        save(root / "trainannot" / f"{name}.png", INDICES)
    assert "train/a.png has two masks, trainannot/a.png and trainannot/a_L.png" in refused(root, "camvid")
    save(root / "train_labels" / "a.png", INDICES)
    assert "train has two folders of masks, trainannot and train_labels: remove one" in refused(
        root, "camvid"
    )


def test_cityscapes_labels_that_contradict_each_other_are_refused_by_name(tmp_path: Path) -> None:
    def label(name: str, number: int, train_id: int) -> dict[str, object]:
        return {"name": name, "id": number, "trainId": train_id}

    root = tmp_path / "set"
    cityscapes(root, ".png", "labelIds", INDICES)
    for other, said in (
        (label("car", 0, 1), "labels.json has two labels of the id 0: correct one of them"),
        (label("road", 1, 1), "labels.json has two labels of the name 'road': correct one of them"),
    ):
        put(root / "labels.json", json.dumps([label("road", 0, 0), other]))
        assert said in refused(root, "cityscapes")
    put(root / "labels.json", json.dumps([label("road", 0, 0), label("car", 1, 0)]))
    assert imported(root, "cityscapes")[0] == ("road", "car")  # by the ids
    (root / "gtFine/train/x/x_000000_000019_gtFine_labelIds.png").unlink()
    cityscapes(root, ".png", "labelTrainIds", INDICES)
    assert "two labels of the trainId 0, and gtFine/train/x/" in refused(root, "cityscapes")


def test_grey_masks_of_a_grey_label_map_are_read_by_their_greys(tmp_path: Path) -> None:
    root = tmp_path / "set"
    coloured_set(root, "name,r,g,b\nground,0,0,0\ncat,255,255,255\n")
    save(root / "masks" / "a.png", INDICES * 255)
    assert np.array_equal(imported(root, "colour-masks")[1]["train/a"], INDICES)
    put(root / "class_dict.csv", "name,r,g,b\ncat,255,255,255\nground,0,0,0\n")
    assert np.array_equal(imported(root, "colour-masks")[1]["train/a"], 1 - INDICES)
    save(root / "masks" / "a.png", INDICES)  # 1 is no such grey: indices
    assert np.array_equal(imported(root, "colour-masks")[1]["train/a"], INDICES)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("class_dict.csv", "name,r,g,b\ncat,9,9\ndog,1,1,1\n", "line 2, 'cat,9,9'"),
        ("class_dict.csv", "cat,9,9\ndog,1,1,1\n", "line 1, 'cat,9,9'"),
        ("class_dict.csv", "name,r,g,b\nground,0.0,0,0\n", "line 2, 'ground,0.0,0,0'"),
        ("class_dict.csv", "name;r;g;b\nground;0;0;0\n", "line 2, 'ground;0;0;0'"),
        ("label_colors.txt", "0 0 0 ground\n9 9 cat\n", "line 2, '9 9 cat'"),
        ("label_colors.txt", "0 0 0 ground\n9 9 9\n", "line 2, '9 9 9'"),
        ("labelmap.txt", "ground:0,0,0::\ncat:9,9::\n", "line 2, 'cat:9,9::'"),
    ],
)
def test_a_line_of_a_label_map_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    coloured_set(tmp_path / "set", "")
    (tmp_path / "set" / "class_dict.csv").unlink()
    put(tmp_path / "set" / name, text)
    found = refused(tmp_path / "set", "colour-masks")
    assert f"set/{name}: {said} gives no class and three whole numbers: correct it" in found


def test_label_maps_as_editors_leave_them(tmp_path: Path) -> None:
    for number, (name, text) in enumerate(
        (
            ("class_dict.csv", '\ufeffname, r, g, b\r\n\r\n"ground, bare", 0, 0, 0\r\ncat,9,9,9'),
            ("class_dict.csv", '"ground, bare",0,0,0\ncat,9,9,9\n,,,\n'),
            ("label_colors.txt", "# of streets\n\n0\t0 0\t ground, bare\r\n9 9 9 cat"),
            ("labelmap.txt", "# label:color_rgb:parts:actions\n\nground, bare:0,0,0::\ncat:9,9,9"),
        )
    ):
        root = tmp_path / str(number)
        coloured_set(root, "")
        (root / "class_dict.csv").unlink()
        put(root / name, text)
        classes, masks = imported(root, "colour-masks")
        assert (classes, counts(masks["train/a"])) == (("ground, bare", "cat"), {0: 12, 1: 12})


def test_classes_that_no_data_set_can_have_are_told_of_the_source(tmp_path: Path) -> None:
    coloured_set(tmp_path / "set", "name,r,g,b\ncat,9,9,9\n")
    assert refused(tmp_path / "set", "colour-masks").startswith(f'{tmp_path}/set: "classes" has 1 names')
