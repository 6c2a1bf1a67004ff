"""A 16-bit GGUF file rounded to a K-quant by llama.cpp's quantizer, and the proof that its tensors are the same ones, rounded.

The quantizer comes with llama-cpp-python (the extra `llama-cpp`). Knows neither torch nor a model.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from studio.errors import StudioError
from studio.records import RoundingProof

Array = np.ndarray[Any, Any]
SLACK = 4.0  # a tensor of b bits a weight is off by about 2 ** -b of its size; a wrong one by about its size
OTHER_OUTTYPE = "Choose f16, bf16 or q8_0, or try again without the importance matrix."


def quantize(source: Path, target: Path, outtype: str, importance: Mapping[str, Array]) -> None:
    """Raises StudioError where the quantizer refuses."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = int(gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"])
    kept = [_entry(llama_cpp, name, values) for name, values in importance.items()]
    table = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))(*kept)  # ends with an entry without a name
    if kept:
        options.imatrix = ctypes.cast(table, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failed or not target.is_file():
        raise StudioError(f"llama.cpp's quantizer could not make {outtype}; its log says why.", OTHER_OUTTYPE)


def compare(source: Path, target: Path, importance: Mapping[str, Array]) -> RoundingProof:
    """What rounding did to every tensor."""
    before = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    after = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    changed = sorted(before.keys() ^ after.keys())
    errors = {name: _error(before[name], after[name]) for name in after if name in before}
    wrong = [name for name, error in errors.items() if not error <= _most(after[name].tensor_type)]
    worst = max(errors, key=lambda name: errors[name])
    reasons = [f"Tensors came or went: {', '.join(changed[:3])}."] if changed else []
    reasons += [f"{name} is off by {errors[name]:.1%} of its size." for name in wrong[:3]]
    return RoundingProof(
        tensors=dict(Counter(tensor.tensor_type.name for tensor in after.values()).most_common()),
        worst_error=min(errors[worst], float(np.finfo(np.float32).max)),
        worst_tensor=worst,
        importance=sum(name in importance and gguf.GGML_QUANT_SIZES[after[name].tensor_type][0] > 1 for name in after),
        passed=not reasons,
        reason=" ".join(reasons),
    )


def fallbacks(found: RoundingProof, outtype: str) -> list[str]:
    """What the quantizer kept in other types than those that the outtype is a mixture of, because rows have an odd length."""
    odd = {kind: count for kind, count in found.tensors.items() if "_K" not in kind and kind not in ("F32", "F16", "BF16")}
    if not odd:
        return []
    kinds = ", ".join(f"{count} as {kind}" for kind, count in odd.items())
    return [f"{outtype} needs rows of a multiple of {gguf.QK_K} numbers: tensors with other rows are stored otherwise ({kinds})."]


def _entry(llama_cpp: Any, name: str, values: Array) -> Any:
    data = np.ascontiguousarray(values, dtype=np.float32)
    entry = llama_cpp.llama_model_imatrix_data()
    entry.name, entry.size = name.encode(), data.size
    entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    entry.kept = data  # the quantizer reads it through the pointer
    return entry


def _error(before: Any, after: Any) -> float:
    """The root mean square of the difference, as a share of that of the values."""
    if list(before.shape) != list(after.shape):
        return math.inf
    old, new = dequantize(before.data, before.tensor_type), dequantize(after.data, after.tensor_type)
    size = float(np.linalg.norm(old.astype(np.float64)))
    off = float(np.linalg.norm((old - new).astype(np.float64)))
    if not size:
        return off
    return off / size


def _most(kind: Any) -> float:
    """The largest error that a type may make."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if block == 1:
        return 2.0**-8  # bfloat16's own
    return float(SLACK * 2.0 ** -(size * 8 // block))
