"""Kinds: a new one is one file and one line, and an unknown name says which there are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segpipe import kinds
from segpipe.config import TrainSettings
from segpipe.errors import RunError
from segpipe.models.discriminators.protocol import Adversary, build_adversary
from segpipe.models.generators.protocol import Generator, build_generator
from segpipe.training.gan_losses.game import GanLoss, gan_loss

FIELDS = {
    "architecture": kinds.ARCHITECTURES,
    "objective": kinds.OBJECTIVES,
    "gan_loss": kinds.GAN_LOSSES,
}
BUILT: list[tuple[Mapping[str, Any], Callable[[str], Any], type]] = [
    (kinds.GENERATORS, lambda name: build_generator(name, 3), Generator),
    (kinds.DISCRIMINATORS, lambda name: build_adversary(name, 3), Adversary),
    (kinds.GAN_LOSSES, gan_loss, GanLoss),
]


@pytest.mark.parametrize(("table", "build", "kind"), BUILT)
def test_every_line_of_a_table_leads_to_its_kind(
    table: Mapping[str, Any], build: Callable[[str], Any], kind: type
) -> None:
    for name in table:
        assert isinstance(build(name), kind)


@pytest.mark.parametrize(("table", "build", "kind"), BUILT)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(
    table: Mapping[str, Any], build: Callable[[str], Any], kind: type
) -> None:
    with pytest.raises(RunError, match=f"'resnet': take one of {', '.join(table)}$"):
        build("resnet")


@pytest.mark.parametrize(("field", "table"), FIELDS.items())
def test_settings_take_the_names_of_the_table_alone(field: str, table: Mapping[str, Any]) -> None:
    for name in table:
        assert getattr(TrainSettings(data="d", model="m", **{field: name}), field) == name
    with pytest.raises(ValidationError, match=" or ".join(f"'{name}'" for name in list(table)[-2:])):
        TrainSettings(data="d", model="m", **{field: "resnet"})
    assert TrainSettings.model_json_schema()["properties"][field]["enum"] == list(table)  # Prefect's form


def test_every_foreign_kind_reads_and_builds_and_has_an_architecture() -> None:
    for name in kinds.FOREIGN_GENERATORS:
        module = kinds.module_of(kinds.FOREIGN_GENERATORS, name, "foreign generator")
        assert callable(module.read)
        assert callable(module.build)
        assert kinds.ADOPTED_ARCHITECTURES[name].discriminator in kinds.DISCRIMINATORS
        assert name not in kinds.ARCHITECTURES, "nobody trains one by --architecture"


def test_architectures_name_generators_and_discriminators_that_exist() -> None:
    for architecture in kinds.ARCHITECTURES.values():
        assert architecture.generator in kinds.GENERATORS
        assert architecture.discriminator in kinds.DISCRIMINATORS


def test_a_new_loss_is_one_file_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "softplus_loss.py").write_text(
        "from torch.nn.functional import softplus\n"
        "from segpipe.training.gan_losses.game import GanLoss\n"
        "LOSS = GanLoss(lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),\n"
        "               lambda fake: softplus(-fake).mean(), boundary=0.0)\n"
    )
    script = (
        "import sys\n"
        "from segpipe.kinds import GAN_LOSSES, Kind\n"
        "GAN_LOSSES['softplus'] = Kind('without a half', 'softplus_loss')\n"  # the one line
        "from segpipe.cli import run\n"
        "assert run(['train', '--help']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "from segpipe.training.gan_losses.game import gan_loss\n"
        "import torch\n"
        "print(float(gan_loss('softplus').generator(torch.zeros(1))))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])}
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    text = " ".join(said.stdout.split())
    assert "[bce|lsgan|hinge|wgan-gp|softplus]" in text
    assert "softplus without a half" in text
    assert text.endswith(" 0.6931471824645996")
