"""Of all runs over one OUTPUT and model exactly one works at a time, and a dead one does not block."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from segpipe import storage
from segpipe.errors import RunError, StorageError
from segpipe.labeling import claim as claim_module
from segpipe.labeling import lease as lease_module
from segpipe.labeling.claim import delete_superseded, hold_claim, is_claimed

MODEL = "aaaaaaaaaaaa"


def claims(output: str) -> list[str]:
    return [found.key for found in storage.list_objects(f"{output}/claims/{MODEL}")]


def content(output: str, generation: int) -> dict:
    return json.loads(storage.read_bytes(f"{output}/claims/{MODEL}/{generation:08d}.json"))


def plant(output: str, generation: int, expires_in: float, released: bool = False, **fields: Any) -> None:
    """A claim as another process would have left it; without lease_seconds one of an earlier version."""
    expires_at = (datetime.now(UTC) + timedelta(seconds=expires_in)).isoformat()
    record = {"run_id": "other", "owner": "o", "expires_at": expires_at, "released": released} | fields
    storage.put(f"{output}/claims/{MODEL}/{generation:08d}.json", json.dumps(record).encode())


@dataclass
class Clock:
    """Time that passes in sleep alone, in which something may happen; stands for the module time."""

    wall: float = 1_800_000_000.0
    steady: float = 1000.0
    slept: float = 0.0
    meanwhile: Callable[[float], None] = lambda slept: None

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        self.pass_by(seconds)
        self.slept += seconds
        self.meanwhile(self.slept)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (claim_module, lease_module):
        monkeypatch.setattr(module, "time", made)
    return made


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


def test_a_number_that_others_used_and_tidied_up_meanwhile_is_not_taken(
    storage_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = storage.create

    def others_come_first(uri: str, data: bytes) -> None:
        monkeypatch.setattr(storage, "create", create)
        for run_id in ("r1", "r2"):
            with hold_claim(storage_root, MODEL, run_id, 20):
                pass
        create(uri, data)

    monkeypatch.setattr(storage, "create", others_come_first)
    with hold_claim(storage_root, MODEL, "r3", 20) as claim:
        claim.require_newest()
        assert content(storage_root, 3)["run_id"] == "r3"
    assert claims(storage_root) == ["00000003.json"]


def test_another_model_or_output_does_not_wait(storage_root: str) -> None:
    with (
        hold_claim(f"{storage_root}/x", MODEL, "r1", 20),
        hold_claim(f"{storage_root}/x", "bbbbbbbbbbbb", "r2", 20),
        hold_claim(f"{storage_root}/y", MODEL, "r3", 20) as claim,
    ):
        claim.require_newest()


def test_who_waits_says_for_whom(storage_root: str, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segpipe")
    plant(storage_root, 4, expires_in=0, lease_seconds=30.0)
    with hold_claim(storage_root, MODEL, "r1", 20):
        assert claims(storage_root) == ["00000004.json", "00000005.json"]
    assert any("waiting for run other" in line for line in caplog.messages)
    assert any("took over the claim of run other, which fell silent" in line for line in caplog.messages)


def test_a_released_claim_is_taken_at_once_and_silently(
    storage_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segpipe.labeling")
    plant(storage_root, 4, expires_in=3600, released=True)
    with hold_claim(storage_root, MODEL, "r1", 20):
        assert caplog.messages == []


def test_the_heartbeat_keeps_a_claim_beyond_its_lease(tmp_path, clock: Clock) -> None:
    with hold_claim(str(tmp_path), MODEL, "r1", 0.2) as claim:
        for _ in range(2):
            clock.pass_by(0.15)
            wait_until(lambda: claim.seconds_left() > 0.1)
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


def test_a_renewal_that_arrives_after_another_took_over_gives_no_claim_back(
    storage_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.put

    def arrive_late(uri: str, data: bytes) -> None:
        monkeypatch.setattr(storage, "put", put)
        plant(storage_root, 2, expires_in=20)
        put(uri, data)

    with hold_claim(storage_root, MODEL, "r1", 20) as claim:
        monkeypatch.setattr(storage, "put", arrive_late)
        with pytest.raises(RunError, match=r"run r1 lost its claim .* taken over"):
            claim.renew()
        with pytest.raises(RunError, match="taken over"):  # so that no mask is written either
            claim.require_alive()
        assert claim.seconds_left() == 0


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


def test_a_claim_that_stands_still_is_kept_for_that_long_and_no_longer(tmp_path, clock: Clock) -> None:
    output = str(tmp_path)
    with hold_claim(output, MODEL, "r1", 4000) as claim:
        with claim.standing_still(5000):
            clock.pass_by(4900)
            claim.require_alive()
            assert content(output, 1)["lease_seconds"] == 5000  # who waits knows
            assert claim.seconds_left() == pytest.approx(100)
        claim.renew()
        assert content(output, 1)["lease_seconds"] == 4000
        assert claim.seconds_left() == pytest.approx(4000)
        with claim.standing_still(10):  # nothing is shortened
            assert claim.seconds_left() == pytest.approx(4000)
        with claim.standing_still(5000):
            clock.pass_by(5000)
            with pytest.raises(RunError, match="lost its claim"):
                claim.require_alive()


def test_a_claim_whose_shorter_lease_may_have_arrived_lasts_no_longer_than_that(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a renewal that failed after its request nobody knows which lease others see."""
    put = storage.put

    def arrive_unanswered(uri: str, data: bytes) -> None:
        put(uri, data)
        raise StorageError("no answer")

    with hold_claim(str(tmp_path), MODEL, "r1", 4000) as claim:
        with claim.standing_still(10_000):
            clock.pass_by(1000)
        monkeypatch.setattr(storage, "put", arrive_unanswered)
        for passed, left in [(0, 4000), (3000, 1000)]:
            clock.pass_by(passed)
            with pytest.raises(StorageError):
                claim.renew()
            assert content(str(tmp_path), 1)["lease_seconds"] == 4000
            assert claim.seconds_left() == pytest.approx(left)
        monkeypatch.undo()


