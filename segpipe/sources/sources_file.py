"""The sources file: which buckets and folders are labelled, where to and how; patterns become sources.

TOML at any fsspec URL, shared by the nightly run and by the watch for new buckets:

    state = "s3://labels/state"          # where the watch notes what it has announced

    [defaults]                           # for every source that does not say otherwise
    model = "s3://models/street"

    [[source]]
    pattern = "s3://raw-*"               # wildcards in a bucket's or a folder's name: * ? [abc]
    output = "s3://labels/{name}"        # {name}: what the wildcards matched, here the bucket's name
    settings = { drift_warn_only = true }

Raises RunError on a file that is no sources file. A single entry at fault is a Problem, and stops no other.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segpipe import storage
from segpipe.addresses import folded, is_local, require_address
from segpipe.config import LabelSettings, Location
from segpipe.errors import AddressError, RunError, SegpipeError
from segpipe.printable import is_printable, printable
from segpipe.redaction import redact

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
_WILDCARD = re.compile(r"[*?\[]")
_URL = re.compile(r"([A-Za-z][\w+.:-]*://)?(.*)", re.DOTALL)


class SourceEntry(BaseModel):
    """One [[source]] of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    pattern: Location = Field(description="Images: a bucket or folder at any fsspec URL, * in names allowed.")
    output: Location = Field(description="Where masks and manifest go; {name} is what the wildcards matched.")
    model: Location = Field(description="Model bundle: a folder at any fsspec URL.")
    settings: LabelSettings = Field(LabelSettings(), description="How the work is done.")

    @field_validator("pattern")
    @classmethod
    def _no_deep_wildcard(cls, pattern: str) -> str:
        if "**" in pattern:
            raise ValueError("** matches no folder: a source is a folder with all that is below it")
        return pattern

    @field_validator("output")
    @classmethod
    def _only_name(cls, output: str) -> str:
        if re.search(r"[{}]", output.replace("{name}", "")):
            raise ValueError("only {name} may stand in braces")
        if "{name}" in output and {".", ".."} & set(output.split("/")[1:]):
            raise ValueError(
                ". and .. may not stand beside {name}, which would let two names share an output"
            )
        return output


@dataclass(frozen=True)
class Problem:
    """What is wrong with an entry; `where` names it."""

    where: str
    message: str


@dataclass(frozen=True)
class SourcesFile:
    """A sources file: the entries that can be used, and what is wrong with the others."""

    entries: tuple[SourceEntry, ...]
    problems: tuple[Problem, ...]
    state: str | None
    queue: str | None


@dataclass(frozen=True)
class Source:
    """A bucket or folder to label, and how."""

    url: str
    output: str
    model: str
    settings: LabelSettings

    @property
    def digest(self) -> str:
        """A short name (16 hex digits) of what is labelled to where."""
        return sha256(f"{self.url}\n{self.output}".encode()).hexdigest()[:16]


def read_sources(url: str) -> SourcesFile:
    """The sources file at this URL. Raises RunError, NotFoundError, StorageError."""
    try:
        content = tomllib.loads(storage.read(url, MAX_BYTES).data.decode())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{url} is no TOML file: {error}; correct it") from None
    unknown = content.keys() - {"state", "queue", "defaults", "source"}
    if unknown:
        raise RunError(
            f"{url}: unknown '{printable(min(unknown))}'; use state, queue, [defaults] and [[source]]"
        )
    tables, defaults = content.get("source", []), content.get("defaults", {})
    if not isinstance(tables, list) or not isinstance(defaults, dict):
        raise RunError(f"{url}: write each source below [[source]], and the defaults below [defaults]")
    _check_defaults(url, defaults)
    entries, problems = _read_entries(tables, defaults)
    places = {name: _place(url, name, content.get(name)) for name in ("state", "queue")}
    return SourcesFile(entries, problems, **places)


def _check_defaults(url: str, defaults: dict[str, Any]) -> None:
    known = SourceEntry.model_fields
    if unknown := defaults.keys() - known:
        raise RunError(f"{url}: unknown '{printable(min(unknown))}' in [defaults]; use {', '.join(known)}")
    if not isinstance(defaults.get("settings", {}), dict):
        raise RunError(f"{url}: settings in [defaults] is to be a table, for example {{ shard_images = 64 }}")


