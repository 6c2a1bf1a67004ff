"""`studio fit`: will this exact configuration fit, and what would make it fit? From the model's config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from studio.commands.terminal import JsonFlag, open_studio, show
from studio.errors import StudioError

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
    set: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One option; lists as JSON. Repeat it.")] = None,
    device: Annotated[Literal["cuda", "cpu"] | None, typer.Option(help="Where it would train; this machine's when left out.")] = None,
    gpu_gib: Annotated[float | None, typer.Option(metavar="G", help="Memory of the GPU to plan for, in GiB.")] = None,
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
    )
    show(found, json, _text(found))


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['predicted_bytes'] / GIB:.2f} GiB at its peak ({found['peak_at']}), on {found['device']}; {_verdict(found)}"]
    lines += [f"  {WORDS[name]:<36}{value / GIB:8.2f} GiB" for name, value in found["breakdown"].items()]
    if found["process_bytes"]:
        lines.append(f"  {'beside it, the program itself':<36}{found['process_bytes'] / GIB:8.2f} GiB")
    if found["paged_bytes"]:
        lines.append(f"  {'in main memory where the GPU is full':<36}{found['paged_bytes'] / GIB:8.2f} GiB")
    if found["advice"]:
        lines += ["What would save memory:", *(f"  {one['saves_bytes'] / GIB:8.2f} GiB  {one['change']}" for one in found["advice"])]
    if found["room_bytes"] is not None:
        lines.append(f"Fits up to max_length {found['longest_max_length']:,}, or up to {found['largest_batch']:,} rows at once.")
    return "\n".join([*lines, *(f"Note: {warning}" for warning in found["warnings"])])


def _verdict(found: dict[str, Any]) -> str:
    if found["fits"] is None:
        return "name --gpu-gib to hear whether it fits"
    margin = abs(found["margin_bytes"]) / GIB
    return f"it fits, {margin:.2f} GiB to spare" if found["fits"] else f"it does not fit: {margin:.2f} GiB short"
