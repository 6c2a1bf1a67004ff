"""Whether an adapter belongs to a base, as peft says it: `python -m studio.catalogue.adapter_trial BASE ADAPTER`.

Most LoRAs name the layers as the base stores them, which headers show. Fused experts, renamed layers and multimodal models are loaded
under other names than they are stored; there peft puts the adapter on the model, built without weights in a child process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio.catalogue import attaching, library_child, text_models
from studio.catalogue.models import tensors, weight_files
from studio.engine.kinds import LEADING_KINDS
from studio.errors import ModelError, one_line, plain

# options of peft whose names are regular expressions; most adapters write plain names
PATTERNS = (
    "target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "layers_pattern", "target_parameters",
    "rank_pattern", "alpha_pattern",
)  # fmt: skip
PLAIN_NAME = re.compile(r"[\w.-]{0,200}")


def check(weights: Path, base: Path, config: Mapping[str, Any] | None = None) -> str:
    """Why the adapter in `weights` can't belong to `base`, as the end of a sentence; "" where it can. Raises ModelError.

    `config`: of the adapter. Where it holds patterns or sizes that its file does not bear out, loading it could take any time or memory,
    so it is first put on the base in a child that may take only so much. Kinds other than LoRA are not checked otherwise.
    """
    config = config or {}
    is_lora = config.get("peft_type", "LORA") == "LORA"
    if is_lora and not _is_lora(weights):
        raise ModelError(f"{weights} holds no low-rank factors (lora_A).", "Give an adapter saved by peft's save_pretrained.")
    if has_patterns(config) or _outgrows(config, weights):
        return _ask_child(base, weights.parent)
    if not is_lora:
        return ""
    stored = {name: shape for file in weight_files(base) for name, _, shape in tensors(file)}
    for module, width in _factors(weights):
        shape = stored.get(f"{module}.weight")
        if shape is None:
            return _ask_child(base, weights.parent)
        if width not in shape:
            return f"its layer {plain(module)} has another size there"
    return ""


def has_patterns(config: Mapping[str, Any]) -> bool:
    """Whether peft would match layers by regular expressions of the adapter, which may take forever."""
    found = [name for key in PATTERNS for name in _names(config.get(key))]
    return any(not PLAIN_NAME.fullmatch(name) for name in found)


def _names(value: Any) -> list[str]:
    if isinstance(value, (list, dict)):
        return [str(name) for name in value]  # of a dict, its keys
    return [str(value or "")]


def _outgrows(config: Mapping[str, Any], weights: Path) -> bool:
    """Whether peft would first make more than the file holds: it goes by adapter_config.json alone."""
    shapes = [shape for _, _, shape in tensors(weights)]
    if config.get("peft_type") in LEADING_KINDS:
        wanted = math.prod(max(_whole(config.get(key)), 1) for key in ("num_virtual_tokens", "token_dim", "num_layers"))
        return wanted > sum(map(math.prod, shapes))
    ranks = [config.get("r"), *dict(config.get("rank_pattern") or {}).values()]
    return max(map(_whole, ranks)) > max((size for shape in shapes for size in shape), default=0)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _is_lora(weights: Path) -> bool:
    return any(".lora_A" in name and len(shape) == 2 for name, _, shape in tensors(weights))


def _factors(weights: Path) -> Iterator[tuple[str, int]]:
    """The layers of the low-rank factors, and the width that each reads."""
    for name, _, shape in tensors(weights):
        module, found, _ = name.partition(".lora_A")
        if found and len(shape) == 2:
            yield module.removeprefix("base_model.model."), shape[1]


def _ask_child(base: Path, adapter: Path) -> str:
    failure = f"{adapter} could not be put on {base}"
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
