"""Adapter folders: what they are, whether they belong to a base, and what of them goes into memory.

Imports torch, and peft on the first adapter. Knows nothing of requests, batches or memory budgets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from jobs.sections import RopeSection
from studio.catalogue import attaching, rope, rotary
from studio.catalogue.models import read_json, tensors
from studio.engine.kinds import BASE_CHANGING_INITS, LEADING_KINDS, UNANSWERABLE_KINDS
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.errors import ModelError

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Lead:
    """What a prompt adapter puts before every prompt: `embeddings` [1, count, hidden], or per layer keys and values."""

    count: int
    embeddings: Tensor | None = None
    states: tuple[tuple[Tensor, Tensor], ...] = ()

    def fill(self, cache: DynamicCache, rows: int) -> None:
        for number, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(rows, -1, -1, -1).clone(), values.expand(rows, -1, -1, -1).clone(), number)


@dataclass(eq=False)
class Attached:
    """An adapter in memory. `is_shared`: in the tree of plain LoRAs. `is_mixable`: may share a batch with other adapters and the base.

    `effect` is the largest difference that it makes to the base's logits on a few fixed tokens; 0 means that it does nothing.
    """

    key: str
    name: str
    kind: str  # for people: LoRA, DoRA, IA3, ...
    bytes: int
    is_shared: bool = False
    is_mixable: bool = False
    effect: float = 0.0
    positions: str = ""  # how they are scaled, where they are not the base's own
    follows_length: bool = False  # of these positions: they depend on how long a text is
    idle: int = 0  # tensors that adapter_config.json asks for and the file lacks
    tree: Any = None  # modules of its own over the base's weights; None: in the tree of plain LoRAs, or a lead
    lead: Lead | None = field(default=None, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads the answer must know."""
        found = []
        if self.positions:
            found.append(f"{self.name} answered in a pass of its own: it has positions of its own ({self.positions}).")
        elif not self.is_shared:
            found.append(f"{self.name} answered in a pass of its own: {self.kind} can't share a batch.")
        elif not self.is_mixable:
            found.append(f"{self.name} answered in a pass of its own: this base can't tell adapters apart in one batch.")
        if self.idle:
            found.append(f"{self.name} lacks {self.idle:,} of the tensors that its adapter_config.json names; these change nothing.")
        if self.effect == 0:
            found.append(f"{self.name} changes nothing: its logits equal the base's.")
        return tuple(found)


def fingerprint(*files: Path) -> tuple[Any, ...]:
    """Changes when a file is made anew."""
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def adapter_facts(adapter: AdapterRef) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """adapter_config.json, and an identity that changes when the adapter is made anew. Raises ModelError."""
    weights = adapter.path / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"Adapter {adapter.name} has no {WEIGHTS} in {adapter.path}.", "Train or import it again.")
    config = read_json(adapter.path / "adapter_config.json")
    if not isinstance(config.get("peft_type"), str):
        raise ModelError(f"{adapter.path / 'adapter_config.json'} names no peft_type.", "Import an adapter that peft saved.")
    told = [file for file in (adapter.path / rope.CARD,) if file.is_file()]
    return config, (adapter.sha256, *fingerprint(weights, adapter.path / "adapter_config.json", *told))


def check(adapter: AdapterRef, config: dict[str, Any], base: nn.Module) -> None:
    """Raises ModelError for what can't answer here or was made for another base."""
    init, kind = config.get("init_lora_weights"), config["peft_type"]
    if kind in UNANSWERABLE_KINDS or config.get("alora_invocation_tokens"):
        said = "activated LoRA" if kind == "LORA" else kind
        raise ModelError(f"Adapter {adapter.name} is of kind {said}, which can't answer here.", "Train a LoRA adapter.")
    if config.get("bias", "none") != "none" or (isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS)):
        raise ModelError(
            f"Adapter {adapter.name} changes the base's own weights (bias or init_lora_weights={init!r}), which other adapters share.",
            "Convert it to a plain LoRA when saving (path_initial_model_for_weight_conversion of peft).",
        )
    if kind in LEADING_KINDS:
        hidden = int(getattr(base.config.get_text_config(), "hidden_size", 0))
        if kind != "PREFIX_TUNING" and config.get("token_dim") not in (None, hidden):
            raise foreign(adapter, None, f"its tokens are {config['token_dim']} wide, the base's {hidden}")
        return
    for name, _, shape in tensors(adapter.path / WEIGHTS):
        problem = _misfit(name, shape, base)
        if problem:
            raise foreign(adapter, None, problem)


