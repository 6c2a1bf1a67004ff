"""The tensors of a decoder, from its config.json alone: every linear layer with its shape, and what else has parameters.

One line per family says which layers a block has, as transformers builds them; what no line describes is read from the usual
field names, and says so. Knows nothing of training, and loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from studio.catalogue import library
from studio.errors import ModelError

FIELDS = {
    "hidden": ("hidden_size", "n_embd", "d_model", "model_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "inner_dim", "d_ff"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active_experts": ("num_experts_per_tok", "moe_k", "num_experts_per_token"),
}
MOST = 10**7  # of any dimension: beyond it, a config is a mistake or an attack

QKVO = "q_proj:h>q k_proj:h>v v_proj:h>v o_proj:q>h"
GATED = "gate_proj:h>i up_proj:h>i down_proj:i>h"
PLAIN = "up_proj:h>i down_proj:i>h"
NEOX = "query_key_value:h>f dense:q>h dense_h_to_4h:h>i dense_4h_to_h:i>h"


@dataclass(frozen=True)
class Family:
    """How transformers builds the blocks of some model types.

    `linears`: `name:in>out` with the widths h hidden, q all query heads, v all key/value heads, f the three fused, i intermediate,
    d twice that. `biases`: names that have one, or a field of the config that decides for `:attention` and `:mlp`.
    """

    linears: str = f"{QKVO} {GATED}"
    biases: tuple[str, ...] = ()
    norms: int = 2  # of hidden width, per block
    norm_bias: bool = False  # LayerNorm with a bias, and its kind of memory
    qk_norm: str = ""  # "": none; "head": of a head's width; "full": of all heads'
    tied: bool = False  # what the library assumes where the config is silent
    head_bias: bool = False
    positions: int = -1  # learned position embeddings: so many more than the context; -1 none
    is_eager: bool = False  # no fused attention: the square of the length is kept
    drops_attention: float = 0.0  # the library's default of dropout inside attention
    is_gated: bool = True
    is_experts_wrapped: bool = True  # peft's all-linear takes the experts along


LAYER_NORM: dict[str, Any] = {"norm_bias": True, "is_gated": False}
FAMILIES: dict[str, Family] = {
    "llama": Family(biases=("attention_bias:attention", "mlp_bias:mlp")),
    "mistral": Family(),
    "mixtral": Family(),
    "qwen2": Family(biases=("q_proj", "k_proj", "v_proj")),
    "qwen2_moe": Family(biases=("q_proj", "k_proj", "v_proj")),
    "qwen3": Family(qk_norm="head", biases=("attention_bias:attention",)),
    "qwen3_moe": Family(qk_norm="head", biases=("attention_bias:attention",)),
    "gemma": Family(tied=True),
    "gemma2": Family(tied=True, norms=4, is_eager=True),
    "gemma3_text": Family(tied=True, norms=4, qk_norm="head"),
    "phi": Family(
        "q_proj:h>q k_proj:h>v v_proj:h>v dense:q>h fc1:h>i fc2:i>h",
        ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        norms=1,
        head_bias=True,
        **LAYER_NORM,
    ),
    "phi3": Family("qkv_proj:h>f o_proj:q>h gate_up_proj:h>d down_proj:i>h"),
    "gpt2": Family(
        "c_attn:h>f c_proj:q>h c_fc:h>i mlp.c_proj:i>h",
        ("c_attn", "c_proj", "c_fc", "mlp.c_proj"),
        tied=True,
        positions=0,
        drops_attention=0.1,
        **LAYER_NORM,
    ),
    "gpt_bigcode": Family(
        "c_attn:h>f c_proj:q>h c_fc:h>i mlp.c_proj:i>h",
        ("c_attn", "c_proj", "c_fc", "mlp.c_proj"),
        tied=True,
        positions=0,
        drops_attention=0.1,
        **LAYER_NORM,
    ),
    "gpt_neo": Family(
        "q_proj:h>q k_proj:h>v v_proj:h>v out_proj:q>h c_fc:h>i c_proj:i>h",
        ("out_proj", "c_fc", "c_proj"),
        tied=True,
        positions=0,
        is_eager=True,
        **LAYER_NORM,
    ),
    "gpt_neox": Family(NEOX, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), **LAYER_NORM),
    "gptj": Family(
        "q_proj:h>q k_proj:h>v v_proj:h>v out_proj:q>h fc_in:h>i fc_out:i>h",
        ("fc_in", "fc_out"),
        norms=1,
        head_bias=True,
        is_eager=True,
        **LAYER_NORM,
    ),
    "codegen": Family(
        "qkv_proj:h>f out_proj:q>h fc_in:h>i fc_out:i>h", ("fc_in", "fc_out"), norms=1, head_bias=True, is_eager=True, **LAYER_NORM
    ),
    "falcon": Family(NEOX, ("bias:attention", "bias:mlp"), norms=1, tied=True, **LAYER_NORM),
    "bloom": Family(NEOX, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), tied=True, is_eager=True, **LAYER_NORM),
    "mpt": Family("Wqkv:h>f out_proj:q>h up_proj:h>i down_proj:i>h", tied=True, is_eager=True, is_gated=False),
    "opt": Family(
        "q_proj:h>q k_proj:h>v v_proj:h>v out_proj:q>h fc1:h>i fc2:i>h",
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        tied=True,
        positions=2,
        **LAYER_NORM,
    ),
    "olmo": Family(norms=0),
    "olmo2": Family(qk_norm="full"),
    "olmo3": Family(qk_norm="full"),
    "olmoe": Family(qk_norm="full"),
    "granite": Family(biases=("attention_bias:attention", "mlp_bias:mlp")),
    "starcoder2": Family(
        f"{QKVO} c_fc:h>i c_proj:i>h", ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"), tied=True, **LAYER_NORM
    ),
    "stablelm": Family(norm_bias=True, biases=("use_qkv_bias:attention",)),
    "cohere": Family(norms=1, tied=True),
    "cohere2": Family(norms=1, tied=True),
    "glm4": Family("q_proj:h>q k_proj:h>v v_proj:h>v o_proj:q>h gate_up_proj:h>d down_proj:i>h", ("q_proj", "k_proj", "v_proj"), norms=4),
    "smollm3": Family(tied=True),
    "gpt_oss": Family(biases=("q_proj", "k_proj", "v_proj", "o_proj"), is_eager=True, is_experts_wrapped=False),
    "apertus": Family(f"{QKVO} {PLAIN}", qk_norm="head", is_gated=False),
    "arcee": Family(f"{QKVO} {PLAIN}", is_gated=False),
    "nemotron": Family(f"{QKVO} {PLAIN}", **LAYER_NORM),
    "hunyuan_v1_dense": Family(qk_norm="head"),
    "exaone4": Family(qk_norm="head"),
    "seed_oss": Family(biases=("q_proj", "k_proj", "v_proj")),
}
ALIASES = {"gemma3": "gemma3_text", "ministral": "mistral", "mistral3": "mistral", "decilm": "llama", "gptneox": "gpt_neox"}
ATTENTION_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "dense", "out_proj", "c_attn", "qkv_proj", "Wqkv")


@dataclass(frozen=True)
class Linear:
    """A layer y = Wx (+ b) with W of shape (columns, rows)."""

    name: str
    rows: int
    columns: int
    has_bias: bool = False

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Experts:
    """The experts of a block: 3-D tensors, which bitsandbytes leaves in 16 bits."""

    number: int
    active: int
    hidden: int
    width: int
    biases: int = 0
    is_wrapped: bool = True

    @property
    def parameters(self) -> int:
        return self.number * 3 * self.hidden * self.width + self.biases


@dataclass(frozen=True)
class Decoder:
    """All of a model that memory depends on. Counts are parameters; `notes` say what had to be guessed."""

    family: Family
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    context: int
    is_tied: bool
    linears: tuple[Linear, ...]  # of one block
    experts: Experts | None
    vectors: int  # norms and the like, of one block
    ends: int  # final norm, position embeddings, bias of the head
    drops_attention: float
    is_eager: bool
    notes: tuple[str, ...]

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    @property
    def linear_parameters(self) -> int:
        """Weights that bitsandbytes can keep in 4 or 8 bits."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def expert_parameters(self) -> int:
        if self.experts is None:
            return 0
        return self.layers * self.experts.parameters

    @property
    def embedding_parameters(self) -> int:
        """Token embeddings and an untied head."""
        return self.vocabulary * self.hidden * (2 - self.is_tied)

    @property
    def parameters(self) -> int:
        biases = self.layers * sum(linear.columns for linear in self.linears if linear.has_bias)
        return self.linear_parameters + self.expert_parameters + self.embedding_parameters + biases + self.layers * self.vectors + self.ends


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part that describes the language model, where a config describes several, with what its class adds to it."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return library.completed(config)
    kept = {key: value for key, value in config.items() if key in ("architectures", "tie_word_embeddings")}
    return library.completed({**kept, **inner})


