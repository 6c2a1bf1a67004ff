"""A merged model as one GGUF file, as llama.cpp's own converter would write it: names, order of rotary rows, types, tokenizer.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors are written one by one. Knows no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor, nn

from jobs.exporters import gguf_rope
from studio.catalogue.gguf import GgufVocabulary, check, read_vocabulary, without_generation_tags
from studio.catalogue.models import read_json
from studio.datasets.rendering import Renderer
from studio.errors import ModelError

LARGEST_F16 = 65504.0
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
Array = np.ndarray[Any, Any]


def write(target: Path, model: nn.Module, base: Path, renderer: Renderer, outtype: str, name: str) -> None:
    """Raises ModelError for a model that GGUF can't carry."""
    family, config = check(base), read_json(base / "config.json")
    writer = gguf.GGUFWriter(target, family)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[outtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    gguf_rope.add_keys(writer, config)
    _add_tokenizer(writer, read_vocabulary(base), renderer)
    weights = _named(model, family, config)
    factors = gguf_rope.tensors(config)
    kinds = {key: _kind(value.shape, outtype) for key, value in weights.items()}
    for key, value in factors.items():
        writer.add_tensor_info(key, value.shape, value.dtype, value.nbytes, Kind.F32)
    for key, value in weights.items():
        shape = tuple(value.shape)
        stored = quant_shape_to_byte_shape(shape, kinds[key]) if kinds[key] is Kind.Q8_0 else shape
        dtype = np.dtype({Kind.F32: "float32", Kind.F16: "float16"}.get(kinds[key], "uint8"))
        writer.add_tensor_info(key, stored, dtype, math.prod(stored) * dtype.itemsize, kinds[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for value in factors.values():
        writer.write_tensor_data(value)
    for key, value in weights.items():
        writer.write_tensor_data(_stored(key, rows(key, value.float().cpu().numpy(), family, config), kinds[key]))
    writer.close()


def tensor_names(family: str, config: Mapping[str, Any]) -> Any:
    """The map from transformers' names to GGUF's."""
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family)
    return gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])


def rows(name: str, value: Array, family: str, config: Mapping[str, Any], *, back: bool = False) -> Array:
    """llama.cpp rotates neighbouring rows of a Llama head, transformers row i and i + half: put them in order, or `back`."""
    if family != "llama" or not (".attn_q." in name or ".attn_k." in name):
        return value
    heads = config["num_attention_heads"]
    heads = heads if ".attn_q." in name else config.get("num_key_value_heads") or heads
    half = value.shape[0] // heads // 2
    split = (heads, half, 2, *value.shape[1:]) if back else (heads, 2, half, *value.shape[1:])
    return value.reshape(split).swapaxes(1, 2).reshape(value.shape)


def _named(model: nn.Module, family: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    names, found = tensor_names(family, config), {}
    is_tied = bool(cast(Any, model).config.tie_word_embeddings)  # the model's own: training may have made two of one tensor
    for key, value in model.state_dict().items():
        if is_tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"GGUF has no place for the tensor {key} of this model.", "Export it as merged (safetensors).")
        found[name] = value
    return found


def _kind(shape: Any, outtype: str) -> Kind:
    if len(shape) < 2:
        return Kind.F32
    return Kind.Q8_0 if outtype == "q8_0" and shape[-1] % 32 == 0 else Kind.F16


def _stored(name: str, value: Array, kind: Kind) -> Array:
    if kind is Kind.F32:
        return np.ascontiguousarray(value, dtype=np.float32)
    if kind is Kind.Q8_0:
        packed: Array = quantize(np.ascontiguousarray(value), Kind.Q8_0)
        return packed
    if not np.abs(value).max(initial=0.0) <= LARGEST_F16:
        raise ModelError(f"A weight of {name} is too large for float16.", "Export it as merged, or with --outtype q8_0.")
    return np.ascontiguousarray(value, dtype=np.float16)


def _add_shape(writer: Any, config: Mapping[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_rope_dimension_count(head_size)
    if head_size * heads != config["hidden_size"]:
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)


def _add_tokenizer(writer: Any, vocabulary: GgufVocabulary, renderer: Renderer) -> None:
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
