"""A base and eight adapters answer one prompt side by side, chosen and asked by mouse, each as it answers alone; beside a training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from studio.settings import STATIC
from tests.e2e.conftest import PATIENCE_S, SCREENSHOTS, until, write
from tests.engines import make_adapter
from tests.servers import processes_of

ADAPTERS = 8
PROMPT = "What is the capital of France?"
TOKENS = 40
WAIT_MS = PATIENCE_S * 1000


@pytest.fixture(scope="module")
def names(api: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Eight adapters of the starter, brought in over HTTP."""
    folder = tmp_path_factory.mktemp("beside")
    for number in range(ADAPTERS):
        made = make_adapter(STATIC / "starter", folder / f"voice-{number}", number, strength=0.3)
        files = [("files", (file.name, file.read_bytes())) for file in sorted(made.iterdir())]
        api.post("/adapters", files=files, data={"name": f"voice-{number}", "base_model": "starter"}).raise_for_status()
    return [f"voice-{number}" for number in range(ADAPTERS)]


def alone(api: httpx.Client, name: str) -> str:
    """What `name` answers when it is asked alone."""
    body = {"model": name, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": TOKENS}
    url = str(api.base_url).replace("/api", "/v1")
    answer = httpx.post(f"{url}chat/completions", json=body, timeout=PATIENCE_S, trust_env=False).raise_for_status().json()
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.long
def test_base_and_eight_adapters_answer_side_by_side_as_they_do_alone(
    visit: Callable[..., Page], api: httpx.Client, names: list[str], axe: str
) -> None:
    page = visit("chat")
    expect(page.locator("#chat-who")).to_contain_text("starter")
    for name in names:
        page.locator("#chat-who input").click()
        page.get_by_role("option", name=re.compile(rf"starter:{name}\b")).click()
    page.locator("#chat-preset input").click()
    page.get_by_role("option", name=re.compile("Precise")).click()
    write(page.locator("#chat-max_new_tokens input"), str(TOKENS))
    write(page.locator("#chat-message textarea"), PROMPT)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-live .message")).to_have_count(ADAPTERS + 1)
    page.screenshot(path=SCREENSHOTS / "beside-live.png")
    answers = page.locator("#chat-transcript .message.assistant")
    expect(answers).to_have_count(ADAPTERS + 1, timeout=WAIT_MS)

    said = dict(zip(answers.locator(".who").all_text_contents(), answers.locator(".text").all_text_contents(), strict=True))
    for name in ["starter", *(f"starter:{name}" for name in names)]:
        shown = next(text for who, text in said.items() if who.split(" ")[0] == name)
        assert shown == alone(api, name), name
    assert len(set(said.values())) > ADAPTERS // 2  # they are no copies of each other
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    for width, height in ((1280, 800), (1920, 1080), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=SCREENSHOTS / f"beside-{width}.png", full_page=True)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert not [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found if rule["impact"] in ("serious", "critical")]


@pytest.mark.long
def test_a_training_and_chat_share_the_machine_by_the_policy_that_is_shown(
    visit: Callable[..., Page], api: httpx.Client, trained: dict[str, Any]
) -> None:
    options = {"max_steps": 400, "max_length": 64, "learning_rate": 0.003}
    body = {"data": trained["data"]["id"], "base_model": "starter", "name": "beside-chat", "options": options}
    job = api.post("/jobs", json=body).raise_for_status().json()
    until(lambda: (api.get(f"/jobs/{job['id']}").json()["progress"]["step"] or 0) >= 1)
    page = visit("chat")

    expect(page.locator("#chat-sharing")).to_contain_text("beside-chat trains")
    expect(page.locator("#chat-sharing")).to_contain_text(re.compile(r"both fit: [\d.]+ [MG]iB are set aside for it"))
    write(page.locator("#chat-message textarea"), PROMPT)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-transcript .message.assistant")).to_contain_text("toy model", timeout=WAIT_MS)
    assert api.get(f"/jobs/{job['id']}").json()["status"] == "RUNNING"
    page.screenshot(path=SCREENSHOTS / "sharing.png")

    api.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    until(lambda: api.get(f"/jobs/{job['id']}").json()["status"] == "CANCELLED")
    expect(page.locator("#chat-sharing")).not_to_contain_text("beside-chat")


def test_an_answer_is_continued_marked_corrected_found_and_becomes_rows(visit: Callable[..., Page], api: httpx.Client) -> None:
    page = visit("chat")
    page.locator("#chat-new").click()
    page.locator("#chat-preset input").click()
    page.get_by_role("option", name=re.compile("Precise")).click()
    expect(page.locator("#chat-temperature input")).to_have_value("0")
    write(page.locator("#chat-max_new_tokens input"), "2")
    write(page.locator("#chat-system textarea"), "Answer briefly.")
    write(page.locator("#chat-message textarea"), "Which rivers are long, and why is it so?")
    page.get_by_role("button", name="The exact prompt").click()
    page.locator("#chat-show-prompt").click()
    expect(page.locator("#chat-prompt")).to_contain_text("Answer briefly.")
    expect(page.locator("#chat-prompt")).to_contain_text(re.compile(r"\d+ tokens of a context of 512 · chat template"))
    page.get_by_role("button", name="Send").click()
    answer = page.locator("#chat-transcript .message.assistant")
    expect(answer).to_contain_text("cut at the longest answer", timeout=WAIT_MS)
    expect(answer.locator(".facts").first).to_contain_text(re.compile(r"^2 tokens · .*tokens/s · first after [\d,]+ ms"))
    cut = answer.locator(".text").text_content() or ""
    write(page.locator("#chat-max_new_tokens input"), "12")
    page.locator("#chat-go-on").click()
    expect(answer.locator(".facts").first).to_contain_text("12 tokens ·", timeout=WAIT_MS)
    assert (answer.locator(".text").text_content() or "").startswith(cut) and len(answer.locator(".text").text_content() or "") > len(cut)

    answer.get_by_role("button", name="Good answer").click()
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="Correct it").click()
    write(page.locator("#chat-correct textarea"), "The Nile and the Amazon.")
    page.locator("#chat-correct-keep").click()
    expect(answer).to_contain_text("corrected by you")
    page.locator("#chat-lessons [data-kind=preferences]").click()
    expect(page.locator("#chat-notice")).to_contain_text("1 row kept as dataset")
    kept = next(row for row in api.get("/datasets").json() if row["kind"] == "preference")
    pair = api.get(f"/datasets/{kept['id']}/rows").json()
    row = (pair["rows"] if isinstance(pair, dict) else pair)[0]
    assert row["chosen"][0]["content"] == "The Nile and the Amazon." and row["rejected"][0]["content"].startswith(cut)

    write(page.locator("#chat-search input, #chat-search textarea").first, "long, and why")
    expect(page.locator("#chat-list button.row")).to_have_count(1)
    with page.expect_download() as saved:
        page.get_by_role("link", name="Export this conversation as JSON").click()
    assert "The Nile and the Amazon." in Path(saved.value.path()).read_text(encoding="utf-8")
    page.locator("#chat-transcript [data-act=edit]").click()
    expect(page.locator("#chat-message textarea")).to_have_value("Which rivers are long, and why is it so?")
    page.locator("#chat-delete").click()
    expect(page.locator("#chat-list button.row", has_text="Which rivers are long")).to_have_count(0)


