"""How long and how dear a planned run will be, from the rate of an earlier one."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pyarrow.parquet as pq

from segpipe import storage
from segpipe.config import DEFAULT_ENGINE
from segpipe.labeling.totals import totals_of
from segpipe.manifests.parts import PART_NAME, list_parts, telling_damage
from segpipe.manifests.run_files import read_record

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
class Workers:
    """The engine of a run and how many workers it was asked to have, None where it chooses."""

    engine: str
    count: int | None


@dataclass(frozen=True)
class Estimate:
    """What a run will take at an earlier run's rate; cost in the currency of the price; other_model: whether
    another model had that rate; shapes: (height, width) of some images it labelled; times_workers: how many
    times as many workers as that run's it is counted with. None: not known."""

    rate_of_run: str | None
    other_model: bool | None
    shapes: tuple[tuple[int, int], ...]
    images_per_second: float | None
    seconds: float | None
    cost: float | None
    times_workers: float | None


def estimate(
    output: str, model_id: str, n_images: int, price_per_hour: float | None, workers: Workers
) -> Estimate:
    """What labelling n_images into OUTPUT with a model and these workers will take. Raises StorageError."""
    rate = last_rate(output)
    if rate is None:
        return Estimate(None, None, (), None, None, None, None)
    times = _times_workers(workers, _workers_of(output, rate.run_id))
    images_per_second = rate.images_per_second * (times or 1)
    seconds = n_images / images_per_second
    return Estimate(
        rate.run_id,
        rate.model_id != model_id,
        rate.shapes,
        images_per_second,
        seconds,
        cost(seconds, price_per_hour),
        times,
    )


def workers_of(engine: str, workers: str) -> Workers:
    """Those that settings name, with `workers` as a number or auto."""
    return Workers(engine, int(workers) if workers.isdecimal() else None)


def _workers_of(output: str, run_id: str) -> Workers:
    """Those of an earlier run; of one whose run.json does not say, this process alone."""
    settings = (read_record(output, run_id) or {}).get("settings")
    told = settings if isinstance(settings, dict) else {}
    return workers_of(str(told.get("engine", DEFAULT_ENGINE)), str(told.get("workers", "auto")))


def _times_workers(now: Workers, then: Workers) -> float | None:
    if now.engine == then.engine == DEFAULT_ENGINE:
        return 1.0
    if now.engine != then.engine or not now.count or not then.count:
        return None
    return now.count / then.count


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
