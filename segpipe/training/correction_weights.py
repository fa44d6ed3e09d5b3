"""How many masks of an OUTPUT each reviewed one stands for, when people have seen only a part of them.

A model's masks are three strata, whose sizes the manifest and the queues' records tell:

- accepted ones, of which people see the audits: each stands for 1 / audit share;
- of those sent to review, what a queue's order has chosen. No chance says what else it is like: it stands for
  its own stratum alone;
- all others sent to review, of which the queues have drawn some at random: each stands for 1 / the chance to
  have been drawn by now, in any of the queues since its mask is there.

Within a stratum the figures are scaled to its size, which is known. So masks that nobody has answered yet, or
that have no final mask since they were skipped or rejected, are stood for by the others of their stratum, and
the strata weigh what they are in the bucket (Horvitz and Thompson 1952; Holt and Smith 1979, "Post
Stratification"; Särndal, Swensson and Wretman 1992, "Model Assisted Survey Sampling", chapters 3, 7 and 15).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from segpipe.manifests.queues import Selected

Stratum = Literal["accepted", "chosen", "drawn"]


@dataclass(frozen=True)
class FinalMask:
    """A reviewed mask that can be learnt from; audit_share (0 to 1) is that of an audited one's run."""

    item_id: str
    model_id: str
    is_audit: bool
    audit_share: float


@dataclass(frozen=True)
class Population:
    """How many masks of one model were accepted and sent to review; `taken` of the latter a queue's order has
    chosen, or someone has decided without any queue."""

    accepted: int
    review: int
    taken: int


def stood_for(
    masks: Sequence[FinalMask], populations: Mapping[str, Population], selected: Selected
) -> list[float] | None:
    """So many masks each stands for, at least 1; None where the records say too little to tell.

    That is where a model has masks to review that no order has chosen, and none of those drawn is in `masks`;
    and where no queue has left a record.
    """
    if not selected.selections:
        return None
    places = [_stratum(mask, selected) for mask in masks]
    inverses = [_inverse(mask, place, selected) for mask, place in zip(masks, places, strict=True)]
    cells = [(mask.model_id, place) for mask, place in zip(masks, places, strict=True)]
    reviewed_models = {model for model, place in cells if place != "accepted"}
    if any((model, "drawn") not in cells and _rest(_of(populations, model)) for model in reviewed_models):
        return None
    totals: dict[tuple[str, Stratum], float] = {}
    for cell, inverse in zip(cells, inverses, strict=True):
        totals[cell] = totals.get(cell, 0.0) + inverse
    return [
        max(1.0, inverse * _size(_of(populations, cell[0]), cell[1]) / totals[cell])
        for cell, inverse in zip(cells, inverses, strict=True)
    ]


def _stratum(mask: FinalMask, selected: Selected) -> Stratum:
    if mask.is_audit:
        return "accepted"
    is_drawn = mask.item_id in selected.draws and mask.item_id not in selected.chosen
    return "drawn" if is_drawn else "chosen"


def _inverse(mask: FinalMask, stratum: Stratum, selected: Selected) -> float:
    """Of the chance to be shown, up to a factor that all of the stratum share."""
    if stratum == "accepted":
        return 1 / mask.audit_share
    if stratum == "chosen":
        return 1.0
    return 1 / selected.probability(mask.model_id, selected.draws[mask.item_id].since)


def _size(population: Population, stratum: Stratum) -> int:
    return {"accepted": population.accepted, "chosen": population.taken, "drawn": _rest(population)}[stratum]


def _of(populations: Mapping[str, Population], model_id: str) -> Population:
    """None is left of a model whose images were all replaced."""
    return populations.get(model_id, Population(0, 0, 0))


def _rest(population: Population) -> int:
    return population.review - population.taken
