"""When so many images fail that going on does harm, or that a run cannot be called a success."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from segpipe.errors import FailureReason, NotFoundError, RunError

if TYPE_CHECKING:
    from segpipe.labeling.items import Outcome
    from segpipe.labeling.totals import RunSummary

# Trouble around the images hits all of them and shows soon; bad images may lie together, a folder of them.
WINDOW_FOR_SURROUNDINGS = 64
WINDOW_FOR_ALL_REASONS = 1000
# Lasting facts about one object, which may fill whole folders: the run goes on behind them, and no plan takes
# them up again by itself.
_PASSED_BY = frozenset({"denied", "archived"})
# In a row; then twice as many, and so on: to look for SOURCE costs a listing.
_GONE_BEFORE_A_LOOK = 8
_REASONS_SHOWN = 2


@dataclass
class _Latest:
    """Why images failed among the latest `size` ones."""

    size: int
    latest: deque[str | None] = field(default_factory=deque)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str | None) -> None:
        """Take in an image: the reason of its failure, None when it did not fail."""
        self.latest.append(reason)
        if reason is not None:
            self.failures[reason] += 1
        if len(self.latest) > self.size and (oldest := self.latest.popleft()) is not None:
            self.failures[oldest] -= 1


def stop_when_too_many_fail(outcomes: Iterable[Outcome], max_failure_rate: float) -> Iterator[Outcome]:
    """The outcomes as they come; raises RunError as soon as too large a share of the latest has failed.

    max_failure_rate (0 to 1) is the share of the last 64 images that may fail in storage or in the model, and
    of the last 1,000 that may fail for any reason but denied and archived; 1 stops none of these.
    """
    in_surroundings, in_all = _Latest(WINDOW_FOR_SURROUNDINGS), _Latest(WINDOW_FOR_ALL_REASONS)
    for outcome in outcomes:
        reason = outcome.row.reason if outcome.row.decision == "failed" else None
        in_surroundings.add(reason if _blames_surroundings(outcome) else None)
        in_all.add(None if reason in _PASSED_BY else reason)
        for window in (in_surroundings, in_all):
            if window.failures.total() > max_failure_rate * window.size:
                raise RunError(_why(window, outcome, max_failure_rate))
        yield outcome


def stop_when_source_is_gone(
    outcomes: Iterable[Outcome], require_source: Callable[[], None]
) -> Iterator[Outcome]:
    """The outcomes as they come; require_source, which raises when SOURCE is gone, is asked where images are.

    That is at the first that is gone, and where 8, 16, 32 and so on are in a row.
    """
    in_a_row, is_first = 0, True
    for outcome in outcomes:
        in_a_row = in_a_row + 1 if _is_gone(outcome) else 0
        if in_a_row and (is_first or _is_doubled(in_a_row)):
            is_first = False
            require_source()
        yield outcome


def _is_doubled(count: int) -> bool:
    return count >= _GONE_BEFORE_A_LOOK and count & (count - 1) == 0


def require_few_failures(summary: RunSummary, max_failure_rate: float) -> None:
    """Raise RunError when of all images of a finished run more than this share (0 to 1) have failed."""
    images = summary.accepted + summary.review + summary.failed
    if summary.failed > max_failure_rate * images:
        raise RunError(_verdict(summary, images, max_failure_rate))


def _verdict(summary: RunSummary, images: int, max_failure_rate: float) -> str:
    failed = Counter({reason: summary.reasons.get(reason, 0) for reason in get_args(FailureReason)})
    retried = "" if set(+failed) == {"storage"} else " with --retry REASON"
    return (
        f"{summary.failed} of the {images} images of run {summary.run_id} failed ({_counted(failed)}), more "
        f"than --max-failure-rate {max_failure_rate:g}; {_examples(summary, failed)}all rows are kept, the "
        f"view failures says why: mend that and label again{retried}, which tries them once more"
    )


def _examples(summary: RunSummary, failed: Counter[str]) -> str:
    """One image for each of the commonest reasons, as far as the summary has one."""
    firsts = {image.reason: image for image in reversed(summary.worst) if image.decision == "failed"}
    shown = [firsts[reason] for reason, _ in failed.most_common(_REASONS_SHOWN) if reason in firsts]
    return "".join(f"{image.reason}, for example {image.image_uri}: {image.error}; " for image in shown)


def _blames_surroundings(outcome: Outcome) -> bool:
    """A failure that lies in storage or the model; an image that is gone is only a fact about that image."""
    return outcome.row.reason in ("storage", "inference") and not _is_gone(outcome)


def _is_gone(outcome: Outcome) -> bool:
    """Whether the image was not there; one that was decoded lacked the place for its mask."""
    return isinstance(outcome.error, NotFoundError) and outcome.row.image_height is None


def _why(window: _Latest, last: Outcome, max_failure_rate: float) -> str:
    count = f"{window.failures.total()} of the last {len(window.latest)}"
    failed = f"{count} images failed ({_counted(window.failures)})"
    return (
        f"{failed}, so run {last.row.run_id} stops before it fails the rest; the last, {last.row.image_uri}: "
        f"{last.row.error}; mend that and resume with the same run id, or allow more failures than "
        f"--max-failure-rate {max_failure_rate:g}"
    )


def _counted(failures: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in failures.most_common() if count)
