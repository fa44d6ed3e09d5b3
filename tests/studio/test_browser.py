"""What a person does in the page of a real Label Studio, in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright
from studio_night import Night
from studio_server import EMAIL, PASSWORD, Studio

pytestmark = pytest.mark.studio

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ALONE = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture
def page(studio: Studio) -> Iterator[Page]:
    """A page of a reviewer who has logged in."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(180_000)  # a first page of several megabytes, on a machine that does more
        page.goto(f"{studio.url}/user/login/")
        page.fill("input[name=email]", EMAIL)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        yield page
        browser.close()


def test_a_reviewer_submits_paints_and_rejects(
    studio: Studio, night: Callable[..., Night], page: Page
) -> None:
    made = night(3)
    made.push(studio)
    untouched, painted, rejected = studio.tasks(made.project)
    project = studio.project_id(made.project)

    def open_task(number: int) -> None:
        page.goto(f"{studio.url}/projects/{project}/data?task={number}")
        page.get_by_label("Submit current annotation").wait_for()
        page.locator("canvas").first.wait_for()
        page.get_by_text("road").first.wait_for()

    def submit() -> None:
        with page.expect_response(
            lambda answer: answer.request.method == "POST" and "/annotations" in answer.url
        ) as answer:
            page.get_by_label("Submit current annotation").click()
        assert answer.value.ok

    open_task(untouched["id"])
    submit()

    open_task(painted["id"])
    page.keyboard.press("2")  # the class car
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5, steps=20)
    page.mouse.up()
    submit()

    open_task(rejected["id"])
    page.get_by_text("reject").first.click()
    submit()

    pulled = made.pull(studio)
    kinds = ("accepted", "corrected", "rejected", "refused")
    assert {kind: pulled[kind] for kind in kinds} == {
        "accepted": 1, "corrected": 1, "rejected": 1, "refused": 0
    }  # fmt: skip
    final = made.final_masks()
    image = untouched["data"]["image"]
    assert np.array_equal(final[image], made.masks[image]), "bit-identical where untouched"
    image = painted["data"]["image"]
    changed = final[image] != made.masks[image]
    assert changed.any()
    assert set(final[image][changed].tolist()) == {1}, "only what was painted, as a car"
    assert rejected["data"]["image"] not in final
