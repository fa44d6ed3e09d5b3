"""The flow that labels what is new in every source; it finds whatever an event has missed.

Its name is `label` too, so that its deployment is label/nightly beside label/on-bucket.
"""

from __future__ import annotations

from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.states import Failed

from flows.label import label
from flows.no_sources import warn_of_none
from flows.run_log import library_log, without_secrets
from segpipe.errors import NotFoundError, SegpipeError
from segpipe.printable import markdown_cells
from segpipe.redaction import redact
from segpipe.review.audit import audit_output, suspend_broken
from segpipe.review.audit_words import in_words, unjudged_in_words
from segpipe.review.recalibration import in_words as growth_in_words
from segpipe.review.recalibration import recalibrate
from segpipe.sources.sources_file import Problem, Source, find_sources, read_sources


def run_name() -> str:
    """For example: label all sources 2026-03-01."""
    return f"label all sources {runtime.flow_run.scheduled_start_time:%Y-%m-%d}"


@flow(name="label", flow_run_name=run_name)
def label_sources(sources: str) -> list[dict[str, Any]] | State:
    """Label what is new in every source of the file, one after the other; one that fails stops no other.

    Before that the audits of each output are weighed: a promise that they show broken is suspended, and the
    run ends as failed, once, to say so. Then certificates that grow are recalibrated with the reviews so far.

    Args:
        sources: The sources file: its URL on any fsspec storage.

    Returns:
        The summary of each source's run.
    """
    try:
        with library_log(), without_secrets():
            file = read_sources(sources)
            found, problems = find_sources(file)
    except SegpipeError as error:
        return Failed(message=redact(str(error)))
    outputs = sorted({source.output for source in found})
    broken = [problem for output in outputs for problem in _audit(output)]
    grown = [problem for output in outputs for problem in _grow(output)]
    problems += [problem for problem in grown if problem not in broken]  # of one cause it is said once
    results = [(source, _label(source)) for source in found]
    _publish(results, [*problems, *broken], warn_of_none(sources, file))
    failed = [f"{problem.where}: {problem.message}" for problem in problems]
    failed += [source.url for source, result in results if isinstance(result, State)]
    if failed or broken:
        return Failed(message=_what_failed(failed, len(results) + len(problems), broken))
    return [result for _, result in results if isinstance(result, dict)]


def _audit(output: str) -> list[Problem]:
    """Promises that the audits have newly shown broken, which are suspended before anything is labelled, and
    policies that cannot be judged."""
    try:
        with library_log(), without_secrets():
            audits = audit_output(output)
            broken = suspend_broken(output, audits.found)
    except NotFoundError:  # nothing has been labelled there yet
        return []
    except SegpipeError as error:
        return [Problem(output, f"its audits cannot be read: {error}")]
    said = [*map(in_words, broken), *map(unjudged_in_words, audits.unjudged)]
    return [Problem(output, text) for text in said]


def _grow(output: str) -> list[Problem]:
    """Why certificates that grow with the reviews could not; a suspended one failed the run that suspended
    it, and is only warned of since."""
    try:
        with library_log(), without_secrets():
            told = recalibrate(output)
        for found in told.found:
            get_run_logger().info("policy of %s: %s", found.model_id, growth_in_words(found))
        for line in told.suspended:
            get_run_logger().warning("%s", line)
    except NotFoundError:  # nothing has been labelled there yet, or nothing grows
        return []
    except SegpipeError as error:
        return [Problem(output, f"its policies cannot grow: {error}")]
    return [Problem(output, line) for line in told.failed]


def _what_failed(failed: list[str], n_sources: int, broken: list[Problem]) -> str:
    said = [f"{len(failed)} of {n_sources} failed: {'; '.join(failed)}"] if failed else []
    return redact("; ".join([*said, *(f"{problem.where}: {problem.message}" for problem in broken)]))


def _label(source: Source) -> dict[str, Any] | State:
    """The source's summary, or the state its run ended in."""
    get_run_logger().info("labelling %s", redact(source.url))
    state = label(source.url, source.output, source.model, settings=source.settings, return_state=True)
    return state.result() if state.is_completed() else state


def _publish(
    results: list[tuple[Source, dict[str, Any] | State]], problems: list[Problem], more: list[dict[str, Any]]
) -> None:
    rows = [_row(source, result) for source, result in results]
    rows += [{"source": redact(problem.where), "state": redact(problem.message)} for problem in problems]
    create_table_artifact(
        [markdown_cells(row) for row in rows + more],
        key="label-sources",
        description="What became of each source",
    )


def _row(source: Source, result: dict[str, Any] | State) -> dict[str, Any]:
    row = {"source": redact(source.url), "output": redact(source.output)}
    if isinstance(result, State):
        return row | {"state": redact(f"{result.name}: {result.message}")}
    counts = {name: result[name] for name in ("planned", "accepted", "review", "failed")}
    return row | {"state": "Completed"} | counts
