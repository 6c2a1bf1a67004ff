"""What is trained: each method of JobConfig as peft's configuration, and what its adapter folder holds. Knows no rows and no objective.

Two kinds need care on the way to the disk. PiSSA starts by moving the base's main directions into the adapter, so what is saved
is the difference to that start, a plain LoRA of twice the rank for the untouched base. Virtual tokens made by a network are saved
as tokens, which chat needs; checkpoints also hold the network (see `keeps_raw`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import bottleneck
from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from jobs.trainers.text_layers import TextLayers
from studio.catalogue import fused
from studio.catalogue.targets import LoraTargets, learning_layers, lora_targets
from studio.errors import ModelError, listed

if TYPE_CHECKING:
    import torch

PROMPT_FAMILY = ("prompt-tuning", "p-tuning", "prefix-tuning")
Tensors = dict[str, "torch.Tensor"]


def peft_config(
    config: JobConfig, model: Any, folder: Path, tell: Callable[[str], None] = print, found_targets: LoraTargets | None = None
) -> Any:
    """peft's configuration of this job's method; `tell` hears what a person should know. Raises ModelError where no layer fits.

    `found_targets`: of `targets`, where it has been asked already.
    """
    fused.prepare_peft()
    if config.method == "full" and (left := TextLayers(model).left_out):
        tell(f"Full training leaves {listed(left)} as they are: they lie beside layers, and peft copies layers only.")
    if config.method != "lora":
        return _MAKERS[config.method](config, model, folder)
    found = _lora(config, found_targets or targets(config, model))
    if config.lora.use_dora and (dead := _with_dead_rows(model)):
        found.exclude_modules = dead
        tell(f"DoRA leaves out {len(dead)} layers, such as {dead[0]}: it divides by the length of each row of weights, and some are zero.")
    return found


def targets(config: JobConfig, model: Any, plain: Any = None) -> LoraTargets | None:
    """Where a LoRA goes in this model; None for other methods. `plain`: the same model without weights, where these are quantised.

    Raises ModelError where it can't.
    """
    if config.method != "lora":
        return None
    found = lora_targets(plain or model, config.lora.target_modules, learning_layers(model))
    if not found.modules and not found.parameters:
        raise ModelError(
            f"{config.base_model} has no layer that a LoRA can go to.",
            "Choose method prompt-tuning, or another base model.",
            remedy={"method": "prompt-tuning"},
        )
    if found.parameters:
        _check_takes_experts(config, found)
    return found


def _check_takes_experts(config: JobConfig, found: LoraTargets) -> None:
    """Raises ModelError for what peft's wrapper of fused experts can't do."""
    refused = fused.refused_options(config.lora)
    if not refused:
        return
    raise ModelError(
        f"The experts of {config.base_model} are stored as one tensor, on which peft's LoRA takes no {', '.join(refused)}.",
        fused.way_around(refused, found.modules),
        remedy=refused,
    )


def keeps_raw(config: JobConfig) -> bool:
    """Whether a checkpoint needs the trained tensors themselves, because the adapter folder holds something made from them."""
    return config.method in PROMPT_FAMILY or is_pissa(config)


def describe(config: JobConfig) -> str:
    """The method in a few words, for a model card."""
    bits = config.quantization.bits
    if config.method != "lora":
        return f"{config.method} ({bits}-bit base)"
    extras = {"rsLoRA": config.lora.use_rslora, "DoRA": config.lora.use_dora, "PiSSA": is_pissa(config)}
    words = [{4: "QLoRA"}.get(bits, "LoRA"), *(name for name, used in extras.items() if used)]
    return f"{' with '.join(words)} ({bits}-bit base), rank {config.lora.r}"


def is_pissa(config: JobConfig) -> bool:
    return config.method == "lora" and config.lora.init_lora_weights == "pissa"


def raw(model: Any) -> Tensors:
    """Everything that is trained, as it is trained."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def take_raw(model: Any, state: Tensors) -> None:
    """Raises ValueError when the tensors are not this model's."""
    parameters = raw(model)
    if parameters.keys() != state.keys():
        raise ValueError(f"the checkpoint's tensors are not this model's ({len(parameters.keys() ^ state.keys())} differ)")
    for name, tensor in state.items():
        parameters[name].copy_(tensor)


def plain_lora(state: Tensors, start: Tensors) -> Tensors:
    """LoRA matrices [2r, in] and [out, 2r] whose product is the change since `start`, both under peft's names in a folder."""
    import torch

    found = dict(state)
    for name, tensor in state.items():
        if ".lora_A." in name:
            found[name] = torch.cat([tensor, start[name]], dim=0)
        elif ".lora_B." in name:
            found[name] = torch.cat([tensor, -start[name]], dim=1)
    return found


