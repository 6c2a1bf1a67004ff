"""What training optimises, as trl's trainer and its arguments: read from the entries of jobs/objectives.py.

The rows are tokens already (see rows.py), so trl's own preparation of datasets is left out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from jobs.config import PASSED_THROUGH, JobConfig
from jobs.objectives import OBJECTIVES, RowForm, TrainerFamily

MOST_PADDING = 0.15  # of a batch of random rows; above it, rows of like length are computed together


def trainer_class(objective: str) -> type:
    """trl's trainer of this objective, with exact checkpoints, for rows that are tokens already."""
    entry = OBJECTIVES[objective]
    return _CLASSES[entry.family](_of_trl(entry.trainer))


def arguments(config: JobConfig, common: dict[str, Any]) -> Any:
    """trl's arguments of this objective; `common` are those that no option decides."""
    return _of_trl(config.objective_entry.arguments)(**option_values(config), **common)


def option_values(config: JobConfig) -> dict[str, Any]:
    """What the options say, as plain values under the names of trl's configuration class."""
    entry = config.objective_entry
    values = {
        **config.model_dump(mode="json", include=set(PASSED_THROUGH)),
        "gradient_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing": config.gradient_checkpointing,
        "train_sampling_strategy": config.train_sampling_strategy,
        **config.own_options(),
        **entry.fixed,
    }
    if config.method == "full":
        values.pop("router_aux_loss_coef", None)  # the switches between experts are trained too, with trl's loss for them
    if not entry.packs:
        values.pop("packing")
    if entry.family is TrainerFamily.SFT:
        values["dataset_kwargs"] = {"skip_prepare_dataset": not config.packing}
    else:
        values["disable_dropout"] = config.lora.lora_dropout == 0
    return values


def _of_trl(path: str) -> Any:
    """The class that `module:Class` names."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning that a person at a form can do nothing about
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def sampling(config: JobConfig, lengths: list[int]) -> str:
    """The order of rows for this job: what was asked for, else what the lengths of its rows (in tokens) advise."""
    if config.train_sampling_strategy != "auto":
        return config.train_sampling_strategy
    may_rebalance = "batch_rebalance" in config.objective_entry.orders and not config.packing
    if not may_rebalance or config.gradient_accumulation_steps == 1:
        return "random"
    if padding_share(lengths, config.per_device_train_batch_size) > MOST_PADDING:
        return "batch_rebalance"
    return "random"


def padding_share(lengths: list[int], size: int) -> float:
    """Share of padding in batches of `size` rows taken at random, to be expected: 1 - mean length / mean of the longest of `size`."""
    ordered, count = sorted(lengths), len(lengths)
    # the longest of `size` random rows is the i-th of all, counted from 1, with probability (i/n)^size - ((i-1)/n)^size
    longest = sum(length * ((i / count) ** size - ((i - 1) / count) ** size) for i, length in enumerate(ordered, 1))
    if not longest:
        return 0.0
    return 1 - sum(ordered) / count / longest


def in_parts(size: int) -> tuple[int, int]:
    """The same rows per step from smaller batches: a batch size of about a quarter, and how many of them are accumulated."""
    part = next(part for part in range(max(size // 4, 1), 0, -1) if size % part == 0)
    return part, size // part


def ready_rows(dataset: Any, config: JobConfig) -> Any:
    """The columns that this objective's trainer wants, from those of rows.py."""
    entry = config.objective_entry
    if entry.family is TrainerFamily.WHOLE:
        from jobs.trainers import whole

        return dataset.map(whole.columns, remove_columns=dataset.column_names)
    if entry.rows is RowForm.MARKED:
        return _mixed_with_neighbours(dataset, config)
    return dataset


def _mixed_with_neighbours(dataset: Any, config: JobConfig) -> Any:
    """trl takes the rows as they are, since each is measured against a neighbour in its batch: they are mixed here, once."""
    if config.train_sampling_strategy != "sequential":
        dataset = dataset.shuffle(seed=config.seed).flatten_indices()
    if config.kto.loss_type != "kto":
        return dataset
    return dataset.map(_neighbours, batched=True, batch_size=config.per_device_train_batch_size)


def _neighbours(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """As trl does: each row's prompt with the answer of the row before it in its batch."""
    answers = rows["completion_ids"]
    return {"KL_completion_ids": [answers[-1], *answers[:-1]]}


class PreparedRows:
    """For trainers that would tokenise what they are given."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _sft_class(trainer: type) -> type:
    from jobs.trainers.exact import Exact

    return type(f"Exact{trainer.__name__}", (Exact, trainer), {})


def _prepared_class(trainer: type) -> type:
    from jobs.trainers.exact import Exact

    return type(f"Exact{trainer.__name__}", (Exact, PreparedRows, trainer), {})


def _whole_class(trainer: type) -> type:
    from jobs.trainers.exact import Exact
    from jobs.trainers.whole import OnTheBase

    return type(f"Exact{trainer.__name__}", (Exact, OnTheBase, trainer), {})


_CLASSES: dict[TrainerFamily, Callable[[type], type]] = {
    TrainerFamily.SFT: _sft_class,
    TrainerFamily.PREPARED: _prepared_class,
    TrainerFamily.WHOLE: _whole_class,
}
