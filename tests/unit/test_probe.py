"""The probe of a model: what transformers and peft say of architectures whose answers are known, and configs that lie."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from studio.catalogue import probes, probing
from studio.errors import ModelError
from studio.records import Probe
from studio.settings import STATIC

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mixtral": {**SMALL, **EXPERTS},
    "gemma2": {**SMALL, "head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "opt": {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 128},
    "gemma3": {"text_config": {**SMALL, "head_dim": 16}, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 15},
    "gpt_oss": {**SMALL, **EXPERTS, "head_dim": 16},
}


@functools.cache
def probed(kind: str) -> Probe:
    values = json.loads(AutoConfig.for_model(kind, **KINDS[kind]).to_json_string(use_diff=False))
    return probing.probe(values, kind)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_dense_models_learn_everything_and_share_batches(kind: str) -> None:
    # red when a family's layers are not found, or a dense model is answered row by row
    found = probed(kind)
    assert (found.targets.share, found.targets.left_out) == (1.0, {})
    assert found.mixable and found.padding == "left" and found.cache == "DynamicCache" and found.croppable


def test_attention_is_what_the_class_supports() -> None:
    # red when a name is offered that transformers refuses for this class
    assert "sdpa" in probed("llama").attention
    assert "sdpa" not in probed("gpt_oss").attention and "sdpa" not in probed("mamba").attention
    assert all("eager" in probed(kind).attention for kind in KINDS)


def test_fused_experts_are_targets_and_routers_are_not() -> None:
    found = probed("mixtral")
    assert found.targets.parameters == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert list(found.targets.left_out) == ["router"] and 0.99 < found.targets.share < 1
    assert not found.mixable and "experts" in found.mixable_reason


def test_a_layer_that_is_given_all_rows_in_one_list_shares_a_batch_and_one_that_is_given_some_tokens_is_named() -> None:
    assert probed("opt").mixable
    rows = SimpleNamespace(error="", picks="layers.0.expert")
    assert "layers.0.expert is given some" in probing._unmixable(SimpleNamespace(parameters=[]), rows)


def test_the_text_part_of_a_multimodal_model_alone_is_trained() -> None:
    found = probed("gemma3")
    assert found.class_name == "Gemma3ForConditionalGeneration" and found.text_prefix == "model.language_model"
    assert found.targets.share == 1 and not any("vision" in name for name in found.targets.modules)
    assert found.parameters_by_kind["vision"] > 0


def test_a_state_space_model_says_what_peft_refuses() -> None:
    found = probed("mamba")
    assert found.targets.refused == ["mixer.out_proj"] and found.targets.bypassed == ["mixer.dt_proj"]
    assert "state_space" in found.targets.left_out
    assert not found.croppable and found.cache_layers == {"LinearAttentionLayer": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_the_model(kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    found = probed(kind)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sum(found.parameters_by_kind.values()) == found.parameters


def test_the_stored_probe_of_the_starter_is_what_the_libraries_say() -> None:
    # red when transformers, peft or the probe have changed: make it again with `make catalogue`
    config = json.loads((STATIC / "starter" / "config.json").read_text())
    assert json.loads(probes.STARTER.read_text()) == probing.probe(config, "starter").model_dump(mode="json")


DRAFTER = {**SMALL, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
SHARES = {**DRAFTER, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2}


@pytest.mark.parametrize("kind, values, said", [
    ("gemma4_assistant", {"text_config": {**DRAFTER, "model_type": "gemma4_text"}},
     "x is of model_type 'gemma4_assistant', which only drafts for a larger model: all of its layers read that one's keys and values, so it "
     "can't write alone. Add the larger model instead."),
    ("blt", {},
     "x describes BltForCausalLM, for which the installed transformers can't make the cache that it writes with ('BltConfig' object has no "
     "attribute 'num_hidden_layers'). Use a text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2."),
])  # fmt: skip
def test_what_cannot_write_is_refused_in_one_line(kind: str, values: dict[str, Any], said: str) -> None:
    config = json.loads(AutoConfig.for_model(kind, **values).to_json_string(use_diff=False))
    with pytest.raises(ModelError) as refused:
        probing.probe(config, "x")
    assert str(refused.value) == said


def test_layers_that_share_keys_with_others_of_the_same_model_are_no_reason_to_refuse() -> None:
    config = json.loads(AutoConfig.for_model("gemma4_text", **SHARES).to_json_string(use_diff=False))
    assert probing.probe(config, "x").targets.accepted
