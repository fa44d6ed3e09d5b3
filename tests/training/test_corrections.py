"""Corrections as training images: which count, how much, and that none flatters a promise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segpipe import storage
from segpipe.config import CalibrateSettings, QueueSettings, TrainSettings
from segpipe.datasets import list_samples, open_dataset, read_sample
from segpipe.errors import DatasetError
from segpipe.evaluation.calibration import calibrate
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.reviews import Review, append_reviews, item_id, read_reviews
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review.queue import take_queue
from segpipe.training.corrections import Correction, find_corrections, read_correction, weights
from segpipe.training.run import train

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SIZE = (48, 64)


class Reviewed:
    """An OUTPUT with reviewed images of its own bucket; `streets` is the data set whose classes it has."""

    def __init__(self, folder: Path, streets: str) -> None:
        self.output, self.raw = str(folder / "labels"), folder / "raw"
        self.dataset = open_dataset(streets)
        self.raw.mkdir(parents=True)
        self.n_rows = 0

    def add(
        self, content: bytes, mask: np.ndarray, audit: float | None = None, verdict: str = "corrected"
    ) -> Path:
        """An image that was labelled, and its final mask; `audit`: the share it was drawn with."""
        image = self.raw / f"{self.n_rows:03d}.png"
        image.write_bytes(content)
        encoded = encode_mask(mask, class_palette(len(self.dataset.classes)))
        uri = f"{self.output}/reviews/masks/{self.n_rows}.png"
        storage.put(uri, encoded)
        sha256 = hashlib.sha256(encoded).hexdigest()
        etag = storage.etag(str(image))
        self._commit(str(image), etag, audit)
        name = item_id(str(image), etag, "m", "draft")
        final = verdict in ("accepted", "corrected")
        review = Review(
            review_id=name, item_id=name, image_uri=str(image), image_etag=etag, model_id="m",
            draft_mask_sha256="draft", verdict=verdict,  # type: ignore[arg-type]
            final_mask_uri=uri if final else None,
            final_mask_sha256=sha256 if final else None, draft_iou=0.5, overlap_pixels=0,
            audit=audit is not None,
            inclusion_probability=audit or 0.0, reviewer="a", minutes=1.0, reviewed_at=NOON, origin="test",
        )  # fmt: skip
        append_reviews(self.output, [review])
        return image

    def _commit(self, image: str, etag: str, audit: float | None) -> None:
        row = Row(
            image_uri=image, image_etag=etag, image_bytes=1, image_width=1, image_height=1, mask_uri="m",
            mask_sha256="draft", decision="review", reason="low_confidence", confidence=0.5,
            discriminator_score=0.5, class_fractions=None, class_confidences=None, audit=audit is not None,
            inclusion_probability=audit or 0.0, model_id="m", policy_id=None, run_id="r", shard=self.n_rows,
            labeled_at=NOON, error=None,
        )  # fmt: skip
        table = rows_table([row], self.dataset.classes)
        assert commit_part(self.output, date(2026, 11, 24), "r", self.n_rows, table)
        self.n_rows += 1


@pytest.fixture
def reviewed(tmp_path: Path, streets: str) -> Reviewed:
    return Reviewed(tmp_path / "reviewed", streets)


def noise(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))


def png(pixels: np.ndarray, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def mask(value: int = 1) -> np.ndarray:
    return np.full(SIZE, value, np.uint8)


def test_final_masks_are_found_and_read(reviewed: Reviewed) -> None:
    drawn = mask(2)
    drawn[:8] = 255  # left open by the reviewer
    image = reviewed.add(noise(1), drawn)
    confirmed = reviewed.add(noise(2), mask(1), verdict="accepted")
    reviewed.add(noise(3), mask(1), verdict="rejected")
    reviewed.add(noise(4), mask(1), verdict="skipped")
    dataset = replace(reviewed.dataset, ignore_index=200)
    found = find_corrections([reviewed.output], reviewed.dataset)
    assert [one.image_uri for one in found] == [str(image), str(confirmed)]
    pixels, truth = read_correction(found[0], dataset)
    assert np.array_equal(pixels, np.asarray(Image.open(image)))
    assert (truth[:8] == 200).all()
    assert (truth[8:] == 2).all()


@pytest.mark.parametrize("split", ["train", "val", "calibration"])
def test_an_image_that_the_data_set_holds_in_any_split_is_left_out(
    reviewed: Reviewed, streets: str, split: str
) -> None:
    kept = reviewed.add(noise(1), mask())
    sample = list_samples(reviewed.dataset, split)[0]
    pixels, truth = read_sample(reviewed.dataset, sample)
    again = png(pixels, compress_level=9)
    assert again != storage.read_bytes(sample.image_uri), "another file of the same pixels"
    reviewed.add(again, truth)
    assert [one.image_uri for one in find_corrections([reviewed.output], reviewed.dataset)] == [str(kept)]


def test_corrections_are_read_and_compared_in_the_data_sets_range(
    reviewed: Reviewed, streets: str, tmp_path: Path
) -> None:
    dataset = replace(reviewed.dataset, root=str(tmp_path / "deep"), image_range=(1000.0, 1255.0))
    grey = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint16)
    (tmp_path / "deep/train/images").mkdir(parents=True)
    (tmp_path / "deep/train/masks").mkdir()
    (tmp_path / "deep/train/images/a.png").write_bytes(png(grey + np.uint16(1000)))
    (tmp_path / "deep/train/masks/a.png").write_bytes(png(mask()))
    reviewed.add(png(grey + np.uint16(1000), compress_level=9), mask())
    other = reviewed.add(png(grey[::-1] + np.uint16(1000)), mask(2))
    (found,) = find_corrections([reviewed.output], dataset)
    assert found.image_uri == str(other)
    assert np.array_equal(read_correction(found, dataset)[0], np.repeat(grey[::-1, :, None], 3, axis=2))


def test_under_a_budget_the_accepted_half_weighs_half(
    reviewed: Reviewed, make_row: Callable[..., Row], caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 masks, half of them accepted; ten audits and 90 doubtful masks fit the budget."""
    rows = []
    for n in range(1000):
        image = reviewed.raw / f"{n:04d}.png"
        decided = {"decision": "accepted", "audit": n < 10, "inclusion_probability": 0.02}
        waiting = {"decision": "review", "confidence": n / 1000, "inclusion_probability": 1.0}
        rows.append(
            make_row(
                image_uri=str(image), mask_sha256="d", image_etag="", **(decided if n < 500 else waiting)
            )
        )
        if n < 10 or n >= 500:
            image.write_bytes(noise(n))
            rows[-1] = replace(rows[-1], image_etag=storage.etag(str(image)))
    table = rows_table(rows, reviewed.dataset.classes)
    assert commit_part(reviewed.output, date(2026, 11, 24), "r", 0, table)
    queue = take_queue(reviewed.output, QueueSettings(limit=100))
    by_image = {row.image_uri: row for row in rows}
    uri, final = f"{reviewed.output}/reviews/masks/all.png", encode_mask(mask(), class_palette(3))
    storage.put(uri, final)
    append_reviews(
        reviewed.output,
        [
            Review(
                review_id=item.item_id, item_id=item.item_id, image_uri=item.image_uri,
                image_etag=by_image[item.image_uri].image_etag, model_id="m", draft_mask_sha256="d",
                verdict="corrected", final_mask_uri=uri, final_mask_sha256=hashlib.sha256(final).hexdigest(),
                draft_iou=0.5, overlap_pixels=0, audit=item.is_audit,
                inclusion_probability=by_image[item.image_uri].inclusion_probability, reviewer="a",
                minutes=1.0, reviewed_at=NOON, origin="test",
            )
            for item in queue.items
        ],
    )  # fmt: skip
    found = find_corrections([reviewed.output], reviewed.dataset)
    assert len(found) == 100
    share = dict(zip((one.image_uri for one in found), np.array(weights(found)) / 100, strict=True))
    accepted = sum(value for image, value in share.items() if by_image[image].decision == "accepted")
    assert accepted == pytest.approx(0.5)
    # 72 were chosen by doubt and weigh a thousandth each; 18 drawn ones stand for the other 428.
    doubtful = sorted(image for image in share if by_image[image].decision == "review")
    assert sum(share[image] == pytest.approx(1 / 1000) for image in doubtful) == 72
    assert [share[image] for image in doubtful[:72]] == pytest.approx([1 / 1000] * 72)
    assert [share[image] for image in doubtful[72:]] == pytest.approx([428 / 18 / 1000] * 18)
    assert "by which chance" not in caplog.text


