"""The failure doctor: exceptions of a training as one sentence, its fix, and the options that would help.

The log keeps the traceback; a person reads the sentence, a program `cause` and `remedy`. Knows no torch: it goes by names
and words. Knows nothing of who asks: trainer and worker both do.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from typing import Any

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.errors import DatasetError, ModelError, StudioError

OUT_OF_MEMORY, DIVERGED, DISK_FULL, DRIVER = "out_of_memory", "diverged", "disk_full", "driver"
BAD_ROW, MODEL, OPTIONS, PACKAGE = "bad_row", "model", "options", "package"
LESS_MEMORY = (
    "Halve per_device_train_batch_size and double gradient_accumulation_steps, lower max_length, "
    "turn gradient_checkpointing on, or keep the base in 4 bits (recipe qlora-sft)."
)
LOOK_AT_LOG = "The job's log has the details; `studio jobs logs` shows it."
SHORTEST = 128  # max_length is not halved below this by a remedy

WITHOUT_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|unable to allocate"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.I,
)
WRONG_DRIVER = re.compile(
    r"driver .{0,60}(too old|insufficient|version)|no kernel image is available|CUDA driver|nvidia driver|Driver/library version mismatch"
    r"|device kernel image is invalid|PTX was compiled",
    re.I,
)
BROKEN_DEVICE = re.compile(r"CUDA error|CUDNN_STATUS|CUBLAS_STATUS|device-side assert", re.I)
BROKEN_WEIGHTS = re.compile(r"SafetensorError|Error while deserializing header|size mismatch|does not appear to have a file named", re.I)
GATED = re.compile(r"gated repo|401 Client Error|403 Client Error|is not a local folder|offline mode|couldn't connect to|OfflineMode", re.I)
UNFIT = re.compile(
    r"Target modules? .{0,200}not found|is not supported|not supported for|please check the target modules"
    r"|does not support gradient checkpointing|Unrecognized (configuration|model)",
    re.I,
)


@dataclass(frozen=True)
class Failure:
    """`remedy`: dotted options for the next try; empty where no option would help."""

    reason: str
    fix: str
    cause: str = ""
    remedy: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"reason": self.reason, "fix": self.fix, "cause": self.cause, "remedy": self.remedy}


class DivergedError(StudioError):
    """Loss, gradient or weights are no longer numbers."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"Training diverged: the {what} is not a number any more at step {step}.",
            "Lower learning_rate (a third of it is a good next try), add warmup_steps, or look for broken rows in the data.",
        )


class Divergence:
    """Watches the loss of a run that climbs instead of falling. A notice, once; training goes on, since it may come back."""

    FACTOR, FIRST, LONG = 2.0, 5, 20  # times its start (the mean of the first points), for so many points in a row

    def __init__(self) -> None:
        self._start: list[float] = []
        self._above = 0
        self._told = False

    def notice(self, step: int, loss: float) -> str:
        """The sentence to tell a person at this point; "" at nearly all."""
        if len(self._start) < self.FIRST:
            self._start.append(loss)
            return ""
        start = sum(self._start) / len(self._start)
        self._above = self._above + 1 if loss > self.FACTOR * start else 0
        if self._told or self._above < self.LONG:
            return ""
        self._told = True
        return (
            f"The loss has been above {self.FACTOR:g} times its start ({start:.3g}) for {self.LONG} points, up to step {step}: "
            "training diverges. Stop it and lower learning_rate."
        )


CAUSES: dict[type[StudioError], str] = {DatasetError: BAD_ROW, ModelError: MODEL}


def explain(exc: BaseException, config: JobConfig | None = None) -> Failure:
    """What went wrong, for a person and for a program; with `config` also the options that would help."""
    text = " ".join(str(exc).split())
    if isinstance(exc, DivergedError):
        return Failure(exc.message, exc.fix, DIVERGED, steadier(config))
    if isinstance(exc, StudioError):
        cause = next((cause for kind, cause in CAUSES.items() if isinstance(exc, kind)), OPTIONS)
        return Failure(exc.message, exc.fix, cause, dict(exc.details.get("remedy") or {}))
    if _is_out_of_memory(exc, text):
        where = "on the GPU" if "cuda" in text.lower() else "of this machine"
        return Failure(f"The memory {where} is not enough for this job.", LESS_MEMORY, OUT_OF_MEMORY, less_memory(config))
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        place = ""
        if exc.filename:
            place = f" (writing {exc.filename})"
        fix = "Free some space, for example by deleting old runs, then `studio jobs retry` goes on from the last checkpoint."
        return Failure(f"The disk is full{place}.", fix, DISK_FULL)
    if isinstance(exc, ImportError):
        return _missing_package(text, config)
    return _by_words(exc, text, config) or Failure(f"Training ended with an error: {type(exc).__name__}: {_short(text)}.", LOOK_AT_LOG)


