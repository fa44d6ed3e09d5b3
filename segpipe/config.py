"""Settings shared by the command line and the flows: each field states its unit, its default and the reason.

The option's help text, the form in the Prefect UI and the validation all come from here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from segpipe.addresses import require_address
from segpipe.errors import AddressError, FailureReason
from segpipe.image_range import checked_range
from segpipe.kinds import ARCHITECTURES, ENGINES, GAN_LOSSES, OBJECTIVES, OneOf, described

MAX_SCALE, MOST_COST = 1000.0, 8.0
CACHE_BYTES = 20_000_000_000
LEAST_SHARE = 1e-6  # it takes millions of labelled images to promise that little
MAX_WORKING_PIXELS = 1024 * 2048  # labelling at twice as many took 3 GB and two minutes an image


def _address(text: str) -> str:
    try:
        require_address(text)
    except AddressError as error:
        raise ValueError(str(error)) from None
    return text


Location = Annotated[str, AfterValidator(_address)]


def _one_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", name):
        raise ValueError(f"{name!r} is no device: give auto, cpu, cuda, or cuda:1 for the second of several")
    return name


Device = Annotated[str, AfterValidator(_one_device)]


def _one_split(name: str) -> str:
    if not name.strip() or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise ValueError(f"{name!r} is no split: give the name of one folder of the data set, as in train")
    return name


SplitName = Annotated[str, AfterValidator(_one_split)]


def _height_by_width(size: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", size):
        raise ValueError(f"{size!r} is not HEIGHTxWIDTH in pixels, for example 240x320")
    if math.prod(working_size(size)) > MAX_WORKING_PIXELS:
        raise ValueError(f"{size!r} is more than {MAX_WORKING_PIXELS} pixels: 1024x2048 is the most")
    return size


def working_size(image_size: str) -> tuple[int, int]:
    """HEIGHTxWIDTH as the networks take it, since every stage halves the image, five times in all."""
    height, width = (max(32, round(int(side) / 32) * 32) for side in image_size.split("x"))
    return height, width


ImageSize = Annotated[str, AfterValidator(_height_by_width)]


def _whole_steps(size: str) -> str:
    if size != "x".join(map(str, working_size(size))):
        raise ValueError(f"{size!r} is no tile: height and width are multiples of 32, for example 512x512")
    return size


TileSize = Annotated[ImageSize, AfterValidator(_whole_steps)]


def _scale(text: str) -> str:
    if text in ("auto", "fit"):
        return text
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= MAX_SCALE:
        raise ValueError(
            f"{text!r} is not auto, fit or image pixels per network pixel, from 1 to {MAX_SCALE:g}"
        )
    return text


ScaleChoice = Annotated[str, AfterValidator(_scale)]
_SCALE = (
    "How large the networks see an image: fit (all of it, at the working size), a factor (so many of its "
    "pixels to one of theirs, 1 is its own size, in tiles where it is large), or auto: fit, unless "
    "--image-size is unset and that would make small objects of a class too small to be found."
)
_TILE = (
    "Largest part of an image that goes through the networks at once, HEIGHTxWIDTH in network pixels; unset: "
)
_MOST_COST = "What --scale auto may cost at most, in pixels through the networks against those of fit."


def _require_use_for_tile(scale: str, tile: str | None) -> None:
    if tile is not None and scale == "fit":
        raise ValueError("--tile has no use at --scale fit, where an image is one pass: leave one out")


def _compiles(pattern: str) -> str:
    if not pattern:
        raise ValueError("an empty regular expression names no group: try '^[^_]+'")
    from segpipe.name_groups import compiled, quoted  # not needed for --help

    try:
        compiled(pattern)
    except re.error as error:
        raise ValueError(f"{quoted(pattern)} is not a regular expression: {error}") from None
    return pattern


RegularExpression = Annotated[str, AfterValidator(_compiles)]
_GROUP_BY = (
    "Regular expression whose first match in an image's key (its first group, if it has one) names what the "
    "image belongs to, for example '^[^_]+' for SEQUENCE_FRAME; unset: as the data set's groups.csv says. Of "
    "four groups or more whole ones are held back from the generator: they teach the judge and fit its score."
)


def guarded_class(guard: str) -> tuple[str, float]:
    """Class name and smallest class confidence (0 to 1) of CLASS:CONFIDENCE; raises ValueError."""
    name, confidence = _class_and_number(guard)
    if not name or not 0 <= confidence <= 1:
        raise ValueError(f"{guard!r} is not CLASS:CONFIDENCE with 0 to 1, for example person:0.5")
    return name, confidence


def class_share(promised: str) -> tuple[str, float]:
    """Class name and share (between 0 and 1) of CLASS:SHARE; raises ValueError."""
    name, share = _class_and_number(promised)
    if not name or not LEAST_SHARE <= share < 1:
        raise ValueError(
            f"{promised!r} is not CLASS:SHARE with a share between {LEAST_SHARE:g} and 1, for example "
            "crack:0.05"
        )
    return name, share


def _class_and_number(text: str) -> tuple[str, float]:
    """Of CLASS:NUMBER; NaN for what is no number."""
    name, _, number = text.rpartition(":")
    try:
        return name, float(number)
    except ValueError:
        return name, math.nan


def _each_class_once(guards: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := _repeated(guarded_class(guard)[0] for guard in guards):
        raise ValueError(f"{repeated[0]!r} is guarded twice: give one confidence per class")
    return guards


def _each_class_promised_once(promised: tuple[str, ...]) -> tuple[str, ...]:
    if repeated := _repeated(class_share(one)[0] for one in promised):
        raise ValueError(f"{repeated[0]!r} is given twice: give one share per class")
    return promised


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


Guards = Annotated[tuple[str, ...], AfterValidator(_each_class_once)]
ClassShares = Annotated[tuple[str, ...], AfterValidator(_each_class_promised_once)]

_DEVICE = (
    "Where the networks run: auto, cpu, cuda, or cuda:N for one of several; auto takes a CUDA device when "
    "there is one, else the CPU."
)


A_DAY = 86_400.0  # seconds; a longer wait is a typing error


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


CacheBytes = Annotated[
    int,
    Field(
        ge=0,
        description="Bytes of temporary disk (in TMPDIR) for labelled images as the networks see them; those "
        "that do not fit are decoded anew for every view, which is slow. The result is the same.",
    ),
]
Check = Literal["unreadable", "shared", "duplicates"]
CHECKS: dict[Check, str] = {
    "unreadable": "leaves out images that cannot be used with their masks",
    "shared": "takes images that training has seen, which flatter every figure",
    "duplicates": "counts copies of an image as evidence of their own, which voids a promise",
}
Allowed = Annotated[
    tuple[Check, ...],
    Field(
        description="Go on in spite of a check that refuses the data set; may be given more than once: "
        + ", ".join(f"{name} {meaning}" for name, meaning in CHECKS.items())
        + "."
    ),
]


class StorageSettings(_Settings):
    """How storage is talked to; read from the environment, as the credentials are.

    Each field is the variable SEGPIPE_STORAGE_ and its name in capitals.
    """

    answer_seconds: float = Field(
        20.0,
        gt=0,
        le=A_DAY,
        description="Seconds a silent S3 server is waited for before the request is sent again; 20 outlasts "
        "a busy server, and less finds out sooner.",
    )
    object_seconds: float = Field(
        120.0,
        gt=0,
        le=A_DAY,
        description="Seconds that one object may take, retries included, and one more for each 100,000 bytes "
        "that have come: a server that sends a byte now and then holds no run; 120 outlasts all retries.",
    )
    requester_pays: bool = Field(
        False,
        description="Agree to pay for requests to buckets whose owner lets the requester pay; S3 refuses "
        "them otherwise.",
    )


DEFAULT_ARCHITECTURE = "unet-ibn"
FORMER_DEFAULT_ARCHITECTURE = "unet"
BOTH_GENERATORS = "--architecture and --generator both say what the generator is: give one of them"


class TrainSettings(_Settings):
    """What `segpipe train` needs to turn a labelled data set into a model bundle."""

    data: Location = Field(description="Labelled data set: a folder at any fsspec URL (dataset.json inside).")
    model: Location = Field(description="Where the model bundle goes: a folder at any fsspec URL.")
    split: SplitName = Field("train", description="Split of the data set to learn from.")
    val_split: SplitName = Field(
        "val", description="Split that picks the best weights; never learnt from, so its figures stay honest."
    )
    corrections: tuple[Location, ...] = Field(
        (),
        description="OUTPUT of labelling runs: also learn from the masks that people drew or confirmed "
        "there; may be given more than once. Images that the data set holds in any split are left out.",
    )
    architecture: Annotated[str, OneOf(ARCHITECTURES)] = Field(
        DEFAULT_ARCHITECTURE, description=f"Networks: {described(ARCHITECTURES)}."
    )
    generator: Location | None = Field(
        None,
        description="Begin with this trained network, a transformers folder that segments, at any fsspec "
        "URL, in place of --architecture; it changes at a tenth of the rate. Unset: a new network.",
    )
    objective: Annotated[str, OneOf(OBJECTIVES)] = Field(
        "hybrid", description=f"What the generator minimises: {described(OBJECTIVES)}."
    )
    gan_loss: Annotated[str, OneOf(GAN_LOSSES)] = Field(
        "bce", description=f"Adversarial loss: {described(GAN_LOSSES)}."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training split; unset: as many as a data set of that size needs.",
    )
    image_size: ImageSize | None = Field(
        None,
        description="Working size in pixels, HEIGHTxWIDTH, for example 240x320, to which scale fit shrinks "
        "every image; unset: chosen from the data.",
    )
    group_by: RegularExpression | None = Field(None, description=_GROUP_BY)
    scale: ScaleChoice = Field("auto", description=_SCALE)
    tile: TileSize | None = Field(
        None, description=_TILE + "1024x1024, and the working size for a network of --generator."
    )
    most_cost: float = Field(MOST_COST, ge=1, description=_MOST_COST)
    device: Device = Field("auto", description=_DEVICE)
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of every random draw; on the CPU one seed gives the same model again.",
    )
    cache_bytes: CacheBytes = CACHE_BYTES
    resume: bool = Field(
        False, description="Go on from the last checkpoint of a stopped training and end in the same place."
    )
    adversarial_weight: float = Field(
        0.01,
        ge=0,
        description="Weight of the adversarial term in hybrid (cross-entropy and Dice weigh 1); "
        "larger sharpens masks but unsettles training.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        description="Images per step; 4 learns faster from few images than 8; a GPU may want more.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Adam's step size; unset: 0.0002 for the published recipe, larger for the others.",
    )
    allow: Allowed = ()

    @model_validator(mode="after")
    def _check_tile(self) -> Self:
        _require_use_for_tile(self.scale, self.tile)
        return self

    @model_validator(mode="after")
    def _one_generator(self) -> Self:
        # A form of Prefect's sends every default, and runs that were scheduled before the former one.
        defaults = (DEFAULT_ARCHITECTURE, FORMER_DEFAULT_ARCHITECTURE)
        if self.generator is not None and self.architecture not in defaults:
            raise ValueError(BOTH_GENERATORS)
        return self


def three_numbers(text: str) -> tuple[float, float, float]:
    """A,B,C as numbers; raises ValueError."""
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not three numbers, for example 0.485,0.456,0.406") from None
    if not all(map(math.isfinite, (first, second, third))):
        raise ValueError(f"{text!r} is not three finite numbers")
    return first, second, third


def _three_numbers(text: str) -> str:
    three_numbers(text)
    return text


PerChannel = Annotated[str, AfterValidator(_three_numbers)]


class AdoptSettings(_Settings):
    """What `segpipe adopt` needs to make a model bundle of a network that was trained elsewhere."""

    path: Location = Field(
        description="The network: a transformers folder that segments, or an .onnx file, at any fsspec URL."
    )
    data: Location = Field(description="Labelled data set: a folder at any fsspec URL (dataset.json inside).")
    split: SplitName = Field(
        description="Split that teaches the judge; images that the network was not trained on, else every "
        "score is too high."
    )
    model: Location = Field(description="Where the model bundle goes: a folder at any fsspec URL.")
    class_map: Location | None = Field(
        None,
        description="JSON or TOML file, classes (the network's class to the data set's, several to one) and "
        "ignore (a list); unset: classes of the same names are the same.",
    )
    image_size: ImageSize | None = Field(
        None,
        description="Working size in pixels, HEIGHTxWIDTH, to which every image is fitted; unset: the "
        "network's own where it takes no other, else chosen from the data.",
    )
    group_by: RegularExpression | None = Field(None, description=_GROUP_BY)
    scale: ScaleChoice = Field("auto", description=_SCALE)
    tile: TileSize | None = Field(
        None, description=_TILE + "the network's own size where it takes no other, else the working size."
    )
    most_cost: float = Field(MOST_COST, ge=1, description=_MOST_COST)
    epochs: int | None = Field(
        None, ge=1, description="Passes of the judge over the split; unset: as many as give 7,200 views."
    )
    output: Literal["logits", "probabilities"] | None = Field(
        None, description="What an .onnx file gives for each class; no such file says so itself."
    )
    channel_order: Literal["rgb", "bgr"] | None = Field(
        None, description="Of an .onnx file's images; unset: rgb."
    )
    range: Literal["0..1", "0..255", "-1..1"] | None = Field(
        None,
        description="What an .onnx file takes black and white as, before mean and deviation; unset: 0..1.",
    )
    mean: PerChannel | None = Field(
        None,
        description="What an .onnx file wants taken off each channel, in its own order, after the range, for "
        "example 0.485,0.456,0.406; unset: nothing.",
    )
    deviation: PerChannel | None = Field(
        None, description="What it wants each channel then divided by; unset: 1."
    )
    device: Device = Field("auto", description=_DEVICE)
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of every random draw; on the CPU one seed gives the same model again.",
    )
    cache_bytes: CacheBytes = CACHE_BYTES
    allow: Allowed = ()

    @model_validator(mode="after")
    def _check_tile(self) -> Self:
        _require_use_for_tile(self.scale, self.tile)
        return self


class EvaluateSettings(_Settings):
    """What `segpipe evaluate` needs to measure a model on labelled images."""

    model: Location = Field(description="Model bundle: a folder at any fsspec URL.")
    data: Location = Field(description="Labelled data set: a folder at any fsspec URL (dataset.json inside).")
    split: SplitName = Field(description="Split to measure on; one the model has not learnt from.")
    device: Device = Field("auto", description=_DEVICE)
    report: Location | None = Field(
        None,
        description="Also write plots and one self-contained page, index.html, to this folder at any fsspec "
        "URL; with the model's policy, if it has one. Unset: figures only.",
    )
    group_by: RegularExpression | None = Field(
        None,
        description="Also measure each group of images by itself: regular expression whose first match in an "
        "image's key (its first group, if it has one) names its video, camera or laboratory. Unset: as the "
        "data set's groups.csv says, if it has one.",
    )
    allow: Allowed = ()


class InspectSettings(_Settings):
    """What `segpipe inspect` looks at."""

    split: SplitName | None = Field(None, description="Only this split. Unset: all of them.")
    report: Location | None = Field(
        None,
        description="Also write one page with pictures, index.html, to this folder at any fsspec URL.",
    )


GROUPS_FILE = "groups"  # what names groups.csv in place of a regular expression
Share = Annotated[float, Field(ge=0)]


class SplitSettings(_Settings):
    """How `segpipe split` divides a labelled data set."""

    by: RegularExpression = Field(
        description="What belongs together and stays in one split: groups, as DATA/groups.csv says; or a "
        "regular expression as for calibrate --group-by, such as '^[^_]+'; '.+' takes each image by itself."
    )
    split: tuple[SplitName, ...] = Field(
        (), description="Take the images of this split; may be given more than once. Unset: of all splits."
    )
    train: Share = Field(0.6, description="Share of the images to learn from, beside the other shares.")
    val: Share = Field(0.1, description="Share of the images that pick the best weights; 0: no such split.")
    calibration: Share = Field(
        0.2, description="Share of the images to certify on: a promise needs some dozens of groups."
    )
    test: Share = Field(0.1, description="Share of the images that nothing learns from, for evaluate.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the draw: the same seed, the same splits.")
    allow: Allowed = ()

    @model_validator(mode="after")
    def _some_share(self) -> Self:
        if not self.shares():
            raise ValueError("every share is 0: give at least one split a share")
        return self

    def shares(self) -> dict[str, float]:
        """Split -> share (0 to 1) of the images; of the splits that there are to be."""
        asked = {"train": self.train, "val": self.val, "calibration": self.calibration, "test": self.test}
        total = sum(asked.values())
        return {name: share / total for name, share in asked.items() if share}


# A tenth promised with 90% takes 47 good draws, so 470 000 masks; where the audit share is 0.02, 8924 draws.
LEAST_DRAW_SHARE = 1e-4
DRAW_SHARE = 0.02  # of all masks, for a certificate that grows: as many as are audited by default


class CalibrateSettings(_Settings):
    """What `segpipe calibrate` needs to find the threshold that keeps a promise."""

    model: Location = Field(description="Model bundle that gets policy.json: a folder at any fsspec URL.")
    data: Location = Field(description="Labelled data set: a folder at any fsspec URL (dataset.json inside).")
    split: SplitName = Field(
        description="Split to certify on: images like those to label, unseen in training and validation."
    )
    min_iou: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="A mask with a mean IoU below this (0 to 1) counts as bad; the task decides. Goes with "
        "--max-bad-fraction.",
    )
    max_bad_fraction: float | None = Field(
        None,
        ge=LEAST_SHARE,
        lt=1,
        description="Largest share of bad masks (0 to 1) among those accepted; the task decides. Goes with "
        "--min-iou.",
    )
    max_mean_loss: float | None = Field(
        None,
        ge=LEAST_SHARE,
        lt=1,
        description="In place of those two: largest mean loss (0 to 1) of the accepted masks, where a mask "
        "loses 1 - IoU; 0.3 promises a mean IoU of 0.7.",
    )
    miss: ClassShares = Field(
        (),
        description="CLASS:SHARE, for example crack:0.05: of the images that have the class at most this "
        "share (0 to 1) is accepted with a mask that does not show it; a mask that goes to review misses "
        "nothing. For rare classes, of which the promise about all masks says nothing; may be given for "
        "several classes, alone or with the other promises. Takes images with the class: 59 at 0.05 and "
        "--confidence 0.95, if none of them is missed.",
    )
    false_alarm: ClassShares = Field(
        (),
        description="CLASS:SHARE: of the images without the class at most this share (0 to 1) is accepted "
        "with a mask that shows it; may be given for several classes, alone or with the other promises.",
    )
    min_object_px: int = Field(
        1,
        ge=1,
        le=10**12,
        description="An image has a class, and a mask shows it, for --miss and --false-alarm, when at least "
        "so many of the labelled pixels are of it.",
    )
    confidence: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Probability (0 to 1) that the promise holds; 0.9 takes some hundred images to certify.",
    )
    group_by: RegularExpression | None = Field(
        None,
        description="Regular expression whose first match in an image's key (its first group, if it has one) "
        "names what the image belongs to, for example '^[^_]+' for SEQUENCE_FRAME; unset: as the data set's "
        "groups.csv says, and without one images are independent. Frames of one video are not: they count as "
        "one, else the promise is void.",
    )
    promise_about: Literal["groups", "masks"] = Field(
        "groups",
        description="What is drawn at random in what is promised, where images belong to groups: an image of "
        "a random group, so that each group weighs one, or a mask among all that are accepted, so that large "
        "groups weigh more. The promise about masks takes more groups, the more their sizes differ; groups "
        "to come must be no larger than the largest of these.",
    )
    per: RegularExpression | None = Field(
        None,
        description="Regular expression that finds in an image's key, and in its address when it is "
        "labelled, what it comes from, such as a camera or a site, for example 'cam\\d+': each of these "
        "groups gets a certificate of its own, with the confidence asked for, where it has the labels, and "
        "all other images go to review.",
    )
    guard: Guards = Field(
        (),
        description="CLASS:CONFIDENCE, for example person:0.5: a mask that shows the class with less class "
        "confidence (0 to 1) goes to review whatever its score; may be given for several classes.",
    )
    grow: bool = Field(
        False,
        description="Let the certificate grow with the reviews of masks that labelling draws blind to the "
        "score (segpipe recalibrate); half of the error that --confidence leaves is kept for that. Only with "
        "--max-bad-fraction.",
    )
    draw_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="With --grow: the least share (0.0001 to 1) of all masks that labelling draws, also "
        "where --audit-share is less; unset: 0.02. Give the audit share that you will use: what is drawn "
        "with a larger one counts for so much less.",
    )
    allow: Allowed = ()
    device: Device = Field("auto", description=_DEVICE)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        bad_fraction = (self.min_iou is not None, self.max_bad_fraction is not None)
        of_classes = bool(self.miss or self.false_alarm)
        nothing_of_masks = not any(bad_fraction) and self.max_mean_loss is None
        if bad_fraction != (self.max_mean_loss is None,) * 2 and not (of_classes and nothing_of_masks):
            raise ValueError(
                "give one target: --min-iou with --max-bad-fraction, or --max-mean-loss alone, or --miss or "
                "--false-alarm with or without one of these"
            )
        if self.min_object_px > 1 and not of_classes:
            raise ValueError("--min-object-px goes with --miss or --false-alarm")
        return self

    @model_validator(mode="after")
    def _what_can_grow(self) -> Self:
        if self.draw_share is not None and not self.grow:
            raise ValueError("--draw-share goes with --grow: give both or neither")
        if self.draw_share is not None and self.draw_share < LEAST_DRAW_SHARE:
            raise ValueError(
                f"--draw-share {self.draw_share:g} is below {LEAST_DRAW_SHARE:g}: so few masks would be "
                "drawn, or with a larger audit share count for so little, that the certificate could never "
                f"grow; {DRAW_SHARE:g} is usual"
            )
        others = {
            "--max-mean-loss": self.max_mean_loss,
            "--per": self.per,
            "--miss": self.miss,
            "--false-alarm": self.false_alarm,
        }
        if self.grow and (given := [name for name, value in others.items() if value]):
            raise ValueError(f"--grow goes with --max-bad-fraction alone, not with {given[0]}: leave one out")
        return self

    @property
    def growing_share(self) -> float | None:
        """The least share (0 to 1) of masks to draw for a certificate that grows; None for another."""
        return (self.draw_share or DRAW_SHARE) if self.grow else None


class PromoteSettings(_Settings):
    """What `segpipe promote` needs to compare a new model with the one in use."""

    line: Location = Field(
        description="The line of models: a folder at any fsspec URL; given to label as the model."
    )
    candidate: Location = Field(description="Model bundle that may replace the line's: a folder at any URL.")
    data: Location = Field(description="Labelled data set: a folder at any fsspec URL (dataset.json inside).")
    split: SplitName = Field(
        description="Split to compare on, always the same one; no model of the line may have learnt from it."
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence (0.5 to 1) that no candidate is promoted without a higher mean IoU, for all "
        "that are ever compared on such images together: the first is tested at half of the error, others at "
        "less.",
    )
    group_by: RegularExpression | None = Field(
        None,
        description="Regular expression whose first match in an image's key names what the image belongs to, "
        "as for calibrate: frames of one video count as one. Unset: by groups.csv, if there is one.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the order in which images are compared.")
    device: Device = Field("auto", description=_DEVICE)


class DoctorSettings(_Settings):
    """What `segpipe doctor` looks at besides this machine."""

    source: Location | None = Field(None, description="Images: a folder or bucket that must be readable.")
    output: Location | None = Field(
        None,
        description="Folder at any fsspec URL that must take masks and refuse a second exclusive create.",
    )
    model: Location | None = Field(None, description="Model bundle, or line of models, that must be whole.")
    sources: Location | None = Field(None, description="Sources file, whose patterns must find something.")
    seconds: float = Field(
        30.0,
        gt=0,
        le=A_DAY,
        description="Seconds after which a check counts as failed; 30 outlast a slow storage.",
    )


class QueueSettings(_Settings):
    """Which masks people are asked about, and how many."""

    order: Literal["confidence", "gain"] = Field(
        "confidence",
        description="Which doubtful masks come first: confidence, the default, those of the lowest; gain, "
        "those with the largest expected share of wrong pixels.",
    )
    class_name: str | None = Field(
        None,
        description="Of the doubtful masks only those that show this class, first those where much of it is "
        "doubtful; audits come whatever they show.",
    )
    limit: int = Field(100, ge=1, le=1_000_000, description="At most so many masks; 100 is a morning's work.")
    minutes: float | None = Field(
        None, gt=0, description="At most as many masks as take so long, by the median of the reviews so far."
    )
    random_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share (0 to 1) of the doubtful masks asked for that is drawn at random, whatever their "
        "order or class: what the next model learns from those stands for all that nobody has looked at. A "
        "fifth costs little of what a minute buys; with 0 corrections count hard images more than the bucket "
        "has them.",
    )


def _without_control(title: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", title):
        raise ValueError("the name holds a control character: give letters, digits, blanks and punctuation")
    return title


# Label Studio stores a title without the blanks around it.
ProjectName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=3, max_length=50),
    AfterValidator(_without_control),
]


def _one_folder(split: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError(f"{split!r} is no name of a folder: give letters, digits, _, - and ., as in train")
    return split


class ExportSettings(_Settings):
    """What `segpipe export` calls what it writes."""

    split: Annotated[str, AfterValidator(_one_folder)] = Field("train", description="Name of the split.")


class ImportSettings(_Settings):
    """How `segpipe import` reads what a layout leaves open."""

    drawn_on: Literal["displayed", "stored"] = Field(
        "displayed",
        description="What the masks of photos with an EXIF turn were drawn on, where sizes cannot tell "
        "(by 180 degrees, mirrored, square): displayed, the default, as browsers and annotation tools show "
        "photos, or stored, as programs read them that know no EXIF.",
    )
    image_range: Annotated[tuple[float, float], AfterValidator(checked_range)] | None = Field(
        None,
        description="For images of more than 8 bits: the values, as stored, that become black and white, LOW "
        "and HIGH, for example 0 4095; written to dataset.json. Default: the full range of each file.",
    )


class PullSettings(_Settings):
    """Where decisions come from."""

    project: ProjectName = Field(description="Name of the Label Studio project.")


class PushSettings(_Settings):
    """Where masks go to be looked at, and what people see of them."""

    project: ProjectName = Field(description="Name of the Label Studio project; made when it is not there.")
    storage: Literal["presigned", "s3"] = Field(
        "presigned",
        description="How a browser gets images in S3: presigned, the default, by short-lived links to the "
        "bucket; s3, through Label Studio, where browsers do not reach the bucket.",
    )
    link_minutes: int = Field(
        60, ge=1, le=10080, description="Minutes that a link to an image lives; 60 outlasts one mask."
    )
    hide_scores: bool = Field(
        False, description="Send no confidence, so that nobody can guess which masks are audits."
    )


class CompactSettings(_Settings):
    """When `segpipe compact` copies manifest parts together, and how large the copies get."""

    min_parts: int = Field(
        32,
        ge=2,
        title="Parts, at least",
        description="Copy parts only when at least this many wait; 32 keeps a year of small nights at a few "
        "dozen files.",
    )
    file_megabytes: int = Field(
        128,
        ge=1,
        title="Largest file, megabytes",
        description="Megabytes of parts (10^6 bytes) that go into one compacted file; it is built in memory, "
        "and 128 is over a million rows.",
    )


class VerifySettings(_Settings):
    """How much `segpipe verify` reads."""

    masks: int | None = Field(
        None,
        ge=0,
        title="Masks, at most",
        description="Read at most this many masks, drawn at random, and compare them with their digests; "
        "unset: all. That each mask is there, and all else, is always checked.",
    )


DEFAULT_ENGINE = "local"
ENGINE_SETTINGS = ("engine", "workers", "worker_gpus", "worker_cpus")


def _worker_count(workers: object) -> str:
    text = str(workers)
    if text != "auto" and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ValueError(f"{text!r} is neither auto nor a number of workers from 1 to 9999")
    return text


WorkerCount = Annotated[str, BeforeValidator(_worker_count)]


class LabelSettings(_Settings):
    """How a labelling run does its work; what it labels is given apart."""

    shard_images: int = Field(
        256,
        ge=1,
        le=1_000_000,
        title="Images per shard",
        description="Images per shard, the unit of progress and of what a kill can cost; "
        "256 keeps parts few and a lost shard cheap. The first, drawn at random, is tested for drift: the "
        "smaller it is, the less is noticed, and below 10 nothing.",
    )
    batch_images: int = Field(
        8,
        ge=1,
        title="Images per batch",
        description="Images that a core takes at once; 8 keeps it busy in little memory. A GPU takes those "
        "of many cores together, as many as its memory holds, at most 64 or so many.",
    )
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        title="Largest image, pixels",
        description="An image with more pixels fails as too_large, undecoded, so that a decompression bomb "
        "cannot fill the memory; 100 million is a 300 MB array.",
    )
    max_image_bytes: int = Field(
        500_000_000,
        ge=1,
        title="Largest image, bytes",
        description="An object with more bytes fails as too_large, unread, so that a video under an image's "
        "name cannot fill the memory; 500 million holds the largest image uncompressed.",
    )
    decode_seconds: float = Field(
        60.0,
        gt=0,
        le=A_DAY,
        title="Time to decode an image, seconds",
        description="An image that is not decoded after so many seconds fails as unreadable, so that a "
        "malicious one cannot stop a night's work; 60 leaves a busy machine time for the largest.",
    )
    fetch_threads: int = Field(
        8,
        ge=1,
        title="Fetch threads",
        description="Batches that are fetched or written while others, one per core, are computed; 8 hide "
        "the latency of object storage.",
    )
    claim_seconds: float = Field(
        60.0,
        gt=0,
        le=A_DAY,
        title="Claim, seconds",
        description="Seconds until the claim of a killed run expires and another may label into the same "
        "OUTPUT; a live run renews it, 60 outlasts a slow storage request.",
    )
    max_failure_rate: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Failures, largest share",
        description="Share (above 0, to 1) of failed images beyond which the run stops, so that a broken "
        "or a wrong bucket does not fill the manifest with failures: of the last 64 images those that failed "
        "in storage or in the model, of the last 1,000 all but denied and archived ones. At its end a run of "
        "any size counts as failed when more than this share of all its images has. With 0.5 a bucket may be "
        "half junk, 1 never stops and never fails. Where the whole source is gone the run stops in any case.",
    )
    retry: tuple[FailureReason, ...] = Field(
        (),
        title="Failures to try again",
        description="Also label images again that failed for this reason; may be given more than once. "
        "Failures in storage always are; other images otherwise wait until their content changes, archived "
        "ones until it or their storage class does.",
    )
    drift_false_alarm_rate: float = Field(
        0.0001,
        gt=0,
        lt=1,
        title="Drift, false alarm rate",
        description="Probability (0 to 1) that a run is taken for drifted, and reviewed whole, although its "
        "images are like the calibration images; with 0.0001 nightly runs have at most a 3.7% chance of any "
        "false alarm in a year.",
    )
    drift_deviation: float | None = Field(
        None,
        ge=0,
        title="Drift, what nights may differ by",
        description="Standard deviation of nights' mean scores that is no drift, in standard deviations of a "
        "score: 0.2 where a night's mean lies off by a fifth of one score's spread. By default it is learnt "
        "from the runs there were, once eight have been labelled under the policy; until then nights are "
        "taken not to differ.",
    )
    drift_warn_only: bool = Field(
        False,
        title="Drift only warns",
        description="Only warn when the scores have drifted; by default all masks of such a run go to "
        "review, because the promise about accepted masks does not hold for other images.",
    )
    audit_share: float = Field(
        0.02,
        ge=0,
        le=1,
        title="Audit share",
        description="Share (0 to 1) of the accepted masks, drawn at random, that people check all the same, "
        "so that segpipe audit can tell whether the promise is kept; 0.02 is 20 masks a night of 1,000 "
        "accepted, and notices in two weeks when three times a promised tenth is bad. 0 checks none. Under a "
        "policy that grows it is the share of all masks, and no less than that of calibrate --draw-share.",
    )
    from_scratch_share: float = Field(
        0.2,
        ge=0,
        le=1,
        title="Drawn from scratch, share",
        description="Under a policy that grows: share (0 to 1) of the drawn masks that people draw without "
        "seeing the draft, so that segpipe recalibrate can tell what they leave wrong in drafts.",
    )
    confidence_maps: bool = Field(
        False,
        title="Confidence maps",
        description="Also write a grey PNG per image, 0 where the mask is surely wrong to 255 where surely "
        "right, for reviewers; off by default, since it takes time and space.",
    )
    inventory: Location | None = Field(
        None,
        title="Inventory",
        description="Take what there is to label from a list instead of listing SOURCE: the manifest.json of "
        "an S3 Inventory report (CSV or Parquet), or a .parquet, .csv or .csv.gz file with a column uri or "
        "key and, if possible, etag and size. Unset: list SOURCE, which takes minutes per million objects.",
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        title="Price per hour",
        description="What this machine costs per hour, in any currency: plan and the run's page then say "
        "what a run costs. Unset: no cost is shown.",
    )
    device: Device = Field("auto", title="Device", description=_DEVICE)
    engine: Annotated[str, OneOf(ENGINES)] = Field(
        DEFAULT_ENGINE, title="Engine", description=f"Who labels: {described(ENGINES)}."
    )
    workers: WorkerCount = Field(
        "auto",
        title="Workers",
        description="Of --engine ray: how many processes label, a number or auto: as many as the cluster has "
        "room for. With fewer for the moment the run begins with those.",
    )
    worker_gpus: float | None = Field(
        None,
        ge=0,
        le=64,
        title="GPUs per worker",
        description="Of --engine ray: GPUs of each worker; a fraction such as 0.25 lets several share one, "
        "which keeps it busy. Unset: 1 where the cluster has GPUs and --device allows it, else 0.",
    )
    worker_cpus: float | None = Field(
        None,
        gt=0,
        le=1024,
        title="Cores per worker",
        description="Of --engine ray: cores of each worker. Unset: 1, and with GPUs all cores "
        "but one on each node, shared out evenly.",
    )

    @property
    def has_workers(self) -> bool:
        """Whether other processes label, so that the one that runs the labelling needs no GPU."""
        return self.engine != DEFAULT_ENGINE

    @model_validator(mode="after")
    def _workers_have_an_engine(self) -> Self:
        asked = {"workers": "auto", "worker_gpus": None, "worker_cpus": None}
        useless = [name for name, default in asked.items() if getattr(self, name) != default]
        if self.engine == DEFAULT_ENGINE and useless:
            option = "--" + useless[0].replace("_", "-")
            raise ValueError(f"{option} has no use at --engine local: add --engine ray, or leave it out")
        return self

    @model_validator(mode="after")
    def _gpus_have_a_device(self) -> Self:
        if self.worker_gpus and self.device == "cpu":
            raise ValueError("--worker-gpus has no use with --device cpu: leave one out")
        if self.worker_gpus == 0 and self.device == "cuda":
            raise ValueError("--worker-gpus 0 leaves --device cuda without a GPU: leave one out")
        if self.has_workers and self.device.startswith("cuda:"):
            raise ValueError(
                f"--device {self.device} is one GPU of this machine, and --engine ray gives each worker its "
                "own: take --device cuda; CUDA_VISIBLE_DEVICES says which are used here"
            )
        if self.worker_gpus and self.worker_gpus > 1 and not self.worker_gpus.is_integer():
            raise ValueError("--worker-gpus is a fraction of one, or a whole number")
        return self
