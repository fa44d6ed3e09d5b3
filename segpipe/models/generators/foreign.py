"""A network that segpipe did not build, as a generator: its kind of image in, the data set's classes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from segpipe.kinds import FOREIGN_GENERATORS, module_of
from segpipe.models.generators.protocol import Generator
from segpipe.models.spec_fields import ClassName, Deviation, Digest, Mean

Values = Literal["logits", "probabilities"]
Channels = Literal["rgb", "bgr"]
# The judge sees finer masks than the coarsest networks give, and no finer ones than it was made for.
FINEST_JUDGED, COARSEST_JUDGED = 2, 4
# The logit of a class that the network does not know; finite, so that it can be interpolated.
NEVER = -1e4
SMALLEST_PROBABILITY = 1e-7
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]


@dataclass(frozen=True)
class Found:
    """What a foreign network's own files say of it.

    files: what the bundle carries, by name. classes: of its outputs, None: it does not say. first_class: the
    data set's class of output 0 where outputs have no names. mean and standard_deviation: in the order of the
    network's channels, of values of 0 to 1. own_size: height and width, where it takes no other.
    """

    files: Mapping[str, bytes]
    classes: tuple[str, ...] | None
    first_class: int
    values: Values
    channels: Channels
    mean: tuple[float, float, float]
    standard_deviation: tuple[float, float, float]
    own_size: tuple[int, int] | None


class ForeignSpec(BaseModel):
    """What decides what a foreign network computes, besides what is in its files.

    files: SHA-256 by name. class_map: the data set's class of each output, None: ignored; one of a single
    output is the class where it is high, after that where it is low. mean and standard_deviation: in the
    order of the network's channels, of values of 0 to 1. one_size: it takes images of the working size only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[FileName, Digest] = Field(min_length=1, max_length=1000)
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=100_000)
    class_map: tuple[Annotated[int, Field(ge=0, lt=255)] | None, ...]
    values: Values
    channels: Channels
    mean: tuple[Mean, Mean, Mean]
    standard_deviation: tuple[Deviation, Deviation, Deviation]
    output_stride: int = Field(ge=1, le=64)
    one_size: bool


class ForeignGenerator(Generator):
    """A foreign network behind the project's normalisation; (B,3,H,W) -> class logits (B,K,h,w), float32.

    It labels in float32, for its masks are to be those that its own program gives, and learns in whatever
    precision surrounds it.
    """

    size_multiple = 32

    def __init__(
        self,
        network: nn.Module,
        spec: ForeignSpec,
        given: tuple[Sequence[float], Sequence[float]],
        n_classes: int,
    ) -> None:
        """given: mean and deviation of the images that will be given, of values of 0 to 1."""
        super().__init__()
        self.network = network
        self.spec = spec
        self.n_classes = n_classes
        self.output_stride = spec.output_stride
        self.judged_stride = judged_stride(spec.output_stride)
        factor, shift = _to_its_own(given, spec)
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.factor: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            return self._logits(image)
        with torch.autocast(image.device.type, enabled=False):
            return self._logits(image)

    def _logits(self, image: Tensor) -> Tensor:
        own = image.float() * self.factor + self.shift
        outputs = self.network(own.flip(1) if self.spec.channels == "bgr" else own).float()
        return in_classes(two_at_least(outputs, self.spec.values), self.spec.class_map, self.n_classes)


def judged_stride(output_stride: int) -> int:
    """That of the grid that a network's masks are judged on."""
    return min(max(output_stride, FINEST_JUDGED), COARSEST_JUDGED)


def _to_its_own(given: tuple[Sequence[float], Sequence[float]], spec: ForeignSpec) -> tuple[Tensor, Tensor]:
    """Factor and shift (1,3,1,1), in RGB order, from the given normalisation to the network's."""
    turn = -1 if spec.channels == "bgr" else 1
    own_mean, own_deviation = (
        torch.tensor(values[::turn], dtype=torch.float64) for values in (spec.mean, spec.standard_deviation)
    )
    mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in given)
    factor, shift = deviation / own_deviation, (mean - own_mean) / own_deviation
    return factor.float().view(1, 3, 1, 1), shift.float().view(1, 3, 1, 1)


def two_at_least(outputs: Tensor, values: Values) -> Tensor:
    """Outputs (B,1 or C,h,w) as logits (B,2 or C,h,w): one channel is the sigmoid of the second of two."""
    if values == "probabilities":
        small = SMALLEST_PROBABILITY
        outputs = torch.logit(outputs, eps=small) if outputs.shape[1] == 1 else outputs.clamp(min=small).log()
    return torch.cat([torch.zeros_like(outputs), outputs], dim=1) if outputs.shape[1] == 1 else outputs


def in_classes(logits: Tensor, class_map: Sequence[int | None], n_classes: int) -> Tensor:
    """Logits (B,C,h,w) of foreign classes as those of the data set's (B,n_classes,h,w).

    Several to one add up their probabilities; those that are ignored leave theirs to the others.
    """
    if tuple(class_map) == tuple(range(n_classes)):
        return logits
    return torch.cat([_class_logit(logits, class_map, index) for index in range(n_classes)], dim=1)


def _class_logit(logits: Tensor, class_map: Sequence[int | None], index: int) -> Tensor:
    sources = [source for source, target in enumerate(class_map) if target == index]
    if not sources:
        return torch.full_like(logits[:, :1], NEVER)
    return logits[:, sources].logsumexp(dim=1, keepdim=True) if len(sources) > 1 else logits[:, sources]


def build_network(kind: str, files: Mapping[str, bytes]) -> nn.Module:
    """The network of these files, on the CPU: (B,3,H,W) as its own preprocessing gives it to its outputs.

    Raises ModelError.
    """
    network: Any = module_of(FOREIGN_GENERATORS, kind, "foreign generator").build(files)
    return network
