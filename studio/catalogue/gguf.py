"""What of a model a GGUF file can carry: its family, its positions, its tokenizer. Reads JSON, writes nothing.

GGUF states sizes and names; what a family computes with them is written into llama.cpp. So each family says here how llama.cpp
stores it and what it takes for granted, and a model of which that is not true is refused. Tensor names are asked of gguf's own
maps. Knows neither torch nor the format's bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.catalogue.gguf_vocabulary import OTHER_FORMATS, read_vocabulary
from studio.catalogue.models import read_json
from studio.catalogue.rope import ORIGINAL, base_positions
from studio.errors import ModelError

TANH = "gelu_pytorch_tanh"
INSTALL = "Install it with `pip install 'adapter-studio[llama-cpp]'`, which needs a C++ compiler and cmake"
ROPES = ("default", "linear", "llama3", "yarn", "longrope")  # kinds of positions that are written; llama.cpp knows no dynamic ones
WITH_LONGROPE = ("phi3",)  # of these families, those in which llama.cpp looks for the factors of longrope


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp stores and computes a family."""

    name: str  # general.architecture in the file
    activation: str = "silu"
    rotates_pairs: bool = False  # it turns neighbouring rows of a head, where transformers turns row i with row i + half
    norm_offset: float = 0.0  # transformers adds it to the weights of norms while it computes, llama.cpp wants it added
    windows: bool = False  # it computes sliding windows
    needs_head: bool = False  # it wants the output layer in the file even where that is the embedding
    biases: tuple[str, ...] = ()  # of attention_bias and mlp_bias: those that it reads
    granted: Mapping[str, Any] = field(default_factory=dict)  # what it takes for granted of the config


_LLAMA = GgufFamily("llama", rotates_pairs=True)
_OLMO2 = GgufFamily("olmo2", windows=True, needs_head=True)
_GEMMA3 = GgufFamily("gemma3", TANH, norm_offset=1.0, windows=True, granted={"use_bidirectional_attention": False})
FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": GgufFamily("qwen2"),
    "Qwen2MoeForCausalLM": GgufFamily("qwen2moe", needs_head=True, granted={"norm_topk_prob": False}),
    "Qwen3ForCausalLM": GgufFamily("qwen3"),
    "Qwen3MoeForCausalLM": GgufFamily("qwen3moe", granted={"norm_topk_prob": True}),
    "GemmaForCausalLM": GgufFamily("gemma", TANH, norm_offset=1.0),
    "Gemma2ForCausalLM": GgufFamily("gemma2", TANH, norm_offset=1.0, windows=True),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": GgufFamily("phi3"),
    "SmolLM3ForCausalLM": GgufFamily("smollm3", rotates_pairs=True),
    "OlmoForCausalLM": GgufFamily("olmo", rotates_pairs=True),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO2,
    "OlmoeForCausalLM": GgufFamily("olmoe", needs_head=True, granted={"norm_topk_prob": False, "clip_qkv": None}),
    "GraniteForCausalLM": GgufFamily("granite", rotates_pairs=True),
    "GraniteMoeForCausalLM": GgufFamily("granitemoe", rotates_pairs=True),
    "Starcoder2ForCausalLM": GgufFamily("starcoder2", TANH, granted={"use_bias": True}),
    "SeedOssForCausalLM": GgufFamily("seed_oss", biases=("attention_bias",), granted={"attention_out_bias": False}),
}  # class of transformers -> family
NO_ROPE_EVERY = 4  # SmolLM3: llama.cpp turns no rows in every fourth layer


def check(folder: Path) -> GgufFamily:
    """The model's family. Raises ModelError with the reason why GGUF can't carry the model."""
    config = read_json(folder / "config.json")
    family = family_of(config)
    check_granted(family, {**config, **(config.get("text_config") or {})}, _class(config))
    read_vocabulary(folder)
    return family


def family_of(config: Mapping[str, Any]) -> GgufFamily:
    """Raises ModelError for a class that is not known here."""
    name = _class(config)
    if name not in FAMILIES:
        raise ModelError(f"Only {', '.join(FAMILIES)} can be written as GGUF here, and this is a {name}.", OTHER_FORMATS)
    return FAMILIES[name]


