"""What of a listing is an image, by its name alone: one rule for buckets to label and for data sets.

A name never says that a file is an image: what it holds is found out when it is decoded, so that an image
under a wrong name is used all the same. Some names say that a file is none.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

HIDDEN = "hidden"
MASKS = "masks of another OUTPUT"
NOT_UTF8 = "names that are not UTF-8"
CONFIDENCE_MAPS = "confidence maps of another OUTPUT"
OWN_IMAGE = re.compile(
    r"(?:^|/)(?:(masks|confidence_maps)/[0-9a-f]{12}/.+|reviews/(masks)/[0-9a-f]{32}/[0-9a-f]{32})\.png$",
    re.DOTALL,
)
# Files that lie next to images.
SIDECAR_EXTENSIONS = frozenset(
    (
        *(".aae", ".arrow", ".csv", ".db", ".geojson", ".htm", ".html", ".ini", ".json"),
        *(".jsonl", ".lock", ".log", ".md", ".md5", ".parquet", ".pdf", ".rst", ".sha256"),
        *(".toml", ".tsv", ".txt", ".xml", ".xmp", ".yaml", ".yml"),
    )
)
SIDECAR_NAMES = frozenset(
    ("readme", "license", "licence", "copying", "notice", "makefile", "md5sums", "sha256sums", "_success")
)
# What operating systems and file servers keep of their own: thumbnails are images, and nobody's data.
SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))


def left_aside(key: str) -> str | None:
    """Under which name a file is counted that is no image, by its path below what is listed; None for images.

    HIDDEN, MASKS, CONFIDENCE_MAPS, an extension in lower case such as .txt, or such a file's whole name.
    """
    components = key.split("/")
    if any(_is_hidden(component) for component in components):
        return HIDDEN
    if own := OWN_IMAGE.search(key):
        return CONFIDENCE_MAPS if own[1] == "confidence_maps" else MASKS
    name = components[-1].lower()
    extension = PurePosixPath(name).suffix
    if extension in SIDECAR_EXTENSIONS:
        return extension
    return name if name in SIDECAR_NAMES else None


def _is_hidden(component: str) -> bool:
    return (component.startswith(".") and component not in (".", "..")) or component in SYSTEM_FOLDERS
