"""A batch of images from storage to storage: fetched, computed by one core (decode, judge, encode), written.

The only place that takes a step's time and makes a failed image of what it raises. Threads that hand each
image on to the next stage would wait for their turn at Python and find cold caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from threading import Event, Semaphore
from time import perf_counter
from typing import Any, Generic, Literal, TypeVar, cast

from segpipe.concurrency import Budget
from segpipe.errors import (
    ArchivedError,
    DeniedError,
    DeviceMemoryError,
    FailureReason,
    ImageError,
    RunError,
    SegpipeError,
    StorageError,
    UnwritableError,
)
from segpipe.labeling import steps
from segpipe.labeling.gathering import MASK_PIXELS_AT_ONCE, Gathering
from segpipe.labeling.items import (
    DecodedPixels,
    EncodedImage,
    ImageLabeler,
    Legs,
    Outcome,
    PlannedImage,
    SeenImage,
    Target,
)
from segpipe.labeling.steps import BatchLimit, DecodingLimits, NearlyBlack
from segpipe.manifests.schema import Row

# A batch ends before it has more listed bytes; an image whose size is not listed counts for so many.
BATCH_BYTES = 128_000_000
UNLISTED_BYTES = 8_000_000
Value = TypeVar("Value")
Result = TypeVar("Result")
Item = TypeVar("Item")
Leg = Literal["read", "decode", "infer", "encode", "write"]


@dataclass(frozen=True)
class Machine:
    """What the batches in work share: threads to compute in; the device's places for batches; how many images
    a batch has; the bytes that may be fetched and not yet decoded; and whether the run has ended.

    gathering: where images wait for a GPU, None: each batch is judged by itself. mask_pixels: of the masks
    that come from there and are not yet encoded.
    """

    computing: Executor
    device: Semaphore
    limit: BatchLimit
    fetched_bytes: Budget
    stopping: Event
    gathering: Gathering | None
    mask_pixels: Budget


@dataclass(frozen=True)
class BatchWork:
    """What is done to every batch: the model, where its masks go, and what an image may cost."""

    labeler: ImageLabeler
    target: Target
    max_bytes: int
    decoding: DecodingLimits
    nearly_black: NearlyBlack


@dataclass(frozen=True)
class InWork(Generic[Value]):
    """An image after a step: what is known of it, the time it took, what the step gave; or why it failed."""

    seen: SeenImage
    legs: Legs
    value: Value
    error: Exception | None = None
    reason: FailureReason | None = None


def planned_batches(images: Iterable[PlannedImage], limit: BatchLimit) -> Iterator[list[PlannedImage]]:
    """The images in lists as long as the limit is at that time, and of bounded bytes."""
    batch: list[PlannedImage] = []
    listed = 0
    for image in images:
        listed += _listed(image)
        if batch and listed > BATCH_BYTES:
            yield batch
            batch, listed = [], _listed(image)
        batch.append(image)
        if len(batch) >= limit.images:
            yield batch
            batch, listed = [], 0
    if batch:
        yield batch


def _listed(image: PlannedImage) -> int:
    return image.image_bytes or UNLISTED_BYTES


def label_batch(images: Sequence[PlannedImage], work: BatchWork, machine: Machine) -> list[Outcome]:
    """The outcome of each image; its mask, and its confidence map, is stored before it is returned.

    Raises what target.require_claim raises, CancelledError when the run has ended, RunError when nothing can
    be written.
    """
    to_read = [image for image in images if image.image_bytes <= work.max_bytes]
    with ExitStack() as until_decoded:
        until_decoded.enter_context(machine.fetched_bytes.held(sum(map(_listed, to_read))))
        fetched = [_fetch(image, work) for image in _wanted(images, work, machine)]
        # What is logged there names this run too.
        compute = copy_context().run
        encoded = machine.computing.submit(compute, _compute, fetched, until_decoded, work, machine).result()
    return [_store(item, work.target) for item in _wanted(encoded, work, machine)]


def _fetch(image: PlannedImage, work: BatchWork) -> InWork[bytes]:
    planned = InWork(SeenImage(image, image.image_etag, image.image_bytes), Legs(), image)
    fetched = _after(planned, "read", lambda image: steps.fetch(image, work.max_bytes))
    if fetched.reason:
        return cast(InWork[bytes], fetched)
    blob = fetched.value
    return InWork(SeenImage(image, blob.etag, len(blob.data)), fetched.legs, blob.data)


def _compute(
    fetched: list[InWork[bytes]], until_decoded: ExitStack, work: BatchWork, machine: Machine
) -> list[InWork[EncodedImage]]:
    parts = _together(fetched, work)
    fetched.clear()
    encoded = []
    while parts:
        part = parts.pop(0)
        after_decoding = until_decoded.close if not parts else lambda: None
        with work.decoding.at_own_size.held(part.pixels):
            encoded += _compute_together(part.items, after_decoding, work, machine)
    return encoded


def _together(fetched: Sequence[InWork[bytes]], work: BatchWork) -> list[steps.Together[InWork[bytes]]]:
    """What is computed together: all, unless the images are to be in memory at their own size."""
    if work.labeler.pixels_at_once is None:
        return [steps.Together(list(fetched), 0)]
    data = [b"" if item.reason else item.value for item in fetched]
    pixels = steps.pixels_told(data, work.decoding)
    return list(steps.together(zip(fetched, pixels, strict=True), work.labeler.pixels_at_once))


def _compute_together(
    fetched: list[InWork[bytes]], after_decoding: Callable[[], None], work: BatchWork, machine: Machine
) -> list[InWork[EncodedImage]]:
    decode = partial(
        steps.decode_each,
        labeler=work.labeler,
        limits=work.decoding,
        require_wanted=lambda: _require_wanted(work, machine),
    )
    decoded = _after_all(fetched, "decode", decode)
    fetched.clear()
    after_decoding()
    sized = [_with_size(item, work) for item in decoded]
    del decoded
    if machine.gathering is not None:
        return _gather(sized, machine.gathering, work, machine)
    judged = _on_device(sized, lambda pixels: steps.judge(pixels, work.labeler, machine.limit), machine)
    del sized
    return [_encode(item, work, machine) for item in _wanted(judged, work, machine)]


def _gather(
    sized: list[InWork[DecodedPixels]], gathering: Gathering, work: BatchWork, machine: Machine
) -> list[InWork[EncodedImage]]:
    """The images after the GPU and their encoding; as many together as may have their masks in memory."""
    encoded = []
    parts = list(steps.together(((item, _pixels(item)) for item in sized), MASK_PIXELS_AT_ONCE))
    sized.clear()
    while parts:
        part = parts.pop(0)
        with machine.mask_pixels.held(part.pixels):
            judged = deque(_judged_together(part.items, gathering))
            part.items.clear()
            while judged:
                _require_wanted(work, machine)
                encoded.append(_encode(judged.popleft(), work, machine))
    return encoded


def _pixels(item: InWork[DecodedPixels]) -> int:
    return 0 if item.reason else item.value.height * item.value.width


def _judged_together(items: Sequence[InWork[DecodedPixels]], gathering: Gathering) -> list[InWork[Any]]:
    """The images after the GPU, whose time is shared out evenly; the rest of the time they waited for it."""
    waited = Legs()

    def judge(images: Sequence[DecodedPixels]) -> Sequence[Any | Exception]:
        nonlocal waited
        started = perf_counter()
        gathered = gathering.judged(images)
        device = (perf_counter() - started) / len(images) - gathered.seconds_each
        waited = Legs(device=device, infer=-device)
        return gathered.answers

    after = _after_all(items, "infer", judge)
    return [
        new if old.reason else replace(new, legs=new.legs + waited)
        for old, new in zip(items, after, strict=True)
    ]


def _with_size(item: InWork[DecodedPixels], work: BatchWork) -> InWork[DecodedPixels]:
    if item.reason:
        return item
    if item.value.nearly_black:
        work.nearly_black.add(item.seen.planned)
    return replace(item, seen=replace(item.seen, height=item.value.height, width=item.value.width))


def _encode(item: InWork[Any], work: BatchWork, machine: Machine) -> InWork[EncodedImage]:
    if item.reason:
        return item
    height, width = item.seen.height, item.seen.width
    assert height is not None  # it was decoded
    assert width is not None
    with work.decoding.budget.held(height * width):
        finish = partial(_one, lambda judged: steps.finish(judged, height, width, work.labeler))
        if machine.gathering is None:
            (labeled,) = _on_device([item], finish, machine)
        else:
            (labeled,) = _after_all([item], "infer", finish)
        return _after(labeled, "encode", lambda mask: steps.encode(item.seen, mask, work.target))


def _on_device(
    items: Sequence[InWork[Value]],
    step: Callable[[Sequence[Value]], Sequence[Result | Exception]],
    machine: Machine,
) -> list[InWork[Result]]:
    """The images after a step that takes a place on the device, and the time that they waited for one."""
    started = perf_counter()
    with machine.device:
        waited = Legs(device=(perf_counter() - started) / len(items))
        after = _after_all(items, "infer", step)
    return [replace(item, legs=item.legs + waited) for item in after]


def _store(item: InWork[EncodedImage], target: Target) -> Outcome:
    stored: InWork[Row] = _after(item, "write", steps.store)
    if stored.reason is None:
        return Outcome(stored.value, stored.legs, None)
    assert stored.error is not None
    if item.reason is None:
        _require_writable(stored.error, target)
    row = steps.failed_row(stored.seen, stored.reason, stored.error, target)
    return Outcome(row, stored.legs, stored.error)


def _require_writable(error: Exception, target: Target) -> None:
    """Raise RunError for what says nothing about the image: the next one's mask would fail the same way."""
    if isinstance(error, DeniedError | UnwritableError):
        raise RunError(
            f"{error}; so run {target.run_id} stops before it fails all its images: mend that and resume "
            "with the same run id"
        ) from None


