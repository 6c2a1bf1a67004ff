"""What LoRA's default, target_modules=all-linear, means here: the text model's linear layers and fused experts, without routers.

peft's own reading of it takes vision layers along that text never reaches, and of some mixtures of experts it loses the experts or
the dense layers beside them. Asks a built model, also on the meta device; imports torch and peft only when it is called.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.sections import ALL_LINEAR
from studio.catalogue import anatomy
from studio.catalogue.anatomy import Part
from studio.errors import ModelError, listed
from studio.records import WeightForm, WeightKind

FROZEN = (WeightKind.ROUTER, WeightKind.NORM)  # trained only where a person names them


@dataclass(frozen=True)
class LoraTargets:
    """Where a LoRA goes, under full names, and which share of the matrices in the blocks it leaves as it is."""

    modules: tuple[str, ...]  # linear layers
    parameters: tuple[str, ...] = ()  # tensors that hold all experts of a block
    refused: tuple[str, ...] = ()  # linear layers that peft does not take in this architecture, by their names within a block
    bypassed: tuple[str, ...] = ()  # those that no gradient reaches
    share: float = 1.0
    left_out: dict[WeightKind, float] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """As LoraConfig takes them."""
        return {"target_modules": list(self.modules), "target_parameters": list(self.parameters) or None}


@dataclass(frozen=True)
class _Place:
    """A part of the model under its full name, and why no LoRA goes there of itself."""

    name: str  # as LoraConfig wants it: a layer's, or a tensor's
    part: Part
    in_block: bool
    obstacle: str = ""

    @property
    def is_layer(self) -> bool:
        return self.part.form == WeightForm.LINEAR

    @property
    def is_usual(self) -> bool:
        reachable = self.part.form in (WeightForm.LINEAR, WeightForm.EXPERTS)
        return reachable and not self.obstacle and self.part.kind not in FROZEN


REFUSED = "peft takes it in no model of this type"
BYPASSED = (
    "no gradient reaches it, since the model reads its weights past the layer, gets several tensors from it, or only chooses by it, "
    "or the layer multiplies groups of its inputs, to which the update of a whole matrix can't be added"
)


def lora_targets(model: Any, wanted: str | list[str] = ALL_LINEAR, learning: frozenset[str] | None = None) -> LoraTargets:
    """What these target_modules mean for this model: names stand for layers, and for what is stored as one tensor.

    `learning`: layers that a LoRA would teach something, where that is known. Raises ModelError where nothing bears a name, or where
    no LoRA can go.
    """
    places = _places(model, learning)
    names = [wanted] if isinstance(wanted, str) else wanted
    chosen: dict[str, _Place] = {}
    for name in names:
        found = [place for place in places if place.is_usual] if name == ALL_LINEAR else _named(model, places, name)
        chosen |= {place.name: place for place in found}
    total = sum(place.part.weights for place in places if place.in_block and place.part.kind != WeightKind.NORM) or 1
    left: Counter[WeightKind] = Counter()
    for place in places:
        if place.in_block and place.name not in chosen and place.part.kind != WeightKind.NORM:
            left[place.part.kind] += place.part.weights
    return LoraTargets(
        modules=tuple(name for name, place in chosen.items() if place.is_layer),
        parameters=tuple(name for name, place in chosen.items() if not place.is_layer),
        refused=_with_obstacle(places, REFUSED),
        bypassed=_with_obstacle(places, BYPASSED),
        share=1 - sum(left.values()) / total,
        left_out={kind: weights / total for kind, weights in left.most_common()},
    )


def learning_layers(model: Any) -> frozenset[str] | None:
    """Names of the linear layers that a LoRA would teach something, by a pass over a few tokens as in training.

    None for a model without weights. Random numbers and modes are as before.
    """
    import torch

    if model.device.type == "meta":
        return None
    modes = [(module, module.training) for module in model.modules()]
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    state = torch.get_rng_state()
    ids = torch.arange(1, 17, device=model.device).view(2, 8)
    try:
        model.train()
        with _as_unquantised(model), torch.autocast(model.device.type, torch.bfloat16):
            return with_gradient(model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
    finally:
        for module, mode in modes:
            module.training = mode
        torch.set_rng_state(state)
        if on_devices is not None:
            torch.cuda.set_rng_state_all(on_devices)


@contextlib.contextmanager
def _as_unquantised(model: Any) -> Iterator[None]:
    """Has the model's code compute as it does where nothing is quantised.

    Falcon Mamba and Jamba call a layer of a quantised model whose weights they otherwise read past it: a LoRA learned there would change
    nothing in 16 bits.
    """
    named = [getattr(module, "config", None) for module in model.modules()]
    configs: dict[int, Any] = {id(config): config for config in named if hasattr(config, "_is_quantized")}
    marks = [(config, config.__dict__.pop("_is_quantized")) for config in configs.values()]
    try:
        yield
    finally:
        for config, mark in marks:
            config._is_quantized = mark


def with_gradient(model: Any, logits: Callable[[], Any]) -> frozenset[str]:
    """Names of the linear layers that give one tensor as wide as they are, which changes what `logits` computes with `model`.

    A layer whose weights are read past it is not called, some routers give several tensors, what multiplies groups of its inputs gives
    a narrower one, and what only chooses which tokens are attended to has no gradient: a LoRA there would learn nothing, or fail.
    """
    import torch

    shifts: dict[str, torch.Tensor] = {}

    def shifting(name: str) -> Callable[..., Any]:
        def hook(module: Any, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.shape[-1] != anatomy.outputs(module):
                return output
            shift = shifts.setdefault(name, torch.zeros(output.shape[-1], device=output.device, dtype=output.dtype, requires_grad=True))
            return output + shift

        return hook

    linears = [(name, module) for name, module in model.named_modules() if anatomy.is_linear(module)]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [module.register_forward_hook(shifting(name)) for name, module in linears]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            found = logits().float().logsumexp(-1).sum()
            gradients = torch.autograd.grad(found, list(shifts.values()), allow_unused=True)
    finally:
        for hook_of in hooks:
            hook_of.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
    return frozenset(name for name, gradient in zip(shifts, gradients, strict=True) if gradient is not None)


def ends_of(names: Iterable[str], model: Any) -> tuple[str, ...]:
    """The shortest ends of names that mean these layers, among the layers of the text model's blocks."""
    place, _ = anatomy.blocks_of(model)
    wanted = set(names)
    inside = [name for name, module in model.named_modules() if anatomy.is_linear(module) and name.startswith(f"{place}.")]
    beside = Counter(end for name in inside if name not in wanted for end in _all_ends(name))
    return tuple(sorted({next((end for end in _all_ends(name) if not beside[end]), name) for name in wanted}))