def test_a_shorter_lease_that_may_have_arrived_lengthens_none(
    tmp_path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, data: bytes) -> None:
        raise StorageError("the bucket is down")

    with hold_claim(str(tmp_path), MODEL, "r1", 4000) as claim:
        with claim.standing_still(5000):
            clock.pass_by(4900)
        with monkeypatch.context() as patched:
            patched.setattr(storage, "put", refuse)
            with pytest.raises(StorageError):
                claim.renew()
        assert claim.seconds_left() == pytest.approx(100)


def is_lost(claim) -> bool:
    try:
        claim.require_alive()
    except RunError:
        return True
    return False


# --- other clocks, and claims that are none -----------------------------------------------------------------

DAY = 86_400.0
SOUND = {"run_id": "other", "owner": "o", "expires_at": "2026-01-01T00:00:00+00:00", "released": False}
DAMAGED = {
    "cut off": b"{",
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "no object": b"[]",
    "nested": b"[" * 100_000,
    "a naive time": json.dumps(SOUND | {"expires_at": "2026-01-01T00:00:00"}).encode(),
    "no time": json.dumps(SOUND | {"expires_at": "soon"}).encode(),
    "a number as time": json.dumps(SOUND | {"expires_at": 1e300}).encode(),
    "an odd name": json.dumps(SOUND | {"run_id": "r\n\x1b[31m forged line"}).encode(),
    "text for true": json.dumps(SOUND | {"released": "false"}).encode(),
    "a lease of a year": json.dumps(SOUND | {"lease_seconds": 3e7}).encode(),
    "a lease of no length": json.dumps(SOUND | {"lease_seconds": 0}).encode(),
    "an endless lease": json.dumps(SOUND | {"lease_seconds": float("inf")}).encode(),
    "no owner": json.dumps({"run_id": "other"}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_claim_is_named_and_blocks_nothing_for_longer_than_a_lease(
    tmp_path, clock: Clock, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    storage.put(f"{tmp_path}/claims/{MODEL}/00000001.json", content)
    with hold_claim(str(tmp_path), MODEL, "r1", 20) as claim:
        claim.require_newest()
    assert clock.slept == pytest.approx(20)
    (line,) = caplog.messages
    assert "00000001.json is damaged: taken over unless it changes within 20 s" in line
    assert claims(str(tmp_path)) == ["00000002.json"]


@pytest.mark.parametrize("fields", [{}, {"lease_seconds": 30.0}], ids=["an earlier version", "this version"])
def test_a_dead_owner_whose_clock_ran_a_day_ahead_is_waited_for_as_long_as_a_lease(
    tmp_path, clock: Clock, fields: dict[str, float]
) -> None:
    plant(str(tmp_path), 1, expires_in=DAY, **fields)
    with hold_claim(str(tmp_path), MODEL, "r1", 20):
        assert clock.slept == pytest.approx(fields.get("lease_seconds", 20))


@pytest.mark.parametrize("behind", [DAY, -DAY, 0.0])
def test_an_owner_that_renews_keeps_its_claim_whatever_its_clock_says(
    tmp_path, clock: Clock, behind: float
) -> None:
    def renew(slept: float) -> None:
        plant(str(tmp_path), 1, expires_in=slept - behind, released=slept > 200, lease_seconds=20.0)

    renew(0)
    clock.meanwhile = renew
    with hold_claim(str(tmp_path), MODEL, "r1", 1.0):
        assert 200 < clock.slept < 210


def test_the_lease_of_the_owner_counts_and_not_that_of_who_waits(tmp_path, clock: Clock) -> None:
    plant(str(tmp_path), 1, expires_in=0, lease_seconds=100.0)
    with hold_claim(str(tmp_path), MODEL, "r1", 1.0):
        assert clock.slept == pytest.approx(100)


@pytest.mark.parametrize(("wall", "steady"), [(21.0, 0.0), (0.0, 21.0), (-DAY, 21.0)])
def test_a_claim_is_lost_after_its_lease_by_either_clock(
    tmp_path, clock: Clock, wall: float, steady: float
) -> None:
    """The machine slept; its clock stood still; its clock was set back."""
    with hold_claim(str(tmp_path), MODEL, "r1", 20) as claim:
        clock.pass_by(19)
        claim.renew()
        clock.pass_by(19)
        claim.require_alive()
        clock.wall, clock.steady = clock.wall + wall, clock.steady + steady
        with pytest.raises(RunError, match="lost its claim"):
            claim.require_alive()


def test_a_clock_that_is_set_back_lengthens_no_lease_before_a_commit(tmp_path, clock: Clock) -> None:
    with hold_claim(str(tmp_path), MODEL, "r1", 20) as claim:
        clock.steady, clock.wall = clock.steady + 15, clock.wall - DAY
        before = content(str(tmp_path), 1)
        claim.require_newest()
        assert content(str(tmp_path), 1) != before  # renewed: half a lease is needed for the commit


def test_objects_under_other_names_are_no_claims(tmp_path, clock: Clock) -> None:
    for name in ("7.json", "000000009.json", "٣٣٣٣٣٣٣٣.json", "notes.txt", "00000004.json.bak"):
        storage.put(f"{tmp_path}/claims/{MODEL}/{name}", b"")
    with hold_claim(str(tmp_path), MODEL, "r1", 20):
        assert "00000001.json" in claims(str(tmp_path))
    assert delete_superseded(str(tmp_path), MODEL) == 0


def test_a_look_tells_who_may_be_labelling(tmp_path) -> None:
    output, now = str(tmp_path), datetime.now(UTC)
    assert not is_claimed(output, MODEL, now)
    for fields, expected in [
        ({"expires_in": 60}, True),
        ({"expires_in": -60}, False),
        ({"expires_in": 60, "lease_seconds": 20.0}, True),
        ({"expires_in": 60, "released": True}, False),
        ({"expires_in": -60, "lease_seconds": 20.0}, False),
    ]:
        plant(output, 1, **fields)
        assert is_claimed(output, MODEL, now) is expected
    storage.put(f"{output}/claims/{MODEL}/00000001.json", b"{")
    assert is_claimed(output, MODEL, now)


# --- what is no claim, in a claim's place ---


def test_a_folder_in_the_place_of_a_claim_is_named_and_not_waited_for(tmp_path, clock: Clock) -> None:
    (tmp_path / "claims" / MODEL / "00000001.json").mkdir(parents=True)
    with (
        pytest.raises(StorageError, match=r"00000001\.json cannot be created, and is no claim either"),
        hold_claim(str(tmp_path), MODEL, "r1", 20),
    ):
        pass
    assert clock.slept < 60


def test_a_claim_that_is_listed_and_not_there_is_as_good_as_damaged(tmp_path, clock: Clock) -> None:
    folder = tmp_path / "claims" / MODEL
    folder.mkdir(parents=True)
    (folder / "00000003.json").symlink_to("nowhere")
    with hold_claim(str(tmp_path), MODEL, "r1", 20):
        assert content(str(tmp_path), 4)["run_id"] == "r1"
    assert 19 <= clock.slept < 21


def test_a_listing_that_misses_the_claim_while_it_is_renewed_takes_nothing_away(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_claim(str(tmp_path), MODEL, "r1", 20) as claim:
        monkeypatch.setattr(claim_module.storage, "list_objects", lambda _: iter(()))
        claim.require_newest()
        claim.renew()
        monkeypatch.undo()
    assert content(str(tmp_path), 1)["released"]


def test_a_claim_that_is_gone_is_not_put_back(tmp_path) -> None:
    with hold_claim(str(tmp_path), MODEL, "r1", 20) as claim:
        storage.delete(f"{tmp_path}/claims/{MODEL}/00000001.json")
        with pytest.raises(RunError, match="is not there any more: OUTPUT was emptied"):
            claim.renew()
        with pytest.raises(RunError, match="is not there any more"):
            claim.require_alive()
    assert claims(str(tmp_path)) == []
    with hold_claim(str(tmp_path), MODEL, "r2", 20):
        storage.delete(f"{tmp_path}/claims/{MODEL}/00000001.json")  # and none that was never missed either
    assert claims(str(tmp_path)) == []
