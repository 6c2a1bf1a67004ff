"""Chat with an engine that says hostile things and never ends: the answer stays text, stops, is kept, is retried and undone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import quiet_window, until, write
from tests.servers import web

WORDS = ["<img src=x onerror=alert(1)> ", "${alert(2)} ", "{{value}} ", "![a](http://elsewhere.example/a.png) ", "**bold** "]


class Talker(BaseHTTPRequestHandler):
    """Any OpenAI server, as far as chat needs one: it streams WORDS over and over until somebody hangs up."""

    hung_up = threading.Event()

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            while True:
                for word in WORDS:
                    chunk = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                    self.wfile.flush()
                    time.sleep(0.05)
        except OSError:
            self.hung_up.set()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read the page."""


@pytest.fixture(scope="module")
def talker() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Talker)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chat(browser: Browser, talker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with web(tmp_path_factory.mktemp("chat") / "home", STUDIO_ENGINE_URL=talker) as server, quiet_window(browser, server.url) as window:
        page = window.new_page()
        page.goto(f"{server.url}/?tab=chat")
        yield page


def stop_by_mouse(page: Page) -> None:
    """Press Stop where it stands: it must not move while the answer grows."""
    button = page.get_by_role("button", name="Stop")
    expect(button).to_be_visible()
    before = button.bounding_box()
    page.wait_for_timeout(600)
    assert before is not None and button.bounding_box() == before
    page.mouse.click(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)


def test_an_answer_is_text_is_stopped_and_what_was_written_is_kept(chat: Page) -> None:
    chat.get_by_role("button", name="Suggest a question").click()
    expect(chat.locator("#chat-message textarea")).not_to_be_empty()
    chat.locator("#chat-message textarea").press("Enter")
    expect(chat.locator("#chat-live .text")).to_contain_text("**bold** <img src=x onerror=alert(1)> ${alert(2)}")
    stop_by_mouse(chat)

    answer = chat.locator("#chat-transcript .message.assistant")
    expect(answer).to_contain_text("stopped here")
    expect(answer).to_contain_text("${alert(2)} {{value}} ![a](http://elsewhere.example/a.png)")
    assert chat.locator(".message img").count() == 0
    until(Talker.hung_up.is_set, limit_s=120)
    chat.reload()
    expect(answer).to_contain_text("stopped here")


def test_retry_writes_the_last_answer_anew_and_a_second_message_has_to_wait(chat: Page) -> None:
    before = chat.locator("#chat-transcript .message").count()
    chat.get_by_role("button", name="Retry").click()
    expect(chat.locator("#chat-live .text")).not_to_be_empty()
    write(chat.locator("#chat-message textarea"), "And me?")
    chat.locator("#chat-message textarea").press("Enter")
    expect(chat.locator("#chat-notice")).to_contain_text("still being written")
    stop_by_mouse(chat)

    expect(chat.locator("#chat-live .message")).to_have_count(0)
    expect(chat.locator("#chat-transcript .message")).to_have_count(before)


def test_undo_takes_the_question_back_into_the_box(chat: Page) -> None:
    asked = chat.locator("#chat-transcript .message.user .text").last.inner_text()
    chat.get_by_role("button", name="Undo").click()

    expect(chat.locator("#chat-message textarea")).to_have_value(asked)
    expect(chat.locator("#chat-transcript .message")).to_have_count(0)


def test_a_page_that_is_closed_while_it_answers_keeps_what_was_written(chat: Page, tmp_path: Path) -> None:
    other = chat.context.new_page()
    other.goto(chat.url)
    Talker.hung_up.clear()
    write(other.locator("#chat-message textarea"), "Go on")
    other.get_by_role("button", name="Send").click()
    expect(other.locator("#chat-live .text")).not_to_be_empty()
    address = other.url
    other.close()
    until(Talker.hung_up.is_set, limit_s=120)

    chat.goto(address)
    expect(chat.locator("#chat-transcript .message.assistant")).to_contain_text("stopped here")
