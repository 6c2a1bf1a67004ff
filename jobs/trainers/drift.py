"""Forgetting: how much less likely than the base alone the model finds good answers to a few general questions.

The questions ship with the studio (general.jsonl) and are none of anybody's training data. Drift is in nats per token of the
answers, 0 at the start; its exponential says by how much an average token has become less likely. Knows no torch.
"""

from __future__ import annotations

import math
from pathlib import Path

GENERAL = Path(__file__).with_name("general.jsonl")
MUCH = 0.5  # nats per token: an average token of a good answer has lost about 40 % of its probability


def advice(drift: float | None) -> str:
    """What to tell a person of the latest drift; "" while there is nothing to tell."""
    if drift is None or drift < MUCH:
        return ""
    return (
        f"It forgets: good answers to general questions are {math.exp(drift):.1f} times less likely per token than with the base alone. "
        "If it shall answer more than its own rows, lower learning_rate or num_train_epochs, or mix general rows into the data."
    )
