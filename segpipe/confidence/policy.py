"""A model's routing policy: the certified threshold, what it promises, and how a score is shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from segpipe.confidence.arithmetic import disagreements
from segpipe.confidence.class_test import ClassPromiseKind
from segpipe.confidence.display import displayed
from segpipe.confidence.growing import OPTIONAL_EVIDENCE, Growth
from segpipe.confidence.looks import Look
from segpipe.confidence.whole_groups import PromiseAbout
from segpipe.digests import covered, shown
from segpipe.errors import PolicyError
from segpipe.metrics import UNNAMED_RULE, IouRule
from segpipe.name_groups import group_of_address
from segpipe.printable import printable
from segpipe.validation import parse_json, told_version

RECALIBRATE = "run segpipe calibrate again"
SCHEMA_VERSION = 2  # 2 added the mean loss, groups, guards and the calibration error

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BadFractionPromise:
    """At most `max_bad_fraction` of the accepted masks have an IoU below `min_iou`.

    Of the calibration images that the threshold accepts, `bad` are so; None when it accepts none.
    """

    min_iou: Share
    max_bad_fraction: OpenShare
    bad: Count | None
    target: Literal["bad_fraction"] = "bad_fraction"


@dataclass(frozen=True)
class MeanLossPromise:
    """The accepted masks lose at most `max_mean_loss` on average; a mask loses 1 - IoU.

    The calibration images that the threshold accepts lose `mean_loss`; None when it accepts none.
    """

    max_mean_loss: OpenShare
    mean_loss: Share | None
    target: Literal["mean_loss"] = "mean_loss"


@dataclass(frozen=True)
class ClassesOnly:
    """Nothing is promised about the masks as such, only what the policy's `class_promises` say."""

    target: Literal["classes"] = "classes"


MaskPromise = BadFractionPromise | MeanLossPromise | ClassesOnly


@dataclass(frozen=True)
class ClassPromise:
    """How rarely a mask is accepted that is wrong about whether a class is there.

    miss: of the images that have the class, at most `max_share` are accepted with a mask that does not show
    it. false_alarm: of the images that do not have it, at most that share with a mask that does. A truth has
    a class, and a mask shows it, when at least `min_object_px` of the labelled pixels are of it.

    It rests on the `n_images` calibration images that have the class (or have not), one of each group where
    there are groups. `found` of them are accepted and wrong, and `p_value` is the probability of so few if
    the promise were false (None and 1 when nothing is accepted). `labelled_images_needed`: so many more such
    images could prove it, 0 when these can, None when no number is expected to help.
    """

    kind: ClassPromiseKind
    class_name: Line
    class_index: Count
    max_share: OpenShare
    min_object_px: Annotated[int, Field(ge=1, le=2**53)]
    n_images: Count
    found: Count | None
    p_value: Share
    labelled_images_needed: Count | None


@dataclass(frozen=True)
class Guard:
    """Wanted: a mask that shows `class_name` with a class confidence below `min_confidence` is reviewed."""

    class_name: str
    min_confidence: float


@dataclass(frozen=True)
class ClassGuard:
    """A guard on one of the model's classes; `class_index` is its place in their order."""

    class_name: Line
    class_index: Count
    min_confidence: Share


@dataclass(frozen=True)
class GroupCertificate:
    """What the images of one group alone, such as a camera, prove: as the fields of Policy with these names.

    Its confidence is the policy's and its own: of many groups some may be wrong.
    """

    group: Line
    promised: Annotated[MaskPromise, Field(discriminator="target")]
    threshold: float | None
    accepted: Count
    p_value: Share
    n_calibration: Count
    n_images: Count
    labelled_images_needed: Count | None
    held_back: Count
    largest_group: Count | None
    whole_groups: Count | None
    score_quantiles: tuple[float, ...]
    class_promises: tuple[ClassPromise, ...]

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def of_policy(self) -> dict[str, Any]:
        """Its fields that a policy has, too."""
        return {name: value for name, value in vars(self).items() if name != "group"}