def _after(item: InWork[Value], leg: Leg, step: Callable[[Value], Result]) -> InWork[Result]:
    """The image after one more step; one that failed stays as it is."""
    return next(iter(_after_all([item], leg, partial(_one, step))))


def _one(step: Callable[[Value], Result], values: Sequence[Value]) -> list[Result | Exception]:
    try:
        return [step(values[0])]
    except Exception as error:
        return [error]


def _after_all(
    items: Sequence[InWork[Value]], leg: Leg, step: Callable[[Sequence[Value]], Sequence[Result | Exception]]
) -> list[InWork[Result]]:
    """The images after a step that takes all that have not failed together; the time is shared out evenly."""
    values = [item.value for item in items if item.reason is None]
    if not values:
        return cast(list[InWork[Result]], list(items))
    started = perf_counter()
    results = iter(step(values))
    legs = Legs(**{leg: (perf_counter() - started) / len(values)})
    return [_with_result(item, leg, legs, results) for item in items]


def _with_result(item: InWork[Any], leg: Leg, legs: Legs, results: Iterator[Any | Exception]) -> InWork[Any]:
    if item.reason:
        return item
    result = next(results)
    if isinstance(result, Exception):
        return InWork(item.seen, item.legs + legs, None, result, _reason(result, leg))
    return InWork(item.seen, item.legs + legs, result)


def _reason(error: Exception, leg: Leg) -> FailureReason:
    """Why an image failed; what is no failure of an image is raised."""
    match error:
        case ImageError():
            return error.reason
        case DeniedError() if leg == "read":
            return "denied"
        case ArchivedError() if leg == "read":
            return "archived"
        case StorageError() if leg in ("read", "write"):
            return "storage"
        case DeviceMemoryError():
            return "inference"
        case SegpipeError():
            raise error
        case _ if leg == "infer":
            return "inference"
    raise error


def _wanted(items: Iterable[Item], work: BatchWork, machine: Machine) -> Iterator[Item]:
    """The items, as long as the run goes on and holds its claim."""
    for item in items:
        _require_wanted(work, machine)
        yield item


def _require_wanted(work: BatchWork, machine: Machine) -> None:
    if machine.stopping.is_set():
        raise CancelledError
    work.target.require_claim()
