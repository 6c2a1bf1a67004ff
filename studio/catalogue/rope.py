"""Positions beyond a base's context: the `rope` section of a job, applied to a config.json.

Everything that loads a base for an adapter goes through `scaled`: trainer, engine, exports, likelihoods. What only counts, such as the
prediction of memory, takes `longer`. Names and meanings are those of transformers' rope_parameters. Reads JSON; knows no torch.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from jobs.sections import RopeSection
from studio.catalogue import wrappers
from studio.catalogue.models import CONTEXT_KEYS, read_json
from studio.errors import ModelError

CARD, CARD_KEY = "studio.json", "rope"  # of an adapter's folder: what it was trained with
CONTEXT, ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
LISTS = ("short_factor", "long_factor")
TAKES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor", ORIGINAL),
    "dynamic": ("factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", ORIGINAL, "attention_factor", *LISTS),
}
SCALING = frozenset(("type", "rope_type", *itertools.chain(*TAKES.values())))
WRITES_ORIGINAL = ("yarn", "llama3", "longrope")  # the others start from max_position_embeddings
BY_LENGTH = ("dynamic", "longrope")  # scaled beyond the original context only, by the length of the text
ALIASES = {"su": "longrope"}
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as published with Llama 3.1
FITTED = ("attention_factor", *LISTS)  # belong to a factor, so that a larger one may bring its own
LEAST_ORIGINAL = 0.5  # of the context: Qwen3 counts 40,960 of 32,768 trained ones
WINDOWS = ("sliding_attention", "chunked_attention")  # layers that look no further than their window, whatever the context
MOST_CONTEXT = 10_000_000
USUAL_FACTOR = 4.0


@dataclass(frozen=True)
class RopeProblem:
    """One reason against a section. `change`: options that remove it; empty where a person has to decide."""

    because: str
    change: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True)
class BasePositions:
    """The positions that a config.json describes. `context` 0: it does not say."""

    kind: str
    factor: float
    original: int
    context: int
    parameters: Mapping[str, Any]

    @property
    def is_scaled(self) -> bool:
        return self.kind != "default"


def problems(rope: RopeSection, config: Mapping[str, Any] | None = None) -> list[RopeProblem]:
    """Everything that stands against a section, by itself and on the base of `config` (its config.json)."""
    found = list(_by_itself(rope))
    if found or not rope.is_set or config is None:
        return found
    if _text(config).get("alibi") is True:
        return [RopeProblem("this base has ALiBi positions, which need no scaling and take none", none_of(rope))]
    return list(_on_base(rope, base_positions(config)))


def scaled(config: Mapping[str, Any], rope: RopeSection) -> dict[str, Any]:
    """config.json with the positions of `rope`, as transformers reads it. Raises ModelError for a section that this base can't have."""
    if not rope.is_set:
        return dict(config)
    if found := problems(rope, config):
        raise ModelError(f"{found[0].because}.", found[0].advice or "Correct the rope section, or leave it out.")
    base = base_positions(config)
    return _replaced(config, {_context_key(config): _stated_context(rope, base)}, _parameters_of(rope, base))


def context(config: Mapping[str, Any], rope: RopeSection) -> int:
    """Tokens that the base reads at once with the positions of `rope`; 0 where nothing says it."""
    base = base_positions(config)
    if not rope.is_set:
        return base.context
    return _stretched_context(rope, base)


def longer(config: Mapping[str, Any], rope: RopeSection) -> int:
    """The longer context, for what only counts; 0 where it is the model's own. Never refuses."""
    if not rope.is_set and base_positions(config).kind != "dynamic":
        return 0
    return context(config, rope)


def of_adapter(folder: Path | None) -> RopeSection:
    """The positions that an adapter was trained with; the base's own where its folder says nothing. Raises ModelError."""
    if folder is None or not (folder / CARD).is_file():
        return RopeSection()
    value = read_json(folder / CARD).get(CARD_KEY)
    if value is None:
        return RopeSection()
    try:
        return RopeSection.model_validate(value)
    except ValidationError as exc:
        first = exc.errors()[0]
        said = f"{'.'.join(map(str, first['loc'])) or 'the section'}: {first['msg'][:100]}"
        raise ModelError(f"{folder / CARD} describes positions that can't be read ({said}).", "Correct its rope section.") from None


def context_beside(base: Path, adapter: Path | None, own: int) -> int:
    """Tokens that a base reads at once with an adapter; `own`: without one."""
    rope = of_adapter(adapter)
    if not rope.is_set:
        return own
    return context(read_json(base / "config.json"), rope)


def scaling(config: Mapping[str, Any], rope: RopeSection) -> tuple[dict[str, Any], int]:
    """What of a base's rope_parameters changes, None for what goes, and its max_position_embeddings then, as `scaled` sets them."""
    base = base_positions(config)
    found = _parameters_of(rope, base)
    gone = dict.fromkeys(key for key in base.parameters if key in SCALING and key not in found)
    kept = {key: value for key, value in found.items() if key in SCALING}
    return {**gone, **kept}, _stated_context(rope, base)


