"""The Train tab by mouse: a method re-shapes the form, what is refused explains and mends itself, and all of it can be written down."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from studio import settings as studio_settings
from studio.catalogue import hardware
from studio.services import Studio
from tests.e2e.conftest import SCREENSHOTS, quiet_window, write
from tests.servers import web

ONLY_THE_PAGE = True
MOST_ROWS_TAKE = 10**11  # bytes, about: 4,096 rows at once, the most that may be asked for


def test_a_method_reshapes_the_form_and_a_refusal_explains_and_mends_itself(visit: Callable[..., Page], trained: dict[str, Any]) -> None:
    page = visit("train")
    expect(page.locator("#train-data input")).not_to_have_value("")
    page.get_by_role("button", name=re.compile("All options")).click()
    expect(page.locator("#section-lora")).to_be_visible()
    expect(page.locator("#section-prompt")).to_be_hidden()

    page.locator("#train-others input").click()
    page.get_by_role("option", name=re.compile("prefix-tuning")).click()
    expect(page.locator("#train-goal input:checked")).to_have_value("prefix-tuning")
    expect(page.locator("#section-prompt")).to_be_visible()
    expect(page.locator("#section-lora")).to_be_hidden()

    page.locator("#option-gradient_checkpointing input").check()
    expect(page.locator("#train-refusals")).to_contain_text("prefix tuning puts its tokens into the cache", ignore_case=True)
    about_the_cache = page.locator("#train-refusals li").filter(has_text=re.compile("into the cache"))  # the data may have refusals too
    about_the_cache.get_by_role("button", name="Set it").click()
    expect(page.locator("#option-gradient_checkpointing input")).not_to_be_checked()
    expect(about_the_cache).to_have_count(0)

    page.locator("#train-goal label").filter(has_text="DPO").click()
    expect(page.locator("#section-dpo")).to_be_visible()
    expect(page.locator("#train-refusals")).to_contain_text("dpo learns from preference rows")  # these are rows to imitate
    page.get_by_role("button", name=re.compile("In writing")).click()
    expect(page.locator("#train-command textarea")).to_have_value(re.compile("studio train .* --recipe dpo"))
    expect(page.locator("#train-yaml textarea")).to_have_value(re.compile("objective: dpo"))
    page.screenshot(path=SCREENSHOTS / "train-dpo.png", full_page=True)


@pytest.mark.long
def test_the_fastest_plan_that_fits_is_taken_with_one_click(visit: Callable[..., Page], trained: dict[str, Any]) -> None:
    if hardware.memory().free_bytes > MOST_ROWS_TAKE:
        pytest.skip("here the largest batch fits too")
    # red when the button changes other fields than the plan names, or what it takes does not fit either
    page = visit("train")
    expect(page.locator("#fit h2")).to_have_text("It fits")
    page.get_by_role("button", name=re.compile("All options")).click()
    rows, steps = (page.locator(f"#option-{name} input").first for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    begun = int(steps.input_value())
    rows.fill("4096")
    rows.blur()
    expect(page.locator("#fit h2")).to_have_text("It does not fit")
    plan = page.locator("#fit .plan")
    expect(plan).to_contain_text("per_device_train_batch_size=")
    page.screenshot(path=SCREENSHOTS / "train-plan.png", full_page=True)
    named = dict(re.findall(r"(\w+)=(\w+) instead of", plan.inner_text()))
    plan.get_by_role("button", name="Take the fastest that fits").click()
    expect(page.locator("#fit h2")).to_have_text("It fits")
    expect(plan).to_have_count(0)
    expect(rows).to_have_value(named["per_device_train_batch_size"])
    assert int(rows.input_value()) * int(steps.input_value()) == 4096 * begun, "as many rows per step as before"


def start(page: Page, name: str) -> None:
    write(page.locator("#train-name input, #train-name textarea").first, name)
    page.get_by_role("button", name="Start training").click()


@pytest.mark.long
def test_a_training_waits_for_another_and_a_grid_becomes_a_sweep(browser: Browser, tmp_path: Path) -> None:
    opened = Studio.open(studio_settings.load({"STUDIO_HOME": str(tmp_path / "home")}))
    opened.datasets.add_text("\n".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}' for n in range(12)), name="numbers")
    opened.jobs.submit(data="numbers", base_model="starter", name="one", options={"max_steps": 3})
    with web(tmp_path / "home") as server, quiet_window(browser, server.url) as window:
        page = window.new_page()
        page.goto(f"{server.url}/?tab=train")
        page.get_by_role("button", name=re.compile("When it starts")).click()
        page.locator("#train-after input").click()
        page.get_by_role("option", name="one", exact=True).click()
        start(page, "two")
        expect(page.locator("#job-head h2")).to_contain_text("two")
        expect(page.locator("#jobs-list .row", has_text="two").first).to_contain_text("after one")

        page.locator("#tab-train-button").click()
        expect(page.locator("#train-after input")).to_have_value("as soon as its turn comes")
        write(page.locator("#train-grid textarea"), "learning_rat=[0.001]\nlora.r=8")
        start(page, "grid")
        expect(page.locator("#train-notice li")).to_have_text(["learning_rat is no option", "lora.r has no list of values"])
        write(page.locator("#train-grid textarea"), "learning_rate=[0.001, 0.0001]\nlora.r=[4, 8]")
        page.get_by_role("button", name=re.compile("In writing")).click()
        expect(page.locator("#train-command textarea")).to_have_value(re.compile(r"studio sweep .*--grid 'lora.r=\[4, 8\]'"))
        page.screenshot(path=SCREENSHOTS / "train-starting.png", full_page=True)
        page.get_by_role("button", name="Start training").click()
        expect(page.locator("#job-head h2")).to_contain_text("grid")
        expect(page.locator("#job-head")).to_contain_text("0 of 4 runs done")
    configs = [opened.jobs.show(job.id).config for job in opened.jobs.list() if job.parent]
    tried = {(config["learning_rate"], config["lora"]["r"]) for config in configs}
    opened.db.dispose()
    assert tried == {(0.001, 4), (0.001, 8), (0.0001, 4), (0.0001, 8)}
