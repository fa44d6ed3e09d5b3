"""The stages of a shard: order, bounded prefetch, and failures that stay with the image they belong to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segpipe import storage
from segpipe.config import LabelSettings
from segpipe.errors import DeviceError, DeviceMemoryError, ModelError, RunError, StorageError
from segpipe.images import class_palette, decode_image, decode_mask
from segpipe.labeling import batch
from segpipe.labeling.engines import local
from segpipe.labeling.engines.local import label_images
from segpipe.labeling.items import Legs, Outcome, PlannedImage, Target
from segpipe.labeling.steps import BatchLimit

MODEL = "aaaaaaaaaaaa"


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(
        masks_root=str(tmp_path / "masks"),
        confidence_maps_root=None,
        run_id="r1",
        model_id=MODEL,
        palette=class_palette(2),
        require_claim=lambda: None,
    )


@pytest.fixture
def images(tmp_path: Path, fill: Callable[..., list[str]]) -> list[PlannedImage]:
    """Ten images, four to a shard."""
    uris = fill(str(tmp_path / "in"), 10)
    return [PlannedImage(n // 4, uri, "listed", 1, f"{n}.png") for n, uri in enumerate(uris)]


@pytest.fixture(params=[None, 4], ids=["each core", "gathered"])
def make_labeler(request: pytest.FixtureRequest, make_labeler: Callable[..., Any]) -> Callable[..., Any]:
    """As on a CPU, where each core judges its own batch, and as on a GPU, which all feed."""
    return partial(make_labeler, gathered_images=request.param)


def reasons(outcomes: list[Outcome]) -> list[str]:
    return [outcome.row.reason for outcome in outcomes]


def test_rows_come_in_the_order_of_the_plan_with_what_was_read(
    images, target, settings, make_labeler
) -> None:
    outcomes = list(label_images(images, make_labeler(), target, settings))
    for image, row in zip(images, (outcome.row for outcome in outcomes), strict=True):
        blob = storage.read(image.image_uri)
        assert (row.image_uri, row.shard) == (image.image_uri, image.shard)
        assert (row.image_etag, row.image_bytes) == (blob.etag, len(blob.data))


def test_a_row_says_what_the_labeler_said_and_its_mask_is_stored(
    images, target, settings, make_labeler
) -> None:
    # Picture 0 is 5 x 6: the left half 255 (class 1), the right half 127 (class 0).
    row = next(label_images(images, make_labeler(), target, settings)).row
    data = storage.read_bytes(f"{target.masks_root}/0.png")
    assert row.mask_uri == f"{target.masks_root}/0.png"
    assert row.mask_sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(decode_mask(data), [[1, 1, 1, 0, 0, 0]] * 5)
    assert (row.image_width, row.image_height) == (6, 5)
    assert (row.decision, row.reason, row.policy_id) == ("review", "no_policy", None)
    assert row.discriminator_score == pytest.approx((255 + 127) / 2 / 255)
    assert row.class_fractions == [0.5, 0.5]
    assert (row.audit, row.inclusion_probability, row.error) == (False, 1.0, None)


def test_a_class_that_is_not_in_the_mask_has_no_confidence(
    tmp_path, target, settings, make_labeler, picture
) -> None:
    storage.put(str(tmp_path / "dark.png"), picture(0))
    dark = PlannedImage(0, str(tmp_path / "dark.png"), "e", 1, "dark.png")
    (outcome,) = label_images([dark], make_labeler(), target, settings)
    assert outcome.row.class_fractions == [1.0, 0.0]
    assert outcome.row.class_confidences == [0.0, None]


@pytest.fixture
def mapped(target: Target, tmp_path: Path) -> Target:
    """A target that wants confidence maps."""
    return replace(target, confidence_maps_root=str(tmp_path / "maps"))


def test_a_confidence_map_that_is_wanted_is_stored_with_the_mask(
    images, mapped, settings, make_labeler
) -> None:
    for outcome in label_images(images, make_labeler(), mapped, settings):
        row, key = outcome.row, outcome.row.mask_uri.removeprefix(f"{mapped.masks_root}/")
        assert row.confidence_map_uri == f"{mapped.confidence_maps_root}/{key}"
        with Image.open(BytesIO(storage.read_bytes(row.confidence_map_uri))) as stored:
            assert (stored.mode, stored.size) == ("L", (row.image_width, row.image_height))
            grey = np.asarray(stored)
        # The labeler's map is the image's own brightness, so its corners are the corner pixels' brightness.
        pixels = decode_image(storage.read_bytes(row.image_uri))
        assert (grey[0, 0], grey[0, -1]) == (pixels[0, 0, 0], pixels[0, -1, 0])


def test_without_asking_there_are_no_confidence_maps(images, target, settings, make_labeler) -> None:
    labeler = make_labeler()
    outcomes = list(label_images(images, labeler, target, settings))
    assert {outcome.row.confidence_map_uri for outcome in outcomes} == {None}
    assert sorted(path.name for path in Path(target.masks_root).parent.iterdir()) == ["in", "masks"]


def test_a_confidence_map_that_cannot_be_written_is_a_storage_failure(
    images, mapped, settings, make_labeler
) -> None:
    storage.put(f"{mapped.confidence_maps_root}/4.png/in-the-way", b"")
    outcomes = list(label_images(images, make_labeler(), mapped, settings))
    assert reasons(outcomes) == ["no_policy"] * 4 + ["storage"] + ["no_policy"] * 5
    assert (outcomes[4].row.mask_uri, outcomes[4].row.confidence_map_uri) == (None, None)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "unreadable"), (b"<html>", "unreadable"), (b"....ftypheic", "unsupported")]
)
def test_a_bad_image_fails_alone(images, target, settings, make_labeler, data: bytes, reason: str) -> None:
    storage.put(images[4].image_uri, data)
    outcomes = list(label_images(images, make_labeler(), target, settings))
    assert reasons(outcomes) == ["no_policy"] * 4 + [reason] + ["no_policy"] * 5
    failed = outcomes[4].row
    assert failed.decision == "failed"
    assert failed.error
    assert "\n" not in failed.error
    assert (failed.image_bytes, failed.image_etag) == (len(data), storage.read(images[4].image_uri).etag)
    assert (failed.mask_uri, failed.mask_sha256, failed.confidence, failed.class_fractions) == (None,) * 4


def test_too_many_pixels_fail_undecoded(images, target, make_labeler) -> None:
    outcomes = list(label_images(images, make_labeler(), target, LabelSettings(max_image_pixels=30)))
    assert reasons(outcomes) == ["no_policy", "too_large"] * 5  # pictures of 5 x 6 and 6 x 6


def test_an_object_of_too_many_bytes_is_not_even_read(images, target, make_labeler, monkeypatch) -> None:
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda uri, *_: read(uri) if uri != images[1].image_uri else 1 / 0)
    large = [replace(image, image_bytes=2000) if n == 1 else image for n, image in enumerate(images)]
    outcomes = list(label_images(large, make_labeler(), target, LabelSettings(max_image_bytes=1999)))
    assert reasons(outcomes) == ["no_policy", "too_large"] + ["no_policy"] * 8


@pytest.mark.parametrize("listed", [1, 0])
def test_an_object_of_more_bytes_than_listed_is_too_large_as_soon_as_that_is_seen(
    images, target, make_labeler, listed: int
) -> None:
    sizes = [len(storage.read_bytes(image.image_uri)) for image in images]
    storage.put(images[1].image_uri, storage.read_bytes(images[1].image_uri) + bytes(1000))
    planned = [replace(image, image_bytes=listed) for image in images]
    settings = LabelSettings(max_image_bytes=max(sizes))
    outcomes = list(label_images(planned, make_labeler(), target, settings))
    assert reasons(outcomes) == ["no_policy", "too_large"] + ["no_policy"] * 8
    assert f"over {max(sizes)}; shrink it or raise the limit" in outcomes[1].row.error


def test_12_bits_in_16_are_labelled_and_said_once(
    tmp_path, target, settings, make_labeler, encoded, caplog
) -> None:
    dark = encoded(np.full((5, 6), 4095, np.uint16), "TIFF")
    uris = [str(tmp_path / f"{number}.tif") for number in range(3)]
    for uri in uris:
        storage.put(uri, dark)
    planned = [PlannedImage(0, uri, "e", 1, f"{number}.png") for number, uri in enumerate(uris)]
    with caplog.at_level("WARNING"):
        assert reasons(label_images(planned, make_labeler(), target, settings)) == ["no_policy"] * 3
    (said,) = [record.getMessage() for record in caplog.records if "nearly black" in record.getMessage()]
    assert said.startswith("3 images are nearly black")
    assert "image.range of dataset.json" in said
    assert any(uri in said for uri in uris)


def test_images_are_brought_to_the_range_of_the_model_and_none_is_called_dark(
    tmp_path, target, settings, make_labeler, encoded, caplog
) -> None:
    # 1000 to 3000 become 0 and 255; 2100 of them 140, which is bright, and 1900 not.
    deep = np.repeat(np.array([[1900, 2100]], np.uint16), 3, axis=0)
    files = {
        "a.tif": encoded(deep, "TIFF"),
        "b.png": encoded(deep),
        "c.tif": encoded(deep.astype(np.float32), "TIFF"),
    }
    for name, content in files.items():
        storage.put(str(tmp_path / name), content)
    planned = [PlannedImage(0, str(tmp_path / name), "e", 1, f"{name}.png") for name in files]
    labeler = make_labeler(image_range=(1000.0, 3000.0))
    with caplog.at_level("WARNING"):
        assert reasons(label_images(planned, labeler, target, settings)) == ["no_policy"] * 3
    for name in files:
        mask = decode_mask(storage.read_bytes(f"{target.masks_root}/{name}.png"))
        np.testing.assert_array_equal(mask, [[0, 1]] * 3)
    assert "nearly black" not in caplog.text


def test_a_deleted_image_is_a_storage_failure_as_planned(images, target, settings, make_labeler) -> None:
    storage.delete(images[4].image_uri)
    row = list(label_images(images, make_labeler(), target, settings))[4].row
    assert (row.decision, row.reason) == ("failed", "storage")
    assert (row.image_etag, row.image_bytes, row.image_width) == ("listed", 1, None)


def test_a_mask_that_cannot_be_written_is_a_storage_failure(images, target, settings, make_labeler) -> None:
    storage.put(f"{target.masks_root}/4.png/in-the-way", b"")
    outcomes = list(label_images(images, make_labeler(), target, settings))
    assert reasons(outcomes) == ["no_policy"] * 4 + ["storage"] + ["no_policy"] * 5
    assert outcomes[4].row.mask_uri is None
    assert "4.png" in outcomes[4].row.error


def fail_on(value: int) -> Callable[[list[np.ndarray]], None]:
    """Raise when an image of this brightness is in the batch."""

    def before(batch: list[np.ndarray]) -> None:
        if any(image.max() == value for image in batch):
            raise ValueError("cannot label\nthis one")

    return before


def test_an_image_the_model_fails_on_fails_alone(images, target, settings, make_labeler) -> None:
    outcomes = list(label_images(images, make_labeler(before=fail_on(255 - 5 * 4)), target, settings))
    assert reasons(outcomes) == ["no_policy"] * 4 + ["inference"] + ["no_policy"] * 5
    row = outcomes[4].row
    assert row.error == "ValueError: cannot label this one"
    assert (row.image_width, row.image_height, row.mask_uri) == (6, 5, None)


def test_a_mask_of_another_size_is_an_inference_failure(images, target, settings, make_labeler) -> None:
    labeler = make_labeler()
    right = labeler.finish

    def finish(judged: np.ndarray, height: int, width: int) -> object:
        return right(judged[1:] if judged.max() == 255 - 5 * 4 else judged, height, width)

    labeler.finish = finish
    assert reasons(list(label_images(images, labeler, target, settings)))[3:6] == [
        "no_policy",
        "inference",
        "no_policy",
    ]


def test_an_error_that_segpipe_itself_raises_stops_the_run(images, target, settings, make_labeler) -> None:
    def refuse(batch: list[np.ndarray]) -> None:
        raise ModelError("the weights are gone")

    with pytest.raises(ModelError):
        list(label_images(images, make_labeler(before=refuse), target, settings))


def many(images: list[PlannedImage], n: int) -> list[PlannedImage]:
    return [images[number % len(images)] for number in range(n)]


def test_a_model_that_fails_on_everything_stops_the_run(images, target, settings, make_labeler) -> None:
    def broken(batch: list[np.ndarray]) -> None:
        raise RuntimeError("device lost")

    outcomes = label_images(many(images, 100), make_labeler(before=broken), target, settings)
    seen = []
    with pytest.raises(RunError, match=r"33 of the last 33 images failed.*device lost.*resume"):
        seen.extend(outcomes)
    assert len(seen) == 32


def test_an_object_that_is_larger_than_listed_is_not_read_whole(images, target, make_labeler) -> None:
    storage.put(images[1].image_uri, bytes(5_000_000))
    unlisted = [replace(image, image_bytes=0) for image in images]  # as a list without sizes has it
    outcomes = list(label_images(unlisted, make_labeler(), target, LabelSettings(max_image_bytes=4_999_999)))
    assert reasons(outcomes) == ["no_policy", "too_large"] + ["no_policy"] * 8
    assert outcomes[1].row.error == "5000000 bytes are over 4999999; shrink it or raise the limit"


def test_storage_that_is_down_stops_the_run(
    images, target, settings, make_labeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(uri: str, max_bytes: int) -> storage.Blob:
        raise StorageError("no answer")

    monkeypatch.setattr(storage, "read", down)
    with pytest.raises(RunError, match="no answer"):
        list(label_images(many(images, 100), make_labeler(), target, settings))


def test_many_deleted_images_are_facts_not_a_reason_to_stop(images, target, settings, make_labeler) -> None:
    for image in images:
        storage.delete(image.image_uri)
    outcomes = list(label_images(many(images, 100), make_labeler(), target, settings))
    assert reasons(outcomes) == ["storage"] * 100


def test_no_mask_is_written_without_the_claim(images, target, settings, make_labeler) -> None:
    def lost() -> None:
        raise RunError("lost its claim")

    without = Target(**{**vars(target), "require_claim": lost})
    with pytest.raises(RunError, match="lost its claim"):
        list(label_images(images, make_labeler(), without, settings))
    assert not Path(target.masks_root).exists()


def test_only_a_bounded_number_of_images_is_taken_ahead(images, target, settings, make_labeler) -> None:
    taken = 0

    def counted() -> Iterator[PlannedImage]:
        nonlocal taken
        for image in many(images, 200):
            taken += 1
            yield image

    ahead = []
    labeler = make_labeler()
    for finished, _ in enumerate(label_images(counted(), labeler, target, settings)):
        ahead.append(taken - finished)
    threads = labeler.computed_at_once + settings.fetch_threads
    assert max(ahead) <= 2 * threads * settings.batch_images


def test_fetching_goes_on_while_the_model_works(images, target, settings, make_labeler, monkeypatch) -> None:
    read, all_read = storage.read, threading.Event()
    read_uris = set()

    def recording(uri: str, max_bytes: int) -> storage.Blob:
        read_uris.add(uri)
        if len(read_uris) > settings.batch_images:
            all_read.set()
        return read(uri, max_bytes)

    monkeypatch.setattr(storage, "read", recording)
    labeler = make_labeler(before=lambda batch: all_read.wait(20))
    assert len(list(label_images(images, labeler, target, settings))) == 10
    assert all_read.is_set()


def test_what_was_fetched_and_waits_for_a_core_is_bounded(
    images, target, make_labeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, fetched, judged, waiting, changing = storage.read, [0], [0], [], threading.Lock()

    def recording(uri: str, max_bytes: int) -> storage.Blob:
        with changing:
            fetched[0] += 1
        return read(uri, max_bytes)

    def before(batch: list[np.ndarray]) -> None:
        with changing:
            waiting.append(fetched[0] - judged[0])
            judged[0] += len(batch)

    monkeypatch.setattr(storage, "read", recording)
    monkeypatch.setattr(local, "BATCH_BYTES", 1)  # as the images are listed with; and there are two cores
    settings = LabelSettings(batch_images=1, fetch_threads=8)
    outcomes = list(label_images(many(images, 60), make_labeler(before=before), target, settings))
    assert reasons(outcomes) == ["no_policy"] * 60
    # Three that are fetched and not decoded, two that are decoded.
    assert max(waiting) <= 3 + 2


def test_a_batch_ends_at_its_number_of_images_or_of_bytes(images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BATCH_BYTES", 10)
    monkeypatch.setattr(batch, "UNLISTED_BYTES", 6)
    sizes = [4, 4, 4, 4, 11, 1, 1, 1, 0, 0]
    planned = [replace(image, image_bytes=size) for image, size in zip(images, sizes, strict=True)]
    cut = list(batch.planned_batches(planned, BatchLimit(3)))
    assert [[image.image_bytes for image in part] for part in cut] == [
        [4, 4],
        [4, 4],
        [11],
        [1, 1, 1],
        [0],
        [0],
    ]
    assert [image for part in cut for image in part] == planned
    assert list(batch.planned_batches([], BatchLimit(3))) == []


def test_a_run_that_ends_early_fetches_no_more(images, target, make_labeler, monkeypatch) -> None:
    read, started, go_on, fetched = storage.read, threading.Event(), threading.Event(), []

    def slow(uri: str, max_bytes: int) -> storage.Blob:
        fetched.append(uri)
        if len(fetched) > 1:
            started.set()
            go_on.wait(60)
        return read(uri, max_bytes)

    monkeypatch.setattr(storage, "read", slow)
    settings = LabelSettings(batch_images=1, fetch_threads=1)
    outcomes = label_images(many(images, 100), make_labeler(), target, settings)
    next(outcomes)
    assert started.wait(60)
    closing = threading.Thread(target=outcomes.close)
    closing.start()
    closing.join(0.2)  # it waits for the requests that are under way
    under_way = len(fetched)
    go_on.set()
    closing.join(60)
    assert len(fetched) == under_way <= 1 + 3


def test_a_reader_that_stops_early_leaves_no_thread_behind(images, target, settings, make_labeler) -> None:
    before = threading.active_count()
    outcomes = label_images(many(images, 100), make_labeler(), target, settings)
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == before


class SmallDevice:
    """A device that has memory for so many images; notes the batches it was given."""

    def __init__(self, images: int) -> None:
        self.images, self.batches = images, []

    def __call__(self, batch: list[np.ndarray]) -> None:
        self.batches.append(len(batch))
        if len(batch) > self.images:
            raise DeviceMemoryError("no memory for that many")


def test_a_batch_too_large_for_the_device_is_halved_and_stays_so(images, target, make_labeler) -> None:
    device = SmallDevice(2)
    settings = LabelSettings(batch_images=8, fetch_threads=2)
    labeler = make_labeler(before=device, judged_at_once=1)
    outcomes = list(label_images(many(images, 60), labeler, target, settings))
    assert reasons(outcomes) == ["no_policy"] * 60
    refused = [n for n in device.batches if n > 2]
    assert refused[0] == 8
    assert len(refused) <= 4  # once per size and batch that was at work, not once per batch of the run
    assert device.batches[-10:] == [2] * 10


def test_an_image_too_large_for_the_device_by_itself_fails_alone(
    images, target, settings, make_labeler
) -> None:
    def before(batch: list[np.ndarray]) -> None:
        if any(image.max() == 255 - 5 * 4 for image in batch):
            raise DeviceMemoryError("no memory for that one")

    outcomes = list(label_images(images, make_labeler(before=before), target, settings))
    assert reasons(outcomes) == ["no_policy"] * 4 + ["inference"] + ["no_policy"] * 5


@pytest.mark.parametrize("place", ["judge", "finish"])
def test_a_device_that_has_failed_ends_the_run_and_fails_no_image(
    images, target, settings, make_labeler, place: str
) -> None:
    labeler, calls = make_labeler(), []
    works = getattr(labeler, place)

    def fail_later(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise DeviceError("the cuda device has failed (CUDA error: an illegal memory access)")
        return works(*arguments)

    setattr(labeler, place, fail_later)
    seen: list[Outcome] = []
    with pytest.raises(DeviceError, match="has failed"):
        seen.extend(label_images(images, labeler, target, settings))
    assert set(reasons(seen)) <= {"no_policy"}


def test_the_wait_for_a_place_on_the_device_is_a_leg_of_its_own(
    images, target, make_labeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Queue:
        """Time passes at the device's door alone."""

        now = 0.0

        def __init__(self, places: int) -> None:
            assert places == 2

        def __enter__(self) -> None:
            Queue.now += 6.0

        def __exit__(self, *raised: object) -> None: ...

    monkeypatch.setattr(local, "Semaphore", Queue)
    monkeypatch.setattr(batch, "perf_counter", lambda: Queue.now)
    settings = LabelSettings(batch_images=3, fetch_threads=1)
    labeler = make_labeler(gathered_images=None)
    total = sum((out.legs for out in label_images(images[:3], labeler, target, settings)), start=Legs())
    # Once for the batch of three, then for each mask.
    assert (total.device, total.infer) == (pytest.approx(24.0), 0.0)


def test_every_leg_is_timed(images, target, settings, make_labeler) -> None:
    outcomes = label_images(images, make_labeler(), target, settings)
    total = sum((outcome.legs for outcome in outcomes), start=Legs())
    assert min(vars(total).values()) > 0
