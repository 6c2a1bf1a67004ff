"""Asks transformers and peft what is true of a model: `python -m studio.catalogue.probing FILE NAME [FOLDER]` prints a Probe.

The model is built on the meta device, without weights, and cut to the first blocks that show every kind of block it has. What peft
takes, whether rows stay apart and what the cache holds is tried on those. Needs no network, runs no code of a folder.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.catalogue import anatomy, keys, library_child, text_models
from studio.catalogue.models import CONTEXT_KEYS
from studio.catalogue.probes import digest
from studio.catalogue.quantising import read_directly
from studio.catalogue.quick_imports import import_bitsandbytes
from studio.catalogue.targets import LoraTargets, ends_of, lora_targets, within_block
from studio.errors import ModelError, message_of, one_line
from studio.records import BlockKind, BlockWeight, Probe, Reach, Targets, WeightKind

if TYPE_CHECKING:
    from torch import nn

MOST_LAYERS = 2_000
RANK = 4  # of the trial adapters


def probe(values: Mapping[str, Any], name: str = "This config.json") -> Probe:
    """What is true of the model that a config.json describes. Raises ModelError, and whatever building the model raises."""
    from studio.catalogue import trials

    described = text_models.configuration(_typed(values), name)
    auto = text_models.auto_class(described)
    family, config = text_models.family_of(described)
    text = config.get_text_config(decoder=True)
    _check(config, text, name)
    model = text_models.without_weights(described)
    place, blocks = anatomy.blocks_of(model)
    if not blocks:
        raise ModelError(f"{name} describes {family.__name__}, which has no blocks that could be trained.", "Use another model.")
    prefix = anatomy.text_prefix(model)
    by_kind = _parameters(model, place, prefix)
    groups = _groups(blocks)
    read = read_directly(family)
    small = {name: layer for name, layer in anatomy.quantizable(model).items() if name.rpartition(".")[2] not in read}
    _cut(model, place, 1 + max(layers[0] for layers in groups))
    tried = trials.made_up(model)
    rows = trials.two_rows(tried, place, lambda: _cache(family, text, name))
    for failure, verb in ((rows.unread, "read"), (rows.untrained, "learn from")):
        if failure and trials.fails_so(text_models.without_weights(described), failure, training=failure is rows.untrained):
            raise ModelError(f"{name} describes {family.__name__}, which can't {verb} a text: {failure.words}.", "Use another model.")
    if not (trials.is_causal(model) if rows.unread else rows.is_causal):
        raise ModelError(
            f"{name} describes {family.__name__}, which reads in both directions and so can't write.",
            "Use a text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2.",
        )
    cache = _cache(family, text, name)
    found = lora_targets(model, learning=rows.learning)
    shares = _Shares(model, place, groups)
    lora, reached = _lora(model, found, shares)
    methods, scaled = _methods(model, shares)
    facts = _BlockFacts(model, place, reached, scaled, set(small), rows.cache, trials.norm_outputs(tried, place))
    why = _unmixable(found, rows)
    return Probe(  # type: ignore[call-arg]  # `class` is a word of the language
        digest=digest(values),
        transformers=version("transformers"),
        peft=version("peft"),
        class_name=family.__name__,
        auto_class=auto.__name__,
        model_type=config.model_type,
        text_prefix=prefix,
        attention=["eager", *(name for name, flag in text_models.ATTENTION.items() if getattr(family, flag, False))],
        targets=lora,
        methods=methods,
        mixable=not why,
        mixable_reason=why,
        padding="left" * rows.ignores_padding,
        cache=type(cache).__name__ if cache is not None else "",
        cache_layers=dict(Counter(type(layer).__name__ for layer in getattr(cache, "layers", []))),
        croppable=cache is not None and cache.is_croppable,
        context=_number(text, *CONTEXT_KEYS),
        tied=bool(getattr(model, "all_tied_weights_keys", {})),
        parameters=sum(by_kind.values()),
        parameters_by_kind=by_kind,
        quantizable=sum(layer.weight.numel() for layer in small.values()),
        quantizable_columns=sum(layer.weight.shape[0] for layer in small.values()),
        **_sizes(text),
        blocks=[facts.block(blocks[layers[0]], layers) for layers in groups],
    )


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with a model_type, where only the class is named."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    named = values.get("architectures") or [values.get("class")]
    found = dict(values)
    if "model_type" not in found and isinstance(named, list) and named:
        found["model_type"] = next((kind for kind, classes in CLASSES.items() if named[0] == classes), None)
    return found


def _check(config: Any, text: Any, name: str) -> None:
    """Raises ModelError for what is no decoder, or would take too long to build."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} describes an encoder-decoder ({config.model_type}), which reads and writes with two models.",
            "Use a text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2.",
        )
    layers = getattr(text, "num_hidden_layers", None)
    if isinstance(layers, int) and not 0 < layers <= MOST_LAYERS:
        raise ModelError(
            f"{name} asks for {layers:,} layers, which no model has.", "Use the config.json that was published with the model."
        )


