"""Which group of images a labelled one belongs to, found as calibration found it: in its key below SOURCE."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable

from segpipe.confidence.policy import Policy
from segpipe.errors import RunError
from segpipe.manifests.run_files import planned_header
from segpipe.name_groups import group_if_known, group_of, group_of_address

logger = logging.getLogger(__name__)


def counts_groups(policy: Policy) -> bool:
    """Whether the promise is one of a random image of a random group, so that each group weighs one."""
    return policy.promises_about == "groups" and (policy.group_by is not None or policy.counts_groups_once)


def sources_of(output: str, run_ids: Iterable[str]) -> dict[str, str]:
    """The SOURCE of each run whose plan is there and whole; of a damaged one it is said. StorageError."""
    return {run_id: source for run_id in run_ids if (source := _source(output, run_id)) is not None}


def unit_of(policy: Policy, image_uri: str, source: str | None) -> str | None:
    """The group that weighs one, for a policy that counts groups; None where nothing tells it for sure.

    Without the `source` that the image was found in, its key may begin anywhere in its address.
    """
    if policy.group_by is None:
        return None  # groups.csv names calibration images only
    name = posixpath.splitext(image_uri)[0]  # as calibration does: a key has no extension
    if source is not None and name.startswith(f"{source}/"):
        return group_if_known(group_of, name.removeprefix(f"{source}/"), policy.group_by)
    return group_if_known(group_of_address, name, policy.group_by)


def _source(output: str, run_id: str) -> str | None:
    try:
        header = planned_header(output, run_id)
    except RunError as error:
        logger.warning("the groups of the images of run %s are told by their addresses: %s", run_id, error)
        return None
    return None if header is None else str(header["source"])
