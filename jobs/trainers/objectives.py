"""What training optimises: each objective of JobConfig as trl's trainer and its arguments. Knows no method and no files.

The rows are tokens already (see rows.py), so trl's own preparation of datasets is left out.
"""

from __future__ import annotations

import os
from typing import Any

from jobs.config import PASSED_THROUGH, JobConfig

ONLY_IMITATION = ("packing", "train_sampling_strategy")
MOST_PADDING = 0.15  # of a batch of random rows; above it, rows of like length are computed together


def trainer_class(objective: str) -> type:
    """trl's trainer of this objective, with exact checkpoints, for rows that are tokens already."""
    return _CLASSES[objective]()


def arguments(config: JobConfig, common: dict[str, Any]) -> Any:
    """trl's arguments of this objective; `common` are those that no option decides."""
    passed = config.model_dump(include=set(PASSED_THROUGH))
    shared = {**passed, "gradient_checkpointing": config.gradient_checkpointing, "train_sampling_strategy": "random", **common}
    if config.objective in ("sft", "continued-pretraining"):
        from trl import SFTConfig

        strategy = config.train_sampling_strategy
        own = {"eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": not config.packing}, "train_sampling_strategy": strategy}
        return SFTConfig(**{**shared, **own})
    shared.pop("packing")
    return _CONFIGS[config.objective](config, shared)


def sampling(config: JobConfig, lengths: list[int]) -> str:
    """The order of rows for this job: what was asked for, else what the lengths of its rows (in tokens) advise."""
    if config.train_sampling_strategy != "auto":
        return config.train_sampling_strategy
    imitates = config.objective in ("sft", "continued-pretraining") and not config.packing
    size = config.per_device_train_batch_size
    if not imitates or config.gradient_accumulation_steps == 1:
        return "random"
    return "batch_rebalance" if padding_share(lengths, size) > MOST_PADDING else "random"


def padding_share(lengths: list[int], size: int) -> float:
    """Share of padding in batches of `size` rows taken at random, to be expected: 1 - mean length / mean of the longest of `size`."""
    ordered, count = sorted(lengths), len(lengths)
    # the longest of `size` random rows is the i-th of all, counted from 1, with probability (i/n)^size - ((i-1)/n)^size
    longest = sum(length * ((i / count) ** size - ((i - 1) / count) ** size) for i, length in enumerate(ordered, 1))
    return 1 - sum(ordered) / count / longest if longest else 0.0


def in_parts(size: int) -> tuple[int, int]:
    """The same rows per step from smaller batches: a batch size of about a quarter, and how many of them are accumulated."""
    part = next(part for part in range(max(size // 4, 1), 0, -1) if size % part == 0)
    return part, size // part


def ready_rows(dataset: Any, config: JobConfig) -> Any:
    """The columns that this objective's trainer wants, from those of rows.py."""
    if config.objective == "orpo":
        return dataset.map(_orpo_columns, remove_columns=dataset.column_names)
    if config.objective == "kto":
        # trl takes the rows as they are, since each is measured against a neighbour in its batch: mix them here, once
        mixed = dataset.shuffle(seed=config.seed).flatten_indices() if config.train_sampling_strategy != "sequential" else dataset
        size = config.per_device_train_batch_size
        return mixed.map(_neighbours, batched=True, batch_size=size) if config.kto.loss_type == "kto" else mixed
    return dataset


def _neighbours(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """As trl does: each row's prompt with the answer of the row before it in its batch."""
    answers = rows["completion_ids"]
    return {"KL_completion_ids": [answers[-1], *answers[:-1]]}


def _orpo_columns(row: dict[str, list[int]]) -> dict[str, list[int]]:
    prompt = row["prompt_ids"]
    found = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = row[f"{name}_ids"]
        found |= {
            f"{name}_input_ids": prompt + answer,
            f"{name}_attention_mask": [1] * (len(prompt) + len(answer)),
            f"{name}_labels": [-100] * len(prompt) + answer,
        }
    return found


def _dpo_arguments(config: JobConfig, shared: dict[str, Any]) -> Any:
    from trl import DPOConfig

    return DPOConfig(**shared, **config.dpo.model_dump(), disable_dropout=config.lora.lora_dropout == 0)


def _kto_arguments(config: JobConfig, shared: dict[str, Any]) -> Any:
    from trl import KTOConfig

    fixed = {"train_sampling_strategy": "sequential", "disable_dropout": config.lora.lora_dropout == 0}
    return KTOConfig(**{**shared, **config.kto.model_dump(), **fixed})


def _orpo_arguments(config: JobConfig, shared: dict[str, Any]) -> Any:
    orpo = _orpo_module()
    return orpo.ORPOConfig(**shared, beta=config.orpo.beta, disable_dropout=config.lora.lora_dropout == 0, remove_unused_columns=False)


def _orpo_module() -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning that nobody at a form can act on
    from trl.experimental import orpo

    return orpo


class Ready:
    """For trainers that would tokenise what they are given."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _sft_class() -> type:
    from trl import SFTTrainer

    from jobs.trainers.exact import Exact

    return type("ExactSFTTrainer", (Exact, SFTTrainer), {})


def _dpo_class() -> type:
    from trl import DPOTrainer

    from jobs.trainers.exact import Exact

    return type("ExactDPOTrainer", (Exact, Ready, DPOTrainer), {})


def _kto_class() -> type:
    from trl import KTOTrainer

    from jobs.trainers.exact import Exact

    return type("ExactKTOTrainer", (Exact, Ready, KTOTrainer), {})


def _orpo_class() -> type:
    from peft import get_peft_model
    from transformers import set_seed

    from jobs.trainers.exact import Exact

    class ExactORPOTrainer(Exact, _orpo_module().ORPOTrainer):  # type: ignore[misc]
        """Keeps the counts that the other trainers keep, and trains and evaluates on the base as chat will have it."""

        _total_train_tokens = 0

        def __init__(self, *, model: Any, peft_config: Any, **kwargs: Any) -> None:
            # left to itself this trainer makes float32 of what a quantised base keeps in 16 bits, and learns on another model
            set_seed(kwargs["args"].seed)
            super().__init__(model=get_peft_model(model, peft_config) if peft_config else model, **kwargs)

        @property
        def _metrics(self) -> Any:
            return self._stored_metrics

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            return feature

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.model.training:
                self._total_train_tokens += int(inputs["chosen_attention_mask"].sum() + inputs["rejected_attention_mask"].sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            with self.compute_loss_context_manager():
                return super().prediction_step(*args, **kwargs)

    return ExactORPOTrainer


_CLASSES = {"sft": _sft_class, "continued-pretraining": _sft_class, "dpo": _dpo_class, "kto": _kto_class, "orpo": _orpo_class}
_CONFIGS = {"dpo": _dpo_arguments, "kto": _kto_arguments, "orpo": _orpo_arguments}
