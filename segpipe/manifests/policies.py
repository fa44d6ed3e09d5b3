"""The policies that masks of OUTPUT were accepted under, and which of them are suspended.

They lie in OUTPUT/policies and not only beside the model: the next calibration replaces the model's
policy.json, while masks accepted under the old one are still here; the evidence against a promise
comes from this OUTPUT's images and says nothing about another bucket's; and a run may not be able to write
where the model lies.

A policy that has grown with the reviews of OUTPUT is nearer than the model's own: it lies here, too, under
its root's id and its number, created exclusively, and a run takes the one of the highest number.
"""

from __future__ import annotations

import hashlib
import re

from segpipe import storage
from segpipe.confidence.grown_policy import has_grown_from
from segpipe.confidence.policy import Policy, from_json, to_json
from segpipe.digests import shown
from segpipe.errors import AlreadyExistsError, DeniedError, NotFoundError, PolicyError, SegpipeError
from segpipe.redaction import redact

FOLDER = "policies"
SUSPENDED = "-suspended.json"
UNREADABLE = (PolicyError, DeniedError)  # what is wrong with one policy alone
_GROWN = re.compile(r"(?P<root>[^/]+)-grown-(?P<number>\d{8})\.json")
_GROW_AGAIN = "remove it and run segpipe recalibrate, which grows it again"
_PUT_BACK = (
    "put the policy.json of that calibration there, or remove it and label again with the model as it was "
    "calibrated then; one that has grown lies in its ...-grown-... file beside it, too"
)


def keep_policy(output: str, policy_id: str, text: str) -> None:
    """Keep the text of policy.json, unless OUTPUT has it; in place of an empty file, too. StorageError."""
    uri = kept_uri(output, policy_id)
    if not _has_content(uri):
        storage.put(uri, text.encode())  # the same text, whichever run is quicker


def kept_uri(output: str, policy_id: str) -> str:
    """Where a policy is kept."""
    return storage.join(output, f"{FOLDER}/{policy_id}.json")


def _has_content(uri: str) -> bool:
    try:
        return bool(storage.read_bytes(uri).strip())
    except NotFoundError:
        return False


def kept_policies(output: str) -> dict[str, Policy | SegpipeError]:
    """Each kept policy by policy id, or why it cannot be read, which names the file. StorageError."""
    kept = [key for key in _keys(output) if not key.endswith(SUSPENDED) and not _GROWN.fullmatch(key)]
    return {key.removesuffix(".json"): _kept(output, key.removesuffix(".json")) for key in kept}


def _kept(output: str, policy_id: str) -> Policy | SegpipeError:
    uri = kept_uri(output, policy_id)
    try:
        policy = from_json(storage.read_bytes(uri).decode(errors="replace"), redact(uri), _PUT_BACK)
    except UNREADABLE as error:
        return error
    if policy.policy_id != policy_id:
        return PolicyError(f"{redact(uri)} holds policy {policy.policy_id}: {_PUT_BACK}")
    return policy


def grown_uri(output: str, root: str, number: int) -> str:
    """Where the policy of this number lies that has grown from the policy `root`."""
    return storage.join(output, f"{FOLDER}/{root}-grown-{number:08d}.json")


def grown_numbers(output: str, root: str) -> list[int]:
    """The numbers of the policies that have grown from `root`, rising. StorageError."""
    found = (_GROWN.fullmatch(key) for key in _keys(output))
    return sorted(int(match["number"]) for match in found if match and match["root"] == root)


def read_grown(output: str, root: Policy, number: int) -> Policy:
    """The policy of this number that has grown from `root`.

    PolicyError, which names the file, for a damaged one and one that has not grown from it; StorageError.
    """
    uri = grown_uri(output, root.policy_id, number)
    policy = from_json(storage.read_bytes(uri).decode(errors="replace"), redact(uri), _GROW_AGAIN)
    if not has_grown_from(policy, root) or policy.growth is None or policy.growth.number != number:
        raise PolicyError(
            f"{redact(uri)} has not grown from {root.policy_id} as number {number}: {_GROW_AGAIN}"
        )
    return policy


