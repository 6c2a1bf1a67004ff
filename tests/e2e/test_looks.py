"""How every tab looks: no accessibility rule broken, no page that scrolls sideways, in light and dark, wide and narrow.

Leaves a screenshot of each in tests/e2e/screenshots, for people to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from studio.ui.tabs import TABS
from tests.e2e.conftest import SCREENSHOTS

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
@pytest.mark.parametrize("tab", [entry.key for entry in TABS])
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
