"""The parts of a model as transformers has built it: its text model, its blocks, and what each weight of a block is for.

Asks the modules themselves, with weights or on the meta device. Imports torch only when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.records import WeightForm, WeightKind

if TYPE_CHECKING:
    from torch import nn

CARRY = (WeightKind.STATE_SPACE, WeightKind.CONVOLUTION)  # a state from token to token, also from one packed row into the next
BARE = ("weight", "bias")  # parameters that are no sign of a recurrent state


@dataclass(frozen=True)
class Part:
    """A weight of a block. `name`: of its module within the block, with the parameter's own where that is not `weight`."""

    name: str
    module: nn.Module
    parameter: str
    kind: WeightKind
    form: WeightForm
    rows: int
    columns: int
    number: int = 1
    bias: int = 0

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.number


def text_prefix(model: Any) -> str:
    """Name of the module that is the text model; "" where the model is nothing else."""
    name, decoder = _decoder(model)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    inside = {id(module) for module in decoder.modules()} | {id(module) for module in ends}
    holders = _holders(model, name)
    if any(id(module) not in inside and module not in holders and _own(module) for module in model.modules()):
        return name
    return ""


def _decoder(model: Any) -> tuple[str, nn.Module]:
    """The text model without its head, and the name that it has in `model`."""
    from torch import nn

    decoder: nn.Module = model.get_decoder()
    if not any(isinstance(module, nn.ModuleList) for module in decoder.modules()):
        decoder = model.base_model  # some classes call their head the decoder
    return next((name for name, module in model.named_modules() if module is decoder), ""), decoder


def _holders(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules around a module of that name."""
    steps = name.split(".")[:-1]
    return [model.get_submodule(".".join(steps[:count])) for count in range(len(steps) + 1)]


def _own(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def blocks_of(model: Any) -> tuple[str, list[nn.Module]]:
    """Name of the list of blocks of the text model, and its blocks."""
    from torch import nn

    prefix, decoder = _decoder(model)
    found, most = "", -1
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > most:
                found, most = name, size
    if most < 0:
        return "", []
    return ".".join(step for step in (prefix, found) if step), list(decoder.get_submodule(found))


def is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def outputs(layer: Any) -> int:
    """Numbers that a linear layer puts out for each vector."""
    return int(layer.nf if hasattr(layer, "nf") else layer.out_features)


def parts(block: nn.Module) -> list[Part]:
    """The matrices of a block; vectors, such as those of norms, are no parts."""
    return list(_Block(block).parts())


def norms(block: nn.Module) -> list[nn.Module]:
    return [module for module in block.modules() if "norm" in type(module).__name__.lower() and _own(module)]


def mixers(block: nn.Module) -> list[nn.Module]:
    """The state spaces and short convolutions of a block."""
    found = _Block(block)
    return [found.modules[name] for name in found.recurrent]


def quantizable(model: Any) -> dict[str, nn.Module]:
    """The linear layers that bitsandbytes keeps in 4 or 8 bits, by name, as transformers chooses them."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    left = get_keys_to_not_convert(model)
    return {
        name: module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, left)
    }


class _Block:
    """One block, with what has to be known of its modules before one of them can be placed."""

    def __init__(self, block: nn.Module) -> None:
        self.modules = dict(block.named_modules())
        self.recurrent = {name: kind for name, module in self.modules.items() if name and (kind := _recurrence(module))}
        self.experts = {name for name, module in self.modules.items() if not self._around(name, self.recurrent) and _is_experts(module)}
        self.numbers = {_number(self.modules[name]) for name in self.experts}
        holders = {name.rpartition(".")[0] for name in self.experts}
        self.mixtures = {name for name in holders if name and "expert" not in name.rpartition(".")[2]}

    def parts(self) -> Iterator[Part]:
        from torch import nn

        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        for name, module in self.modules.items():
            own = dict(module.named_parameters(recurse=False))
            for parameter, tensor in own.items():
                if tensor.dim() < 2 or (parameter.endswith("bias") and name in self.experts):
                    continue
                kind = self._kind(name, module, tensor)
                full = ".".join(step for step in (name, parameter) if step and step != "weight")
                bias = own.get("bias" if parameter == "weight" else f"{parameter}_bias")
                number, form, columns = 1, WeightForm.OTHER, tensor.shape[0]
                if is_linear(module):
                    form = WeightForm.LINEAR
                    if not isinstance(module, nn.Linear):  # GPT-2's Conv1D keeps the transpose
                        columns = tensor.shape[1]
                elif isinstance(module, convolutions):
                    form = WeightForm.CONVOLUTION
                elif name in self.experts:
                    form = WeightForm.EXPERTS
                    if tensor.dim() == 3:
                        number, columns = tensor.shape[:2]
                rows = tensor.numel() // max(number * columns, 1)
                yield Part(full, module, parameter, kind, form, rows, columns, number, 0 if bias is None else bias.numel())

    def _kind(self, name: str, module: nn.Module, tensor: Any) -> WeightKind:
        steps = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
        classes = " ".join(type(self.modules[step]).__name__.lower() for step in steps)
        if "norm" in type(module).__name__.lower():
            return WeightKind.NORM
        if place := self._around(name, self.recurrent):
            return self.recurrent[place]
        if self._around(name, self.experts) or any(".experts." in f".{step}." and _is_number(step) for step in steps):
            return WeightKind.EXPERTS
        if self.experts and (
            "router" in classes or (tensor.dim() == 2 and tensor.shape[0] in (1, *self.numbers) and ("gate" in name or "router" in name))
        ):
            return WeightKind.ROUTER
        if self._around(name, self.mixtures) or (self.experts and "shared" in name):
            return WeightKind.SHARED_EXPERTS
        if "attention" in classes or "attn" in name or "attention" in name:
            return WeightKind.ATTENTION
        if is_linear(module):
            return WeightKind.MLP
        return WeightKind.OTHER

    @staticmethod
    def _around(name: str, places: Any) -> str:
        """The one of `places` that `name` is, or lies in."""
        return next((place for place in places if name == place or name.startswith(f"{place}.")), "")


def _is_number(step: str) -> bool:
    return step.rpartition(".")[2].isdigit()


def _recurrence(module: nn.Module) -> WeightKind | None:
    """A module that holds a convolution over time is a short convolution, and with parameters of its own a state space."""
    from torch import nn

    children = dict(module.named_children())
    if not any(isinstance(child, nn.Conv1d) for child in children.values()):
        return None
    own = [name for name, _ in module.named_parameters(recurse=False) if name not in BARE]
    inner = [name for child in children.values() if not is_linear(child) for name, _ in child.named_parameters() if "." not in name]
    if own or any(name not in BARE for name in inner):
        return WeightKind.STATE_SPACE
    return WeightKind.CONVOLUTION


def _is_experts(module: nn.Module) -> bool:
    """One that holds the weights of several experts in one tensor."""
    from torch import nn

    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    return any(parameter.dim() == 3 and min(parameter.shape) > 1 for parameter in module.parameters(recurse=False)) or (
        "expert" in type(module).__name__.lower() and any(parameter.dim() == 2 for parameter in module.parameters(recurse=False))
    )


def _number(module: nn.Module) -> int:
    """How many experts a module holds."""
    return next((parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.dim() == 3), 0)
