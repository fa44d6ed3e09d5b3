"""A claim whose owner was killed, without the wait for the end of its lease."""

from __future__ import annotations

import json

from segpipe import storage


def let_the_lease_run_out(output: str) -> None:
    """As if its owner, who writes no more, had been silent for longer."""
    (claim,) = storage.list_objects(f"{output}/claims")
    silent = {"expires_at": "2026-01-01T00:00:00+00:00", "lease_seconds": 0.1}
    storage.put(claim.uri, json.dumps(json.loads(storage.read_bytes(claim.uri)) | silent).encode())
