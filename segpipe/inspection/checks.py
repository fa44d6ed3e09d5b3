"""What a data set is refused for before it is used, and what is only said of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from segpipe.config import Check
from segpipe.datasets import DESCRIPTION
from segpipe.errors import DatasetError
from segpipe.image_range import shown_range
from segpipe.inspection.facts import Found, SplitFacts, shared_images
from segpipe.inspection.suggested_range import PERCENTILES

logger = logging.getLogger(__name__)

NAMED = 3  # images in one line
CLASSES_NAMED = 10  # lines of a kind, before they become one
MOSTLY = 0.5


def require_usable(facts: SplitFacts, allow: Collection[Check]) -> list[str]:
    """Refuse unreadable pairs, unless they may be left out, and a split without a labelled pixel; warnings.

    Raises DatasetError.
    """
    broken = unreadable(facts)
    if broken and not facts.usable:
        raise DatasetError(broken)
    waived = _refuse(broken, "unreadable", allow)
    if line := unlabelled(facts):
        raise DatasetError(f"{line}; draw masks, or take another split")
    return waived


def require_apart(one: SplitFacts, other: SplitFacts, allow: Collection[Check]) -> list[str]:
    """Refuse two splits that share an image, unless that is allowed; warnings. Raises DatasetError."""
    return _refuse(shared(one, other), "shared", allow)


def require_unseen(facts: SplitFacts, seen: Collection[str], allow: Collection[Check]) -> list[str]:
    """Refuse images a model has learnt from (digests), unless allowed; warnings. Raises DatasetError."""
    return _refuse(already_seen(facts, seen), "shared", allow)


def require_no_copies(
    facts: SplitFacts, groups: Mapping[str, str] | None, allow: Collection[Check]
) -> list[str]:
    """Refuse images that are in the split more than once, unless allowed; warnings. Raises DatasetError.

    `groups` (key -> group): copies within a group count as one image together, and may be there. An image
    without one is a group of its own.
    """
    return _refuse(copies(facts, groups), "duplicates", allow)


def unreadable(facts: SplitFacts) -> str | None:
    """Pairs that cannot be used, in one line; None: none."""
    found = facts.unreadable
    if not found.count:
        return None
    first, others = found.examples[0][1], [sample.key for sample, _ in found.examples[1:NAMED]]
    more = found.count - 1 - len(others)
    also = f"; also {', '.join(others)}" if others else ""
    rest = f" and {more} more" if more else ""
    return (
        f"{found.count} of {facts.n_images} images of split {facts.split} cannot be used: "
        f"{first}{also}{rest}{range_hint(facts)}{ids_hint(facts)}"
    )


def unlabelled(facts: SplitFacts) -> str | None:
    """That no usable image has a labelled pixel, in one line; None: some has, or none is usable."""
    if not facts.usable or facts.labelled_pixels:
        return None
    return (
        f"split {facts.split} has no labelled pixel: every pixel of its masks is the ignore index "
        f"{facts.dataset.ignore_index}"
    )


def shared(one: SplitFacts, other: SplitFacts) -> str | None:
    """Images of two splits that are the same, pixel by pixel, in one line; None: none."""
    pairs = shared_images(one, other)
    if not pairs:
        return None
    named = [f"{first.image_uri} is {second.image_uri}" for first, second in pairs]
    return (
        f"splits {one.split} and {other.split} share {_images(len(pairs))}, pixel by pixel: {_some(named)}: "
        "remove them from one of the two"
    )


def already_seen(facts: SplitFacts, seen: Collection[str]) -> str | None:
    """Images that a model has learnt from, in one line; None: none."""
    found = [sample.image_uri for digest, sample in facts.digests.items() if digest in seen]
    if not found:
        return None
    return (
        f"split {facts.split} holds {_images(len(found))} among the images the model was trained on: "
        f"{_some(found)}: take others, or train again without them"
    )


def copies(facts: SplitFacts, groups: Mapping[str, str] | None = None) -> str | None:
    """Images that a split holds more than once, and not in one group, in one line; None: none."""
    pairs = [
        (copy, first)
        for copy, first in facts.repeated
        if groups is None or groups.get(copy.key, copy.key) != groups.get(first.key, first.key)
    ]
    if not pairs:
        return None
    named = [f"{copy.key} is {first.key}" for copy, first in pairs]
    return (
        f"split {facts.split} holds {_images(len(pairs))} more than once, pixel by pixel: {_some(named)}: "
        "remove the copies"
    )


def warnings_of(facts: SplitFacts) -> list[str]:
    """What whoever uses the split should know, a line each; nothing where no image can be used."""
    if not facts.usable:
        return []
    return [*_class_warnings(facts), *_image_warnings(facts)]


def never_shown(
    classes: Sequence[str], true_pixels: Sequence[int], shown_pixels: Sequence[int], split: str
) -> list[str]:
    """Classes (K) that truths have and a model's masks never show, a line each."""
    found = {
        name: f"the model never shows class {name!r}, which has {true} pixels in split {split}"
        for name, true, shown in zip(classes, true_pixels, shown_pixels, strict=True)
        if true and not shown
    }
    return _a_line_each(found, f"the model never shows {len(found)} classes that split {split} has")


