"""`segpipe import`: public layouts of labelled data become the data set that `segpipe train` takes (C1)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from segpipe import storage
from segpipe.concurrency import Budget, ordered_map
from segpipe.config import ImportSettings
from segpipe.datasets import require_classes
from segpipe.errors import DatasetError, NotFoundError
from segpipe.exchange.files import LEFT_OUT, UNFINISHED
from segpipe.exchange.imports.copying import Copied, Place, copy
from segpipe.exchange.imports.labelled import Found, LeftOut, SourceImage
from segpipe.exchange.imports.source import Source, open_source
from segpipe.exchange.imports.table import reader
from segpipe.exchange.imports.target import begin, end, name_left_out, unmark
from segpipe.image_range import plain_range
from segpipe.images import MAX_PIXELS
from segpipe.inspection.suggested_range import suggested_range
from segpipe.progress import track
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

THREADS = 8
AHEAD = 32
_SAID = 10


@dataclass(frozen=True)
class ImportResult:
    """What there is now at the target: images by split; how many images and annotations were left out; of how
    many photos with an EXIF turn the mask was placed as the settings say, because sizes could not tell."""

    target: str
    classes: int
    images: dict[str, int]
    left_out: int
    turned_as_assumed: int


def import_dataset(
    source: str, target: str, layout: str, settings: ImportSettings | None = None
) -> ImportResult:
    """Copy images and write masks as indexed PNG; dataset.json comes last.

    JPEG and PNG are copied as they are, with a range of values all images; others are written as PNG. What is
    left out is named in the log and in left_out.csv. Until all is there, the target holds
    import-unfinished.json. Raises RunError (an unknown layout), DatasetError (it is not there, a mask does
    not fit its image or its classes, the target holds other data), NotFoundError, StorageError.
    """
    settings = settings or ImportSettings()
    read, drawn_on, image_range = reader(layout), settings.drawn_on, settings.image_range
    source, root = storage.normalise(source), storage.normalise(target)
    if source == root:
        raise DatasetError(f"{redact(root)} is the source itself: import into another folder")
    name = PurePosixPath(source).name
    found = read(_opened(source))
    if not found.images:
        raise DatasetError(_nothing(source, layout, found.left_out))
    _refuse_before_copying(found, source)
    origin = {"source": redact(source), "layout": layout, **settings.model_dump(mode="json")}
    begin(root, found, image_range, origin)
    copied, odd = _copy_all(found, Place(root, found.classes, drawn_on, image_range))
    left_out = [*found.left_out, *odd]
    if not copied:
        unmark(root)
        raise DatasetError(_nothing(source, layout, left_out))
    assumed = sum(one.assumed for one in copied)
    _say(left_out, root, assumed, drawn_on)
    _say_nearly_black([one.uri for one in copied if one.nearly_black])
    end(root, name, found.classes, image_range)
    images = dict(sorted(Counter(one.split for one in copied).items()))
    return ImportResult(redact(root), len(found.classes), images, len(left_out), assumed)


def _opened(source: str) -> Source:
    opened = open_source(source)
    if UNFINISHED in opened.uris:
        raise DatasetError(f"{redact(source)} holds an export that did not end: export it again")
    return opened


def _nothing(source: str, layout: str, left_out: list[LeftOut]) -> str:
    because = f" ({left_out[0]})" if left_out else ""
    return f"{redact(source)} has no images in the layout of {layout}{because}: is it its root?"


def _refuse_before_copying(found: Found, source: str) -> None:
    require_classes(found.classes, redact(source))
    seen: dict[tuple[str, str], str] = {}
    for image in found.images:
        other = seen.setdefault((image.split, image.key), image.described_in + image.uri)
        if other != image.described_in + image.uri:
            raise DatasetError(
                f"{redact(image.uri)} is not the only image that becomes {image.key} in "
                f"{image.split}: rename or remove one"
            )


def _copy_all(found: Found, place: Place) -> tuple[list[Copied], list[LeftOut]]:
    work: Callable[[SourceImage], Copied | LeftOut] = partial(copy, place=place, budget=Budget(MAX_PIXELS))
    if found.may_lack_images:
        work = partial(_copied_or_left_out, work=work)
    copied: list[Copied] = []
    left_out: list[LeftOut] = []
    with ThreadPoolExecutor(THREADS) as pool, track(len(found.images), "import") as progress:
        for outcome in ordered_map(pool, work, found.images, AHEAD):
            copied += [outcome] if isinstance(outcome, Copied) else []
            left_out += [outcome] if isinstance(outcome, LeftOut) else []
            progress.advance()
    return copied, left_out


def _copied_or_left_out(
    image: SourceImage, work: Callable[[SourceImage], Copied | LeftOut]
) -> Copied | LeftOut:
    try:
        return work(image)
    except (DatasetError, NotFoundError) as error:
        return LeftOut(image.described_in, image.key, "", str(error))


def _say(left_out: list[LeftOut], root: str, assumed: int, drawn_on: str) -> None:
    for one in left_out[:_SAID]:
        logger.warning("left out: %s", one)
    if left_out:
        name_left_out(root, left_out)
        logger.warning("%d left out in all: %s names them", len(left_out), LEFT_OUT)
    if assumed:
        logger.warning(
            "%d photos carry an EXIF turn that sizes cannot tell in a mask: their masks are taken as drawn "
            "on the %s pixels; look at some, and say --drawn-on %s if that is wrong",
            assumed, drawn_on, "stored" if drawn_on == "displayed" else "displayed",
        )  # fmt: skip


def _say_nearly_black(uris: list[str]) -> None:
    if not uris:
        return
    suggested = suggested_range(uris[:_SAID], ())
    values = "LOW HIGH" if suggested is None else " ".join(map(str, plain_range(suggested)))
    logger.warning(
        "%d images are nearly black, %s for example: they have more than 8 bits a channel and use less than "
        "an eighth of the range; import again, elsewhere, with --image-range %s, for black and white",
        len(uris), redact(uris[0]), values,
    )  # fmt: skip