@dataclass(frozen=True)
class Policy:
    """What one model may accept without a human, and why.

    A mask is accepted when its raw discriminator score is at least `threshold` (None accepts nothing) and no
    guard holds it back. What is then `promised` about the accepted masks holds with `confidence`; it rests on
    the `accepted` of `n_calibration` labelled images (see guarantee.Certificate, also for `p_value` and
    `labelled_images_needed`). Where the `n_images` calibration images came in groups, one image of each was
    used for that: `accepted`, `bad`, `n_calibration` and `labelled_images_needed` count groups, and each
    group weighs one.

    `score_quantiles` are the 0th to 100th percentiles of those n_calibration images' scores. `display_scores`
    and `display_values` are the knots of the increasing map from score to expected IoU, `calibration_error`
    its expected calibration error (0 to 1) on images it was not fitted to, None where they were too few to
    tell. `policy_id` digests everything else; `created_at` is ISO 8601 in UTC.

    `model_digest` is the full digest of the model (None in a policy of a version that did not store it),
    `warnings` are lines about the calibration images that whoever relies on the promise should know.
    `held_back` counts those of the n_calibration images that no threshold accepts: without a finite score, or
    held back by a guard (None in a policy of a version that did not store it). `iou_rule` says what a mask's
    IoU is (see metrics; None in a policy of a version that knew every_class only).

    `class_promises` hold as well, with the same threshold. `group_by` is the pattern (see name_groups) that
    made the calibration images' groups, None where there are none or a table named them; `promises_about`
    says what is drawn at random where there are: an image of a random group, so that each group weighs one,
    or an accepted mask, of groups of at most `largest_group` images, so that each image does (then the
    n_calibration images were drawn from groups kept in proportion to their size). Where the test of the
    promise about masks used all images of so many `whole_groups`, `accepted` and what was found among them
    count images. With `per`, a pattern, `certificates` stand for
    each group of images by itself, the policy's own threshold is None, and what has no certificate is
    reviewed. `calibration_error_floor` is the calibration error that a perfect map would show on so many
    images. `growth` says how the policy may grow and has grown; calibration then proves with half of
    1 - confidence, and `accepted`, the promise's `bad` and `p_value` stay those of its own threshold.
    `look` says which of several calibrations on such images this was: the test was made at its level,
    and `confidence` is that of all of them together. `device` and `precision` are those the calibration's
    scores were computed in (None in a policy of a version that did not store them).

    What came after the first version, `model_digest` and all after it, is neither in the file nor in the id
    when it is absent, that is None or empty.
    """

    policy_id: Line
    model_id: Line
    promised: Annotated[MaskPromise, Field(discriminator="target")]
    confidence: OpenShare
    threshold: float | None
    accepted: Count
    p_value: Share
    n_calibration: Count
    n_images: Count
    labelled_images_needed: Count | None
    guards: tuple[ClassGuard, ...]
    score_quantiles: tuple[float, ...]
    display_scores: tuple[float, ...]
    display_values: tuple[Share, ...]
    calibration_error: Share | None
    calibration_fingerprint: Line
    created_at: Line
    model_digest: Line | None = None
    warnings: tuple[str, ...] = ()
    held_back: Count | None = None
    iou_rule: IouRule | None = None
    class_promises: tuple[ClassPromise, ...] = ()
    group_by: str | None = None
    promises_about: PromiseAbout | None = None
    largest_group: Count | None = None
    whole_groups: Count | None = None
    per: str | None = None
    certificates: tuple[GroupCertificate, ...] = ()
    calibration_error_floor: Share | None = None
    growth: Growth | None = None
    look: Look | None = None
    device: DeviceKind | None = None
    precision: Precision | None = None

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def rule(self) -> IouRule:
        """What a mask's IoU is to the promise."""
        return self.iou_rule or UNNAMED_RULE

    @property
    def family(self) -> str:
        """The id under which audits, draws and suspensions count: that of the policy it has grown from."""
        return (self.growth and self.growth.root) or self.policy_id

    @property
    def counts_groups_once(self) -> bool:
        """Whether it promises something of a random image of a random group, and groups have several."""
        return self.promises_about == "groups" and self.n_calibration < self.n_images

    @property
    def tested_confidence(self) -> float:
        """The confidence its own tests were made at: above `confidence` where looks share an error."""
        return self.confidence if self.look is None else 1 - self.look.level

    @property
    def certified_threshold(self) -> float | None:
        """The threshold that calibration itself has proven, which `accepted` and `p_value` are about."""
        evidence = self.growth and self.growth.evidence
        return evidence.first_threshold if evidence else self.threshold

    @property
    def accepts_some(self) -> bool:
        """Whether there is a mask that it would accept: without a threshold there is none."""
        return self.threshold is not None or any(one.threshold is not None for one in self.certificates)

    def of_group(self, certificate: GroupCertificate) -> Policy:
        """The policy as it stands for the images of one group; its id stays."""
        return dataclasses.replace(self, per=None, certificates=(), **certificate.of_policy)


