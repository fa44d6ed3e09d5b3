"""Source, output, sources file and model: can they be used as a run uses them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from segpipe import storage
from segpipe.doctor.findings import Finding
from segpipe.errors import AlreadyExistsError, NotFoundError, RunError, SegpipeError, StorageError
from segpipe.redaction import redact
from segpipe.sources.sources_file import find_sources, read_sources, sources_of


def check_source(source: str | None) -> Finding:
    """List it, and read the first object."""
    if source is None:
        return Finding("source", "skip", "not given", "--source URL")
    first = next(storage.list_objects(storage.normalise(source)), None)
    if first is None:
        return Finding("source", "FAIL", f"{redact(source)} is empty", "correct the name or fill it")
    size = len(storage.read_bytes(first.uri))
    return Finding("source", "ok", f"listed and read: {redact(first.uri)}, {size} bytes")


def check_output(output: str | None) -> Finding:
    """Write, read back, be refused a second exclusive create, remove."""
    if output is None:
        return Finding("output", "skip", "not given", "--output URL")
    place = storage.normalise(output)
    probe = storage.join(place, f".segpipe-doctor-{secrets.token_hex(8)}")
    with _no_new_folders(place):
        try:
            return _try_output(probe)
        finally:
            with suppress(StorageError):
                storage.delete(probe)


@contextmanager
def _no_new_folders(place: str) -> Iterator[None]:
    """Takes away the folders that a write to a local OUTPUT has made, unless they are used by now."""
    folders = [] if "://" in place else [Path(place), *Path(place).parents]
    absent = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()


def _try_output(probe: str) -> Finding:
    content = secrets.token_bytes(64)
    storage.create(probe, content)
    if storage.read_bytes(probe) != content:
        return Finding("output", "FAIL", "what was read is not what was written", "use another storage")
    try:
        storage.create(probe, b"second")
    except AlreadyExistsError:
        storage.delete(probe)
        return Finding("output", "ok", "written, read, refused a second exclusive create, removed")
    return Finding(
        "output",
        "FAIL",
        "the storage overwrites where it is told to create only: two runs at once could label images twice",
        "use one that honours If-None-Match (S3, MinIO, Ceph from 16.2)",
    )


def check_sources_file(sources: str | None) -> Finding:
    """Every entry can be used and matches something that can be listed."""
    if sources is None:
        return Finding("sources file", "skip", "not given", "--sources URL")
    file = read_sources(sources)
    found, problems = find_sources(file)
    faults = [f"{problem.where}: {problem.message}" for problem in problems]
    faults += [fault for source in found if (fault := _fault(partial(_require_images, source.url)))]
    if faults:
        return _failed("sources file", faults, "correct the entry; the others work")
    if idle := [entry.pattern for entry in file.entries if not any(sources_of(entry, file))]:
        said = redact(f"nothing matches {', '.join(idle)}")
        return Finding("sources file", "warn", said, "is the bucket's name right?")
    if not found:
        return Finding("sources file", "warn", "it names no source", "write each below [[source]]")
    return Finding("sources file", "ok", f"{len(found)} sources")


def check_their_models(sources: str | None) -> Finding:
    """The models of all sources found are whole."""
    if sources is None:
        return Finding("their models", "skip", "no sources file given")
    from segpipe.models.labeler import load_model

    models = sorted({source.model for source in find_sources(read_sources(sources))[0]})
    faults = [fault for model in models if (fault := _fault(partial(load_model, model, "cpu")))]
    if faults:
        return _failed("their models", faults, "correct model in the sources file, or train it")
    return Finding("their models", "ok", f"{len(models)} models")


def check_their_outputs(sources: str | None) -> Finding:
    """The outputs of all sources found can be asked for; there or not yet there."""
    if sources is None:
        return Finding("their outputs", "skip", "no sources file given")
    outputs = sorted({source.output for source in find_sources(read_sources(sources))[0]})
    faults = [fault for output in outputs if (fault := _fault(partial(_ask_for, output)))]
    if faults:
        return _failed("their outputs", faults, "correct output in the sources file")
    return Finding("their outputs", "ok", f"{len(outputs)} outputs; --output URL tries to write")


def _failed(check: str, faults: list[str], remedy: str) -> Finding:
    return Finding(check, "FAIL", redact("; ".join(faults)), remedy)


def _fault(look: Callable[[], object]) -> str | None:
    try:
        look()
    except SegpipeError as error:
        return str(error)
    return None


def _require_images(url: str) -> None:
    if next(storage.list_objects(url), None) is None:
        raise RunError(f"{url} is empty")


def _ask_for(output: str) -> None:
    with suppress(NotFoundError):  # the first run makes it
        next(storage.list_objects(output), None)


def check_model(model: str | None) -> Finding:
    """The bundle is whole, its hash is right, its networks can be built."""
    if model is None:
        return Finding("model", "skip", "not given", "--model URL")
    from segpipe.models.labeler import load_model

    labeler = load_model(model, "cpu")
    return Finding("model", "ok", f"{labeler.model_id}, {len(labeler.classes)} classes")


def check_policy(model: str | None) -> Finding:
    """There is one, of this model, and it accepts something."""
    if model is None:
        return Finding("policy", "skip", "no model given", "--model URL")
    from segpipe.models.labeler import load_model
    from segpipe.reports.summary import promise_line

    try:
        policy = load_model(model, "cpu").policy
    except SegpipeError as error:
        return Finding("policy", "FAIL", redact(str(error)))
    if policy is None:
        return Finding(
            "policy", "warn", "none of this model: all masks go to review", "run segpipe calibrate"
        )
    if not policy.accepts_some:
        return Finding("policy", "warn", promise_line(policy), "calibrate on more images, or promise less")
    return Finding("policy", "ok", promise_line(policy))