def say(warnings: Iterable[str]) -> tuple[str, ...]:
    """Log each warning and give them all."""
    found = tuple(warnings)
    for warning in found:
        logger.warning("%s", warning)
    return found


def range_hint(facts: SplitFacts) -> str:
    """The range to name in dataset.json, where images need one."""
    if facts.suggested_range is None:
        return ""
    return (
        f'; their values suggest "image": {{"range": {shown_range(facts.suggested_range)}}} in {DESCRIPTION} '
        f"({PERCENTILES[0]:g} and {PERCENTILES[1]:g} percentile)"
    )


def ids_hint(facts: SplitFacts) -> str:
    """A word where the masks look as if their numbers began at 1."""
    n_classes = len(facts.dataset.classes)
    from_one = not facts.values[0] and facts.values[1 : n_classes + 1].any()
    return " (no mask holds a 0: do their numbers begin at 1?)" if from_one else ""


def white_hint(facts: SplitFacts) -> str:
    """A word where the masks look as if they were black and white, and white is what is ignored."""
    white = facts.dataset.ignore_index
    found = set(np.flatnonzero(facts.values).tolist())
    if found != {0, white}:
        return ""
    return f" (its masks hold 0 and {white} alone, and {white} is ignored: save what is {white} as 1)"


def _class_warnings(facts: SplitFacts) -> Iterator[str]:
    place = f"split {facts.split}"
    names = list(enumerate(facts.dataset.classes))
    absent = {
        name: f"class {name!r} has no pixel in {place}{white_hint(facts) if index else ids_hint(facts)}"
        for index, name in names
        if not facts.pixels[index]
    }
    yield from _a_line_each(absent, f"{len(absent)} classes have no pixel in {place}{white_hint(facts)}")
    whole = {
        name: f"class {name!r} only ever covers whole images of {place} ({_images(int(facts.whole[index]))})"
        for index, name in names
        if facts.images[index] and facts.whole[index] == facts.images[index]
    }
    yield from _a_line_each(whole, f"{len(whole)} classes only ever cover whole images of {place}")


def _image_warnings(facts: SplitFacts) -> Iterator[str]:
    place = f"split {facts.split}"
    if facts.ignored_share > MOSTLY:
        yield (
            f"{facts.ignored_share:.0%} of the pixels of {place} are the ignore index "
            f"{facts.dataset.ignore_index}: they teach and measure nothing"
        )
    if facts.unlabelled.count:
        yield f"{_of(facts.unlabelled, facts)} have no labelled pixel: they teach and measure nothing"
    if facts.contradicted.count:
        word = facts.contradicted.examples[0][1]
        yield f"{_of(facts.contradicted, facts)} have a palette that contradicts their indices: {word}"
    if facts.nearly_black.count:
        yield (
            f"{_of(facts.nearly_black, facts)} are nearly black: they have more than 8 bits a channel and "
            f"use less than an eighth of the range{range_hint(facts)}"
        )
    if facts.maybe_turned.count:
        yield (
            f"{_of(facts.maybe_turned, facts)} are turned by EXIF in a way that no size betrays: their masks "
            "must fit the picture as displayed; segpipe inspect --report shows some"
        )


def _a_line_each(lines: Mapping[str, str], together: str) -> list[str]:
    """The lines, by class; of many classes one line that names them all."""
    if len(lines) <= CLASSES_NAMED:
        return list(lines.values())
    return [f"{together}: {', '.join(lines)}"]


def _of(found: Found, facts: SplitFacts) -> str:
    named = _some([sample.key for sample, _ in found.examples], found.count)
    return f"{found.count} of {_images(facts.n_images)} of split {facts.split} ({named})"


def _some(named: Sequence[str], count: int | None = None) -> str:
    more = (len(named) if count is None else count) - NAMED
    return ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _refuse(problem: str | None, check: Check, allow: Collection[Check]) -> list[str]:
    if problem is None:
        return []
    if check not in allow:
        raise DatasetError(f"{problem} (--allow {check} goes on all the same)")
    return [f"allowed: {problem}"]