OPTIONAL_FIELDS = frozenset(
    field.name for field in dataclasses.fields(Policy) if field.default is not dataclasses.MISSING
)


def for_image(policy: Policy, name: str) -> Policy | None:
    """The policy as it stands for the image of this name, its URI or key: with a threshold of its own group.

    As for_group; None where folders of its address name other groups than its own name does, too.
    PatternError where the search for the group would not end.
    """
    return for_group(policy, None if policy.per is None else group_of_address(name, policy.per))


def for_group(policy: Policy, group: str | None) -> Policy | None:
    """The policy as it stands for the images of one group: with a threshold of their own.

    The policy itself where it is for all images alike; None where the group is unknown, or has no certificate
    that an image could be accepted by.
    """
    if policy.per is None:
        return policy
    own = next((one for one in policy.certificates if one.group == group), None)
    return None if own is None or own.threshold is None else policy.of_group(own)


def on_classes(guards: Sequence[Guard], classes: Sequence[str]) -> tuple[ClassGuard, ...]:
    """The guards with the place of their class; PolicyError when the model has no such class."""
    unknown = [guard.class_name for guard in guards if guard.class_name not in classes]
    if unknown:
        raise PolicyError(
            f"cannot guard {unknown[0]!r}, the model has no such class: its classes are {', '.join(classes)}"
        )
    return tuple(
        ClassGuard(guard.class_name, classes.index(guard.class_name), guard.min_confidence)
        for guard in guards
    )


def is_guarded(policy: Policy, class_confidences: Sequence[float]) -> bool:
    """Whether a mask must go to review whatever its score: it shows a guarded class too doubtfully.

    `class_confidences` (K,) are 0 to 1 in the order of the model's classes, NaN for a class not in the mask.
    """
    return holds_back(policy.guards, class_confidences)


def display_confidence(policy: Policy, score: float) -> float:
    """Expected mask IoU, 0 to 1, for a raw score: linear between the policy's knots, constant outside.

    0 for a NaN score: a mask that could not be judged earns no confidence.
    """
    return float(displayed(score, (policy.display_scores, policy.display_values)))


def sealed(policy: Policy) -> Policy:
    """The policy under the id that digests everything else in it."""
    return dataclasses.replace(policy, policy_id=_content_digest(policy))


def check_policy_for_model(policy: Policy, model_id: str, digest: str | None = None) -> None:
    """Raise PolicyError when the policy was made for another model: its threshold means nothing here.

    Where the model's full digest is known and the policy names one, those are compared as well.
    """
    if policy.model_id != model_id:
        raise PolicyError(
            f"policy {policy.policy_id} was made for model {policy.model_id}, not for {model_id}: "
            "run segpipe calibrate on this model"
        )
    if digest is not None and policy.model_digest not in (None, digest):
        raise PolicyError(
            f"policy {policy.policy_id} was made for model {policy.model_digest}, not for {digest}, which "
            "only begins with the same digits: run segpipe calibrate on this model"
        )


