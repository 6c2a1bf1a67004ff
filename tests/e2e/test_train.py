"""The Train tab by mouse: a method re-shapes the form, what is refused explains and mends itself, and all of it can be written down."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.e2e.conftest import SCREENSHOTS


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
    page.locator("#train-refusals").get_by_role("button", name="Set it").click()
    expect(page.locator("#option-gradient_checkpointing input")).not_to_be_checked()
    expect(page.locator("#train-refusals")).not_to_contain_text("cache")

    page.locator("#train-goal label").filter(has_text="DPO").click()
    expect(page.locator("#section-dpo")).to_be_visible()
    expect(page.locator("#train-refusals")).to_contain_text("dpo learns from preference rows")  # these are rows to imitate
    page.get_by_role("button", name=re.compile("In writing")).click()
    expect(page.locator("#train-command textarea")).to_have_value(re.compile("studio train .* --recipe dpo"))
    expect(page.locator("#train-yaml textarea")).to_have_value(re.compile("objective: dpo"))
    page.screenshot(path=SCREENSHOTS / "train-dpo.png", full_page=True)
