"""A model in another process than the one that planned to use it, and in the one that planned."""

from __future__ import annotations

from dataclasses import replace

from segpipe.confidence.policy import check_policy_for_precision, from_json
from segpipe.config import LabelSettings
from segpipe.errors import ModelError
from segpipe.models.device import precision_of
from segpipe.models.labeler import Labeler, load_model, load_policy, load_without_policy, policy_on
from segpipe.models.promotion_line import resolve


def load_planned(url: str, digest: str | None, policy: str | None, device: str) -> Labeler:
    """The model of this full digest, with this policy whatever its folder holds by now.

    Raises ModelError when it is another model, missing or damaged, or cannot run here; PolicyError where the
    scores would have another precision than the policy's; StorageError.
    """
    labeler = load_without_policy(url, device)
    if labeler.digest != digest:
        raise ModelError(
            f"{url} holds model {labeler.digest}, and the run was planned with {digest}: put that one back, "
            "or start a run with another id"
        )
    if policy is None:
        return labeler
    found = from_json(policy)
    check_policy_for_precision(found, precision_of(labeler.device))
    return replace(labeler, policy=policy_on(found, labeler.device))


def load_for_run(url: str, settings: LabelSettings) -> Labeler:
    """The model of a bundle or line as the process needs it that runs a labelling. Raises as those two."""
    return load_for_workers(url) if settings.has_workers else load_model(url, settings.device)


def load_for_workers(url: str) -> Labeler:
    """The model of a bundle or line as the process has it that workers label for: on its CPU.

    A policy that was calibrated on a GPU is kept whatever this CPU's precision: load_planned looks whether it
    fits where it is used. Raises ModelError, PolicyError (policy.json damaged), StorageError.
    """
    url = resolve(url)
    labeler = load_without_policy(url, "cpu")
    policy = load_policy(url, labeler.model_id, labeler.digest)
    if policy is not None and policy.device != "cuda":
        policy = policy_on(policy, labeler.device)
    return replace(labeler, policy=policy)
