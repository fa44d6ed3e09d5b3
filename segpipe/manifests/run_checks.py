"""A run's parts against their chain and its run.json, and the models that runs and policies name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from segpipe import storage
from segpipe.confidence.policy import Policy
from segpipe.errors import NotFoundError, RunError
from segpipe.manifests.chain import ChainedPart, Tip, chain_problems
from segpipe.manifests.findings import Findings
from segpipe.manifests.parts import PART_NAME
from segpipe.manifests.run_files import PLAN, RECORD, require_whole_plan
from segpipe.validation import parse_json


@dataclass(frozen=True)
class _RunRecord:
    """What of a run.json is compared: whether the run has ended, where its chain does, the model's digest."""

    finished: bool
    tip: Tip | None
    model: tuple[str, str] | None


def check_runs(
    output: str, parts: list[ChainedPart], policies: dict[str, Policy], found: Findings
) -> tuple[int, int]:
    """How many runs have parts, and of how many of them nothing names the last part."""
    by_run: dict[str, list[ChainedPart]] = defaultdict(list)
    for part in parts:
        if name := PART_NAME.fullmatch(part.key):
            by_run[name["run_id"]].append(part)
    listed = _listed_runs(output)
    _check_plans(output, listed, found)
    run_ids = sorted(by_run.keys() | _with(RECORD, listed))
    records = {run_id: _read_record(output, run_id, found) for run_id in run_ids}
    for run_id, record in records.items():
        for key, problem in chain_problems(by_run.get(run_id, []), record.tip):
            found.add("chain", f"runs/{run_id}/run.json" if key == "run.json" else key, problem)
    _check_models(records.values(), policies.values(), found)
    chained = [run_id for run_id in by_run if any(part.link for part in by_run[run_id])]
    without_end = [run_id for run_id in chained if records[run_id].tip is None]
    for run_id in without_end:
        if records[run_id].finished:
            found.add("chain", f"runs/{run_id}/run.json", "tells totals but not where the chain ends")
    return len(by_run), len(without_end)


def _listed_runs(output: str) -> list[str]:
    """What lies below OUTPUT/runs: also of runs of which no part is left."""
    try:
        return [item.key for item in storage.list_objects(storage.join(output, "runs"))]
    except NotFoundError:
        return []


def _with(name: str, keys: list[str]) -> set[str]:
    """The runs that have a file of this name."""
    return {key.removesuffix(f"/{name}") for key in keys if key.endswith(f"/{name}")}


def _check_plans(output: str, keys: list[str], found: Findings) -> None:
    for run_id in sorted(_with(PLAN, keys)):
        try:
            require_whole_plan(output, run_id)
        except RunError as error:
            found.add("run", f"runs/{run_id}/{PLAN}", str(error))


def _check_models(records: Iterable[_RunRecord], policies: Iterable[Policy], found: Findings) -> None:
    named = {record.model for record in records if record.model}
    named |= {(policy.model_id, policy.model_digest) for policy in policies if policy.model_digest}
    for model_id, n in Counter(model_id for model_id, _ in named).items():
        if n > 1:
            found.add("run", f"model {model_id}", f"{n} different models begin with these digits")


def _read_record(output: str, run_id: str, found: Findings) -> _RunRecord:
    place = f"runs/{run_id}/run.json"
    try:
        return _parse_record(parse_json(storage.read_bytes(storage.join(output, place))))
    except NotFoundError:
        found.add("run", place, "is not there, but parts of this run are")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found.add("run", place, f"is damaged ({type(error).__name__})")
    return _RunRecord(False, None, None)


def _parse_record(record: dict[str, Any]) -> _RunRecord:
    chain, digest = record.get("chain"), record.get("model_digest")
    return _RunRecord(
        finished="totals" in record,
        tip=None if chain is None else Tip(**chain),
        model=None if digest is None else (str(record["model_id"]), str(digest)),
    )
