"""What LoRA's default, target_modules=all-linear, means here: the text model's linear layers and fused experts, without routers.

peft's own reading of it takes vision layers along that text never reaches, and of some mixtures of experts it loses the experts or
the dense layers beside them. Asks a built model, also on the meta device; imports peft only when it is called.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from studio.catalogue import anatomy
from studio.records import WeightForm, WeightKind

ALL_LINEAR = "all-linear"
FROZEN = (WeightKind.ROUTER,)  # trained only where a person names them


@dataclass(frozen=True)
class LoraTargets:
    """peft's options: ends of the names of linear layers, of fused experts, and a pattern of what is left alone."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    excluded: str = ""  # "" leaves nothing alone
    refused: tuple[str, ...] = ()  # linear layers that peft does not take in this architecture

    def options(self) -> dict[str, Any]:
        """As LoraConfig takes them."""
        return {
            "target_modules": list(self.modules),
            "target_parameters": list(self.parameters) or None,
            "exclude_modules": self.excluded or None,
        }


def lora_targets(model: Any) -> LoraTargets:
    """What all-linear means for this model."""
    place, blocks = anatomy.blocks_of(model)
    wanted, experts, refused = set(), set(), set()
    for number, block in enumerate(blocks):
        for part in anatomy.parts(block):
            if part.kind in FROZEN:
                continue
            if part.form == WeightForm.EXPERTS:
                experts.add(part.name)
            elif part.form == WeightForm.LINEAR and _is_refused(model, part.name):
                refused.add(part.name)
            elif part.form == WeightForm.LINEAR:
                wanted.add(f"{place}.{number}.{part.name}")
    linear = [name for name, module in model.named_modules() if anatomy.is_linear(module)]
    ends = _ends(wanted, linear, place)
    return LoraTargets(ends, tuple(sorted(experts)), _outside(model, place, linear, ends), tuple(sorted(refused)))


def _ends(wanted: set[str], linear: Iterable[str], place: str) -> tuple[str, ...]:
    """The shortest ends of names that mean the wanted layers of the text model's blocks and no others of it."""
    inside = [name for name in linear if name.startswith(f"{place}.")]
    beside = Counter(end for name in inside if name not in wanted for end in _all_ends(name))
    found = set()
    for name in wanted:
        found.add(next((end for end in _all_ends(name) if not beside[end]), name))
    return tuple(sorted(found))


def _all_ends(name: str) -> list[str]:
    """`c`, `b.c`, `a.b.c` of `a.b.c`, up to the number of the block."""
    steps = name.split(".")
    ends = [".".join(steps[-count:]) for count in range(1, len(steps) + 1)]
    return [end for end in ends if not end.partition(".")[0].isdigit()]


def _outside(model: Any, place: str, linear: Iterable[str], ends: Iterable[str]) -> str:
    """A pattern of the layers outside of the text model's blocks that have the same names, as peft's exclude_modules takes it."""
    names = [name for name in linear if not name.startswith(f"{place}.") and any(f".{name}".endswith(f".{end}") for end in ends)]
    output = model.get_output_embeddings()
    tops = {_top(name, place) for name in names if model.get_submodule(name) is not output}
    return "|".join(f"{re.escape(top)}(\\..*)?" for top in sorted(tops))


def _top(name: str, place: str) -> str:
    """The outermost module of `name` that does not hold the blocks."""
    steps = name.split(".")
    heads = [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
    return next(head for head in heads if head != place and not place.startswith(f"{head}."))


def _is_refused(model: Any, name: str) -> bool:
    """Whether peft refuses layers of this name in models of this type, as it does for state spaces that use a weight directly."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False
