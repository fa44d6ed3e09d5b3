"""Which masks people look at whatever their score: a draw that anyone can repeat from a manifest row."""

from __future__ import annotations

import hashlib
import json

DRAWS = 2**64


def is_drawn(image_uri: str, image_etag: str, model_id: str, family: str, share: float) -> bool:
    """Whether the mask of this version of an image is drawn; so is a share `share` (0 to 1) of all.

    The draw is a digest and not a random number, so that a resumed run draws the same and anyone can check it
    from the manifest row. It is keyed with the policy's family, which those who name and fill the images do
    not know and cannot choose, and knows neither the mask nor its score. A larger share draws the same masks
    and more.
    """
    return _draw(b"segpipe audit", family, model_id, image_uri, image_etag) < share * DRAWS


def is_from_scratch(image_uri: str, image_etag: str, model_id: str, family: str, share: float) -> bool:
    """Whether people draw this mask, if it is drawn, without its draft before them: a draw of its own."""
    return _draw(b"segpipe scratch", family, model_id, image_uri, image_etag) < share * DRAWS


def _draw(person: bytes, family: str, *facts: str) -> int:
    """From 0 up to DRAWS."""
    of = json.dumps(facts).encode()
    return int.from_bytes(hashlib.blake2b(of, digest_size=8, key=family.encode(), person=person).digest())
