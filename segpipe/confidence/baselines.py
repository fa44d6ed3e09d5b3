"""Cheap rivals of the discriminator: confidence read from the generator's own probabilities.

Every function takes class probabilities (B, K, H, W), K >= 2, that sum to 1 over K, and returns (B,) float32
from 0 to 1, higher meaning surer. The mask is always their argmax.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def max_softmax(probabilities: Tensor) -> Tensor:
    """Mean over the pixels of the largest class probability, (B, K, H, W) -> (B,), from 1/K to 1.

    Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and out-of-distribution examples".
    """
    return probabilities.float().amax(dim=1).mean(dim=(1, 2))


def entropy(probabilities: Tensor) -> Tensor:
    """One minus the mean pixel entropy over log K, (B, K, H, W) -> (B,): 1 is sure, 0 is uniform."""
    n_classes = probabilities.shape[1]
    nats = torch.special.entr(probabilities.float()).sum(dim=1).mean(dim=(1, 2))
    return 1 - nats / math.log(n_classes)


def soft_dice(probabilities: Tensor) -> Tensor:
    """Soft Dice between probabilities and their own argmax mask, (B, K, H, W) -> (B,).

    Mean over the predicted classes c of 2 sum(p_c [y=c]) / sum(p_c + [y=c]): Borges et al. 2024, "Soft Dice
    Confidence", averaged over classes. Over K classes the argmax gives every pixel to some class, the
    background being one of them, so the paper's empty prediction (which scores lowest) cannot occur: an image
    of nothing but background scores by how sure its background is.
    """
    probabilities = probabilities.float()
    shown = _one_hot_argmax(probabilities)
    return _mean_over_classes(_dice(probabilities, shown), present=shown.any(dim=(2, 3)))


def soft_iou(probabilities: Tensor) -> Tensor:
    """The IoU that the generator's own probabilities let expect of their argmax mask, (B, K, H, W) -> (B,).

    Mean over the predicted classes c of sum(p_c [y=c]) / sum(max(p_c, [y=c])): expected intersection over
    expected union. It is score.expected_class_ious where each label is right as surely as its probability.
    """
    probabilities = probabilities.float()
    shown = _one_hot_argmax(probabilities)
    expected = (probabilities * shown).sum(dim=(2, 3))
    union = torch.maximum(probabilities, shown.float()).sum(dim=(2, 3))
    ious = expected / union.clamp_min(torch.finfo(union.dtype).tiny)
    return _mean_over_classes(ious, present=shown.any(dim=(2, 3)))


def flip_tta(probabilities: Tensor, flipped_probabilities: Tensor) -> Tensor:
    """Dice between an image's mask and that of its mirror image, (B, K, H, W) twice -> (B,).

    `flipped_probabilities` is the generator's output for the images flipped left to right, as it came out: it
    is flipped back here. Mean over the classes in either mask. Wang et al. 2019, "Aleatoric uncertainty
    estimation with test-time augmentation".
    """
    mask = _one_hot_argmax(probabilities)
    flipped_back = _one_hot_argmax(flipped_probabilities.flip(-1))
    either = mask.any(dim=(2, 3)) | flipped_back.any(dim=(2, 3))
    return _mean_over_classes(_dice(mask.float(), flipped_back), present=either)


def _one_hot_argmax(probabilities: Tensor) -> Tensor:
    n_classes = probabilities.shape[1]
    return F.one_hot(probabilities.argmax(dim=1), n_classes).permute(0, 3, 1, 2).bool()


def _dice(first: Tensor, second: Tensor) -> Tensor:
    overlap = (first * second).sum(dim=(2, 3))
    size = first.sum(dim=(2, 3)) + second.sum(dim=(2, 3))
    return 2 * overlap / size.clamp_min(torch.finfo(first.dtype).tiny)


def _mean_over_classes(values: Tensor, present: Tensor) -> Tensor:
    return (values * present).sum(dim=1) / present.sum(dim=1)