def _number(config: Any, *names: str) -> int:
    """The first of these fields that holds a size; 0 where none does."""
    config.allow_global_per_layer_attribute_access = True  # Gemma 4's heads differ in width between layers
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _sizes(text: Any) -> dict[str, Any]:
    hidden, heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
    activation = getattr(text, "hidden_act", None) or getattr(text, "activation_function", None) or getattr(text, "hidden_activation", None)
    dropout = getattr(text, "attention_dropout", None) or getattr(text, "attn_pdrop", None) or 0.0
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _number(text, "num_key_value_heads") or heads,
        "head_width": _number(text, "head_dim") or hidden // max(heads, 1),
        "intermediate": _number(text, "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
        "vocabulary": _number(text, "vocab_size"),
        "activation": str(activation or ""),
        "attention_dropout": float(dropout),
        "attention_softcap": bool(getattr(text, "attn_logit_softcapping", None)),
        "logit_softcap": bool(getattr(text, "final_logit_softcapping", None)),
    }


def _parameters(model: Any, place: str, prefix: str) -> dict[WeightKind, int]:
    """All parameters by what they are for; a tensor with two names counts once."""
    kinds: Counter[WeightKind] = Counter()
    ends = {id(model.get_input_embeddings()): WeightKind.EMBEDDINGS, id(model.get_output_embeddings()): WeightKind.HEAD}
    inner: dict[str, WeightKind] = {}
    for number, block in enumerate(anatomy.blocks_of(model)[1]):
        inner |= {f"{place}.{number}.{part.name}": part.kind for part in anatomy.parts(block)}
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        kind = inner.get(name) or inner.get(owner) or ends.get(id(modules[owner]))
        kinds[kind or _elsewhere(name, modules[owner], place, prefix)] += parameter.numel()
    return dict(kinds)


def _elsewhere(name: str, module: nn.Module, place: str, prefix: str) -> WeightKind:
    kind = type(module).__name__.lower()
    if prefix and not name.startswith(f"{prefix}."):
        if "audio" in name:
            return WeightKind.AUDIO
        return WeightKind.VISION
    if "norm" in kind:
        return WeightKind.NORM
    if "embedding" in kind and not name.startswith(f"{place}."):
        return WeightKind.EMBEDDINGS
    return WeightKind.OTHER


def _groups(blocks: list[nn.Module]) -> list[list[int]]:
    """Places of the blocks that have the same weights, the first kind first."""
    found: dict[Any, list[int]] = {}
    for number, block in enumerate(blocks):
        kinds = tuple((name, type(module).__name__) for name, module in block.named_modules())
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
        found.setdefault((kinds, shapes), []).append(number)
    return list(found.values())


