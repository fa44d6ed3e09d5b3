"""What `segpipe inspect` found, in words and as one page with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from segpipe import storage
from segpipe.concurrency import Budget
from segpipe.datasets import Dataset, Sample, open_labelled
from segpipe.errors import SegpipeError
from segpipe.image_range import ImageRange, shown_range
from segpipe.images import MAX_PIXELS, class_palette, overlay
from segpipe.inspection.facts import Found, SplitFacts
from segpipe.inspection.inspect import ClassFacts, Inspected, Inspection, SplitInspection
from segpipe.inspection.near import Fingerprint
from segpipe.printable import printable
from segpipe.redaction import redact
from segpipe.reports.gallery import Gallery, GalleryItem, class_colours, small_picture
from segpipe.reports.page import Picture, render
from segpipe.tables import columns

TEMPLATE = "inspection.html"
INDEX = "index.html"
SHOWN = 8
CLASS_COLUMNS = ("class", "pixels", "share", "images", "whole images", "smallest object", "at working size")
PROMISE_COLUMNS = ("promise", "flawless images", "enough in")


@dataclass(frozen=True)
class Table:
    """A heading, remarks under it, and rows below the names of their columns."""

    title: str
    facts: tuple[tuple[str, str], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class InspectionPage:
    """What the page shows; classes are (name, CSS colour)."""

    title: str
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: tuple[Table, ...]
    galleries: tuple[Gallery, ...]
    classes: tuple[tuple[str, str], ...]


def inspection_lines(result: Inspection) -> Iterator[str]:
    """The inspection for people, a line at a time."""
    for table in _tables(result):
        yield table.title
        yield from (f"  {line}" for line in columns(table.facts) if table.facts)
        yield from (f"  {line}" for line in columns([table.header, *table.rows]))
        yield ""
    yield from (f"refused: {printable(line)}" for line in result.refused)
    yield from (f"warning: {printable(line)}" for line in result.warnings)
    if not result.refused and not result.warnings:
        yield "nothing odd was found"


def write_inspection(inspected: Inspected, url: str) -> str:
    """Write index.html, self-contained, into a folder at any fsspec URL; the page's URL. StorageError."""
    result, dataset = inspected.result, inspected.dataset
    page = InspectionPage(
        title=f"The data set {redact(dataset.name)}",
        refused=tuple(redact(printable(line)) for line in result.refused),
        warnings=tuple(redact(printable(line)) for line in result.warnings),
        tables=tuple(_tables(result)),
        galleries=tuple(gallery for gallery in _galleries(inspected) if gallery.items),
        classes=class_colours(dataset.classes),
    )
    index = storage.join(storage.normalise(url), INDEX)
    storage.put(index, render(TEMPLATE, page).encode())
    return index


def _tables(result: Inspection) -> Iterator[Table]:
    for name, split in result.splits.items():
        rows = tuple(_class_row(class_name, facts) for class_name, facts in split.classes.items())
        yield Table(f"Split {name}", tuple(_split_facts(split, result.image_range)), CLASS_COLUMNS, rows)
    if result.suggested_groups:
        rows = tuple(
            (one.pattern, str(one.groups), str(one.largest), str(one.in_several_splits))
            for one in result.suggested_groups
        )
        header = ("regular expression", "groups", "images of the largest", "groups in several splits")
        yield Table("Groups that the keys suggest, for --group-by and segpipe split --by", (), header, rows)
    promises = tuple(
        (
            f"at most {one.max_bad_fraction:.0%} bad, {one.confidence:.0%} confidence",
            str(one.flawless),
            ", ".join(one.enough) or "no split",
        )
        for one in result.promises
    )
    yield Table("Promises that so many images can carry", (), PROMISE_COLUMNS, promises)


