"""One base model in memory and the adapters attached to it. Loads safetensors only, never code.

Imports torch, so only the scheduler's thread imports it, on first use. Knows nothing of requests or batches.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import math
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from studio.catalogue import hardware
from studio.catalogue.models import ModelFacts, inspect_folder, read_json, tensors, weight_files
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.errors import ModelError

MAX_ATTACHED = 32  # adapters in memory; the least recently used leaves first
EXACT_PARAMETERS = 150_000_000  # up to here float32 costs little on a CPU, and batches give the same tokens as single rows
WEIGHTS = "adapter_model.safetensors"
BASE = "__base__"  # peft's word for a row without adapter
# they put tokens before the prompt or need inputs of their own
PROMPT_KINDS = (
    "PROMPT_TUNING",
    "PREFIX_TUNING",
    "P_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "CPT",
    "CARTRIDGE",
    "ADAPTION_PROMPT",
    "XLORA",
    "POLY",
)
# these start by changing the base's own weights, which every other adapter shares
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Attached:
    """An adapter in memory. `is_mixable`: may share a batch with other adapters and the base."""

    key: str
    kind: str
    is_mixable: bool


def fingerprint(*files: Path) -> tuple[Any, ...]:
    """Changes when a file is made anew."""
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def base_fingerprint(folder: Path) -> tuple[Any, ...]:
    return fingerprint(folder / "config.json", *weight_files(folder))


class LocalModel:
    """A base with its adapters. Not safe to share between threads."""

    def __init__(self, folder: ModelFolder, model: nn.Module, identity: tuple[Any, ...]) -> None:
        self.folder = folder
        self.identity = identity
        self.device = next(model.parameters()).device
        self.attached: OrderedDict[tuple[Any, ...], Attached] = OrderedDict()
        self._names: dict[str, str] = {}  # key -> name for people
        self._base = model
        self._peft: Any = None  # peft.PeftModel around the same base, from the first adapter on
        self._active: str | None = BASE  # None: adapters are on, and nobody knows which
        self._count = 0
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_last = "logits_to_keep" in accepted

    @property
    def bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._base.parameters())

    def holds_only(self, kind: str) -> bool:
        return all(attached.kind == kind for attached in self.attached.values())

    @property
    def adapter_names(self) -> list[str]:
        return [self._names[attached.key] for attached in self.attached.values()]

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, adapters: Sequence[str | None]) -> Tensor:
        """Logits of the last column, [rows, vocabulary]. `adapters`: an attached key per row, None for the base."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if self._takes_positions:
            inputs["position_ids"] = positions
        if self._keeps_last:
            inputs["logits_to_keep"] = 1
        inputs.update(self._activate([key or BASE for key in adapters]))
        with torch.inference_mode():
            logits: Tensor = (self._peft or self._base)(**inputs).logits[:, -1]
        return logits

    def _activate(self, keys: list[str]) -> dict[str, Any]:
        """Switch to the one adapter that all rows use, else say per row which one."""
        if self._peft is None:
            return {}
        wanted = keys[0] if len(set(keys)) == 1 else None
        if wanted is None or wanted != self._active:
            if wanted == BASE:
                self._peft.base_model.disable_adapter_layers()
            elif self._active == BASE:
                self._peft.base_model.enable_adapter_layers()
            if wanted not in (None, BASE):
                self._peft.set_adapter(wanted)
            self._active = wanted
        return {} if wanted else {"adapter_names": keys}

    def attach(self, adapter: AdapterRef, in_use: Sequence[str] = ()) -> Attached:
        """Have `adapter` in memory; loads it unless it is there. Raises ModelError when it does not belong to this base.

        `in_use`: keys that must stay. An adapter of another kind than those attached replaces them all.
        """
        config, identity = adapter_facts(adapter)
        if identity in self.attached:
            self.attached.move_to_end(identity)
            return self.attached[identity]
        _check_adapter(adapter, config, self._base)
        kind = str(config["peft_type"])
        if any(attached.kind != kind for attached in self.attached.values()):
            self._detach_all()
        self._make_room(in_use)
        attached = Attached(self._load_adapter(adapter), kind, is_mixable(config))
        self.attached[identity] = attached
        self._names[attached.key] = adapter.name
        return attached

    def _load_adapter(self, adapter: AdapterRef) -> str:
        from peft import PeftModel  # takes seconds: only when there is an adapter

        self._count += 1
        key = f"adapter_{self._count}"  # module names can't hold the dots a name may have
        path, device = str(adapter.path), str(self.device)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, path, adapter_name=key, torch_device=device)
        else:
            result = self._peft.load_adapter(path, adapter_name=key, torch_device=device)
            if result.unexpected_keys:
                self._peft.delete_adapter(key)
                raise _foreign(adapter, self.folder, f"it has weights for {result.unexpected_keys[0]}, which this base lacks")
        self._peft.eval()
        self._forget_active()
        return key

    def _forget_active(self) -> None:
        """peft chose an adapter itself, and layers that are new are switched on even while the others are off."""
        self._peft.base_model.enable_adapter_layers()
        self._active = None

    def _make_room(self, in_use: Sequence[str]) -> None:
        while len(self.attached) >= MAX_ATTACHED:
            oldest = next((i for i, attached in self.attached.items() if attached.key not in in_use), None)
            if oldest is None:
                return
            gone = self.attached.pop(oldest)
            self._names.pop(gone.key)
            self._peft.delete_adapter(gone.key)
            self._forget_active()

    def _detach_all(self) -> None:
        self._base = self._peft.unload()
        self._peft, self._active = None, BASE
        self.attached.clear()
        self._names.clear()


