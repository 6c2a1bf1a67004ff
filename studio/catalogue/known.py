"""The base models that people use, as models.toml lists them: sizes, licence, what they are good for, why some are refused.

Knows nothing of what was added here, and asks no network.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.catalogue.architecture import decoder

LIST = Path(__file__).with_name("models.toml")
REFUSED = {
    "pickle": "Its weights are in a format that can run code when it is opened (no safetensors).",
    "remote-code": "It needs Python code of its own, which the studio never runs.",
    "quantised": "Its weights are stored quantised; the studio trains on 16-bit versions.",
}


@dataclass(frozen=True)
class KnownModel:
    """One line of the list. `config`: the sizes of its config.json."""

    repository: str
    licence: str
    template: str
    good_for: str
    is_gated: bool
    weights: str
    config: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        return decoder(self.config).parameters

    @property
    def context(self) -> int:
        return decoder(self.config).context

    @property
    def refusal(self) -> str:
        """Why it can't be added; "" where nothing is known against it."""
        return REFUSED.get(self.weights, "")


@functools.cache
def known_models() -> tuple[KnownModel, ...]:
    """In the order of the file: families together, the most used first."""
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))["model"]
    return tuple(
        KnownModel(
            row["repository"], row["licence"], row["template"], row["good_for"], bool(row["gated"]), row["weights"], dict(row["config"])
        )
        for row in rows
    )
