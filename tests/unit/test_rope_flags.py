"""How transformers, vLLM and llama.cpp are told of the positions that an adapter was trained with, in commands and on cards."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.exporters import cards
from jobs.exporters.config import ExportConfig
from jobs.sections import RopeSection
from studio.catalogue import rope_flags

YARN = RopeSection(rope_type="yarn", factor=4.0)
FOUND = {
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 10000.0},
    "max_position_embeddings": 8192,
}


def test_what_differs_is_written_where_the_model_keeps_its_text() -> None:
    text = SimpleNamespace(rope_parameters={"a": 1}, max_position_embeddings=7)
    text.get_text_config = lambda: text
    outer = SimpleNamespace(get_text_config=lambda: text)
    own = {"rope_parameters": {"a": 1}, "max_position_embeddings": 7}
    assert (rope_flags.overrides(text), rope_flags.overrides(outer)) == (own, {"text_config": own})
    for found in (FOUND, {"text_config": FOUND}):
        lines = rope_flags.transformers_lines(found, "base")
        assert f"text.rope_parameters = {FOUND['rope_parameters']!r}\n" in lines and "text.max_position_embeddings = 8192\n" in lines


def test_flags_of_vllm_say_only_what_a_config_does_not() -> None:
    assert rope_flags.vllm_flags(FOUND, is_in_config=True) == "--max-model-len 8192"
    option, value, *rest = shlex.split(rope_flags.vllm_flags(FOUND))
    assert (option, json.loads(value), rest) == ("--hf-overrides", FOUND, ["--max-model-len", "8192"])
    assert rope_flags.sentence(YARN, FOUND) == "Trained with scaled positions (yarn x 4): it reads 8,192 tokens at once."


@pytest.mark.parametrize(
    ("rope", "has_flags", "has_note"),
    [
        (YARN, True, False),
        (RopeSection(rope_type="linear", factor=2.0), True, False),
        (RopeSection(rope_type="dynamic", factor=2.0), False, True),
        (RopeSection(rope_type="llama3", factor=2.0), False, False),
        (RopeSection(rope_type="yarn", factor=2.0, attention_factor=1.5), False, False),
    ],
)
def test_what_other_programs_can_be_told(rope: RopeSection, has_flags: bool, has_note: bool) -> None:
    assert rope_flags.has_llama_cpp_flags(rope) is has_flags and (f"stretches {rope.rope_type}" in rope_flags.vllm_note(rope)) is has_note
    assert bool(rope_flags.vllm_note(rope)) is has_note


def test_flags_of_llama_cpp() -> None:
    assert rope_flags.llama_cpp_flags(YARN, FOUND) == "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 2048 -c 8192"
    linear = RopeSection(rope_type="linear", factor=2.0)
    found = {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "max_position_embeddings": 512}
    assert rope_flags.llama_cpp_flags(linear, found).startswith("--rope-scaling linear --rope-scale 2 -c ")


@pytest.mark.parametrize(
    ("form", "has", "lacks"),
    [
        ("merged", ["`config.json` says so.", "`vllm serve THIS-FOLDER --max-model-len 8192`"], ["--hf-overrides", "llama-server"]),
        ("adapter", ["--lora-modules one=THIS-FOLDER --hf-overrides", "AutoModelForCausalLM"], ["llama-server", "says so"]),
        ("gguf", ["The keys of the file say so.", "`llama-server -m one-f16.gguf -c 8192`"], ["vllm", "--rope-scaling"]),
        ("gguf-lora", ["llama-server -m THE-BASE.gguf --lora one-lora.gguf --rope-scaling yarn"], ["vllm", "say so"]),
    ],
)
@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_a_card_tells_the_programs_that_read_its_format(
    monkeypatch: pytest.MonkeyPatch, form: str, has: list[str], lacks: list[str], kind: str
) -> None:
    config = ExportConfig(adapter="one", adapter_path="/a", base_model="base", base_path="/b", format=form, to="/to")  # type: ignore[arg-type]
    positions: Any = YARN
    if kind == "dynamic":
        positions = RopeSection(rope_type="dynamic", factor=4.0)
        monkeypatch.setattr(rope_flags, "llama_cpp_flags", lambda *_: "--rope-scaling yarn")
    monkeypatch.setattr(cards.rope, "of_adapter", lambda folder: positions)
    monkeypatch.setattr(cards.text_models, "config_of", lambda folder, positions: None)
    monkeypatch.setattr(rope_flags, "overrides", lambda config: FOUND)
    [said] = cards._long_context(config)
    assert said.startswith("## Long context\n\nTrained with scaled positions")
    assert all(one in said for one in has)
    if kind == "yarn":
        assert not any(one in said for one in lacks)
    assert said.endswith("so that short answers may differ.") is (kind == "dynamic" and form in ("merged", "adapter"))
    positions = RopeSection()
    assert list(cards._long_context(config)) == []
