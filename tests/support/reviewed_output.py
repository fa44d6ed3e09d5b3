"""An OUTPUT whose masks wait for people, on a disk, and what people answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from fake_studio import FakeStudio

from segpipe import storage
from segpipe.config import PushSettings, QueueSettings
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.query import query
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part
from segpipe.review.brush import encode_brush
from segpipe.review.label_studio import open_label_studio
from segpipe.review.pull import PullSummary, pull
from segpipe.review.push import PushSummary, push

CLASSES = ("road", "car")
DRAFT = np.zeros((10, 10), np.uint8)  # all road
NOON = datetime.now(UTC) - timedelta(days=1)


@dataclass
class ReviewedOutput:
    """OUTPUT at `root`, each mask all road; `defaults` of its rows."""

    root: str
    defaults: dict[str, Any]
    n_parts: int = 0
    masks: dict[str, str] = field(default_factory=dict)

    def label(
        self,
        *image_uris: str,
        mask: bytes | np.ndarray = DRAFT,
        classes: tuple[str, ...] = CLASSES,
        **values: Any,
    ) -> None:
        """A part with a mask to review for each image."""
        content = mask if isinstance(mask, bytes) else encode_mask(mask, class_palette(len(classes)))
        rows = [self._row(uri, content, values) for uri in image_uris]
        assert commit_part(self.root, date(2026, 11, 24), "r", self.n_parts, rows_table(rows, classes))
        self.n_parts += 1

    def _row(self, image_uri: str, content: bytes, values: dict[str, Any]) -> Row:
        mask_uri = f"{self.root}/masks/{self.n_parts}-{len(self.masks)}.png"
        storage.put(mask_uri, content)
        self.masks[image_uri] = mask_uri
        digest = hashlib.sha256(content).hexdigest()
        named = {"image_uri": image_uri, "mask_uri": mask_uri, "mask_sha256": digest, "decision": "review"}
        return Row(**(self.defaults | named | {"shard": self.n_parts} | values))

    def push(self, studio: FakeStudio, **settings: Any) -> PushSummary:
        with open_label_studio(studio.url, "token") as server:
            return push(self.root, PushSettings(project="streets"), QueueSettings(**settings), server)

    def pull(self, studio: FakeStudio) -> PullSummary:
        with open_label_studio(studio.url, "token") as server:
            return pull(self.root, "streets", server)

    def reviews(self) -> list[dict[str, Any]]:
        """The decisions that hold, by image."""
        return query(self.root, "SELECT * FROM reviews ORDER BY image_uri").to_pylist()


def answer(*regions: object, **changes: Any) -> dict[str, Any]:
    """An annotation as the export has it."""
    shared = {"id": 1, "updated_at": NOON.isoformat(), "completed_by": 1, "lead_time": 60.0}
    return shared | {"was_cancelled": False, "result": list(regions)} | changes


def region(drawn: np.ndarray, label: str) -> dict[str, Any]:
    """A brush region as the editor sends it."""
    value = {"format": "rle", "rle": encode_brush(drawn), "brushlabels": [label]}
    return {
        "type": "brushlabels", "from_name": "mask", "to_name": "image", "original_height": drawn.shape[0],
        "original_width": drawn.shape[1], "image_rotation": 0, "value": value,
    }  # fmt: skip


def rows_of(start: int, stop: int) -> np.ndarray:
    """Drawn from one row of the draft up to another."""
    drawn = np.zeros(DRAFT.shape, bool)
    drawn[start:stop] = True
    return drawn
