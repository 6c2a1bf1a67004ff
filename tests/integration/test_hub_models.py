"""Models of the hub: what is fetched, where it lies, and what is used without fetching. The real client against a small hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from studio.errors import ModelError
from studio.records import Fetched
from studio.services import Studio
from studio.settings import Settings
from tests.hub_server import COMMIT, Hub
from tests.runs import STARTER

STARTER_FILES = {path.name: path.read_bytes() for path in STARTER.iterdir() if path.is_file()}
CONFIG = json.loads(STARTER_FILES["config.json"])
OTHERS = {
    "consolidated.safetensors": b"again",
    "original/model.safetensors": b"again",
    "pytorch_model.bin": b"pickle",
    "modeling_tiny.py": b"raise SystemExit('this ran')",
    "tokenizer.py": b"raise SystemExit('this ran')",
    "preprocessor_config.json": b"{}",
    "chat_template.json": b"{}",
}


def with_config(**values: object) -> dict[str, bytes]:
    return {**STARTER_FILES, "config.json": json.dumps({**CONFIG, **values}).encode()}


def without(*names: str, **more: bytes) -> dict[str, bytes]:
    return {name: content for name, content in STARTER_FILES.items() if name not in names} | more


PUBLISHED = {
    "org/tiny": {**STARTER_FILES, **OTHERS},
    "org/pickled": without("model.safetensors") | {"pytorch_model.bin": b"pickle"},
    "org/coded": with_config(model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}),
    "org/quantised": with_config(quantization_config={"quant_method": "awq"}),
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": b""},
    "org/gguf": {"model-q4.gguf": b"GGUF"},
    "org/classifier": with_config(architectures=["BertForTokenClassification"], model_type="bert"),
    "org/cut": without("model.safetensors") | {"model.safetensors.index.json": b'{"weight_map": {"x": "model-1.safetensors"}}'},
    "org/gated": STARTER_FILES,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, for this process and its children."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({}, published=PUBLISHED, gated=("org/gated",), token="right", slowly=True) as serving:
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield serving


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(replace(settings, hub_offline=False))
    yield opened
    opened.db.dispose()


def fetched_files(hub: Hub) -> set[str]:
    return {path.rpartition(f"/resolve/{COMMIT}/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}


def test_a_model_is_fetched_once_into_the_cache_with_one_copy_of_its_weights(studio: Studio, hub: Hub, cache: Path) -> None:
    told: list[Fetched] = []
    added = studio.models.add("hub:org/tiny", progress=told.append)
    folder = cache / "models--org--tiny" / "snapshots" / COMMIT
    assert added.loadable and added.path == str(folder) and added.name == "tiny"
    assert {path.name for path in folder.rglob("*")} == {*STARTER_FILES, "preprocessor_config.json", "chat_template.json"} - {
        "SHA256SUMS",
        "probe.json",
    }
    assert fetched_files(hub).isdisjoint({*OTHERS} - {"preprocessor_config.json", "chat_template.json"})
    wanted = sum(path.stat().st_size for path in folder.iterdir())
    assert {now.total for now in told} == {wanted} and told[-1].done == wanted
    assert [now.done for now in told] == sorted(now.done for now in told) and any(0 < now.done < wanted for now in told)
    assert "revision 01234567" in added.notices[-1] and "Hugging Face cache" in added.notices[-1]
    assert list(studio.settings.models.iterdir()) == []


def test_a_model_that_lies_whole_in_the_cache_is_offered_and_used_without_a_network(studio: Studio, cache: Path) -> None:
    snapshots = cache / "models--org--mine" / "snapshots"
    shutil.copytree(STARTER, snapshots / COMMIT, ignore=shutil.ignore_patterns("words", "recipe"))
    half = cache / "models--org--half" / "snapshots" / COMMIT
    shutil.copytree(snapshots / COMMIT, half)
    (half / "model.safetensors").unlink()
    (found,) = studio.models.cached()
    assert (found.repository, found.here, found.path) == ("org/mine", False, str(snapshots / COMMIT))
    assert found.bytes == (STARTER / "model.safetensors").stat().st_size
    added = studio.models.add("hub:org/mine")
    assert added.path == found.path and studio.models.cached()[0].here
    gone = studio.models.remove("mine")
    assert gone.kept == found.path and (snapshots / COMMIT / "model.safetensors").is_file()
    with pytest.raises(ModelError, match="half"):
        studio.models.add("hub:org/half")


def test_the_branch_main_comes_before_a_newer_snapshot(studio: Studio, cache: Path) -> None:
    folder = cache / "models--org--mine"
    for commit in (COMMIT, "f" * 40):
        shutil.copytree(STARTER, folder / "snapshots" / commit, ignore=shutil.ignore_patterns("words", "recipe"))
    os.utime(folder / "snapshots" / COMMIT, (0, 0))
    assert studio.models.cached()[0].path.endswith("f" * 40)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    assert studio.models.cached()[0].path.endswith(COMMIT)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/pickled", "pytorch_model.bin, a format that can run code"),
        ("org/coded", "code of its own"),
        ("org/quantised", "stored quantised (awq)"),
        ("org/adapter", "an adapter, not a base model"),
        ("org/gguf", "GGUF files only"),
        ("org/classifier", "no causal language model"),
        ("org/cut", "lacks model-1.safetensors"),
        ("org/gated", "only to people who accepted its terms"),
        ("org/none", "has no model"),
    ],
)
def test_what_can_not_be_used_is_refused_before_its_weights_are_fetched(
    studio: Studio, hub: Hub, cache: Path, name: str, said: str
) -> None:
    with pytest.raises(ModelError) as refusal:
        studio.models.add(f"hub:{name}")
    assert said in refusal.value.message
    assert fetched_files(hub).isdisjoint({"model.safetensors", "pytorch_model.bin"})
    assert [model.name for model in studio.models.list()] == ["starter"]


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "", "a b", "--cache"])
def test_a_name_that_is_none_reaches_no_folder(studio: Studio, cache: Path, name: str) -> None:
    with pytest.raises(ModelError, match="has no model"):
        studio.models.add(f"hub:{name}", "mine")


def test_a_compressor_of_the_cache_is_offered_by_name(studio: Studio, cache: Path) -> None:
    shutil.copytree(STARTER / "words", cache / "models--org--Words" / "snapshots" / COMMIT)
    assert "Words" in [one.name for one in studio.compression.compressors.list().compressors]
    assert studio.compression.compressors.resolve("Words") == cache / "models--org--Words" / "snapshots" / COMMIT