def _misfit(name: str, shape: Sequence[int], base: nn.Module) -> str:
    """Why a LoRA matrix can't belong to `base`; "" where it can, or where this can't tell."""
    module_name, found, _ = name.removeprefix("base_model.model.").rpartition(".lora_")
    if not found:
        return ""
    try:
        module = base.get_submodule(module_name)
    except AttributeError:
        return ""  # of a fused or renamed layer, or of another base: peft knows
    width = {"lora_A": getattr(module, "in_features", None), "lora_B": getattr(module, "out_features", None)}
    part = name.removesuffix(".weight").rpartition(".")[2]
    axis = 1 if part == "lora_A" else 0
    expected = width.get(part)
    if expected is None or len(shape) != 2 or shape[axis] == expected:
        return ""
    return f"its {part} of {module_name} is {shape[axis]} wide, the base's layer {expected}"


def foreign(adapter: AdapterRef, base: ModelFolder | None, reason: str) -> ModelError:
    where = f" {base.name}" if base else ""
    return ModelError(f"Adapter {adapter.name} was made for another base model{where}: {reason}.", "Choose the base it was trained on.")


def weight_bytes(adapter: AdapterRef, each: int = 4) -> int:
    """Memory that its tensors take, `each` bytes per number: plain LoRAs are kept in the base's type, others in float32 as by peft."""
    return sum(each * math.prod(shape) for _, _, shape in tensors(adapter.path / WEIGHTS))


def share_weights(base: nn.Module) -> nn.Module:
    """The same modules once more over the very same tensors: another kind of adapter may change these modules and costs no memory."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    for module in base.modules():
        state = getattr(module, "state", None)
        if hasattr(state, "has_fp16_weights"):  # bitsandbytes moves 8-bit weights and their scales there on first use
            shared[id(state)] = state
        if (scales := getattr(module, "quant_state", None)) is not None:  # of 4-bit weights: a 32nd of their bytes
            shared[id(scales)] = scales
    return copy.deepcopy(base, shared)


def with_positions(base: nn.Module, folder: ModelFolder, positions: RopeSection) -> nn.Module:
    """The base, or a tree of its own over the same weights with the positions that an adapter was trained with. Raises ModelError."""
    if not positions.is_set:
        return base
    tree = share_weights(base)
    rotary.rescale(tree, folder.path, positions)
    return tree


def attach(adapter: AdapterRef, model: Any, name: str, device: torch.device) -> tuple[Any, int]:
    """peft's model of `model` with the adapter under `name`, and how many tensors its file lacks. Raises ModelError where it misfits."""
    try:
        made, missing = attaching.attach(model, adapter.path, name, str(device))
    except attaching.Misfit as exc:
        raise foreign(adapter, None, str(exc)) from None
    return made.eval().requires_grad_(False), len(missing)


def attach_alone(adapter: AdapterRef, base: nn.Module, device: torch.device) -> tuple[Any, int]:
    """As `attach`, in a tree of its own over the base's weights."""
    return attach(adapter, share_weights(base), "alone", device)


def as_loaded(adapter: AdapterRef, config: dict[str, Any], base: nn.Module) -> dict[str, Any]:
    """adapter_config.json as peft takes it for this base: it renames experts that transformers fuses. Raises ModelError."""
    if config["peft_type"] != "LORA":
        return config
    try:
        return {**config, **attaching.config_for(base, adapter.path)}
    except attaching.Misfit as exc:
        raise foreign(adapter, None, str(exc)) from None


@torch.inference_mode(False)
@torch.no_grad()
def lead_of(adapter: AdapterRef, base: nn.Module, device: torch.device) -> Lead:
    """What a prompt adapter puts before the prompt, computed once; its encoder is not needed afterwards."""
    model, _ = attach_alone(adapter, base, device)
    count = int(model.active_peft_config.num_virtual_tokens)
    found = model.get_prompt(batch_size=1)
    dtype = next(base.parameters()).dtype
    if isinstance(found, Tensor):
        return Lead(count, embeddings=found.to(device, dtype if dtype.is_floating_point else torch.bfloat16))
    return Lead(count, states=tuple((layer.keys.to(device), layer.values.to(device)) for layer in found.layers))
