"""Trials of a model without weights: what peft takes, whether rows stay apart, whether padding changes answers, what the cache holds.

Vectors and small tensors are made up. Linear layers and embeddings, however large, are replaced by a cheap function of the right
shape, so that a model of any size is tried in its own width within a second; experts give back what they are given.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from studio.catalogue import anatomy

SHORT, LONG = 5, 8  # tokens of the two rows
WIDTH = 61  # of the cheap function: a prime, so that heads differ
LARGEST = 50_000_000  # numbers of a tensor that is made up
CLOSE = 1e-3  # of the largest number of an answer


class CheapLayers(TorchFunctionMode):
    """Replaces linear layers and embeddings by functions that mix their inputs, without reading their weights."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = inspect_call(func, args, kwargs or {})
        if values is None:
            return func(*args, **(kwargs or {}))
        if func is nn.functional.embedding:
            return embedded(values["input"], values["weight"])
        return mixed(values["input"], values["weight"].shape[0], values["weight"])


def inspect_call(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any] | None:
    """The arguments of a call that is replaced; None for others."""
    if func not in (nn.functional.linear, nn.functional.embedding):
        return None
    found = dict(zip(("input", "weight"), args, strict=False)) | kwargs
    if any(found["weight"].stride()):
        return None
    return found


def mixed(values: torch.Tensor, outputs: int, weight: torch.Tensor) -> torch.Tensor:
    """[..., inputs] -> [..., outputs]: folded to a small width, multiplied by a random matrix, and spread again. Linear in `values`."""
    folds = -(-values.shape[-1] // WIDTH)
    padded = nn.functional.pad(values, (0, folds * WIDTH - values.shape[-1]))
    generator = torch.Generator().manual_seed(id(weight) % 2**31)
    signs = torch.randn(folds, WIDTH, generator=generator).to(values.dtype)
    folded = (padded.unflatten(-1, (folds, WIDTH)) * signs).sum(-2) / folds**0.5
    matrix = torch.randn(WIDTH, WIDTH, generator=generator).to(values.dtype) / WIDTH**0.5
    spread = torch.randn(-(-outputs // WIDTH), WIDTH, generator=generator).to(values.dtype)
    return ((folded @ matrix).unsqueeze(-2) * spread).flatten(-2)[..., :outputs].contiguous()


def embedded(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A vector for each number, different for each weight."""
    places = torch.arange(1, weight.shape[1] + 1, dtype=torch.float32)
    return torch.sin((ids.unsqueeze(-1) + 1).float() * (places * 0.7 + id(weight) % 97))


def made_up(model: nn.Module) -> nn.Module:
    """A copy with numbers in everything that is small; what CheapLayers replaces, and experts, are views of a single zero."""
    model = copy.deepcopy(model)
    nothing, generator = torch.zeros(1), torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        for name, parameter in list(module.named_parameters(recurse=False)):
            if (is_replaced(module) and name == "weight") or parameter.numel() > LARGEST:
                values = nothing.expand(parameter.shape)
            else:
                values = torch.randn(parameter.shape, generator=generator) * 0.1 + ("norm" in type(module).__name__.lower())
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model.initialize_weights()  # tables of rotary positions and the like
    for module in model.modules():
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) and not isinstance(module, nn.Conv1d):
            module.forward = lambda hidden, *_, **__: hidden.clone()
        if isinstance(module, Conv1D):
            module.forward = lambda hidden, layer=module: mixed(hidden, layer.nf, layer.weight)
    return model.eval()


def is_replaced(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))


@dataclass
class TwoRows:
    """What two rows of different lengths in one batch have shown."""

    flattens: str = ""  # a layer whose input has lost the row, "" for none
    is_padded_right: bool = False  # the shorter row answers beside a longer one as it does alone
    cache: Any = None  # of one row of LONG tokens
    error: str = ""


def two_rows(model: nn.Module, place: str, cache: Any) -> TwoRows:
    """`model` as `made_up` gives it. `place`: of its blocks."""
    found = TwoRows()
    short = torch.arange(3, 3 + SHORT).unsqueeze(0)
    long = torch.arange(20, 20 + LONG).unsqueeze(0)
    gap = torch.full((1, LONG - SHORT), 1)
    both, mask = torch.cat([torch.cat([gap, short], 1), long]), torch.ones(2, LONG, dtype=torch.long)
    mask[0, : LONG - SHORT] = 0
    try:
        with torch.no_grad(), CheapLayers():
            alone = answer(model, short)
            with watched(model, place) as shapes:
                beside = answer(model, both, mask)
            answer(model, long, cache=cache)
    except Exception as exc:  # noqa: BLE001 - whatever this architecture raises: it is then served row by row
        found.error = _said(exc)
        return found
    found.flattens = next((name for name, rows in shapes.items() if rows != {2}), "")
    found.is_padded_right = bool((beside[0] - alone[0]).abs().max() <= CLOSE * alone.abs().max())
    found.cache = cache
    return found


def answer(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None, cache: Any = None) -> torch.Tensor:
    """What the model says behind the last token of each row, as the engine asks it."""
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        options["cache_params" if "cache_params" in takes else "past_key_values"] = cache
    if mask is not None:
        options["attention_mask"] = mask
        if "position_ids" in takes:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    logits: torch.Tensor = model(input_ids=ids, **options).logits
    return logits[:, -1].float()


@contextlib.contextmanager
def watched(model: nn.Module, place: str) -> Iterator[dict[str, set[int]]]:
    """How many rows the linear layers of the blocks are given, by name."""
    rows: dict[str, set[int]] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.startswith(f"{place}.") and anatomy.is_linear(module):

            def note(_: Any, inputs: Any, name: str = name) -> None:
                rows.setdefault(name, set()).add(inputs[0].shape[0])

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def adapted(model: nn.Module, config: Any) -> tuple[Any, str]:
    """The model with an adapter of peft's, or why it takes none. It is changed: give a copy."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings(action="ignore"):
            return get_peft_model(model, config), ""
    except Exception as exc:  # noqa: BLE001 - whatever peft says becomes one line
        return None, _said(exc)


def takes_tokens(model: nn.Module, config: Any) -> str:
    """Why this model answers nothing behind virtual tokens; "" where it does."""
    found, reason = adapted(made_up(model), config)
    if reason:
        return reason
    try:
        with torch.no_grad(), CheapLayers():
            found(input_ids=torch.arange(3, 3 + SHORT).unsqueeze(0), attention_mask=torch.ones(1, SHORT, dtype=torch.long))
    except Exception as exc:  # noqa: BLE001 - whatever this architecture raises
        return _said(exc)
    return ""


def _said(exc: Exception) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:200]


def reached(adapted: Any, place: str) -> set[str]:
    """Parts of blocks, as `number.name`, that a peft model trains."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    start = f"base_model.model.{place}."
    found = set()
    for name, module in adapted.named_modules():
        if not isinstance(module, BaseTunerLayer) or not name.startswith(start):
            continue
        inner = name.removeprefix(start)
        if parameter := getattr(module, "parameter_name", ""):
            while inner.endswith(".base_layer"):
                inner = inner.removesuffix(".base_layer")
            inner = f"{inner}.{parameter}"
        found.add(inner)
    return found


def cached(cache: Any, layer: int) -> tuple[int, int]:
    """Numbers that each token leaves in a layer of the cache, and numbers of its recurrent state. One row of LONG tokens was read."""
    layers = getattr(cache, "layers", [])
    if layer >= len(layers):
        return 0, 0
    per_token = state = 0
    for name, value in vars(layers[layer]).items():
        tensors = value.values() if isinstance(value, dict) else [value]
        numbers = sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dim() > 1)
        if name in ("keys", "values"):
            per_token += numbers // LONG
        else:
            state += numbers
    return per_token, state
