"""A run keeps the model that it was planned with, whatever its line stands for by then."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from random_model import write_random_model

from segpipe.labeling import ledger as ledger_module
from segpipe.labeling.engines.work import ServedModel
from segpipe.labeling.run import label_source
from segpipe.manifests.store import read_manifest
from segpipe.models.labeler import load_model
from segpipe.models.promotion_line import Promotion, promote, resolve
from segpipe.models.served import load_planned

pytestmark = pytest.mark.ray


def _promote(line: str, model: str, after: int) -> str:
    """The id of the model that the line stands for now."""
    model_id = load_model(model, "cpu").model_id
    promote(line, Promotion(model, model_id, "better", {"n": 3}, "2026-11-24T00:00:00+00:00"), after)
    return model_id


def _kill_a_worker() -> None:
    """One of those that this process's own Ray has started."""
    ours = psutil.Process().children(recursive=True)
    next(one for one in ours if "".join(one.cmdline()).startswith("ray::ShardWorker")).kill()


def test_a_promotion_in_the_middle_changes_no_row_also_where_a_worker_starts_after_it(
    by_ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = str(tmp_path / "line")
    first, second = (
        write_random_model(str(tmp_path / name), classes=("dark", name)) for name in ("first", "second")
    )
    planned = _promote(line, first, 0)
    labeler, served = load_model(line, "cpu"), ServedModel(resolve(line), load_planned)
    commit, promoted = ledger_module.commit_part, []

    def promoting(*arguments: object) -> object:
        if not promoted:
            promoted.append(_promote(line, second, 1))
            _kill_a_worker()
        return commit(*arguments)

    monkeypatch.setattr(ledger_module, "commit_part", promoting)
    settings = by_ray.settings.model_copy(update={"shard_images": 2})
    summary = label_source(by_ray.source, by_ray.output, labeler, settings, "r1", served=served)
    assert (summary.planned, summary.review) == (24, 24)
    rows = read_manifest(by_ray.output).to_pylist()
    assert sorted(row["image_uri"] for row in rows) == by_ray.uris
    assert {row["model_id"] for row in rows} == {planned}
    assert load_model(line, "cpu").model_id == promoted[0] != planned
