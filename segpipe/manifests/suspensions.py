"""Policies whose promise audits have shown broken for an OUTPUT: one object each, created once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from segpipe import storage
from segpipe.errors import AlreadyExistsError


def suspension_uri(output: str, policy_id: str) -> str:
    """Where the evidence lies; removing it lifts the suspension."""
    return storage.join(output, f"suspended/{policy_id}.json")


def is_suspended(output: str, policy_id: str) -> bool:
    """Whether the policy accepts nothing any more under this OUTPUT. StorageError."""
    return storage.exists(suspension_uri(output, policy_id))


def suspend(output: str, policy_id: str, evidence: Mapping[str, Any]) -> None:
    """Suspend a policy for this OUTPUT; what an earlier suspension says stays. StorageError."""
    with suppress(AlreadyExistsError):
        storage.create(suspension_uri(output, policy_id), json.dumps(dict(evidence), indent=1).encode())
