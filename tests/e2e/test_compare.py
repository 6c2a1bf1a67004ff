"""Compare, judge, vote, rate, and train on what came out, by mouse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import PATIENCE_S, SCREENSHOTS, start_training, write

WAIT_MS = PATIENCE_S * 1000
PROMPTS = 12


def written(folder: Path) -> tuple[Path, Path, Path]:
    """Prompts with references, and two files of answers: the first right in two of three."""
    prompts, often, seldom = (folder / f"{name}.jsonl" for name in ("prompts", "often", "seldom"))
    rows = [{"id": str(n), "prompt": f"What is the opposite of word {n}?", "reference": f"right {n}"} for n in range(PROMPTS)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    often.write_text("\n".join(json.dumps({"prompt_id": str(n), "answer": f"right {n}" if n % 3 else f"no {n}"}) for n in range(PROMPTS)))
    seldom.write_text("\n".join(json.dumps({"prompt_id": str(n), "answer": f"no {n}" if n % 3 else f"right {n}"}) for n in range(PROMPTS)))
    return prompts, often, seldom


def opened(page: Page, title: str) -> None:
    page.get_by_role("button", name=re.compile(title)).first.click()


@pytest.mark.timeout(3000)
def test_compare_judge_vote_and_train_on_it(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(f"{url}/?tab=compare")
    expect(page.locator("#compare-start")).to_be_visible()
    prompts, often, seldom = written(tmp_path)
    opened(page, "Or many")
    page.set_input_files("#compare-many input[type=file]", prompts)
    expect(page.get_by_label("prompts.jsonl", exact=True)).to_be_visible()  # the row of a file that has arrived is labelled with its name
    opened(page, "Others: a server")
    page.set_input_files("input[type=file][multiple]", [often, seldom])
    expect(page.get_by_label("often.jsonl", exact=True)).to_be_visible()
    expect(page.get_by_label("seldom.jsonl", exact=True)).to_be_visible()
    chosen = page.locator("#compare-who input:checked")
    for count in range(chosen.count(), 1, -1):  # adapters of tests before this one; the base is the third contestant
        chosen.last.click()
        expect(chosen).to_have_count(count - 1)
    write(page.locator("#compare-name input, #compare-name textarea").first, "three")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#compare-answers h2")).to_contain_text("three")
    expect(page.locator("#compare-answers .status-succeeded")).to_be_visible(timeout=WAIT_MS)

    opened(page, "Judge: which is better")
    page.locator("#judge-start").click()
    expect(page.locator("#judge-readings .status-succeeded")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#judge-readings .wins li").filter(has_text="often")).to_be_visible()
    expect(page.locator("#judge-readings")).to_contain_text(re.compile(r"\d+ pairs"))

    opened(page, "Vote blind")
    page.locator("#vote-ask").click()
    for number in range(10):
        expect(page.locator("#vote-ballot")).to_contain_text(f"{number} of ", timeout=WAIT_MS)
        left = page.locator("#vote-ballot .answer .text").nth(0).inner_text()
        page.locator("#vote-left" if left.startswith("right") else "#vote-right").click()
        expect(page.locator("#vote-told")).to_contain_text("Left was")
    expect(page.locator("#vote-ballot")).to_contain_text("10 of ")

    opened(page, "Leaderboard and agreement")
    page.locator("#board-show").click()
    expect(page.locator("#board tbody").first.locator("tr")).to_have_count(3, timeout=WAIT_MS)
    expect(page.locator("#board")).to_contain_text("human:me")
    expect(page.get_by_role("region", name="Metrics")).to_contain_text("exact match")
    for width, theme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
        page.screenshot(path=SCREENSHOTS / f"judging-{theme}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "the page scrolls sideways"
    page.set_viewport_size({"width": 1280, "height": 900})

    opened(page, "Make preferences")
    write(page.locator("#preferences-name input, #preferences-name textarea").first, "three-preferences")
    page.locator("#preferences-make").click()
    expect(page.locator("#preferences-notice")).to_contain_text("three-preferences", timeout=WAIT_MS)
    page.locator("#preferences-train").click()
    expect(page.locator("#tab-train-button").first).to_have_attribute("aria-selected", "true")
    expect(page.locator("#train-data input")).to_have_value(re.compile("three-preferences"))
    expect(page.locator("#train-goal input:checked")).to_have_value("dpo")
    start_training(page)
    expect(page.locator("#job-head")).to_contain_text("three-preferences")
