"""What lies in the folder that is imported from: listed once, never looked for object by object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from segpipe import storage
from segpipe.datasets import key_of
from segpipe.errors import DatasetError
from segpipe.listing import HIDDEN, left_aside
from segpipe.redaction import redact

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
        """(path below the folder without extension, key) of what is no other file by its name."""
        for key in self.below(folder):
            if left_aside(path := key.removeprefix(f"{folder}/")) is None:
                yield key_of(path), key

    def image_of_each(self, folder: str) -> dict[str, list[str]]:
        """Path below the folder without extension -> keys of images; more than one of a name is odd."""
        found: dict[str, list[str]] = {}
        for path, key in self.images(folder):
            found.setdefault(path, []).append(key)
        return found

    def only_one(self, image: str, candidates: Iterable[str]) -> str | None:
        """The candidate that is there for an image; None: none. DatasetError names two that are."""
        present = [key for key in candidates if key in self.uris]
        if len(present) > 1:
            raise DatasetError(
                f"{self.place(image)} has two masks, {present[0]} and {present[1]}: remove or rename one"
            )
        return present[0] if present else None

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
    listed = storage.list_objects(root)
    return Source(root, {item.key: item.uri for item in listed if left_aside(item.key) != HIDDEN})
