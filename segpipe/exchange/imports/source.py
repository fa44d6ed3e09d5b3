"""What lies in the folder that is imported from: listed once, never looked for object by object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from segpipe import storage
from segpipe.errors import DatasetError
from segpipe.redaction import redact

IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pnm")
)
_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """The root's URI, and key -> URI of every object below it that is not hidden, sorted by key."""

    root: str
    uris: Mapping[str, str]

    def below(self, folder: str) -> Iterator[str]:
        """Keys below a folder of the source."""
        return (key for key in self.uris if key.startswith(f"{folder}/"))

    def images(self, folder: str) -> Iterator[tuple[str, str]]:
        """(path below the folder without extension, key) of what has an image's extension."""
        for key in self.below(folder):
            if PurePosixPath(key).suffix.lower() in IMAGE_EXTENSIONS:
                yield without_extension(key.removeprefix(f"{folder}/")), key

    def content(self, key: str) -> bytes:
        """An object's bytes. StorageError."""
        return storage.read_bytes(self.uris[key])

    def text(self, key: str) -> str:
        """A text file; DatasetError when it is none."""
        try:
            return self.content(key).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DatasetError(f"{self.uris[key]} is no text in UTF-8: save it as such") from None

    def place(self, key: str) -> str:
        """How a message names what is or should be at a key."""
        return redact(f"{self.root.rstrip('/')}/{key}")

    def holds(self, folder: str) -> str:
        """In words, what lies in a folder."""
        names = [key.removeprefix(f"{folder}/") for key in self.below(folder)]
        if not names:
            return f"there is nothing in {folder}"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{folder} holds {', '.join(names[:_SHOWN])}{more}"


def open_source(root: str) -> Source:
    """List what is below a root. NotFoundError, StorageError."""
    found = {item.key: item.uri for item in storage.list_objects(root) if not _is_hidden(item.key)}
    return Source(root, found)


def without_extension(path: str) -> str:
    """A path without an image's extension; other dots are part of a name."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in IMAGE_EXTENSIONS else path


def _is_hidden(key: str) -> bool:
    """What file managers leave behind: .DS_Store, ._photo.jpg."""
    return any(part.startswith(".") for part in key.split("/"))
