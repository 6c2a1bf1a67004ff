"""Exceptions of a training as one sentence and its fix. The log keeps the traceback; a person reads this."""

from __future__ import annotations

import errno
import re

from studio.errors import StudioError

LESS_MEMORY = (
    "Halve per_device_train_batch_size and double gradient_accumulation_steps, lower max_length, "
    "turn gradient_checkpointing on, or keep the base in 4 bits (recipe qlora-sft)."
)
LOOK_AT_LOG = "The job's log has the details; `studio jobs logs` shows it."


class DivergedError(StudioError):
    """Loss, gradient or weights are no longer numbers."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"Training diverged: the {what} is not a number any more at step {step}.",
            "Lower learning_rate (a third of it is a good next try), add warmup_steps, or look for broken rows in the data.",
        )


def explain(exc: BaseException) -> tuple[str, str]:
    """(reason, fix)."""
    if isinstance(exc, StudioError):
        return exc.message, exc.fix
    text = " ".join(str(exc).split())
    if _is_out_of_memory(exc, text):
        where = "on the GPU" if "cuda" in text.lower() else "of this machine"
        return f"The memory {where} is not enough for this job.", LESS_MEMORY
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" (writing {exc.filename})" if exc.filename else ""
        return f"The disk is full{place}.", "Free some space, for example by deleting old runs, and run the job again."
    if isinstance(exc, ImportError):
        return f"A package that these options need is missing: {_short(text)}.", "Install it, or choose other options (optim, report_to)."
    return f"Training ended with an error: {type(exc).__name__}: {_short(text)}.", LOOK_AT_LOG


def _is_out_of_memory(exc: BaseException, text: str) -> bool:
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    return isinstance(exc, RuntimeError) and bool(re.search(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", text, re.I))


def _short(text: str, limit: int = 300) -> str:
    return (text if len(text) <= limit else text[: limit - 1] + "…").rstrip(".") or "no message"