def _split_facts(split: SplitInspection, image_range: ImageRange | None) -> Iterator[tuple[str, str]]:
    yield "images", f"{split.images}, of which {split.unusable} cannot be used"
    yield "sizes", f"{split.smallest_image} to {split.largest_image}, {split.sizes} different ones"
    yield "working size", f"{split.working_size} (what training on this split would choose)"
    yield "scale", f"{split.scale} (what --scale auto would choose)"
    yield (
        "values",
        f"{split.darkest_value} to {split.brightest_value} of 255; nearly black: {split.nearly_black}",
    )
    if image_range is not None:
        yield "range", f"{shown_range(image_range)} of the stored values became 0 to 255"
    if split.suggested_range is not None:
        yield "range to name", f"{shown_range(split.suggested_range)}, by the values of some images"
    yield (
        "ignored",
        f"{split.ignored_share:.1%} of the pixels; images without a label: {split.without_labels}",
    )
    yield (
        "turned by EXIF",
        f"{split.turned_by_exif}, of which sizes cannot betray {split.turns_no_size_betrays}",
    )
    yield "copies", f"{split.copies} identical, {split.near_copies} nearly"
    yield "palettes", f"{split.palettes_against_indices} that contradict their indices"
    yield "objects", f"measured in {split.objects_looked_at} images"
    if split.left_aside:
        yield "left aside", ", ".join(f"{count} {name}" for name, count in split.left_aside.items())


def _class_row(name: str, facts: ClassFacts) -> tuple[str, ...]:
    sizes = (facts.smallest_object, facts.at_working_size)
    return (
        name,
        str(facts.pixels),
        f"{facts.share:.2%}",
        str(facts.images),
        str(facts.whole_images),
        *("-" if size is None else f"{size:.1f} px" for size in sizes),
    )


def _galleries(inspected: Inspected) -> Iterator[Gallery]:
    for name, facts in inspected.facts.items():
        spread = facts.usable[:: max(1, len(facts.usable) // SHOWN)][:SHOWN]
        yield _gallery(facts, f"Split {name}", "Spread evenly over the keys.", [(one, "") for one in spread])
        yield from _odd_ones(facts)
    for title, pairs in (
        ("Nearly the same, in two splits", inspected.near.across),
        ("Nearly the same, in one split", inspected.near.pairs),
    ):
        items = [item for pair in pairs[:SHOWN] for item in _pair_items(pair, inspected)]
        yield Gallery(title, "By a perceptual hash: side by side, in pairs.", tuple(items))


def _odd_ones(facts: SplitFacts) -> Iterator[Gallery]:
    kinds: tuple[tuple[Found, str, str], ...] = (
        (facts.unreadable, "Cannot be used", "Train, evaluate and calibrate refuse them."),
        (facts.maybe_turned, "Turned by EXIF", "Does the mask fit the picture as it is shown here?"),
        (
            facts.contradicted,
            "Palette against indices",
            "Colours here are by the indices, as training sees them.",
        ),
        (facts.nearly_black, "Nearly black", "More than 8 bits a channel, of whose range little is used."),
        (facts.unlabelled, "Without a label", "Every pixel is the ignore index."),
    )
    for found, title, caption in kinds:
        yield _gallery(
            facts, f"{title} ({found.count}, split {facts.split})", caption, found.examples[:SHOWN]
        )
    copies = [(copy, f"the same as {first.key}") for copy, first in facts.repeated[:SHOWN]]
    yield _gallery(facts, f"Copies ({len(facts.repeated)}, split {facts.split})", "Pixel by pixel.", copies)


def _gallery(facts: SplitFacts, title: str, caption: str, samples: Iterable[tuple[Sample, str]]) -> Gallery:
    return Gallery(title, caption, tuple(_item(facts.dataset, sample, word) for sample, word in samples))


def _pair_items(pair: tuple[Fingerprint, Fingerprint], inspected: Inspected) -> Iterator[GalleryItem]:
    for one in pair:
        yield _item(inspected.dataset, one.sample, f"split {one.split}")


def _item(dataset: Dataset, sample: Sample, word: str) -> GalleryItem:
    """A sample as an item; what cannot be shown is said in its place."""
    try:
        panes, problem = _panes(dataset, sample), ""
    except SegpipeError as error:
        panes, problem = (), "" if word else str(error)
    return GalleryItem(printable(redact(sample.key)), printable(redact(word + problem)), panes)


def _panes(dataset: Dataset, sample: Sample) -> tuple[Picture, ...]:
    with open_labelled(dataset, sample, Budget(MAX_PIXELS)) as labelled:
        image, mask = labelled.image.pixels, labelled.mask
    if mask.shape != image.shape[:2]:
        return (small_picture("image", image), small_picture("mask", class_palette(256)[mask]))
    shown = overlay(image, mask, class_palette(len(dataset.classes)))
    return small_picture("image", image), small_picture("mask", shown)
