"""One labelling run at a time per OUTPUT and model: a lease in object storage with a fencing number.

The claim objects are OUTPUT/claims/<model_id>/<generation>.json. The highest generation is the live one;
whoever exclusively creates the next one, once the live one is released or has expired, holds the claim.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from segpipe import storage
from segpipe.errors import AlreadyExistsError, NotFoundError, RunError, StorageError
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

_FIRST_POLL_SECONDS = 0.1
_LONGEST_POLL_SECONDS = 5.0
_RENEWALS_PER_LEASE = 4


@dataclass(frozen=True)
class ClaimRecord:
    """The content of a claim object; `owner` tells two processes with one run id apart."""

    run_id: str
    owner: str
    expires_at: datetime
    released: bool

    # A waiting process compares the owner's clock with its own: clocks must agree to within a small part of
    # the lease.
    def is_free(self, now: datetime) -> bool:
        """Whether another run may take the claim over."""
        return self.released or now >= self.expires_at


class Claim:
    """A held claim, kept alive by its heartbeat; lost when that fails for a lease or another took over."""

    def __init__(self, folder: str, generation: int, record: ClaimRecord, lease_seconds: float) -> None:
        self._folder = folder
        self._generation = generation
        self._record = record
        self._lease_seconds = lease_seconds
        self._trouble = "the process or the clock stood still"

    def require_alive(self) -> None:
        """Raise RunError when the lease has run out; asks no storage, so that it can be called per mask."""
        if _seconds_until(self._record.expires_at) == 0:
            raise RunError(self._lost(f"its lease could not be renewed in time ({self._trouble})"))

    def require_newest(self) -> None:
        """Raise RunError unless the claim is alive, has half a lease left, and nobody has taken over."""
        if _seconds_until(self._record.expires_at) < self._lease_seconds / 2:
            self.renew()
        newest = max(_generations(self._folder), default=0)
        if newest != self._generation:
            raise RunError(self._lost("another run has taken over"))

    def renew(self) -> None:
        """Push the expiry out by a lease; raises StorageError, and RunError when the lease has run out."""
        self.require_alive()
        record = replace(self._record, expires_at=_expiry(self._lease_seconds))
        try:
            storage.put(_claim_uri(self._folder, self._generation), _to_json(record))
        except StorageError as error:
            self._trouble = str(error)
            raise
        self._record = record

    def release(self) -> None:
        """Let the next run in at once and tidy up older claims; raises StorageError."""
        released = replace(self._record, released=True)
        storage.put(_claim_uri(self._folder, self._generation), _to_json(released))
        _delete_below(self._folder, self._generation)

    def _lost(self, why: str) -> str:
        return (
            f"run {self._record.run_id} lost its claim {_claim_uri(self._folder, self._generation)}: {why}; "
            f"what it committed is safe, resume it with run id {self._record.run_id}"
        )


@contextmanager
def hold_claim(output: str, model_id: str, run_id: str, lease_seconds: float) -> Iterator[Claim]:
    """Hold the only right to label into OUTPUT with this model; waits while another run has it.

    Raises StorageError when OUTPUT cannot be written.
    """
    folder = _claims_folder(output, model_id)
    claim = _acquire(folder, run_id, lease_seconds)
    stop = threading.Event()
    heartbeat = threading.Thread(target=_keep_alive, args=(claim, stop, lease_seconds), daemon=True)
    heartbeat.start()
    try:
        yield claim
    finally:
        stop.set()
        heartbeat.join()
        _release(claim)


def is_claimed(output: str, model_id: str, now: datetime) -> bool:
    """Whether a run is labelling into OUTPUT with this model. StorageError, RunError (damaged claim)."""
    _, live = _live_claim(_claims_folder(output, model_id))
    return live is not None and not live.is_free(now)


def delete_superseded(output: str, model_id: str) -> int:
    """Remove the claims below the newest, which runs that were killed have left; how many. StorageError."""
    folder = _claims_folder(output, model_id)
    return _delete_below(folder, max(_generations(folder), default=0))


def _delete_below(folder: str, newest: int) -> int:
    older = [generation for generation in _generations(folder) if generation < newest]
    for generation in older:  # the newest stays: it carries the number on
        storage.delete(_claim_uri(folder, generation))
    return len(older)


def _acquire(folder: str, run_id: str, lease_seconds: float) -> Claim:
    poll_seconds, announced = _FIRST_POLL_SECONDS, 0
    while True:
        generation, live = _live_claim(folder)
        if live is None or live.is_free(datetime.now(UTC)):
            claim = _try_create(folder, generation + 1, run_id, lease_seconds)
            if claim is not None:
                _say_if_expired(live)
                return claim
            continue
        if generation != announced:
            _say_waiting(folder, live)
            announced, poll_seconds = generation, _FIRST_POLL_SECONDS
        time.sleep(min(poll_seconds, _seconds_until(live.expires_at)))
        poll_seconds = min(poll_seconds * 1.5, _LONGEST_POLL_SECONDS)


def _live_claim(folder: str) -> tuple[int, ClaimRecord | None]:
    """The highest generation and its record; (0, None) when nobody ever claimed."""
    while True:
        generation = max(_generations(folder), default=0)
        if generation == 0:
            return 0, None
        try:
            return generation, _from_json(_claim_uri(folder, generation))
        except NotFoundError:
            continue  # a newer claim came and its owner tidied this one up


def _try_create(folder: str, generation: int, run_id: str, lease_seconds: float) -> Claim | None:
    """The claim of this generation; None when another run was faster."""
    record = ClaimRecord(run_id, secrets.token_hex(8), _expiry(lease_seconds), released=False)
    try:
        storage.create(_claim_uri(folder, generation), _to_json(record))
    except AlreadyExistsError:
        return None
    return Claim(folder, generation, record, lease_seconds)


def _keep_alive(claim: Claim, stop: threading.Event, lease_seconds: float) -> None:
    while not stop.wait(lease_seconds / _RENEWALS_PER_LEASE):
        try:
            claim.renew()
        except StorageError as error:  # the next beat may succeed
            logger.warning("could not renew the claim: %s", error)
        except RunError:  # the lease has run out: require_alive says so where the work is done
            return


def _release(claim: Claim) -> None:
    try:
        claim.release()
    except StorageError as error:
        logger.warning("could not release the claim, it expires by itself: %s", error)


def _say_waiting(folder: str, live: ClaimRecord) -> None:
    logger.info(
        "waiting for run %s, which holds %s until %s or longer (the claim of a killed run expires by itself)",
        live.run_id,
        redact(folder),
        live.expires_at.isoformat(timespec="seconds"),
    )


def _say_if_expired(live: ClaimRecord | None) -> None:
    if live is not None and not live.released:
        logger.warning(
            "took over the claim of run %s, which expired at %s: resume that run by its id if it is not done",
            live.run_id,
            live.expires_at.isoformat(timespec="seconds"),
        )


def _generations(folder: str) -> list[int]:
    try:
        names = [found.key.removesuffix(".json") for found in storage.list_objects(folder)]
    except NotFoundError:
        return []
    return [int(name) for name in names if name.isdecimal()]


def _claims_folder(output: str, model_id: str) -> str:
    return storage.join(storage.normalise(output), f"claims/{model_id}")


def _claim_uri(folder: str, generation: int) -> str:
    return storage.join(folder, f"{generation:08d}.json")


def _expiry(lease_seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=lease_seconds)


def _seconds_until(moment: datetime) -> float:
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _to_json(record: ClaimRecord) -> bytes:
    return json.dumps(asdict(record) | {"expires_at": record.expires_at.isoformat()}).encode()


def _from_json(uri: str) -> ClaimRecord:
    """Raises NotFoundError when the claim is gone, RunError when it is damaged."""
    data = storage.read_bytes(uri)
    try:
        fields = json.loads(data)
        return ClaimRecord(**fields | {"expires_at": datetime.fromisoformat(fields["expires_at"])})
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"the claim {uri} is damaged ({error}): delete it if no run is labelling") from error
