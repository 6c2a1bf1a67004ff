"""How much each input of each layer matters on the training rows: the importance matrix that llama.cpp's quantizer weighs errors with.

As llama-imatrix counts it: the mean square of every input of a layer over the tokens that reach it, for each expert apart. The
output layer and the embedding are left out, as there. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.exporters.gguf_tensors import HEAD, Array, tensor_names, text_name
from studio.catalogue.gguf import GgufFamily

MOST_TOKENS = 8_192  # of all rows together
ROW_TOKENS = 512
Moments = dict[str, tuple[Tensor, Tensor]]  # GGUF's name -> sums of squares, tokens


def collect(model: nn.Module, family: GgufFamily, config: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Importance of the inputs of every layer, under GGUF's names; `rows` are token ids. Empty without rows."""
    found: Moments = {}
    handles = [module.register_forward_pre_hook(hook) for module, hook in _hooks(model, family, config, found)]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for row in _within_limits(rows):
                ids = torch.tensor([row], device=device)
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return {name: _mean(sums, tokens) for name, (sums, tokens) in found.items()}


def _within_limits(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    left = MOST_TOKENS
    for row in rows:
        cut = list(row[: min(ROW_TOKENS, left)])
        if not cut:
            continue
        left -= len(cut)
        yield cut


def _mean(sums: Tensor, tokens: Tensor) -> Array:
    """An expert that no token reached counts as one whose inputs all matter alike."""
    mean = torch.where(tokens > 0, sums / tokens.clamp(min=1), torch.ones_like(sums))
    return np.ascontiguousarray(mean.float().cpu().numpy().reshape(-1))


def _hooks(
    model: nn.Module, family: GgufFamily, config: Mapping[str, Any], found: Moments
) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
    names = tensor_names(family, config)

    def place(key: str) -> str | None:
        name: str | None = names.get_name(key, try_suffixes=(".weight",))
        return name

    for key, module in model.named_modules():
        own = text_name(key)
        if isinstance(module, nn.Linear) and f"{own}.weight" != HEAD:
            if name := place(f"{own}.weight"):
                yield module, _of_linear(name, found)
        elif own.endswith(".experts") and hasattr(module, "gate_up_proj"):
            stem = f"{own.rsplit('.', 2)[0]}.mlp.experts"
            inputs = [name for part in ("gate_proj", "up_proj") if (name := place(f"{stem}.{part}.weight"))]
            inner = place(f"{stem}.down_proj.weight")
            if inputs and inner:
                yield module, _of_experts(inputs, inner, found)


def _of_linear(name: str, found: Moments) -> Callable[..., None]:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs = given[0].reshape(-1, given[0].shape[-1]).float()
        _add(found, name, inputs.square().sum(0, keepdim=True), torch.tensor([[len(inputs)]], device=inputs.device))

    return hook


def _of_experts(inputs: Sequence[str], inner: str, found: Moments) -> Callable[..., None]:
    """Fused experts: each sees the tokens that the router sends to it."""

    def hook(module: Any, given: tuple[Tensor, ...]) -> None:
        hidden, chosen = given[0].float(), given[1]
        for expert in range(module.gate_up_proj.shape[0]):
            own = hidden[(chosen == expert).any(dim=-1)]
            gate, up = nn.functional.linear(own, module.gate_up_proj[expert].float()).chunk(2, dim=-1)
            for name in inputs:
                _add_expert(found, name, module, expert, own)
            _add_expert(found, inner, module, expert, module.act_fn(gate) * up)

    return hook


def _add_expert(found: Moments, name: str, module: Any, expert: int, values: Tensor) -> None:
    experts = module.gate_up_proj.shape[0]
    sums = torch.zeros(experts, values.shape[-1], device=values.device)
    tokens = torch.zeros(experts, 1, device=values.device)
    sums[expert], tokens[expert] = values.square().sum(0), len(values)
    _add(found, name, sums, tokens)


def _add(found: Moments, name: str, sums: Tensor, tokens: Tensor) -> None:
    if name in found:
        sums, tokens = found[name][0] + sums, found[name][1] + tokens
    found[name] = (sums, tokens)
