"""When so many images fail that going on does harm: the run stops and leaves the rest to a resume."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segpipe.errors import NotFoundError, RunError

if TYPE_CHECKING:
    from segpipe.labeling.items import Outcome

# Trouble around the images hits all of them and shows soon; bad images may lie together, a folder of them.
JUDGED_FOR_SURROUNDINGS = 64
JUDGED_FOR_ALL_REASONS = 1000


@dataclass
class _Latest:
    """Why images failed among the latest `judged` ones."""

    judged: int
    latest: deque[str | None] = field(default_factory=deque)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str | None) -> None:
        """Take in an image: the reason of its failure, None when it did not fail."""
        self.latest.append(reason)
        if reason is not None:
            self.failures[reason] += 1
        if len(self.latest) > self.judged and (oldest := self.latest.popleft()) is not None:
            self.failures[oldest] -= 1


def stop_when_too_many_fail(outcomes: Iterable[Outcome], max_failure_rate: float) -> Iterator[Outcome]:
    """The outcomes as they come; raises RunError as soon as too large a share of the latest has failed.

    max_failure_rate (0 to 1) is the share of the last 64 images that may fail in storage or in the model, and
    of the last 1,000 that may fail for any reason; 1 never stops.
    """
    in_surroundings, in_all = _Latest(JUDGED_FOR_SURROUNDINGS), _Latest(JUDGED_FOR_ALL_REASONS)
    for outcome in outcomes:
        reason = outcome.row.reason if outcome.row.decision == "failed" else None
        in_surroundings.add(reason if _blames_surroundings(outcome) else None)
        in_all.add(reason)
        for window in (in_surroundings, in_all):
            if window.failures.total() > max_failure_rate * window.judged:
                raise RunError(_why(window, outcome, max_failure_rate))
        yield outcome


def _blames_surroundings(outcome: Outcome) -> bool:
    """A failure that lies in storage or the model; an image that is gone is only a fact about that image."""
    return outcome.row.reason in ("storage", "inference") and not isinstance(outcome.error, NotFoundError)


def _why(window: _Latest, last: Outcome, max_failure_rate: float) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in window.failures.most_common() if count)
    failed = f"{window.failures.total()} of the last {len(window.latest)} images failed ({reasons})"
    return (
        f"{failed}, so run {last.row.run_id} stops before it fails the rest; the last, {last.row.image_uri}: "
        f"{last.row.error}; mend that and resume with the same run id, or allow more failures than "
        f"--max-failure-rate {max_failure_rate:g}"
    )