def within_block(name: str) -> str:
    """`mlp.experts.down_proj` of `model.layers.3.mlp.experts.down_proj`."""
    steps = name.split(".")
    number = next((place for place, step in enumerate(steps) if step.isdigit()), -1)
    return ".".join(steps[number + 1 :])


def _all_ends(name: str) -> list[str]:
    """`c`, `b.c`, `a.b.c` of `a.b.c`, up to the number of the block."""
    steps = name.split(".")
    ends = [".".join(steps[-count:]) for count in range(1, len(steps) + 1)]
    return [end for end in ends if not end.partition(".")[0].isdigit()]


def _with_obstacle(places: Iterable[_Place], obstacle: str) -> tuple[str, ...]:
    return tuple(sorted({within_block(place.name) for place in places if place.obstacle == obstacle}))


def _places(model: Any, learning: frozenset[str] | None) -> list[_Place]:
    """The parts of all blocks, and the linear layers of the text model around them."""
    start, blocks = anatomy.blocks_of(model)
    found = []
    for number, block in enumerate(blocks):
        for part in anatomy.parts(block):
            full = f"{start}.{number}.{part.name}"
            if part.form != WeightForm.LINEAR and part.parameter == "weight":
                full += ".weight"
            found.append(_Place(full, part, True, _obstacle(model, full, part, learning)))
    prefix = anatomy.text_prefix(model)
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        is_around = name.startswith(f"{prefix}." if prefix else "") and not name.startswith(f"{start}.")
        if is_around and anatomy.is_linear(module) and id(module) not in ends:
            rows, columns = module.weight.shape[-1], module.weight.shape[0]
            part = Part(name, module, "weight", WeightKind.OTHER, WeightForm.LINEAR, rows, columns)
            found.append(_Place(name, part, False, _obstacle(model, name, part, learning)))
    return found


def _named(model: Any, places: list[_Place], name: str) -> list[_Place]:
    """What bears a name: layers and tensors, else what a module of that name holds, else embeddings or head. Raises ModelError."""
    same = [place for place in places if f".{place.name}".endswith(f".{name}")]
    inside = [place for place in places if not place.is_layer and f".{place.name.rpartition('.')[0]}".endswith(f".{name}")]
    bearing = same or inside or _outside(model, name)
    remedy = {"lora.target_modules": ALL_LINEAR}
    if not bearing:
        leaves = dict.fromkeys(place.name.rpartition(".")[2] for place in places if place.is_usual)
        raise ModelError(
            f"The model has no layers named {name}.",
            f"Set lora.target_modules to {ALL_LINEAR}, or to some of {listed(leaves)}.",
            remedy=remedy,
        )
    possible = [place for place in bearing if not place.obstacle and place.part.form != WeightForm.CONVOLUTION]
    if not possible:
        why = bearing[0].obstacle or "it is a convolution"
        raise ModelError(f"No LoRA can go to {name}: {why}.", f"Set lora.target_modules to {ALL_LINEAR}.", remedy=remedy)
    return possible


def _outside(model: Any, name: str) -> list[_Place]:
    """Token embeddings and the output layer, which only their own names mean."""
    ends = [(model.get_input_embeddings(), WeightKind.EMBEDDINGS), (model.get_output_embeddings(), WeightKind.HEAD)]
    found = []
    for full, module in model.named_modules():
        for end, kind in ends:
            if module is end and f".{full}".endswith(f".{name}"):
                columns, rows = module.weight.shape
                found.append(_Place(full, Part(full, module, "weight", kind, WeightForm.LINEAR, rows, columns), False))
    return found


def _obstacle(model: Any, name: str, part: Part, learning: frozenset[str] | None) -> str:
    if part.form != WeightForm.LINEAR:
        return BYPASSED * (part.form == WeightForm.EXPERTS and _is_read_past(model, name))
    if _is_refused(model, name):
        return REFUSED
    if learning is not None and name not in learning and part.kind != WeightKind.EXPERTS:  # no token may have passed an expert
        return BYPASSED
    return ""


def _is_read_past(model: Any, name: str) -> bool:
    """Whether the model's code reads a tensor of experts past the module that holds it, where peft's wrapper has none of that name (DBRX)."""
    holder, tensor = name.split(".")[-2:]
    return re.search(rf"self\.{holder}\.{tensor}\b(?!\()", inspect.getsource(sys.modules[type(model).__module__])) is not None


def _is_refused(model: Any, name: str) -> bool:
    """Whether peft refuses layers of this name in models of this type, as it does for state spaces that use a weight directly."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False
