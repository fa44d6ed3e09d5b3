"""The discriminator in its second life: how right a mask is, pixel by pixel and as a whole.

Its trunk is one like the game's, which tells true masks from others; beside that it reads the generator's
probabilities, so it starts from what the generator itself believes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.confidence.combination import UNFITTED
from segpipe.confidence.score import SCORE_PARTS
from segpipe.models.discriminators.protocol import Adversary, build_adversary
from segpipe.models.familiarity import Familiarity
from segpipe.models.masks import mask_channels

HIDDEN = 64
POOLED_HIDDEN = 64
# Of a combination, in bundles from before the score had more parts.
EARLIER_LENGTHS = (5, 7, 8, 9)
# Probabilities are kept off 0 and 1, where their logits have no end.
SMALLEST_PROBABILITY = 1e-4
SMALLEST_FLOAT = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ShownMask:
    """A mask, one_hot (B,K,h,w), and what the generator believes, probabilities (B,K,h,w)."""

    one_hot: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Judgement:
    """What the judge says about B masks of K classes; all logits, float32.

    realness (B,1,a,b): a true mask, not a made one. correctness (B,1,h,w): the label shown is right, on the
    mask's grid. presence (B,K): the truth has the class. image_iou (B,): the image's mean IoU. But features
    (B,F), which the last two are read from in part, and familiarity (B,), what it makes of them.
    """

    realness: Tensor
    correctness: Tensor
    presence: Tensor
    image_iou: Tensor
    features: Tensor
    familiarity: Tensor


class Judge(nn.Module):
    """(image, mask, generator's probabilities) to a Judgement, for one generator whose mask it judges.

    Correctness is a correction of the generator's own logit: the coarse map says where the generator is too
    sure or not sure enough, and the fine edges stay the generator's.
    """

    def __init__(self, discriminator: str, channels: int, n_classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.adversary: Adversary = build_adversary(discriminator, channels)
        self.first = nn.Conv2d(self.adversary.feature_channels + n_classes + 3, HIDDEN, 3, padding=1)
        self.wider = nn.ModuleList(
            [nn.Conv2d(HIDDEN, HIDDEN, 3, padding=dilation, dilation=dilation) for dilation in (2, 4)]
        )
        self.correction = nn.Conv2d(HIDDEN, 1, 1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]
        self.own_belief = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.image = nn.Sequential(
            nn.Linear(2 * HIDDEN + 3 * n_classes + 2, POOLED_HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(POOLED_HIDDEN, 1 + n_classes),
        )
        # The monotone fit of the score's parts: a bias, then a weight per part.
        self.register_buffer("combination", torch.tensor(UNFITTED, dtype=torch.float32))
        self.combination: Tensor
        self.familiarity = Familiarity(2 * HIDDEN)
        self.register_load_state_dict_pre_hook(_with_all_parts)

    def forward(self, image: Tensor, shown: ShownMask) -> Judgement:
        """image (B,3,h,w) normalised, on the mask's grid."""
        # The original recipe's one channel is that of the second of two classes.
        mask = shown.one_hot if self.channels > 1 else shown.one_hot[:, 1:]
        features = self.adversary.features(image, mask)
        belief, doubt = _shown_logit(shown), _entropy(shown.probabilities)
        hidden = self._hidden(features, shown, belief, doubt)
        correction = functional.interpolate(
            self.correction(hidden), size=belief.shape[-2:], mode="bilinear", align_corners=False
        )
        pooled = _pooled(hidden, shown, belief, doubt)
        image_wide, features_seen = self.image(pooled).float(), pooled[:, : 2 * HIDDEN].float()
        return Judgement(
            realness=self.adversary.head(features).float(),
            correctness=correction.float() + self.own_belief[0] * belief + self.own_belief[1],
            presence=image_wide[:, 1:],
            image_iou=image_wide[:, 0],
            features=features_seen,
            familiarity=self.familiarity(features_seen),
        )

    def _hidden(self, features: Tensor, shown: ShownMask, belief: Tensor, doubt: Tensor) -> Tensor:
        stride = self.adversary.feature_stride
        weakest = -functional.max_pool2d(-belief, stride)
        mean = (functional.avg_pool2d(fine, stride) for fine in (shown.probabilities, belief / 3, doubt))
        # A third brings the logits to the range of the other channels.
        hidden = functional.leaky_relu(self.first(torch.cat([features, *mean, weakest / 3], dim=1)), 0.2)
        for layer in self.wider:
            hidden = hidden + functional.leaky_relu(layer(hidden), 0.2)
        return hidden


def _with_all_parts(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    """What a segpipe has kept that knew fewer parts: those that it did not know weigh nothing, and where it
    knew no familiarity everything is familiar."""
    known = state.get(f"{prefix}combination")
    if known is None or len(known) not in EARLIER_LENGTHS:
        return
    state[f"{prefix}combination"] = functional.pad(known, (0, 1 + len(SCORE_PARTS) - len(known)))
    if len(known) == EARLIER_LENGTHS[0]:
        for name, tensor in Familiarity(2 * HIDDEN).state_dict().items():
            state[f"{prefix}familiarity.{name}"] = tensor


class Discriminator(nn.Module):
    """Both lives of the discriminator: as the game left it, and as the judge, which began afresh.

    adversary: None where there was no game.
    """

    def __init__(self, discriminator: str, channels: int, n_classes: int, *, has_played: bool) -> None:
        super().__init__()
        self.adversary: Adversary | None = build_adversary(discriminator, channels) if has_played else None
        self.judge = Judge(discriminator, channels, n_classes)


def on_judged_grid(logits: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Class logits (B,K,h,w) of images of a size (H, W), on the grid (H/stride, W/stride)."""
    grid = size[0] // stride, size[1] // stride
    if logits.shape[-2:] == grid:
        return logits
    return functional.interpolate(logits, size=grid, mode="bilinear", align_corners=False)


def show(logits: Tensor) -> ShownMask:
    """The mask that class logits (B,K,h,w) make, with their probabilities."""
    return shown_as(logits.argmax(dim=1), logits)


def shown_as(labels: Tensor, logits: Tensor) -> ShownMask:
    """The mask of these labels (B,h,w), with the probabilities of class logits (B,K,h,w)."""
    return ShownMask(mask_channels(labels, logits.shape[1], ignore_index=-1), logits.softmax(dim=1))


def _shown_logit(shown: ShownMask) -> Tensor:
    probability = (shown.probabilities * shown.one_hot).sum(dim=1, keepdim=True)
    return torch.logit(probability, eps=SMALLEST_PROBABILITY)


def _entropy(probabilities: Tensor) -> Tensor:
    # torch.special.entr takes three times as long.
    logarithms = probabilities.clamp(min=SMALLEST_FLOAT).log_()
    nats = -logarithms.mul_(probabilities).sum(dim=1, keepdim=True)
    return nats / math.log(probabilities.shape[1])


def _pooled(hidden: Tensor, shown: ShownMask, belief: Tensor, doubt: Tensor) -> Tensor:
    over_image = (2, 3)
    return torch.cat(
        [
            hidden.mean(over_image),
            hidden.amax(over_image),
            shown.one_hot.mean(over_image),
            shown.probabilities.mean(over_image),
            shown.probabilities.amax(over_image),
            doubt.mean(over_image),
            belief.mean(over_image),
        ],
        dim=1,
    )