def _cut(model: Any, place: str, count: int) -> None:
    """Leave the first blocks only."""
    holder, _, name = place.rpartition(".")
    parent = model.get_submodule(holder)
    setattr(parent, name, getattr(parent, name)[:count])


def _cache(family: Any, text: Any, name: str) -> Any:
    """The cache that generation uses; None where the class makes one of its own. Raises ModelError where generation could not make it either."""
    from transformers import DynamicCache

    if not family._supports_default_dynamic_cache():
        return None
    try:
        return DynamicCache(config=text)
    except AttributeError as exc:
        raise ModelError(
            f"{name} describes {family.__name__}, for which the installed transformers can't make the cache that it writes with "
            f"({message_of(exc)}).",
            "Use a text generation model such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2.",
        ) from None


def _unmixable(targets: LoraTargets, rows: Any) -> str:
    """Why rows with different adapters can't share a batch; "" where they can."""
    if rows.error:
        return f"a trial of two rows failed ({rows.error})"
    if targets.parameters:
        names = sorted({within_block(name) for name in targets.parameters})
        return f"peft adapts fused experts ({', '.join(names)}) for the whole batch only"
    if rows.picks:
        return f"{rows.picks} is given some tokens of the rows only"
    return ""


class _Shares:
    """The matrices of all blocks, from the blocks that a model was cut to. `layers`: places of the blocks of each kind."""

    def __init__(self, model: Any, place: str, layers: list[list[int]]) -> None:
        blocks = anatomy.blocks_of(model)[1]
        self.place = place
        self.matrices = {}  # number.name -> kind, weights in all blocks of that kind
        for group in layers:
            for part in anatomy.parts(blocks[group[0]]):
                if part.kind != WeightKind.NORM:
                    self.matrices[f"{group[0]}.{part.name}"] = (part.kind, part.weights * len(group))

    def reach(self, adapted: set[str], reason: str = "") -> Reach:
        """What a method trains. `adapted`: parts as `number.name`."""
        total = sum(weights for _, weights in self.matrices.values()) or 1
        left: Counter[WeightKind] = Counter()
        for name, (kind, weights) in self.matrices.items():
            if name not in adapted:
                left[kind] += weights
        missing = {kind: round(weights / total, 6) for kind, weights in left.most_common()}
        return Reach(share=round(1 - sum(left.values()) / total, 6), left_out=missing, accepted=not reason, reason=reason)


