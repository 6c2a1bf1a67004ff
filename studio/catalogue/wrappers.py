"""What a config.json describes: a text model, or one that wraps it with others; and which of its keys name code.

A published multimodal folder trains and chats as its text model. Knows no files, and loads no library: studio.catalogue.text_models does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from studio.catalogue import library
from studio.errors import ModelError, listed, plain

CAUSAL, WRAPPED = "AutoModelForCausalLM", "AutoModelForImageTextToText"
TEXT = "text_config"
IGNORED = ("auto_map", "custom_pipelines")  # they name code that transformers would have to be allowed to run
CHOOSING = ("attn_implementation", "experts_implementation")  # with any number of leading underscores; may name code of the hub
OF_CLASSIFIERS = ("num_labels", "id2label", "label2id")  # a base writes; transformers makes a name for each of any number of labels
NO_TEXT_MODEL = "Use a chat or text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2."


@dataclass(frozen=True)
class TextModel:
    """How a folder is loaded. `auto_class`: the class of transformers that does it; `others`: the parts that text never reaches."""

    auto_class: str
    architecture: str  # the class that is built
    others: tuple[str, ...] = ()  # keys of config.json, such as vision_config

    def note(self) -> str:
        """What a person should know; "" for a plain text model."""
        if not self.others:
            return ""
        return (
            f"A multimodal model, used as its text model: it reads no images or sound, and its weights for them "
            f"({listed(map(plain, self.others))}) are neither trained nor changed."
        )


def text_model(config: Mapping[str, Any]) -> TextModel:
    """From config.json alone. Raises ModelError for what is no text model of the installed transformers."""
    name = architecture(config)
    if not name:
        raise ModelError("config.json names no architecture.", "Use a model that was saved with transformers' save_pretrained.")
    kind, others = config.get("model_type"), _others(config)
    is_wrapper, inner = name in _kinds(library.IMAGE_TEXT, kind), text_part(config).get("model_type")
    built = _kinds(library.CAUSAL_LM, kind)
    if is_wrapper and built and others and not text_part(config):
        raise ModelError(
            f"config.json describes {listed(map(plain, others))} and no {TEXT}.", "Use the config.json that was published with the model."
        )
    if name in library.classes(library.CAUSAL_LM):
        return TextModel(CAUSAL, name, others)
    if is_wrapper and built:
        return TextModel(CAUSAL, built[0], others)
    if is_wrapper and _kinds(library.CAUSAL_LM, inner):
        return TextModel(WRAPPED, name, others)
    if is_wrapper and inner:
        raise ModelError(
            f"{name} is multimodal, and its text part ({plain(inner)}) is no causal language model that the installed transformers knows.",
            NO_TEXT_MODEL,
        )
    raise ModelError(f"{name} is no causal language model that the installed transformers knows.", NO_TEXT_MODEL)


def architecture(config: Mapping[str, Any]) -> str:
    """As config.json names it, on one line; "" where it does not."""
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return plain(names[0])
    return ""


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the text model; empty where the whole file does."""
    inner = config.get(TEXT)
    if isinstance(inner, dict):
        return inner
    return {}


def context(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """Tokens that the text model reads, or its class's default; 0 where neither says. `keys`: the names for it."""
    for place in (text_part(config), config, library.completed(text_part(config)), library.completed(config)):
        for key in keys:
            if isinstance(place.get(key), int) and place[key] > 0:
                return int(place[key])
    return 0


def ignored_code(config: Mapping[str, Any]) -> list[str]:
    """Keys of config.json that name code, and that nothing here reads: transformers has its own code for the model_type."""
    if not library.is_built_in(config.get("model_type")):
        return []
    return sorted({key for key, _ in code_keys(config) if key in IGNORED})


def code_keys(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key, at any depth, by which a file could choose code, with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner not in (None, {}, "") and (key in IGNORED or key.lstrip("_").startswith(CHOOSING)):
                yield key, inner
            yield from code_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from code_keys(inner)


def without_code(value: Any) -> Any:
    """`value` without any of these keys, and without the labels of classifiers."""
    if isinstance(value, list):
        return [without_code(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    left_out = (*IGNORED, *OF_CLASSIFIERS)
    return {k: without_code(v) for k, v in value.items() if k not in left_out and not k.lstrip("_").startswith(CHOOSING)}


def _kinds(name: str, kind: object) -> tuple[str, ...]:
    if not isinstance(kind, str):
        return ()
    return library.mapping(name).get(kind, ())


def _others(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Descriptions of models beside the text, in a file that describes several."""
    if not text_part(config) and architecture(config) not in library.classes(library.IMAGE_TEXT):
        return ()
    none = (TEXT, "quantization_config", "generation_config")
    return tuple(key for key, value in config.items() if key.endswith("_config") and key not in none and isinstance(value, dict))
