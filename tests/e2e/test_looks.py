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

ONLY_THE_PAGE = True

SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}
THEMES = ("light", "dark")
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


def turn(page: Page, theme: str) -> None:
    """As Gradio's page does for `?__theme=dark`."""
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")


@pytest.mark.parametrize("tab", [entry.key for entry in TABS])
def test_a_tab_breaks_no_rule_and_never_scrolls_sideways(visit: Callable[..., Page], trained: dict[str, Any], axe: str, tab: str) -> None:
    page = visit(tab, __theme="light")
    expect(page.locator(DRAWN[tab]).first).to_be_visible()
    page.add_style_tag(content="* { transition: none !important; }")  # a colour on its way to the other theme has too little contrast
    for name, size in SIZES.items():
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for theme in THEMES:
            turn(page, theme)
            page.screenshot(path=SCREENSHOTS / f"{tab}-{theme}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, name
    for folded in page.locator("button.label-wrap:visible").all():
        folded.click()
    page.evaluate(axe)
    for theme in THEMES:
        turn(page, theme)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
        assert not [(theme, rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in serious]
