"""Where COCO's annotation files and the images that they name lie, in the layouts that are published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from segpipe.datasets import key_of
from segpipe.exchange.imports.source import Source

_ROBOFLOW = "_annotations.coco.json"
_INSTANCES = "instances_"
_NO_SPLIT = ("annotations", "_annotations", "coco", "instances", "labels", "result")
_ONLY_SPLIT = "train"


def annotation_files(source: Source) -> list[tuple[str, str]]:
    """(split, key) of the files to read: annotations/*.json, Roboflow's, or what lies in the root.

    Beside an instances_*.json the others, captions and keypoints, tell of the same images and are not read.
    """
    files = [key for key in source.uris if key.endswith(".json")]
    usual = [key for key in files if _is_usual(key)]
    chosen = usual or [key for key in files if key.count("/") <= 1]
    with_instances = {_folder(key) for key in chosen if _name(key).startswith(_INSTANCES)}
    return [
        (_split(key), key)
        for key in chosen
        if _folder(key) not in with_instances or _name(key).startswith(_INSTANCES)
    ]


def image_key(source: Source, annotations: str, split: str, file_name: str) -> tuple[str, str] | None:
    """(key of the image, its path without extension below its split); None where no such image lies.

    file_name may have Windows' separators and begin with the split's folder.
    """
    path = file_name.replace("\\", "/").removeprefix("./")
    if not path or {"", ".", ".."} & set(path.split("/")):
        return None
    for folder in _image_folders(_folder(annotations), split):
        if (key := f"{folder}{path}") in source.uris:
            return key, key_of(path.removeprefix(f"{split}/"))
    return None


def _image_folders(beside: str, split: str) -> Iterator[str]:
    yield from (f"{split}/", f"images/{split}/", f"{split}/images/", "images/", "")
    if beside:
        yield from (f"{beside}/", f"{beside}/images/")


def _is_usual(key: str) -> bool:
    return _folder(key) == "annotations" or _name(key) == _ROBOFLOW


def _split(key: str) -> str:
    """From the file's name, or its folder's where that says nothing."""
    name, folder = PurePosixPath(key).stem.removeprefix(_INSTANCES), _name(_folder(key))
    if _name(key) == _ROBOFLOW or name in _NO_SPLIT:
        return folder if folder not in ("", "annotations") else _ONLY_SPLIT
    return name


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _name(key: str) -> str:
    return key.rpartition("/")[2]