def test_what_was_decided_without_a_queue_stands_for_itself(
    reviewed: Reviewed, make_row: Callable[..., Row]
) -> None:
    """One mask decided before there were records, one drawn by a queue out of three that waited."""
    reviewed.add(noise(1), mask())
    images = [reviewed.raw / f"late{n}.png" for n in range(3)]
    for n, image in enumerate(images):
        image.write_bytes(noise(10 + n))
    late = [
        make_row(
            image_uri=str(image), image_etag=storage.etag(str(image)), mask_sha256="draft", decision="review",
            shard=9,
        )
        for image in images
    ]  # fmt: skip
    assert commit_part(
        reviewed.output, date(2026, 11, 25), "r", 9, rows_table(late, reviewed.dataset.classes)
    )
    (item,) = take_queue(reviewed.output, QueueSettings(limit=1, random_share=1.0)).items
    (earlier,) = read_reviews(reviewed.output).to_pylist()
    answer = {"review_id": "later", "item_id": item.item_id, "image_uri": item.image_uri}
    etag = storage.etag(item.image_uri)
    append_reviews(reviewed.output, [Review(**{**earlier, **answer, "image_etag": etag})])
    found = {one.image_uri: one for one in find_corrections([reviewed.output], reviewed.dataset)}
    assert found.pop(item.image_uri).inclusion_probability == pytest.approx(1 / 3)
    assert [one.inclusion_probability for one in found.values()] == [1]