def described(rope: RopeSection) -> str:
    """In a few words, for a card or a note; "" for a base's own positions."""
    if not rope.is_set:
        return ""
    return f"{rope.rope_type} x {rope.factor:g}"


def base_positions(config: Mapping[str, Any]) -> BasePositions:
    """What a config.json says, in the old form (rope_scaling) or the new one (rope_parameters)."""
    text = _text(config)
    found = _stated(text)
    kind = str(found.get("rope_type") or found.get("type") or "default")
    kind = ALIASES.get(kind, kind)
    longest = wrappers.context(config, CONTEXT_KEYS)
    if kind == "default":
        return BasePositions(kind, 1.0, longest, longest, found)
    original = _count(found.get(ORIGINAL)) or _count(text.get(ORIGINAL)) or longest
    factor = found.get("factor")
    if not isinstance(factor, (int, float)) or not 1 <= factor < math.inf:
        factor = max(longest / (original or 1), 1.0)
    if kind == "dynamic":
        longest = round(longest * factor)
    return BasePositions(kind, float(factor), original, longest, found)


def _by_itself(rope: RopeSection) -> Iterator[RopeProblem]:
    kind, given = rope.rope_type, [key for key in rope.chosen if key != "rope_type"]
    if kind == "default" and given:
        yield RopeProblem(f"rope.{given[0]} says nothing without rope.rope_type", {"rope.rope_type": "yarn"})
        return
    for key in given:
        if key not in TAKES[kind]:
            yield RopeProblem(f"rope.{key} says nothing about {kind} positions", {f"rope.{key}": None})
    if kind != "default" and rope.factor is None:
        yield RopeProblem(f"rope.rope_type={kind} needs rope.factor", {"rope.factor": USUAL_FACTOR})
    low, high = rope.low_freq_factor or LLAMA_3["low_freq_factor"], rope.high_freq_factor or LLAMA_3["high_freq_factor"]
    if kind == "llama3" and low >= high:
        yield RopeProblem(
            f"rope.low_freq_factor={low:g} is no less than rope.high_freq_factor={high:g}",
            {"rope.low_freq_factor": None, "rope.high_freq_factor": None},
        )
    if kind == "yarn" and (rope.beta_slow or 1) >= (rope.beta_fast or 32):
        yield RopeProblem("rope.beta_slow is no less than rope.beta_fast", {"rope.beta_slow": None, "rope.beta_fast": None})
    if kind == "longrope":
        yield from _lists(rope)


def _lists(rope: RopeSection) -> Iterator[RopeProblem]:
    """Of divisors, which come in pairs."""
    short, long = rope.short_factor, rope.long_factor
    neither: dict[str, Any] = dict.fromkeys(f"rope.{key}" for key in LISTS)
    if (short is None) != (long is None) or len(short or []) != len(long or []):
        yield RopeProblem("rope.short_factor and rope.long_factor are given together, one divisor per frequency each", neither)
    if not all(0 < value < math.inf for value in (*(short or []), *(long or []))):
        yield RopeProblem("rope.short_factor and rope.long_factor hold positive numbers", neither)


def _on_base(rope: RopeSection, base: BasePositions) -> Iterator[RopeProblem]:
    assert rope.factor is not None
    if not base.context and rope.original_max_position_embeddings is None:
        yield RopeProblem(
            "config.json does not say for how long a context this base was trained",
            advice="Say it in rope.original_max_position_embeddings.",
        )
        return
    check = {True: _on_scaled, False: _on_plain}[base.is_scaled]
    found = list(check(rope, base))
    yield from found
    reads = _stretched_context(rope, base)
    if not found and reads > MOST_CONTEXT:
        most = math.floor(rope.factor * MOST_CONTEXT / reads)
        yield RopeProblem(f"rope.factor={rope.factor:g} makes a context of {reads:,} tokens", {"rope.factor": float(max(most, 2))})


def _on_plain(rope: RopeSection, base: BasePositions) -> Iterator[RopeProblem]:
    """A base that was trained with positions as they are."""
    assert rope.factor is not None
    original = rope.original_max_position_embeddings or base.original
    if base.context and not LEAST_ORIGINAL * base.context <= original <= base.context:
        yield RopeProblem(
            f"rope.{ORIGINAL}={original} contradicts the base, which was trained with a context of {base.context}",
            {f"rope.{ORIGINAL}": None},
        )
    elif original * rope.factor <= base.context:
        yield RopeProblem(
            f"rope.factor={rope.factor:g} contradicts the base: {rope.factor:g} x {original} tokens are no more than the {base.context} "
            "that it reads already",
            {"rope.factor": float(math.ceil(2 * base.context / original))},
        )
    if rope.rope_type == "longrope" and rope.long_factor is None:
        yield RopeProblem(
            "rope.rope_type=longrope needs rope.short_factor and rope.long_factor, which this base does not bring",
            {"rope.rope_type": "yarn"},
        )


