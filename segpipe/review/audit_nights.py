"""The audited masks of a policy night by night, and what they say: pure figures.

A night is a UTC day on which masks were labelled. Two questions are asked of it, and they are not the same:

- what the draw says about the masks that were accepted: of those of the last nights, at most so many are bad.
  That holds whatever the masks of a scene or a night have in common, and shows a promise kept;
- whether the promise is broken, so that masks to come are not to be accepted. There a night is one witness,
  however many of its masks were audited, and it takes several.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

import numpy as np

from segpipe.confidence.sampled_mean import (
    Stratum,
    answers_needed,
    sampled_bounds,
    sampled_mean,
)

# Shown to be kept is a promise by the last audits, by twice or by four times as many: the first number would
# show it when half of what is promised is bad. Each has its share of the error.
WINDOWS = 3
AnyNight = TypeVar("AnyNight")
# A night counts by its masks, and at most as much as this share of the last nights before it.
ORDINARY_SHARE, ORDINARY_NIGHTS = 0.8, 30


@dataclass(frozen=True)
class Accepted:
    """The accepted masks of one night that had the same chance `share` (0 to 1) to be drawn: `masks` of
    them, which weigh `mass` together."""

    night: date
    share: float
    masks: int
    mass: float


@dataclass(frozen=True)
class Drawn:
    """A drawn mask that somebody was asked about, which weighs `weight`; loss (0 to 1) is None if skipped."""

    night: date
    share: float
    weight: float
    loss: float | None


@dataclass(frozen=True)
class Night:
    """What was accepted and drawn on one day."""

    day: date
    accepted: tuple[Accepted, ...]
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class Window:
    """What the audits of some nights in a row say about the masks accepted then.

    The nights reach from `since` to `until` (ISO dates). `estimate` is the masks' bad share or mean loss,
    each counting once however likely it was to be drawn (None without an answer); it is between `lower` and
    `upper` if the `skipped` ones are like the `audited`, and at most `upper_with_skips` if all of those are
    bad.
    """

    since: str
    until: str
    nights: int
    audited: int
    skipped: int
    estimate: float | None
    lower: float
    upper: float
    upper_with_skips: float


def nights_of(accepted: Iterable[Accepted], drawn: Iterable[Drawn]) -> list[Night]:
    """The nights in the order of their days; what had no chance to be drawn (share 0) is left out."""
    by_day: defaultdict[date, tuple[list[Accepted], list[Drawn]]] = defaultdict(lambda: ([], []))
    for cell in accepted:
        if cell.share > 0:
            by_day[cell.night][0].append(cell)
    for one in drawn:
        by_day[one.night][1].append(one)
    return [Night(day, tuple(cells), tuple(ones)) for day, (cells, ones) in sorted(by_day.items())]


def night_bets(nights: Sequence[Night]) -> tuple[list[float], list[float]]:
    """Each night's mean loss, and what share of an ordinary night's bet is placed on it (0 to 1): both (n,).

    A night's mean is over all its accepted masks, each answer standing for as many as its chance to be drawn
    says. So that masks count and not nights, the bet grows with the night, up to that on an ordinary one of
    those before; where nothing is answered nothing is bet.
    """
    losses, masses = zip(*map(_night_mean, nights), strict=True) if nights else ((), ())
    return list(losses), stakes(masses)


def stakes(masses: Sequence[float]) -> list[float]:
    """What share of an ordinary night's bet (0 to 1) is placed on each, by what its answers stand for."""
    return [_stake(masses[: number + 1]) for number in range(len(masses))]


def all_nights(nights: Sequence[Night], error: float) -> Window | None:
    """What all nights say; None without any. `error` is of each end."""
    return _window(nights, error) if nights else None


def recent_nights(nights: Sequence[Night], limit: float, error: float) -> Window | None:
    """What the last nights say that the first window takes; None without any."""
    windows = list(_windows(nights, limit, error))
    return _window(*windows[0]) if windows else None


def kept_over(nights: Sequence[Night], limit: float, error: float) -> Window | None:
    """The last nights whose audits show that at most `limit` of what was accepted then was lost; else None.

    Skipped ones count as bad. It is wrong with a probability of at most `error` on the night it is asked.
    Never while the last of them look worse than promised.
    """
    windows = list(_windows(nights, limit, error))
    if not windows or (sampled_mean(strata_of(windows[0][0])) or 0.0) > limit:
        return None
    shown = (part for part in windows if _upper_with_skips(*part) <= limit)
    return next((_window(*part) for part in shown), None)


def last_kept(nights: Sequence[Night], limit: float, error: float) -> Window | None:
    """What showed the promise kept when it was last shown, by the audits as they are known now."""
    ends = range(len(nights), 0, -1)
    return next(filter(None, (kept_over(nights[:end], limit, error) for end in ends)), None)


def answers_missing(nights: Sequence[Night], limit: float, error: float) -> int | None:
    """How many more answers like those of the last nights would show the promise kept.

    None where no number would, and where none can be told: answers count by themselves only while all masks
    have had the same chance to be drawn, and weigh the same.
    """
    needed, counted = _needed(nights, limit, error), sum(len(one.drawn) for one in nights)
    if needed is None or needed <= counted or not _count_alike(nights):
        return None
    return needed - counted


