"""Train's fit bar and the Models tab, by mouse: the bar follows the options, a card leads back to what made an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.e2e.conftest import SCREENSHOTS, write

ONLY_THE_PAGE = True


def photograph(page: Page, name: str) -> None:
    """At a desk and on a phone, light and dark."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for dark in (False, True):
            page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
            page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{'dark' if dark else 'light'}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "the page scrolls sideways"
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size({"width": 1280, "height": 800})


def test_the_fit_bar_follows_the_options_and_its_advice_can_be_taken(visit: Callable[..., Page], trained: dict[str, Any]) -> None:
    # red when a field does not redraw the bar, or when advice changes another field than it names
    page = visit("train")
    figure = page.locator("#fit .figure")
    expect(figure).to_contain_text("to spare")
    before = figure.inner_text()
    page.get_by_text("All options").click()
    batch = page.locator("#option-per_device_train_batch_size input")
    write(batch, "64")
    batch.blur()
    expect(figure).not_to_have_text(before)
    larger = figure.inner_text()
    page.locator("#fit .advice button").first.click()
    expect(figure).not_to_have_text(larger)
    photograph(page, "train-fit")


def test_an_adapter_leads_back_to_its_run_and_its_data(visit: Callable[..., Page], trained: dict[str, Any]) -> None:
    # red when the lineage is cut, or a link of it opens another thing
    page = visit("models")
    expect(page.locator("#models-card h2")).to_have_text("starter")
    page.locator("#models-list button", has_text="tiny").first.click()
    card = page.locator("#models-card")
    expect(card.locator("h2")).to_have_text("tiny")
    expect(card).to_contain_text("hostile")
    expect(card).to_contain_text("comparison:")
    photograph(page, "models")
    page.get_by_text("Bring a model here").click()
    write(page.locator("#models-filter input, #models-filter textarea").first, "starcoder")
    expect(page.locator("#models-known li")).to_have_count(2)
    photograph(page, "models-known")
    card.get_by_role("button", name="run:").click()
    expect(page.locator("#tab-jobs-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tab-jobs .job h2").first).to_contain_text("tiny")
