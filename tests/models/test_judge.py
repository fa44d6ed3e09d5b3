"""A judge starts from what generator and adversary know, and says something finite about any mask."""

from __future__ import annotations

import math

import pytest
import torch

from segpipe.kinds import ARCHITECTURES
from segpipe.models.discriminators.protocol import build_adversary
from segpipe.models.judge import Judge, Judgement, ShownMask, show
from segpipe.models.masks import mask_channels

KINDS = [("unet", 2), ("unet", 11), ("plain", 2), ("plain", 11)]


def new_judge(architecture: str, n_classes: int, seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    return Judge(architecture, ARCHITECTURES[architecture].mask_channels(n_classes), n_classes).eval()


def taught_judge(architecture: str, n_classes: int) -> Judge:
    """A judge that has a mind of its own: its correction is not zero any more."""
    judge = new_judge(architecture, n_classes)
    torch.nn.init.normal_(judge.correction.weight)
    return judge


def drawn(
    n_classes: int, height: int = 16, width: int = 32, count: int = 2
) -> tuple[torch.Tensor, ShownMask]:
    draws = torch.Generator().manual_seed(1)
    image = torch.randn(count, 3, height, width, generator=draws)
    return image, show(torch.randn(count, n_classes, height, width, generator=draws))


def values_of(judgement: Judgement) -> list[torch.Tensor]:
    return [judgement.realness, judgement.correctness, judgement.presence, judgement.image_iou]


def test_a_shown_mask_is_the_likeliest_class_with_the_probabilities_of_all() -> None:
    shown = show(torch.tensor([[[[math.log(3.0), 0.0]], [[0.0, math.log(9.0)]]]]))
    assert shown.one_hot.tolist() == [[[[1, 0]], [[0, 1]]]]
    torch.testing.assert_close(shown.probabilities, torch.tensor([[[[0.75, 0.1]], [[0.25, 0.9]]]]))


@pytest.mark.parametrize(("architecture", "n_classes"), KINDS)
def test_an_untaught_judge_believes_the_generator_pixel_by_pixel(architecture: str, n_classes: int) -> None:
    image, shown = drawn(n_classes)
    correctness = new_judge(architecture, n_classes)(image, shown).correctness
    largest = shown.probabilities.amax(dim=1, keepdim=True)
    torch.testing.assert_close(correctness, (largest / (1 - largest)).log())


def test_of_a_mask_that_is_not_the_generators_own_it_believes_what_the_generator_gives_that_mask() -> None:
    image, shown = drawn(3)
    labels = torch.randint(3, (2, 16, 32), generator=torch.Generator().manual_seed(2))
    other = ShownMask(mask_channels(labels, 3, ignore_index=-1), shown.probabilities)
    given = shown.probabilities.gather(1, labels.unsqueeze(1))
    torch.testing.assert_close(new_judge("unet", 3)(image, other).correctness, torch.logit(given))


@pytest.mark.parametrize(("architecture", "n_classes"), KINDS)
def test_a_judge_with_the_adversarys_weights_gives_its_verdict_on_what_is_real(
    architecture: str, n_classes: int
) -> None:
    channels = ARCHITECTURES[architecture].mask_channels(n_classes)
    adversary, judge = build_adversary(architecture, channels).eval(), new_judge(architecture, n_classes)
    judge.adversary.load_state_dict(adversary.state_dict())
    image, shown = drawn(n_classes)
    mask = shown.one_hot[:, 1:] if channels == 1 else shown.one_hot
    torch.testing.assert_close(judge(image, shown).realness, adversary(image, mask))


@pytest.mark.parametrize(("architecture", "n_classes"), KINDS)
@pytest.mark.parametrize("size", [(16, 16), (16, 48), (80, 32)])
def test_shapes_follow_the_mask(architecture: str, n_classes: int, size: tuple[int, int]) -> None:
    image, shown = drawn(n_classes, *size, count=3)
    judgement = taught_judge(architecture, n_classes)(image, shown)
    stride = 4 if architecture == "unet" else 1
    assert judgement.realness.shape == (3, 1, size[0] // stride, size[1] // stride)
    assert judgement.correctness.shape == (3, 1, *size)
    assert judgement.presence.shape == (3, n_classes)
    assert judgement.image_iou.shape == (3,)
    assert {value.dtype for value in values_of(judgement)} == {torch.float32}


@pytest.mark.parametrize(("architecture", "n_classes"), KINDS)
@pytest.mark.parametrize("level", [0.0, -2.1, 2.6])
def test_a_constant_image_of_one_class_that_is_sure_beyond_measure_gets_a_finite_judgement(
    architecture: str, n_classes: int, level: float
) -> None:
    judge = taught_judge(architecture, n_classes)
    logits = torch.zeros(1, n_classes, 16, 16)
    logits[:, 1] = 1e6
    judgement = judge(torch.full((1, 3, 16, 16), level), show(logits))
    assert all(torch.isfinite(value).all() for value in values_of(judgement))
    sum(value.sum() for value in values_of(judgement)).backward()
    assert all(torch.isfinite(p.grad).all() for p in judge.parameters() if p.grad is not None)


def test_a_label_that_the_generator_rules_out_gets_a_finite_judgement() -> None:
    logits = torch.zeros(1, 3, 16, 16)
    logits[:, 1] = 1e6
    wrong = ShownMask(mask_channels(torch.zeros(1, 16, 16), 3, -1), logits.softmax(dim=1))
    judgement = taught_judge("unet", 3)(torch.zeros(1, 3, 16, 16), wrong)
    assert all(torch.isfinite(value).all() for value in values_of(judgement))


@pytest.mark.parametrize("architecture", ["unet", "plain"])
def test_a_taught_judge_looks_at_image_mask_and_probabilities(architecture: str) -> None:
    judge = taught_judge(architecture, 3)
    image, shown = drawn(3)
    judged = judge(image, shown)
    others = {
        "image": judge(image.flip(0), shown),
        "mask": judge(image, ShownMask(shown.one_hot.flip(0), shown.probabilities)),
        "probabilities": judge(image, ShownMask(shown.one_hot, shown.probabilities.flip(0))),
    }
    for name, other in others.items():
        assert not torch.allclose(judged.correctness, other.correctness), name
        assert not torch.allclose(judged.image_iou, other.image_iou), name
    torch.testing.assert_close(judged.realness, others["probabilities"].realness)


def test_an_image_is_judged_alike_in_any_company() -> None:
    judge = taught_judge("unet", 3)
    image, shown = drawn(3, count=3)
    together = judge(image, shown)
    for row in range(3):
        one = slice(row, row + 1)
        alone = judge(image[one], ShownMask(shown.one_hot[one], shown.probabilities[one]))
        for whole, part in zip(values_of(together), values_of(alone), strict=True):
            torch.testing.assert_close(whole[one], part, rtol=1e-4, atol=1e-4)


def test_a_fit_of_four_parts_is_one_of_more_of_which_the_others_weigh_nothing() -> None:
    """So a bundle from before there were more scores as it did."""
    old, new = new_judge("unet", 3), new_judge("unet", 3)
    state = old.state_dict() | {"combination": torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4])}
    new.load_state_dict({name: tensor for name, tensor in state.items() if "familiarity" not in name})
    assert new.combination.tolist() == pytest.approx([0.1, 0.9, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(RuntimeError, match="combination"):
        new.load_state_dict(old.state_dict() | {"combination": torch.zeros(3)})


@pytest.mark.parametrize(
    "known",
    [
        [0.1, 0.9, 0.0, 0.0, 0.0, 0.4, 1.0],
        [0.1, 0.9, 0.0, 0.0, 0.0, 0.4, 1.0, 0.5],
        [0.1, 0.9, 0.0, 0.0, 0.0, 0.4, 1.0, 0.5, 0.25],
    ],
)
def test_a_fit_that_knew_familiarity_keeps_what_is_familiar_to_it(known: list[float]) -> None:
    old, new = new_judge("unet", 3), new_judge("unet", 3)
    old.familiarity.radius.fill_(2.5)
    new.load_state_dict(old.state_dict() | {"combination": torch.tensor(known)})
    assert new.combination.tolist() == pytest.approx(known + [0.0] * (11 - len(known)))
    assert new.familiarity.radius == 2.5
