"""From the classes of a foreign network to those of a data set."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from segpipe import storage
from segpipe.errors import ModelError, NotFoundError
from segpipe.validation import first_problem, parse_json

MAX_BYTES = 4_000_000
GENERIC = re.compile(r"LABEL_\d+")


class ClassMapFile(BaseModel):
    """classes: foreign class to the data set's, several to one; ignore: foreign classes that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: dict[str, str]
    ignore: tuple[str, ...] = ()


def read_class_map(url: str) -> ClassMapFile:
    """A .json or .toml file at any fsspec URL. Raises ModelError, StorageError."""
    try:
        text = storage.read(url, MAX_BYTES).data.decode()
        content = tomllib.loads(text) if url.endswith(".toml") else parse_json(text)
        return ClassMapFile.model_validate(content)
    except NotFoundError as error:
        raise ModelError(f"no class map at {url}: it is not there") from error
    except ValidationError as error:
        raise ModelError(
            f"{url} is no class map ({first_problem(error)}): give "
            '{"classes": {FOREIGN: OURS}, "ignore": [FOREIGN]}'
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{url} is no JSON or TOML that can be read ({error}): correct it") from error


def by_file(
    found: ClassMapFile, url: str, foreign: Sequence[str], classes: Sequence[str]
) -> tuple[int | None, ...]:
    """The data set's class of each foreign one, None: ignored. Raises ModelError."""
    named = [*found.classes, *found.ignore]
    unknown = [name for name in named if name not in foreign]
    if unknown:
        raise ModelError(f"{url} names {unknown[0]!r}, which the network has not: it has {_some(foreign)}")
    twice = [name for name in found.ignore if name in found.classes]
    if twice:
        raise ModelError(f"{url} both maps and ignores {twice[0]!r}: do one")
    absent = [name for name in foreign if name not in named]
    if absent:
        raise ModelError(
            f"{url} leaves out {_some(absent)} of the network: give each a class, or list it in ignore"
        )
    wrong = [target for target in found.classes.values() if target not in classes]
    if wrong:
        raise ModelError(f"{url} maps to {wrong[0]!r}, which is no class of the data set: {_some(classes)}")
    if not found.classes:
        raise ModelError(f"{url} ignores every class: map some")
    return tuple(classes.index(found.classes[name]) if name in found.classes else None for name in foreign)


def by_name(foreign: Sequence[str], classes: Sequence[str], first_class: int) -> tuple[int | None, ...]:
    """The classes by their names, in whatever order; by their numbers where the network has no names.

    first_class: of the network's first output, then. Raises ModelError where the names are others.
    """
    if set(foreign) == set(classes) and len(foreign) == len(classes):
        return tuple(classes.index(name) for name in foreign)
    nameless = all(GENERIC.fullmatch(name) or name.isdigit() for name in foreign)
    if nameless and len(foreign) + first_class == len(classes):
        return tuple(index + first_class for index in range(len(foreign)))
    raise ModelError(
        f"the network has {len(foreign)} classes ({_some(foreign)}), the data set {len(classes)} "
        f"({_some(classes)}): say with --class-map which is which"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
