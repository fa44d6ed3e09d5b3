"""What many threads bring to one device: batches that grow while it is busy, and nobody left waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import write_random_model

from segpipe.config import LabelSettings
from segpipe.errors import DeviceError, DeviceMemoryError
from segpipe.images import class_palette
from segpipe.labeling import batch, gathering
from segpipe.labeling.engines.local import label_images
from segpipe.labeling.gathering import Gathered, Gathering, served
from segpipe.labeling.items import DecodedPixels, Legs, PlannedImage, Target
from segpipe.labeling.steps import BatchLimit, judge_at_size
from segpipe.models.labeler import load_model


def image(name: str, height: int = 10, width: int = 10) -> DecodedPixels:
    return DecodedPixels(name, height, width)


class Device:
    """Says the images' names back; is busy with its first batch until it is let go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.busy, self.go_on = threading.Event(), threading.Event()

    def __call__(self, images: Sequence[DecodedPixels]) -> list[str]:
        self.batches.append([one.pixels for one in images])
        self.busy.set()
        assert self.go_on.wait(60)
        return [one.pixels.upper() for one in images]


@contextmanager
def bringing(
    device: Callable[..., Any], most: int, brought: list[list[DecodedPixels]]
) -> Iterator[list[Future[Gathered]]]:
    """The first is brought to a device that is then busy, the others, in order, as it is."""
    place = Gathering(device, BatchLimit(most))
    with (
        ThreadPoolExecutor(1) as serving,
        ThreadPoolExecutor(len(brought)) as threads,
        served(place, serving, 1),
    ):
        answers = []
        for number, images in enumerate(brought):
            answers.append(threads.submit(place.judged, images))
            if number == 0:
                assert device.busy.wait(60)  # type: ignore[attr-defined]
            while len(place._waiting) < number:
                pass
        yield answers


def test_what_comes_while_the_device_is_busy_goes_together_and_each_gets_its_own() -> None:
    device = Device()
    brought = [[image("a")], [image("b"), image("c")], [image("d")], [image("e"), image("f")]]
    with bringing(device, 4, brought) as answers:
        device.go_on.set()
        found = [answer.result(60).answers for answer in answers]
    assert found == [["A"], ["B", "C"], ["D"], ["E", "F"]]
    assert device.batches == [["a"], ["b", "c", "d"], ["e", "f"]]  # of at most four


def test_masks_that_would_fill_the_memory_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MASK_PIXELS_AT_ONCE", 250)
    device = Device()
    brought = [[image("a")], [image("b")], [image("c")], [image("d", 100, 100)], [image("e")]]
    with bringing(device, 64, brought) as answers:
        device.go_on.set()
        for answer in answers:
            answer.result(60)
    assert device.batches == [["a"], ["b", "c"], ["d"], ["e"]]


def test_the_time_of_a_batch_is_shared_out_over_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 108.0, 200.0, 206.0])
    monkeypatch.setattr(gathering, "perf_counter", lambda: next(now))
    device = Device()
    with bringing(device, 4, [[image("a")], [image("b"), image("c")], [image("d")]]) as answers:
        device.go_on.set()
        assert [answer.result(60).seconds_each for answer in answers] == [8.0, 2.0, 2.0]


def test_a_batch_that_fails_is_told_to_all_who_are_in_it_and_to_no_other() -> None:
    device = Device()

    def fails_once(images: Sequence[DecodedPixels]) -> list[str]:
        answers = device(images)
        if "b" in device.batches[-1]:
            raise DeviceError("the cuda device has failed")
        return answers

    fails_once.busy = device.busy  # type: ignore[attr-defined]
    with bringing(fails_once, 2, [[image("a")], [image("b")], [image("c")], [image("d")]]) as answers:
        device.go_on.set()
        found = [answer.exception(60) or answer.result().answers for answer in answers]
    assert [str(one) for one in found] == ["['A']", *["the cuda device has failed"] * 2, "['D']"]


def test_a_device_thread_that_cannot_begin_leaves_nobody_waiting() -> None:
    def no_stream() -> None:
        raise DeviceError("no stream")

    place = Gathering(lambda images: images, BatchLimit(4))
    with (
        ThreadPoolExecutor(1, initializer=no_stream) as threads,
        served(place, threads, 1),
        ThreadPoolExecutor(1) as bringing_it,
    ):
        assert bringing_it.submit(place.judged, [image("a")]).exception(60) is not None


def test_a_batch_that_the_device_refuses_is_halved_from_then_on(make_labeler: Any) -> None:
    sizes = []

    def small(images: list[np.ndarray]) -> None:
        sizes.append(len(images))
        if len(images) > 2:
            raise DeviceMemoryError("no memory for that many")

    limit = BatchLimit(8)
    images = [DecodedPixels(np.zeros((5, 6, 3), np.uint8), 5, 6)] * 8
    assert len(judge_at_size(images, make_labeler(before=small), limit)) == 8
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert limit.images == 2


def test_the_wait_for_the_device_is_a_leg_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        now = 0.0

        def judged(self, images: Sequence[DecodedPixels]) -> Gathered:
            Slow.now += 12.0  # of which the device had 1 second for each image
            return Gathered(["mask"] * len(images), 1.0)

    monkeypatch.setattr(batch, "perf_counter", lambda: Slow.now)
    failed = batch.InWork(None, Legs(decode=1.0), None, ValueError(), "unreadable")  # type: ignore[arg-type]
    items = [batch.InWork(None, Legs(decode=1.0), image(name)) for name in "ab"]  # type: ignore[arg-type]
    after = batch._judged_together([items[0], failed, items[1]], Slow())  # type: ignore[arg-type, list-item]
    assert [one.legs for one in after] == [
        Legs(decode=1.0, infer=1.0, device=5.0),
        Legs(decode=1.0),
        Legs(decode=1.0, infer=1.0, device=5.0),
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"scale": 1.0, "tile": (64, 96), "margin": 16}], ids=["fitted", "tiles"]
)
def test_a_real_model_gives_the_same_masks_and_rows_gathered(
    tmp_path: Path, encoded: Callable[..., bytes], changes: dict[str, Any]
) -> None:
    """On the CPU, with the code that a GPU would run."""
    model = load_model(write_random_model(str(tmp_path / "model"), **changes), "cpu")
    (tmp_path / "in").mkdir()
    # Of draws without a pixel where two classes are level: there both ways of raising a mask may round.
    draws, images = np.random.default_rng(1), []
    for number in range(12):
        blocks = draws.integers(0, 256, (6 + number % 2, 9, 3), dtype=np.uint8)
        path = tmp_path / "in" / f"{number}.png"
        path.write_bytes(encoded(np.kron(blocks, np.ones((16, 16, 1), np.uint8))))
        images.append(PlannedImage(0, str(path), "listed", 1, f"{number}.png"))
    (tmp_path / "in" / "3.png").write_bytes(b"no image")
    found = {}
    for name, labeler in (("each", model), ("gathered", replace(model, gathered_images=5))):
        target = Target(str(tmp_path / name), None, "r1", model.model_id, class_palette(3), lambda: None)
        settings = LabelSettings(batch_images=2, fetch_threads=3)
        rows = [outcome.row for outcome in label_images(images, labeler, target, settings)]
        found[name] = [(row.reason, row.mask_sha256, row.discriminator_score) for row in rows]
    assert found["gathered"] == found["each"]
    assert [reason for reason, _, _ in found["each"]].count("unreadable") == 1