def decoder(config: Mapping[str, Any]) -> Decoder:
    """Raises ModelError where the config doesn't give the sizes of a decoder."""
    text = text_config(config)
    kind = _kind(text)
    notes = []
    if kind not in FAMILIES:
        notes.append(f"{kind or 'This architecture'} is not known here: its sizes are read as if it were like Llama.")
    family = FAMILIES.get(kind, FAMILIES["llama"])
    sizes = _sizes(text, kind)
    experts = _experts(text, family, sizes)
    linears = _linears(text, family, sizes, experts)
    if experts:
        notes.append("A mixture of experts: bitsandbytes keeps the experts in 16 bits, whatever the base's precision.")
    return Decoder(
        family=family,
        kind=kind,
        is_tied=bool(_value(text, ("tie_word_embeddings",), family.tied)),
        linears=linears,
        experts=experts,
        vectors=_vectors(family, sizes, text, kind),
        ends=_ends(family, sizes, text, kind),
        drops_attention=float(_value(text, ("attention_dropout", "attn_pdrop"), family.drops_attention)),
        is_eager=family.is_eager,
        notes=tuple(notes),
        **sizes,
    )


def _kind(text: Mapping[str, Any]) -> str:
    """model_type, else as the class name says it."""
    kind = text.get("model_type")
    if not isinstance(kind, str) or not kind:
        name = text.get("architectures") or text.get("class") or ""
        if isinstance(name, list):
            name = name[0]
        kind = str(name).removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower()
        plain = {name.replace("_", ""): name for name in FAMILIES}
        kind = plain.get(kind, kind)
    kind = ALIASES.get(kind, kind)
    of_the_text = kind.removesuffix("_text")
    if kind not in FAMILIES and of_the_text in FAMILIES:
        return of_the_text
    return kind


