"""What a newcomer's first commands rely on: versions that fit, a light import, arrows that point one way."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("text", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_the_tested_version_is_within_the_declared_range(text: str) -> None:
    requirement = Requirement(text)
    assert pins()[requirement.name.lower()] in requirement.specifier


def test_constraints_hold_no_local_build_and_not_the_project() -> None:
    versions = pins()
    assert not [name for name, version in versions.items() if "+" in version]
    assert "segpipe" not in versions


@pytest.mark.parametrize(
    ("name", "breaks"),
    [("fastapi", "0.155.0"), ("sqlalchemy", "2.1.0"), ("prefect", "4.0.0"), ("torch", "2.12.1")],
)
def test_versions_known_to_break_are_shut_out(name: str, breaks: str) -> None:
    ranges = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    assert breaks not in ranges[name]


def test_the_command_says_its_version() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "segpipe", "--version"], capture_output=True, text=True, check=True
    )
    assert importlib.metadata.version("segpipe") in said.stdout


@pytest.mark.parametrize("module", ["storage", "images", "datasets", "manifests"])
def test_modules_below_the_models_do_not_load_torch(module: str) -> None:
    script = f"import sys, segpipe.{module}; print('torch' in sys.modules, 'prefect' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_names_the_remedy_when_python_is_too_old(tmp_path: Path) -> None:
    command = ["make", "test", "PYTHON=/bin/false", f"VENV={tmp_path / 'venv'}"]
    said = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert "segpipe needs Python 3.11 or newer" in said.stderr
    assert not (tmp_path / "venv").exists()
