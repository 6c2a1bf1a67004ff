"""What goes together: method, base precision, device, gradient checkpointing, objective. The rules are compatibility.toml's.

`conflicts` says what stands against one configuration, with the change that mends each; `table` is every cell. Knows a model only
by its config.json, and no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from jobs.config import JobConfig, build
from jobs.objectives import OBJECTIVES
from studio.catalogue import hardware, rope
from studio.catalogue.architecture import Decoder, decoder
from studio.catalogue.trainable import PROMPTS, trained
from studio.errors import ModelError
from studio.records import WeightKind

RULES = Path(__file__).with_name("compatibility.toml")
# highest learning rate, and a usual one: virtual tokens want large steps
RATES_OF_PROMPTS, RATES_OF_WEIGHTS = (1.0, 0.01), (0.1, 2e-4)
# method of the table -> options that make it
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "lora"},
    "rsLoRA": {"method": "lora", "lora.use_rslora": True},
    "DoRA": {"method": "lora", "lora.use_dora": True},
    "LoRA+": {"method": "lora", "lora.loraplus_lr_ratio": 16.0},
    "PiSSA": {"method": "lora", "lora.init_lora_weights": "pissa"},
    "IA3": {"method": "ia3"},
    "prompt tuning": {"method": "prompt-tuning"},
    "P-tuning": {"method": "p-tuning"},
    "prefix tuning": {"method": "prefix-tuning"},
    "bottleneck": {"method": "bottleneck"},
    "full": {"method": "full"},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "16-bit": {},
    "8-bit": {"quantization.load_in_8bit": True},
    "4-bit": {"quantization.load_in_4bit": True},
}


@dataclass(frozen=True)
class Conflict:
    """One reason against a configuration. `change`: options that mend it, empty where a person has to decide."""

    because: str
    change: Mapping[str, Any]
    advice: str = ""

    @property
    def fix(self) -> str:
        return self.advice or "Set " + " and ".join(f"{key}={_text(value)}" for key, value in self.change.items()) + "."

    @property
    def sentence(self) -> str:
        """The reason as a sentence; an option at its start keeps its name."""
        first = self.because.partition(" ")[0]
        if set(first) & set("=._"):
            return f"{self.because}."
        return f"{self.because[0].upper()}{self.because[1:]}."

    def __str__(self) -> str:
        return f"{self.sentence} {self.fix}"


class CellVerdict(StrEnum):
    """What the table says of a cell."""

    OK = "ok"  # can be trained
    NEEDS = "needs"  # can be trained once gradient checkpointing is changed
    REFUSED = "refused"  # a launch refuses it


@dataclass(frozen=True)
class LeftOut:
    """A kind of adapter that peft knows and the studio does not offer."""

    name: str
    because: str


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    method: str
    precision: str
    device: str
    gradient_checkpointing: bool
    objective: str
    options: Mapping[str, Any]
    verdict: CellVerdict
    because: str = ""
    fix: str = ""


@dataclass(frozen=True)
class MethodTable:
    """What goes together on a device, and what is not offered at all."""

    device: str
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]


def methods(device: str = "auto") -> MethodTable:
    """The whole table for `device`; auto takes what is here."""
    if device == "auto":
        device = hardware.devices()[0].kind
    return MethodTable(device, tuple(table(device)), tuple(left_out()))


def conflicts(config: JobConfig, device: str, model: Mapping[str, Any] | None = None) -> list[Conflict]:
    """Everything that stands against this job on `device` (cuda, cpu), rules first; `model`: config.json of its base."""
    facts = _facts(config, device)
    ruled = [Conflict(rule["because"], rule.get("set", {})) for rule in _rules() if _holds(rule["when"], facts)]
    return [*ruled, *_numbers(config, model)]


def without_device(config: JobConfig) -> list[Conflict]:
    """A GPU that is here and can't be used, unless the job asks for the processor."""
    refusal = hardware.refusal()
    if refusal is None or config.device == "cpu":
        return []
    return [Conflict(refusal.problem.removesuffix("."), {"device": "cpu"}, refusal.fix)]


def table(device: str) -> Iterator[Cell]:
    """Every method with every precision, with and without gradient checkpointing, for every objective."""
    for method, precision, recompute, objective in itertools.product(VARIANTS, PRECISIONS, (False, True), OBJECTIVES):
        own = {**VARIANTS[method], **PRECISIONS[precision], "gradient_checkpointing": recompute, "objective": objective}
        verdict, because, fix = _verdict(conflicts(build(own), device))
        yield Cell(method, precision, device, recompute, objective, own, verdict, because, fix)


def _verdict(found: list[Conflict]) -> tuple[CellVerdict, str, str]:
    """Of a cell, with the first reason and its fix."""
    if not found:
        return CellVerdict.OK, "", ""
    first = found[0]
    if all("gradient_checkpointing" in one.change for one in found):
        return CellVerdict.NEEDS, first.because, first.fix
    return CellVerdict.REFUSED, first.because, first.fix


