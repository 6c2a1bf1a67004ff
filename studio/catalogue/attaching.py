"""One way to put an adapter on a base: peft's own, which knows how saved names become those of the loaded model.

Fused experts, renamed layers and the prefixes of multimodal models are peft's and transformers' to resolve. Check, engine and exports
ask here, so that an adapter that is accepted is one that answers. Imports peft, and torch with it, only when a function is called.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from jobs import bottleneck
from studio.catalogue import fused
from studio.catalogue.models import read_json
from studio.errors import message_of


class Misfit(Exception):
    """Why an adapter does not belong to a base, as the end of a sentence."""


def attach(model: Any, folder: Path, name: str, device: str) -> tuple[Any, list[str]]:
    """`model`, a base or a peft model with other adapters, with the adapter of `folder` as `name`; and the tensors that its file lacks.

    Raises Misfit. A peft model may then hold a half-made adapter of that name.
    """
    from peft import PeftConfig, PeftModel, PeftModelForCausalLM

    fused.prepare_peft()
    if read_json(folder / "adapter_config.json").get("peft_type") == bottleneck.KIND:
        bottleneck.register()
    try:
        config = PeftConfig.from_pretrained(str(folder))
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        # what transformers renames when it loads a multimodal checkpoint; peft looks it up for the first adapter only
        renamed = {} if config.is_prompt_learning else getattr(base, "_checkpoint_conversion_mapping", {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is missing, which the caller says
            if not isinstance(model, PeftModel):
                config.inference_mode = True
                kinds = {"CAUSAL_LM": PeftModelForCausalLM}
                model = kinds.get(str(getattr(config.task_type, "value", config.task_type)), PeftModel)(model, config, adapter_name=name)
            result = model.load_adapter(str(folder), adapter_name=name, torch_device=device, key_mapping=renamed)
    except (RuntimeError, ValueError, KeyError) as exc:  # peft's words for layers of another shape, or that are not there
        raise Misfit(_reason(exc, name)) from None
    if result.unexpected_keys and not config.is_prompt_learning:  # whose tensors are no parameters of the model
        raise Misfit(f"this base has no layer {layer(result.unexpected_keys[0], name)}")
    return model, list(result.missing_keys)


def config_for(base: Any, folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA after peft has adapted it to the loaded base. Raises Misfit."""
    from peft import PeftConfig
    from peft.utils import transformers_weight_conversion as conversion

    fused.prepare_peft()
    try:
        config = PeftConfig.from_pretrained(str(folder))
        conversion.convert_peft_config_for_transformers(config, base, conversions=None)
    except (ValueError, TypeError) as exc:
        raise Misfit(message_of(exc)) from None
    return dict(config.to_dict())


def _reason(exc: Exception, name: str) -> str:
    """peft's words for layers that are not there or of another size, in ours; its own for others. Raises `exc` where it is about neither."""
    said = " ".join(str(exc).split())
    if found := re.search(r"size mismatch for (\S+):", said):
        return f"its layer {layer(found[1], name)} has another size there"
    if isinstance(exc, RuntimeError):  # want of memory, for one
        raise exc
    if found := re.search(r"Target modules \W*([\w.]+).* not found in the base model", said):
        return f"this base has no layer {found[1]}"
    return message_of(exc)


def layer(tensor: str, name: str) -> str:
    """The layer that a tensor of the adapter `name` belongs to."""
    bare = tensor.removeprefix("base_model.model.").replace(f".{name}.", ".")
    return bare.partition(".lora_")[0].removesuffix(".weight")
