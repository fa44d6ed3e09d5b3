"""HEIC, AVIF and JPEG XL, as telephones and browsers give them: named, with what to do, and nothing stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from labelled_sets import put, write_set

from segpipe import storage
from segpipe.cli import run
from segpipe.config import LabelSettings
from segpipe.errors import ImageError
from segpipe.images import decode_image
from segpipe.labeling.run import label_source
from segpipe.manifests.store import read_manifest


def boxed(brand: bytes, *compatible: bytes) -> bytes:
    """The first box of an ISO base media file, and another behind it."""
    content = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(content) + 4).to_bytes(4) + content + b"\0\0\0\x08free" + bytes(40)


FILES = {
    "telephone.heic": (boxed(b"heic", b"mif1", b"heic"), "HEIC"),
    "ten bits.heic": (boxed(b"heix", b"mif1"), "HEIC"),
    "burst.heics": (boxed(b"hevc"), "HEIC"),
    "any.heif": (boxed(b"mif1", b"heic"), "HEIF (HEIC or AVIF)"),
    "still.avif": (boxed(b"avif", b"mif1"), "AVIF"),
    "moving.avif": (boxed(b"avis"), "AVIF"),
    "film.mp4": (boxed(b"isom"), "a video (MP4, QuickTime) or a camera's raw file"),
    "stream.jxl": (b"\xff\x0a" + bytes(40), "JPEG XL"),
    "container.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + boxed(b"jxl "), "JPEG XL"),
    "under another name.jpg": (boxed(b"heic"), "HEIC"),
}


def said(kind: str) -> str:
    return f"{kind} is not supported; convert it to JPEG or PNG"


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_named_with_its_remedy(name: str) -> None:
    content, kind = FILES[name]
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    assert (caught.value.reason, str(caught.value)) == ("unsupported", said(kind))


def test_label_gives_a_row_for_each(
    tmp_path: Path, settings: LabelSettings, make_labeler: Callable, picture: Callable[..., bytes]
) -> None:
    source, output = str(tmp_path / "in"), str(tmp_path / "out")
    for name, (content, _) in FILES.items():
        storage.put(f"{source}/{name}", content)
    storage.put(f"{source}/good.png", picture(5))
    summary = label_source(source, output, make_labeler(), settings)
    assert summary.reasons["unsupported"] == summary.failed == len(FILES)
    rows = {Path(row["image_uri"]).name: row for row in read_manifest(output).to_pylist()}
    assert rows.pop("good.png")["decision"] == "review"
    assert {row["decision"] for row in rows.values()} == {"failed"}
    assert {name: (row["reason"], row["error"]) for name, row in rows.items()} == {
        name: ("unsupported", said(kind)) for name, (_, kind) in FILES.items()
    }


@pytest.mark.parametrize("name", ["telephone.heic", "still.avif", "stream.jxl", "container.jxl"])
def test_train_and_inspect_name_it(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data", {"train": 3, "val": 2}, size=(32, 32))
    content, kind = FILES[name]
    (data / "train/images/train_001.png").unlink()
    put(data / f"train/images/train_001{Path(name).suffix}", content)
    assert (
        run(
            [
                "train",
                "--data",
                str(data),
                "--model",
                str(tmp_path / "model"),
                "--epochs",
                "1",
                "--device",
                "cpu",
            ]
        )
        == 1
    )
    assert f"train_001{Path(name).suffix} cannot be used: {said(kind)}" in capsys.readouterr().err
    run(["inspect", str(data)])
    assert said(kind) in "".join(capsys.readouterr())
