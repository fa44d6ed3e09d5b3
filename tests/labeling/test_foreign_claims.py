"""Whatever a claim object holds: a run waits for it and takes it over, or says one line."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest
from foreign_text import SHORT, damaged, is_one_line, texts
from hypothesis import example, given
from hypothesis import strategies as st

from segpipe import storage
from segpipe.errors import SegpipeError
from segpipe.labeling import claim as claim_module
from segpipe.labeling.claim import delete_superseded, hold_claim, is_claimed

CLAIM = {
    "run_id": "r-1",
    "owner": "0123456789abcdef",
    "expires_at": "2026-11-24T00:00:00+00:00",
    "released": False,
    "lease_seconds": 0.01,
}
CONTENTS = st.one_of(
    texts(CLAIM).map(lambda text: text.encode(errors="surrogatepass")), damaged(json.dumps(CLAIM).encode())
)
NAMES = st.one_of(
    st.just("00000001"), st.integers(0).map(lambda number: f"{number:08d}"), st.text("0189x.-٣")
)
NUMBERS = itertools.count()


class Clock:
    """Time that passes in sleep alone, and then a quarter of an hour at least."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 900.0)


@SHORT
@given(NAMES, CONTENTS)
@example("00000001", b"[" * 100_000)
@example("00000001", b" " * 10_000_000)
@example("9" * 1000, b"")
def test_a_claim_of_any_content(name: str, content: bytes) -> None:
    output = f"memory://claims-{next(NUMBERS)}"
    storage.put(f"{output}/claims/m/{name}.json", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_module, "time", Clock())
        try:
            assert is_claimed(output, "m", datetime.now(UTC)) in (True, False)
            with hold_claim(output, "m", "ours", 60.0) as claim:
                claim.require_newest()
            assert delete_superseded(output, "m") == 0
        except SegpipeError as error:
            assert is_one_line(error)  # noqa: PT017 - most can be taken over, not all
