"""The folder of a base model as a model of text: its configuration, the class for its text part, its weights.

Trainer, engine, exports and checks all load a base through here, so that they mean the same model. Runs no code of a folder. Imports
transformers, and torch with it, only when a function is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.sections import RopeSection
from studio.catalogue import rope
from studio.catalogue.models import read_json
from studio.catalogue.wrappers import without_code
from studio.errors import ModelError, plain

# attn_implementation -> the flag of a model class that has code for it
ATTENTION = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn", "flex_attention": "_supports_flex_attn"}


def config_of(folder: Path, positions: RopeSection | None = None) -> Any:
    """config.json as transformers' configuration, without anything that chooses code. Raises ModelError.

    `positions`: instead of the base's own, as a job trains or an adapter was trained.
    """
    return configuration(rope.scaled(read_json(folder / "config.json"), positions or RopeSection()), str(folder))


def configuration(values: Mapping[str, Any], name: str) -> Any:
    """What a config.json holds, in the same way. `name`: of the model, for the error."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{name} is of model_type {plain(kind)!r}, which the installed transformers does not know.", "Use another model.")
    # transformers writes infinity as {"__float__": "Infinity"}
    found = CONFIG_MAPPING[kind].from_dict(PreTrainedConfig._decode_special_floats(without_code(dict(values))))
    check_own_keys(found, name)
    return found


def check_own_keys(config: Any, name: str) -> None:
    """Raises ModelError for a model whose layers all read the keys and values of another one, such as Gemma 4's assistants."""
    text = getattr(config, "text_config", None) or config
    shared, layers = (getattr(text, key, None) for key in ("num_kv_shared_layers", "num_hidden_layers"))
    if isinstance(shared, int) and isinstance(layers, int) and 0 < layers <= shared:
        raise ModelError(
            f"{name} is of model_type {config.model_type!r}, which only drafts for a larger model: all of its layers read that one's keys and "
            "values, so it can't write alone.",
            "Add the larger model instead.",
        )


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a configuration as a model of text. Raises ModelError where there is none.

    AutoModelForCausalLM takes the text part of some multimodal models and the whole of others. Those that it does not know answer
    text as a whole too, through AutoModelForImageTextToText.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    raise ModelError(
        f"The installed transformers has no causal language model for model_type {config.model_type!r}.",
        "Use a chat or text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2.",
    )


def family_of(config: Any) -> tuple[Any, Any]:
    """The model's own class, and the configuration that it takes: of a multimodal model's text part where only that is loaded."""
    family = auto_class(config)._model_mapping[type(config)]
    text = config.sub_configs.get("text_config")
    if text is not None and getattr(family, "config_class", None) == text:  # as from_pretrained decides
        return family, config.get_text_config()
    return family, config


def without_weights(config: Any, **options: Any) -> Any:
    """The model of a configuration on the meta device, as `load` makes it: its modules and shapes. `options`: of the class, such as dtype."""
    import torch

    family, own = family_of(config)
    with torch.device("meta"):
        return family._from_config(own, **options).eval()


def load(folder: Path, *, config: Any = None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of its loading. `config`: instead of the folder's own; `options`: of from_pretrained."""
    config = config or config_of(folder)
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0  # RWKV would divide its own weights to answer, and not those of an adapter beside them
    fixed = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    model, report = auto_class(config).from_pretrained(str(folder), config=config, **options, **fixed)
    forget_lengths(model)
    return model, report


def forward_names(model: Any) -> frozenset[str]:
    """The arguments that a model's forward takes by name.

    Wrappers pass `position_ids` on to their text model without naming it; without it a padded row of a batch would be read at wrong positions.
    """
    own = inspect.signature(model.forward).parameters
    passes_on = hasattr(model, "get_decoder") and any(one.kind is one.VAR_KEYWORD for one in own.values())
    inner = inspect.signature(model.get_decoder().forward).parameters if passes_on else own
    return frozenset(own) | ({"position_ids"} & inner.keys())


def forget_lengths(model: Any) -> None:
    """Have dynamic positions follow each text alone: transformers keeps those of the longest text so far for the shorter ones after it."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, "original_max_seq_len"):
            module.register_forward_pre_hook(_forget_length)


def _forget_length(module: Any, _: Any) -> None:
    kinds = [f"{kind}_" for kind in module.rope_type] if isinstance(module.rope_type, Mapping) else [""]
    for kind in kinds:
        if hasattr(module, f"{kind}inv_freq"):
            setattr(module, f"{kind}max_seq_len_cached", module.original_max_seq_len)
            setattr(module, f"{kind}inv_freq", getattr(module, f"{kind}original_inv_freq"))
