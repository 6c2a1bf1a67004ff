"""Whether an adapter belongs to a base, as peft says it: `python -m studio.catalogue.adapter_trial BASE ADAPTER`.

Most LoRAs name the layers as the base stores them, which headers show. Fused experts, renamed layers and multimodal models are loaded
under other names than they are stored; there peft puts the adapter on the model, built without weights in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from studio.catalogue import attaching, library_child, text_models
from studio.catalogue.models import tensors, weight_files
from studio.errors import ModelError, one_line, plain


def check(weights: Path, base: Path, *, is_lora: bool = True) -> str:
    """Why the adapter in `weights` can't belong to `base`, as the end of a sentence; "" where it can. Raises ModelError.

    Its adapter_config.json lies beside it, as studio.catalogue.adapter_limits keeps it. Kinds other than LoRA are not checked.
    """
    if not is_lora:
        return ""
    if not _is_lora(weights):
        raise ModelError(f"{weights.name} of {weights.parent.name} holds no low-rank factors (lora_A).", "Give an adapter saved by peft.")
    stored = {name: shape for file in weight_files(base) for name, _, shape in tensors(file)}
    for module, width in _factors(weights):
        shape = stored.get(f"{module}.weight")
        if shape is None:
            return _ask_child(base, weights.parent)
        if width not in shape:
            return f"its layer {plain(module)} has another size there"
    return ""


def _is_lora(weights: Path) -> bool:
    return any(".lora_A" in name and len(shape) == 2 for name, _, shape in tensors(weights))


def _factors(weights: Path) -> Iterator[tuple[str, int]]:
    """The layers of the low-rank factors, and the width that each reads."""
    for name, _, shape in tensors(weights):
        module, found, _ = name.partition(".lora_A")
        if found and len(shape) == 2:
            yield module.removeprefix("base_model.model."), shape[1]


def _ask_child(base: Path, adapter: Path) -> str:
    failure = f"{adapter.name} could not be put on {base}"
    return str(library_child.ask("studio.catalogue.adapter_trial", base, str(adapter), failure=failure, cause="adapter_config.json"))


# in the child


def misfit(base: Path, adapter: Path) -> str:
    """As `check`. Raises whatever building the model raises."""
    import torch

    model = text_models.without_weights(text_models.config_of(base))
    try:
        with torch.device("meta"):
            attaching.attach(model, adapter, "trial", "cpu")
    except attaching.Misfit as exc:
        return str(exc)
    return ""


def _work(base: Path, arguments: list[str]) -> str:
    try:
        return misfit(base, Path(arguments[0]))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the libraries say becomes one line
        return f"peft can't put it there ({one_line(exc)})"


if __name__ == "__main__":
    library_child.answer(_work)
