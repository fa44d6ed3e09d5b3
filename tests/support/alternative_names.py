"""What a mask is called whose image's own key is unsafe or taken, by the documented rule."""

from __future__ import annotations

import hashlib
import re


def alternative_key(image_key: str, image_uri: str, image_etag: str, digits: int = 8) -> str:
    """The key cleaned and cut, a tilde, and hex digits of the hash of the image's identity."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", image_key).strip("._")[-100:] or "image"
    identity = hashlib.sha256(f"{image_uri}\0{image_etag}".encode()).hexdigest()
    return f"{stem}~{identity[:digits]}.png"
