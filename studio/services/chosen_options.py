"""What nobody has set is made to fit the model, and every change is named: max_length its context, lora.r its narrowest layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs import config as job_config
from jobs.config import JobConfig
from studio.catalogue import models, rope, suitability
from studio.catalogue.compatibility import narrowest_layer
from studio.catalogue.models import ModelRef
from studio.errors import ModelError
from studio.records import Probe


@dataclass(frozen=True)
class ChosenOptions:
    """One configuration, and what differs in it from what its recipe says, a sentence each."""

    config: JobConfig
    notices: tuple[str, ...] = ()


def fitted(config: JobConfig, layer: Mapping[str, Any], model: Mapping[str, Any], context: int | None, model_name: str) -> ChosenOptions:
    """`config`, made to fit where `layer`, what a person has set, says nothing. `model`: its config.json."""
    chosen = _with_length(config, layer, model, context, model_name)
    config, notices = chosen.config, list(chosen.notices)
    narrowest = narrowest_layer(config, model)
    if narrowest and config.lora.r > narrowest.width and not _sets(layer, "lora.r"):
        notices.append(f"lora.r is {narrowest.width} instead of {config.lora.r}: layer {narrowest.name} of {model_name} is no wider.")
        config = config.model_copy(update={"lora": config.lora.model_copy(update={"r": narrowest.width})})
    return ChosenOptions(config, tuple(notices))


def longest_row(model: ModelRef, config: JobConfig | None = None, layer: Mapping[str, Any] | None = None) -> ChosenOptions:
    """max_length as a launch takes it, and nothing else made to fit: what is shown of rows is cut where a training cuts them.

    Without `config` and `layer`: what a launch with nothing chosen takes. A folder that holds a tokenizer alone has no context.
    """
    try:
        described = models.read_json(model.path / "config.json")
    except ModelError:
        described = {}
    context = models.inspect_folder(model.path).context
    return _with_length(config or job_config.build(), layer or {}, described, context, model.name)


def _with_length(
    config: JobConfig, layer: Mapping[str, Any], model: Mapping[str, Any], context: int | None, model_name: str
) -> ChosenOptions:
    if config.rope.is_set:
        context = rope.context(model, config.rope)
    if not context or config.max_length <= context or _sets(layer, "max_length"):
        return ChosenOptions(config)
    said = f"max_length is {context} instead of {config.max_length}: {model_name} reads no more tokens at once."
    return ChosenOptions(config.model_copy(update={"max_length": context}), (said,))


def fitted_to_probe(chosen: ChosenOptions, layer: Mapping[str, Any], probe: Probe, model_name: str) -> ChosenOptions:
    """What a recipe sets and the model's fused experts don't take is left out, unless a person has set it; and what stays untrained."""
    config, change = suitability.without_what_experts_refuse(chosen.config, probe)
    notices = list(chosen.notices)
    if any(_sets(layer, key) for key in change):
        config, change = chosen.config, {}
    for key, value in change.items():
        notices.append(f"{key} is {value} instead of the recipe's: peft's LoRA on the fused experts of {model_name} takes no other.")
    return ChosenOptions(config, (*notices, *suitability.notices(config, probe)))


def _sets(layer: Mapping[str, Any], key: str) -> bool:
    """Whether a layer sets a dotted key, written dotted or in sections."""
    section, _, name = key.partition(".")
    inner = layer.get(section)
    return key in layer or (isinstance(inner, Mapping) and name in inner)
