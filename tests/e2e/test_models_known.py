"""The catalogue on the Models tab, by mouse: an entry is fetched by its button from a hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import bringing, write
from tests.e2e.test_models import photograph
from tests.hub_server import Hub
from tests.runs import STARTER
from tests.servers import studio

ONLY_THE_PAGE = True

ENTRY = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A studio whose hub publishes one entry; what it publishes is small."""
    place = tmp_path_factory.mktemp("known")
    files = {path.name: path.read_bytes() for path in STARTER.iterdir() if path.is_file()}
    with Hub({}, published={ENTRY: files}) as hub:
        more = {"HF_HOME": str(place / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        with studio(place / "home", **more) as server:
            yield server.url


@pytest.fixture
def models(browser: Browser, address: str) -> Iterator[Page]:
    with bringing(browser, address) as page:
        expect(page.locator("#models-known li").first).to_be_visible()  # what is typed before the list is there has nothing to filter
        yield page


def test_an_entry_of_the_catalogue_is_added_by_its_button(models: Page) -> None:
    # red when the button fetches another model, the entry hides size or licence, or it can be added twice
    write(models.locator("#models-filter input, #models-filter textarea").first, "SmolLM2-135M")
    entry = models.locator("#models-known li")
    expect(entry).to_have_count(1)
    expect(entry).to_contain_text("Trains and chats here.")
    expect(entry).to_contain_text("257 MiB to fetch · Apache-2.0")
    photograph(models, "models-known-entry")
    models.get_by_role("button", name=f"Add {ENTRY}").click()
    expect(models.locator("#models-card h2")).to_have_text("SmolLM2-135M-Instruct", timeout=300_000)
    expect(models.locator("#models-notice")).to_contain_text("SmolLM2-135M-Instruct is here")
    expect(entry.locator(".chip")).to_have_text("here")
    expect(entry.locator("button")).to_have_count(0)


def test_what_can_not_be_used_has_its_reason_and_no_button(models: Page) -> None:
    # red when a refusal is silent, or a gate is not said before the download
    field = models.locator("#models-filter input, #models-filter textarea").first
    entry = models.locator("#models-known li")
    write(field, "gpt-oss-20b")
    expect(entry).to_have_count(1)
    expect(entry).to_contain_text("stored quantised")
    expect(entry.locator("button")).to_have_count(0)
    write(field, "gemma-3-4b")
    expect(entry).to_contain_text("accept its terms on its page and set HF_TOKEN")
    expect(entry).to_contain_text("stay untouched")
    models.get_by_role("button", name="Add google/gemma-3-4b-it").click()
    expect(models.locator("#models-notice")).to_contain_text("The hub has no model")
