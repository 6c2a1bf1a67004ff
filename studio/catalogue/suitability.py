"""What a model can't do with a configuration, by its probe: each reason with the change that removes it. Asks nothing and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs import bottleneck
from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue import anatomy, fused, reach
from studio.catalogue.compatibility import Conflict
from studio.catalogue.trainable import PROMPTS
from studio.records import Probe, WeightForm, WeightKind


def conflicts(config: JobConfig, probe: Probe) -> list[Conflict]:
    """Everything that stands against training this model so."""
    return [*_attention(config, probe), *_packing(config, probe), *_method(config, probe), *_experts(config, probe)]


def notices(config: JobConfig, probe: Probe) -> list[str]:
    """What a person should know before a launch: what learns nothing, and what stays in 16 bits."""
    found = []
    if config.method == "lora" and config.lora.target_modules == ALL_LINEAR and probe.targets.left_out:
        found.append(reach.sentence(probe.targets.share, probe.targets.left_out))
    if config.method == "ia3" and config.ia3.target_modules == "auto" and (ia3 := probe.methods.get("ia3")):
        found.append(f"IA3 scales layers with {reach.percent(ia3.share)} of the weights of its blocks.")
    share = fused_share(probe)
    if config.quantization.load_in_8bit and share:
        found.append(f"The experts ({reach.percent(share)} of the weights of its blocks) stay in 16 bits: 8 bits are for linear layers.")
    if probe.text_prefix and config.method != "full":
        found.append(f"Only its text model ({probe.text_prefix}) is trained.")
    return found


def without_what_experts_refuse(config: JobConfig, probe: Probe) -> tuple[JobConfig, dict[str, Any]]:
    """`config` with the options of LoRA that fused experts don't take set to those that they do, and these."""
    change = unfit_for_experts(config, probe)
    if not change:
        return config, {}
    values = {key.partition(".")[2]: value for key, value in change.items()}
    return config.model_copy(update={"lora": config.lora.model_copy(update=values)}), change


def unfit_for_experts(config: JobConfig, probe: Probe) -> dict[str, Any]:
    """Dotted options that peft's wrapper of fused experts does not take, with the values that it does."""
    if not _targets_experts(config, probe):
        return {}
    return fused.refused_options(config.lora)


def fused_share(probe: Probe) -> float:
    """Of the weights in the blocks, those of experts that are stored as one tensor."""
    weights = [(weight, len(block.layers)) for block in probe.blocks for weight in block.weights if weight.kind != WeightKind.NORM]
    total = sum(weight.weights * count for weight, count in weights) or 1
    return sum(weight.weights * count for weight, count in weights if weight.form == WeightForm.EXPERTS) / total


def _attention(config: JobConfig, probe: Probe) -> Iterator[Conflict]:
    wanted = config.attn_implementation
    if wanted != "auto" and wanted not in probe.attention:
        yield Conflict(f"{probe.class_name} has no attention code for {wanted}", {"attn_implementation": "auto"})


def _packing(config: JobConfig, probe: Probe) -> Iterator[Conflict]:
    if not config.packing:
        return
    kinds = {weight.kind for block in probe.blocks for weight in block.weights} & set(anatomy.CARRY)
    if kinds:
        names = ", ".join(sorted(reach.WORDS[kind] for kind in kinds))
        yield Conflict(f"{probe.class_name} carries a state from one packed row into the next ({names})", {"packing": False})
    elif config.attn_implementation == "auto" and "sdpa" not in probe.attention:
        yield Conflict(f"{probe.class_name} has eager attention only, which does not keep packed rows apart", {"packing": False})


def _method(config: JobConfig, probe: Probe) -> Iterator[Conflict]:
    if config.method == "lora":
        if not probe.targets.accepted:
            yield Conflict(f"peft makes no LoRA for {probe.class_name} ({probe.targets.reason})", *_other_method(probe))
        elif config.lora.target_modules == ALL_LINEAR and not probe.targets.share:
            yield Conflict(f"no LoRA reaches a layer of {probe.class_name}", *_other_method(probe))
        return
    if config.method == "bottleneck":
        yield from _bottleneck(config, probe)
        return
    found = probe.methods.get(config.method)
    chooses_itself = config.method in PROMPTS or (config.method == "ia3" and config.ia3.target_modules == "auto")
    if found is not None and chooses_itself and not found.accepted:
        yield Conflict(f"method {config.method} does not work on {probe.class_name}: {found.reason}", *_lora_or_other(probe))
    elif config.method == "ia3" and chooses_itself and found is not None and not found.share:
        yield Conflict(f"IA3 scales no layer of {probe.class_name}", *_lora_or_other(probe))


def _bottleneck(config: JobConfig, probe: Probe) -> Iterator[Conflict]:
    """It goes behind layers of known names, and behind none that are stored as one tensor."""
    layers = [f".{weight.name}" for block in probe.blocks for weight in block.weights if weight.form == WeightForm.LINEAR]
    if bottleneck.targets(layers, config.bottleneck.mh_adapter):
        return
    because = f"{probe.class_name} has no layers behind which adapters are known to go"
    if bottleneck.targets(layers, mh_adapter=True):
        yield Conflict(f"{because}, but for those of its attention", {"bottleneck.mh_adapter": True})
    else:
        yield Conflict(because, *_lora_or_other(probe))


def _lora_or_other(probe: Probe) -> tuple[Mapping[str, Any], str]:
    """Another method that trains this model."""
    if probe.targets.accepted and probe.targets.share:
        return {"method": "lora"}, ""
    return _other_method(probe)


def _other_method(probe: Probe) -> tuple[Mapping[str, Any], str]:
    other = next((method for method, found in probe.methods.items() if found.accepted and method in PROMPTS), "")
    if other:
        return {"method": other}, ""
    return {}, "Choose another base model."


def _experts(config: JobConfig, probe: Probe) -> Iterator[Conflict]:
    unfit = unfit_for_experts(config, probe)
    if not unfit:
        return
    advice = fused.way_around(unfit, probe.targets.modules)
    names = ", ".join(key.partition(".")[2] for key in unfit)
    yield Conflict(f"the experts of {probe.class_name} are stored as one tensor, on which peft's LoRA takes no {names}", unfit, advice)


def _targets_experts(config: JobConfig, probe: Probe) -> bool:
    if config.method != "lora" or not probe.targets.parameters:
        return False
    wanted = config.lora.target_modules
    names = [wanted] if isinstance(wanted, str) else wanted
    return any(name == ALL_LINEAR or _means(name, tensor) for name in names for tensor in probe.targets.parameters)


def _means(name: str, tensor: str) -> bool:
    holder = tensor.rpartition(".")[0]
    return f".{tensor}".endswith(f".{name}") or f".{holder}".endswith(f".{name}")
