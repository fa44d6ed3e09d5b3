"""A network of others as a generator: classes and images brought to ours, by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from random_model import SPEC
from torch import nn

from segpipe.errors import ModelError
from segpipe.models.bundle import ModelSpec
from segpipe.models.class_map import by_name
from segpipe.models.foreign_check import make_test_vector
from segpipe.models.generators.foreign import ForeignGenerator, ForeignSpec, in_classes, two_at_least
from segpipe.models.judge import on_judged_grid

FOREIGN = ForeignSpec(
    files={"model.onnx": "0" * 64},
    classes=("a", "b", "c"),
    class_map=(0, 1, 2),
    values="logits",
    channels="rgb",
    mean=(0.5, 0.5, 0.5),
    standard_deviation=(0.25, 0.25, 0.25),
    output_stride=1,
    one_size=False,
)


def pixel(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def test_several_classes_to_one_add_up_their_probabilities() -> None:
    foreign = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mapped = in_classes(pixel(*foreign.log().tolist()), (1, 0, 1, 0), 2).softmax(dim=1)
    assert mapped.flatten().tolist() == pytest.approx([0.6, 0.4])


def test_an_ignored_class_leaves_its_probability_to_the_others_and_an_absent_one_is_never_shown() -> None:
    foreign = torch.tensor([0.5, 0.2, 0.3])
    mapped = in_classes(pixel(*foreign.log().tolist()), (None, 2, 0), 3).softmax(dim=1)
    assert mapped.flatten().tolist() == pytest.approx([0.6, 0.0, 0.4])
    assert mapped.isfinite().all()


def test_one_output_is_the_second_of_two_classes() -> None:
    assert two_at_least(pixel(1.5), "logits").flatten().tolist() == [0, 1.5]
    shown = two_at_least(pixel(0.8), "probabilities").softmax(dim=1)
    assert shown.flatten().tolist() == pytest.approx([0.2, 0.8])
    assert two_at_least(pixel(0.0, 1.0), "probabilities").isfinite().all()


@pytest.mark.parametrize(("channels", "order"), [("rgb", (0, 1, 2)), ("bgr", (2, 1, 0))])
def test_images_reach_the_network_in_its_own_normalisation_and_order(
    channels: str, order: tuple[int, int, int]
) -> None:
    own = {"channels": channels, "mean": (0.1, 0.2, 0.3), "standard_deviation": (0.5, 1.0, 2.0)}
    spec = FOREIGN.model_copy(update=own)
    given = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    colours = torch.tensor([0.9, 0.6, 0.3])
    image = ((colours - torch.tensor(given[0])) / torch.tensor(given[1])).view(1, 3, 1, 1)
    seen = ForeignGenerator(nn.Identity(), spec, given, 3)(image).flatten()
    expected = (colours[list(order)] - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(seen, expected)


def test_it_labels_in_float32_where_others_do_not_and_learns_as_they_do() -> None:
    generator = ForeignGenerator(nn.Conv2d(3, 3, 1), FOREIGN, (FOREIGN.mean, FOREIGN.standard_deviation), 3)
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = generator.eval()(image)
        halved = generator.network(image)
        assert torch.equal(generator.train()(image), halved.float())
    with torch.no_grad():
        assert torch.equal(inside, generator.network(image))
    assert halved.dtype == torch.bfloat16, "which the network alone would have done"


@pytest.mark.parametrize(("stride", "judged"), [(1, 2), (2, 2), (4, 4), (32, 4)])
def test_masks_are_judged_at_a_half_to_a_quarter(stride: int, judged: int) -> None:
    spec = FOREIGN.model_copy(update={"output_stride": stride})
    assert ForeignGenerator(nn.Identity(), spec, ((0,) * 3, (1,) * 3), 3).judged_stride == judged
    logits = torch.rand(1, 3, 64 // stride, 32 // stride)
    assert on_judged_grid(logits, (64, 32), judged).shape == (1, 3, 64 // judged, 32 // judged)


def test_the_same_names_are_the_same_classes_and_numbers_stand_for_nameless_ones() -> None:
    assert by_name(("sky", "road"), ("road", "sky"), 0) == (1, 0)
    assert by_name(("LABEL_0", "LABEL_1"), ("road", "sky"), 0) == (0, 1)
    assert by_name(("0", "1"), ("road", "sky"), 0) == (0, 1)


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        ({"class_map": (0, 1)}, "class_map has another length"),
        ({"class_map": (0, 1, 3)}, "class_map names a class that is none"),
        ({"files": {"../model.onnx": "0" * 64}}, "files"),
        ({"files": {}}, "files"),
        ({"standard_deviation": (0, 1, 1)}, "standard_deviation"),
        ({"output_stride": 0}, "output_stride"),
    ],
)
def test_a_spec_that_no_network_can_have_is_refused(foreign: dict[str, object], said: str) -> None:
    values = SPEC.model_dump() | {"architecture": "onnx", "shown_masks": None}
    with pytest.raises(ValidationError, match=said):
        ModelSpec(**(values | {"foreign": FOREIGN.model_dump() | foreign}))


def test_only_adopted_models_have_a_foreign_generator() -> None:
    values = SPEC.model_dump()
    with pytest.raises(ValidationError, match="goes with the architectures of adopted generators"):
        ModelSpec(**(values | {"foreign": FOREIGN.model_dump()}))
    with pytest.raises(ValidationError, match="goes with the architectures of adopted generators"):
        ModelSpec(**(values | {"architecture": "onnx"}))


def test_a_network_whose_outputs_are_no_numbers_gets_no_test_vector() -> None:
    class NoNumbers(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.log()  # of what is black: below 0

    with pytest.raises(ModelError, match="outputs for its test images are no numbers"):
        make_test_vector(NoNumbers(), (32, 64), (0.5,) * 3, (0.25,) * 3, "cpu")  # type: ignore[arg-type]