def check_policy_for_precision(policy: Policy, precision: Precision) -> None:
    """Raise PolicyError when the policy's scores were computed in another precision: its threshold was not
    tested on such scores. A policy that does not say passes.
    """
    if policy.precision not in (None, precision):
        raise PolicyError(
            f"policy {policy.policy_id} was calibrated in {policy.precision} and this device computes in "
            f"{precision}, which gives other scores: label where it was calibrated, or run segpipe calibrate "
            "here"
        )


def to_json(policy: Policy) -> str:
    """The policy as the text of policy.json, promise and target beside the rest: what from_json reads."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **_content(policy)}, indent=2, allow_nan=False)


def from_json(text: str, name: str = "policy.json", remedy: str = RECALIBRATE) -> Policy:
    """Read policy.json; raises PolicyError for damaged, incomplete, edited or unknown-version content.

    Also for numbers that contradict each other, see arithmetic.disagreements. The error names the file as
    `name` and ends in `remedy`.
    """
    try:
        return _parsed(text)
    except _UnfitError as unfit:
        raise PolicyError(f"{name} {unfit}: {remedy}") from unfit


def holds_back(guards: Sequence[ClassGuard], class_confidences: Sequence[float]) -> bool:
    """Whether one of the guards sends a mask with these class confidences (K,) to review."""
    return any(class_confidences[guard.class_index] < guard.min_confidence for guard in guards)


class _UnfitError(Exception):
    """What keeps a text from being a policy, in words that go on after its name."""


def _parsed(text: str) -> Policy:
    content = _json_object(text)
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise _UnfitError(f"has schema version {told_version(version)}, this segpipe reads {SCHEMA_VERSION}")
    policy = _typed(content)
    _check_unedited(policy)
    if problem := next(disagreements(policy), None):
        raise _UnfitError(f"does not add up ({problem})")
    return policy


def _content(policy: Policy) -> dict[str, Any]:
    """What is there in one flat object, the promise's numbers beside the rest."""
    content = covered(dataclasses.asdict(policy), OPTIONAL_FIELDS)
    if policy.growth and policy.growth.evidence:
        content["growth"]["evidence"] = covered(content["growth"]["evidence"], OPTIONAL_EVIDENCE)
    return content | content.pop("promised")


def _content_digest(policy: Policy) -> str:
    content = _content(policy)
    del content["policy_id"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return shown(hashlib.sha256(canonical.encode()).hexdigest())


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _UnfitError(f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _UnfitError("does not hold a JSON object")
    return content


def _typed(content: dict[str, Any]) -> Policy:
    kinds = {"mean_loss": MeanLossPromise, "classes": ClassesOnly}
    kind = kinds.get(str(content.get("target")), BadFractionPromise)
    of_promise = {field.name for field in dataclasses.fields(kind)}
    of_policy = {field.name for field in dataclasses.fields(Policy)} - {"promised"}
    missing = (of_policy | of_promise) - OPTIONAL_FIELDS - content.keys()
    if missing:
        first_missing = "target" if "target" in missing else min(missing)
        raise _UnfitError(f"lacks {first_missing}")
    nested = {name: value for name, value in content.items() if name not in of_promise}
    nested["promised"] = {name: content[name] for name in of_promise}
    try:
        return TypeAdapter(Policy).validate_json(json.dumps(nested))
    except ValidationError as error:
        first = error.errors()[0]
        nesting = ("promised", content["target"])
        where = ".".join(str(part) for part in first["loc"] if part not in nesting) or "target"
        raise _UnfitError(f"is damaged at {printable(where)} ({first['msg']})") from error


def _check_unedited(policy: Policy) -> None:
    if policy.policy_id != _content_digest(policy):
        raise _UnfitError(f"was edited: its content does not match its policy_id {policy.policy_id}")
