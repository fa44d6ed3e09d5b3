"""Whether a training comes to something: a loss or a weight that is no number, or far too large, ends it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from segpipe.errors import RunError
from segpipe.models.bundle import without_numbers

# Adam moves a weight by about its step size, so that no sensible training comes near it.
LARGEST_WEIGHT = 1e4
# Of what guessing loses on a pixel, log K and a Dice loss of 1: an untrained network loses about once that.
LARGEST_LOSS = 10.0


def require_numbers(losses: Mapping[str, float], where: str, remedy: str) -> None:
    """Raises RunError, with where it was and what helps, for a loss that is no number."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise _diverged(where, f"{name} is {value}", remedy)


def require_bounded_loss(pixel_loss: float, n_classes: int, where: str, remedy: str) -> None:
    """Raises RunError for a mean pixel loss that is far above that of guessing among so many classes."""
    guessing = math.log(n_classes) + 1
    if pixel_loss > LARGEST_LOSS * guessing:
        raise _diverged(where, f"pixel_loss is {pixel_loss:.3g}, that of guessing {guessing:.3g}", remedy)


def require_sound(networks: Mapping[str, nn.Module], where: str, remedy: str) -> None:
    """Raises RunError for a network with a weight that is no number or far too large."""
    for name, network in networks.items():
        require_finite({name: network.state_dict()}, where, remedy)
        if problem := next(_far_too_large(network), None):
            raise _diverged(where, f"the {name}'s {problem}", remedy)


def require_finite(states: Mapping[str, Mapping[str, Tensor]], where: str, remedy: str) -> None:
    """Raises RunError for a state, of a network or its optimiser, with a value that is no number."""
    for owner, tensors in states.items():
        if (name := without_numbers(tensors)) is not None:
            raise _diverged(where, f"the {owner}'s {name} holds values that are no numbers", remedy)


def _far_too_large(network: nn.Module) -> Iterator[str]:
    for name, parameter in network.named_parameters():
        largest = float(parameter.detach().abs().max())
        if largest > LARGEST_WEIGHT:
            yield f"{name} holds values up to {largest:.3g}"


def _diverged(where: str, what: str, remedy: str) -> RunError:
    return RunError(f"training diverged in {where}: {what}; {remedy}")
