"""Whether the layers that a person has named for an adapter are there: `python -m studio.catalogue.named_targets FOLDER METHOD NAME…`.

What a probe knows is told from it; other names are asked of the model itself, in a child, without weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue import library_child
from studio.errors import ModelError, listed
from studio.records import Probe, WeightForm

SHOWN = 12  # names that would work
_accepted: set[tuple[str, str, tuple[str, ...]]] = set()


def named(config: JobConfig) -> list[str]:
    """The names that a person gives; none where the method chooses for itself."""
    wanted = {"lora": config.lora.target_modules, "ia3": config.ia3.target_modules}.get(config.method, ALL_LINEAR)
    names = [wanted] if isinstance(wanted, str) else wanted
    return [name for name in names if name not in (ALL_LINEAR, "auto")]


def check_in_child(folder: Path, config: JobConfig, probe: Probe) -> None:
    """Raises ModelError where nothing of the model bears a name, or where no adapter can go to what does."""
    known = {weight.name for block in probe.blocks for weight in block.weights if weight.form == WeightForm.LINEAR and weight.target}
    asked = tuple(name for name in named(config) if not any(f".{one}".endswith(f".{name}") for one in known))
    key = (probe.digest, config.method, asked)
    if asked and key not in _accepted:
        library_child.ask("studio.catalogue.named_targets", folder, config.method, *asked)
        _accepted.add(key)


def _work(folder: Path, arguments: list[str]) -> None:
    """As a child. Raises ModelError."""
    from studio.catalogue import text_models
    from studio.catalogue.targets import lora_targets

    method, *names = arguments
    model = text_models.without_weights(text_models.config_of(folder))
    if method == "lora":
        lora_targets(model, names)
        return
    for name in names:
        _check_is_there(model, name)


def _check_is_there(model: Any, name: str) -> None:
    """As peft matches the names of IA3's layers."""
    modules = [full for full, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
    if not any(f".{full}".endswith(f".{name}") for full in modules):
        present = sorted({full.rpartition(".")[2] for full in modules})
        raise ModelError(
            f"The model has no layers named {name}.", f"Set ia3.target_modules to auto, or to some of {listed(present, SHOWN)}."
        )


if __name__ == "__main__":
    library_child.answer(_work)