def _lora(model: Any, found: LoraTargets, shares: _Shares) -> tuple[Targets, set[str]]:
    from peft import LoraConfig

    from studio.catalogue import trials

    adapted, reason = trials.adapted(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", r=RANK, **found.options()))
    reached = set()
    if adapted is not None:
        reached = trials.reached(adapted, shares.place)
    reach = shares.reach(reached, reason)
    targets = Targets(
        **reach.model_dump(),
        modules=list(ends_of(found.modules, model)),
        parameters=sorted({within_block(name) for name in found.parameters}),
        refused=list(found.refused),
        bypassed=list(found.bypassed),
    )
    return targets, reached


def _methods(model: Any, shares: _Shares) -> tuple[dict[str, Reach], dict[str, str]]:
    """Other methods with their own defaults, and what IA3 scales of which part."""
    from peft import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    from studio.catalogue import trials

    found = {"full": shares.reach(set(shares.matrices))}
    scaled: dict[str, str] = {}
    reason = f"peft knows no layers of {model.config.model_type} models for IA3"
    if model.config.model_type in KNOWN:
        adapted, reason = trials.adapted(copy.deepcopy(model), IA3Config(task_type="CAUSAL_LM"))
        if adapted is not None:
            scaled = trials.ia3(adapted, shares.place)
    found["ia3"] = shares.reach(set(scaled), reason)
    tokens = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    configs = {
        "prompt-tuning": PromptTuningConfig(**tokens),
        "p-tuning": PromptEncoderConfig(**tokens, encoder_hidden_size=8),  # of any width: a narrow one is made at once
        "prefix-tuning": PrefixTuningConfig(**tokens),
    }
    for method, config in configs.items():
        found[method] = shares.reach(set(), trials.takes_tokens(model, config))
    return found, scaled


@dataclass(frozen=True)
class _BlockFacts:
    """What has been found of the blocks that a model was cut to. Parts are `number.name`."""

    model: Any
    place: str
    reached: set[str]
    scaled: Mapping[str, str]
    small: set[str]  # layers of the model that bitsandbytes takes
    cache: Any
    norms: Mapping[int, list[int]]

    def block(self, block: nn.Module, layers: list[int]) -> BlockKind:
        """One kind of block; `block` is the one at the place `layers[0]`."""
        from studio.catalogue import trials

        first = layers[0]
        per_token, state = trials.cached(self.cache, first)
        return BlockKind(
            layers=layers,
            weights=[self._weight(part, first) for part in anatomy.parts(block)],
            norms=self.norms.get(first, []),
            norm_bias=any(getattr(norm, "bias", None) is not None for norm in anatomy.norms(block)),
            parameters=sum(parameter.numel() for parameter in block.parameters()),
            active_experts=_active(self.model.config.get_text_config(decoder=True)),
            cache_per_token=per_token,
            state=state,
            kept_per_token=trials.kept(anatomy.mixers(block), _number(self.model.config.get_text_config(decoder=True), "hidden_size")),
        )

    def _weight(self, part: anatomy.Part, number: int) -> BlockWeight:
        name = f"{number}.{part.name}"
        return BlockWeight(
            name=part.name,
            kind=part.kind,
            form=part.form,
            rows=part.rows,
            columns=part.columns,
            number=part.number,
            bias=part.bias,
            target=name in self.reached,
            ia3=self.scaled.get(name, ""),
            quantizable=f"{self.place}.{name}" in self.small,
        )


def _active(text: Any) -> int:
    """How many experts a token passes."""
    return _number(text, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k_experts")


def matched(folder: Path) -> dict[str, Any]:
    """{"keys", "unmatched"}, one of them null: how the weights of a folder match its config.json, or why that can't be said."""
    found: dict[str, Any] = {"keys": None, "unmatched": None}
    try:
        found["keys"] = asdict(keys.compare(folder))
    except ModelError as exc:
        found["unmatched"] = exc.as_json()
    except Exception as exc:  # noqa: BLE001 - the edge of this process: what the libraries say of a config.json becomes one line
        found["unmatched"] = _unbuilt(str(folder), exc)
    return found


def _unbuilt(name: str, exc: Exception) -> dict[str, str]:
    return {"message": f"{name} describes a model that can't be built ({one_line(exc)}).", "fix": "Check its config.json."}


def asked(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The probe, or in its place the error of whatever a config.json does to the libraries, as plain JSON."""
    answer: dict[str, Any] = {"probe": None, "error": None}
    try:
        answer["probe"] = probe(values, name).model_dump(mode="json")
    except ModelError as exc:
        answer["error"] = exc.as_json()
    except ImportError as exc:  # of a part that another library holds
        said = " ".join(str(exc).split()).partition(". ")[0][:200]
        answer["error"] = {
            "message": f"{name} describes a model that needs a library which is not installed: {said}.",
            "fix": "Install that library beside the studio, or use another model.",
        }
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the libraries say about a config.json becomes one line
        answer["error"] = _unbuilt(name, exc)
    return answer


def _work(file: Path, arguments: list[str]) -> dict[str, Any]:
    """As a child: the probe of a config.json, and where a folder is named too, how its weights match."""
    import_bitsandbytes()
    name, *folders = arguments
    answer = asked(json.loads(file.read_text(encoding="utf-8")), name)
    for folder in folders:
        answer |= matched(Path(folder))
    return answer


if __name__ == "__main__":
    library_child.answer(_work)
