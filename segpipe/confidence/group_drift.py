"""Whether the scores of a run look like the calibration's, for each group of images by itself.

Where a policy has certificates per group, such as a camera, each group's scores are held against those that
its own certificate rests on. So one camera that was moved sends its own masks to review and no others; images
of a new one have no certificate and are not part of any test.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from segpipe.confidence.drift import Drift, detect_drift, levels_of
from segpipe.name_groups import group_if_known, group_of_address

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

_METADATA = "segpipe.drift_by_group"  # of a part, where the verdicts lie


def detect_group_drift(
    scores: Iterable[tuple[str, float]],
    policy: Policy,
    false_alarm_rate: float,
    earlier: Sequence[Sequence[tuple[str, float]]] = (),
    deviation: float | None = None,
) -> dict[str, Drift]:
    """The verdict on each group in which masks can be accepted, from a run's (image URI, raw score).

    The rate is that of any false alarm in the run: each group is tested at its part of it. `earlier` are the
    same of the runs before, `deviation` as in detect_drift.
    """
    certified = [one for one in policy.certificates if one.threshold is not None]
    by_group, before = _by_group(scores, policy), [_by_group(run, policy) for run in earlier]
    return {
        one.group: detect_drift(
            by_group[one.group],
            (own := policy.of_group(one)),
            false_alarm_rate / len(certified),
            levels_of((run[one.group] for run in before), own),
            deviation,
        )
        for one in certified
    }


def _by_group(scores: Iterable[tuple[str, float]], policy: Policy) -> defaultdict[str | None, list[float]]:
    by_group = defaultdict(list)
    for image_uri, score in scores:
        by_group[group_if_known(group_of_address, image_uri, policy.per or "")].append(score)
    return by_group


def group_drift_metadata(drifts: Mapping[str, Drift]) -> dict[str, str]:
    """The verdicts as a part's metadata; none without groups, as in parts of older versions."""
    return {_METADATA: json.dumps({group: asdict(one) for group, one in drifts.items()})} if drifts else {}


def group_drift_of_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, Drift]:
    """The verdicts in a part's metadata. ValueError when they are damaged."""
    return TypeAdapter(dict[str, Drift]).validate_json(metadata.get(_METADATA.encode(), b"{}"))