def saved_config(config: JobConfig, values: dict[str, Any]) -> dict[str, Any]:
    """adapter_config.json's values for what is saved, which needs no start of its own when it is loaded."""
    if is_pissa(config):
        alpha = values["lora_alpha"] * (math.sqrt(2) if values["use_rslora"] else 2)
        return {**values, "r": 2 * values["r"], "lora_alpha": alpha, "init_lora_weights": True}
    if config.method == "prompt-tuning":
        started = ("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
        return {**values, "prompt_tuning_init": "RANDOM", **dict.fromkeys(started)}
    return values


def faster_second_matrix(trainer: Any, config: JobConfig) -> None:
    """LoRA+ (Hayou et al. 2024): the optimizer with a higher rate for the B matrices."""
    ratio = config.lora.loraplus_lr_ratio
    if config.method != "lora" or ratio is None:
        return
    from peft.optimizers import create_loraplus_optimizer

    kind, values = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer = create_loraplus_optimizer(model=trainer.model, optimizer_cls=kind, loraplus_lr_ratio=ratio, **values)


def _lora(config: JobConfig, found: LoraTargets | None) -> Any:
    from peft import LoraConfig

    assert found is not None
    values = config.lora.model_dump(exclude={"loraplus_lr_ratio", "target_modules"})
    values["init_lora_weights"] = _start(config)
    modules, parameters = list(found.modules), list(found.parameters) or None
    return LoraConfig(task_type="CAUSAL_LM", target_modules=modules, target_parameters=parameters, **values)


def _with_dead_rows(model: Any) -> list[str]:
    """Linear layers in which a row of weights is zero: DoRA would make numbers that are none."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    ends = [model.get_output_embeddings()]
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not any(m is end for end in ends)]
    return [name for name, layer in layers if (dequantize_module_weight(layer).float().norm(dim=1) == 0).any()]


def _start(config: JobConfig) -> Any:
    return True if config.lora.init_lora_weights == "default" else config.lora.init_lora_weights


def _ia3(config: JobConfig, model: Any, folder: Path) -> Any:
    from peft import IA3Config
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    if config.ia3.target_modules != "auto":
        _check_layers(model, config, config.ia3.target_modules)
        return IA3Config(task_type="CAUSAL_LM", **{**config.ia3.model_dump(), "feedforward_modules": config.ia3.feedforward_modules or []})
    if model.config.model_type not in KNOWN:
        raise ModelError(
            f"IA3 knows no layers of {model.config.model_type} models.",
            "Name them in ia3.target_modules and ia3.feedforward_modules, or choose method lora.",
        )
    return IA3Config(task_type="CAUSAL_LM")


def _prompt_tuning(config: JobConfig, model: Any, folder: Path) -> Any:
    from peft import PromptTuningConfig

    text = config.prompt.prompt_tuning_init_text
    start = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": str(folder)} if text else {}
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=config.prompt.num_virtual_tokens,
        **(start or {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    )


def _p_tuning(config: JobConfig, model: Any, folder: Path) -> Any:
    from peft import PromptEncoderConfig

    return PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=config.prompt.num_virtual_tokens, encoder_hidden_size=_width(config, model)
    )


def _prefix_tuning(config: JobConfig, model: Any, folder: Path) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=config.prompt.num_virtual_tokens,
        prefix_projection=config.prompt.prefix_projection,
        encoder_hidden_size=_width(config, model),
    )


def _width(config: JobConfig, model: Any) -> int:
    return config.prompt.encoder_hidden_size or int(model.config.get_text_config().hidden_size)


def _bottleneck(config: JobConfig, model: Any, folder: Path) -> Any:
    layers = TextLayers(model)
    ends = bottleneck.targets(layers.names, config.bottleneck.mh_adapter)
    names = layers.ending_with(ends)
    if not names:
        raise ModelError(f"{config.base_model} has no layers behind which adapters are known to go.", "Choose method lora.")
    return bottleneck.register()(
        task_type="CAUSAL_LM",
        target_modules=names,
        reduction_factor=config.bottleneck.reduction_factor,
        non_linearity=config.bottleneck.non_linearity,
    )


def _full(config: JobConfig, model: Any, folder: Path) -> Any:
    """Every layer of the text: a trained copy beside the frozen one. peft's LN tuning keeps such copies of whatever it is given."""
    from peft import LNTuningConfig

    layers = TextLayers(model)
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=layers.meaning(layers.copied), modules_to_save=layers.ends)


def _check_layers(model: Any, config: JobConfig, wanted: str | list[str]) -> None:
    """Raises ModelError where the model has no layers of these names, which IA3 was given."""
    wanted = [wanted] if isinstance(wanted, str) else wanted
    names = [name for name, _ in model.named_modules()]
    missing = [t for t in wanted if t != ALL_LINEAR and not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        present = sorted({name.rpartition(".")[2] for name in names if name.endswith(("_proj", "_attn", "_fc", "fc1", "fc2", "dense"))})
        raise ModelError(
            f"{config.base_model} has no layers named {', '.join(missing)}.",
            f"Set ia3.target_modules to auto{', or to some of ' + ', '.join(present) if present else ''}.",
        )


_MAKERS = {
    "ia3": _ia3,
    "prompt-tuning": _prompt_tuning,
    "p-tuning": _p_tuning,
    "prefix-tuning": _prefix_tuning,
    "bottleneck": _bottleneck,
    "full": _full,
}
