"""The best evaluation of a run so far, and when to end a run that gets no better. Knows neither checkpoints nor torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """The lowest loss on the held-out rows; `step` is None before the first evaluation. `patience` None: never end."""

    patience: int | None = None
    step: int | None = None
    loss: float = math.inf
    worse: int = 0  # evaluations since

    def see(self, step: int, loss: float) -> bool:
        """Take an evaluation into account; whether it is the best so far. A loss that is no number never is."""
        if loss < self.loss:
            self.step, self.loss, self.worse = step, loss, 0
            return True
        self.worse += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether the run has been without a better evaluation for long enough."""
        return self.patience is not None and self.worse >= self.patience

    def forget(self) -> None:
        """The checkpoint that went with it is lost: choose anew among the evaluations to come."""
        self.step, self.loss, self.worse = None, math.inf, 0

    def as_json(self) -> dict[str, Any]:
        return {"step": self.step, "loss": self.loss if self.step is not None else None, "worse": self.worse}

    def restore(self, values: dict[str, Any]) -> None:
        if values.get("step") is not None:
            self.step, self.loss = int(values["step"]), float(values["loss"])
        self.worse = int(values.get("worse", 0))
