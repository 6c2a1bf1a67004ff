"""A base model from its folder into memory: 16-bit as it is, or 8-bit or NF4 by bitsandbytes. Safetensors only, never code.

Imports torch, so only the scheduler's thread imports it, on first use. Knows nothing of adapters or requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from studio.catalogue import hardware, keys, precision, quantising, text_models
from studio.catalogue.models import ModelFacts, inspect_folder, tensors, weight_files
from studio.engine.protocol import ModelFolder
from studio.errors import ModelError
from studio.records import LoadedModel

if TYPE_CHECKING:
    from studio.engine.local import LocalModel

EXACT_PARAMETERS = 150_000_000  # up to here float32 costs little on a CPU, and batches give the same tokens as single rows
BYTES = {"nf4": 0.6, "int8": 1.1}  # per parameter, with scales and what stays in 16 bit
NAMED = {"nf4": "4-bit (NF4)", "int8": "8-bit"}


def load(folder: ModelFolder, *, most: int | None = None, on_cpu: bool = False) -> nn.Module:
    """The base on the GPU, or on the CPU, for inference.

    `most`: bytes it may take where somebody else was promised the rest. Raises ModelError naming what is wrong, and MemoryError
    naming what would fit.
    """
    facts = inspect_folder(folder.path)
    if not facts.loadable:
        raise ModelError(f"{folder.name} can't be loaded: {facts.reason}", facts.fix)
    device = torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    dtype = choose_dtype(_stored_dtype(folder.path), facts.parameters, device, _model_type(folder.path))
    if folder.quantization and device.type == "cpu":
        dtype = torch.bfloat16
    check_memory(folder, facts, dtype, device, most)
    cap_memory(device, most)
    transformers_logging.disable_progress_bar()
    model, report = text_models.load(folder.path, dtype=dtype, **_quantized(folder, device, dtype))
    keys.reported(report, model.state_dict()).check(folder.name)  # transformers would make up what is missing
    model = model.eval().requires_grad_(False)
    if folder.quantization == "nf4":
        quantising.quantise_experts(model, folder.path)
    if folder.quantization:
        return _unpacked(model)
    moved: nn.Module = model.to(device)
    return moved


def check_memory(folder: ModelFolder, facts: ModelFacts, dtype: torch.dtype, device: torch.device, most: int | None = None) -> None:
    """Linux would kill the engine rather than refuse memory, so ask first. Raises MemoryError saying what would fit."""
    each = BYTES.get(folder.quantization, dtype.itemsize)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else hardware.memory().free_bytes
    free = free if most is None else min(free, most)
    if facts.parameters * each <= free:
        return
    smaller = [name for name, size in BYTES.items() if size < each and facts.parameters * size <= free]
    would = f"a model of at most {free / 2e9:.1f} billion parameters in 16 bit would fit"
    if smaller:
        would = f"in {' or '.join(NAMED[name] for name in smaller)} it would fit"
    raise MemoryError(
        f"{folder.name} needs {facts.parameters * each / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on the "
        f"{device.type.upper()}; {would}"
    )


def choose_dtype(stored: torch.dtype, parameters: int, device: torch.device, model_type: str = "") -> torch.dtype:
    """On a GPU what a training takes there. On a CPU float32 where that is no burden, else bfloat16."""
    if device.type == "cuda":
        return getattr(torch, precision.compute_dtype("cuda", precision.has_bfloat16("cuda"), model_type))
    if stored == torch.float32:
        return stored
    if parameters <= EXACT_PARAMETERS:
        return torch.float32
    fits = 4 * parameters < hardware.memory().free_bytes / 2
    return torch.float32 if fits and not precision.has_bfloat16("cpu") else torch.bfloat16


def limit_threads() -> None:
    """The engine's share of the cores, unless OMP_NUM_THREADS has said so already."""
    if torch.get_num_threads() >= hardware.cores():
        torch.set_num_threads(hardware.thread_budget("engine"))


def cap_memory(device: torch.device, most: int | None) -> None:
    """On a GPU torch refuses this process more than `most` bytes: beside a training the engine shall run out of memory, not the trainer."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if most is None else min(1.0, most / total), device)


def give_back_memory() -> None:
    """Return freed memory to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library keeps the pages for later
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _quantized(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if not folder.quantization:
        return {}
    _admit_bitsandbytes()
    in_4bit = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    chosen = in_4bit if folder.quantization == "nf4" else {"load_in_8bit": True}
    return {"quantization_config": quantising.bits_and_bytes(folder.path, **chosen), "device_map": {"": str(device)}}


def _admit_bitsandbytes() -> None:
    """The engine keeps it out until a quantised base is asked for (see studio.engine.server)."""
    if sys.modules.get("bitsandbytes", ...) is None:
        del sys.modules["bitsandbytes"]
        for name in ("peft.import_utils", "transformers.utils.import_utils"):
            for check in ("is_bnb_available", "is_bnb_4bit_available", "is_bitsandbytes_available"):
                asked = getattr(sys.modules.get(name), check, None)
                if asked is not None:
                    asked.cache_clear()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast of every layer in every step
    try:
        importlib.import_module("bitsandbytes")
    except Exception as exc:  # noqa: BLE001  (it loads compiled code of its own)
        raise ModelError(f"bitsandbytes can't be used here ({type(exc).__name__}).", "Answer in 16 bit instead.") from None


def _unpacked(model: Any) -> nn.Module:
    """On a CPU bitsandbytes repacks 4-bit weights in place at the first forward, which shapes of 64 alone survive."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _model_type(folder: Path) -> str:
    """Of the text model, as config.json names it."""
    return str(text_models.config_of(folder).get_text_config().model_type)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Of the largest tensor: norms are sometimes kept in higher precision than the rest."""
    names = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    _, dtype, _ = max(tensors(weight_files(folder)[0]), key=lambda entry: math.prod(entry[2]))
    return names.get(dtype, torch.float32)


def described(model: LocalModel) -> LoadedModel:
    """What people are told of a model in memory."""
    return LoadedModel(
        base=model.folder.name,
        quantization=model.folder.quantization,
        device=model.device.type,
        adapters=model.adapter_names,
        bytes=model.bytes + model.adapter_bytes,
        adapter_bytes=model.adapter_bytes,
        adapter_budget_bytes=model.budget_bytes,
        recorded_steps=model.recorded_steps,
        unrecorded=model.unrecorded,
    )