def _place(url: str, name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise RunError(f"{url}: {name} is to be a URL in quotes")
    return value


def _read_entries(
    tables: list[Any], defaults: dict[str, Any]
) -> tuple[tuple[SourceEntry, ...], tuple[Problem, ...]]:
    entries, problems = [], []
    for number, table in enumerate(tables, start=1):
        values = _with_defaults(table, defaults)
        try:
            entries.append(SourceEntry(**values))
        except (ValidationError, TypeError) as error:
            pattern = values.get("pattern")
            problems.append(Problem(printable(str(pattern or f"source {number}")), _reason(error)))
    return tuple(entries), tuple(problems)


def _with_defaults(table: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    own = table if isinstance(table, dict) else {"pattern": table}
    values = defaults | own
    if isinstance(own.get("settings"), dict):
        values["settings"] = defaults.get("settings", {}) | own["settings"]
    return values


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"not a table of settings ({error})"
    found = error.errors(include_url=False, include_context=False)
    # An unknown name is a typing error as a rule, and the reason why another one is missing.
    first = min(found, key=lambda one: one["type"] != "extra_forbidden")
    field = ".".join(str(part) for part in first["loc"])
    return printable(f"{field}: {first['msg'].removeprefix('Value error, ')}")


def find_sources(file: SourcesFile) -> tuple[list[Source], list[Problem]]:
    """What the patterns match now, each URL and OUTPUT once, and what went wrong.

    What a wildcard matches is left out when it is empty, or when an OUTPUT or the state lies in it or around
    it: masks are no images.
    """
    sources: dict[str, Source] = {}
    problems = list(file.problems)
    for entry in file.entries:
        try:
            for source in sources_of(entry, file):
                if other := _shares_output(source, sources.values()):
                    said = f"its output {source.output} may be that of {other.url} on this disk: rename one"
                    problems.append(Problem(source.url, said))
                else:
                    sources.setdefault(source.digest, source)
        except SegpipeError as error:
            problems.append(Problem(entry.pattern, str(error)))
    return list(sources.values()), problems


def _shares_output(source: Source, others: Iterable[Source]) -> Source | None:
    """Two names that differ to a bucket can be one folder on a disk that folds case or Unicode's forms."""
    if not is_local(source.output):
        return None
    fold = folded(source.output)
    others = (other for other in others if other.output != source.output)
    return next((other for other in others if folded(other.output) == fold), None)


def sources_of(entry: SourceEntry, file: SourcesFile) -> Iterator[Source]:
    """What the pattern of one of the file's entries matches now.

    Raises NotFoundError, StorageError, and RunError for a folder that lies in an OUTPUT or the state.
    """
    for url, name in expand(entry.pattern):
        if not _WILDCARD.search(entry.pattern):
            _refuse_own(url, file)
        elif _is_own(url, file):
            logger.info("%s is left aside: masks, or the state, are in it", redact(url))
            continue
        elif _is_empty(url):
            continue
        yield _source(entry, url, name)


def _source(entry: SourceEntry, url: str, name: str) -> Source:
    """Raises AddressError, and RunError for an OUTPUT that leaves what its template fixes."""
    output = storage.normalise(entry.output.replace("{name}", name))
    _require_below_fixed_part(output, entry.output)
    return Source(storage.normalise(url), output, storage.normalise(entry.model), entry.settings)


def _require_below_fixed_part(output: str, template: str) -> None:
    """Whoever can put an object chooses {name}, and must not choose where outputs are."""
    before, named, _ = template.partition("{name}")
    if not named:
        return
    folder = before[: before.rfind("/") + 1]
    fixed = folder if folder.endswith("://") else f"{storage.normalise(folder or '.').rstrip('/')}/"
    rest = output.removeprefix(fixed)
    if not output.startswith(fixed) or {"", ".", ".."} & set(rest.split("/")):
        raise RunError(f"output {output} is no folder below {fixed}: let {{name}} be one there")


def _refuse_own(url: str, file: SourcesFile) -> None:
    if _lies_in_own(url, file):
        raise RunError("it lies in an output or in the state: masks are no images, name a folder outside")


def expand(pattern: str) -> list[tuple[str, str]]:
    """(URL, name) of each bucket or folder that a pattern matches, sorted; * and ? stay within one name.

    The name is what the parts with a wildcard matched, joined by '/'; without any it is the last part, and
    the URL is taken as it is, there or not. Raises NotFoundError, StorageError.
    """
    scheme, path = _parts(pattern)
    parts = path.rstrip("/").split("/")
    if not _WILDCARD.search(path):
        return [(f"{scheme}{path.rstrip('/')}", parts[-1])]
    first = next(index for index, part in enumerate(parts) if _WILDCARD.search(part))
    found = [(scheme + "".join(f"{part}/" for part in parts[:first]), "")]
    for part in parts[first:]:
        found = [below for place, name in found for below in _matching(place, name, part)]
    return sorted((url.rstrip("/"), name) for url, name in found)


def _matching(place: str, name: str, part: str) -> Iterator[tuple[str, str]]:
    is_wild = bool(_WILDCARD.search(part))
    for folder in storage.list_folders(place):
        if not (fnmatchcase(folder, part) if is_wild else folder == part):
            continue
        if is_wild and not _is_plain_name(folder):
            logger.warning("%s is left aside: '%s' is no plain name of a folder", redact(place), folder)
        else:
            yield f"{place}{folder}/", f"{name}/{folder}".strip("/") if is_wild else name


def _is_plain_name(name: str) -> bool:
    """Whether it may become a part of an OUTPUT's name: nothing climbs, hides, steers a terminal or has two
    spellings for one place."""
    odd = name in ("", ".", "..") or "\\" in name or name != name.strip()
    return not odd and is_printable(name) and _is_address(f"/{name}")


def _is_address(text: str) -> bool:
    try:
        require_address(text)
    except AddressError:
        return False
    return True


def _own_places(file: SourcesFile) -> list[list[str]]:
    """The parts of each URL that segpipe writes to."""
    places = [*(entry.output for entry in file.entries), *([file.state] if file.state else [])]
    return [place.rstrip("/").split("/") for place in places]


def _is_own(url: str, file: SourcesFile) -> bool:
    """Whether the URL holds, or lies in, a place that segpipe writes to."""
    parts = url.split("/")
    return any(_overlap(parts, place) for place in _own_places(file))


def _lies_in_own(url: str, file: SourcesFile) -> bool:
    parts = url.split("/")
    return any(len(parts) >= len(place) and _overlap(parts, place) for place in _own_places(file))


def _overlap(parts: list[str], others: list[str]) -> bool:
    pairs = zip(parts, others, strict=False)
    return all(re.fullmatch(re.escape(other).replace(r"\{name\}", ".+"), part) for part, other in pairs)


def _is_empty(url: str) -> bool:
    return next(iter(storage.list_objects(url)), None) is None


def holder_of(uri: str, file: SourcesFile) -> Source | None:
    """The source that an object belongs to, by the first pattern that matches; None when it is none's."""
    if _lies_in_own(uri, file):
        return None
    for entry in file.entries:
        if (found := _enclosing(uri, entry.pattern)) and not _is_left_aside(found[0], entry, file):
            return _source(entry, *found)
    return None


def _is_left_aside(url: str, entry: SourceEntry, file: SourcesFile) -> bool:
    return bool(_WILDCARD.search(entry.pattern)) and _is_own(url, file)


def _enclosing(uri: str, pattern: str) -> tuple[str, str] | None:
    """The (URL, name) that the pattern gives the folder that holds the object, if it matches one."""
    (scheme, path), (other_scheme, key) = _parts(pattern), _parts(uri)
    wanted, parts = path.rstrip("/").split("/"), key.split("/")
    if scheme != other_scheme or len(parts) <= len(wanted):
        return None
    pairs = list(zip(wanted, parts, strict=False))
    if not all(fnmatchcase(part, want) for want, part in pairs):
        return None
    if not all(_is_plain_name(part) for want, part in pairs if _WILDCARD.search(want)):
        return None
    names = [part for want, part in pairs if _WILDCARD.search(want)] or [wanted[-1]]
    return f"{scheme}{'/'.join(parts[: len(wanted)])}", "/".join(names)


def _parts(url: str) -> tuple[str, str]:
    """'s3://' and what follows; '' and an absolute path for a plain one."""
    match = _URL.fullmatch(url)
    assert match is not None  # it matches any text
    if match[1] and match[1].lower() not in ("file://", "local://"):
        return match[1].lower().replace("s3a://", "s3://"), match[2]
    return "", storage.normalise(match[2])