def look_no_better(nights: Sequence[Night], limit: float, error: float) -> bool:
    """Whether the last answers, skipped ones as bad, are such that no number of them would show it kept."""
    return _needed(nights, limit, error) is None


def strata_of(nights: Iterable[Night], skipped_as: float | None = None) -> list[Stratum]:
    """The masks of these nights by their chance to be drawn; the skipped ones lose `skipped_as`, if given."""
    masks: defaultdict[float, int] = defaultdict(int)
    mass: defaultdict[float, float] = defaultdict(float)
    answers: defaultdict[float, list[tuple[float, float]]] = defaultdict(list)
    for night in nights:
        for cell in night.accepted:
            masks[cell.share] += cell.masks
            mass[cell.share] += cell.mass
        for one in night.drawn:
            loss = skipped_as if one.loss is None else one.loss
            if loss is not None:
                answers[one.share].append((one.weight, loss))
    return [
        Stratum(masks[share], mass[share], *np.array(answers[share]).reshape(-1, 2).T)
        for share in sorted(masks)
    ]


def _needed(nights: Sequence[Night], limit: float, error: float) -> int | None:
    """How many answers like the last ones would do, were all masks as likely to be drawn; None: no number."""
    windows = list(_windows(nights, limit, error))
    recent = strata_of(windows[0][0], skipped_as=1.0) if windows else []
    mean = sampled_mean(recent) or 0.0
    needed = ((size, answers_needed(mean, limit, level)) for size, level in _sizes(limit, error))
    return next((n for size, n in needed if n is not None and n <= size), None)


def _count_alike(nights: Sequence[Night]) -> bool:
    cells = [cell for night in nights for cell in night.accepted]
    return len({cell.share for cell in cells}) <= 1 and all(cell.mass == cell.masks for cell in cells)


def _night_mean(night: Night) -> tuple[float, float]:
    """The night's mean loss, and the mass that its answers stand for; 0 and 0 without an answer."""
    strata = {cell.share: strata_of([_of_share(night, cell.share)])[0] for cell in night.accepted}
    answered = {share: stratum for share, stratum in strata.items() if stratum.losses.size}
    # Of masks that are hardly ever drawn those that were stand for the nights on which they were not.
    masses = [
        one.stands_for / -np.expm1(one.masks * np.log1p(-min(share, 1 - 1e-12)))
        for share, one in answered.items()
    ]
    total = float(sum(mass.sum() for mass in masses))
    lost = sum(float(mass @ one.losses) for mass, one in zip(masses, answered.values(), strict=True))
    return (lost / total, total) if total else (0.0, 0.0)


def _of_share(night: Night, share: float) -> Night:
    return Night(
        night.day,
        tuple(cell for cell in night.accepted if cell.share == share),
        tuple(one for one in night.drawn if one.share == share),
    )


def _stake(masses: Sequence[float]) -> float:
    """Of the last of these nights, from what its answers stand for and those of the nights before."""
    before = [mass for mass in masses[-ORDINARY_NIGHTS - 1 : -1] if mass > 0]
    ordinary = float(np.quantile(before, ORDINARY_SHARE, method="lower")) if before else 0.0
    return masses[-1] / max(masses[-1], ordinary) if masses[-1] else 0.0


def _sizes(limit: float, error: float) -> Iterator[tuple[int, float]]:
    """How many audits each window takes, and its share of the error."""
    first = answers_needed(limit / 2, limit, error / 2) if limit < 1 else None
    return iter(()) if first is None else window_sizes(first, error)  # all may be lost: nothing to show


def window_sizes(first: int, error: float) -> Iterator[tuple[int, float]]:
    """How many answers each window takes, the first so many, and its share of the error."""
    return ((first * 2**number, error / 2 ** (number + 1)) for number in range(WINDOWS))


def _windows(nights: Sequence[Night], limit: float, error: float) -> Iterator[tuple[Sequence[Night], float]]:
    return last_nights(nights, [len(night.drawn) for night in nights], _sizes(limit, error))


def last_nights(
    nights: Sequence[AnyNight], answers: Sequence[int], sizes: Iterable[tuple[int, float]]
) -> Iterator[tuple[Sequence[AnyNight], float]]:
    """The last nights that hold as many of their answers as each window takes, fewer where there are no more,
    and the window's share of the error."""
    counted = np.cumsum(answers[::-1])
    for size, level in sizes:
        length = int(np.searchsorted(counted, size)) + 1
        if counted.size:
            yield nights[-length:], level
        if length > len(nights):
            return


def _window(nights: Sequence[Night], level: float) -> Window:
    strata = strata_of(nights)
    lower, upper = sampled_bounds(strata, level)
    drawn = [one for night in nights for one in night.drawn]
    skipped = sum(one.loss is None for one in drawn)
    return Window(
        since=nights[0].day.isoformat(),
        until=nights[-1].day.isoformat(),
        nights=len(nights),
        audited=len(drawn) - skipped,
        skipped=skipped,
        estimate=sampled_mean(strata),
        lower=lower,
        upper=upper,
        upper_with_skips=_upper_with_skips(nights, level),
    )


def _upper_with_skips(nights: Sequence[Night], level: float) -> float:
    return sampled_bounds(strata_of(nights, skipped_as=1.0), level)[1]
