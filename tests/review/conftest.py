"""An OUTPUT whose accepted masks are audited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from audited_output import AuditedOutput, audited_output

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., AuditedOutput]:
    """(target, created_at) -> OUTPUT with the policy kept in it; default: IoU 0.7, at most 10% bad."""

    def make(target: BadFraction | MeanLoss | None = None, **values: str) -> AuditedOutput:
        return audited_output(storage.normalise(tmp_path / "out"), target, **values)

    return make
