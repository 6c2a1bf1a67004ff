"""Predictions of memory, to the byte: `python -m tests.predictions` writes tests/fixtures/predictions.json anew.

They are measured against real trainings elsewhere; these keep a change of one family or option from moving another unnoticed.
A change that is meant shows in the file's diff, one line for each case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import config as job_config
from jobs import recipes
from studio.catalogue import memory, probes, probing
from studio.catalogue.architecture import decoder
from studio.catalogue.trainable import trainable

FILE = Path(__file__).parent / "fixtures" / "predictions.json"
SMALL = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "vocab_size": 517, "max_position_embeddings": 300,
}  # fmt: skip
WIDE = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT = {"n_embd": 96, "n_layer": 3, "n_head": 8, "vocab_size": 517, "n_positions": 300}
HEAD = {**SMALL, "head_dim": 20}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": 100},
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {**SMALL, "tie_word_embeddings": True},
    "qwen3": HEAD,
    "gemma": HEAD,
    "gemma2": {**HEAD, "sliding_window": 100},
    "qwen3_moe": {**HEAD, "num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2},
    "gemma3_text": HEAD,
    "phi": SMALL,
    "phi3": {**SMALL, "pad_token_id": 0},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": WIDE,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "bloom": {**GPT, "hidden_size": 96},
    "falcon": WIDE,
    "olmo": {**SMALL, "pad_token_id": 0},
    "olmo2": {**SMALL, "pad_token_id": 0},
    "granite": SMALL,
    "starcoder2": SMALL,
    "stablelm": SMALL,
    "cohere": SMALL,
    "smollm3": {**SMALL, "pad_token_id": 0},
    "mpt": {"d_model": 96, "n_heads": 6, "n_layers": 3, "vocab_size": 517, "max_seq_len": 300},
    "opt": {**WIDE, "ffn_dim": 160, "word_embed_proj_dim": 96},
    "gpt_oss": {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon, new": {**WIDE, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, serial": {**WIDE, "model_type": "falcon", "parallel_attn": False},
    "many words": {**SMALL, "model_type": "llama", "vocab_size": 40_000},
    "long": {**SMALL, "model_type": "llama", "max_position_embeddings": 9000},
    "one head": {
        "model_type": "llama",
        "hidden_size": 130,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "intermediate_size": 60,
        "vocab_size": 99,
    },
    **{f"window {n}": {**SMALL, "model_type": "mistral", "sliding_window": n} for n in (299, 300, 301)},
    "window of some": {
        **SMALL,
        "model_type": "qwen3",
        "head_dim": 20,
        "use_sliding_window": True,
        "sliding_window": 100,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_length": 299}, {"max_length": 301},
    {"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    {"per_device_eval_batch_size": 16}, {"test_size": 0.0},
    {"gradient_checkpointing": True}, {"gradient_checkpointing": False}, {"packing": True}, {"packing": True, "attn_implementation": "eager"},
    {"attn_implementation": "eager"}, {"attn_implementation": "flash_attention_2"}, {"attn_implementation": "sdpa"},
    {"lora.r": 3}, {"lora.lora_dropout": 0.1}, {"lora.lora_dropout": 0.1, "lora.use_dora": True}, {"lora.use_dora": True},
    {"lora.target_modules": ["q_proj", "v_proj"]}, {"lora.target_modules": ["gate_proj"]}, {"lora.modules_to_save": ["embed_tokens", "x.lm_head", "other"]},
    {"quantization.load_in_4bit": False}, {"quantization.load_in_4bit": False, "quantization.load_in_8bit": True},
    {"quantization.bnb_4bit_use_double_quant": False},
    {"method": "full", "quantization.load_in_4bit": False}, {"method": "ia3"}, {"method": "bottleneck"},
    {"method": "bottleneck", "bottleneck.mh_adapter": True, "bottleneck.reduction_factor": 8},
    {"method": "prompt-tuning", "prompt.num_virtual_tokens": 5}, {"method": "p-tuning", "prompt.num_virtual_tokens": 5},
    {"method": "p-tuning", "prompt.num_virtual_tokens": 5, "prompt.encoder_hidden_size": 33},
    {"method": "prefix-tuning", "prompt.num_virtual_tokens": 5},
    {"method": "prefix-tuning", "prompt.num_virtual_tokens": 5, "prompt.prefix_projection": True},
    {"optim": "adamw_torch"}, {"optim": "adafactor"}, {"optim": "paged_adamw_32bit"}, {"optim": "sgd"}, {"optim": "lion_8bit"},
    {"objective": "dpo"}, {"objective": "kto"}, {"objective": "orpo"}, {"objective": "continued-pretraining"},
]  # fmt: skip


def predictions() -> dict[str, list[int]]:
    """By case: the parts in the order of memory.PARTS, process, paged bytes, trained parameters, bytes on disk, and what each moment takes."""
    found = {}
    cases = [(kind, options, 4) for kind in FAMILIES for options in ({}, {"gradient_checkpointing": False, "method": "ia3"})]
    packed = {"packing": True, "per_device_train_batch_size": 2}
    extra = ("window 299", "window 300", "window 301", "window of some", "falcon, new", "many words", "long")
    cases += [
        (kind, {**options, "max_length": 9000 if kind == "long" else 300}, 2)
        for kind in extra
        for options in (packed, {"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 2})
    ]
    cases += [(kind, options, size) for kind in ("llama", "gemma2", "qwen3_moe") for options in OPTIONS for size in (2, 4)]
    for kind in FAMILIES:  # here instead of in a child for each
        config = {"model_type": kind, **FAMILIES[kind]}
        probes.keep(probes.digest(config), probes.answered(probing.asked(config, kind)))
    for kind, options, size in cases:
        config = {"model_type": kind, **FAMILIES[kind]}
        job = job_config.build(recipes.get("qlora-sft").options, options)
        for device in ("cpu", "cuda"):
            made = memory.predict(config, job, device=device, size=size)
            figures = [made.parts[name] for name in memory.PARTS]
            model, trained = decoder(config), trainable(decoder(config), job)
            setting = memory.batch(model, job, trained, device, size, config)
            figures += [made.process, made.paged, made.trained, memory.predict_disk_bytes(config, job)]
            figures += [moment.total for moment in memory.moments(model, job, trained, setting, kept=0)]
            found[f"{kind} {json.dumps(options)} {device} {size} ({made.moment})"] = figures
    return found


def main() -> None:
    lines = (f" {json.dumps(case)}: {json.dumps(figures)}" for case, figures in predictions().items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
