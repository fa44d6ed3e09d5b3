"""A real Label Studio for the session, and outputs whose masks wait for people."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from datetime import date

import numpy as np
import pytest
from PIL import Image
from studio_night import CLASSES, Night, a_mask
from studio_server import Studio, running_studio

from segpipe import storage
from segpipe.images import class_palette, encode_mask
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import commit_part


@pytest.fixture(scope="session")
def studio(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with running_studio(tmp_path_factory.mktemp("studio")) as server:
        yield server


@pytest.fixture
def night(s3_bucket: str, make_row: Callable[..., Row]) -> Callable[..., Night]:
    """(number of masks) -> a night's output, every fifth mask accepted and drawn for the audit."""

    def make(count: int) -> Night:
        random = np.random.default_rng(7)
        output, masks, rows = f"s3://{s3_bucket}/labels", {}, []
        for number in range(count):
            uri = f"s3://{s3_bucket}/raw/it's {number:03d}.png"
            masks[uri] = a_mask(random)
            picture = io.BytesIO()
            Image.fromarray(np.repeat(masks[uri][..., None] * np.uint8(80), 3, axis=2)).save(picture, "PNG")
            storage.put(uri, picture.getvalue())
            content = encode_mask(masks[uri], class_palette(len(CLASSES)))
            mask_uri = f"{output}/masks/m/{number:03d}.png"
            storage.put(mask_uri, content)
            audit = number % 5 == 0
            rows.append(
                make_row(
                    image_uri=uri, image_etag=storage.etag(uri), mask_uri=mask_uri, audit=audit,
                    mask_sha256=hashlib.sha256(content).hexdigest(), confidence=number / 100,
                    decision="accepted" if audit else "review", inclusion_probability=0.02 if audit else 1.0,
                )
            )  # fmt: skip
        assert commit_part(output, date(2026, 11, 24), "r", 0, rows_table(rows, CLASSES))
        return Night(output, f"night {s3_bucket}"[:50], masks)

    return make
