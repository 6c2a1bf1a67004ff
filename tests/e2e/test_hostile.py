"""Every payload through answers, names and files, in a real browser: all of it is shown as text, nothing runs, nothing is fetched."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from studio import settings as studio_settings
from studio.db.models import AdapterRow, JobRow
from studio.records import AnswerUsage
from studio.services import Studio
from studio.settings import STATIC
from tests.e2e.conftest import SCREENSHOTS, quiet_window, until, write
from tests.payloads import AWAY, LOOK, PAYLOADS
from tests.servers import Server, web

AT_ONCE = 16
FILE_NAME = "<img src=x onerror=window.pwned=1>"


class Parrot(BaseHTTPRequestHandler):
    """An OpenAI server that answers each request with the next payload, in small pieces, as its name, notes and errors allow."""

    turn = itertools.count()

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        text = PAYLOADS[next(Parrot.turn) % len(PAYLOADS)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for start in range(0, len(text), 7):
            self.say({"choices": [{"index": 0, "delta": {"content": text[start : start + 7]}, "finish_reason": None}]})
        self.say({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "studio": {"notes": [text], "tokens_per_s": text}}]})

    def say(self, chunk: dict[str, object]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read the page."""


class Crowded(ThreadingHTTPServer):
    """All contestants connect at once: with the usual five that may wait, the kernel drops some, and they give up after a while."""

    request_queue_size = 128


@pytest.fixture(scope="module")
def parrot() -> Iterator[str]:
    server = Crowded(("127.0.0.1", 0), Parrot)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def seed(home: Path, folder: Path) -> None:
    """Rows that hold every payload wherever a person, a file or another program can have put it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_HOME", str(home))
        settings = studio_settings.load()
    settings.make_folders()
    studio = Studio.open(settings)
    for number, text in enumerate(PAYLOADS):
        kept = studio.chat.create(title=text, system=text).id
        studio.chat.append(kept, role="user", content=text)
        if number == len(PAYLOADS) - 1:  # one conversation of all, as somebody who tries them one after the other
            for said in PAYLOADS:
                studio.chat.append(kept, role="assistant", content=said, contestant=said, usage=AnswerUsage(notes=[said]))
                studio.chat.append(kept, role="user", content=said)
    prompts = [{"id": text, "prompt": text, "reference": text, "category": text} for text in PAYLOADS]
    answers = folder / "answers.jsonl"
    answers.write_text("\n".join(json.dumps({"prompt_id": text, "answer": text}) for text in PAYLOADS))
    names = [f"file:{text}" for text in PAYLOADS[:3]]
    studio.comparisons.create(base_model="starter", contestants=names, prompts=prompts, name="hostile", files=dict.fromkeys(names, answers))
    with studio.db.write() as session:
        for text in PAYLOADS:
            job = JobRow(
                kind="train", queue="none", name=text, status="FAILED", reason=text, fix=text, tags=[text], notes=text, recipe=text
            )
            session.add(job)
            session.add(AdapterRow(name=text, base_model="starter", method=text, path=f"{home}/adapters/{text[:20]}", bytes=1))
    studio.db.dispose()


@pytest.fixture(scope="module")
def server(browser: Browser, parrot: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The web process alone, on seeded rows and a dataset whose file, columns and cells are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    seed(folder / "home", folder)
    with web(folder / "home", STUDIO_ENGINE_URL=parrot) as started:
        rows = "\n".join(json.dumps({"prompt": text, "completion": text, text: text}) for text in PAYLOADS)
        added = httpx.post(
            f"{started.url}/api/datasets", files={"file": (f"{FILE_NAME}.jsonl", rows.encode())}, timeout=120, trust_env=False
        )
        assert added.status_code == 201, added.text
        yield started


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page that fails on any dialog, complaint or foreign request, and on anything that became more than text."""
    with quiet_window(browser, server.url) as window:
        opened = window.new_page()
        yield opened
        assert opened.evaluate(LOOK) == []
        assert opened.url.startswith(server.url)


def text_of(shown: str) -> str:
    """As a browser shows it: without control characters, blanks as they are."""
    return "".join(c for c in shown if c.isprintable())


