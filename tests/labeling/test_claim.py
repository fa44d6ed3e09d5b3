"""Of all runs over one OUTPUT and model exactly one works at a time, and a dead one does not block."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from segpipe import storage
from segpipe.errors import RunError, StorageError
from segpipe.labeling.claim import hold_claim

MODEL = "aaaaaaaaaaaa"


def claims(output: str) -> list[str]:
    return [found.key for found in storage.list_objects(f"{output}/claims/{MODEL}")]


def content(output: str, generation: int) -> dict:
    return json.loads(storage.read_bytes(f"{output}/claims/{MODEL}/{generation:08d}.json"))


def plant(output: str, generation: int, expires_in: float, released: bool = False) -> None:
    """A claim as another process would have left it."""
    expires_at = (datetime.now(UTC) + timedelta(seconds=expires_in)).isoformat()
    record = {"run_id": "other", "owner": "o", "expires_at": expires_at, "released": released}
    storage.put(f"{output}/claims/{MODEL}/{generation:08d}.json", json.dumps(record).encode())


def test_a_claim_is_visible_while_held_and_released_after(storage_root: str) -> None:
    with hold_claim(storage_root, MODEL, "r1", 20) as claim:
        claim.require_alive()
        claim.require_newest()
        assert content(storage_root, 1)["run_id"] == "r1"
        assert not content(storage_root, 1)["released"]
    assert content(storage_root, 1)["released"]


def test_an_error_inside_releases_the_claim(storage_root: str) -> None:
    with pytest.raises(KeyError), hold_claim(storage_root, MODEL, "r1", 20):
        raise KeyError
    assert content(storage_root, 1)["released"]


def test_the_number_goes_on_and_only_the_newest_claim_stays(storage_root: str) -> None:
    for number in range(3):
        with hold_claim(storage_root, MODEL, f"r{number}", 20):
            pass
    assert claims(storage_root) == ["00000003.json"]


def test_never_two_hold_it_at_once(storage_root: str) -> None:
    inside = threading.Semaphore(1)

    def work(number: int) -> int:
        with hold_claim(storage_root, MODEL, f"r{number}", 20) as claim:
            assert inside.acquire(blocking=False)
            claim.require_newest()
            inside.release()
        return number

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(work, range(5))) == [0, 1, 2, 3, 4]


def test_another_model_or_output_does_not_wait(storage_root: str) -> None:
    with (
        hold_claim(f"{storage_root}/x", MODEL, "r1", 20),
        hold_claim(f"{storage_root}/x", "bbbbbbbbbbbb", "r2", 20),
        hold_claim(f"{storage_root}/y", MODEL, "r3", 20) as claim,
    ):
        claim.require_newest()


def test_who_waits_says_for_whom(storage_root: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segpipe")
    plant(storage_root, 4, expires_in=1.0)
    with hold_claim(storage_root, MODEL, "r1", 20):
        assert claims(storage_root) == ["00000004.json", "00000005.json"]
    assert any("waiting for run other" in line for line in caplog.messages)
    assert any("took over the claim of run other, which expired" in line for line in caplog.messages)


def test_a_released_claim_is_taken_at_once_and_silently(
    storage_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segpipe.labeling")
    plant(storage_root, 4, expires_in=3600, released=True)
    with hold_claim(storage_root, MODEL, "r1", 20):
        assert caplog.messages == []


def test_the_heartbeat_keeps_a_claim_beyond_its_lease(tmp_path) -> None:
    with hold_claim(str(tmp_path), MODEL, "r1", 2.0) as claim:
        first = content(str(tmp_path), 1)["expires_at"]
        wait_until(lambda: content(str(tmp_path), 1)["expires_at"] > first)
        wait_until(lambda: datetime.now(UTC) > datetime.fromisoformat(first))
        claim.require_newest()


def wait_until(reached) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_a_run_whose_claim_was_taken_over_may_not_commit(storage_root: str) -> None:
    with hold_claim(storage_root, MODEL, "r1", 20) as claim:
        plant(storage_root, 2, expires_in=20)
        with pytest.raises(RunError, match=r"run r1 lost its claim .* taken over; .* resume"):
            claim.require_newest()


def test_a_claim_that_cannot_be_renewed_is_lost_when_its_lease_ends(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, data: bytes) -> None:
        raise StorageError("the bucket is down")

    with hold_claim(str(tmp_path), MODEL, "r1", 1.0) as claim:
        monkeypatch.setattr(storage, "put", refuse)
        wait_until(lambda: is_lost(claim))
        monkeypatch.undo()
        with pytest.raises(RunError, match="lease"):
            claim.renew()


def is_lost(claim) -> bool:
    try:
        claim.require_alive()
    except RunError:
        return True
    return False


def test_a_damaged_claim_is_named(storage_root: str) -> None:
    storage.put(f"{storage_root}/claims/{MODEL}/00000001.json", b"{")
    with (
        pytest.raises(RunError, match=r"00000001\.json is damaged"),
        hold_claim(storage_root, MODEL, "r1", 20),
    ):
        pass
