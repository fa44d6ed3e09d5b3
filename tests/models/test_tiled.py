"""Images labelled at their own scale, tile by tile: what comes out is what one pass would have said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import segpipe
from segpipe.confidence.score import SCORE_PARTS
from segpipe.evaluation.scores import score_images
from segpipe.models import tiled
from segpipe.models.bundle import Bundle, ModelSpec
from segpipe.models.full_size import Part, _part_on_device, full_size_mask, part_of_mask
from segpipe.models.inference import FinishedMask
from segpipe.models.judge import Discriminator
from segpipe.models.labeler import Labeled, Labeler
from segpipe.models.tiled_logits import whole_image
from segpipe.tiles import pixels_of

TILE = {"tile": (64, 96), "margin": 16}


@pytest.fixture(scope="module")
def fitted(trained_model: str) -> Labeler:
    return segpipe.load_model(trained_model, "cpu")


def with_spec(labeler: Labeler, **changes: object) -> Labeler:
    spec = ModelSpec.model_validate(labeler.bundle.spec.model_dump() | changes)
    card = labeler.bundle.card.model_copy(update={"spec": spec})
    return replace(labeler, bundle=replace(labeler.bundle, card=card))


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of colour, so that masks have borders."""
    draws = np.random.default_rng(seed)
    blocks = draws.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]


def one(labeler: Labeler, image: np.ndarray) -> Labeled:
    (labeled,) = labeler.label([image])
    return labeled


@pytest.mark.parametrize("belief", ["plain", None])
def test_one_tile_says_what_a_fitted_pass_says(fitted: Labeler, belief: str | None) -> None:
    image, spec = scene(64, 96), {"working_size": (64, 96), "belief_kind": belief}
    whole = one(with_spec(fitted, **spec), image)
    in_tiles = one(with_spec(fitted, **spec, scale=1.0, **TILE), image)
    assert np.array_equal(in_tiles.mask, whole.mask)
    assert in_tiles.discriminator_score == pytest.approx(whole.discriminator_score, abs=2e-3)
    np.testing.assert_allclose(in_tiles.class_confidences, whole.class_confidences, atol=1e-3)
    np.testing.assert_allclose(in_tiles.confidence_map, whole.confidence_map, atol=1e-3)


@pytest.mark.parametrize("tiles", [{}, {"scale": 1.0, **TILE}], ids=["whole", "tiled"])
def test_the_score_of_a_bundle_that_names_no_belief_takes_it_softened(
    fitted: Labeler, tiles: dict[str, object]
) -> None:
    assert fitted.bundle.spec.belief_kind == "plain"
    plain, unnamed = (
        one(with_spec(fitted, working_size=(64, 96), belief_kind=belief, **tiles), scene(64, 96))
        for belief in ("plain", None)
    )
    assert np.array_equal(plain.mask, unnamed.mask)
    assert plain.discriminator_score > unnamed.discriminator_score + 0.01


class Local(torch.nn.Module):
    """A generator that sees two pixels across: whatever the tile, the logits are the same."""

    output_stride = judged_stride = 2
    size_multiple = 16

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image, 2) * 5


class LocalOfMany(Local):
    """The same of as many classes, each another mixture of the colours."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.mixtures = torch.randn(n_classes, 3, generator=torch.Generator().manual_seed(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,bchw->bkhw", self.mixtures, super().forward(image))


def test_the_second_looks_at_tiles_add_up_to_that_at_the_whole(fitted: Labeler) -> None:
    draws = np.random.default_rng(5)
    image = (scene(128, 192) // 2 + draws.integers(0, 128, (128, 192, 3))).astype(np.uint8)
    place = SCORE_PARTS.index("agreement")
    found = []
    for tile in ((64, 96), (128, 192)):
        spec = {"scale": 1.0, "tile": tile, "margin": 16, "second_look": "half"}
        bundle = replace(with_spec(fitted, **spec).bundle, generator=LocalOfMany(len(fitted.classes)))
        (judged,) = tiled.judge_scaled(bundle, [tiled.prepare_scaled(bundle, image)], "cpu")
        found.append(float(judged.parts[place]))
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert -5 < found[0] < 5, "some labels are others the second time"


@pytest.mark.parametrize("shape", [(150, 230), (64, 97), (31, 500), (1, 1), (1, 300), (199, 3)])
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_mask_has_no_seams(fitted: Labeler, shape: tuple[int, int], scale: float) -> None:
    """Against the logits of the whole image in one piece, raised by torch."""
    bundle = replace(with_spec(fitted, scale=scale, **TILE).bundle, generator=Local())
    image = scene(*shape)
    assert np.mean(masks_of(bundle, image) != by_torch(bundle, image)) < 0.002


def masks_of(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    """The mask alone, as the tiles' logits make it."""
    prepared = tiled.prepare_scaled(bundle, image)
    size = prepared.pixels.shape[0], prepared.pixels.shape[1]
    tiles, mask = tiled.tiles_of(bundle, size), np.full(image.shape[:2], 255, np.uint8)
    for tile in tiles.tiles:
        logits = logits_of(pixels_of(prepared.pixels, tile, tiles.size))
        tiled._place_mask(bundle, mask, size, tile, (logits, logits.argmax(dim=0).to(torch.uint8)))
    return mask


