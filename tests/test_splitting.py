"""`segpipe split`: whole groups, shares that are met, and what is refused before anything is copied."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_sets import png, put, saved, scene, write_set

from segpipe import cli, storage
from segpipe.config import SplitSettings
from segpipe.datasets import list_samples, list_splits, open_dataset, read_sample
from segpipe.errors import DatasetError
from segpipe.groups import read_groups
from segpipe.splitting import allocate, split_data

SHARES = {"train": 0.6, "val": 0.1, "calibration": 0.2, "test": 0.1}


def videos(root: Path, sizes: list[int], size: tuple[int, int] = (8, 8)) -> Path:
    """A data set whose only split, all, has videos of so many frames: images/v3/0.png and so on."""
    write_set(root, {})
    seed = 0
    for number, frames in enumerate(sizes):
        for frame in range(frames):
            seed += 1
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
            put(root / f"all/images/v{number}/{frame}.png", png(pixels))
            put(root / f"all/masks/v{number}/{frame}.png", png((pixels[..., 0] > 128).astype(np.uint8)))
    return root


def split(data: Path | str, target: Path | str, **values: Any) -> Any:
    return split_data(str(data), str(target), SplitSettings(**{"by": "^[^/]+", **values}))


def test_whole_groups_are_copied_byte_by_byte_and_written_down(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [4] * 25)
    found = split(data, tmp_path / "target")
    assert (
        found.images == {"train": 60, "val": 12, "calibration": 20, "test": 8}
        or sum(found.images.values()) == 100
    )
    assert all(abs(found.images[name] - 100 * share) <= 4 for name, share in SHARES.items())
    dataset = open_dataset(str(tmp_path / "target"))
    assert list_splits(dataset) == ["calibration", "test", "train", "val"]
    homes = defaultdict(set)
    for name in list_splits(dataset):
        for sample in list_samples(dataset, name):
            homes[sample.key.split("/")[0]].add(name)
            for folder in ("images", "masks"):
                copy = tmp_path / f"target/{name}/{folder}/{sample.key}.png"
                assert copy.read_bytes() == (data / f"all/{folder}/{sample.key}.png").read_bytes()
    assert len(homes) == 25
    assert all(len(found) == 1 for found in homes.values())
    groups = read_groups(dataset)
    assert groups is not None
    assert groups["v7/3"] == "v7"
    assert len(groups) == 100
    assert (tmp_path / "target/dataset.json").read_bytes() == (data / "dataset.json").read_bytes()


def test_the_range_of_values_is_kept(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [2] * 6)
    description = json.loads((data / "dataset.json").read_text()) | {"image": {"range": [0, 4095]}}
    put(data / "dataset.json", json.dumps(description).encode())
    split(data, tmp_path / "target")
    assert open_dataset(str(tmp_path / "target")).image_range == (0.0, 4095.0)


def test_one_seed_gives_one_draw_and_another_another(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [1] * 40)
    homes = []
    for number, seed in enumerate((1, 1, 2)):
        split(data, tmp_path / str(number), seed=seed)
        files = (tmp_path / str(number)).rglob("images/**/*.png")
        homes.append(sorted(str(path.relative_to(tmp_path / str(number))) for path in files))
    assert homes[0] == homes[1] != homes[2]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=4, max_size=60), seed=st.integers(0, 9), reverse=st.booleans()
)
def test_every_split_gets_a_group_and_none_lacks_more_than_one(
    sizes: list[int], seed: int, reverse: bool
) -> None:
    named = {f"g{number}": size for number, size in enumerate(sizes)}
    placed = allocate(named, SHARES, seed)
    again = allocate(dict(reversed(named.items())) if reverse else named, SHARES, seed)
    assert placed == again
    assert set(placed.values()) == set(SHARES)
    images = Counter()
    for group, name in placed.items():
        images[name] += named[group]
    if len(sizes) >= 40:  # where no split had to be filled at the end
        assert all(images[name] >= share * sum(sizes) - max(sizes) for name, share in SHARES.items())


def test_one_huge_group_leaves_the_others_a_group_each() -> None:
    placed = allocate({"huge": 1000, "a": 1, "b": 1, "c": 1}, SHARES, 0)
    assert placed["huge"] == "train"
    assert sorted(placed.values()) == ["calibration", "test", "train", "val"]


def test_fewer_groups_than_splits_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [5, 5, 5])
    with pytest.raises(DatasetError, match="3 groups are too few for 4 splits"):
        split(data, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert split(data, tmp_path / "target", test=0).images == {"train": 5, "val": 5, "calibration": 5}


def test_groups_csv_says_what_belongs_together(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", {"a": 8, "b": 8})
    rows = [f"{name}_{number:03d},camera {number % 4}" for name in "ab" for number in range(8)]
    put(data / "groups.csv", "\n".join(["key,group", *rows]).encode())
    found = split(data, tmp_path / "target", by="groups")
    assert found.groups == {"train": 1, "val": 1, "calibration": 1, "test": 1}
    with (tmp_path / "target/groups.csv").open(newline="") as file:
        assert {row["key"]: row["group"] for row in csv.DictReader(file)} == dict(
            row.split(",") for row in rows
        )
    assert split(data, tmp_path / "one", by="groups", split=("a",)).images["train"] == 2
    put(data / "groups.csv", "\n".join(["key,group", *rows[1:]]).encode())
    with pytest.raises(DatasetError, match="no line for the image 'a_000'"):
        split(data, tmp_path / "other", by="groups")
    (data / "groups.csv").unlink()
    with pytest.raises(DatasetError, match=r"groups\.csv is missing"):
        split(data, tmp_path / "other", by="groups")


def test_images_that_are_the_same_stay_together(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [1] * 30)
    content = (data / "all/images/v3/0.png").read_bytes()
    for number in range(4, 12):
        put(data / f"all/images/v{number}/0.png", content)
    split(data, tmp_path / "target", by=".+")
    homes = {
        path.parts[-4]
        for path in (tmp_path / "target").rglob("images/*/0.png")
        if path.read_bytes() == content
    }
    assert len(homes) == 1


def test_keys_and_formats_of_every_kind(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data", {})
    names = ["größe.TIF", "日本.png", "a b#c.bmp", "sub/deep/k.webp", "e%20f.jpeg", "noending"]
    for number, name in enumerate(names):
        kind = {"TIF": "TIFF", "bmp": "BMP", "webp": "WEBP", "jpeg": "JPEG"}.get(
            name.rpartition(".")[2], "PNG"
        )
        pixels, mask = scene(number)
        put(data / "all/images" / name, saved(pixels, kind))
        stem = name.rpartition(".")[0] or name
        put(data / f"all/masks/{stem}.png", png(mask))
    split(data, tmp_path / "target", by=".+")
    images = [str(path) for path in (tmp_path / "target").rglob("images/**/*") if path.is_file()]
    assert sorted(path.partition("/images/")[2] for path in images) == sorted(names)
    dataset = open_dataset(str(tmp_path / "target"))
    for name in list_splits(dataset):
        for sample in list_samples(dataset, name):
            read_sample(dataset, sample)


@pytest.mark.parametrize("place", ["", "sub", "../data"])
def test_a_target_in_the_data_is_refused(tmp_path: Path, place: str) -> None:
    data = videos(tmp_path / "data", [1] * 8)
    with pytest.raises(DatasetError, match="overlap"):
        split(data, data / place)
    with pytest.raises(DatasetError, match="overlap"):
        split(data, tmp_path)


def test_a_target_that_holds_something_is_refused(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [1] * 8)
    put(tmp_path / "target/notes.txt", b"mine")
    with pytest.raises(DatasetError, match=r"is not empty, it holds notes\.txt"):
        split(data, tmp_path / "target")


def test_two_images_of_one_key_are_refused(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [1] * 8)
    for folder in ("images", "masks"):
        put(data / f"more/{folder}/v3/0.png", (data / f"all/{folder}/v3/0.png").read_bytes())
    with pytest.raises(DatasetError, match="share the key 'v3/0'"):
        split(data, tmp_path / "target")


def test_unreadable_pairs_are_refused_or_left_out(tmp_path: Path) -> None:
    data = videos(tmp_path / "data", [1] * 8)
    put(data / "all/masks/v3/0.png", b"no mask")
    with pytest.raises(DatasetError, match="1 of 8 images of split all cannot be used"):
        split(data, tmp_path / "target")
    found = split(data, tmp_path / "target", allow=("unreadable",))
    assert sum(found.images.values()) == 7
    assert found.warnings[0].startswith("allowed: 1 of 8")


def test_any_storage_and_the_command(
    tmp_path: Path, s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = videos(tmp_path / "data", [1] * 8)
    target = f"s3://{s3_bucket}/streets"
    assert cli.run(["split", str(data), target, "--by", "^[^/]+", "--val", "0", "--test", "0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == {"train": 6, "calibration": 2}
    assert list_splits(open_dataset(target)) == ["calibration", "train"]
    assert storage.exists(f"{target}/groups.csv")
    assert cli.run(["split", str(data), target, "--by", "("]) == 2
    assert "is not a regular expression" in capsys.readouterr().err
    none = ["--train", "0", "--val", "0", "--calibration", "0", "--test", "0"]
    assert cli.run(["split", str(data), target, "--by", "x", *none]) == 2
    assert "every share is 0" in capsys.readouterr().err