def _sizes(text: Mapping[str, Any], kind: str) -> dict[str, int]:
    hidden = _number(text, "hidden", required=True)
    heads = _number(text, "heads") or max(hidden // 128, 1)
    head_width = _size(text.get("head_dim")) or hidden // heads
    kv_heads = _number(text, "kv_heads") or heads
    if kind == "falcon" and not text.get("new_decoder_architecture"):
        kv_heads = heads
        if text.get("multi_query", True):
            kv_heads = 1
    elif kind == "gpt_bigcode" and text.get("multi_query", True):
        kv_heads = 1
    elif isinstance(text.get("attn_config"), Mapping):
        kv_heads = _size(text["attn_config"].get("kv_n_heads")) or kv_heads
    intermediate = _number(text, "intermediate")
    if kind == "falcon":  # its own name for it; a foreign `intermediate_size` in its config is not read by the model
        intermediate = _size(text.get("ffn_hidden_size"))
    expansion = text.get("expansion_ratio")
    if not isinstance(expansion, (int, float)) or not 0 < expansion <= 64:
        expansion = 4
    return {
        "hidden": hidden,
        "layers": _number(text, "layers", required=True),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_width": head_width,
        "intermediate": intermediate or int(hidden * expansion),
        "vocabulary": _number(text, "vocabulary", required=True),
        "context": _number(text, "context"),
    }


def _experts(text: Mapping[str, Any], family: Family, sizes: Mapping[str, int]) -> Experts | None:
    number = _number(text, "experts")
    if number < 2:
        return None
    width = _size(text.get("moe_intermediate_size")) or sizes["intermediate"]
    biases = 0
    if "o_proj" in family.biases:
        biases = number * (2 * width + sizes["hidden"])
    return Experts(number, _number(text, "active_experts") or 2, sizes["hidden"], width, biases, family.is_experts_wrapped)


def _linears(text: Mapping[str, Any], family: Family, sizes: Mapping[str, int], experts: Experts | None) -> tuple[Linear, ...]:
    query, value = sizes["heads"] * sizes["head_width"], sizes["kv_heads"] * sizes["head_width"]
    inner = sizes["intermediate"]
    widths = {"h": sizes["hidden"], "q": query, "v": value, "f": query + 2 * value, "i": inner, "d": 2 * inner}
    switched = {entry.partition(":")[2] for entry in family.biases if ":" in entry and text.get(entry.partition(":")[0])}
    found = []
    for entry in family.linears.split():
        name, _, shape = entry.partition(":")
        rows, _, columns = shape.partition(">")
        is_attention = name in ATTENTION_NAMES
        if experts and not is_attention:
            continue
        part = {True: "attention", False: "mlp"}[is_attention]
        has_bias = name in family.biases or part in switched
        found.append(Linear(name, widths[rows], widths[columns], has_bias))
    if experts:
        found.append(Linear("gate", sizes["hidden"], experts.number, experts.biases > 0))
        shared = _size(text.get("shared_expert_intermediate_size"))
        shared = shared or experts.width * _size(text.get("n_shared_experts"))
        if shared:
            found += [Linear(name, sizes["hidden"], shared) for name in ("gate_proj", "up_proj")]
            found.append(Linear("down_proj", shared, sizes["hidden"]))
    return tuple(found)


def _vectors(family: Family, sizes: Mapping[str, int], text: Mapping[str, Any], kind: str) -> int:
    norms = family.norms
    if kind == "falcon" and (text.get("new_decoder_architecture") or not text.get("parallel_attn", True)):
        norms = 2
    of_heads = {"": 0, "head": 2, "full": sizes["heads"] + sizes["kv_heads"]}[family.qk_norm] * sizes["head_width"]
    sinks = sizes["heads"] * (kind == "gpt_oss")
    return norms * sizes["hidden"] * (1 + family.norm_bias) + of_heads + sinks


def _ends(family: Family, sizes: Mapping[str, int], text: Mapping[str, Any], kind: str) -> int:
    found = sizes["hidden"] * (1 + family.norm_bias) * {"olmo": 0, "bloom": 2}.get(kind, 1)
    if family.positions >= 0:
        found += (sizes["context"] + family.positions) * sizes["hidden"]
    if family.head_bias:
        found += sizes["vocabulary"]
    return found


def _number(text: Mapping[str, Any], what: str, *, required: bool = False) -> int:
    found = next((size for name in FIELDS[what] if (size := _size(text.get(name)))), 0)
    if required and not found:
        raise ModelError(
            f"The config gives no {FIELDS[what][0]} of a decoder.",
            "Give the config.json of a text generation model, such as Llama's or Qwen's.",
        )
    return found


def _size(value: Any) -> int:
    """A dimension, or 0 for what is none. Raises ModelError for one that no model has."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        return 0
    if value > MOST:
        raise ModelError(f"The config gives {value:.3g} as a size, which no model has.", "Give the model's own config.json.")
    return int(value)


def _value(text: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    found = next((text[name] for name in names if text.get(name) is not None), default)
    return found if isinstance(found, (bool, int, float)) else default


def sees_whole_rows(config: Mapping[str, Any], length: int) -> bool:
    """Whether every layer of a model attends to all tokens before, in rows of up to `length`; `config` as in config.json."""
    inner = text_config(config)
    kinds, window = set(inner.get("layer_types") or ()), inner.get("sliding_window")
    is_sliding = bool(window) and inner.get("use_sliding_window") is not False and kinds != {"full_attention"}
    return kinds <= {"full_attention", "sliding_attention"} and (not is_sliding or int(window or 0) >= length)
