"""The modules of a model that full training copies and bottleneck adapters stand behind: those of its text, under names that mean no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from studio.catalogue import anatomy
from studio.catalogue.targets import within_block

if TYPE_CHECKING:
    from torch import nn


class TextLayers:
    """Of a multimodal model the text model and its head; of others everything."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._prefix = anatomy.text_prefix(model)
        self._ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
        self._names = [name for name, _ in model.named_modules()]

    @property
    def names(self) -> list[str]:
        """Of all modules."""
        return [name for name in self._names if self._is_text(name)]

    @property
    def copied(self) -> list[str]:
        """Modules that hold weights, and no module that does. peft puts a copy of such a module in its place; embeddings and head are none."""
        return [name for name in self._leaves() if not self._is_end(name)]

    @property
    def left_out(self) -> list[str]:
        """Weights of modules that hold layers too, which can't be copied so; by their names within a block."""
        copied = {id(parameter) for name in self._leaves() for parameter in self._own(name)}
        left = [name for name in self._names if self._is_text(name) and any(id(parameter) not in copied for parameter in self._own(name))]
        tensors = [f"{name}.{key}" for name in left for key, _ in self._module(name).named_parameters(recurse=False)]
        return sorted({within_block(name) for name in tensors})

    @property
    def ends(self) -> list[str]:
        """Last parts of the names of embeddings and head."""
        return sorted({name.rpartition(".")[2] for name in self._names if self._is_end(name)})

    def meaning(self, layers: Iterable[str]) -> list[str]:
        """The last parts of these names, or whole names where the last parts would mean other modules too."""
        wanted = set(layers)
        short = {name.rpartition(".")[2] for name in wanted}
        meant = {name for name in self._names if name.rpartition(".")[2] in short and not self._is_end(name)}
        if meant == wanted:
            return sorted(short)
        return sorted(wanted)

    def ending_with(self, ends: Iterable[str]) -> list[str]:
        """These ends of names, or the whole names of the text's modules where the ends would mean others too."""
        wanted = [f".{end}" for end in ends]
        meant = [name for name in self._names if any(f".{name}".endswith(end) for end in wanted)]
        if all(self._is_text(name) for name in meant):
            return sorted(ends)
        return sorted(name for name in meant if self._is_text(name))

    def _leaves(self) -> list[str]:
        holding = [name for name in self._names if self._own(name) and self._is_text(name)]
        parents = {name[:place] for name in holding for place, letter in enumerate(name) if letter == "."} | {""}
        return [name for name in holding if name not in parents]

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self._model.get_submodule(name)
        return module

    def _own(self, name: str) -> list[Any]:
        return list(self._module(name).parameters(recurse=False))

    def _is_end(self, name: str) -> bool:
        return any(self._module(name) is end for end in self._ends)

    def _is_text(self, name: str) -> bool:
        return not self._prefix or f"{name}.".startswith(f"{self._prefix}.") or self._is_end(name)
