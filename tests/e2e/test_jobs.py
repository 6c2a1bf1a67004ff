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
import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.config import JobConfig
from jobs.trainers.failures import DivergedError, explain
from studio import settings as studio_settings
from studio.db import lifecycle
from studio.services import Studio
from tests.e2e.conftest import PATIENCE_S, quiet_window, start_training, until, write
from tests.servers import Server, studio, web

WAIT_MS = PATIENCE_S * 1000
STEPS = 4


def queue_by_mouse(page: Page, name: str) -> None:
    page.locator("#tab-train-button").click()
    write(page.locator("#train-name input, #train-name textarea").first, name)
    start_training(page)
    expect(page.locator("#job-head")).to_contain_text(name)


def kill_the_worker(server: Server) -> None:
    """kill -9 of the process that runs the trainings; the studio has to start another one."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    worker = next(child for child in children if {"jobs.worker", "gpu"} <= set(child.cmdline()))
    worker.kill()


def waiting(page: Page) -> list[str]:
    """Names of the jobs that wait, as the list shows them."""
    return [name.strip() for name in page.locator("#jobs-list .movable .name").all_inner_texts()]


@pytest.mark.long
def test_three_jobs_survive_a_closed_browser_and_a_killed_worker(browser: Browser, tmp_path: Path) -> None:
    with studio(tmp_path / "home") as server, httpx.Client(base_url=f"{server.url}/api", timeout=120, trust_env=False) as api:
        rows = "\n".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}' for n in range(12))
        api.post("/datasets/text", json={"text": rows, "name": "numbers"}).raise_for_status()
        with quiet_window(browser, server.url) as window:
            page = window.new_page()
            page.goto(f"{server.url}/?tab=train")
            expect(page.locator("#train-data input")).to_have_value(re.compile("numbers"))
            page.get_by_role("button", name=re.compile("All options")).click()
            write(page.locator("#option-max_steps input"), str(STEPS))
            write(page.locator("#option-max_length input"), "64")
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


@pytest.mark.long
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
    write(page.locator("#job-tags input, #job-tags textarea").first, "kept, <b>calm</b>")
    write(page.locator("#job-note textarea").first, "half the learning rate")
    page.get_by_role("button", name="Save tags and note").click()
    expect(page.locator("#jobs-list .tag").first).to_have_text("kept")
    expect(page.locator("#jobs-list .tag").nth(1)).to_have_text("<b>calm</b>")

    search = page.locator("#jobs-search input, #jobs-search textarea").first
    search.click()
    page.keyboard.insert_text("half rate")  # as a paste does: no key is pressed
    expect(page.locator("#jobs-list .row")).to_have_count(1)
    write(search, "")
    expect(page.locator("#jobs-list .row", has_text="tiny").first).to_be_visible()  # the search is over
    page.get_by_role("button", name="Compare runs").click()
    expect(page.get_by_role("button", name="Leave the comparison")).to_be_visible()  # a click before that would be lost
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
    page.get_by_role("button", name="Change it and train again").click()
    expect(page.locator("#tab-train-button")).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name=re.compile("All options")).click()
    expect(page.locator("#option-learning_rate input")).to_have_value("0.001")
    expect(page.locator("#option-max_steps input")).to_have_value("3")


def begin(api: httpx.Client, data: str, name: str, **options: Any) -> None:
    shape = {"per_device_train_batch_size": 2, "max_length": 64, "sample_answers": 0, "measure_drift": False}
    body = {"data": data, "base_model": "starter", "recipe": "lora-sft", "name": name, "options": {**shape, **options}}
    api.post("/jobs", json=body).raise_for_status()


@pytest.mark.long
def test_a_run_is_paused_goes_on_is_cancelled_and_is_taken_up_again(
    visit: Callable[..., Page], api: httpx.Client, trained: dict[str, Any]
) -> None:
    begin(api, trained["data"]["id"], "stubborn", max_steps=150, save_steps=50)
    page = visit("jobs", job="stubborn")
    head = page.locator("#job-head")
    page.locator("#job-pause").click()
    expect(head.locator(".status-paused")).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(head.locator(".status-running")).to_be_visible(timeout=WAIT_MS)
    page.locator("#job-cancel").click()
    expect(head.locator(".status-cancelled")).to_be_visible(timeout=WAIT_MS)
    page.locator("#job-retry").click()
    expect(head.locator(".status-succeeded")).to_be_visible(timeout=WAIT_MS)
    steps = [point["step"] for point in api.get("/jobs/stubborn/metrics").json()]
    assert steps == list(range(1, 151)), "no step is lost or doubled"


def diverged(home: Path) -> None:
    """A studio in which the training `wild` has diverged, as the worker of it wrote down."""
    opened = Studio.open(studio_settings.load({"STUDIO_HOME": str(home)}))
    rows = "\n".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}' for n in range(12))
    opened.datasets.add_text(rows, name="numbers")
    job = opened.jobs.submit(data="numbers", base_model="starter", name="wild", options={"max_steps": 3, "learning_rate": 0.003})
    failure = explain(DivergedError("loss", 2), JobConfig.model_validate(opened.jobs.show("wild").config))
    with opened.db.write() as session:
        held = lifecycle.claim(session, job.id, "us", "device:0")
        assert held
        lifecycle.finish(session, held, "FAILED", failure.reason, failure.fix, cause=failure.cause, remedy=failure.remedy)
    opened.db.dispose()


def test_a_failure_is_explained_and_its_button_starts_again_with_the_fix(browser: Browser, tmp_path: Path) -> None:
    diverged(tmp_path / "home")
    with web(tmp_path / "home") as server, quiet_window(browser, server.url) as window:
        page = window.new_page()
        page.goto(f"{server.url}/?tab=jobs&job=wild")
        expect(page.locator("#job-head .status-failed")).to_be_visible()
        expect(page.locator("#job-head .notice.bad")).to_contain_text("diverged")
        expect(page.locator("#job-actions")).to_contain_text("learning_rate from 0.003 to 0.001")
        page.get_by_role("button", name="Apply the fix and start again").click()
        expect(page.locator("#job-head h2")).to_contain_text("wild-2")
        expect(page.locator("#jobs-list .name", has_text="wild-2")).to_be_visible()
    again = Studio.open(studio_settings.load({"STUDIO_HOME": str(tmp_path / "home")}))
    assert (again.jobs.show("wild-2").config["learning_rate"], again.jobs.show("wild").status) == (0.001, "FAILED")
    again.db.dispose()