def test_an_output_without_a_record_of_its_queues_goes_on_as_before(
    reviewed: Reviewed, caplog: pytest.LogCaptureFixture
) -> None:
    reviewed.add(noise(1), mask(), audit=0.25)
    reviewed.add(noise(2), mask())
    found = find_corrections([reviewed.output], reviewed.dataset)
    assert [one.inclusion_probability for one in found] == [0.25, 1]
    said = [line for line in caplog.messages if "by which chance" in line]
    assert len(said) == 1
    assert said[0].endswith("push with a --random-share above 0")


def test_an_image_that_is_another_now_is_left_out(reviewed: Reviewed) -> None:
    replaced, removed = reviewed.add(noise(1), mask()), reviewed.add(noise(2), mask())
    replaced.write_bytes(noise(9))
    removed.unlink()
    assert find_corrections([reviewed.output], reviewed.dataset) == []


def test_a_mask_that_was_changed_after_the_review_is_refused(reviewed: Reviewed) -> None:
    reviewed.add(noise(1), mask())
    (found,) = find_corrections([reviewed.output], reviewed.dataset)
    storage.put(found.mask_uri, encode_mask(mask(2), class_palette(3)))
    with pytest.raises(DatasetError, match="is not the mask that was reviewed"):
        read_correction(found, reviewed.dataset)


def test_other_classes_are_refused(reviewed: Reviewed) -> None:
    reviewed.add(noise(1), mask())
    with pytest.raises(DatasetError, match="was labelled with the classes"):
        find_corrections([reviewed.output], replace(reviewed.dataset, classes=("a", "b")))


def correction(probability: float) -> Correction:
    return Correction("i", "e", "m", "s", probability)


def test_weights_are_the_inverse_of_the_chance_to_be_reviewed() -> None:
    assert weights([correction(1.0)] * 3) == [1, 1, 1]
    assert weights([correction(0.5), correction(1.0), correction(1.0)]) == pytest.approx([1.5, 0.75, 0.75])
    # 100 and three times 1: the mean is 25.75, so at most 51.5; scaled to a mean of 1.
    heavy = weights([correction(0.01), *[correction(1.0)] * 3])
    assert heavy == pytest.approx([51.5 / 13.625, *[1 / 13.625] * 3])
    assert weights([]) == []


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=50))
def test_weights_average_one_and_keep_their_order(probabilities: list[float]) -> None:
    found = weights([correction(one) for one in probabilities])
    assert np.mean(found) == pytest.approx(1)
    order = np.argsort(probabilities, kind="stable")
    assert (np.diff(np.array(found)[order]) <= 1e-9).all()


@pytest.fixture
def settings(streets: str, tmp_path: Path) -> Callable[..., TrainSettings]:
    def make(model: str, **values: object) -> TrainSettings:
        fixed = {
            "data": streets,
            "model": str(tmp_path / model),
            "epochs": 1,
            "batch_size": 4,
            "device": "cpu",
        }
        return TrainSettings(**(fixed | values))  # type: ignore[arg-type]

    return make


def test_a_model_learns_from_corrections_and_may_not_be_calibrated_on_them(
    reviewed: Reviewed, streets: str, settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    for seed in range(6):
        reviewed.add(noise(seed), mask(seed % 2), audit=0.1 if seed < 2 else None)
    plain = train(settings("plain"))
    taught = train(settings("taught", corrections=(reviewed.output,)))
    assert taught.model_id != plain.model_id
    card = json.loads(Path(taught.model, "model.json").read_text())
    assert card["training_data"]["corrections"] == "6"
    kept = json.loads(Path(taught.model, "corrections.json").read_text())
    assert [one["inclusion_probability"] for one in kept] == [0.1, 0.1, 1, 1, 1, 1]

    other = tmp_path / "other"
    (other / "calibration" / "images").mkdir(parents=True)
    (other / "calibration" / "masks").mkdir()
    (other / "dataset.json").write_text(Path(streets, "dataset.json").read_text())
    (other / "calibration" / "images" / "a.png").write_bytes(noise(3))
    storage.put(str(other / "calibration" / "masks" / "a.png"), encode_mask(mask(), class_palette(3)))
    places = {"data": str(other), "split": "calibration", "device": "cpu"}
    target = {"min_iou": 0.1, "max_bad_fraction": 0.5}
    with pytest.raises(DatasetError, match="among the images the model was trained on"):
        calibrate(CalibrateSettings(model=taught.model, **places, **target))  # type: ignore[arg-type]
    assert calibrate(CalibrateSettings(model=plain.model, **places, **target)).n_images == 1  # type: ignore[arg-type]
