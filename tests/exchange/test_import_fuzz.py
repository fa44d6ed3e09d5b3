"""Foreign annotation files of any content: either one clear error, or a data set that training can read."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segpipe import storage
from segpipe.datasets import list_samples, list_splits, open_dataset, read_sample
from segpipe.errors import SegpipeError
from segpipe.exchange.importing import import_dataset

HEIGHT, WIDTH = 6, 8
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

odd_numbers = st.sampled_from(
    [0, -1, 1, 4, 5, 7, 1.5, 1e18, -1e18, 2**31, 2**63, 10**30, float("nan"), float("inf"), 1e308]
)
odd = st.one_of(
    st.none(), st.booleans(), odd_numbers, st.text(max_size=3), st.just([]), st.just({}), st.just([[]])
)
coordinates = st.lists(
    st.one_of(st.integers(-3, 11), st.floats(-2, 10), odd_numbers, st.just(None)), max_size=9
)
packed = st.one_of(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=8), st.just("`0P1"))
runs = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just([HEIGHT, WIDTH]), st.lists(odd, max_size=3)),
        "counts": st.one_of(
            st.lists(st.one_of(st.integers(0, 50), odd), max_size=4), packed, st.just([10, 10, 28]), odd
        ),
    }
)
segmentations = st.one_of(odd, coordinates, st.lists(st.one_of(coordinates, odd), max_size=3), runs)
good_image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
good_square = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
images = st.one_of(
    st.just(good_image),
    odd,
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.one_of(st.just(1), odd),
            "file_name": st.one_of(st.sampled_from(["a.png", "train\\a.png", "../x.png", "", "a"]), odd),
            "height": st.one_of(st.just(HEIGHT), odd),
            "width": st.one_of(st.just(WIDTH), odd),
        },
    ),
)
annotations = st.one_of(
    st.just(good_square),
    odd,
    st.fixed_dictionaries(
        {},
        optional={
            "id": odd,
            "image_id": st.one_of(st.just(1), odd),
            "category_id": st.one_of(st.just(1), odd),
            "segmentation": segmentations,
        },
    ),
    st.builds(lambda shape: good_square | {"segmentation": shape}, segmentations),
)
categories = st.one_of(
    st.just({"id": 1, "name": "cat"}),
    st.fixed_dictionaries({"id": odd, "name": st.one_of(st.text(max_size=3), odd)}),
    odd,
)


def parts(one: st.SearchStrategy[Any], first: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly a list that begins well, so that what follows is reached."""
    return st.one_of(
        st.lists(one, max_size=3).map(lambda rest: [first, *rest]), st.lists(one, max_size=2), odd
    )


coco_contents = st.one_of(
    st.fixed_dictionaries(
        {
            "images": parts(images, good_image),
            "annotations": parts(annotations, good_square),
            "categories": parts(categories, {"id": 1, "name": "cat"}),
        }
    ).map(lambda content: json.dumps(content).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"[" * 100_000, b"1" * 5_000, b"null", b"\xff{}"]),
)

colours = st.tuples(*[st.sampled_from([0, 64, 128, 255, 256, 10**20])] * 3)
label_lines = st.one_of(
    st.text(max_size=12),
    st.builds(
        lambda name, colour: f"{name}:{','.join(map(str, colour))}::",
        st.sampled_from(["cat", "dog", "# a", "background", "void", ""]),
        colours,
    ),
)
label_maps = st.one_of(
    st.lists(label_lines, max_size=4).map(lambda lines: "\n".join(lines).encode()), st.binary(max_size=9)
)
lists = st.one_of(
    st.lists(st.sampled_from(["a", "a 1", "b", "../a", "", "a.png"]), max_size=3).map(
        lambda lines: "\n".join(lines).encode()
    ),
    st.binary(max_size=9),
)


@st.composite
def mask_files(draw: st.DrawFn) -> bytes:
    """PNG masks of every kind, and what is none."""
    kind = draw(st.sampled_from(["L", "P", "RGB", "RGBA", "LA", "1", "I;16", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=20))
    values = np.array(draw(st.lists(st.sampled_from([0, 1, 2, 15, 255]), min_size=48, max_size=48)), np.uint8)
    grey = Image.fromarray(values.reshape(HEIGHT, WIDTH).astype(np.uint16 if kind == "I;16" else np.uint8))
    if kind == "P":
        grey.putpalette(draw(st.lists(st.sampled_from([0, 64, 128, 192]), min_size=3, max_size=60)))
    image = grey if kind in ("P", "I;16") else grey.convert(kind)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def check_import(root: Path, layout: str) -> None:
    """One clear error, or what train reads."""
    target = f"memory://fuzz{root}"
    try:
        result = import_dataset(str(root), target, layout)
    except SegpipeError:
        assert not storage.exists(f"{target}/dataset.json")
        return
    dataset = open_dataset(target)
    assert list_splits(dataset) == sorted(result.images)
    for split, count in result.images.items():
        samples = list_samples(dataset, split)
        assert len(samples) == count
        for sample in samples:
            read_sample(dataset, sample)


@given(coco_contents)
@FEW
def test_coco_of_any_content(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        save_image(root / "train" / "a.png")
        put(root / "annotations" / "train.json", content)
        check_import(root, "coco")


@given(label_maps, lists, mask_files(), st.booleans())
@FEW
def test_voc_of_any_content(label_map: bytes, names: bytes, mask: bytes, mapped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        save_image(root / "JPEGImages" / "a.png")
        put(root / "SegmentationClass" / "a.png", mask)
        put(root / "ImageSets" / "Segmentation" / "train.txt", names)
        if mapped:
            put(root / "labelmap.txt", label_map)
        check_import(root, "voc")


@given(st.one_of(label_maps, st.text(max_size=20).map(str.encode)), mask_files(), st.integers(0, 2))
@FEW
def test_label_maps_of_any_content(content: bytes, mask: bytes, kind: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        save_image(root / "images" / "a.png")
        put(root / "masks" / "a.png", mask)
        put(root / ("labelmap.txt", "label_colors.txt", "class_dict.csv")[kind], content)
        check_import(root, "colour-masks")
