"""An OUTPUT on S3 whose masks wait for people, and the regions that people draw."""

from __future__ import annotations

import hashlib
import io
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from studio_server import TOKEN, Studio

from segpipe import storage
from segpipe.config import PushSettings, QueueSettings
from segpipe.images import decode_mask
from segpipe.manifests.query import query
from segpipe.review.brush import encode_brush
from segpipe.review.label_studio import open_label_studio
from segpipe.review.pull import pull
from segpipe.review.push import PushSummary, push

CLASSES = ("road", "car", "sky & <cloud>")
HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class Night:
    """An OUTPUT on S3 whose masks wait for people; masks by image URI."""

    output: str
    project: str
    masks: dict[str, np.ndarray]

    def push(self, studio: Studio, **chosen: Any) -> PushSummary:
        with open_label_studio(studio.url, TOKEN) as server:
            return push(self.output, PushSettings(project=self.project), QueueSettings(**chosen), server)

    def pull(self, studio: Studio) -> dict[str, int]:
        """How many of each kind came."""
        with open_label_studio(studio.url, TOKEN) as server:
            found = vars(pull(self.output, self.project, server))
        return {name: count for name, count in found.items() if name != "refusals"}

    def final_masks(self) -> dict[str, np.ndarray]:
        """Of the view `accepted`, each checked against its digest."""
        found = {}
        for row in query(self.output, "SELECT * FROM accepted").to_pylist():
            content = storage.read_bytes(row["mask_uri"])
            assert hashlib.sha256(content).hexdigest() == row["mask_sha256"]
            found[row["image_uri"]] = decode_mask(content)
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """Every row of the log, read without segpipe's views."""
        parts = [
            one for one in storage.list_objects(f"{self.output}/reviews") if one.key.endswith(".parquet")
        ]
        tables = [storage.read_bytes(f"{self.output}/reviews/{part.key}") for part in parts]
        return [row for table in tables for row in pq.read_table(io.BytesIO(table)).to_pylist()]


def a_mask(random: np.random.Generator) -> np.ndarray:
    """Sky over road, a car with a hole of one pixel, and one pixel somewhere."""
    mask = np.full((HEIGHT, WIDTH), 2, np.uint8)
    mask[HEIGHT // 2 :] = 0
    top, left = random.integers(0, HEIGHT - 12), random.integers(0, WIDTH - 20)
    mask[top : top + 12, left : left + 20] = 1
    mask[top + 4, left + 5] = 0  # a hole of one pixel
    mask[random.integers(0, HEIGHT), random.integers(0, WIDTH)] = 1
    return mask


def region(drawn: np.ndarray, label: str) -> dict[str, Any]:
    """A brush region as the editor sends it."""
    value = {"format": "rle", "rle": encode_brush(drawn), "brushlabels": [label]}
    return {
        "type": "brushlabels", "from_name": "mask", "to_name": "image", "original_width": WIDTH,
        "original_height": HEIGHT, "image_rotation": 0, "value": value, "origin": "prediction-changed",
    }  # fmt: skip


def one_more_car(result: list[dict[str, Any]], rows: slice) -> list[dict[str, Any]]:
    """As if a person painted a car over the top left corner and left what lies below."""
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[rows, :10] = True
    return [*deepcopy(result), region(drawn, "car")]
