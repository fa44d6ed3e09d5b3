"""The masks a judge learns from: the generator's own, masks wrong in other ways, and the truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

COARSE_STEPS = (4, 8, 16)


class Source(Enum):
    """Where the mask shown with an image comes from."""

    OWN_UNSEEN = "the generator's mask of an image held back from it"
    OWN_SEEN = "the generator's mask of an image it was taught"
    EARLIER = "the mask of an earlier checkpoint of the generator"
    TRUTH = "the true mask"
    MADE_WRONG = "the true mask, made wrong"
    MISMATCHED = "the mask of another image"


@dataclass(frozen=True)
class Mixture:
    """What a judge is shown. sources: the share of each, summing to 1; the truth is always one of several.

    unseen: of the images whose mask is not the generator's own, the share that is held back from it.
    degraded: the share of all images that is degraded.
    """

    sources: Mapping[Source, float]
    unseen: float
    degraded: float


# In-sample masks hide failures, so the held-back images come most often although they are few.
MIXTURE = Mixture(
    sources={
        Source.OWN_UNSEEN: 0.40,
        Source.OWN_SEEN: 0.25,
        Source.EARLIER: 0.10,
        Source.TRUTH: 0.07,
        Source.MADE_WRONG: 0.12,
        Source.MISMATCHED: 0.06,
    },
    unseen=0.3,
    degraded=0.5,
)


def there_is(mixture: Mixture, *, earlier: bool, seen: bool) -> Mixture:
    """The mixture without what there is not, whose share goes to the generator's masks of unseen images.

    earlier: there are earlier checkpoints. seen: the generator was taught some of the images.
    """
    absent = {Source.EARLIER: not earlier, Source.OWN_SEEN: not seen}
    shares = {source: 0.0 if absent.get(source) else share for source, share in mixture.sources.items()}
    missing = sum(mixture.sources[source] for source in mixture.sources if absent.get(source))
    if not missing:
        return mixture
    shares[Source.OWN_UNSEEN] = shares.get(Source.OWN_UNSEEN, 0.0) + missing
    return replace(mixture, sources=shares, unseen=mixture.unseen if seen else 1.0)


def draw_sources(mixture: Mixture, count: int, draws: random.Random) -> list[Source]:
    """A source for each image of a batch."""
    return draws.choices(list(mixture.sources), list(mixture.sources.values()), k=count)


def draw_unseen(mixture: Mixture, source: Source, draws: random.Random) -> bool:
    """Whether the image of this source is a held back one."""
    if source in (Source.OWN_UNSEEN, Source.OWN_SEEN):
        return source is Source.OWN_UNSEEN
    return draws.random() < mixture.unseen


def shown_labels(
    sources: Sequence[Source],
    own: Tensor,
    earlier: Tensor,
    truth: Tensor,
    n_classes: int,
    draws: random.Random,
) -> Tensor:
    """Class indices (B,h,w) to show; own, earlier and truth (B,h,w) int64, truth without ignored pixels."""
    wrong = {
        Source.OWN_UNSEEN: lambda row: own[row],
        Source.OWN_SEEN: lambda row: own[row],
        Source.EARLIER: lambda row: earlier[row],
        Source.TRUTH: lambda row: truth[row],
        Source.MADE_WRONG: lambda row: make_wrong(truth[row], n_classes, draws),
        # The next image's, which in a batch of one is the image's own: a true mask then.
        Source.MISMATCHED: lambda row: draws.choice((own, truth))[(row + 1) % len(sources)],
    }
    return torch.stack([wrong[source](row) for row, source in enumerate(sources)])


def make_wrong(labels: Tensor, n_classes: int, draws: random.Random) -> Tensor:
    """A wrong copy of a mask (h,w) of class indices: one of four kinds of mistake, drawn uniformly."""
    mistakes: tuple[Callable[[Tensor, random.Random], Tensor], ...] = (
        partial(swap_class, n_classes),
        coarsen,
        move_patches,
        shift,
    )
    return draws.choice(mistakes)(labels, draws)


def swap_class(n_classes: int, labels: Tensor, draws: random.Random) -> Tensor:
    """One class of the mask called another."""
    shown = int(labels.flatten()[draws.randrange(labels.numel())])
    return labels.where(labels != shown, draws.randrange(n_classes))


def coarsen(labels: Tensor, draws: random.Random) -> Tensor:
    """The mask as a far smaller one would show it."""
    step = draws.choice(COARSE_STEPS)
    small = labels[step // 2 :: step, step // 2 :: step]
    return functional.interpolate(small[None, None].float(), size=labels.shape)[0, 0].long()


def move_patches(labels: Tensor, draws: random.Random) -> Tensor:
    """One to four rectangles, an eighth to half of the sides, shown in another place."""
    wrong = labels.clone()
    height, width = labels.shape
    for _ in range(draws.randint(1, 4)):
        tall, wide = (draws.randint(max(1, side // 8), max(1, side // 2)) for side in (height, width))
        (top, other_top), (left, other_left) = (
            (draws.randint(0, side - size), draws.randint(0, side - size))
            for side, size in ((height, tall), (width, wide))
        )
        wrong[top : top + tall, left : left + wide] = labels[
            other_top : other_top + tall, other_left : other_left + wide
        ]
    return wrong


def shift(labels: Tensor, draws: random.Random) -> Tensor:
    """The mask moved by up to an eighth of its sides, round the edges."""
    down, right = (draws.randint(-(side // 8), side // 8) for side in labels.shape)
    return labels.roll((down, right), dims=(0, 1))
