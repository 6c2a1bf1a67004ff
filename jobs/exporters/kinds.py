"""Which kinds of adapters can take which form, and why not the others. Reads adapter_config.json; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.errors import ModelError

# what a person calls these, for the reason
PREFIXES = {
    "PROMPT_TUNING": "Prompt tuning", "P_TUNING": "P-tuning", "PREFIX_TUNING": "Prefix tuning", "MULTITASK_PROMPT_TUNING": "Prompt tuning",
    "CPT": "Context-aware prompt tuning", "CARTRIDGE": "A cartridge",
}  # fmt: skip
MERGEABLE = ("LORA", "IA3", "LN_TUNING")  # the last is what full fine-tuning is saved as
AS_ADAPTER = "Export it as adapter."
AS_MERGED = "Export it as merged or gguf."
EXTRAS = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens")


def check(format: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError with the reason why an adapter of this kind can't be exported in this format."""
    kind = str(config.get("peft_type"))
    if format == "adapter":
        return
    if kind in PREFIXES:
        raise ModelError(
            f"{PREFIXES[kind]} puts learned tokens before the text and changes no weight, so there is nothing to merge.", AS_ADAPTER
        )
    if kind not in MERGEABLE:
        raise ModelError(f"An adapter of kind {kind} can't be merged into its base: it adds layers of its own.", AS_ADAPTER)
    if config.get("alora_invocation_tokens"):
        raise ModelError("An activated LoRA works on a part of the text only, so it can't be merged into its base.", AS_ADAPTER)
    if format == "gguf-lora":
        _check_plain_lora(kind, config)


def _check_plain_lora(kind: str, config: Mapping[str, Any]) -> None:
    if kind != "LORA":
        raise ModelError(f"llama.cpp reads LoRA only, and this adapter is of kind {kind}.", AS_MERGED)
    if config.get("use_dora"):
        raise ModelError("This is a DoRA: its magnitudes have no place in a GGUF LoRA.", AS_MERGED)
    extra = next((key for key in EXTRAS if config.get(key)), "bias" if config.get("bias", "none") != "none" else "")
    if extra:
        raise ModelError(f"The adapter holds more than low-rank factors ({extra}), which a GGUF LoRA has no place for.", AS_MERGED)
