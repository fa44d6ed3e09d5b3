"""The data set that `segpipe train` takes (contract C1)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from segpipe.datasets import IGNORED
from segpipe.exchange.exports.items import Item, Target


def write(items: Iterable[Item], target: Target) -> None:
    """The data set that `segpipe train` takes (contract C1)."""
    for item in items:
        target.put(f"{target.split}/images/{item.key}{item.extension}", item.image)
        target.put(f"{target.split}/masks/{item.key}.png", target.encoded(item))
    description = {"name": "segpipe", "classes": list(target.classes), "ignore_index": IGNORED}
    target.put("dataset.json", json.dumps(description, indent=1))
