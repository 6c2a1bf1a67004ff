"""A merged model as one GGUF file, as llama.cpp's own converter would write it: names, order of rotary rows, types, tokenizer.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors are written one by one. Knows no adapter.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import nn

from jobs.exporters import gguf_keys, gguf_rope
from jobs.exporters.gguf_tensors import Array, as_llama_cpp, exact_names, left_out, named, stored_kind, text_config
from studio.catalogue.gguf import check, check_granted, notes
from studio.catalogue.gguf_vocabulary import general_name, read_vocabulary
from studio.datasets.rendering import Renderer
from studio.errors import ModelError

LARGEST_F16 = 65504.0
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
DTYPES: dict[Kind, np.dtype[Any]] = {Kind.F32: np.dtype("float32"), Kind.F16: np.dtype("float16")}
BYTES: np.dtype[Any] = np.dtype("uint8")  # of every other type


def write(target: Path, model: nn.Module, base: Path, renderer: Renderer, outtype: str, name: str) -> list[str]:
    """What the file leaves out and llama.cpp does otherwise, in sentences. Raises ModelError for a model that GGUF can't carry."""
    family, config = check(base), text_config(model)
    check_granted(family, config, type(model).__name__)
    embedding = cast(Any, model).get_input_embeddings().weight
    weights, exact = named(model, family, config), exact_names(family, config)
    kinds = {key: stored_kind(key, value.shape, outtype, exact) for key, value in weights.items()}
    factors = gguf_rope.tensors(config)
    writer = gguf.GGUFWriter(target, family.name)
    vocabulary = read_vocabulary(base, embedding.shape[0])
    writer.add_name(general_name(name, vocabulary.strips))
    writer.add_file_type(FILE_TYPES[outtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_keys.add_shape(writer, family, config | {"vocab_size": embedding.shape[0]})
    gguf_keys.add_tokenizer(writer, vocabulary, renderer)
    for key, value in factors.items():
        writer.add_tensor_info(key, value.shape, value.dtype, value.nbytes, Kind.F32)
    for key, value in weights.items():
        dtype, stored = DTYPES.get(kinds[key], BYTES), tuple(value.shape)
        if dtype is BYTES:
            stored = quant_shape_to_byte_shape(stored, kinds[key])
        writer.add_tensor_info(key, stored, dtype, math.prod(stored) * dtype.itemsize, kinds[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for value in factors.values():
        writer.write_tensor_data(value)
    for key, tensor in weights.items():
        writer.write_tensor_data(_stored(key, as_llama_cpp(key, tensor.float().cpu().numpy(), family, config), kinds[key]))
    writer.close()
    missing = left_out(model)
    said = [f"Only the part of the model that reads text is in the file, without {', '.join(missing)}."] if missing else []
    return [*said, *notes(family, config)]


def _stored(name: str, value: Array, kind: Kind) -> Array:
    if kind is Kind.F32:
        return np.ascontiguousarray(value, dtype=np.float32)
    if kind is not Kind.F16:
        packed: Array = quantize(np.ascontiguousarray(value), kind)
        return packed
    if not np.abs(value).max(initial=0.0) <= LARGEST_F16:
        raise ModelError(f"A weight of {name} is too large for float16.", "Export it as merged, or with --outtype bf16 or q8_0.")
    return np.ascontiguousarray(value, dtype=np.float16)
