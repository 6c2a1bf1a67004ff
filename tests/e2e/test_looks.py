"""How every tab looks: no accessibility rule broken, no page that scrolls sideways, in light and dark, wide and narrow.

Leaves a screenshot of each in tests/e2e/screenshots, for people to look at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from studio.ui.page import TABS
from tests.e2e.conftest import HOSTILE_PROMPT, SCREENSHOTS, until

SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}
# what shows that a tab of a used studio has its rows
DRAWN = {
    "start": "#start-steps .steps",
    "data": "#data-rows .examples",
    "train": "#train-preview .render",
    "jobs": "#job-curve polyline",
    "chat": "#chat-transcript .empty",
    "compress": "#compress-shown .empty",
    "compare": "#compare-answers .answer",
    "models": "#models-list .row",
}


def drawn(visit: Callable[..., Page], tab: str, theme: str) -> Page:
    page = visit(tab, __theme=theme)
    expect(page.locator(DRAWN[tab]).first).to_be_visible()
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_a_tab_breaks_no_rule_and_never_scrolls_sideways(
    visit: Callable[..., Page], trained: dict[str, Any], axe: str, tab: str, theme: str
) -> None:
    page = drawn(visit, tab, theme)
    for name, size in SIZES.items():
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.screenshot(path=SCREENSHOTS / f"{tab}-{theme}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, name
    for folded in page.locator("button.label-wrap:visible").all():
        folded.click()
    page.evaluate(axe)

    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]

    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert not [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in serious]


@pytest.fixture(scope="module")
def newest_is_hostile(api: httpx.Client, trained: dict[str, Any]) -> None:
    """Tabs open on what is newest: other tests have added rows and comparisons since."""
    row = json.dumps({"prompt": f"{HOSTILE_PROMPT} 1", "completion": "<img src=x onerror=alert(2)> ${alert(3)}"})
    api.post("/datasets/text", json={"text": f"{row}\n{row}", "name": "hostile-again"}).raise_for_status()
    prompts = [{"prompt": f"{HOSTILE_PROMPT} ?", "reference": "<b>${alert(4)}</b>"}]
    body = {"base_model": "starter", "contestants": ["base"], "prompts": prompts, "params": {"max_new_tokens": 8}}
    made = api.post("/comparisons", json=body).raise_for_status().json()
    until(lambda: api.get(f"/comparisons/{made['id']}").json()["status"] == "SUCCEEDED")


@pytest.mark.usefixtures("newest_is_hostile")
@pytest.mark.parametrize("tab", ["data", "train", "jobs", "compare"])
def test_hostile_rows_stay_text(visit: Callable[..., Page], tab: str) -> None:
    # the fixture of the page fails on any dialog, error or foreign request that they cause
    page = drawn(visit, tab, "light")

    if tab != "jobs":
        expect(page.locator("body")).to_contain_text("${alert(1)} {{value}} <script>alert(0)</script>")
    assert page.locator("img[src=x]").count() == 0
