"""The flow that a deployment runs every half hour, on a real Prefect server and a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prefect.blocks.system import Secret
from studio_night import Night
from studio_server import TOKEN, Studio

from flows.review import SECRET_BLOCK, project_of, sync

pytestmark = [pytest.mark.studio, pytest.mark.usefixtures("prefect_server")]


def test_decisions_come_and_masks_go_for_every_output(
    studio: Studio, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = night(3)
    title = project_of(made.output)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    empty = f"{made.output}-of-tomorrow"

    done = sync(studio.url, outputs=[made.output, empty])
    assert (done["outputs"], done["pushed"], done["accepted"]) == (2, 3, 0)
    first = studio.tasks(title)[0]
    studio.submit(first, studio.draft(first)["result"])
    done = sync(studio.url, outputs=[made.output, empty])
    assert (done["pushed"], done["accepted"]) == (0, 1)


def test_the_token_may_come_from_a_secret_block_and_is_not_shown(
    studio: Studio, night: Callable[..., Night], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = night(1)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    without = sync(studio.url, outputs=[made.output], return_state=True)
    assert without.is_failed()
    assert f"create the Prefect Secret block {SECRET_BLOCK}" in str(without.message)

    Secret(value="f" * 40).save(SECRET_BLOCK, overwrite=True)
    wrong = sync(studio.url, outputs=[made.output], return_state=True)
    assert wrong.is_failed()
    assert "refuses the token (401)" in str(wrong.message)
    assert "f" * 40 not in str(wrong.message)

    Secret(value=TOKEN).save(SECRET_BLOCK, overwrite=True)
    assert sync(studio.url, outputs=[made.output])["pushed"] == 1


def test_without_an_address_there_is_nothing_to_do() -> None:
    assert sync() == {"outputs": 0}