def logits_of(pixels: np.ndarray) -> torch.Tensor:
    return Local()(torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255)))[0]


def by_torch(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    pixels = tiled.prepare_scaled(bundle, image).pixels
    even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
    logits = logits_of(even)[None]
    places = []
    for own, length, cells in zip(image.shape[:2], pixels.shape[:2], logits.shape[2:], strict=True):
        position = (np.arange(own) + 0.5) * length / own / 2 - 0.5
        places.append(torch.from_numpy((2 * position + 1) / cells - 1).float())
    down, across = torch.meshgrid(*places, indexing="ij")
    raised = torch.nn.functional.grid_sample(
        logits,
        torch.stack([across, down], dim=-1)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return raised[0].argmax(0).numpy().astype(np.uint8)


def test_a_part_of_a_mask_is_that_part_on_every_device() -> None:
    logits = torch.randn(5, 20, 31, generator=torch.Generator().manual_seed(1))
    labels = logits.argmax(0).to(torch.uint8)
    whole = full_size_mask(logits, labels, (57, 90))
    # Grid rows 4 to 16 and columns 6 to 30 are at hand, for pixels 20 to 40 and 25 to 80.
    part = Part((20 / 57, 20, 4, 20), (31 / 90, 25, 6, 55))
    at_hand = logits[:, 4:17, 6:31]
    expected = whole[20:40, 25:80]
    assert np.array_equal(part_of_mask(at_hand, at_hand.argmax(0).to(torch.uint8), part), expected)
    assert np.array_equal(_part_on_device(at_hand, part).numpy(), expected)


def test_tiles_add_up_to_the_image(fitted: Labeler) -> None:
    """With what the networks say fixed by pixel, cells that several tiles see count once."""
    labeler = with_spec(fitted, working_size=(64, 96), scale=1.0, **TILE)
    image = scene(150, 230)
    labeled, (judged,) = one(labeler, image), labeler.judge([labeler.prepare(image)])
    assert isinstance(judged, FinishedMask)
    assert labeled.confidence_map.shape == (75, 115)
    # The mean of the correctness logits is that of the map, which holds each cell once.
    logits = np.log(labeled.confidence_map / (1 - labeled.confidence_map))
    assert float(judged.parts[1]) == pytest.approx(logits.mean(), abs=1e-2)
    assert math.isfinite(labeled.discriminator_score)
    assert labeled.class_fractions.sum() == pytest.approx(1)


def test_images_that_share_passes_do_not_change_each_other(fitted: Labeler) -> None:
    labeler = with_spec(fitted, working_size=(64, 96), scale=1.3, **TILE)
    images = [scene(*shape, seed) for seed, shape in enumerate([(150, 230), (40, 30), (64, 200), (1, 1)])]
    for image, together in zip(images, labeler.label(images), strict=True):
        alone = one(labeler, image)
        assert np.mean(alone.mask != together.mask) < 0.001
        assert alone.discriminator_score == pytest.approx(together.discriminator_score, abs=2e-3)


def test_a_pass_that_is_too_much_is_halved(fitted: Labeler, monkeypatch: pytest.MonkeyPatch) -> None:
    labeler = with_spec(fitted, working_size=(64, 96), scale=1.0, **TILE)
    image, passes, generate = scene(150, 230), [], tiled.generate

    def full_above_two(bundle: Bundle, batch: torch.Tensor, device: str) -> torch.Tensor:
        passes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(bundle, batch, device)

    expected = one(labeler, image).mask
    monkeypatch.setattr(tiled, "generate", full_above_two)
    assert np.array_equal(one(labeler, image).mask, expected)
    assert max(passes) > 2
    assert sum(count for count in passes if count <= 2) == len(
        tiled.tiles_of(labeler.bundle, (150, 230)).tiles
    )


def test_whole_logits_and_every_score_of_one_tile_are_those_of_a_fitted_pass(fitted: Labeler) -> None:
    image = scene(64, 96)
    whole = score_images(with_spec(fitted, working_size=(64, 96)), [image])
    in_tiles = score_images(with_spec(fitted, working_size=(64, 96), scale=1.0, **TILE), [image])
    assert in_tiles.scores.keys() == whole.scores.keys()
    for name, values in whole.scores.items():
        assert in_tiles.scores[name].tolist() == pytest.approx(values.tolist(), abs=5e-3), name


def test_whole_logits_hold_each_cell_once(fitted: Labeler) -> None:
    no_game = Discriminator("unet", channels=10, n_classes=3, has_played=False)
    bundle = replace(with_spec(fitted, scale=1.0, **TILE).bundle, generator=Local(), discriminator=no_game)
    image = tiled.prepare_scaled(bundle, scene(150, 230))
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1) for values in (bundle.spec.mean, bundle.spec.standard_deviation)
    )
    expected = torch.from_numpy(image.pixels.transpose(2, 0, 1) / np.float32(255)).sub(mean).div(deviation)
    logits = whole_image(bundle, image, "cpu").logits
    assert torch.allclose(logits, Local()(expected[None])[0], atol=0.2)  # bfloat16 where the CPU has it
