"""The number format of a model's arithmetic: one rule for trainer, engine and compressor. Imports torch in functions only."""

from __future__ import annotations

import platform

# activations beyond 65,504, float16's largest number: as unsloth_zoo's FORCE_FLOAT32, and Gemma 2, whose layers end as Gemma 3's do
WIDE_FAMILIES = ("gemma2", "gemma3", "gemma4", "gpt_oss", "qwen3_5")


def compute_dtype(device: str, has_bfloat16: bool, model_type: str = "") -> str:
    """bfloat16, float16 or float32: what a model of this `model_type` (of config.json) is computed in on `device`, cuda or cpu.

    bfloat16 wherever the hardware computes in it, whatever the checkpoint is stored in. Else float16 on a GPU, but float32 for models
    that overflow it; and float32 on a processor.
    """
    if has_bfloat16:
        return "bfloat16"
    if device == "cpu" or overflows_in_float16(model_type):
        return "float32"
    return "float16"


def overflows_in_float16(model_type: str) -> bool:
    return model_type.startswith(WIDE_FAMILIES)


def has_bfloat16(device: str) -> bool:
    """Whether this machine's device computes in bfloat16 itself: emulation is slower than float32."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, check, lambda: False)() for check in checks)
