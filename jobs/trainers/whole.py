"""For trl's older trainers (ORPO's), which take whole sequences and would recast a quantised base.

The job and its bare script both put `OnTheBase` before trl's trainer.
"""

from __future__ import annotations

from typing import Any

from peft import get_peft_model
from transformers import set_seed


class OnTheBase:
    """Put before such a trainer: the base stays as chat has it, and the rows are tokens already."""

    _total_train_tokens = 0

    def __init__(self, *, model: Any, peft_config: Any, **kwargs: Any) -> None:
        # left to itself the trainer makes float32 of what a quantised base keeps in 16 bits, and learns on another model
        set_seed(kwargs["args"].seed)
        if peft_config:
            model = get_peft_model(model, peft_config)
        super().__init__(model=model, **kwargs)  # type: ignore[call-arg]

    @property
    def _metrics(self) -> Any:
        """The counts under the name that trl's other trainers give them."""
        return self._stored_metrics  # type: ignore[attr-defined]

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model.training:  # type: ignore[attr-defined]
            self._total_train_tokens += int(inputs["chosen_attention_mask"].sum() + inputs["rejected_attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            return super().prediction_step(*args, **kwargs)  # type: ignore[misc]


def columns(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """Of a row with `prompt_ids`, `chosen_ids` and `rejected_ids`."""
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
