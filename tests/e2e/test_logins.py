"""A browser logs in, makes a key, logs another one out and itself, as a person does."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.conftest import quiet_window
from tests.servers import web

PASSWORD = {"name": "anna", "password": "her password"}


@pytest.mark.long
def test_from_the_login_to_the_end_of_all_logins(browser: Browser, tmp_path: Path) -> None:
    with web(tmp_path / "home", STUDIO_USERS="anna:her password") as server, httpx.Client(base_url=server.url, trust_env=False) as other:
        other.post("/login", data=PASSWORD)
        with quiet_window(browser, server.url) as window:
            page = window.new_page()
            page.goto(f"{server.url}/login?next=%2F%3Ftab%3Dchat")
            page.get_by_label("Name").fill(PASSWORD["name"])
            page.get_by_label("Password").fill(PASSWORD["password"])
            page.get_by_role("button", name="Log in").click()
            page.get_by_text("Ask from a program").click()
            page.get_by_label("Name of a new key").fill("ci")
            page.locator("#chat-key-make").click()
            key = page.locator("#chat-keys .key").inner_text()
            listed = page.locator("#chat-keys .excerpts li")
            expect(listed).to_contain_text("to chat only, made by anna")
            assert httpx.get(f"{server.url}/v1/models", headers={"X-Api-Key": key}, trust_env=False, timeout=60).status_code == 200
            assert httpx.get(f"{server.url}/api/jobs", headers={"X-Api-Key": key}, trust_env=False).status_code == 403
            page.goto(f"{server.url}/?tab=start")
            page.get_by_text("Who is logged in").click()
            assert other.get("/api/jobs").status_code == 200
            page.get_by_role("button", name="Log out all others").click()
            expect(page.get_by_text("1 logged out.")).to_be_visible()
            assert other.get("/api/jobs").status_code == 401
            page.get_by_role("button", name="Log out here").click()
            expect(page.get_by_role("button", name="Log in")).to_be_visible()
        assert other.get("/api/sessions", headers={"X-Api-Key": key}).status_code == 403