def test_answers_of_every_payload_stream_side_by_side_and_stay_text(page: Page, server: Server, parrot: str) -> None:
    page.goto(f"{server.url}/?tab=chat")
    who = page.locator("#chat-who input")
    expect(who).to_be_visible()
    named = page.locator("#chat-who .token")
    expect(named).to_have_count(1)  # a key that is pressed before the page has its values is lost
    who.press("Backspace")  # nobody but those named here
    expect(named).to_have_count(0)
    for number, text in enumerate(PAYLOADS[:AT_ONCE], 1):
        who.fill(f"{parrot}/v1#{text}")  # its newlines are not kept by a field of one line
        who.press("Enter")
        expect(named).to_have_count(number)
    answers = page.locator("#chat-transcript .message.assistant")
    for number in range(-(-len(PAYLOADS) // AT_ONCE)):
        write(page.locator("#chat-message textarea"), PAYLOADS[-1 - number])
        page.locator("#chat-message textarea").press("Enter")
        expect(answers).to_have_count(AT_ONCE * (number + 1))
        expect(page.locator("#chat-live .message")).to_have_count(0)
    wanted = {text_of(text) for text in PAYLOADS}
    said = page.locator("#chat-transcript .message.assistant .text")
    until(lambda: wanted <= {text_of(text) for text in said.all_text_contents()})  # the last of them may just be drawn
    page.screenshot(path=SCREENSHOTS / "hostile-chat.png")


def test_a_conversation_of_all_payloads_its_title_and_its_search_stay_text(page: Page, server: Server) -> None:
    kept = httpx.get(f"{server.url}/api/conversations", timeout=120, trust_env=False).json()
    everything = next(row["id"] for row in kept if row["messages"] == 1 + 2 * len(PAYLOADS))
    page.goto(f"{server.url}/?tab=chat&chat={everything}")
    expect(page.locator("#chat-transcript .message")).to_have_count(1 + 2 * len(PAYLOADS))
    assert page.evaluate(LOOK) == []
    write(page.locator("#chat-search input, #chat-search textarea").first, PAYLOADS[10])
    expect(page.locator("#chat-list button.row").first).to_contain_text(PAYLOADS[10][:20])
    page.locator("#chat-list button.row").last.click()
    expect(page.locator("#chat-transcript .message").first).to_be_visible()
    page.locator("#chat-transcript [data-act=edit]").first.click()
    expect(page.locator("#chat-message textarea")).not_to_be_empty()
    for hostile in PAYLOADS[:3]:
        page.goto(f"{server.url}/?tab=chat&chat={quote(hostile)}&job={quote(hostile)}&comparison={quote(hostile)}")
        expect(page.locator("#chat-message textarea")).to_be_visible()
        assert page.evaluate(LOOK) == []


# of each tab, what shows that its hostile rows are drawn
DRAWN = {
    "data": "#data-rows .examples li",
    "jobs": "#jobs-list .row",
    "compare": "#compare-answers .answer",
    "models": "#models-list .row",
    "train": "#train-preview .render",
    "compress": "#tab-compress-button[aria-selected=true]",
    "start": "#start-steps .steps",
}


@pytest.mark.parametrize("tab", DRAWN)
def test_hostile_names_rows_and_reasons_stay_text_on_every_tab(page: Page, server: Server, tab: str) -> None:
    page.goto(f"{server.url}/?tab={tab}")
    expect(page.locator(DRAWN[tab]).first).to_be_visible()
    if tab in ("jobs", "models"):
        page.locator(DRAWN[tab]).nth(2).click()
        page.wait_for_timeout(800)
    page.screenshot(path=SCREENSHOTS / f"hostile-{tab}.png", full_page=True)


def test_hostile_files_are_refused_and_shown_in_words(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/?tab=data")
    expect(page.locator("#data-rows .examples li").first).to_be_visible()
    broken = "\n".join(f'{{"prompt": {json.dumps(text)}, "completion": ' for text in PAYLOADS)
    page.set_input_files("#data-file input[type=file]", {"name": f"{FILE_NAME}.jsonl", "mimeType": "text/plain", "buffer": broken.encode()})
    expect(page.locator("#data-notice")).to_contain_text("JSON")
    page.goto(f"{server.url}/?tab=data")
    table = "\n".join(f'"{text}","{AWAY}"' for text in (text.replace('"', '""').replace("\x00", "") for text in PAYLOADS))
    page.set_input_files("#data-file input[type=file]", {"name": "x.csv", "mimeType": "text/csv", "buffer": table.encode()})
    expect(page.locator("#data-notice")).to_contain_text("pwned")


def test_the_starter_is_still_what_answers(server: Server) -> None:
    """The seeded names have not broken the lists that programs read."""
    names = [model["id"] for model in httpx.get(f"{server.url}/v1/models", timeout=120, trust_env=False).json()["data"]]
    assert names[0] == "starter" and len(names) >= len(PAYLOADS) and STATIC.is_dir()
