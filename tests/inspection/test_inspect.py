"""`segpipe inspect`: figures worked out by hand, and a page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_sets import exif, png, put, saved, scene, write_set
from PIL import Image
from scipy.stats import binom

from segpipe import cli
from segpipe.errors import DatasetError
from segpipe.images import decode_image
from segpipe.inspection.inspect import inspect_data
from segpipe.inspection.key_groups import suggested_groups
from segpipe.inspection.near import near_sets, perceptual_hash
from segpipe.inspection.objects import ObjectSizes, object_diameters

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*arguments: str) -> dict[str, Any]:
        assert cli.run(["inspect", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_images_pixels_and_sizes_are_counted(tmp_path: Path, ask: Ask) -> None:
    root = write_set(tmp_path / "data", classes=("ground", "disc", "fog"))
    put(root / "train/images/wide.png", png(np.zeros((20, 100, 3), np.uint8)))
    mask = np.zeros((20, 100), np.uint8)
    mask[:10] = 255
    put(root / "train/masks/wide.png", png(mask))
    found = ask(str(root))["splits"]["train"]
    truths = [scene(seed)[1] for seed in range(8, 14)]  # the splits are drawn in this order: see write_set
    discs = sum(int(scene(seed)[1].sum()) for seed in range(1, 7))
    assert len(truths) == found["images"] - 1 == 6
    assert (found["smallest_image"], found["largest_image"], found["sizes"]) == ("20x100", "48x64", 2)
    assert found["classes"]["disc"]["pixels"] == discs
    ground = 6 * 48 * 64 - discs + 1000
    assert found["classes"]["ground"] | {"smallest_object": 0, "at_working_size": 0} == {
        "pixels": ground,
        "share": pytest.approx(ground / (ground + discs)),
        "images": 7,
        "whole_images": 1,
        "objects": 7,
        "smallest_object": 0,
        "at_working_size": 0,
    }
    assert found["classes"]["fog"] == {
        "pixels": 0,
        "share": 0,
        "images": 0,
        "whole_images": 0,
        "objects": 0,
        "smallest_object": None,
        "at_working_size": None,
    }
    assert found["ignored_share"] == pytest.approx(1000 / (6 * 48 * 64 + 2000))
    assert found["darkest_value"] == 0


def test_the_smallest_objects_are_measured_and_what_the_working_size_leaves_of_them() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[:10, :10] = mask[50:90, 50:90] = 1  # 100 and 1600 pixels
    mask[200:204, 200:205] = 1  # 20 pixels: taken for a slip
    mask[300:, 300:] = 2
    found = object_diameters(mask, 4)
    assert found[1].tolist() == pytest.approx([2 * math.sqrt(100 / math.pi), 2 * math.sqrt(1600 / math.pi)])
    assert found[2].tolist() == pytest.approx([2 * math.sqrt(10_000 / math.pi)])
    assert sorted(found) == [0, 1, 2]
    sizes = ObjectSizes()
    sizes.add(found, (400, 400))
    own, seen = sizes.smallest(1, (100, 100))
    # The smaller holds 100 of 1700 pixels, a twentieth and more.
    assert own == pytest.approx(11.2838, rel=1e-4)
    assert seen == pytest.approx(own / 4)
    assert sizes.smallest(3, (100, 100)) == (None, None)


def test_crumbs_of_large_objects_do_not_count_as_small_ones() -> None:
    """Twenty of 25 pixels beside one of 22,500: 500 of 23,000 pixels are less than a twentieth."""
    mask = np.zeros((400, 400), np.uint8)
    for number in range(20):
        mask[10 * number : 10 * number + 5, :5] = 1
    mask[200:350, 200:350] = 1
    sizes = ObjectSizes()
    sizes.add(object_diameters(mask, 2), (400, 400))
    assert sizes.count(1) == 21
    assert sizes.smallest(1, (400, 400))[0] == pytest.approx(150 * 2 / math.sqrt(math.pi))


def test_objects_that_the_working_size_loses_are_said(tmp_path: Path) -> None:
    dots = np.zeros((2000, 2000), np.uint8)
    dots[::100, ::100] = dots[1::100, ::100] = dots[2::100, ::100] = 1
    dots = np.maximum.reduce([np.roll(dots, shift, axis=1) for shift in range(9)])  # 3 x 9 pixels each
    root = write_set(tmp_path, {"train": 1})
    put(root / "train/images/dots.png", png(np.zeros((2000, 2000, 3), np.uint8)))
    put(root / "train/masks/dots.png", png(dots))
    lines = [line for line in inspect_data(str(root), None).result.warnings if "smallest objects" in line]
    assert len(lines) == 1
    assert "objects in split train are fewer than 3 cells" in lines[0]
    assert "'disc' (" in lines[0]
    assert "--scale" in lines[0]


def test_the_table_of_promises_is_the_formula(tmp_path: Path, ask: Ask) -> None:
    root = write_set(tmp_path, {"train": 2, "calibration": 24}, size=(16, 16))
    promises = ask(str(root))["promises"]
    assert [one["flawless"] for one in promises] == [59, 45, 29, 22]
    assert [one["enough"] for one in promises] == [[], [], [], ["calibration"]]
    for one in promises:
        share, chance = one["max_bad_fraction"], 1 - one["confidence"]
        assert binom.pmf(0, one["flawless"], share) <= chance < binom.pmf(0, one["flawless"] - 1, share)
    rows = "".join(f"calibration_{number:03d},camera {number // 2}\n" for number in range(24))
    put(root / "groups.csv", f"key,group\n{rows}train_000,a\ntrain_001,a\n".encode())
    assert all(one["enough"] == [] for one in ask(str(root))["promises"])  # 12 groups


def test_copies_and_near_copies_within_and_across_splits(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    original = Image.open(root / "train/images/train_002.png")
    mask = (root / "train/masks/train_002.png").read_bytes()
    for place, content in {
        "train/{}/same": saved(original, "BMP"),
        "train/{}/encoded": saved(original, "JPEG", quality=70),
        "val/{}/scaled": saved(original.resize((48, 36)), "PNG"),
    }.items():
        put(root / (place.format("images") + ".img"), content)
        put(root / (place.format("masks") + ".png"), mask)
    small = Image.open(root / "train/masks/train_002.png").resize((48, 36), Image.Resampling.NEAREST)
    put(root / "val/masks/scaled.png", png(small))
    result = inspect_data(str(root), None).result
    assert result.splits["train"].copies == 1
    assert result.splits["train"].near_copies == 2  # the original, however often, and its JPEG
    assert result.splits["val"].near_copies == 0
    assert any("train_002 is same" in line or "same is encoded" in line for line in result.refused)
    across = [line for line in result.warnings if "of another split" in line]
    assert len(across) == 1
    assert "val/images/scaled.img" in across[0]
    one_split = inspect_data(str(root), "val").result
    assert list(one_split.splits) == ["val"]
    assert one_split.refused == ()


def test_near_hashes_are_found_as_by_comparing_all_pairs() -> None:
    random = np.random.default_rng(1)
    centres = random.integers(0, 2**64, 60, np.uint64)
    flips = [np.uint64(sum(1 << bit for bit in random.permutation(64)[:n])) for n in (0, 1, 2, 3, 4, 9) * 10]
    hashes = np.concatenate([centres, centres ^ np.array(flips)])
    labels = near_sets(hashes)
    expected = {
        (a, b)
        for a in range(120)
        for b in range(a)
        if int(hashes[a] ^ hashes[b]).bit_count() <= 3  # too few and too far apart to form chains
    }
    assert expected == {(a, b) for a in range(120) for b in range(a) if labels[a] == labels[b]}
    assert len(expected) >= 40


def test_many_hashes_take_neither_long_nor_much() -> None:
    hashes = np.random.default_rng(2).integers(0, 2**64, 100_000, np.uint64)
    hashes[50_000:] = 7  # as many flat images
    labels = near_sets(hashes)
    assert len(set(labels[50_000:].tolist())) == 1
    assert len(np.unique(labels)) > 49_000


def test_re_encoding_and_scaling_leave_the_hash_nearly_as_it_is() -> None:
    coarse = np.random.default_rng(5).integers(0, 256, (2, 6, 8, 3), np.uint8)
    image, other = (Image.fromarray(one).resize((640, 480), Image.Resampling.BICUBIC) for one in coarse)
    files = (
        saved(image, "PNG"),
        saved(image, "JPEG", quality=50),
        saved(image.resize((320, 240)), "PNG"),
        saved(other, "PNG"),
    )
    hashes = [perceptual_hash(decode_image(content)) for content in files]
    labels = near_sets(np.array(hashes, np.uint64)).tolist()
    assert labels[0] == labels[1] == labels[2] != labels[3]


def test_groups_that_the_keys_suggest() -> None:
    keys = {"train": [f"0001TP_{n:06d}" for n in range(9)] + [f"0006R0_{n:06d}" for n in range(5)]}
    found = suggested_groups(keys | {"val": ["0016E5_000001", "0016E5_000002", "0006R0_000900"]})
    assert [(one.pattern, one.groups, one.largest, one.in_several_splits) for one in found] == [
        ("^[^_/]+(?=_)", 3, 9, 1)
    ]
    assert suggested_groups({"train": [f"{n:05d}" for n in range(50)]}) == ()
    assert suggested_groups({"train": ["one", "two", "three"], "val": ["four"]}) == ()
    patients = {"train": [f"p{n // 4}/slice{n}" for n in range(40)]}
    assert [(one.pattern, one.groups) for one in suggested_groups(patients)] == [("^.+(?=/)", 10)]


def test_groups_csv_is_compared_with_the_images(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"train": 3, "val": 2})
    lines = ["train_000,a", "train_001,b", "val_000,b", "val_001,c", "gone,c"]
    put(root / "groups.csv", "\n".join(["key,group", *lines]).encode())
    warnings = "\n".join(inspect_data(str(root), None).result.warnings)
    assert "no line for 1 images, train_002 for example" in warnings
    assert "names 1 images that were not seen, gone for example" in warnings
    assert "splits train and val both have images of 1 groups, b for example" in warnings


def test_broken_splits_are_told_and_the_others_looked_at(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "val/masks/val_001.png").unlink()
    put(root / "train/images/train_001.png", b"no image")
    result = inspect_data(str(root), None).result
    assert sorted(result.splits) == ["calibration", "train"]
    assert result.splits["train"].unusable == 1
    assert any("val_001.png has no mask" in line for line in result.refused)
    assert any("1 of 6 images of split train cannot be used" in line for line in result.refused)
    with pytest.raises(DatasetError, match="no split 'tset'; it has: calibration, train, val"):
        inspect_data(str(root), "tset")


def test_a_set_without_any_split_and_a_split_without_a_readable_image(tmp_path: Path) -> None:
    empty = write_set(tmp_path / "empty", {})
    with pytest.raises(DatasetError, match="has no split: put images at"):
        inspect_data(str(empty), None)
    broken = write_set(tmp_path / "broken", {"train": 1}, image=lambda _: b"nothing")
    (split,) = inspect_data(str(broken), None).result.splits.values()
    assert (split.images, split.unusable, split.largest_image) == (1, 1, "0x0")


def test_one_image_of_300_classes_is_too_many_and_of_255_is_looked_at(tmp_path: Path) -> None:
    names = tuple(f"c{number}" for number in range(300))
    with pytest.raises(DatasetError, match="2 to 255"):
        inspect_data(str(write_set(tmp_path / "many", {"train": 1}, classes=names)), None)
    mask = np.repeat(np.arange(48, dtype=np.uint8), 64).reshape(48, 64)
    root = write_set(tmp_path / "most", {"train": 1}, mask=lambda _: png(mask), classes=names[:255])
    found = inspect_data(str(root), None).result.splits["train"].classes
    assert sum(one.pixels > 0 for one in found.values()) == 48
    assert found["c47"].objects == 1


def test_the_page_shows_what_was_found_and_names_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "<data>")
    put(root / "train/images/größe <b>.jpg", saved(scene(99)[0], "JPEG", exif=exif(3)))
    put(root / "train/masks/größe <b>.png", png(scene(99)[1]))
    put(root / "train/masks/train_000.png", b"no mask")
    assert cli.run(["inspect", str(root), "--report", str(tmp_path / "report")]) == 0
    said = capsys.readouterr()
    assert "refused: 1 of 7 images of split train cannot be used" in said.out
    assert "at most 5% bad, 95% confidence   59" in said.out
    page = (tmp_path / "report/index.html").read_text()
    assert "größe &lt;b&gt;" in page
    assert "<b>" not in page
    assert "Turned by EXIF (1, split train)" in page
    assert "Cannot be used (1, split train)" in page
    assert page.count("data:image/jpeg") >= 2 * 7


def test_a_report_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path / "data")
    (tmp_path / "file").write_text("")
    assert cli.run(["inspect", str(root), "--report", str(tmp_path / "file/report")]) == 1
    said = capsys.readouterr()
    assert "look at" not in said.err
    assert said.out == ""


def test_the_range_of_values_is_told_or_suggested(
    tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_set(tmp_path, image=lambda pixels: png(pixels[..., 0].astype(np.uint16) << 4))
    found = ask(str(root))
    low, high = found["splits"]["train"]["suggested_range"]
    assert 0 <= low < 60 << 4 < 190 << 4 < high <= 255 << 4
    assert found["image_range"] is None
    assert cli.run(["inspect", str(root)]) == 0
    assert f"[{low:.0f}, {high:.0f}], by the values of some images" in capsys.readouterr().out
    description = json.loads((root / "dataset.json").read_text()) | {"image": {"range": [low, high]}}
    put(root / "dataset.json", json.dumps(description).encode())
    found = ask(str(root), "--report", str(tmp_path / "page"))
    assert found["image_range"] == [low, high]
    assert found["splits"]["train"]["suggested_range"] is None
    assert (found["splits"]["train"]["darkest_value"], found["splits"]["train"]["brightest_value"]) == (
        0,
        255,
    )
    assert "of the stored values became 0 to 255" in (tmp_path / "page/index.html").read_text()


def test_copies_and_near_copies_of_one_group_are_one_image_as_calibrate_counts_them(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"calibration": 3})
    original = Image.open(root / "calibration/images/calibration_002.png")
    mask = (root / "calibration/masks/calibration_002.png").read_bytes()
    for key, content in {"same": saved(original, "BMP"), "near": saved(original, "JPEG", quality=70)}.items():
        put(root / f"calibration/images/{key}.img", content)
        put(root / f"calibration/masks/{key}.png", mask)

    def found(groups: dict[str, str]) -> tuple[bool, bool]:
        """Whether copies are refused, and whether near copies are warned of."""
        put(
            root / "groups.csv",
            "".join(f"{key},{group}\n" for key, group in [("key", "group"), *groups.items()]).encode(),
        )
        result = inspect_data(str(root), None).result
        split = result.splits["calibration"]
        assert (split.copies, split.near_copies) == (1, 2)
        near = [line for line in result.warnings if "look nearly the same as another of it" in line]
        return bool(result.refused), bool(near)

    assert found({"calibration_002": "a", "same": "a", "near": "a"}) == (False, False)
    assert found({"calibration_002": "a", "same": "a", "near": "b"}) == (False, True)
    assert found({}) == (True, True)
