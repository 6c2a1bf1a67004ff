"""A decoder as memory depends on it: its blocks, their layers and what else has parameters, from the probe of its config.json.

Knows nothing of training, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from studio.catalogue import library, probes
from studio.records import BlockKind, BlockWeight, Probe, WeightForm, WeightKind

RESULTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")  # the attention's last layer, as transformers names it


@dataclass(frozen=True)
class Linear:
    """A layer y = Wx (+ b) with W of shape (columns, rows)."""

    name: str  # within its block
    rows: int
    columns: int
    kind: WeightKind = WeightKind.OTHER
    is_target: bool = True  # of target_modules=all-linear
    ia3: str = ""  # what IA3 scales by default: its "inputs", its "outputs", or nothing

    @property
    def weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Experts:
    """A tensor of all experts of a block. bitsandbytes' layers leave it in 16 bits."""

    name: str
    number: int
    rows: int
    columns: int
    is_target: bool = True

    @property
    def weights(self) -> int:
        return self.number * self.rows * self.columns


@dataclass(frozen=True)
class Block:
    """Blocks that are alike."""

    count: int
    linears: tuple[Linear, ...]
    experts: tuple[Experts, ...]
    active_experts: int  # that a token passes
    norms: tuple[int, ...]  # numbers that each puts out for a token
    norm_bias: bool  # LayerNorm with a bias, and its kind of memory
    kv_width: int  # of keys, and of values
    kept_per_token: int  # numbers that state spaces and convolutions keep

    def of(self, *kinds: WeightKind) -> tuple[Linear, ...]:
        return tuple(linear for linear in self.linears if linear.kind in kinds)

    @property
    def query_width(self) -> int:
        """Of the attention's result, which its last layer reads; 0 for a block without attention."""
        results = [linear.rows for linear in self.of(WeightKind.ATTENTION) if linear.name.rpartition(".")[2] in RESULTS]
        return max(results, default=max((linear.columns for linear in self.of(WeightKind.ATTENTION)), default=0))


@dataclass(frozen=True)
class Decoder:
    """All of a model that memory depends on. Counts are parameters."""

    probe: Probe
    blocks: tuple[Block, ...]
    context: int  # tokens; 0 where the config does not say

    @property
    def hidden(self) -> int:
        return self.probe.hidden

    @property
    def heads(self) -> int:
        return self.probe.heads

    @property
    def vocabulary(self) -> int:
        return self.probe.vocabulary

    @property
    def layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def is_tied(self) -> bool:
        return self.probe.tied

    @property
    def is_eager(self) -> bool:
        """No fused attention: the square of the length is kept."""
        return "sdpa" not in self.probe.attention

    @property
    def drops_attention(self) -> float:
        return self.probe.attention_dropout

    @property
    def parameters(self) -> int:
        return self.probe.parameters

    @property
    def linear_parameters(self) -> int:
        """Weights that bitsandbytes' layers keep in 4 or 8 bits."""
        return self.probe.quantizable

    @property
    def expert_parameters(self) -> int:
        """Weights of experts that are stored as one tensor, which a training here keeps in 4 bits too."""
        return sum(block.count * expert.weights for block in self.blocks for expert in block.experts)

    def whole_share(self, bits: int) -> float:
        """Of the weights of the blocks, what stays in 16 bits where the base is kept in 4 or 8."""
        matrices = [(len(kind.layers) * one.weights, one) for kind in self.probe.blocks for one in kind.weights]
        forms = (WeightForm.EXPERTS,) * (bits == 4)
        small = sum(weights for weights, one in matrices if one.quantizable or one.form in forms)
        return 1 - small / max(sum(weights for weights, _ in matrices), 1)

    @property
    def kv_width(self) -> int:
        """Of the first layer that has keys."""
        return next((block.kv_width for block in self.blocks if block.kv_width), 0)

    def total(self, count: Callable[[Block], int]) -> int:
        """Over all blocks."""
        return sum(block.count * count(block) for block in self.blocks)

    def most(self, count: Callable[[Block], int]) -> int:
        """Of the dearest block."""
        return max((count(block) for block in self.blocks), default=0)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part that describes the language model, where a config describes several, with what its class adds to it."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return library.completed(config)
    kept = {key: value for key, value in config.items() if key in ("architectures", "tie_word_embeddings")}
    return library.completed({**kept, **inner})


def decoder(config: Mapping[str, Any], *, context: int = 0) -> Decoder:
    """Raises ModelError where no decoder can be built from a config.json. `context`: in place of the model's own."""
    return described(probes.ask(config), context)


def described(probe: Probe, context: int = 0) -> Decoder:
    """The same, of a probe."""
    return Decoder(probe, tuple(_block(kind) for kind in probe.blocks), context or probe.context)


def _block(kind: BlockKind) -> Block:
    return Block(
        count=len(kind.layers),
        linears=tuple(_linear(weight) for weight in kind.weights if weight.form == WeightForm.LINEAR),
        experts=tuple(
            Experts(weight.name, weight.number, weight.rows, weight.columns, weight.target)
            for weight in kind.weights
            if weight.form == WeightForm.EXPERTS
        ),
        active_experts=kind.active_experts,
        norms=tuple(kind.norms),
        norm_bias=kind.norm_bias,
        kv_width=kind.cache_per_token // 2,
        kept_per_token=kind.kept_per_token,
    )


def _linear(weight: BlockWeight) -> Linear:
    return Linear(weight.name, weight.rows, weight.columns, weight.kind, weight.target, weight.ia3)


def sees_whole_rows(config: Mapping[str, Any], length: int) -> bool:
    """Whether every layer of a model attends to all tokens before, in rows of up to `length`; `config` as in config.json."""
    inner = text_config(config)
    kinds, window = set(inner.get("layer_types") or ()), inner.get("sliding_window")
    is_sliding = bool(window) and inner.get("use_sliding_window") is not False and kinds != {"full_attention"}
    return kinds <= {"full_attention", "sliding_attention"} and (not is_sliding or int(window or 0) >= length)
