"""The watch goes on with the sources file and the notes that an earlier version has left."""

from __future__ import annotations

from collections.abc import Iterator

import old_state as old
import pytest
from old_state import ROOT

from flows.watch import watch

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(params=sorted(folder.name for folder in old.FIXTURES.iterdir()))
def tree(request: pytest.FixtureRequest) -> Iterator[None]:
    old.put_tree(old.read_tree(request.param))
    yield
    old.remove_tree()


@pytest.mark.usefixtures("tree")
def test_what_was_announced_is_not_announced_again_and_what_was_found_only_is() -> None:
    sources = [f"{ROOT}/raw-{number}" for number in (17, 18, 19, 20)]
    assert watch(old.SOURCES) == {"found": sources, "announced": [f"{ROOT}/raw-18"]}
    assert watch(old.SOURCES) == {"found": sources, "announced": []}
