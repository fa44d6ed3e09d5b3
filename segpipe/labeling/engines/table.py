"""The engine of a run, by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segpipe.kinds import ENGINES, module_of
from segpipe.labeling.engines.work import Engine

if TYPE_CHECKING:
    from segpipe.config import LabelSettings


def engine_of(settings: LabelSettings) -> Engine:
    """The engine that the settings name. Raises RunError for one that is not there or not installed."""
    module = module_of(ENGINES, settings.engine, "engine")
    module.require_installed()
    engine: Engine = module.finished_shards
    return engine
