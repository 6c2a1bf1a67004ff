"""What GGUF can't carry is refused with the reason, and what it carries is read as llama.cpp needs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studio.catalogue import gguf, gguf_vocabulary
from studio.errors import ModelError
from studio.settings import STATIC

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """The starter's config and tokenizer with something changed; no weights."""

    def make(config: Change = dict, tokenizer: Change = dict) -> Path:
        for name, change in (("config.json", config), ("tokenizer.json", tokenizer)):
            values = json.loads((STATIC / "starter" / name).read_text(encoding="utf-8"))
            change(values)
            (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
        return tmp_path

    return make


def test_the_starter_can_be_carried(model: Callable[..., Path]) -> None:
    folder = model()
    assert gguf.check(folder).name == "llama"
    found = gguf_vocabulary.read_vocabulary(folder)
    assert (found.model, found.pre, len(found.tokens)) == ("gpt2", "gpt-2", 4096)
    assert found.tokens[5] == "<|im_end|>" and found.kinds[5] == gguf_vocabulary.CONTROL and found.kinds[40] == gguf_vocabulary.NORMAL


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["BloomForCausalLM"]}, "BloomForCausalLM"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "longrope"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"vocab_size": 100}, "100 rows"),
        ({"vocab_size": None}, "embedding 0 rows"),
    ],
)
def test_a_model_that_gguf_would_change_is_refused(model: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        gguf.check(model(config=lambda values: values.update(change)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase.*no normaliser"),
        ({"normalizer": {"type": "NFC"}}, "NFC.*no normaliser"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_cut_otherwise_is_refused(model: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        gguf.check(model(tokenizer=lambda values: values.update(change)))


def test_qwens_tokenizer_is_known_by_its_pattern_and_may_compose_characters(model: Callable[..., Path]) -> None:
    pattern = next(text for text, name in gguf_vocabulary.SPLITS.items() if name == "qwen2")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    folder = model(tokenizer=lambda values: values.update(pre_tokenizer=steps, normalizer={"type": "NFC"}))
    assert gguf_vocabulary.read_vocabulary(folder).pre == "qwen2"


def test_sentencepiece_scores_follow_the_merges(stories260k: Path, tmp_path: Path) -> None:
    found = gguf_vocabulary.read_vocabulary(stories260k)
    assert (found.model, found.adds_space, found.kinds[3]) == ("llama", True, gguf_vocabulary.BYTE)
    merges = json.loads((stories260k / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    made = ["".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1) for merge in merges]
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert [scores[text] for text in dict.fromkeys(made)] == sorted((scores[text] for text in dict.fromkeys(made)), reverse=True)
    shutil.copy(stories260k / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        gguf_vocabulary.read_vocabulary(tmp_path)


def test_generation_tags_go_and_blanks_stay() -> None:
    template = "a {%- generation -%} b {%- endgeneration %} c {% generation %}d{%endgeneration-%}"
    assert gguf_vocabulary.without_generation_tags(template) == "a {%- if true -%} b {%- endif %} c {% if true %}d{% endif -%}"
