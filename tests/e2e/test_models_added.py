"""Base models brought here by mouse: a folder of this machine, a model of the Hugging Face cache, one that is fetched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import PATIENCE_S, bringing, write
from tests.e2e.test_models import photograph
from tests.families import build
from tests.foreign_adapters import MADE, TOKENS, adapter, said, zipped
from tests.hub_server import COMMIT, Hub
from tests.published import publish
from tests.runs import STARTER
from tests.servers import studio

LEARNS = re.compile(r"LoRA reaches \d+(\.\d+)? % of the weights of its blocks; left out: .*routers")
PARTS = shutil.ignore_patterns("words", "recipe")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a multimodal model, and a cache of the hub with one whole model."""
    folder = tmp_path_factory.mktemp("bring")
    publish("qwen3_5", folder / "pictures")
    build("mixtral", folder / "mixture")
    shutil.copytree(STARTER, folder / "hf" / "hub" / "models--org--kept" / "snapshots" / COMMIT, ignore=PARTS)
    return folder


@pytest.fixture(scope="module")
def address(browser: Browser, place: Path) -> Iterator[str]:
    files = {path.name: path.read_bytes() for path in STARTER.iterdir() if path.is_file()}
    with Hub({}, published={"org/far": files}, slowly=True) as hub:
        more = {"HF_HOME": str(place / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        with studio(place / "home", **more) as server:
            yield server.url


@pytest.fixture
def models(browser: Browser, address: str) -> Iterator[Page]:
    with bringing(browser, address) as page:
        yield page


def test_a_folder_is_added_on_the_models_tab(models: Page, place: Path) -> None:
    # red when the field is not there for who runs the studio, or the card does not say that pictures are left alone
    field = models.locator("#models-folder input, #models-folder textarea").first
    write(field, str(place / "nothing"))
    models.get_by_role("button", name="Add this folder").click()
    expect(models.locator("#models-notice")).to_contain_text("is not there")
    write(field, str(place / "pictures"))
    models.get_by_role("button", name="Add this folder").click()
    expect(models.locator("#models-card h2")).to_have_text("pictures", timeout=300_000)
    expect(models.locator("#models-notice")).to_contain_text("pictures is here")
    expect(models.locator("#models-card")).to_contain_text("neither trained nor changed")
    expect(field).to_have_value("")
    photograph(models, "models-folder")


def test_a_model_of_the_cache_is_offered_and_used_in_place(models: Page, place: Path) -> None:
    # red when a whole model of the cache is not offered, or is offered still when it is here
    offered = models.get_by_role("list", name="Models of the Hugging Face cache")
    expect(offered.locator("li")).to_have_count(1)
    models.get_by_role("button", name="Add org/kept").click()
    expect(models.locator("#models-card h2")).to_have_text("kept", timeout=300_000)
    expect(models.locator("#models-card")).to_contain_text("Hugging Face cache")
    expect(offered).to_have_count(0)


def test_a_download_shows_how_far_it_is(models: Page, place: Path) -> None:
    # red when the page is silent while gigabytes arrive, or they lie in two places afterwards
    write(models.locator("#models-source input, #models-source textarea").first, "org/far")
    models.get_by_role("button", name="Fetch it").click()
    expect(models.locator("#models-notice")).to_contain_text("The hub is asked for org/far")
    expect(models.locator("#models-notice progress")).to_be_visible(timeout=300_000)
    expect(models.locator("#models-card h2")).to_have_text("far", timeout=300_000)
    assert (place / "hf" / "hub" / "models--org--far" / "snapshots" / COMMIT / "model.safetensors").is_file()
    assert list((place / "home" / "models").iterdir()) == []


@pytest.mark.long
def test_a_mixture_of_experts_says_what_share_learns(models: Page, place: Path, address: str) -> None:
    # red when card, Train tab or job is silent about the routers that stay as they are
    write(models.locator("#models-folder input, #models-folder textarea").first, str(place / "mixture"))
    models.get_by_role("button", name="Add this folder").click()
    expect(models.locator("#models-card h2")).to_have_text("mixture", timeout=300_000)
    expect(models.locator("#models-card")).to_contain_text(LEARNS)
    photograph(models, "models-mixture")

    rows = "".join(f'{{"prompt": "Say {n}", "completion": "{n}"}}\n' for n in range(12))
    httpx.post(f"{address}/api/datasets/text", json={"text": rows, "name": "numbers"}, timeout=120).raise_for_status()
    models.goto(f"{address}/?tab=train")
    models.locator("#train-base input").click()
    models.get_by_role("option", name=re.compile("^mixture")).click()
    expect(models.locator("#fit")).to_contain_text(LEARNS, timeout=300_000)
    expect(models.locator("#fit")).to_contain_text("routers")
    photograph(models, "train-mixture")
    write(models.locator("#train-name input, #train-name textarea").first, "experts")
    models.get_by_role("button", name="Start training").click()
    expect(models.locator("#job-head h2")).to_contain_text("experts", timeout=300_000)
    expect(models.locator("#job-head")).to_contain_text(LEARNS, timeout=PATIENCE_S * 1000)
    expect(models.locator("#job-head")).to_contain_text(re.compile("experts\\s+done"), timeout=PATIENCE_S * 1000)


@pytest.mark.long
def test_an_adapter_of_plain_peft_is_uploaded_and_answers_as_peft_does(models: Page, place: Path, address: str) -> None:
    # red when the page takes no files, forgets the card, or the engine puts fused experts elsewhere than peft does
    if "mixture" not in [model["name"] for model in httpx.get(f"{address}/api/models", timeout=120).json()]:
        httpx.post(f"{address}/api/models", json={"source": str(place / "mixture")}, timeout=PATIENCE_S).raise_for_status()
    theirs = adapter(place / "mixture", place / "elsewhere", **MADE["mixtral"])
    models.get_by_text("Bring an adapter here").click()
    models.get_by_role("button", name="Add this adapter").click()
    expect(models.locator("#models-notice")).to_contain_text("No file is chosen")
    models.locator("#models-adapter-files input[type=file]").set_input_files([zipped(place / "elsewhere")])
    expect(models.locator("#models-adapter-files")).to_contain_text("elsewhere")
    models.get_by_role("button", name="Add this adapter").click()
    expect(models.locator("#models-notice")).to_contain_text("elsewhere is here (lora on mixture)", timeout=300_000)
    expect(models.locator("#models-card h2")).to_have_text("elsewhere")
    photograph(models, "models-adapter")
    asked = {"model": "mixture:elsewhere", "prompt": "Who saw the", "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{address}/v1/completions", json=asked, timeout=PATIENCE_S).raise_for_status().json()
    assert answer["choices"][0]["text"] == said(theirs, place / "mixture", "Who saw the")