def check_granted(family: GgufFamily, config: Mapping[str, Any], name: str) -> None:
    """Raises ModelError where the config says otherwise than llama.cpp computes; what it leaves out is not looked at."""
    biases = [key for key in ("attention_bias", "mlp_bias") if config.get(key) and key not in family.biases]
    if biases and family.name != "qwen2":  # whose classes read no such key
        raise ModelError(f"This {name} has biases (attention_bias or mlp_bias), which its GGUF form lacks.", OTHER_FORMATS)
    activation = config.get("hidden_activation") or config.get("hidden_act") or family.activation
    if activation != family.activation:
        raise ModelError(f"This {name} uses {activation}, and GGUF knows {family.activation} for it.", OTHER_FORMATS)
    check_positions(family, config)
    if contradictions := list(_contradictions(family, config)):
        raise ModelError(f"llama.cpp computes {family.name} with {', '.join(contradictions)}.", OTHER_FORMATS)


def check_positions(family: GgufFamily, config: Mapping[str, Any]) -> None:
    """Raises ModelError for scaled positions that a file of this family can't state."""
    kind = rope(config)["rope_type"]
    if kind not in ROPES or (kind == "longrope" and family.name not in WITH_LONGROPE):
        raise ModelError(f"Its positions are scaled by {kind}, which can't be written as GGUF for {family.name}.", OTHER_FORMATS)


def has_quantizer() -> bool:
    """Whether llama.cpp's library is here; K-quants are made with it."""
    return importlib.util.find_spec("llama_cpp") is not None


def notes(family: GgufFamily, config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp does otherwise than the model, where that is no reason to refuse it."""
    window, context = config.get("sliding_window"), config.get("max_position_embeddings") or 0
    kinds = config.get("layer_types") or ["sliding_attention"]
    is_used = config.get("use_sliding_window") is not False and "sliding_attention" in kinds
    if family.windows or not window or not is_used or window >= context:
        return []
    return [
        f"The model looks back {window:,} tokens, and llama.cpp lets {family.name} look back over everything: texts longer than that read otherwise."
    ]


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings with rope_type, rope_theta, factor and the original context, wherever this config.json keeps them.

    Of a model whose layers differ, those of the layers that see everything.
    """
    base = base_positions(config)
    theta = base.parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    found = {**base.parameters, "rope_type": base.kind, "rope_theta": float(theta)}
    if base.is_scaled:
        found |= {"factor": base.factor, ORIGINAL: base.original}
    return found


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _class(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or ["an unnamed architecture"])[0])


def _contradictions(family: GgufFamily, config: Mapping[str, Any]) -> Iterator[str]:
    """What llama.cpp takes for granted and this config does not say, each as "KEY X (here Y)"."""
    for key, value in family.granted.items():
        if key in config and (config[key] or None) != (value or None):
            yield f"{key} {value} (here {config[key]})"
    if family.name in ("gemma2", "gemma3") and config.get("query_pre_attn_scalar") and config.get("head_dim"):
        expected = _gemma_scale(family, config)
        if config["query_pre_attn_scalar"] != expected:
            yield f"query_pre_attn_scalar {expected} (here {config['query_pre_attn_scalar']})"
    if family.name == "smollm3" and config.get("no_rope_layers"):
        turned = [bool(layer) for layer in config["no_rope_layers"]]
        if turned != [(layer + 1) % NO_ROPE_EVERY != 0 for layer in range(len(turned))]:
            yield f"rotary positions in all but every fourth layer (here no_rope_layers {config['no_rope_layers'][:8]})"
    heads = config.get("num_attention_heads")
    if family.name == "olmoe" and config.get("num_key_value_heads", heads) != heads:
        yield f"a key and value head for each of {heads} heads (here num_key_value_heads {config['num_key_value_heads']})"
    if family.name in ("granite", "granitemoe", "olmo", "olmo2", "olmoe", "phi3", "starcoder2") and config.get("head_dim"):
        expected = config["hidden_size"] // config["num_attention_heads"]
        if config["head_dim"] != expected:
            yield f"heads of {expected} (here head_dim {config['head_dim']})"


def _gemma_scale(family: GgufFamily, config: Mapping[str, Any]) -> int:
    """llama.cpp knows the 27B models by their layers, and scales the attention of all others by the size of a head."""
    if config.get("num_hidden_layers") == {"gemma2": 46, "gemma3": 62}[family.name]:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])