def load(folder: ModelFolder) -> LocalModel:
    """Load a base on the GPU in its own precision, or on the CPU. Raises ModelError naming what is wrong and what would fit."""
    facts = inspect_folder(folder.path)
    if not facts.loadable:
        raise ModelError(f"{folder.name} can't be loaded: {facts.reason}", facts.fix)
    identity = base_fingerprint(folder.path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = _config(folder.path)
    dtype = choose_dtype(_stored_dtype(folder.path), facts.parameters, device)
    _check_memory(folder, facts, dtype, device)
    transformers_logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder.path),
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would make them up
        raise ModelError(f"{folder.name} lacks weights: {missing[0]} and {len(missing) - 1} more.", "Download the model again.")
    return LocalModel(folder, model.eval().requires_grad_(False).to(device), identity)


def limit_threads() -> None:
    """The engine's share of the cores, unless OMP_NUM_THREADS has said so already."""
    if torch.get_num_threads() >= hardware.cores():
        torch.set_num_threads(hardware.thread_budget("engine"))


def give_back_memory() -> None:
    """Return freed memory to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library keeps the pages for later
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def choose_dtype(stored: torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    """The checkpoint's own on a GPU. On a CPU float32 where that is no burden, else bfloat16."""
    if device.type == "cuda" or stored == torch.float32:
        return stored
    if parameters <= EXACT_PARAMETERS:
        return torch.float32
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    fits = 4 * parameters < hardware.memory().free_bytes / 2
    return torch.float32 if fits and not has_bfloat16 else torch.bfloat16


def adapter_facts(adapter: AdapterRef) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """adapter_config.json, and an identity that changes when the adapter is made anew. Raises ModelError."""
    weights = adapter.path / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"Adapter {adapter.name} has no {WEIGHTS} in {adapter.path}.", "Train or import it again.")
    config = read_json(adapter.path / "adapter_config.json")
    if not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{adapter.path / 'adapter_config.json'} names no peft_type.", "Import an adapter that peft saved.")
    return config, (adapter.sha256, *fingerprint(weights, adapter.path / "adapter_config.json"))


def is_mixable(config: dict[str, Any]) -> bool:
    """Plain LoRA: peft refuses `adapter_names` for DoRA and silently ignores it for other kinds."""
    own_way = ("use_dora", "alora_invocation_tokens", "trainable_token_indices", "modules_to_save", "target_parameters", "use_bdlora")
    return config["peft_type"] == "LORA" and not any(config.get(name) for name in own_way)


def _check_adapter(adapter: AdapterRef, config: dict[str, Any], base: nn.Module) -> None:
    init = config.get("init_lora_weights")
    if config["peft_type"] in PROMPT_KINDS:
        raise ModelError(f"Adapter {adapter.name} is of kind {config['peft_type']}, which can't answer here yet.", "Train a LoRA adapter.")
    if config.get("bias", "none") != "none" or (isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS)):
        raise ModelError(
            f"Adapter {adapter.name} changes the base's own weights (bias or init_lora_weights={init!r}), which other adapters share.",
            "Convert it to a plain LoRA when saving (path_initial_model_for_weight_conversion of peft).",
        )
    for name, _, shape in tensors(adapter.path / WEIGHTS):
        problem = _misfit(name, shape, base)
        if problem:
            raise _foreign(adapter, None, problem)


def _misfit(name: str, shape: list[int], base: nn.Module) -> str:
    """Why a LoRA matrix can't belong to `base`; "" where it can, or where this can't tell."""
    module_name, found, _ = name.removeprefix("base_model.model.").rpartition(".lora_")
    if not found:
        return ""
    try:
        module = base.get_submodule(module_name)
    except AttributeError:
        return f"this base has no layer {module_name}"
    width = {"lora_A": getattr(module, "in_features", None), "lora_B": getattr(module, "out_features", None)}
    part = name.removesuffix(".weight").rpartition(".")[2]
    axis = 1 if part == "lora_A" else 0
    expected = width.get(part)
    if expected is None or len(shape) != 2 or shape[axis] == expected:
        return ""
    return f"its {part} of {module_name} is {shape[axis]} wide, the base's layer {expected}"


def _foreign(adapter: AdapterRef, base: ModelFolder | None, reason: str) -> ModelError:
    where = f" {base.name}" if base else ""
    return ModelError(f"Adapter {adapter.name} was made for another base model{where}: {reason}.", "Choose the base it was trained on.")


def _config(folder: Path) -> PreTrainedConfig:
    """config.json without anything that chooses code."""
    values = _without_code(read_json(folder / "config.json"))
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{folder} is of model_type {kind!r}, which the installed transformers does not know.", "Use another model.")
    return CONFIG_MAPPING[kind].from_dict(values)


def _without_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_code(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    code = ("attn_implementation", "experts_implementation")
    return {k: _without_code(v) for k, v in value.items() if k != "auto_map" and not k.lstrip("_").startswith(code)}


def _stored_dtype(folder: Path) -> torch.dtype:
    """Of the largest tensor: norms are sometimes kept in higher precision than the rest."""
    names = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    _, dtype, _ = max(tensors(weight_files(folder)[0]), key=lambda entry: math.prod(entry[2]))
    return names.get(dtype, torch.float32)


def _check_memory(folder: ModelFolder, facts: ModelFacts, dtype: torch.dtype, device: torch.device) -> None:
    """Linux would kill the engine rather than refuse memory, so ask first."""
    needed = facts.parameters * dtype.itemsize
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else hardware.memory().free_bytes
    if needed > free:
        raise MemoryError(f"{folder.name} needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on the {device.type.upper()}")