def smaller_batch(config: JobConfig) -> dict[str, int]:
    """The same rows per step from batches of half the size or less; {} where a batch is one row already."""
    size = config.per_device_train_batch_size
    if size == 1:
        return {}
    half = max(part for part in range(1, size // 2 + 1) if size % part == 0)
    found = {"per_device_train_batch_size": half, "gradient_accumulation_steps": config.gradient_accumulation_steps * (size // half)}
    at_evaluation = max(half, config.per_device_eval_batch_size // 2)
    if at_evaluation < config.per_device_eval_batch_size:
        found["per_device_eval_batch_size"] = at_evaluation
    return found


def less_memory(config: JobConfig | None) -> dict[str, Any]:
    """The next step that saves memory and changes least: smaller batches, then recomputing, 4 bits, shorter rows."""
    if config is None:
        return {}
    if smaller := smaller_batch(config):
        return smaller
    if not config.gradient_checkpointing and config.method != "prefix-tuning":
        return {"gradient_checkpointing": True}
    needs_whole_weights = config.method == "full" or config.lora.init_lora_weights == "pissa"
    if not config.quantization.load_in_4bit and not needs_whole_weights:
        remedy = {"quantization.load_in_4bit": True}
        if config.quantization.load_in_8bit:
            remedy["quantization.load_in_8bit"] = False
        return remedy
    if config.max_length < 2 * SHORTEST:
        return {}
    return {"max_length": config.max_length // 2}


def steadier(config: JobConfig | None) -> dict[str, Any]:
    """A third of the learning rate, and some steps to get there."""
    if config is None:
        return {}
    return {"learning_rate": float(f"{config.learning_rate / 3:.2g}"), "warmup_steps": max(config.warmup_steps, 10)}


def _by_words(exc: BaseException, text: str, config: JobConfig | None) -> Failure | None:
    """What libraries say in words only, most telling first."""
    said = f"{type(exc).__name__} {text}"
    if WRONG_DRIVER.search(said):
        return Failure(
            f"The GPU's driver and this PyTorch do not fit together: {_short(text)}.",
            "Update the driver, or install a PyTorch for it (`make install TORCH_INDEX=…`); device=cpu works meanwhile.",
            DRIVER,
            {"device": "cpu"},
        )
    if BROKEN_DEVICE.search(said):
        return Failure(f"The GPU reported an error: {_short(text)}.", "Run it again; should it come back, look at `nvidia-smi`.", DRIVER)
    if GATED.search(said):
        return Failure(
            f"The base model is not on this machine: {_short(text)}.",
            "Add it under Models; for a gated one accept its terms on the hub first and set HF_TOKEN for the studio.",
            MODEL,
        )
    if BROKEN_WEIGHTS.search(said):
        return Failure(f"The base model's files are damaged or incomplete: {_short(text)}.", "Remove the model and add it again.", MODEL)
    if UNFIT.search(said):
        remedy: dict[str, Any] = {}
        if config is not None and config.lora.target_modules != ALL_LINEAR:
            remedy = {"lora.target_modules": ALL_LINEAR}
        return Failure(
            f"This method does not fit this base model: {_short(text)}.", "Choose another recipe or base model.", OPTIONS, remedy
        )
    return None


def _missing_package(text: str, config: JobConfig | None) -> Failure:
    reason = f"A package that these options need is missing: {_short(text)}."
    remedy: dict[str, Any] = {}
    if config is not None and config.report_to not in ("none", [], ["none"]):
        remedy = {"report_to": "none"}
    elif config is not None and "bitsandbytes" in text and config.quantization.load_in_4bit:
        remedy = {"quantization.load_in_4bit": False}
    return Failure(reason, "Install it, or choose other options (optim, report_to).", PACKAGE, remedy)


def _is_out_of_memory(exc: BaseException, text: str) -> bool:
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    if isinstance(exc, OSError) and exc.errno == errno.ENOMEM:
        return True
    return isinstance(exc, RuntimeError) and bool(WITHOUT_MEMORY.search(text))


def _short(text: str, limit: int = 300) -> str:
    return (text if len(text) <= limit else text[: limit - 1] + "…").rstrip(".") or "no message"