def left_out() -> list[LeftOut]:
    """Kinds of adapters that are not offered."""
    return [LeftOut(row["name"], row["because"]) for row in _data()["left_out"]]


def _facts(config: JobConfig, device: str) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    entry = config.objective_entry
    flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
    for section in (key for key, value in values.items() if isinstance(value, dict)):
        flat |= {f"{section}.{key}": value for key, value in values[section].items()}
    return {
        **flat,
        "precision": f"{config.quantization.bits}-bit",
        "device": device,
        "packs": entry.packs,
        "follows_order": config.train_sampling_strategy in entry.orders,
        "measures_against_base": entry.measures_against_base,
        "takes_virtual_tokens": entry.takes_virtual_tokens,
    }


def _holds(when: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> bool:
    return all(_is_one(key, allowed, facts) for key, allowed in when.items())


def _is_one(key: str, allowed: list[Any], facts: Mapping[str, Any]) -> bool:
    if key == "missing":
        return any(importlib.util.find_spec(name) is None for name in allowed)
    values = facts[key]
    if not isinstance(values, list):
        values = [values]
    return any(value in allowed for value in values)


def _numbers(config: JobConfig, model: Mapping[str, Any] | None) -> Iterator[Conflict]:
    """Values that parse and still can't work."""
    highest, usual = RATES_OF_WEIGHTS
    if config.method in PROMPTS:
        highest, usual = RATES_OF_PROMPTS
    if config.learning_rate > highest:
        yield Conflict(f"a learning_rate of {config.learning_rate:g} makes {config.method} diverge at once", {"learning_rate": usual})
    weights = config.dpo.loss_weights
    if config.objective == "dpo" and weights is not None and len(weights) != len(config.dpo.loss_type):
        yield Conflict(
            f"dpo.loss_weights has {len(weights)} values for {len(config.dpo.loss_type)} losses",
            {"dpo.loss_weights": [1.0] * len(config.dpo.loss_type)},
        )
    if config.method == "ia3" and (config.ia3.target_modules == "auto") != (config.ia3.feedforward_modules is None):
        yield Conflict("ia3.target_modules and ia3.feedforward_modules are named together or left to auto together", {
            "ia3.target_modules": "auto", "ia3.feedforward_modules": None,
        })  # fmt: skip
    for problem in rope.problems(config.rope, model):
        yield Conflict(problem.because, problem.change, problem.advice)
    if model is not None:
        yield from _against_model(config, model)


def _against_model(config: JobConfig, model: Mapping[str, Any]) -> Iterator[Conflict]:
    try:
        shape = decoder(model, context=rope.longer(model, config.rope))
    except ModelError:
        return  # nobody knows its sizes
    context = shape.context
    if config.max_length > context > 0:
        yield Conflict(f"max_length={config.max_length} is longer than the {context} tokens this model reads", {"max_length": context})
    in_front = config.method in PROMPTS
    tokens = config.prompt.num_virtual_tokens
    if in_front and tokens >= context // 2 > 0:
        yield Conflict(
            f"{tokens} virtual tokens leave too little of the {context} that this model reads", {"prompt.num_virtual_tokens": context // 8}
        )
    narrowest = _narrowest(config, shape)
    if narrowest and config.lora.r > narrowest.width:
        because = f"a rank of {config.lora.r} is more than the {narrowest.width} that its layer {narrowest.name} is wide"
        yield Conflict(because, {"lora.r": narrowest.width})


@dataclass(frozen=True)
class NarrowestLayer:
    """The layer that bounds the rank of a LoRA: a matrix of rank r is at least r wide."""

    name: str
    width: int


def narrowest_layer(config: JobConfig, model: Mapping[str, Any]) -> NarrowestLayer | None:
    """Of the layers that a LoRA of this configuration goes to; None for other methods and for models of unknown shape."""
    try:
        return _narrowest(config, decoder(model))
    except ModelError:
        return None


def _narrowest(config: JobConfig, shape: Decoder) -> NarrowestLayer | None:
    """Of the layers of the blocks that a LoRA goes to; the switch between experts is narrow by nature and does not count."""
    if config.method != "lora":
        return None
    targets = trained(shape, config)
    layers = [layer for block in shape.blocks for layer in targets.linears(block) if layer.kind != WeightKind.ROUTER]
    widths = [NarrowestLayer(layer.name.rpartition(".")[2], min(layer.rows, layer.columns)) for layer in layers]
    return min(widths, key=lambda layer: layer.width, default=None)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _rules() -> list[dict[str, Any]]:
    return list(_data()["rule"])


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(RULES.read_text(encoding="utf-8"))
