"""The catalogue as people see it, and the search of the hub: the real client against a small hub on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from studio import cli
from studio.errors import ModelError
from studio.records import KnownBaseModel
from studio.services import Studio
from studio.settings import Settings
from tests.hub_server import Hub

MODELS = {"org/Tiny-Chat": 5, "org/tiny-code": 900, "org/large": 10**6}


def test_the_hub_is_searched_by_name_the_most_fetched_first(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub({}, gated=("org/Tiny-Chat",), models=MODELS) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)
        known = Studio.open(replace(settings, hub_offline=False)).known
        assert [model.model_dump() for model in known.search(" tiny ")] == [
            {"repository": "org/tiny-code", "downloads": 900, "gated": False},
            {"repository": "org/Tiny-Chat", "downloads": 5, "gated": True},
        ]
        assert known.search("  ") == []
    known.settings = replace(settings, hub_offline=True)
    with pytest.raises(ModelError, match="stay offline"):
        known.search("tiny")


@pytest.fixture
def entries(settings: Settings) -> dict[str, KnownBaseModel]:
    return {entry.repository: entry for entry in Studio.open(settings).known.list()}


def test_an_entry_says_whether_it_trains_and_chats_here_or_why_not(entries: dict[str, KnownBaseModel]) -> None:
    # red when a refusal is silent, or a model is said to work whose weights are never opened
    for entry in entries.values():
        assert (entry.trains and entry.chats) == (not entry.reasons), entry.repository
        assert entry.chats == (not entry.refusal) and (entry.chats or not entry.trains)
        assert entry.chats <= (entry.weights == "safetensors")
        assert entry.parameters > 0 and entry.context > 0 and entry.download_bytes >= 2 * entry.parameters
    works = [entry for entry in entries.values() if entry.trains and entry.chats]
    assert len(works) >= 100


def test_an_entry_says_what_is_not_trained_and_what_is_answered_apart(entries: dict[str, KnownBaseModel]) -> None:
    # red when what the probe says of a model does not reach the person who chooses it
    dense = entries["Qwen/Qwen3-4B-Instruct-2507"]
    assert (dense.notices, dense.learned_share, dense.left_out) == (["LoRA reaches all weights of its blocks."], 1.0, {})
    mixture = entries["mistralai/Mixtral-8x7B-Instruct-v0.1"]
    assert "router" in mixture.left_out and "answer one after another" in " ".join(mixture.notices)
    hybrid = entries["nvidia/NVIDIA-Nemotron-Nano-9B-v2"]
    assert hybrid.learned_share and hybrid.learned_share < 0.9 and "state space layers 16 %" in " ".join(hybrid.notices)
    assert "images or sound, stay untouched" in " ".join(entries["google/gemma-3-4b-it"].notices)
    assert "safetensors" in " ".join(entries["facebook/opt-1.3b"].reasons)
    assert "transformers" in mixture.asked and "peft" in mixture.asked


def test_the_terminal_lists_the_catalogue(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # red when the command line gives other entries than the page, or no document
    monkeypatch.setattr(sys, "argv", ["studio", "models", "list", "--catalogue", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert left.value.code in (0, None)
    listed = [KnownBaseModel.model_validate({**entry, "fits": {}}) for entry in found]  # what fits depends on the memory of the moment
    assert listed == [entry.model_copy(update={"fits": {}}) for entry in Studio.open(settings).known.list()]
