"""Which engine the settings name, what they may not say together, and what is missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from segpipe.config import LabelSettings
from segpipe.errors import RunError
from segpipe.labeling.engines import local, ray
from segpipe.labeling.engines.table import engine_of
from segpipe.labeling.run import label_source
from segpipe.reports.summary import engine_line


def test_without_ray_the_run_does_not_begin_and_the_remedy_is_said(
    tmp_path, make_labeler, fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path / "in"), 2)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    settings = LabelSettings(engine="ray", workers=2)
    with pytest.raises(RunError, match=r"needs Ray: pip install 'segpipe\[ray\]', or take --engine local"):
        label_source(str(tmp_path / "in"), str(tmp_path / "out"), make_labeler(), settings)
    assert not (tmp_path / "out").exists()


def test_the_settings_name_the_engine() -> None:
    assert engine_of(LabelSettings()) is local.finished_shards
    assert engine_of(LabelSettings(engine="ray")) is ray.finished_shards


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": 2}, "--workers has no use at --engine local"),
        ({"worker_cpus": 2.0}, "--worker-cpus has no use at --engine local"),
        ({"worker_gpus": 1.0}, "--worker-gpus has no use at --engine local"),
        ({"engine": "ray", "worker_gpus": 1.0, "device": "cpu"}, "no use with --device cpu"),
        ({"engine": "ray", "worker_gpus": 0, "device": "cuda"}, "leaves --device cuda without a GPU"),
        ({"engine": "ray", "device": "cuda:1"}, "--device cuda:1 is one GPU .* take --device cuda"),
        ({"engine": "ray", "worker_gpus": 1.5}, "a fraction of one, or a whole number"),
        ({"engine": "ray", "workers": "some"}, "neither auto nor a number"),
        ({"engine": "ray", "workers": 0}, "neither auto nor a number"),
        ({"engine": "spark"}, "'local' or 'ray'"),
    ],
)
def test_what_has_no_use_or_no_meaning_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LabelSettings(**values)


@pytest.mark.parametrize("workers", [4, "4", "auto"])
def test_a_number_of_workers_is_one_however_it_is_written(workers: object) -> None:
    assert LabelSettings(engine="ray", workers=workers).workers == str(workers)


def test_an_engine_of_workers_is_told_from_this_process() -> None:
    assert not LabelSettings(device="cuda").has_workers
    assert LabelSettings(device="cuda", engine="ray").has_workers


def test_plan_says_who_will_label() -> None:
    assert engine_line(LabelSettings()) == "local: this process, on one device"
    settings = LabelSettings(engine="ray", workers=8, worker_gpus=0.25, worker_cpus=4)
    assert engine_line(settings) == "ray: 8 workers, each with 0.25 GPUs and 4 cores"
    assert "as many workers as there is room for" in engine_line(LabelSettings(engine="ray"))
