"""Rotary positions of a built model: `python -m studio.catalogue.rotary FOLDER SECTION` says whether a base takes a `rope` section.

transformers builds the model on the meta device, once with its own positions and once with those of the section; what differs between
the two is what the section changes, wherever a family keeps it. Importing this loads no library: the web process asks a child.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.sections import RopeSection
from studio.catalogue import library_child, text_models
from studio.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


_accepted: set[tuple[str, str]] = set()


def check_in_child(folder: Path, wanted: RopeSection) -> None:
    """Raises ModelError where the base of `folder` can't have these positions. What was accepted is not asked again."""
    if not wanted.is_set:
        return
    key = (hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(), wanted.model_dump_json())
    if key not in _accepted:
        library_child.ask("studio.catalogue.rotary", folder, key[1])
        _accepted.add(key)


def check(folder: Path, wanted: RopeSection) -> None:
    """As `check_in_child`, here. Also raises whatever transformers says about a config that it can't build."""
    _both(folder, wanted)


def rescale(model: nn.Module, folder: Path, wanted: RopeSection) -> None:
    """Give a model from `folder` the positions of `wanted`. Its modules are changed, its weights are not. Raises ModelError."""
    device = next(model.parameters()).device
    plain, scaled = _both(folder, wanted)
    for place, fresh in list(scaled.named_modules()):
        if _is_rotary(fresh):
            module = fresh.to_empty(device=device)
            scaled._init_weights(module)  # as from_pretrained fills what no checkpoint holds
            model.set_submodule(place, module, strict=True)
            continue
        for key, value in _different(plain.get_submodule(place), fresh).items():
            setattr(model.get_submodule(place), key, value)
    text_models.forget_lengths(model)
    own, new = (each.config.get_text_config() for each in (model, scaled))
    own.rope_parameters, own.max_position_embeddings = new.rope_parameters, new.max_position_embeddings


def _both(folder: Path, wanted: RopeSection) -> tuple[Any, Any]:
    """The model with its own positions and with those that are wanted, without weights."""
    plain = _built(folder, RopeSection())
    if any(_is_rotary(module) for module in plain.modules()):
        scaled = _built(folder, wanted)
        own, new = (each.config.get_text_config() for each in (plain, scaled))
        if own.rope_parameters != new.rope_parameters:
            return plain, scaled
    raise ModelError(
        f"{folder.name} has no rotary positions that can be scaled ({type(plain).__name__}).",
        "Leave the rope section out, or choose a base with rotary positions.",
    )


def _built(folder: Path, wanted: RopeSection) -> Any:
    import torch

    return text_models.without_weights(text_models.config_of(folder, wanted), dtype=torch.bfloat16)


def _is_rotary(module: Any) -> bool:
    """By what transformers' own code looks for when it fills such modules."""
    return hasattr(module, "rope_type") and next(module.parameters(), None) is None and next(module.buffers(), None) is not None


def _different(plain: Any, scaled: Any) -> dict[str, Any]:
    """Numbers that a module keeps of the positions, such as DeepSeek's scale of attention."""
    before = vars(plain)
    return {key: value for key, value in vars(scaled).items() if isinstance(value, (int, float)) and before.get(key) != value}


if __name__ == "__main__":
    library_child.answer(lambda folder, more: check(folder, RopeSection.model_validate_json(more[0])))
