"""What a labelled set is refused for, and what is said of it, one line each."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from labelled_sets import exif, png, put, saved, scene, write_set
from PIL import Image

from segpipe.datasets import open_dataset
from segpipe.errors import DatasetError
from segpipe.images import class_palette, encode_mask
from segpipe.inspection.checks import (
    copies,
    never_shown,
    require_apart,
    require_no_copies,
    require_unseen,
    require_usable,
    warnings_of,
)
from segpipe.inspection.facts import SplitFacts, look_through


def facts(root: Path, split: str = "train") -> SplitFacts:
    return look_through(open_dataset(str(root)), split)


def refusal(call: object, *arguments: object) -> str:
    with pytest.raises(DatasetError) as refused:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_sound_set_is_counted_and_nothing_is_said(tmp_path: Path) -> None:
    found = facts(write_set(tmp_path))
    assert require_usable(found, ()) == warnings_of(found) == []
    assert copies(found) is None
    truths = [scene(seed)[1] for seed in range(1, 7)]
    assert found.pixels[1] == sum(int(truth.sum()) for truth in truths)
    assert found.pixels.sum() == 6 * 48 * 64
    assert found.images[:2].tolist() == [6, 6]
    assert found.shapes == [(48, 64)] * 6


def test_unreadable_pairs_are_refused_and_named_or_left_out(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    put(root / "train/images/train_001.png", b"no image")
    put(root / "train/masks/train_003.png", png(np.zeros((49, 64), np.uint8)))
    put(root / "train/masks/train_004.png", png(np.full((48, 64, 3), 128, np.uint8)))
    put(root / "train/masks/train_005.png", png(np.full((48, 64), 9, np.uint8)))
    found = facts(root)
    message = refusal(require_usable, found, ())
    assert message.startswith("4 of 6 images of split train cannot be used: ")
    assert "train/images/train_001.png cannot be used: no image" in message
    assert "also train_003, train_004 and 1 more" in message
    assert "--allow unreadable" in message
    (waived,) = require_usable(found, ("unreadable",))
    assert waived.startswith("allowed: 4 of 6 images")
    assert [sample.key for sample in found.usable] == ["train_000", "train_002"]


def test_a_split_of_which_nothing_can_be_used_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    found = facts(write_set(tmp_path, image=lambda _: b"no image"))
    assert "6 of 6 images of split train cannot be used" in refusal(require_usable, found, ("unreadable",))
    assert warnings_of(found) == []


def test_numbers_from_1_are_suspected(tmp_path: Path) -> None:
    root = write_set(tmp_path, mask=lambda mask: png(mask + 1))
    assert "no mask holds a 0: do their numbers begin at 1?" in refusal(require_usable, facts(root), ())
    more = write_set(tmp_path / "more", mask=lambda mask: png(mask + 1), classes=("a", "b", "c"))
    assert warnings_of(facts(more)) == [
        "class 'a' has no pixel in split train (no mask holds a 0: do their numbers begin at 1?)"
    ]


def test_white_that_is_ignored_is_suspected(tmp_path: Path) -> None:
    root = write_set(tmp_path, mask=lambda mask: png(mask * 255))
    assert warnings_of(facts(root))[0] == (
        "class 'disc' has no pixel in split train (its masks hold 0 and 255 alone, and 255 is ignored: save "
        "what is 255 as 1)"
    )


@pytest.mark.parametrize("allow", [(), ("unreadable", "shared", "duplicates")])
def test_a_split_without_a_labelled_pixel_is_refused_whatever_is_allowed(
    tmp_path: Path, allow: tuple[str, ...]
) -> None:
    root = write_set(tmp_path, mask=lambda mask: png(np.full_like(mask, 255)))
    assert "split train has no labelled pixel" in refusal(require_usable, facts(root), allow)


def test_images_shared_by_splits_are_refused_by_their_pixels(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    copy = Image.open(root / "train/images/train_002.png")
    copy.save(root / "val/images/zebra.bmp")  # the same pixels in another file
    put(root / "val/masks/zebra.png", png(np.zeros((48, 64), np.uint8)))  # and labelled otherwise
    train, val = facts(root), facts(root, "val")
    message = refusal(require_apart, train, val, ())
    assert "splits train and val share 1 image" in message
    assert f"{root}/train/images/train_002.png is {root}/val/images/zebra.bmp" in message
    assert "--allow shared" in message
    assert require_apart(train, val, ("shared",)) == [f"allowed: {message.partition(' (--allow')[0]}"]
    assert require_apart(train, facts(root, "calibration"), ()) == []


def test_images_that_a_model_has_seen_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    seen = facts(root).digests
    assert require_unseen(facts(root, "val"), seen, ()) == []
    message = refusal(require_unseen, facts(root), seen, ())
    assert "split train holds 6 images among the images the model was trained on" in message
    assert "train_000.png, " in message
    assert "and 3 more" in message


def test_copies_within_a_split_are_refused_unless_they_are_of_one_group(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for name in ("copy_a", "copy_b"):
        shutil.copy(root / "train/images/train_002.png", root / f"train/images/{name}.png")
        shutil.copy(root / "train/masks/train_002.png", root / f"train/masks/{name}.png")
    found = facts(root)
    message = refusal(require_no_copies, found, None, ())
    assert "split train holds 2 images more than once" in message
    assert "train_002 is copy_a" in message
    assert require_no_copies(found, None, ("duplicates",)) == [f"allowed: {copies(found)}"]
    apart = {sample.key: sample.key for sample in found.usable}
    assert "2 images" in refusal(require_no_copies, found, apart, ())
    assert require_no_copies(found, dict.fromkeys(apart, "one video"), ()) == []


def test_a_class_that_is_nowhere_and_one_that_fills_images_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path, classes=("ground", "disc", "fog", "snow"))
    put(root / "train/masks/train_000.png", png(np.full((48, 64), 3, np.uint8)))
    half = np.full((48, 64), 3, np.uint8)
    half[0] = 255
    put(root / "train/masks/train_001.png", png(half))
    assert warnings_of(facts(root)) == [
        "class 'fog' has no pixel in split train",
        "class 'snow' only ever covers whole images of split train (2 images)",
    ]


def test_many_absent_classes_are_one_line(tmp_path: Path) -> None:
    names = tuple(f"c{number}" for number in range(255))
    (line,) = warnings_of(facts(write_set(tmp_path, classes=names)))
    assert line.startswith("253 classes have no pixel in split train: c2, c3, ")


def test_ignored_pixels_are_said(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for number in (1, 2, 3, 4):
        put(root / f"train/masks/train_{number:03d}.png", png(np.full((48, 64), 255, np.uint8)))
    assert warnings_of(facts(root)) == [
        "67% of the pixels of split train are the ignore index 255: they teach and measure nothing",
        "4 of 6 images of split train (train_001, train_002, train_003 and 1 more) have no labelled pixel: "
        "they teach and measure nothing",
    ]


def test_turns_that_no_size_betrays_are_said_and_others_refused(tmp_path: Path) -> None:
    def turned(name: str, orientation: int, size: tuple[int, int], mask_turned: bool = False) -> SplitFacts:
        jpeg = partial(saved, kind="JPEG", exif=exif(orientation))
        mask = (lambda indices: png(np.rot90(indices))) if mask_turned else png
        return facts(write_set(tmp_path / name, image=jpeg, mask=mask, extension="jpg", size=size))

    for found in (turned("180", 3, (48, 64)), turned("square", 6, (48, 48)), turned("mirrored", 2, (48, 64))):
        (line,) = warnings_of(found)
        assert line.startswith(
            "6 of 6 images of split train (train_000, train_001, train_002 and 3 more) are turned"
        )
    oblong = turned("oblong", 6, (48, 64))
    assert "EXIF orientation 6 turns it; the mask has the size of its stored pixels" in refusal(
        require_usable, oblong, ()
    )
    right = turned("right", 6, (48, 64), mask_turned=True)
    assert (require_usable(right, ()), warnings_of(right)) == ([], [])
    assert right.turned.count == 6


def palette_mask(indices: np.ndarray, palette: list[tuple[int, int, int]]) -> bytes:
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in palette for channel in colour])
    return png(image)


def test_a_palette_of_voc_colours_at_other_indices_is_said(tmp_path: Path) -> None:
    classes = ("background", "aeroplane", "bicycle")
    red, green = (128, 0, 0), (0, 128, 0)
    wrong = write_set(tmp_path / "wrong", mask=partial(palette_mask, palette=[red, green]), classes=classes)
    line = warnings_of(facts(wrong))[-1]
    assert line.startswith("6 of 6 images of split train")
    assert line.endswith(
        "a palette that contradicts their indices: index 0 has the colour that PASCAL VOC gives index 1"
    )
    right = write_set(
        tmp_path / "right", mask=lambda mask: encode_mask(mask, class_palette(3)), classes=classes
    )
    own = [(10, 20, 30), red]  # colours of nobody's
    for sound in (
        right,
        write_set(tmp_path / "own", mask=lambda mask: palette_mask(mask, own), classes=classes),
    ):
        assert warnings_of(facts(sound)) == ["class 'bicycle' has no pixel in split train"]


def test_a_palette_that_differs_from_file_to_file_is_said(tmp_path: Path) -> None:
    root = write_set(tmp_path, mask=lambda mask: palette_mask(mask, [(9, 9, 9), (250, 1, 1)]))
    put(root / "train/masks/train_003.png", palette_mask(1 - scene(4)[1], [(250, 1, 1), (9, 9, 9)]))
    (line,) = warnings_of(facts(root))
    assert line == (
        "1 of 6 images of split train (train_003) have a palette that contradicts their indices: the colour "
        "of index 0 is that of index 1 in train_000"
    )


def test_ignored_pixels_contradict_no_palette(tmp_path: Path) -> None:
    def with_ignored(mask: np.ndarray) -> bytes:
        mask[:2] = 255
        return encode_mask(mask, class_palette(2))

    assert warnings_of(facts(write_set(tmp_path, mask=with_ignored))) == []


def test_12_bits_in_16_are_said(tmp_path: Path) -> None:
    root = write_set(
        tmp_path, image=lambda pixels: saved(pixels[..., 0].astype(np.uint16) << 4, "TIFF"), extension="tif"
    )
    (line,) = warnings_of(facts(root))
    assert "6 of 6 images of split train" in line
    assert "nearly black" in line
    assert "less than an eighth of the range" in line
    values = np.concatenate([scene(seed)[0][..., 0].ravel() for seed in range(1, 7)]).astype(int) << 4
    low, high = np.floor(np.percentile(values, 0.1)), np.ceil(np.percentile(values, 99.9))
    assert f'their values suggest "image": {{"range": [{low:.0f}, {high:.0f}]}} in dataset.json' in line


def test_a_named_range_is_used_and_nothing_is_said(tmp_path: Path) -> None:
    root = write_set(
        tmp_path, image=lambda pixels: saved(pixels[..., 0].astype(np.uint16) << 4, "TIFF"), extension="tif"
    )
    name_range(root, [0, 255 << 4])
    found = facts(root)
    assert warnings_of(found) == []
    pixels = np.stack([scene(seed)[0][..., 0] for seed in range(1, 7)])
    assert found.brightness == (pixels.min(), pixels.max())
    assert found.suggested_range is None


def test_floats_are_refused_with_the_range_to_name_and_used_with_it(tmp_path: Path) -> None:
    def float_tiff(pixels: np.ndarray) -> bytes:
        values = pixels[..., 0].astype(np.float32) / 255
        values[0, :5] = np.nan
        return saved(values, "TIFF")

    root = write_set(tmp_path, image=float_tiff, extension="tif")
    put(root / "train/images/train_004.tif", b"no image")
    put(root / "train/masks/train_005.png", png(np.zeros((49, 64), np.uint8)))
    message = refusal(require_usable, facts(root), ("unreadable",))
    assert "pixel type F has no known value range" in message
    suggested = re.search(
        r'their values suggest "image": \{"range": \[(.*), (.*)\]\} in dataset.json', message
    )
    assert suggested
    values = np.concatenate([scene(seed)[0][1:, :, 0].ravel() for seed in (1, 2, 3, 4, 6)]) / 255
    assert [float(end) for end in suggested.groups()] == pytest.approx(
        np.percentile(values, (0.1, 99.9)), rel=0.02
    )
    name_range(root, [float(end) for end in suggested.groups()])
    found = facts(root)
    assert len(found.usable) == 4
    assert found.brightness == (0, 255)


def name_range(root: Path, image_range: list[float]) -> None:
    description = json.loads((root / "dataset.json").read_text()) | {"image": {"range": image_range}}
    put(root / "dataset.json", json.dumps(description).encode())


def test_a_class_that_masks_never_show_is_named() -> None:
    lines = never_shown(("ground", "disc", "fog"), [90, 10, 0], [100, 0, 0], "val")
    assert lines == ["the model never shows class 'disc', which has 10 pixels in split val"]


def test_macos_files_are_left_aside_and_counted(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    put(root / "train/images/._train_000.png", b"\0\5\x16\7")
    put(root / "train/images/.DS_Store", b"\0")
    put(root / "train/images/Thumbs.db", b"\0")
    found = facts(root)
    assert require_usable(found, ()) == []
    assert found.left_aside == {".db": 1, "hidden": 2}
