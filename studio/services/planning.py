"""The fastest way to train a configuration in the memory that there is: fewer rows at once, recomputing, a paged optimizer, shorter rows.

Every choice keeps the rows per step, so only a shorter length changes what is learned; it comes last. Starts nothing; knows no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from jobs import config as job_config
from jobs.config import JobConfig
from studio.catalogue import memory
from studio.catalogue.compatibility import conflicts
from studio.catalogue.memory import Prediction
from studio.errors import StudioError
from studio.records import MemoryPlan, PlanChange

GIB = 1024**3
LENGTH_STEP, SHORTEST = 64, 128  # tokens
RECOMPUTING_COST = 1.3  # of a step: one more forward pass
PAGED_COST = 1.03
PASS_TOKENS = {"cuda": 300, "cpu": 30}  # what a pass costs whatever its size, in tokens: bringing weights out of 4 bits, starting kernels
PAGED = "paged_adamw_8bit"
ADAMS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit")  # PAGED computes the same with less
EVALUATION = "evaluation"  # a moment of studio.catalogue.memory
REASONS = {
    "per_device_train_batch_size": "fewer rows at once hold fewer activations",
    "gradient_accumulation_steps": "as many rows per step as before",
    "gradient_checkpointing": "activations are computed again instead of kept; about a third slower",
    "per_device_eval_batch_size": "the evaluation would take more memory than the training",
    "optim": "optimizer states of 8 bits, which move to main memory when the GPU is full",
    "max_length": "nothing else is left to save; longer rows are cut there",
}
# the least that a training needs: whether a model can be trained here at all
SMALLEST: dict[str, JsonValue] = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "per_device_eval_batch_size": 1}
FREE = frozenset({"per_device_eval_batch_size", "gradient_checkpointing"})  # changes that a launch makes itself: they change no step


@dataclass(frozen=True)
class FitQuestion:
    """One question: this job, on this model, there."""

    config: dict[str, Any]
    job: JobConfig
    device: str
    room: int | None  # bytes that a training may take; None where the device is not known
    correction: float = 1.0
    refusals: tuple[str, ...] = ()  # what the probe of the model says against it

    def predict(self, **changes: Any) -> Prediction:
        job = self.job
        if changes:
            job = job_config.build(job.model_dump(mode="json"), changes)
        return memory.predict(self.config, job, device=self.device)

    def bytes(self, **changes: Any) -> int:
        found = self.predict(**changes)
        return round(found.total * self.correction) + found.process

    def fits(self, **changes: Any) -> bool:
        return self.room is not None and self.bytes(**changes) <= self.room


def plan(asked: FitQuestion, among: frozenset[str] | None = None) -> MemoryPlan | None:
    """The fastest that fits, or the smallest where nothing does; None where the room is not known.

    `among`: the options that may change; None for all that a plan knows.
    """
    if asked.room is None:
        return None
    if asked.fits():
        return _described(asked, {}, True)
    choices = [one for one in _choices(asked) if among is None or among >= one.keys()]
    choices = [one for one in choices if _is_allowed(asked, one)]
    fitting = [one for one in choices if asked.fits(**one)]
    if fitting:
        return _described(asked, min(fitting, key=lambda one: _cost(asked, one)), True)
    if not choices:
        return _described(asked, {}, False)
    smallest = min(choices, key=lambda one: asked.bytes(**one))
    if among is None or "max_length" in among:
        length = _longest(asked, smallest)
        if length:
            return _shortened(asked, choices, smallest, length)
    return _described(asked, smallest, False)


def _choices(asked: FitQuestion) -> Iterator[dict[str, JsonValue]]:
    """Every way but a shorter length, as changes of options."""
    job = asked.job
    rows = job.per_device_train_batch_size
    batches = [rows // 2**power for power in range(rows.bit_length()) if rows % 2**power == 0]
    recomputing = [job.gradient_checkpointing] if job.gradient_checkpointing else [False, True]
    optimizers: list[str] = [job.optim]
    if asked.device == "cuda" and job.optim in ADAMS:
        optimizers.append(PAGED)
    for batch, again, optim in itertools.product(batches, recomputing, optimizers):
        chosen: dict[str, JsonValue] = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": job.gradient_accumulation_steps * (rows // batch),
            "gradient_checkpointing": again,
            "optim": optim,
        }
        changes = {key: value for key, value in chosen.items() if value != getattr(job, key)}
        yield _with_evaluation(asked, changes, batch)


def _with_evaluation(asked: FitQuestion, changes: dict[str, JsonValue], batch: int) -> dict[str, JsonValue]:
    """The evaluation's batch follows the training's where it decides the peak."""
    rows = asked.job.per_device_eval_batch_size
    for smaller in (rows, min(rows, batch), 1):
        following = changes if smaller == rows else {**changes, "per_device_eval_batch_size": smaller}
        try:
            if asked.predict(**following).moment != EVALUATION:
                return following
        except StudioError:
            return changes
    return following


def _is_allowed(asked: FitQuestion, changes: Mapping[str, JsonValue]) -> bool:
    """Whether a launch would take these changes, as far as it takes the configuration without them."""
    try:
        changed = job_config.build(asked.job.model_dump(mode="json"), changes)
        asked.bytes(**changes)
    except StudioError:
        return False
    stands = {str(conflict) for conflict in conflicts(asked.job, asked.device, asked.config)}
    return {str(conflict) for conflict in conflicts(changed, asked.device, asked.config)} <= stands


def _cost(asked: FitQuestion, changes: Mapping[str, Any]) -> float:
    """Time per token beside other choices, without a unit."""
    job = asked.job
    rows = changes.get("per_device_train_batch_size", job.per_device_train_batch_size)
    length = changes.get("max_length", job.max_length)
    cost = 1 + PASS_TOKENS[asked.device] / (rows * length)
    if changes.get("gradient_checkpointing", job.gradient_checkpointing):
        cost *= RECOMPUTING_COST
    if "optim" in changes:
        cost *= PAGED_COST
    return cost


def _longest(asked: FitQuestion, changes: Mapping[str, JsonValue]) -> int:
    """The longest length below the chosen one with which `changes` fit; 0 where none does."""
    low, high = SHORTEST // LENGTH_STEP - 1, (asked.job.max_length - 1) // LENGTH_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if asked.fits(**changes, max_length=middle * LENGTH_STEP):
            low = middle
        else:
            high = middle - 1
    return low * LENGTH_STEP if low * LENGTH_STEP >= SHORTEST else 0


def _shortened(asked: FitQuestion, choices: Sequence[dict[str, JsonValue]], smallest: dict[str, JsonValue], length: int) -> MemoryPlan:
    shorter = [{**one, "max_length": length} for one in choices]
    fitting = [one for one in shorter if asked.fits(**one)]
    found = _described(asked, min(fitting, key=lambda one: _cost(asked, one)), True)
    needed, room = asked.bytes(**smallest), asked.room or 0
    beside = (
        f"max_length={asked.job.max_length:,} would need {needed / GIB:.2f} GiB at the least, and {room / GIB:.2f} GiB are available: "
        f"{(needed - room) / GIB:.2f} GiB too few."
    )
    return found.model_copy(update={"beside": beside})


def _described(asked: FitQuestion, options: dict[str, JsonValue], fits: bool) -> MemoryPlan:
    changes = [PlanChange(option=key, value=value, before=getattr(asked.job, key), reason=REASONS[key]) for key, value in options.items()]
    return MemoryPlan(changes=changes, options=options, needed_bytes=asked.bytes(**options), fits=fits, beside="")


def sentence(change: PlanChange) -> str:
    """One change for people."""
    return f"{change.option}={text(change.value)} instead of {text(change.before)}: {change.reason}."


def text(value: JsonValue) -> str:
    """As a person writes it behind --set."""
    return str(value).lower() if isinstance(value, bool) else str(value)
