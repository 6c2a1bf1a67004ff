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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": False}, "norm_topk_prob True .here False"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "norm_topk_prob": True}, "norm_topk_prob False .here True"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0, 1, 1]}, "all but every fourth layer"),
        ({"architectures": ["Starcoder2ForCausalLM"], "use_bias": False, "hidden_act": "gelu_pytorch_tanh"}, "use_bias True"),
        ({"architectures": ["OlmoeForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 2}, "key and value head for each"),
        ({"architectures": ["GraniteForCausalLM"], "num_attention_heads": 4, "head_dim": 32}, "heads of 64"),
        (
            {
                "architectures": ["Gemma3ForCausalLM"],
                "hidden_activation": "gelu_pytorch_tanh",
                "head_dim": 64,
                "query_pre_attn_scalar": 168,
            },
            "query_pre_attn_scalar 64",
        ),
        ({"architectures": ["Gemma2ForCausalLM"]}, "uses silu, and GGUF knows gelu_pytorch_tanh"),
    ],
)
def test_what_llama_cpp_takes_for_granted_is_asked_of_the_config(model: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        gguf.check(model(config=lambda values: values.update(change)))


def test_the_27b_models_scale_attention_by_another_size(model: Callable[..., Path]) -> None:
    """Known to llama.cpp by their layers."""
    large = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 128, "hidden_size": 4608, "num_attention_heads": 32}
    change = {"architectures": ["Gemma2ForCausalLM"], **large, "num_hidden_layers": 46, "query_pre_attn_scalar": 144}
    assert gguf.check(model(config=lambda values: values.update(change))).name == "gemma2"


def test_windows_that_llama_cpp_does_not_compute_are_said() -> None:
    mistral, gemma = gguf.FAMILIES["MistralForCausalLM"], gguf.FAMILIES["Gemma3ForCausalLM"]
    windowed: dict[str, Any] = {"sliding_window": 4096, "max_position_embeddings": 32768}
    (said,) = gguf.notes(mistral, windowed)
    assert "looks back 4,096 tokens" in said and "llama" in said
    assert gguf.notes(gemma, windowed) == []
    unused = [
        {**windowed, "use_sliding_window": False},
        {**windowed, "layer_types": ["full_attention"]},
        {**windowed, "sliding_window": None},
        {**windowed, "max_position_embeddings": 4096},
    ]
    assert [gguf.notes(mistral, config) for config in unused] == [[]] * 4


@pytest.mark.parametrize(("ignore_merges", "pre"), [(True, "llama-bpe"), (False, "dbrx"), (None, "dbrx")])
def test_a_tokenizer_that_makes_every_word_of_merges_is_told_from_llama_3s(
    model: Callable[..., Path], ignore_merges: bool | None, pre: str
) -> None:
    """The same pattern; llama.cpp takes words whole that are in the vocabulary where the name is Llama 3's."""

    def change(values: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": gguf_vocabulary.LLAMA3}, "behavior": "Isolated", "invert": False}
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
        values["normalizer"] = None
        values["model"]["ignore_merges"] = ignore_merges

    assert gguf_vocabulary.read_vocabulary(model(tokenizer=change)).pre == pre


def test_the_patterns_are_those_that_transformers_knows_by_the_same_names() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    assert {name: text for text, name in gguf_vocabulary.SPLITS.items()} == {
        name: GGUF_PRE_TOKENIZER_SPLITS[name] for name in ("llama-bpe", "qwen2", "tekken", "gpt-4o")
    }


def test_gemmas_tokenizer_splits_at_blanks_that_are_marks_already(stories260k: Path, tmp_path: Path) -> None:
    values = json.loads((stories260k / "tokenizer.json").read_text(encoding="utf-8"))
    rows = len(values["model"]["vocab"])
    blanks = {"id": rows, "content": "▁▁", "special": False, "normalized": False}
    values["added_tokens"].append(blanks)
    values["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    values["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows + 3}), encoding="utf-8")
    found = gguf_vocabulary.read_vocabulary(tmp_path)
    assert (found.model, found.adds_space, len(found.tokens)) == ("llama", False, rows + 3)
    assert found.tokens[rows] == "  " and found.kinds[rows] == gguf_vocabulary.USER_DEFINED  # llama.cpp seeks it before blanks are marks
    assert found.tokens[rows + 1] == f"[PAD{rows + 1}]" and found.kinds[rows + 1] == gguf_vocabulary.UNUSED


@pytest.mark.parametrize(
    ("name", "strips", "given"),
    [
        ("my-Phi-3-tune", False, "my-Phi 3-tune"),
        ("phi3", False, "Phi 3"),
        ("greeter", False, "greeter"),
        ("greeter", True, "greeter (phi-3)"),
    ],
)
def test_only_files_of_phi_3s_tokenizer_are_called_so(name: str, strips: bool, given: str) -> None:
    """llama.cpp strips blanks behind control tokens in every file with that name, and fails to load it where they are others."""
    assert gguf_vocabulary.general_name(name, strips) == given


def test_a_wrapper_that_leaves_the_vocabulary_to_its_class_is_measured_by_its_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 8}}), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_bytes((STATIC / "starter" / "tokenizer.json").read_bytes())
    save_file({"language_model.model.embed_tokens.weight": torch.zeros(4100, 8)}, tmp_path / "model.safetensors")
    assert len(gguf_vocabulary.read_vocabulary(tmp_path).tokens) == 4100
