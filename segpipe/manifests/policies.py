"""The policies that masks of OUTPUT were accepted under, and which of them are suspended.

They lie in OUTPUT/policies and not only beside the model: the next calibration replaces the model's
policy.json, while masks accepted under the old one are still here; the evidence against a promise
comes from this OUTPUT's images and says nothing about another bucket's; and a run may not be able to write
where the model lies.
"""

from __future__ import annotations

import hashlib

from segpipe import storage
from segpipe.confidence.policy import Policy, from_json
from segpipe.digests import shown
from segpipe.errors import AlreadyExistsError, NotFoundError, PolicyError
from segpipe.redaction import redact

FOLDER = "policies"
SUSPENDED = "-suspended.json"
_PUT_BACK = (
    "put the policy.json of that calibration there, or remove it and label again with the model as it was "
    "calibrated then"
)


def keep_policy(output: str, policy_id: str, text: str) -> None:
    """Keep the text of policy.json, unless OUTPUT has it; in place of an empty file, too. StorageError."""
    uri = kept_uri(output, policy_id)
    if not _has_content(uri):
        storage.put(uri, text.encode())  # the same text, whichever run is quicker


def kept_uri(output: str, policy_id: str) -> str:
    """Where a policy is kept."""
    return storage.join(output, f"{FOLDER}/{policy_id}.json")


def parse_kept(output: str, policy_id: str, text: str) -> Policy:
    """The policy that a kept text is. PolicyError, which names the file, for none and for another one."""
    uri = redact(kept_uri(output, policy_id))
    policy = from_json(text, uri, _PUT_BACK)
    if policy.policy_id != policy_id:
        raise PolicyError(f"{uri} holds policy {policy.policy_id}: {_PUT_BACK}")
    return policy


def _has_content(uri: str) -> bool:
    try:
        return bool(storage.read_bytes(uri).strip())
    except NotFoundError:
        return False


def kept_policies(output: str) -> dict[str, str]:
    """The text of each kept policy by policy id; what is not UTF-8 in it stands as such. StorageError."""
    try:
        found = list(storage.list_objects(storage.join(output, FOLDER)))
    except NotFoundError:
        return {}
    kept = [item for item in found if item.key.endswith(".json") and not item.key.endswith(SUSPENDED)]
    return {
        item.key.removesuffix(".json"): storage.read_bytes(item.uri).decode(errors="replace") for item in kept
    }


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


def suspend(output: str, policy_id: str, evidence: str, group: str | None = None) -> bool:
    """Suspend the policy in OUTPUT, or one group's certificate, with this evidence (JSON); False when it was
    suspended already."""
    try:
        storage.create(suspension_uri(output, policy_id, group), evidence.encode())
    except AlreadyExistsError:
        return False
    return True
