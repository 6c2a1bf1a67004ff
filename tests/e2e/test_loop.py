"""The loop by mouse: upload, train, watch, chat, compare. And what a closed page leaves behind: everything."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.conftest import PATIENCE_S, SCREENSHOTS, start_training, until, write

WAIT_MS = PATIENCE_S * 1000


def curve(page: Page) -> list[str]:
    """The points of the training curve on the page."""
    line = page.locator("#job-curve polyline.train")
    return (line.get_attribute("points") or "").split() if line.count() else []


def test_the_whole_loop_by_mouse(visit: Callable[..., Page], shared_data: Path) -> None:
    page = visit("data")
    page.set_input_files("#data-file input[type=file]", shared_data / "data" / "instructions" / "identity.json")
    expect(page.locator("#data-rows")).to_contain_text("91 rows")
    expect(page.locator("#data-format input")).to_have_value("alpaca")
    page.get_by_role("button", name="Add dataset").click()
    expect(page.locator("#data-list [aria-current=true]")).to_contain_text("identity")
    page.get_by_role("button", name="Next: train on this").click()

    expect(page.locator("#train-data input")).to_have_value(re.compile("identity"))
    expect(page.locator("#train-preview .learned").nth(1)).to_contain_text("Hello! I am {{name}}")
    page.get_by_role("button", name=re.compile("All options")).click()
    # many short steps: while they are made the page looks several times, however fast this machine is
    write(page.locator("#option-max_steps input"), "40")
    write(page.locator("#option-learning_rate input"), "0.0006")
    write(page.locator("#option-max_length input"), "64")
    write(page.locator("#train-name input, #train-name textarea").first, "by-mouse")
    start_training(page)
    expect(page.locator("#job-head")).to_contain_text("by-mouse")
    seen: set[int] = set()
    until(lambda: seen.add(len(curve(page))) or len(seen - {0}) >= 2 or page.locator("#job-head .status-succeeded").count())
    expect(page.locator("#job-head .status-succeeded")).to_be_visible(timeout=WAIT_MS)
    assert len(seen - {0}) >= 2, f"the chart did not move while it was watched: {seen}"
    page.get_by_role("button", name="Next: chat with it").click()

    expect(page.locator("#chat-who")).to_contain_text("starter:by-mouse")
    expect(page.locator("#chat-message textarea")).to_have_value("hi")  # the first question of its rows
    page.get_by_role("button", name="Send").click()
    answer = page.locator("#chat-transcript .message.assistant")
    expect(answer).to_contain_text("starter:by-mouse", timeout=WAIT_MS)
    expect(answer).to_contain_text("toy model")
    page.get_by_role("button", name="Next: compare with the base").click()

    expect(page.locator("#tab-compare-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#compare-answers .status-succeeded")).to_be_visible(timeout=WAIT_MS)
    who = page.locator("#compare-answers .answer .who")
    expect(who).to_have_count(2)
    expect(who.nth(0)).to_contain_text("starter")
    expect(who.nth(1)).to_contain_text("by-mouse")
    page.reload()
    expect(page.locator("#compare-answers .answer")).to_have_count(2)


@pytest.mark.long
def test_a_closed_page_changes_nothing_and_reopening_shows_the_whole_curve(
    context: BrowserContext, visit: Callable[..., Page], api: httpx.Client, trained: dict[str, Any]
) -> None:
    options = {"max_steps": 12, "max_length": 64, "learning_rate": 0.003}
    body = {"data": trained["data"]["id"], "base_model": "starter", "name": "alone", "options": options}
    job = api.post("/jobs", json=body).raise_for_status().json()
    page = visit("jobs", job=job["id"])
    expect(page.locator("#job-curve polyline.train")).to_be_visible(timeout=WAIT_MS)
    address = page.url
    page.close()
    until(lambda: api.get(f"/jobs/{job['id']}").json()["status"] == "SUCCEEDED")

    again = context.new_page()
    again.goto(address)

    expect(again.locator("#job-head")).to_contain_text("alone")
    expect(again.locator("#job-head .status-succeeded")).to_be_visible()
    assert len(curve(again)) == 12
    expect(again.locator("#job-report")).to_contain_text("exact match", timeout=WAIT_MS)
    expect(again.locator("#job-report")).to_contain_text("that the training never saw")
    again.screenshot(path=SCREENSHOTS / "report.png", full_page=True)
    again.locator("#job-report-open").click()
    expect(again.locator("#compare-answers h2")).to_contain_text("alone-report")


def test_a_bad_file_says_line_reason_and_fix_and_its_good_rows_can_be_kept(visit: Callable[..., Page], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\nnot json\n{"prompt": "c", "completion": "d"}\n')
    page = visit("data")
    page.set_input_files("#data-file input[type=file]", bad)
    expect(page.locator("#data-rows .problems tbody tr")).to_have_count(1)
    expect(page.locator("#data-rows .problems tbody tr")).to_contain_text("2")
    page.get_by_role("button", name="Add dataset").click()
    expect(page.locator("#data-notice")).to_contain_text("bad.jsonl, line 2")
    page.get_by_label("Keep the good rows").check()
    page.get_by_role("button", name="Add dataset").click()

    expect(page.locator("#data-notice")).to_contain_text("2 rows. 1 row left out.")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it for good").click()
    expect(page.locator("#data-list").get_by_text("bad", exact=True)).to_have_count(0)


def test_every_problem_of_a_launch_is_shown_at_once(visit: Callable[..., Page], trained: dict[str, Any]) -> None:
    page = visit("train")
    expect(page.locator("#train-data input")).not_to_have_value("")
    page.get_by_role("button", name=re.compile("All options")).click()
    write(page.locator("#option-learning_rate input"), "9")
    write(page.locator("#option-lora-r input"), "0")
    page.get_by_role("button", name="Start training").click()

    expect(page.locator("#train-notice li")).to_have_count(2)
    expect(page.locator("#train-notice")).to_contain_text("learning_rate")
    expect(page.locator("#train-notice")).to_contain_text("lora.r")