@pytest.mark.long
def test_a_chat_survives_the_death_of_the_engine(visit: Callable[..., Page], api: httpx.Client) -> None:
    page = visit("chat")
    page.locator("#chat-new").click()
    write(page.locator("#chat-max_new_tokens input"), "460")
    page.get_by_role("button", name="Form and speed").click()
    write(page.locator("#chat-grammar textarea"), 'root ::= ("one " | "two " | "three "){2000}')
    write(page.locator("#chat-message textarea"), "Count")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-live .text")).to_contain_text(re.compile("(one|two|three)"), timeout=WAIT_MS)
    home = next(check["detail"] for check in api.get("/doctor").json()["checks"] if check["name"] == "home")
    engine = next(process for process in processes_of(Path(home)) if "studio.engine.server" in process.cmdline())
    engine.kill()

    expect(page.locator("#chat-transcript .message.assistant")).to_contain_text("broke off here", timeout=WAIT_MS)
    expect(page.locator("#chat-transcript .message.assistant")).to_contain_text(re.compile("(one|two|three)"))
    expect(page.locator("#chat-notice")).to_contain_text("stopped in the middle of the answer")
    write(page.locator("#chat-grammar textarea"), "")
    write(page.locator("#chat-message textarea"), PROMPT)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-transcript .message.assistant").nth(1)).to_contain_text("tokens/s", timeout=WAIT_MS)
