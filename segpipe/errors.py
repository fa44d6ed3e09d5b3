"""The errors segpipe raises: each message is one line that names the thing, the reason and the remedy."""

from __future__ import annotations

from typing import Literal

from segpipe.printable import printable

ImageFailure = Literal["unreadable", "unsupported", "too_large"]
FailureReason = Literal[ImageFailure, "storage", "denied", "archived", "inference"]


class SegpipeError(Exception):
    """Base of every error a user can cause or meet; the CLI prints its message and exits 1.

    What it names may be named by anyone, so the message is made one printable line here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class StorageError(SegpipeError):
    """Object storage refused, failed or timed out."""


class NotFoundError(StorageError):
    """The object, folder or bucket does not exist."""


class DeniedError(StorageError):
    """One may not read or write the object, its folder, its bucket or the key it is encrypted with."""


class ArchivedError(StorageError):
    """The object lies in cold storage and must be restored first; `storage_class` as told, None if not."""

    def __init__(self, message: str, storage_class: str | None = None) -> None:
        super().__init__(message)
        self.storage_class = storage_class


class UnwritableError(StorageError):
    """Nothing can be written there, whatever it is: the disk is full, over its quota, or read-only."""


class TooLargeError(StorageError):
    """An object has more bytes than the caller takes; the rest was not read."""


class AddressError(StorageError):
    """A URL that no storage can be asked for, however often: it is none, or of no scheme known here."""


class AlreadyExistsError(StorageError):
    """An exclusive create met an existing object."""


class ImageError(SegpipeError):
    """An image's bytes cannot be used; `reason` is the manifest's reason."""

    def __init__(self, reason: ImageFailure, message: str) -> None:
        super().__init__(message)
        self.reason: ImageFailure = reason


class DatasetError(SegpipeError):
    """A labelled data set breaks contract C1."""


class ModelError(SegpipeError):
    """A model bundle is missing, damaged or of another version."""


class DeviceMemoryError(SegpipeError):
    """A batch of images does not fit in the memory of the device that computes."""


class DeviceError(SegpipeError):
    """The device that computes has failed; in this process it computes nothing any more."""


class PatternError(SegpipeError):
    """A regular expression that takes too long on a name."""


class PolicyError(SegpipeError):
    """A policy is damaged or belongs to another model."""


class RunError(SegpipeError):
    """A labelling or training run cannot start, go on or resume."""


class ReviewError(SegpipeError):
    """The annotation tool refused or failed, or what it sent is no decision about a mask of ours."""


class OutputError(SegpipeError):
    """A result cannot be printed."""
