"""The metadata of a GGUF file: sizes, what a family computes with beside its weights, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.exporters import gguf_rope
from studio.catalogue.gguf import GgufFamily, head_size
from studio.catalogue.gguf_vocabulary import GgufVocabulary, without_generation_tags
from studio.datasets.rendering import Renderer

OLMO_EPSILON = 1e-5  # of its norms, which have no weights and no config key


def add_shape(writer: Any, family: GgufFamily, config: Mapping[str, Any]) -> None:
    """Sizes and figures that every family states, and those that only some have."""
    heads = int(config["num_attention_heads"])
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    gguf_rope.add_keys(writer, config)
    _add_norms(writer, family, config)
    _add_experts(writer, config)
    _add_windows(writer, family, config)
    _add_scales(writer, family, config)


def _add_norms(writer: Any, family: GgufFamily, config: Mapping[str, Any]) -> None:
    if config.get("rms_norm_eps") is not None:
        writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    if config.get("norm_epsilon") is not None:
        writer.add_layer_norm_eps(float(config["norm_epsilon"]))
    if family.name == "olmo":
        writer.add_layer_norm_eps(OLMO_EPSILON)
        if config.get("clip_qkv") is not None:
            writer.add_clamp_kqv(float(config["clip_qkv"]))


def _add_experts(writer: Any, config: Mapping[str, Any]) -> None:
    count = config.get("num_local_experts") or config.get("num_experts")
    if not count:
        return
    writer.add_expert_count(int(count))
    writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(int(config["moe_intermediate_size"]))
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(config["shared_expert_intermediate_size"]))


def _add_windows(writer: Any, family: GgufFamily, config: Mapping[str, Any]) -> None:
    """Sliding windows where llama.cpp computes them; of the Phi-3 family it reads 0 as the mark of those that have none."""
    window = int(config.get("sliding_window") or 0)
    if family.name == "phi3":
        writer.add_sliding_window(window)
    kinds = config.get("layer_types") or []
    if family.windows and window and "sliding_attention" in kinds:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])


def _add_scales(writer: Any, family: GgufFamily, config: Mapping[str, Any]) -> None:
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    if family.name in ("granite", "granitemoe"):
        writer.add_attention_scale(float(config["attention_multiplier"]))
        writer.add_embedding_scale(float(config["embedding_multiplier"]))
        writer.add_residual_scale(float(config["residual_multiplier"]))
        writer.add_logit_scale(float(config["logits_scaling"]))


def add_tokenizer(writer: Any, vocabulary: GgufVocabulary, renderer: Renderer) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    else:
        writer.add_token_merges(vocabulary.merges)
    for add, token in (
        (writer.add_bos_token_id, renderer.bos_token_id),
        (writer.add_eos_token_id, renderer.eos_token_id),
        (writer.add_pad_token_id, renderer.pad_token_id),
        (writer.add_eot_token_id, next((i for i in renderer.stop_token_ids if i != renderer.eos_token_id), None)),
    ):
        if token is not None:
            add(token)
    started = renderer.prompt([{"role": "user", "content": "a"}]).ids[:1]
    writer.add_add_bos_token(started == [renderer.bos_token_id])  # llama.cpp adds what a conversation starts with, and only that
    writer.add_add_eos_token(False)
    writer.add_chat_template(without_generation_tags(renderer.template))
