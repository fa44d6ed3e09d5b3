"""Which of the policies kept in OUTPUT each model's newest run stands on, and which cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from segpipe.confidence.policy import Policy
from segpipe.errors import SegpipeError
from segpipe.manifests.views import open_views

_NEWEST_RUNS = """
    SELECT policy_id, model_id, max(began) FROM (
        SELECT policy_id, model_id, min(labeled_at) AS began FROM labels WHERE policy_id IS NOT NULL
        GROUP BY policy_id, model_id, run_id)
    GROUP BY policy_id, model_id"""
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class NewestRun:
    """Under one policy: of which model, and when it labelled its first mask."""

    model_id: str
    began: datetime


@dataclass(frozen=True)
class Unread:
    """A policy that is damaged or not there, the model whose masks were labelled under it (None where none
    were), and the error, which names the file and the remedy."""

    policy_id: str
    model_id: str | None
    why: SegpipeError


def newest_roots(kept: Mapping[str, Policy | SegpipeError], runs: Mapping[str, NewestRun]) -> list[Policy]:
    """The calibrated policy of the newest run of each model that has one.

    By the runs, since their stamps never go back: created_at does where a clock was set back, and another
    family would grow than the one that labels.
    """
    read = [one for one in kept.values() if isinstance(one, Policy)]
    began = _began(read, runs)
    roots = [one for one in read if one.policy_id == one.family]
    roots.sort(key=lambda one: (began.get(one.family, _NEVER), one.created_at, one.policy_id))
    return list({one.model_id: one for one in roots}.values())


def newest_runs(output: str) -> dict[str, NewestRun]:
    """The newest run under each policy, by its id; a run goes on under its own policy. StorageError."""
    with open_views(output) as connection:
        found = connection.sql(_NEWEST_RUNS).fetchall()
    return {policy_id: NewestRun(model_id, began) for policy_id, model_id, began in found}


def _began(read: Sequence[Policy], runs: Mapping[str, NewestRun]) -> dict[str, datetime]:
    """When the newest run under each family labelled its first mask."""
    began: dict[str, datetime] = {}
    for one in read:
        if one.policy_id in runs:
            began[one.family] = max(runs[one.policy_id].began, began.get(one.family, _NEVER))
    return began


def damaged_policies(
    kept: Mapping[str, Policy | SegpipeError], runs: Mapping[str, NewestRun]
) -> list[Unread]:
    """What cannot be read."""
    return [
        Unread(name, runs[name].model_id if name in runs else None, one)
        for name, one in kept.items()
        if isinstance(one, SegpipeError)
    ]
