"""One labelling run at a time per OUTPUT and model: a lease in object storage with a fencing number.

The claim objects are OUTPUT/claims/<model_id>/<generation>.json. The highest generation is the live one;
whoever exclusively creates the next one, once the live one is released or silent, holds the claim. A claim is
silent when, to who waits, it has not changed for the lease that it names: no clock is compared with another.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from segpipe import storage
from segpipe.config import A_DAY
from segpipe.errors import AlreadyExistsError, NotFoundError, RunError, StorageError, TooLargeError
from segpipe.labeling.lease import Moment
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

_FIRST_POLL_SECONDS = 0.1
_LONGEST_POLL_SECONDS = 5.0
_RENEWALS_PER_LEASE = 4
_MAX_BYTES = 2**16
_MOST_REFUSALS = 10
_NAME = re.compile(r"[0-9]{8,1000}")
_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class ClaimRecord(BaseModel):
    """The content of a claim object; `owner` tells two processes with one run id apart.

    expires_at is by the owner's clock, which may be wrong: for people, and for who cannot wait and see.
    lease_seconds: for how long the owner may be silent; None in a claim of an earlier version.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    run_id: _Word
    owner: _Word
    expires_at: AwareDatetime
    released: bool
    lease_seconds: float | None = Field(None, gt=0, le=A_DAY, allow_inf_nan=False)


@dataclass(frozen=True)
class _Found:
    """The claim of the highest generation as it lies there; 0 and empty when nobody ever claimed."""

    generation: int
    content: bytes

    @property
    def record(self) -> ClaimRecord | None:
        """None when it is damaged: then it is somebody's of whom nothing is known."""
        try:
            return ClaimRecord.model_validate_json(self.content)
        except ValidationError:
            return None

    def is_free(self, now: datetime) -> bool:
        """Whether another run may take over at once."""
        record = self.record
        if self.generation == 0 or record is None:
            return self.generation == 0
        # An earlier version's run does not say how long to wait and see.
        return record.released or (record.lease_seconds is None and now >= record.expires_at)

    def silence(self, lease_seconds: float) -> float:
        """After how many seconds without a change another run, of this lease, may take over."""
        record = self.record
        return lease_seconds if record is None or record.lease_seconds is None else record.lease_seconds


