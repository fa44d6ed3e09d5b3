"""The inventory plans whatever may be an image and counts all it leaves aside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.labeling import inventory, inventory_list


@dataclass(frozen=True)
class Taken:
    """An inventory that has been read."""

    objects: pa.Table
    skipped: dict[str, int]


def take_inventory(source: str, output: str) -> Taken:
    found = inventory.take_inventory(source, output)
    objects = pa.Table.from_batches(found.objects, inventory_list.OBJECT_SCHEMA)
    return Taken(objects, dict(found.skipped))


def put_all(root: str, *keys: str) -> None:
    for key in keys:
        storage.put(f"{root}/{key}", key.encode())


def test_images_unknown_and_bare_names_are_planned_sidecars_and_hidden_counted(storage_root: str) -> None:
    planned = ["a.JPG", "b/c.png", "b/noname", "d.heic", "e.txt.png", "f.xyz"]
    put_all(storage_root, *planned, "x.txt", "y.TXT", "b/z.json", ".DS_Store", "b/.thumbs/t.jpg")
    found = take_inventory(storage_root, f"{storage_root}-out")
    assert found.objects["image_key"].to_pylist() == planned
    assert found.skipped == {".json": 1, ".txt": 2, "hidden": 2}


def test_an_object_is_described_as_it_was_listed(storage_root: str) -> None:
    put_all(storage_root, "b/c.png")
    (row,) = take_inventory(storage_root, f"{storage_root}-out").objects.to_pylist()
    blob = storage.read(f"{storage_root}/b/c.png")
    uri = f"{storage.normalise(storage_root)}/b/c.png"
    assert row == {
        "image_uri": uri,
        "image_key": "b/c.png",
        "image_etag": blob.etag,
        "image_bytes": 7,
        "storage_class": "",
    }


def test_what_lies_below_an_output_inside_the_source_is_no_input(storage_root: str) -> None:
    put_all(
        storage_root,
        "a.jpg",
        "out/masks/m/a.jpg.png",
        "out/confidence_maps/m/a.jpg.png",
        "out/manifests/p.parquet",
        "output.jpg",
    )
    found = take_inventory(storage_root, f"{storage_root}/out/")
    assert found.objects["image_key"].to_pylist() == ["a.jpg", "output.jpg"]
    assert found.skipped == {}


def test_a_source_inside_the_output_is_read_as_any_other(storage_root: str) -> None:
    put_all(storage_root, "images/a.jpg")
    assert take_inventory(f"{storage_root}/images", storage_root).objects.num_rows == 1


def test_more_objects_than_one_chunk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpipe.labeling.inventory._CHUNK", 3)
    put_all(str(tmp_path), *(f"{number}.jpg" for number in range(7)))
    keys = take_inventory(str(tmp_path), "/nowhere").objects["image_key"].to_pylist()
    assert keys == [f"{number}.jpg" for number in range(7)]


def test_nothing_to_label_says_what_was_there(storage_root: str) -> None:
    put_all(storage_root, "in/x.txt", "in/y.txt", "in/.hidden.jpg")
    with pytest.raises(RunError, match=r"no images under .*in \(only 2 \.txt, 1 hidden\)"):
        take_inventory(f"{storage_root}/in", f"{storage_root}/out")


def test_an_empty_source_says_so(tmp_path) -> None:
    with pytest.raises(RunError, match=r"no images under .* empty"):
        take_inventory(str(tmp_path), "/nowhere")


def test_a_missing_source_is_named(tmp_path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        take_inventory(str(tmp_path / "nowhere"), str(tmp_path / "out"))


def test_output_and_source_must_differ(tmp_path) -> None:
    with pytest.raises(RunError, match="SOURCE and OUTPUT"):
        take_inventory(f"{tmp_path}/", str(tmp_path))


def test_masks_and_maps_of_another_output_inside_source_are_left_aside_and_counted(tmp_path: Path) -> None:
    own = [f"labels/{folder}/0123456789ab/a.jpg.png" for folder in ("masks", "confidence_maps")]
    own.append(f"labels/reviews/masks/{'0123456789abcdef' * 2}/{'fedcba9876543210' * 2}.png")
    for key in ("a.jpg", *own, "masks/scan.png", "confidence_maps/scan.png"):
        storage.put(f"{tmp_path}/{key}", b"x")
    found = take_inventory(str(tmp_path), str(tmp_path / "other"))
    assert found.objects["image_key"].to_pylist() == [
        "a.jpg",
        "confidence_maps/scan.png",
        "masks/scan.png",
    ]
    assert found.skipped == {"confidence maps of another OUTPUT": 1, "masks of another OUTPUT": 2}


def test_names_that_are_not_utf8_are_counted_and_the_rest_is_planned(tmp_path: Path) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    put_all(source, "a.png", "b/c.png")
    for name in (b"/b/bild-\xfc.png", b"/d\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(source) + name)).write_bytes(b"x")
    found = take_inventory(source, output)
    assert found.objects["image_key"].to_pylist() == ["a.png", "b/c.png"]
    assert found.skipped == {"names that are not UTF-8": 2}


def test_a_folder_of_nothing_but_such_names_says_so(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/d\xe9.jpg")).write_bytes(b"x")
    with pytest.raises(RunError, match=r"no images under .* \(only 1 names that are not UTF-8\)"):
        take_inventory(str(source), str(tmp_path / "out"))
