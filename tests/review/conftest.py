"""OUTPUTs whose masks are audited or reviewed, and a Label Studio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audited_output import AuditedOutput, audited_output
from fake_studio import FakeStudio, fake_studio
from reviewed_output import ReviewedOutput

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss


@pytest.fixture
def audited(tmp_path: Path) -> Callable[..., AuditedOutput]:
    """(target, created_at) -> OUTPUT with the policy kept in it; default: IoU 0.7, at most 10% bad."""

    def make(target: BadFraction | MeanLoss | None = None, **values: str) -> AuditedOutput:
        return audited_output(storage.normalise(tmp_path / "out"), target, **values)

    return make


@pytest.fixture
def studio() -> Iterator[FakeStudio]:
    with fake_studio() as server:
        yield server


@pytest.fixture
def made(tmp_path: Path, row_defaults: dict[str, Any]) -> ReviewedOutput:
    return ReviewedOutput(str(tmp_path / "labels"), row_defaults)
