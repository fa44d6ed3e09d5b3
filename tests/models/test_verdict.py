"""From a judgement to scores, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from segpipe.confidence.score import SCORE_PARTS, Belief
from segpipe.models.judge import Judge, Judgement, ShownMask
from segpipe.models.verdict import give_verdict
from tests.support.labelled_arrays import plain_spec


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


SPEC = plain_spec(("road", "car", "sky"), (64, 64)).model_copy(update={"iou_rule": "every_class"})


def judge_with(combination: list[float] | None = None) -> Judge:
    judge = Judge("plain", 3, 3)
    if combination:
        judge.combination.copy_(torch.tensor(combination))
    return judge


# One 1x2 mask of two classes out of three, and what is said about it.
SHOWN = ShownMask(
    one_hot=torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]]),
    probabilities=torch.tensor([[[[0.6, 0.0]], [[0.4, 0.5]], [[0.0, 0.5]]]]),
)
# The second label was class 0 when the image was seen again.
AGAIN = torch.tensor([[[0, 0]]])
JUDGEMENT = Judgement(
    realness=torch.tensor([[[[1.0, 4.0]]]]),
    correctness=torch.tensor([[[[logit(0.9), logit(0.6)]]]]),
    presence=torch.tensor([[0.0, 0.0, logit(0.25)]]),
    image_iou=torch.tensor([-0.7]),
    features=torch.zeros(1, 4),
    familiarity=torch.zeros(1),
)
# The first label may be class 1 instead, the second class 2.
CLASS_IOUS = [0.9 / 1, 0.6 / (1 + 0.1)]
EXPECTED_IOU = sum(CLASS_IOUS) / 2.25
OWN_PRECISION = (0.6 + 0.5) * math.sqrt(0.5) / 2.25
# The generator's 0.6 against 0.4 at twice the temperature; its 0.5 against 0.5 stays.
SOFTENED = math.sqrt(0.6) / (math.sqrt(0.6) + math.sqrt(0.4))


@pytest.mark.parametrize(("belief", "sure"), [("plain", 0.6), (None, SOFTENED)])
def test_the_parts_of_the_score_by_hand(belief: Belief | None, sure: float) -> None:
    spec = SPEC.model_copy(update={"belief_kind": belief})
    verdict = give_verdict(judge_with(), JUDGEMENT, SHOWN, AGAIN, spec)
    by_hand = {
        "expected_iou": logit(EXPECTED_IOU),
        "correctness": (logit(0.9) + logit(0.6)) / 2,
        "realness": 2.5,
        "image_iou": -0.7,
        "own_iou": logit((sure / 1 + 0.5 / (1 + 1 - sure)) * math.sqrt(0.5) / 2.25),
        "familiarity": 0.0,
        "own_accuracy": logit((sure + 0.5) / 2),
        "own_precision": logit((sure + 0.5) * math.sqrt(0.5) / 2.25),
        # Each class that is shown is there as surely as its one pixel is right.
        "sure_precision": logit((sure * sure + 0.5 * 0.5) / 2.25),
        # Of class 0 one of two pixels is in both masks, of class 1 none.
        "agreement": logit((1 / 2 + 0) / 2),
    }
    torch.testing.assert_close(verdict.parts, torch.tensor([[by_hand[name] for name in SCORE_PARTS]]))


def test_before_any_fit_the_score_is_half_the_logit_of_the_generators_own_belief() -> None:
    """Generators are too sure of themselves."""
    verdict = give_verdict(judge_with(), JUDGEMENT, SHOWN, AGAIN, SPEC)
    assert verdict.score.item() == pytest.approx(logit(OWN_PRECISION) / 2)


def test_the_score_follows_the_fit_in_the_judges_weights() -> None:
    judge = judge_with([0.5, 2.0, 0.0, 1.0, 3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    verdict = give_verdict(judge, JUDGEMENT, SHOWN, AGAIN, SPEC)
    assert verdict.score.item() == pytest.approx(0.5 + 2 * logit(EXPECTED_IOU) + 2.5 - 2.1)
    assert "combination" in judge.state_dict(), "or it would be lost with the bundle"


def test_class_confidences_are_expected_ious_and_nan_for_a_class_not_in_the_mask() -> None:
    confidences = give_verdict(judge_with(), JUDGEMENT, SHOWN, AGAIN, SPEC).class_confidences
    torch.testing.assert_close(confidences, torch.tensor([[*CLASS_IOUS, torch.nan]]), equal_nan=True)


def test_the_map_is_the_probability_that_each_label_is_right() -> None:
    correctness = give_verdict(judge_with(), JUDGEMENT, SHOWN, AGAIN, SPEC).correctness
    torch.testing.assert_close(correctness, torch.tensor([[[[0.9, 0.6]]]]))


@pytest.mark.parametrize("sureness", [-1e4, 1e4])
def test_the_surest_judgement_gives_a_finite_score(sureness: float) -> None:
    judgement = Judgement(
        realness=torch.full((1, 1, 1, 2), sureness),
        correctness=torch.full((1, 1, 1, 2), sureness),
        presence=torch.full((1, 3), -sureness),
        image_iou=torch.tensor([sureness]),
        features=torch.zeros(1, 4),
        familiarity=torch.zeros(1),
    )
    verdict = give_verdict(judge_with([0.0, *[1.0] * 10]), judgement, SHOWN, AGAIN, SPEC)
    assert torch.isfinite(verdict.score).all()
    assert (verdict.score > 0) == (sureness > 0)
