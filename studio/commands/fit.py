"""`studio fit`: will this exact configuration fit, and what would make it fit? From the model's config alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from studio.commands.terminal import JsonFlag, open_studio, show
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.records import AvailableMemory, Fit, MemoryPlan

GIB = 1024**3
WORDS = {
    "base_weights": "base model's layers",
    "full_precision_weights": "embeddings, head, norms",
    "adapter": "what is trained, and its gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "output layer",
    "overhead": "overhead",
}


def fit(
    base_model: Annotated[str | None, typer.Option(metavar="MODEL", help="Base model: a name, or a folder.")] = None,
    model_config: Annotated[Path | None, typer.Option(metavar="FILE", help="A model's config.json, instead of a model.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Named starting point of the options.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One option; lists as JSON. Repeat it."),
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None,
        typer.Option(help="Where it would train; this machine's when left out."),
    ] = None,
    gpu_gib: Annotated[float | None, typer.Option(metavar="G", help="Memory of the GPU to plan for, in GiB.")] = None,
    free_gib: Annotated[
        float | None, typer.Option(metavar="G", help="Memory that is free now, in GiB, instead of looking; a reserve of 0.22 is kept.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Predict the peak memory of a training, and say what each change would save."""
    from jobs.config import parse_assignments

    if device == "cpu" and gpu_gib is not None:
        raise StudioError("--gpu-gib goes with a GPU, not with --device cpu.", "Leave out one of the two.")
    found = open_studio().fit.fit(
        base_model=base_model,
        model_config=model_config,
        recipe=recipe,
        options=parse_assignments(set or []),
        device=device,
        gpu_gib=gpu_gib,
        free_gib=free_gib,
    )
    show(found, json, _text(found))


def _text(found: Fit) -> str:
    lines = [f"{_gib(found.predicted_bytes)} GiB at its peak ({found.peak_at}), on {found.device}; {_verdict(found)}"]
    lines += [_line(WORDS[name], value) for name, value in found.breakdown]
    if found.process_bytes:
        lines.append(_line("beside it, the program itself", found.process_bytes))
    if found.paged_bytes:
        lines.append(_line("in main memory where the GPU is full", found.paged_bytes))
    if found.advice:
        lines += [
            "What would save memory:",
            *(f"  {_gib(one.saves_bytes):>8} GiB  {one.change}" for one in found.advice),
        ]
    lines += [*_held(found.available), *_plan(found.plan)]
    if found.room_bytes is not None:
        lines.append(f"Fits up to max_length {found.longest_max_length:,}, or up to {found.largest_batch:,} rows at once.")
    return "\n".join([*lines, *(f"Note: {warning}" for warning in [*found.notices, *found.warnings])])


def _held(here: AvailableMemory | None) -> list[str]:
    """What is available, and who holds the rest."""
    if here is None:
        return []
    returned = ""
    if here.returned_bytes:
        returned = f" and {_gib(here.returned_bytes)} given back for it"
    lines = [f"Available: {_gib(here.available_bytes)} GiB, from {_gib(here.free_bytes)} free{returned}, less {_gib(here.reserve_bytes)}."]
    for one in here.holders:
        if one.bytes:
            lines.append(f"  {_gib(one.bytes):>8} GiB  held by {one.name}{', given back' if one.is_given_back else ''}")
    return lines


def _plan(found: MemoryPlan | None) -> list[str]:
    """The fastest choice that fits, one line per change, and how to take it."""
    from studio.services.planning import sentence

    if found is None or not found.changes:
        return []
    if not found.fits:
        return [f"Nothing that keeps the rows per step fits; the least would need {_gib(found.needed_bytes)} GiB."]
    lines = [f"The fastest that fits needs {_gib(found.needed_bytes)} GiB (`studio train --fit-memory` takes it):"]
    lines += [f"  {sentence(change)}" for change in found.changes]
    return [*lines, *filter(None, [found.beside])]


def _line(words: str, value: int) -> str:
    return f"  {words:<36}{_gib(value):>8} GiB"


def _gib(value: int) -> str:
    return f"{value / GIB:.2f}"


def _verdict(found: Fit) -> str:
    if found.margin_bytes is None:
        return "name --gpu-gib to learn whether it fits"
    margin = _gib(abs(found.margin_bytes))
    if found.fits:
        return f"it fits, {margin} GiB to spare"
    return f"it does not fit: {margin} GiB short"
