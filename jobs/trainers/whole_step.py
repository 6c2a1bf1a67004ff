"""The state at the end of the last whole step: what a stop goes back to that comes while batches are added up to the next one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch


@dataclass(frozen=True)
class RandomStates:
    """Of all generators that a training draws from."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    on_devices: list[torch.Tensor]

    @classmethod
    def take(cls) -> Self:
        on_devices = []
        if torch.cuda.is_initialized():
            on_devices = torch.cuda.get_rng_state_all()
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), on_devices)

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.on_devices:
            torch.cuda.set_rng_state_all(self.on_devices)


@dataclass(frozen=True)
class WholeStep:
    """`unlogged`: sums since the last log, as Exact.unlogged gives them. The weights need no copy: they change at the end of a step only."""

    step: int
    states: RandomStates
    unlogged: dict[str, Any]
