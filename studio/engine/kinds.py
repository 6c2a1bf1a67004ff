"""Kinds of adapters as their adapter_config.json tells them: which answer here, and which may share a batch. Knows no torch."""

from __future__ import annotations

from typing import Any

# they put tokens before the prompt: embeddings, or keys and values of every layer
LEADING_KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
# they need inputs of their own, or a forward pass that this engine does not have
UNANSWERABLE_KINDS = ("MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT", "XLORA", "POLY")
# these start by changing the base's own weights, which every other adapter shares
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# LoRA with one of these answers in a pass of its own: peft refuses `adapter_names` for some and ignores it for others
OWN_WAY = {
    "use_dora": "DoRA",
    "trainable_token_indices": "LoRA with trained tokens",
    "modules_to_save": "LoRA with whole layers",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "block-diagonal LoRA",
}
KIND_NAMES = {
    "IA3": "IA3",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "BOTTLENECK": "bottleneck adapters",
    "LN_TUNING": "whole trained layers",
}


def is_mixable(config: dict[str, Any]) -> bool:
    """Plain LoRA: peft refuses `adapter_names` for DoRA and silently ignores it for other kinds."""
    return config["peft_type"] == "LORA" and not any(config.get(name) for name in OWN_WAY)


def kind_of(config: dict[str, Any]) -> str:
    """What people call it."""
    if config["peft_type"] == "LORA":
        return next((name for key, name in OWN_WAY.items() if config.get(key)), "LoRA")
    return KIND_NAMES.get(config["peft_type"], str(config["peft_type"]))
