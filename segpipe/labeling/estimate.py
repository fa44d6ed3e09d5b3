"""How long and how dear a planned run will be, from the rate of an earlier one."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow.parquet as pq

from segpipe import storage
from segpipe.labeling.totals import totals_of
from segpipe.manifests.parts import PART_NAME, list_parts, telling_damage
from segpipe.manifests.run_files import say_if_damaged

SHAPES = 64
_PARTS_READ = 32


@dataclass(frozen=True)
class Rate:
    """images_per_second while labelling, without start and planning, of an earlier run; of its last part:
    model_id, and (height, width) of some of the images."""

    run_id: str
    images_per_second: float
    model_id: str
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Estimate:
    """What a run will take at an earlier run's rate; cost in the currency of the price; other_model: whether
    another model had that rate; shapes: (height, width) of some images it labelled. None: not known."""

    rate_of_run: str | None
    other_model: bool | None
    shapes: tuple[tuple[int, int], ...]
    images_per_second: float | None
    seconds: float | None
    cost: float | None


def estimate(output: str, model_id: str, n_images: int, price_per_hour: float | None) -> Estimate:
    """What labelling n_images into OUTPUT with a model will take. Raises StorageError."""
    rate = last_rate(output)
    if rate is None:
        return Estimate(None, None, (), None, None, None)
    say_if_damaged(output, rate.run_id)
    seconds = n_images / rate.images_per_second
    return Estimate(
        rate.run_id,
        rate.model_id != model_id,
        rate.shapes,
        rate.images_per_second,
        seconds,
        cost(seconds, price_per_hour),
    )


def cost(seconds: float, price_per_hour: float | None) -> float | None:
    """What so many seconds cost, None without a price."""
    return None if price_per_hour is None else seconds / 3600 * price_per_hour


def last_rate(output: str) -> Rate | None:
    """Of the newest day's largest run, its last 32 parts; None when nothing has been labelled."""
    runs = _parts_of_last_day(output)
    if not runs:
        return None
    run_id, uris = max(runs.items(), key=lambda run: len(run[1]))
    totals, content = [], b""
    for uri in uris[-_PARTS_READ:]:
        content = storage.read_bytes(uri)
        totals.append(totals_of(uri, content))
    images, seconds = sum(one.decisions.total() for one in totals), sum(one.seconds for one in totals)
    if not images or not seconds:
        return None
    model_id, shapes = _of_part(uris[-1], content)
    return Rate(run_id, images / seconds, model_id, shapes)


def _of_part(uri: str, content: bytes) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The model of a part that has rows, and the sizes of some of its images."""
    with telling_damage(uri):
        rows = pq.read_table(io.BytesIO(content), columns=["model_id", "image_height", "image_width"])
        model_id, heights, widths = (column.to_pylist() for column in rows.columns)
    shapes = [(height, width) for height, width in zip(heights, widths, strict=True) if height and width]
    return model_id[0], tuple(shapes[:SHAPES])


def _parts_of_last_day(output: str) -> dict[str, list[str]]:
    found = [(part.uri, match) for part in list_parts(output) if (match := PART_NAME.fullmatch(part.key))]
    runs: dict[str, list[str]] = {}
    for uri, match in found:
        if match["day"] == found[-1][1]["day"]:
            runs.setdefault(match["run_id"], []).append(uri)
    return runs
