"""The demo by keyboard alone: every step is reached with Tab and done with Enter or Space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import PATIENCE_S, until

WAIT_MS = PATIENCE_S * 1000
MAX_TABS = 80


def reach(page: Page, target: Locator) -> None:
    """Press Tab until `target` has the focus, as somebody without a mouse would."""
    expect(target).to_be_visible(timeout=WAIT_MS)
    for _ in range(MAX_TABS):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{target} can't be reached with Tab")


def press(page: Page, name: str, key: str = "Enter") -> None:
    reach(page, page.get_by_role("button", name=name, exact=True))
    page.keyboard.press(key)


@pytest.mark.long
def test_the_demo_needs_no_mouse(visit: Callable[..., Page]) -> None:
    page = visit("start")
    press(page, "Add the demo rows")
    press(page, "Train the adapter", "Space")
    expect(page.locator("#tab-jobs-button")).to_have_attribute("aria-selected", "true")
    until(lambda: page.locator("#job-curve polyline.eval").count())
    press(page, "Stop and keep what it learned")
    press(page, "Next: chat with it")
    expect(page.locator("#chat-message textarea")).not_to_be_empty()
    reach(page, page.locator("#chat-message textarea"))
    page.keyboard.press("Enter")
    expect(page.locator("#chat-transcript .message.assistant")).to_contain_text("starter:demo-router", timeout=WAIT_MS)
    press(page, "Next: compare with the base")
    expect(page.locator("#compare-answers .status-succeeded")).to_be_visible(timeout=WAIT_MS)
    reach(page, page.locator("#tab-start-button"))
    page.keyboard.press("Enter")

    expect(page.locator("#start-steps li.done")).to_have_count(5)
    page.reload()
    expect(page.locator("#start-steps li.done")).to_have_count(5)
