"""Adapters of peft on experts that are stored as one tensor, also where these are kept in 4 bits.

peft's wrapper of parameters was made for plain tensors, and its conversion for transformers 5 takes some dense layers for experts.
Trainer, engine and exports prepare peft here, so that an adapter has the same names and the same effect on a quantised base as on a
whole one. Imports torch, peft and bitsandbytes in functions only.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jobs.sections import LoraSection
from studio.catalogue import anatomy


def prepare_peft() -> None:
    """Have peft keep dense layers apart from experts, and wrap quantised experts right. Done once per process."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import transformers_weight_conversion as conversion

    if getattr(ParamWrapper, "_is_prepared", False):
        return
    conversion.convert_peft_config_for_transformers = _converting(conversion.convert_peft_config_for_transformers)
    usual = conversion.convert_peft_adapter_state_dict_for_transformers
    conversion.convert_peft_adapter_state_dict_for_transformers = _renaming(usual)
    BaseTuner._inject_parameters = _injecting(BaseTuner._inject_parameters)
    ParamWrapper._activate_lora = _activating(ParamWrapper._activate_lora)
    ParamWrapper._remove_parametrizations = _removing(ParamWrapper._remove_parametrizations)
    ParamWrapper._is_prepared = True


def refused_options(lora: LoraSection) -> dict[str, Any]:
    """Dotted options that peft's wrapper of parameters does not take, with the values that it does."""
    found: dict[str, Any] = {}
    if lora.lora_dropout:
        found["lora.lora_dropout"] = 0.0
    if lora.use_dora:
        found["lora.use_dora"] = False
    if lora.init_lora_weights == "pissa":
        found["lora.init_lora_weights"] = "default"
    return found


def way_around(refused: Mapping[str, Any], layers: Iterable[str]) -> str:
    """What to do about `refused`, of `refused_options`. `layers`: names of linear layers that a LoRA can go to instead."""
    changes = " and ".join(f"{key}={json.dumps(value)}" for key, value in refused.items())
    linear = sorted({name.rpartition(".")[2] for name in layers})
    if not linear:
        return f"Set {changes}."
    return f"Set {changes}, or leave the experts out: lora.target_modules={json.dumps(linear)}."


