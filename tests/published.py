"""Small folders of multimodal models, laid out as they are published: text, vision, tokenizer of the starter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.runs import STARTER

TEXT: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
MIXED: dict[str, Any] = {**TEXT, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
PICTURES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MISTRAL_PICTURES = {**PICTURES, "model_type": "pixtral", "head_dim": 16}
STRETCHED = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}

# name -> configuration class, text_config, vision_config, the rest
WRAPPERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen3_5": (
        "Qwen3_5Config",
        {**TEXT, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
        {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 64},
        {},
    ),
    "gemma3": ("Gemma3Config", {**MIXED, "query_pre_attn_scalar": 16}, PICTURES, {"mm_tokens_per_image": 4, "image_token_index": 15}),
    "mistral3": ("Mistral3Config", {**TEXT, "model_type": "mistral"}, MISTRAL_PICTURES, {"image_token_index": 15}),
    "ministral3": (
        "Mistral3Config",
        {**TEXT, "model_type": "ministral3", "rope_parameters": STRETCHED},
        MISTRAL_PICTURES,
        {"image_token_index": 15},
    ),
    "llama4": (
        "Llama4Config",
        {**TEXT, "intermediate_size_mlp": 128, "num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
        {**PICTURES, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        {"image_token_index": 15},
    ),
}


def publish(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the folder of one wrapper. Needs torch."""
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    kind, text, vision, rest = WRAPPERS[name]
    vocabulary = json.loads((STARTER / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = getattr(transformers, kind)(text_config={**text, "vocab_size": vocabulary}, vision_config=vision, **rest)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)  # lively enough for a loss that can fall
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (STARTER / file).is_file():
            shutil.copy(STARTER / file, folder / file)
    return folder
