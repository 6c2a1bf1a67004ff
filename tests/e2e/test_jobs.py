"""The queue by mouse: three jobs, another order, a closed browser, a killed worker, and in the end everything is done.

And what is learned from runs: they are found again, written upon, and laid beside each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import PATIENCE_S, quiet_window, until
from tests.servers import Server, studio

WAIT_MS = PATIENCE_S * 1000
STEPS = 4


def queue_by_mouse(page: Page, name: str) -> None:
    page.locator("#tab-train-button").click()
    page.locator("#train-name input, #train-name textarea").first.fill(name)
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#tab-jobs-button")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#job-head")).to_contain_text(name)


def kill_the_worker(server: Server) -> None:
    """kill -9 of the process that runs the trainings; the studio has to start another one."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    worker = next(child for child in children if {"jobs.worker", "gpu"} <= set(child.cmdline()))
    worker.kill()


def waiting(page: Page) -> list[str]:
    """Names of the jobs that wait, as the list shows them."""
    return [name.strip() for name in page.locator("#jobs-list .movable .name").all_inner_texts()]


def test_three_jobs_survive_a_closed_browser_and_a_killed_worker(browser: Browser, tmp_path: Path) -> None:
    with studio(tmp_path / "home") as server, httpx.Client(base_url=f"{server.url}/api", timeout=60, trust_env=False) as api:
        rows = "\n".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}' for n in range(12))
        api.post("/datasets/text", json={"text": rows, "name": "numbers"}).raise_for_status()
        with quiet_window(browser, server.url) as window:
            page = window.new_page()
            page.goto(f"{server.url}/?tab=train")
            expect(page.locator("#train-data input")).to_have_value(re.compile("numbers"))
            page.get_by_role("button", name=re.compile("All options")).click()
            page.locator("#option-max_steps input").fill(str(STEPS))
            page.locator("#option-max_length input").fill("64")
            queue_by_mouse(page, "one")
            page.get_by_role("button", name="Pause the queue").click()
            queue_by_mouse(page, "two")
            queue_by_mouse(page, "three")
            expect(page.locator("#jobs-queue")).to_contain_text("The queue is paused")
            page.get_by_role("button", name="Move three up").click()
            until(lambda: [name for name in waiting(page) if name != "one"] == ["three", "two"], 20)
            page.reload()
            until(lambda: [name for name in waiting(page) if name != "one"] == ["three", "two"], 20)
            page.get_by_role("button", name="Resume the queue").click()
            expect(page.locator("#jobs-queue")).not_to_contain_text("The queue is paused")

        until(lambda: api.get("/jobs/one").json()["status"] in ("RUNNING", "SUCCEEDED"))
        kill_the_worker(server)

        until(lambda: all(api.get(f"/jobs/{name}").json()["status"] == "SUCCEEDED" for name in ("one", "two", "three")))
        with quiet_window(browser, server.url) as window:
            page = window.new_page()
            for name in ("one", "two", "three"):
                page.goto(f"{server.url}/?tab=jobs&job={name}")
                expect(page.locator("#job-head h2")).to_contain_text(name)
                expect(page.locator("#job-head .status-succeeded")).to_be_visible()
                points = (page.locator("#job-curve polyline.train").get_attribute("points") or "").split()
                assert len(points) == STEPS, f"the curve of {name} is not whole: {points}"
        jobs = {name: api.get(f"/jobs/{name}").json() for name in ("two", "three")}
        assert jobs["three"]["started_at"] < jobs["two"]["started_at"]


def test_runs_are_found_written_upon_and_laid_beside_each_other(
    visit: Callable[..., Page], api: httpx.Client, trained: dict[str, Any]
) -> None:
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "max_length": 64, "learning_rate": 0.001}
    body = {"data": trained["data"]["id"], "base_model": "starter", "name": "slower", "options": options}
    api.post("/jobs", json=body).raise_for_status()
    until(lambda: api.get("/jobs/slower").json()["status"] == "SUCCEEDED")
    page = visit("jobs", job="slower")
    expect(page.locator("#job-head h2")).to_contain_text("slower")
    page.get_by_role("button", name="Tags and note").click()
    page.locator("#job-tags input, #job-tags textarea").first.fill("kept, <b>calm</b>")
    page.locator("#job-note textarea").first.fill("half the learning rate")
    page.get_by_role("button", name="Save tags and note").click()
    expect(page.locator("#jobs-list .tag").first).to_have_text("kept")
    expect(page.locator("#jobs-list .tag").nth(1)).to_have_text("<b>calm</b>")

    page.locator("#jobs-search input, #jobs-search textarea").first.fill("half rate")
    expect(page.locator("#jobs-list .row")).to_have_count(1)
    page.locator("#jobs-search input, #jobs-search textarea").first.fill("")
    page.get_by_role("button", name="Compare runs").click()
    for name in ("slower", "tiny"):
        row = page.locator("#jobs-list .row[aria-pressed]", has_text=name)
        row.click()
        expect(row).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#job-runs polyline")).to_have_count(2)
    expect(page).to_have_url(re.compile("runs=pick%2C[^%&]+%2C"))
    page.reload()

    expect(page.locator("#job-runs polyline")).to_have_count(2)
    expect(page.locator("#job-runs tr", has_text="learning_rate")).to_contain_text("0.001")
    swatch = page.locator("#job-runs th .swatch.run-1").evaluate("one => getComputedStyle(one).backgroundColor")
    assert swatch == page.locator("#job-runs polyline.run-1").evaluate("one => getComputedStyle(one).stroke")
    assert swatch == page.locator("#jobs-list .swatch.run-1").evaluate("one => getComputedStyle(one).backgroundColor")
    page.get_by_role("button", name="Leave the comparison").click()
    expect(page.locator("#job-head h2")).to_contain_text("slower")