def create_grown(output: str, policy: Policy) -> bool:
    """Add a grown policy under its number; False when that number is taken. StorageError."""
    assert policy.growth is not None
    try:
        storage.create(grown_uri(output, policy.family, policy.growth.number), to_json(policy).encode())
    except AlreadyExistsError:
        return False
    return True


def nearest_policy(output: str, policy: Policy | None) -> Policy | None:
    """The policy to label into OUTPUT with: the newest that has grown there from the model's, or the model's.

    PolicyError for a damaged one, StorageError.
    """
    if policy is None or policy.growth is None or not (numbers := grown_numbers(output, policy.policy_id)):
        return policy
    return read_grown(output, policy, numbers[-1])


def policy_of_run(output: str, policy: Policy | None, policy_id: str | None) -> Policy | None:
    """The policy of a run, by its id: the model's or one grown from it in OUTPUT; None: it is neither."""
    if policy is None or policy.policy_id == policy_id:
        return policy
    if policy_id is None or policy.growth is None:
        return None
    numbers = reversed(grown_numbers(output, policy.policy_id))  # most likely a late one
    grown = (read_grown(output, policy, number) for number in numbers)
    return next((one for one in grown if one.policy_id == policy_id), None)


def family_ids(output: str, policy: Policy, last: int) -> list[str]:
    """The ids of a policy, of what it has grown from, and of the last so many that have grown from the same.

    PolicyError for a damaged one, StorageError.
    """
    if policy.growth is None:
        return [policy.policy_id]
    uris = [grown_uri(output, policy.family, one) for one in grown_numbers(output, policy.family)[-last:]]
    texts = ((storage.read_bytes(uri).decode(errors="replace"), redact(uri)) for uri in uris)
    grown = [from_json(text, name, _GROW_AGAIN).policy_id for text, name in texts]
    return sorted({policy.policy_id, policy.family, *grown})


def _keys(output: str) -> list[str]:
    try:
        keys = [item.key for item in storage.list_objects(storage.join(output, FOLDER))]
    except NotFoundError:
        return []
    return [key for key in keys if key.endswith(".json")]


def suspension_uri(output: str, policy_id: str, group: str | None = None) -> str:
    """Where the suspension of a policy lies, if it is suspended, or that of one group's certificate."""
    of_group = "" if group is None else f"-{shown(hashlib.sha256(group.encode()).hexdigest())}"
    return storage.join(output, f"{FOLDER}/{policy_id}{of_group}{SUSPENDED}")


def is_suspended(output: str, policy_id: str, group: str | None = None) -> bool:
    """Whether the policy, or one group's certificate, accepts nothing in OUTPUT any more. StorageError."""
    return storage.exists(suspension_uri(output, policy_id, group))


def suspended_groups(output: str, policy: Policy) -> frozenset[str]:
    """The groups whose own certificate is suspended in OUTPUT. StorageError."""
    certified = [one.group for one in policy.certificates if one.threshold is not None]
    if not certified:
        return frozenset()
    there = _suspensions(output)  # in one listing: there may be a thousand cameras
    return frozenset(group for group in certified if suspension_uri(output, policy.family, group) in there)


def _suspensions(output: str) -> set[str]:
    try:
        found = list(storage.list_objects(storage.join(output, FOLDER)))
    except NotFoundError:
        return set()
    return {item.uri for item in found if item.key.endswith(SUSPENDED)}


def has_suspension(output: str, policy_id: str) -> bool:
    """Whether the policy or a certificate of any of its groups is suspended in OUTPUT: without the policy
    nobody knows the groups. StorageError."""
    name = storage.join(output, f"{FOLDER}/{policy_id}-")
    return any(uri.startswith(name) for uri in _suspensions(output))


def suspend(output: str, policy_id: str, evidence: str, group: str | None = None) -> bool:
    """Suspend the policy in OUTPUT, or one group's certificate, with this evidence (JSON); False when it was
    suspended already."""
    try:
        storage.create(suspension_uri(output, policy_id, group), evidence.encode())
    except AlreadyExistsError:
        return False
    return True
