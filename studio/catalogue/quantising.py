"""What of a base is kept in fewer bits by bitsandbytes, in trainer and engine alike: linear layers, and experts stored as one tensor.

Layers whose weights the model's own code reads as numbers, past the layer, stay whole: they would be read packed. Imports torch,
transformers and bitsandbytes in functions only.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from studio.catalogue import anatomy, text_models
from studio.catalogue.targets import lora_targets

# `self.dt_proj.weight @ x`; what only asks a weight's type, or slices it for a model that was cut in parts, does without its numbers
READ_DIRECTLY = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size)\b|\[)")
INITIAL = re.compile(r"^\s*(?:torch\.nn\.|nn\.)?init\.")  # lines that make up weights


def bits_and_bytes(folder: Path, **options: Any) -> Any:
    """transformers' BitsAndBytesConfig for the model in `folder`; `options` are its own."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options, llm_int8_skip_modules=kept_whole(text_models.config_of(folder)))


def kept_whole(config: Any) -> list[str] | None:
    """Names of layers that must not be quantised, where transformers' own choice is not enough; None where it is."""
    from transformers.quantizers.base import get_keys_to_not_convert

    family, _ = text_models.family_of(config)
    read = read_directly(family)
    if not read:
        return None
    model = text_models.without_weights(config)
    found = [name for name, module in model.named_modules() if anatomy.is_linear(module) and name.rpartition(".")[2] in read]
    if not found:
        return None
    return sorted({*found, *get_keys_to_not_convert(model)})


def quantise_experts(model: Any, folder: Path, *, quant_type: str = "nf4", double_quant: bool = True) -> int:
    """Keep the fused experts of a model that was loaded from `folder` in 4 bits; the number of weights that this concerns."""
    weights = 0
    for full in lora_targets(text_models.without_weights(text_models.config_of(folder))).parameters:
        from bitsandbytes.nn.parametrize import replace_parameter_4bit

        holder, _, name = full.rpartition(".")
        module = model.get_submodule(holder)
        weights += getattr(module, name).numel()
        replace_parameter_4bit(module, name, compress_statistics=double_quant, quant_type=quant_type)
    return weights


def read_directly(family: Any) -> set[str]:
    """Names of submodules whose weights the code of a model class, or of a class beside it, reads as numbers."""
    source = inspect.getsource(sys.modules[family.__module__])
    lines = [line for line in source.splitlines() if not INITIAL.match(line)]
    return {found[1] for line in lines for found in READ_DIRECTLY.finditer(line)}
