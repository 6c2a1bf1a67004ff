"""Fixtures of the browser tests: a real Chromium, a real `studio up`, and pages that must stay quiet and at home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from filelock import FileLock
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, expect, sync_playwright

from tests.browser import ARGUMENTS, find
from tests.servers import studio, web

HERE = Path(__file__).parent
SCREENSHOTS = HERE / "screenshots"  # looked at by people; ignored by git
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE_S = 240  # a job or a first answer on a busy machine

expect.set_options(timeout=120_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # it leaves a running event loop to whatever else this process tests
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    path = find()
    if path is None:
        message = "No Chromium: the browser tests are left out. Install chromium, or set STUDIO_BROWSER."
        pytest.fail(message) if os.environ.get("STUDIO_REQUIRE_BROWSER") == "1" else pytest.skip(message)
    started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
    yield started
    started.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility rules, installed from the npm registry when they are not there yet."""
    if not AXE.exists():
        npm = shutil.which("npm")
        done = npm and subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, capture_output=True, text=True, check=False)
        if not AXE.exists():
            message = f"axe-core is not there and npm can't install it: {done.stderr.strip()[-200:] if done else 'no npm'}"
            pytest.fail(message) if os.environ.get("STUDIO_REQUIRE_BROWSER") == "1" else pytest.skip(message)
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home that was used, left behind by a studio that has ended, and what lies in it: data, job, comparison.

    The processes of one run (pytest -n) share it.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    home, made = place / "used-home", place / "used-home.json"
    with FileLock(place / "used-home.lock"):
        if not made.exists():
            with studio(home) as server, httpx.Client(base_url=f"{server.url}/api", timeout=120, trust_env=False) as client:
                made.write_text(json.dumps(use(client)), encoding="utf-8")
        return home, json.loads(made.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A studio for the tests of one file, so that no file sees what another has made.

    Where one of them asks for `trained`, it starts on a copy of the used home. A file with `ONLY_THE_PAGE = True` gets no engine and
    no worker. Asked for after the browser, so that nothing starts without one.
    """
    home = tmp_path_factory.mktemp("e2e") / "home"
    if any("trained" in getattr(item, "fixturenames", ()) for item in request.session.items if item.path == request.path):
        used, _ = request.getfixturevalue("used_home")
        shutil.copytree(used, home)
    starts = web if getattr(request.module, "ONLY_THE_PAGE", False) else studio
    with starts(home) as server:
        yield server.url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/api", timeout=120, trust_env=False) as client:
        yield client


@dataclass
class QuietWindow:
    """A browser window whose pages may speak to the studio at `url` only, and must not complain."""

    opened: BrowserContext
    strangers: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, browser: Browser, url: str) -> QuietWindow:
        opened = browser.new_context(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(120_000)
        window, home = cls(opened), urlsplit(url).netloc
        opened.on("request", lambda request: None if _is_home(request.url, home) else window.strangers.append(request.url))
        opened.on("console", lambda message: window.complaints.append(message.text) if message.type == "error" else None)
        opened.on("weberror", lambda error: window.complaints.append(str(error.error)))
        opened.on("dialog", lambda dialog: (window.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return window

    def check(self) -> None:
        strangers, self.strangers[:] = list(self.strangers), []
        complaints, self.complaints[:] = list(self.complaints), []
        assert not strangers, "nothing may be fetched from other hosts"
        assert not complaints


@pytest.fixture(scope="module")
def window(browser: Browser, url: str) -> Iterator[QuietWindow]:
    """One for the tests of a file: the browser compiles the page's programs once."""
    made = QuietWindow.of(browser, url)
    yield made
    made.opened.close()


@pytest.fixture
def context(window: QuietWindow) -> Iterator[BrowserContext]:
    """A window onto the studio of this file's tests, without pages."""
    yield window.opened
    for left in window.opened.pages:
        left.close()
    window.check()


@contextmanager
def quiet_window(browser: Browser, url: str) -> Iterator[BrowserContext]:
    """A window of its own onto the studio at `url`."""
    window = QuietWindow.of(browser, url)
    yield window.opened
    window.opened.close()
    window.check()


@contextmanager
def bringing(browser: Browser, address: str) -> Iterator[Page]:
    """The Models tab of the studio at `address` with what brings models here unfolded."""
    with quiet_window(browser, address) as window:
        page = window.new_page()
        page.goto(f"{address}/?tab=models")
        page.get_by_text("Bring a model here").click()
        yield page


def _is_home(address: str, home: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in ("data", "blob", "about") or parts.netloc == home


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def visit(page: Page, url: str) -> Callable[..., Page]:
    """Open a tab, `visit("jobs", job=ID)`, and wait until it is drawn."""

    def open_tab(tab: str = "start", **place: str) -> Page:
        query = "&".join(f"{name}={value}" for name, value in {"tab": tab, **place}.items())
        page.goto(f"{url}/?{query}")
        expect(page.locator(f"#tab-{tab}-button")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#strip nav")).to_be_visible()
        return page

    return open_tab


def until(look: Callable[[], Any], limit_s: float = PATIENCE_S) -> Any:
    """The first truthy value of `look`."""
    deadline = time.monotonic() + limit_s
    while not (value := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)
    return value


@pytest.fixture(scope="module")
def trained(url: str, used_home: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """What lies in the used home: `data` with hostile rows, `job`, an adapter of a few steps, and an answered `comparison`."""
    return used_home[1]


def use(api: httpx.Client) -> dict[str, Any]:
    """Add hostile rows, train a few steps on them, compare."""
    rows = "\n".join(f'{{"prompt": "{HOSTILE_PROMPT} {n}", "completion": "<img src=x onerror=alert(2)> ${{alert(3)}}"}}' for n in range(12))
    data = api.post("/datasets/text", json={"text": rows, "name": "hostile"}).raise_for_status().json()
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "max_length": 64, "learning_rate": 0.003}
    body = {"data": data["id"], "base_model": "starter", "name": "tiny", "options": options}
    job = api.post("/jobs", json=body).raise_for_status().json()
    until(lambda: api.get(f"/jobs/{job['id']}").json()["status"] not in ("QUEUED", "RUNNING"))
    job = api.get(f"/jobs/{job['id']}").json()
    assert job["status"] == "SUCCEEDED", job
    prompts = [{"prompt": f"{HOSTILE_PROMPT} ?", "reference": "<b>${alert(4)}</b>"}]
    comparison = api.post(
        "/comparisons", json={"base_model": "starter", "contestants": ["base", "tiny"], "prompts": prompts, "params": {"max_new_tokens": 8}}
    )
    compared = comparison.raise_for_status().json()
    until(lambda: api.get(f"/comparisons/{compared['id']}").json()["status"] not in ("QUEUED", "RUNNING"))
    return {"data": data, "job": job, "comparison": compared}


HOSTILE_PROMPT = "Say ${alert(1)} {{value}} <script>alert(0)</script>"


def start_training(page: Page) -> None:
    """Press the button of the Train tab and wait for the Jobs tab; a refusal is named."""
    page.get_by_role("button", name="Start training").click()
    moved = page.locator("#tab-jobs-button[aria-selected=true]").first
    expect(moved.or_(page.locator("#train-notice [role=alert]")).first).to_be_visible()
    assert moved.is_visible(), page.locator("#train-notice").inner_text()


AT_REST = "() => new Promise(done => requestIdleCallback(() => requestIdleCallback(() => done())))"


def write(box: Locator, text: str) -> None:
    """Fill `box` in; on a busy machine a form that was just unfolded may draw itself once more and be empty again."""
    for _ in range(5):
        box.fill(text)
        box.page.evaluate(AT_REST)
        if box.input_value() == text:
            return
    raise AssertionError(f"{box} does not keep what is written into it")