def for_any_peft(values: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """adapter_config.json's values such that peft alone finds the same tensors.

    Of mixtures of experts peft reads some names of dense layers (`gate_proj`) as those of experts. As parameters
    (`…shared_expert.gate_proj.weight`) the same layers get the same matrices under the same names.
    """
    wanted = values.get("target_modules")
    if not isinstance(wanted, list):
        return dict(values)
    lost = [name for name in wanted if _is_misread(name, model)]
    if not lost:
        return dict(values)
    layers = [name for name in _adapted_layers(model) if any(name == end or name.endswith(f".{end}") for end in lost)]
    parameters = [*(values.get("target_parameters") or []), *(f"{name}.weight" for name in layers)]
    return {**values, "target_modules": [name for name in wanted if name not in lost], "target_parameters": sorted(parameters)}


def _is_misread(name: str, model: Any) -> bool:
    """Whether peft's conversion for transformers 5 makes something else of a layer's name."""
    from peft import LoraConfig
    from peft.utils import transformers_weight_conversion as conversion

    asked = LoraConfig(target_modules=[name])
    try:
        conversion._convert_peft_config_moe(asked, model)
    except ValueError:  # it wants the names of all parts of one tensor at once
        return True
    return name not in (asked.target_modules or ())


def _adapted_layers(model: Any) -> list[str]:
    """Names in the base of the layers that a peft model adapts as modules."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer) and not isinstance(module, ParamWrapper)]
    return [name.removeprefix("base_model.model.") for name in found]


def _converting(usual: Any) -> Any:
    """peft's conversion of an adapter's targets, which leaves alone what is the full name of a linear layer here."""

    def convert(peft_config: Any, model: Any, conversions: Any) -> None:
        layers = {name for name, module in model.named_modules() if anatomy.is_linear(module)}
        parameters = set(getattr(peft_config, "target_parameters", None) or ())
        dense = {name for name in parameters if name.removesuffix(".weight") in layers}
        names = getattr(peft_config, "target_modules", None)
        kept = set() if isinstance(names, str) or names is None else set(names) & layers
        kept |= {name.removesuffix(".weight") for name in dense}
        if not kept:
            usual(peft_config, model=model, conversions=conversions)
            return
        peft_config.target_parameters = sorted(parameters - dense) or None
        peft_config.target_modules = set(names or ()) - kept
        usual(peft_config, model=model, conversions=conversions)
        peft_config.target_modules = set(peft_config.target_modules) | kept
        peft_config.target_parameters = sorted(peft_config.target_parameters or ()) or None

    return convert


def _renaming(usual: Any) -> Any:
    """peft's renaming of an adapter's tensors for transformers 5, which leaves alone those that bear the model's own names."""

    def rename(model: Any, peft_config: Any, adapter_state_dict: dict[str, Any], adapter_name: str = "default") -> Any:
        own = {name.replace(f".{adapter_name}.", ".") for name, _ in model.named_parameters() if ".lora_" in name}
        known = {name: tensor for name, tensor in adapter_state_dict.items() if name in own}
        others = {name: tensor for name, tensor in adapter_state_dict.items() if name not in own}
        if not known or not others:
            return known or usual(model, peft_config, adapter_state_dict, adapter_name)
        return {**usual(model, peft_config, others, adapter_name), **known}

    rename.usual = usual  # type: ignore[attr-defined]
    return rename


def misnamed_by_peft(model: Any, state: Mapping[str, Any]) -> list[str]:
    """Of an adapter's tensors those that peft alone would not find again, since it takes the model's own names for older ones."""
    from peft.utils import transformers_weight_conversion as conversion

    usual = getattr(conversion.convert_peft_adapter_state_dict_for_transformers, "usual", None)
    if usual is None:
        return []
    found = usual(model, model.peft_config["default"], dict(state), "default")
    return sorted(set(state) - set(found))


def _injecting(usual: Any) -> Any:
    """peft's wrapping of parameters, which for quantised ones compares full names only and nests in another order."""

    def inject(self: Any, peft_config: Any, model: Any, adapter_name: str, low_cpu_mem_usage: bool) -> Any:
        kept = _kept_in_4_bits(model)
        if not kept:
            return usual(self, peft_config, model, adapter_name, low_cpu_mem_usage)
        asked = copy.copy(peft_config)
        asked.target_parameters = sorted(_full_names(peft_config.target_parameters, kept))
        found = usual(self, asked, model, adapter_name, low_cpu_mem_usage)
        _nest_in_order(model)
        return found

    return inject


def _kept_in_4_bits(model: Any) -> list[str]:
    """Names of quantised tensors, as if they were plain parameters."""
    found = []
    for name, module in model.named_modules():
        base = ".".join(step for step in name.split(".") if step != "base_layer")
        found += [f"{base}.{own}" for own in getattr(module, "parametrizations", {})]
    return found


def _full_names(targets: Iterable[str], kept: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for target in targets:
        found |= {name for name in kept if name == target or name.endswith(f".{target}")} or {target}
    return found


def _nest_in_order(model: Any) -> None:
    """Wrappers around one module in the order of its tensors, the first inside: names of an adapter's tensors depend on it."""
    from peft.tuners.lora.layer import ParamWrapper

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, ParamWrapper) or isinstance(parent, ParamWrapper):
                continue
            chain = list(_chain(child))
            base = chain[-1].base_layer
            order = list(getattr(base, "parametrizations", {})) or [own for own, _ in base.named_parameters(recurse=False)]
            inner = base
            for wrapper in sorted(chain, key=lambda one: order.index(one.parameter_name)):
                wrapper.base_layer = inner
                inner = wrapper
            setattr(parent, name, inner)


def _chain(wrapper: Any) -> Iterator[Any]:
    from peft.tuners.lora.layer import ParamWrapper

    while isinstance(wrapper, ParamWrapper):
        yield wrapper
        wrapper = wrapper.base_layer


def _activating(usual: Any) -> Any:
    """The update of a tensor while a forward pass runs; what an outer wrapper has cached of it was computed without."""

    @contextmanager
    def activate(self: Any, active_adapters: list[str]) -> Iterator[None]:
        from torch.nn.utils import parametrize

        with usual(self, active_adapters):
            parametrize._cache.pop((id(self.get_base_layer()), self.parameter_name), None)
            yield

    return activate


def _removing(usual: Any) -> Any:
    """Its end: the update goes, the quantisation stays."""

    def remove(self: Any) -> None:
        # the engine keeps bitsandbytes out until a quantised base is asked for
        quantised = getattr(sys.modules.get("bitsandbytes.nn.parametrize"), "Bnb4bitParametrization", ())
        steps = self.get_base_layer().parametrizations[self.parameter_name]
        if not isinstance(steps[0], quantised):
            usual(self)
            return
        del steps[len(steps) - 1]

    return remove
