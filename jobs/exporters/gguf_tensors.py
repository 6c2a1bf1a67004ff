"""The tensors of a model under GGUF's names, in the form in which llama.cpp computes with them. Knows neither metadata nor files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import gguf
import numpy as np
from gguf import MODEL_TENSOR
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from studio.catalogue.gguf import GgufFamily
from studio.errors import ModelError

OTHER_FORMAT = "Export it as merged (safetensors)."
SUFFIXES = (".weight", ".bias")
TEXT_PART = "language_model."  # of a model that reads more than text
HEAD = "lm_head.weight"
EXPERTS = re.compile(r"(?P<layer>.*\.layers\.\d+)\.\w+\.experts\.(?P<part>gate_up_proj|down_proj)(\.weight)?")
SHARED_GATE = "shared_expert_gate.weight"  # one row, which llama.cpp keeps as a list of numbers
RENAMED = {"block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight"}  # since gguf's maps were made
EXACT = (MODEL_TENSOR.FFN_GATE_INP, MODEL_TENSOR.FFN_GATE_INP_SHEXP)  # routers, which llama.cpp keeps in 32 bits
OUTTYPES = {"f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
Array = np.ndarray[Any, Any]


def text_config(model: nn.Module) -> dict[str, Any]:
    """The config of the part that reads text, with everything that the config's class adds."""
    found: dict[str, Any] = cast(Any, model).config.get_text_config().to_dict()
    return found


def tensor_names(family: GgufFamily, config: Mapping[str, Any]) -> Any:
    """The map from transformers' names to GGUF's."""
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.name)
    return gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])


def text_name(key: str) -> str:
    """The name that a parameter or a module has in a model that reads only text."""
    return key.replace(TEXT_PART, "", 1)


def named(model: nn.Module, family: GgufFamily, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every tensor that the file gets, not yet in llama.cpp's form. Raises ModelError for one that GGUF has no place for."""
    names, found = tensor_names(family, config), {}
    is_tied = bool(cast(Any, model).config.tie_word_embeddings)  # the model's own: training may have made two of one tensor
    for key, value in _parts(model, config):
        if is_tied and key == HEAD and not family.needs_head:
            continue
        name = names.get_name(key, try_suffixes=SUFFIXES)
        if name is None:
            raise ModelError(f"GGUF has no place for the tensor {key} of this model.", OTHER_FORMAT)
        found[name] = value
    return found


def left_out(model: nn.Module) -> list[str]:
    """Parts of a model that are not of its text part, and so not in the file."""
    parts = {".".join(key.split(".")[:2]) for key, _ in model.named_parameters() if not _is_text(model, key)}
    return sorted(parts)


def stored_kind(name: str, shape: Any, outtype: str, exact: set[str]) -> Kind:
    """The type that a tensor is written with; `exact` are the names that stay in 32 bits."""
    if len(shape) < 2 or name in exact or name.endswith("_norm.weight"):
        return Kind.F32
    kind = OUTTYPES[outtype]
    if kind is Kind.Q8_0 and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return Kind.F16
    return kind


def exact_names(family: GgufFamily, config: Mapping[str, Any]) -> set[str]:
    layers = range(config["num_hidden_layers"])
    return {f"{gguf.TENSOR_NAMES[tensor].format(bid=layer)}.weight" for tensor in EXACT for layer in layers}


def as_llama_cpp(name: str, value: Array, family: GgufFamily, config: Mapping[str, Any]) -> Array:
    """A tensor's values as llama.cpp computes with them."""
    if family.norm_offset and name.endswith("norm.weight"):
        return value + np.float32(family.norm_offset)
    return rows(name, value, family, config)


def rows(name: str, value: Array, family: GgufFamily, config: Mapping[str, Any], *, back: bool = False) -> Array:
    """llama.cpp rotates neighbouring rows of a head, transformers row i and i + half: put them in order, or `back`."""
    if not family.rotates_pairs or not (".attn_q." in name or ".attn_k." in name):
        return value
    heads = config["num_attention_heads"]
    heads = heads if ".attn_q." in name else config.get("num_key_value_heads") or heads
    half = value.shape[0] // heads // 2
    split = (heads, half, 2, *value.shape[1:]) if back else (heads, 2, half, *value.shape[1:])
    return value.reshape(split).swapaxes(1, 2).reshape(value.shape)


def _parts(model: nn.Module, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names that gguf's maps know: experts apart where transformers keeps them fused."""
    for stated, value in model.state_dict().items():
        if not _is_text(model, stated):
            continue
        key = text_name(stated)
        if found := EXPERTS.fullmatch(key):
            yield from _experts(f"{found['layer']}.mlp.experts", found["part"], value, config)
            continue
        if key.endswith(SHARED_GATE):
            yield key, value.reshape(-1)
            continue
        old = next((old for old in RENAMED if key.endswith(old)), "")
        yield (key.removesuffix(old) + RENAMED[old], value) if old else (key, value)


def _experts(stem: str, part: str, value: Tensor, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    inner = -1 if part == "gate_up_proj" else -2
    if value.dim() != 3 or value.shape[inner] != config["hidden_size"]:
        raise ModelError(f"The experts {stem} are stored in another order than GGUF keeps them in.", OTHER_FORMAT)
    if part == "down_proj":
        yield f"{stem}.down_proj.weight", value
        return
    for name, half in zip(("gate_proj", "up_proj"), value.chunk(2, dim=-2), strict=True):
        yield f"{stem}.{name}.weight", half


def _is_text(model: nn.Module, key: str) -> bool:
    has_parts = any(TEXT_PART in name for name, _ in model.named_children()) or hasattr(getattr(model, "model", None), "language_model")
    return not has_parts or TEXT_PART in key or key == HEAD
