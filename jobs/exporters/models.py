"""Bases and adapters in memory for an export: always loaded afresh from the base's own files, never quantised.

Knows nothing of the files that are written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from jobs.sections import RopeSection
from studio.catalogue import attaching, hardware, rope, text_models
from studio.catalogue.models import count_parameters, read_json, tensors, weight_files
from studio.errors import ModelError

WORKING_ROOM = 1.2  # of the weights: what computing takes beside them
UNKNOWN_CONTEXT = 2048  # tokens, where config.json does not say
ATTACHED = "default"  # peft's name for the only adapter
HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def load_base(folder: Path, positions: RopeSection | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """The base from its own files, in float32 where that fits into memory, else in 16 bit. Raises ModelError where neither fits.

    `positions`: those that the adapter was trained with. `dtype`: another precision.
    """
    transformers_logging.disable_progress_bar()
    device, widest = _place(folder)
    return load(folder, dtype=dtype or widest, config=text_models.config_of(folder, positions)).to(device)


def load_adapted(base: Path, adapter: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """The base with an adapter, at the positions that it was trained with."""
    return attach(load_base(base, rope.of_adapter(adapter), dtype), adapter)


def load(folder: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    model: nn.Module = text_models.load(folder, dtype=dtype, **options)[0]
    return model.eval().requires_grad_(False)


def attach(base: nn.Module, folder: Path) -> nn.Module:
    """The base with an adapter of any kind that peft knows, or that the studio has taught it."""
    try:
        model, _ = attaching.attach(base, folder, ATTACHED, str(_device(base)))
    except attaching.Misfit as exc:
        raise ModelError(f"The adapter can't be attached to its base: {exc}.", "Train it again, or import it for its own base.") from None
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


@contextlib.contextmanager
def detached(model: Any) -> Iterator[None]:
    """The base alone, for a while."""
    with model.disable_adapter():
        yield


def merge(model: Any) -> nn.Module:
    """The base with the adapter inside its own weights.

    Raises ValueError where that gives numbers that are none, and ModelError where layers share a weight to which each adds something else.
    """
    _check_shared(model)
    merged: Any = model.merge_and_unload(safe_merge=True)
    _keep_whole_layers(merged)
    ends = merged.get_input_embeddings(), merged.get_output_embeddings()
    if all(ends) and ends[0].weight is not ends[1].weight:  # learned apart: written as one tensor, a half would be lost
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    return merged


def _check_shared(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    first: dict[int, str] = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer) or not isinstance(module.get_base_layer(), nn.Linear):
            continue
        if first.setdefault(id(module.get_base_layer().weight), name) != name:
            other = first[id(module.get_base_layer().weight)]
            raise ModelError(
                f"The adapter can't be merged: {other} and {name} are one weight in the base, and the adapter changes them apart.",
                "Export the adapter instead (format adapter).",
            )


def _keep_whole_layers(model: nn.Module) -> None:
    """Put layers that were trained whole where they belong: peft leaves some kinds of adapters wrapped."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[ATTACHED], strict=True)


def half(folder: Path) -> torch.dtype:
    """The 16-bit type of a merged model: the base's own; float16, the finer one, for a base in 32 bit."""
    kinds = [kind for file in weight_files(folder) for _, kind, shape in tensors(file) if len(shape) > 1]
    return HALVES.get(max(set(kinds), key=kinds.count), torch.float16)


def context(folder: Path, positions: RopeSection) -> int:
    """Tokens that the base reads at once."""
    return rope.context(read_json(folder / "config.json"), positions) or UNKNOWN_CONTEXT


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _place(folder: Path) -> tuple[torch.device, torch.dtype]:
    parameters = count_parameters(folder)
    places = [("cpu", hardware.memory().free_bytes)]
    if torch.cuda.is_available():
        places.insert(0, ("cuda", torch.cuda.mem_get_info()[0]))
    for dtype in (torch.float32, half(folder)):
        for device, free in places:
            if parameters * dtype.itemsize * WORKING_ROOM < free:
                return torch.device(device), dtype
    needed, free = parameters * 2 * WORKING_ROOM, max(free for _, free in places)
    raise ModelError(
        f"The base needs {needed / 2**30:.1f} GiB in 16 bit to be written and proved, and {free / 2**30:.1f} GiB are free.",
        "Close what holds memory (the engine unloads when idle), or export on a machine with more.",
    )
