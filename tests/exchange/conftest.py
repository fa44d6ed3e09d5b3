"""An OUTPUT to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from accepted_output import Labelled, write_accepted

from segpipe.manifests.schema import Row


@pytest.fixture
def labelled(tmp_path: Path, make_row: Callable[..., Row]) -> Labelled:
    return write_accepted(tmp_path, make_row)
