"""How long and how dear a planned run will be, from the rate of an earlier one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from segpipe.labeling.totals import read_totals
from segpipe.manifests.parts import list_parts

_PARTS_READ = 32
_PART = re.compile(r"(?P<day>run_date=[^/]+)/(?P<run_id>.+)-\d{5,}\.parquet")


@dataclass(frozen=True)
class Rate:
    """images_per_second while labelling, without start and planning, of an earlier run."""

    run_id: str
    images_per_second: float


@dataclass(frozen=True)
class Estimate:
    """What a run will take at an earlier run's rate; cost in the currency of the price. None: not known."""

    rate_of_run: str | None
    images_per_second: float | None
    seconds: float | None
    cost: float | None


def estimate(output: str, n_images: int, price_per_hour: float | None) -> Estimate:
    """What labelling n_images into OUTPUT will take. Raises StorageError."""
    rate = last_rate(output)
    if rate is None:
        return Estimate(None, None, None, None)
    seconds = n_images / rate.images_per_second
    return Estimate(rate.run_id, rate.images_per_second, seconds, cost(seconds, price_per_hour))


def cost(seconds: float, price_per_hour: float | None) -> float | None:
    """What so many seconds cost, None without a price."""
    return None if price_per_hour is None else seconds / 3600 * price_per_hour


def last_rate(output: str) -> Rate | None:
    """Of the newest day's largest run, its last 32 parts; None when nothing has been labelled."""
    runs = _parts_of_last_day(output)
    if not runs:
        return None
    run_id, uris = max(runs.items(), key=lambda run: len(run[1]))
    totals = [read_totals(uri) for uri in uris[-_PARTS_READ:]]
    images, seconds = sum(one.decisions.total() for one in totals), sum(one.seconds for one in totals)
    return Rate(run_id, images / seconds) if images and seconds else None


def _parts_of_last_day(output: str) -> dict[str, list[str]]:
    found = [(part.uri, match) for part in list_parts(output) if (match := _PART.fullmatch(part.key))]
    runs: dict[str, list[str]] = {}
    for uri, match in found:
        if match["day"] == found[-1][1]["day"]:
            runs.setdefault(match["run_id"], []).append(uri)
    return runs