class Claim:
    """A held claim, kept alive by its heartbeat; lost when that fails for a lease or another took over."""

    def __init__(
        self, folder: str, generation: int, record: ClaimRecord, lease_seconds: float, renewed: Moment
    ) -> None:
        self._folder = folder
        self._generation = generation
        self._record = record
        self._lease_seconds = self._next_seconds = lease_seconds
        self._renewed = renewed
        self._renewing = threading.Lock()
        self._trouble = "the process or the clock stood still"
        self._lost_to: str | None = None
        self._expires_by_itself = False

    def require_alive(self) -> None:
        """Raise RunError when the claim was found lost or the lease has run out.

        Asks no storage, so that it can be called per mask.
        """
        if self._lost_to is not None:
            raise RunError(self._lost_to)
        if self._renewed.age() >= self._lease_seconds:
            raise RunError(self._lost(f"its lease could not be renewed in time ({self._trouble})"))

    def seconds_left(self) -> float:
        """For how long the run may write without another renewal; 0 once the claim is lost."""
        return 0.0 if self._lost_to is not None else max(0.0, self._lease_seconds - self._renewed.age())

    def let_expire(self) -> None:
        """Do not release the claim: somebody may still write on its behalf, for no longer than it lasts."""
        self._expires_by_itself = True

    @contextmanager
    def standing_still(self, seconds: float) -> Iterator[None]:
        """Last for so long, if the lease is shorter, while no thread may come to renew the claim.

        Raises StorageError, and RunError when the claim is lost.
        """
        usual, self._next_seconds = self._next_seconds, max(self._next_seconds, seconds)
        try:
            self.renew()
            yield
        finally:
            self._next_seconds = usual  # from the next heartbeat on

    def require_newest(self) -> None:
        """Raise RunError unless the claim is alive, has half a lease left, and nobody has taken over."""
        if self._renewed.age() > self._lease_seconds / 2:
            self.renew()
        self._require_there()

    def _require_there(self) -> None:
        newest = max(_generations(self._folder), default=0)
        # A listing can miss what is replaced while it goes on, and the heartbeat does that.
        if newest == self._generation or (newest < self._generation and storage.exists(self._uri)):
            return
        is_taken = newest > self._generation
        self._lost_to = self._lost("another run has taken over") if is_taken else self._gone()
        raise RunError(self._lost_to)

    def renew(self) -> None:
        """Push the expiry out by a lease; raises StorageError, and RunError when the claim is lost."""
        with self._renewing:  # a lease that arrives late would shorten the one after it
            self.require_alive()
            try:
                self._push_out(self._next_seconds)
            except StorageError as error:
                self._trouble = str(error)
                raise

    def _push_out(self, seconds: float) -> None:
        if not storage.exists(self._uri):  # an OUTPUT that was emptied would get the claim back alone
            self._require_there()
        now = Moment.now()  # the lease counts from before the request
        lease = {"expires_at": _expiry(seconds), "lease_seconds": seconds}
        record = self._record.model_copy(update=lease)
        if seconds < self.seconds_left():  # it may arrive although the request fails
            self._renewed, self._lease_seconds = now, seconds
        storage.put(self._uri, _to_json(record))
        self._require_there()  # one that came too late, after a silence, gives nobody the claim back
        self._record, self._renewed, self._lease_seconds = record, now, seconds

    def release(self) -> None:
        """Let the next run in at once and tidy up older claims; raises StorageError.

        Not after let_expire, and a lost one stays so.
        """
        if self._expires_by_itself or self._lost_to is not None or not storage.exists(self._uri):
            return
        released = self._record.model_copy(update={"released": True})
        storage.put(self._uri, _to_json(released))
        _delete_below(self._folder, self._generation)

    @property
    def _uri(self) -> str:
        return _claim_uri(self._folder, self._generation)

    def _lost(self, why: str) -> str:
        return (
            f"run {self._record.run_id} lost its claim {self._uri}: {why}; "
            f"what it committed is safe, resume it with run id {self._record.run_id}"
        )

    def _gone(self) -> str:
        return (
            f"the claim of run {self._record.run_id}, {self._uri}, is not there any more: OUTPUT was "
            "emptied, moved or replaced while the run went on; put it back and resume with the same run id, "
            "or label again, which labels what has no row then"
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
    """Whether a run may be labelling into OUTPUT with this model, as far as a look can tell. StorageError."""
    live = _live_claim(_claims_folder(output, model_id))
    record = live.record
    return not live.is_free(now) and (record is None or now < record.expires_at)


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
    watched, poll_seconds = _Found(0, b""), _FIRST_POLL_SECONDS
    since, refusals = time.monotonic(), 0
    while True:
        asked = time.monotonic()
        live = _live_claim(folder)
        if live != watched:
            if live.generation != watched.generation and not live.is_free(datetime.now(UTC)):
                _say_waiting(folder, live, lease_seconds)
                poll_seconds = _FIRST_POLL_SECONDS
            watched, since, asked, refusals = live, time.monotonic(), since, 0
        left = live.silence(lease_seconds) - (asked - since)
        if live.is_free(datetime.now(UTC)) or left <= 0:
            if claim := _try_create(folder, live.generation + 1, run_id, lease_seconds):
                _say_if_silent(live)
                return claim
            refusals += 1
            _require_listed(folder, live.generation + 1, refusals)
        time.sleep(min(poll_seconds, max(left, _FIRST_POLL_SECONDS)))
        poll_seconds = min(poll_seconds * 1.5, _LONGEST_POLL_SECONDS)


def _require_listed(folder: str, generation: int, refusals: int) -> None:
    """Who is refused because another was quicker sees that one's claim at the next look."""
    if refusals > _MOST_REFUSALS:
        raise StorageError(
            f"{_claim_uri(folder, generation)} cannot be created, and is no claim either: remove what lies "
            "in its place, a folder perhaps"
        )


def _live_claim(folder: str) -> _Found:
    gone: list[int] = []
    while True:
        generation = max(_generations(folder), default=0)
        if generation == 0:
            return _Found(0, b"")
        try:
            return _Found(generation, storage.read(_claim_uri(folder, generation), _MAX_BYTES).data)
        except TooLargeError:
            return _Found(generation, b"")  # as good as damaged
        except NotFoundError:  # a newer claim came and its owner tidied this one up
            gone.append(generation)
            if gone.count(generation) > _MOST_REFUSALS:  # or it is listed only, as a link that leads nowhere
                return _Found(generation, b"")


def _try_create(folder: str, generation: int, run_id: str, lease_seconds: float) -> Claim | None:
    """The claim of this generation; None when another run was faster, be it by several generations."""
    now = Moment.now()
    record = ClaimRecord(
        run_id=run_id,
        owner=secrets.token_hex(8),
        expires_at=_expiry(lease_seconds),
        released=False,
        lease_seconds=lease_seconds,
    )
    try:
        storage.create(_claim_uri(folder, generation), _to_json(record))
    except AlreadyExistsError:
        return None
    if max(_generations(folder), default=0) > generation:  # its number was free: tidied up since the look
        storage.delete(_claim_uri(folder, generation))
        return None
    return Claim(folder, generation, record, lease_seconds, now)


def _keep_alive(claim: Claim, stop: threading.Event, lease_seconds: float) -> None:
    while not stop.wait(lease_seconds / _RENEWALS_PER_LEASE):
        try:
            claim.renew()
        except StorageError as error:  # the next beat may succeed
            logger.warning("could not renew the claim: %s", error)
        except RunError:  # the claim is lost: require_alive says so where the work is done
            return


def _release(claim: Claim) -> None:
    try:
        claim.release()
    except StorageError as error:
        logger.warning("could not release the claim, it expires by itself: %s", error)


def _say_waiting(folder: str, live: _Found, lease_seconds: float) -> None:
    seconds, record = live.silence(lease_seconds), live.record
    if record is None:
        uri = redact(_claim_uri(folder, live.generation))
        logger.warning("the claim %s is damaged: taken over unless it changes within %g s", uri, seconds)
        return
    logger.info(
        "waiting for run %s, which holds %s (a claim that is silent for %g s is taken over)",
        record.run_id,
        redact(folder),
        seconds,
    )


def _say_if_silent(live: _Found) -> None:
    record = live.record
    if record is not None and not record.released:
        logger.warning(
            "took over the claim of run %s, which fell silent: resume that run by its id if it is not done",
            record.run_id,
        )


def _generations(folder: str) -> list[int]:
    try:
        names = [found.key.removesuffix(".json") for found in storage.list_objects(folder)]
    except NotFoundError:
        return []
    # One that would be looked for under another name is none of ours.
    return [int(name) for name in names if _NAME.fullmatch(name) and name == f"{int(name):08d}"]


def _claims_folder(output: str, model_id: str) -> str:
    return storage.join(storage.normalise(output), f"claims/{model_id}")


def _claim_uri(folder: str, generation: int) -> str:
    return storage.join(folder, f"{generation:08d}.json")


def _expiry(lease_seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=lease_seconds)


def _to_json(record: ClaimRecord) -> bytes:
    return json.dumps(record.model_dump(mode="json")).encode()
