"""The Compress tab by mouse: a prompt gets shorter, its words show their fate, both are asked, a vote is kept, the curve is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import SCREENSHOTS, until, write

HOSTILE = "Item 28: <script>alert(1)</script> ${alert(2)} costs 80,000 dollars, and nobody has really decided about the plan of the city."


def test_a_prompt_is_compressed_asked_and_voted_on(visit: Callable[..., Page]) -> None:
    page = visit("compress")
    write(page.locator("#compress-prompt textarea"), HOSTILE)
    page.get_by_role("button", name="Compress", exact=True).click()
    words = page.locator("#compress-shown .words")
    expect(words).to_contain_text("80,000", timeout=300_000)
    assert words.inner_text() == HOSTILE  # every space as it was, nothing run as code
    expect(words.locator("del").first).to_be_visible()
    short = page.locator("#compress-text textarea")
    expect(short).to_have_value(re.compile("80,000"))

    page.get_by_role("button", name="Ask both").click()
    answers = page.locator("#compress-answers .answer")
    expect(answers).to_have_count(2, timeout=300_000)
    page.get_by_role("button", name="Let the judge decide").click()
    expect(page.locator("#compress-answers .judged")).to_contain_text("likelihood:starter", timeout=300_000)
    if page.get_by_role("button", name="No difference").count():
        expect(page.locator("#compress-answers")).not_to_contain_text("The whole prompt")
        expect(page.locator("#compress-answers .who").first).to_have_text("Answer A")
        page.get_by_role("button", name="No difference").click()
        expect(page.locator("#compress-answers")).to_contain_text("Votes so far")
    expect(page.locator("#compress-answers")).to_contain_text("The whole prompt")
    page.screenshot(path=SCREENSHOTS / "compress-answers.png", full_page=True)

    page.get_by_role("button", name="Use in chat").click()
    expect(page.locator("#tab-chat-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#chat-message textarea")).to_have_value(re.compile("80,000"))


@pytest.mark.long
def test_the_curve_of_a_sweep_is_drawn(visit: Callable[..., Page], api: httpx.Client) -> None:
    rows = [{"text": f"Um, well, what is the capital of {place}?", "reference": capital} for place, capital in CAPITALS.items()]
    body = {"contestant": "starter", "rows": rows, "rates": [1, 0.5], "metric": "rougeL", "judge": "starter"}
    job = api.post("/compress/sweep", json=body).raise_for_status().json()
    done = until(lambda: api.get(f"/compress/jobs/{job['id']}").json())
    assert [point["rate"] for point in done["points"]] == [1.0, 0.5] and done["points"][0]["n"] == len(CAPITALS)
    assert done["points"][0]["judge"] == 0.5 and 0 <= done["points"][1]["judge"] <= 1  # equal answers are a tie
    page = visit("compress")
    expect(page.locator("#compress-curve polyline")).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "compress-curve.png", full_page=True)


def test_a_dataset_gets_a_shorter_version(api: httpx.Client) -> None:
    long = "The committee met, and so it went on and on about the harbour and the 12 boats of the town. " * 4
    rows = "\n".join(f'{{"prompt": "{long} What is {n}?", "completion": "It is {n}."}}' for n in range(3))
    data = api.post("/datasets/text", json={"text": rows, "name": "wordy"}).raise_for_status().json()
    job = api.post("/compress/data", json={"data": data["id"], "rate": 0.5}).raise_for_status().json()
    done = until(lambda: api.get(f"/compress/jobs/{job['id']}").json())
    made = api.get(f"/datasets/{done['dataset']}").raise_for_status().json()
    assert made["parent"] == data["id"] and made["rows"] == 3 and done["tokens_after"] < 0.6 * done["tokens_before"]
    assert done["shortened"] == 3 and done["unchanged"] == 0 and done["texts"] == "longest"


def test_a_dataset_in_which_nothing_becomes_shorter_makes_nothing(api: httpx.Client) -> None:
    data = (
        api.post("/datasets/text", json={"text": '{"prompt": "What is 1?", "completion": "It is 1."}', "name": "brief"})
        .raise_for_status()
        .json()
    )
    before = len(api.get("/datasets").raise_for_status().json())
    for texts in ("longest", "assistant"):
        job = api.post("/compress/data", json={"data": data["id"], "rate": 0.5, "texts": texts}).raise_for_status().json()
        failed = until(lambda job=job: [one for one in (api.get(f"/jobs/{job['id']}").json(),) if one["status"] == "FAILED"])[0]
        assert "no dataset was made" in failed["reason"] and "Compress other texts" in failed["fix"]
    assert len(api.get("/datasets").raise_for_status().json()) == before
    assert api.post("/compress/data", json={"data": data["id"], "rate": 0.5, "texts": "verbs"}).status_code == 400


CAPITALS = {"Peru": "The capital of Peru is Lima.", "France": "The capital of France is Paris.", "Japan": "The capital of Japan is Tokyo."}
