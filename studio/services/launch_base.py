"""What a launch asks of the base itself, in a child process: whether it takes the chosen positions, and has the layers that are named."""

from __future__ import annotations

from typing import Any

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue import named_targets, rope, rotary
from studio.catalogue.models import ModelRef
from studio.errors import ConfigError, ModelError
from studio.records import Probe


def check_positions(config: JobConfig, model: ModelRef) -> None:
    """Refuses a rope section that the base's own code can't take. Raises ConfigError with the change that leaves it out."""
    try:
        rotary.check_in_child(model.path, config.rope)
    except ModelError as refusal:
        raise ConfigError(refusal.message, refusal.fix, change=rope.none_of(config.rope)) from None


def check_names(config: JobConfig, model: ModelRef, probe: Probe) -> None:
    """Refuses names of layers that the base does not have. Raises ConfigError with the change that lets the method choose."""
    try:
        named_targets.check_in_child(model.path, config, probe)
    except ModelError as refusal:
        change: dict[str, Any] = {"lora.target_modules": ALL_LINEAR}
        if config.method == "ia3":
            change = {"ia3.target_modules": "auto", "ia3.feedforward_modules": None}
        raise ConfigError(refusal.message, refusal.fix, change=change) from None
