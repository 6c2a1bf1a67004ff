"""Training in float16: the loss is multiplied by a scale, so that small gradients do not become zero.

Where a gradient overflows, torch's GradScaler skips the step and halves the scale, and doubles it again after 2,000 steps without an
overflow: a skipped step now and then is its normal work. Many in a row are told, and a scale below 1 ends the run.
"""

from __future__ import annotations

from typing import Any

import torch

from jobs.trainers.events import EventLog
from jobs.trainers.failures import DivergedError

TOLD_AFTER = 20  # skipped steps in a row
LEAST_SCALE = 1.0


def scale_on_a_processor(accelerator: Any) -> None:
    """float16 on a CPU as on a GPU: accelerate gives it neither autocast nor a scaler there."""
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu")


class SkippedSteps:
    """Counts the steps that the scaler has skipped. `accelerator` is the trainer's."""

    def __init__(self, accelerator: Any, log: EventLog) -> None:
        self._accelerator = accelerator
        self._log = log
        self.count = 0
        self._in_a_row = 0

    @property
    def is_scaled(self) -> bool:
        return self._accelerator.scaler is not None

    def restore(self, count: int, in_a_row: int) -> None:
        self.count, self._in_a_row = count, in_a_row

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "in_a_row": self._in_a_row}

    def figures(self) -> dict[str, int]:
        """For the card of the adapter; {} where nothing was skipped."""
        if not self.count:
            return {}
        return {"skipped_steps": self.count}

    def see(self, step: int) -> None:
        """Look at the optimizer step that has just been taken or skipped. Raises DivergedError where no scale is small enough."""
        if not self.is_scaled:
            return
        if not self._accelerator.optimizer_step_was_skipped:
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        scale = self._accelerator.scaler.get_scale()
        if scale < LEAST_SCALE:
            raise DivergedError("gradient", step, in_float16=True)
        if self._in_a_row == TOLD_AFTER:
            self._log.notice(
                f"The last {TOLD_AFTER} steps, up to step {step}, were skipped because gradients overflowed float16; the scale of the loss "
                f"is down to {scale:g}. Should it go on, stop the run and set dtype=float32."
            )