def _on_scaled(rope: RopeSection, base: BasePositions) -> Iterator[RopeProblem]:
    """A base that was itself trained with scaled positions: another scaling would move every position that it knows."""
    assert rope.factor is not None
    if base.kind not in TAKES:
        yield RopeProblem(f"the base's positions are scaled by {base.kind} already, which can't be stretched further", none_of(rope))
        return
    if rope.rope_type != base.kind:
        yield RopeProblem(
            f"rope.rope_type={rope.rope_type} contradicts the base, whose positions are scaled by {base.kind} x {base.factor:g} already",
            {**none_of(rope), "rope.rope_type": base.kind, "rope.factor": 2 * base.factor},
        )
        return
    original = rope.original_max_position_embeddings
    if original is not None and original != base.original:
        yield RopeProblem(f"rope.{ORIGINAL}={original} contradicts the base, whose own is {base.original}", {f"rope.{ORIGINAL}": None})
    if rope.factor <= base.factor:
        yield RopeProblem(
            f"rope.factor={rope.factor:g} contradicts the base, whose positions are scaled by {base.factor:g} already",
            {"rope.factor": 2 * base.factor},
        )
    for key in TAKES[base.kind]:
        own, given = base.parameters.get(key), getattr(rope, key)
        if key not in ("factor", ORIGINAL, *FITTED) and None not in (own, given) and own != given:
            yield RopeProblem(f"rope.{key}={given:g} contradicts the base, whose own is {own}", {f"rope.{key}": None})


def none_of(rope: RopeSection) -> dict[str, Any]:
    """The change that leaves the section out."""
    usual = RopeSection().model_dump()
    return {f"rope.{key}": usual[key] for key in rope.chosen}


def _stretched_context(rope: RopeSection, base: BasePositions) -> int:
    factor = rope.factor or 1.0
    if base.is_scaled:
        return round(base.context * max(factor / base.factor, 1.0))
    return max(round((rope.original_max_position_embeddings or base.original) * factor), base.context)


def _stated_context(rope: RopeSection, base: BasePositions) -> int:
    """The max_position_embeddings that transformers wants: with dynamic positions, the length that needs no scaling."""
    if rope.rope_type == "dynamic":
        return rope.original_max_position_embeddings or base.original
    return _stretched_context(rope, base)


def _parameters_of(rope: RopeSection, base: BasePositions) -> dict[str, Any]:
    """What transformers' rope_parameters hold then; what is not scaling, such as rope_theta, stays the base's."""
    own = {key: value for key, value in base.parameters.items() if key != "type"}
    if base.is_scaled:
        own = {key: value for key, value in own.items() if key != "attention_factor"}
    elif rope.rope_type == "llama3":
        own = {**LLAMA_3, **own}
    found = {**own, **rope.chosen}
    found.pop(ORIGINAL, None)
    if rope.rope_type in WRITES_ORIGINAL:
        found[ORIGINAL] = rope.original_max_position_embeddings or base.original
    return found


def _replaced(config: Mapping[str, Any], values: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A copy with `values` and rope `parameters` in the part that describes the language model."""
    found = copy.deepcopy(dict(config))
    text = cast("dict[str, Any]", _text(found))
    text.update(values)
    if parameters is None:
        return found
    stated = text.get("rope_parameters")
    if text.get("rope_scaling") or not isinstance(stated, dict):
        text["rope_scaling"] = dict(parameters)  # the old form, which transformers turns into the new one
    elif names := _layer_types(stated):
        text["rope_parameters"] = {**stated, **{name: {**parameters, **_unscaled(stated[name])} for name in names}}
    else:
        text["rope_parameters"] = dict(parameters)
    return found


def _stated(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of the layers that see the whole context."""
    old, new = text.get("rope_scaling"), text.get("rope_parameters")
    if isinstance(old, Mapping) and old:
        return old
    if not isinstance(new, Mapping):
        return {}
    if names := _layer_types(new):
        return dict(new[names[0]])
    return new


def _unscaled(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What of a base's parameters is no scaling, such as rope_theta."""
    return {key: value for key, value in stated.items() if key not in SCALING}


def _layer_types(stated: Mapping[str, Any]) -> list[str]:
    """Kinds of layers that have positions of their own there, without those that see a window only."""
    return [name for name, value in stated.items() if isinstance(value, Mapping) and name not in WINDOWS]


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        return inner
    return config


def _context_key(config: Mapping[str, Any]) -> str:
    text = _text(config)
    return next((key for key in CONTEXT_KEYS if _count(text.get(key))), CONTEXT)


def _count(value: Any) -> int:
    """A positive number of tokens; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return 0
    return value
