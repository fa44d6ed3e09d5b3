"""Is kept what is promised about classes? Pure figures from what people said about masks.

A promise about a class counts all images that have the class (or have it not), accepted or in review, and
those of them that are accepted and wrong. What people drew says which images those are. Of accepted masks the
audits are a blind draw. Of masks in review people see what they come to, and no chance stands for the others,
but where a queue has drawn some of a night's at random: see class_answers. Where the promise is to be shown
kept none of those that nobody has answered counts. Where it is to be shown broken all of them do but those
that drawn ones stand for, and a drawn one does until it is answered. Both ways the answers that are missing
can only hide something, never make it up.

Why bets may go by an estimate: a night pays (wrong / limit - images) / M, where M is what the images would be
were all masks in review such, so that nobody loses more than the stake. Given how many were drawn of each
frame, `images` is unbiased (Horvitz and Thompson 1952; within a night Holt and Smith 1979), and the payoff is
linear in it, so it expects what the true number does: no gain while the promise is kept. It only rises as
drawn masks are answered, so all looks together err no more often than the last. A ratio of the estimates,
staked by what they come to, would not do: it loses less than it should where the draw has met the class.

The price is a small stake, on all that could be such, also where later queues have answered the whole night
since. To count the answers instead as soon as they are all there would not do: by an estimate today and by
the answers tomorrow is twice a chance to look broken. So the capital is shared by two ways of counting, from
the first night on: by the draws, and each mask by itself, as if nothing had been drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpipe.confidence.class_share import Seen, answers_needed, lower_bound, proves, upper_bound
from segpipe.confidence.class_test import ClassPromiseKind, mistakes
from segpipe.confidence.confidence_sequence import lower_end, p_values_above
from segpipe.confidence.policy import ClassPromise
from segpipe.review.audit_nights import last_nights, stakes, window_sizes

Values = NDArray[np.float64]
State = Literal["kept", "undecided", "broken", "not_covered"]


@dataclass(frozen=True)
class MaskAnswer:
    """What is known of one mask: pixels of each class by the person who looked (None: nobody has said) and in
    the mask itself (None: a version that did not count them); audit_share (above 0 to 1) is the chance to be
    audited of an accepted mask, None of one in review. In a bet one in review counts for as many as it
    `stands_for`: more than itself where it was `drawn` at random, none where drawn ones stand for it."""

    night: date
    audit_share: float | None
    true_pixels: Sequence[int] | None
    shown_pixels: Sequence[int] | None
    stands_for: float = 1.0
    drawn: bool = False


@dataclass(frozen=True)
class Unseen:
    """Of one night's masks in review: `masks` of which nobody has said anything, `alone` of them in no frame
    that a queue drew from; `framed` ones are in such, seen or not. The unseen `stand_for` so many in a bet:
    those alone for themselves, the drawn ones for others, of which `stood_for` are unseen, too."""

    masks: int = 0
    stand_for: float = 0.0
    alone: int = 0
    framed: int = 0
    stood_for: int = 0


@dataclass(frozen=True)
class ClassAnswers:
    """What was said of masks, and of which masks in review, by night, nothing was."""

    answers: Sequence[MaskAnswer] = ()
    unseen: Mapping[date, Unseen] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassNight:
    """One night's masks as one promise counts them.

    chances, wrong (n,): the audited images that the promise is about, and whether the mask is wrong. `hidden`
    (m,) are the audit shares of those without an answer that could be wrong, `least_chance` (0 to 1) is the
    smallest audit share of the accepted masks, 1 without one. Of the masks in review `reviewed` are of images
    that the promise is about, and of `unseen` ones nobody has said; for `stood_for` of these drawn ones
    stand, by whose answers `guessed` are such. In a bet `bet_on` are such, and `could_be` is the most.
    """

    day: date
    least_chance: float
    chances: tuple[float, ...]
    wrong: tuple[bool, ...]
    hidden: tuple[float, ...]
    reviewed: int
    unseen: int
    stood_for: int
    guessed: float
    bet_on: float
    could_be: float


@dataclass(frozen=True)
class ClassWindow:
    """What the answers of some nights in a row (ISO dates) say of all images of these nights.

    Of the `audited` accepted images that the promise is about `wrong` are so; `hidden` ones without an answer
    could be. The share that is accepted and wrong, `estimate` (None without any), is between `lower` and
    `upper_with_hidden`.
    """

    since: str
    until: str
    audited: int
    wrong: int
    hidden: int
    estimate: float | None
    lower: float
    upper_with_hidden: float


@dataclass(frozen=True)
class ClassAudit:
    """What people said about one promise about a class: see policy.ClassPromise, whose `limit` is max_share.

    Of the audited accepted masks `audited` are of images that the promise is about, `wrong` of them wrong;
    `hidden` ones, skipped or of a version that counted no classes, could be. Of the masks in review
    `reviewed` are of such images, and of `unseen` nobody has said so; for `stood_for` of these others stand,
    which a queue has drawn at random. `estimate` is the share of all such images that is accepted and wrong,
    if none of the other unseen ones were such (None without one); it is between `lower` and `upper`. On
    some of the `nights` it surely was above `broken_above`; `p_value` is that of the promise being kept all
    the time. `more_needed`: so many more audited images that the promise is about, and like the last, would
    show it kept; None: no number would (`no_better`), or none can be told. `recent` are the last nights,
    `kept_over` those that show it kept. state not_covered: the promise counts each group once, the answers
    each image.
    """

    kind: ClassPromiseKind
    class_name: str
    min_object_px: int
    limit: float
    state: State
    audited: int
    wrong: int
    hidden: int
    reviewed: int
    unseen: int
    estimate: float | None
    lower: float
    upper: float
    broken_above: float
    p_value: float
    more_needed: int | None
    no_better: bool
    nights: int
    recent: ClassWindow | None
    kept_over: ClassWindow | None
    stood_for: int = 0


def class_nights(
    promise: ClassPromise, found: ClassAnswers, least_chances: Mapping[date, float]
) -> list[ClassNight]:
    """The nights in the order of their days; `least_chances` are, by night, the smallest audit share of its
    accepted masks."""
    by_day: defaultdict[date, list[MaskAnswer]] = defaultdict(list)
    for answer in found.answers:
        by_day[answer.night].append(answer)
    return [
        _night(promise, day, by_day[day], least_chances.get(day, 1.0), found.unseen.get(day, Unseen()))
        for day in sorted(by_day.keys() | least_chances.keys() | found.unseen.keys())
    ]


def audited_class(
    promise: ClassPromise, nights: Sequence[ClassNight], whole: Sequence[ClassNight], error: float
) -> ClassAudit:
    """What the nights say; `whole` are those of which all audits are answered. `error` is of each end."""
    limit, seen = promise.max_share, _seen(nights)
    losses, weights = class_bets(whole)
    kept, broken_above = class_kept_over(nights, limit, error), lower_end(losses, error, weights)
    recent, needed = next(_windows(nights, limit, error), None), _answers_needed(nights, limit, error)
    return ClassAudit(
        kind=promise.kind,
        class_name=promise.class_name,
        min_object_px=promise.min_object_px,
        limit=limit,
        state="broken" if broken_above > limit else "kept" if kept else "undecided",
        audited=sum(len(night.wrong) for night in nights),
        wrong=sum(sum(night.wrong) for night in nights),
        hidden=sum(len(night.hidden) for night in nights),
        reviewed=sum(night.reviewed for night in nights),
        unseen=sum(night.unseen for night in nights),
        estimate=_estimate(nights),
        lower=lower_bound(_seen(nights, sum(night.unseen for night in nights)), error),
        upper=upper_bound(seen, error),
        broken_above=broken_above,
        p_value=float(p_values_above(losses, limit, weights).min(initial=1.0)),
        more_needed=None if kept else _answers_missing(nights, needed),
        no_better=needed is None,
        nights=int((weights > 0).any(axis=0).sum()),
        recent=None if recent is None else _window(*recent),
        kept_over=kept,
        stood_for=sum(night.stood_for for night in nights),
    )


def class_bets(nights: Sequence[ClassNight]) -> tuple[Values, Values]:
    """Each night's share of wrong ones, and what share of an ordinary night's bet is placed on it: as
    audit_nights.night_bets, 0 to 1, but (2, n) both. First by the draws: `bet_on` of the masks in review
    count as images that the promise is about, and the stake is on as many as `could_be`. Then each by
    itself: those that are such and the unseen ones. Where there is nothing nothing is bet.
    """
    by_draws = _bets((night, night.bet_on, night.could_be) for night in nights)
    alone = _bets((night, night.reviewed + night.unseen, night.reviewed + night.unseen) for night in nights)
    losses, weights = np.stack([by_draws, alone], axis=1)
    return losses, weights


def _bets(counted: Iterable[tuple[ClassNight, float, float]]) -> Values:
    """The losses and the weights (2, n) of nights, each with how many masks in review count as such and how
    many could."""
    shares = np.array([_night_share(*one) for one in counted]).reshape(-1, 3)
    losses, masses, most = shares.T
    of_most = np.divide(masses, most, out=np.zeros_like(masses), where=most > 0)
    return np.array([losses, of_most * stakes(most.tolist())])


def class_kept_over(nights: Sequence[ClassNight], limit: float, error: float) -> ClassWindow | None:
    """The last nights that show the promise kept, hidden ones being wrong; else None.

    It is wrong with a probability of at most `error` on the night it is asked. Never while the last of them
    look worse than promised.
    """
    windows = list(_windows(nights, limit, error))
    if not windows or (_seen(windows[0][0]).share or 0.0) > limit:
        return None
    shown = (part for part in windows if proves(_seen(part[0], hidden_are_wrong=True), limit, part[1]))
    return next((_window(*part) for part in shown), None)


def not_covered(promise: ClassPromise) -> ClassAudit:
    """Of a promise that counts each group of images once."""
    nothing = audited_class(promise, [], [], 0.5)
    return replace(nothing, state="not_covered", more_needed=None)


def _night(
    promise: ClassPromise, day: date, answers: Sequence[MaskAnswer], least_chance: float, unseen: Unseen
) -> ClassNight:
    concerned, hidden = [], []
    sent: list[tuple[bool | None, MaskAnswer]] = []
    for answer in answers:
        true, shown, share = answer.true_pixels, answer.shown_pixels, answer.audit_share
        if share is None:
            sent.append((None if true is None else _is_wrong(promise, true, true) is not None, answer))
        elif true is None or shown is None:
            hidden += [share] if _could_be_wrong(promise, shown) else []
        elif (wrong := _is_wrong(promise, true, shown)) is not None:
            concerned.append((share, wrong))
    return ClassNight(
        day,
        least_chance,
        tuple(share for share, _ in concerned),
        tuple(wrong for _, wrong in concerned),
        tuple(hidden),
        sum(is_such is True for is_such, _ in sent),
        unseen.masks + sum(is_such is None for is_such, _ in sent),
        unseen.stood_for,
        unseen.stood_for * _share_of_drawn(sent),
        unseen.stand_for + sum(one.stands_for for is_such, one in sent if is_such is not False),
        unseen.alone
        + unseen.framed
        + sum(one.stands_for > 0 and not one.drawn for is_such, one in sent if is_such is not False),
    )


def _share_of_drawn(sent: Sequence[tuple[bool | None, MaskAnswer]]) -> float:
    """How many of the masks drawn at random are of images that the promise is about, by their answers."""
    known = [(is_such, one.stands_for) for is_such, one in sent if one.drawn and is_such is not None]
    total = sum(stands_for for _, stands_for in known)
    return sum(stands_for for is_such, stands_for in known if is_such) / total if total else 0.0


def _could_be_wrong(promise: ClassPromise, shown_pixels: Sequence[int] | None) -> bool:
    """By the mask alone: one that shows the class does not miss it, one without it is no false alarm."""
    if shown_pixels is None:
        return True
    return (shown_pixels[promise.class_index] >= promise.min_object_px) == (promise.kind == "false_alarm")


def _is_wrong(promise: ClassPromise, true_pixels: Sequence[int], shown_pixels: Sequence[int]) -> bool | None:
    """None for an image that the promise is not about."""
    true, shown = (np.array([pixels[promise.class_index]]) for pixels in (true_pixels, shown_pixels))
    found = mistakes(promise.kind, true, shown, promise.min_object_px)
    return bool(found.wrong[0]) if found.concerned[0] else None


def _night_share(night: ClassNight, in_review: float, could_be: float) -> tuple[float, float, float]:
    """How large a share of the images that the promise is about is accepted and wrong, how many there are,
    and how many there could be; 0 where nothing is known."""
    stand_for = 1 / np.array(night.chances)
    accepted, wrong = float(stand_for.sum()), float(stand_for @ np.array(night.wrong, np.float64))
    mass = accepted + in_review
    return wrong / mass if mass else 0.0, mass, accepted + could_be


def _estimate(nights: Sequence[ClassNight]) -> float | None:
    return _seen(nights, round(sum(night.guessed for night in nights))).share


def _seen(nights: Sequence[ClassNight], unseen: int = 0, hidden_are_wrong: bool = False) -> Seen:
    """What counts of these nights, and of the masks in review so many more."""
    chances = [chance for night in nights for chance in night.chances]
    wrong = [is_wrong for night in nights for is_wrong in night.wrong]
    hidden = [chance for night in nights for chance in night.hidden] if hidden_are_wrong else []
    in_review = sum(night.reviewed for night in nights) + unseen
    return Seen(
        np.array([*chances, *hidden, 1.0]),
        np.array([*wrong, *(True for _ in hidden), False]),
        np.array([1] * (len(chances) + len(hidden)) + [in_review]),
        min((night.least_chance for night in nights), default=1.0),
    )


def _answers_missing(nights: Sequence[ClassNight], needed: int | None) -> int | None:
    """How many more audited images than there are; None where none can be told, as chances differ."""
    counted = sum(len(night.wrong) + len(night.hidden) for night in nights)
    chances = {chance for night in nights for chance in (*night.chances, *night.hidden, night.least_chance)}
    return None if needed is None or needed <= counted or len(chances) > 1 else needed - counted


def _answers_needed(nights: Sequence[ClassNight], limit: float, error: float) -> int | None:
    """How many audited images like those of the last nights would do, were all as likely to be drawn."""
    recent = next(_windows(nights, limit, error), None)
    share = (_seen(recent[0], hidden_are_wrong=True).share or 0.0) if recent else 0.0
    needed = ((size, answers_needed(share, limit, level)) for size, level in _sizes(limit, error))
    return next((n for size, n in needed if n is not None and n <= size), None)


def _sizes(limit: float, error: float) -> Iterator[tuple[int, float]]:
    """How many audited images each window takes, and its share of the error (see audit_nights)."""
    first = answers_needed(limit / 2, limit, error / 2)
    assert first is not None  # half of what is promised proves it
    return window_sizes(first, error)


def _windows(
    nights: Sequence[ClassNight], limit: float, error: float
) -> Iterator[tuple[Sequence[ClassNight], float]]:
    """The last nights that hold as many images as each window takes."""
    return last_nights(
        nights, [len(night.wrong) + len(night.hidden) for night in nights], _sizes(limit, error)
    )


def _window(nights: Sequence[ClassNight], level: float) -> ClassWindow:
    return ClassWindow(
        since=nights[0].day.isoformat(),
        until=nights[-1].day.isoformat(),
        audited=sum(len(night.wrong) for night in nights),
        wrong=sum(sum(night.wrong) for night in nights),
        hidden=sum(len(night.hidden) for night in nights),
        estimate=_estimate(nights),
        lower=lower_bound(_seen(nights, sum(night.unseen for night in nights)), level),
        upper_with_hidden=upper_bound(_seen(nights, hidden_are_wrong=True), level),
    )
