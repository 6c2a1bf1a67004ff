"""The failure doctor: exceptions of a training as one sentence, its fix, and the options that would help.

The log keeps the traceback; a person reads the sentence, a program `cause` and `remedy`. Knows no torch: it goes by names
and words. Knows nothing of who asks: trainer and worker both do.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue import gpu_failures
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
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|paging file is too small"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.I,
)
# safetensors and torch say it in words only
FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|not enough space on the disk|PytorchStreamWriter failed writing", re.I)
OTHER_DRIVER = re.compile(r"CUDA driver|nvidia driver", re.I)
BROKEN_DEVICE = re.compile(r"CUDA error|CUDNN_STATUS|CUBLAS_STATUS", re.I)
RUN_AGAIN = "Run it again; should it come back, look at `nvidia-smi`."


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
    """Loss, gradient or weights are no longer numbers; `in_float16`, where a wider format may hold them."""

    def __init__(self, what: str, step: int, in_float16: bool = False) -> None:
        if in_float16:
            super().__init__(
                f"Training in float16 failed: the {what} is not a number any more at step {step}.",
                "Set dtype=float32, which is slower and takes more memory; should it happen there too, lower learning_rate.",
                remedy={"dtype": "float32"},
            )
            return
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
        return Failure(exc.message, exc.fix, DIVERGED, exc.details.get("remedy") or steadier(config))
    if isinstance(exc, StudioError):
        cause = next((cause for kind, cause in CAUSES.items() if isinstance(exc, kind)), OPTIONS)
        return Failure(exc.message, exc.fix, cause, dict(exc.details.get("remedy") or {}))
    if is_out_of_memory(exc, text):
        where = "on the GPU" if "cuda" in text.lower() else "of this machine"
        return Failure(f"The memory {where} is not enough for this job.", LESS_MEMORY, OUT_OF_MEMORY, less_memory(config))
    if (isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)) or FULL_DISK.search(text):
        place = ""
        if filename := getattr(exc, "filename", None):
            place = f" (writing {filename})"
        fix = "Free some space, for example by deleting old runs, then `studio jobs retry` goes on from the last checkpoint."
        return Failure(f"The disk is full{place}.", fix, DISK_FULL)
    if failure := _of_gpu(f"{type(exc).__name__}: {text}"):
        return failure
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


@dataclass(frozen=True)
class _LibraryWords:
    """What a library says in words only: how it is known, and what it means. `remedy`: options that help where they differ from the job's."""

    pattern: re.Pattern[str]
    sentence: str
    fix: str
    cause: str
    remedy: Mapping[str, Any] = field(default_factory=dict)


def _words(pattern: str, sentence: str, fix: str, cause: str, **remedy: Any) -> _LibraryWords:
    options = {name.replace("__", "."): value for name, value in remedy.items()}
    return _LibraryWords(re.compile(pattern, re.I), sentence, fix, cause, options)


# the most telling first
_KNOWN = (
    _words(
        r"gated repo|401 Client Error|403 Client Error|is not a local folder|offline mode|couldn't connect to|OfflineMode",
        "The base model is not on this machine",
        "Add it under Models; for a gated one accept its terms on the hub first and set HF_TOKEN for the studio.",
        MODEL,
    ),
    _words(
        r"does not recognize this architecture|Unrecognized (configuration|model)|requires you to execute the",
        "transformers does not know this base model without code of its own, which the studio never runs",
        "Choose another base model.",
        MODEL,
    ),
    _words(
        r"on purely quantized models|do not support training",
        "The weights of this base model are stored quantised in a way that can't be trained",
        "Add its 16-bit version, and let the job keep it in 4 bits.",
        MODEL,
    ),
    _words(
        r"SafetensorError|Error while deserializing header|size mismatch|does not appear to have a file named|variant of untagged enum",
        "The base model's files are damaged or incomplete",
        "Remove the model and add it again.",
        MODEL,
    ),
    _words(
        r"index out of range in self|device-side assert",
        "A token or a position lies outside the base model's tables",
        "Check that tokenizer and weights of the base belong together, and that max_length is within its context.",
        MODEL,
    ),
    _words(
        r"does not support (an attention implementation|Flash Attention)|FlashAttention only supports|scaled_dot_product_attention yet",
        "The base model's code, or this GPU, does not take the chosen attention",
        "Set attn_implementation=auto.",
        OPTIONS,
        attn_implementation="auto",
    ),
    _words(
        r"does not support (gradient|activation) checkpointing|Disable gradient checkpointing",
        "This base model can't recompute its activations",
        "Set gradient_checkpointing=false.",
        OPTIONS,
        gradient_checkpointing=False,
    ),
    _words(
        r"Attempting to unscale FP16 gradients|doesn't support bf16",
        "The numbers of this job don't suit the device",
        "Set device=cpu, or use a GPU with bfloat16 (Ampere or newer).",
        OPTIONS,
        device="cpu",
    ),
    _words(
        r"Target modules? .{0,200}not found|please (check the|specify|check your) .?target.modules|No modules were targeted|is not supported"
        r"|All modules were excluded|No .target_modules. passed|not supported for|incompatible with Mamba",
        "This method does not fit this base model",
        "Choose another recipe or base model.",
        OPTIONS,
        lora__target_modules=ALL_LINEAR,
    ),
)


def _by_words(exc: BaseException, text: str, config: JobConfig | None) -> Failure | None:
    """What libraries say in words only, most telling first."""
    said = f"{type(exc).__name__} {text}"
    known = next((known for known in _KNOWN if known.pattern.search(said)), None)
    if known is not None:
        return Failure(f"{known.sentence}: {_short(text)}.", known.fix, known.cause, _that_differ(known.remedy, config))
    if OTHER_DRIVER.search(said):
        return Failure(f"The GPU's driver refuses: {_short(text)}.", f"Update it. {RUN_AGAIN}", DRIVER, {"device": "cpu"})
    if BROKEN_DEVICE.search(said):
        return Failure(f"The GPU reported an error: {_short(text)}.", RUN_AGAIN, DRIVER)
    return None


def of_log(lines: Sequence[str], config: JobConfig | None = None) -> Failure | None:
    """What the last lines of a log say of a trainer that wrote no result: bitsandbytes ends the process where a kernel fails."""
    for line in reversed(lines):
        if failure := _of_gpu(line):
            return failure
    if lines and WITHOUT_MEMORY.search(lines[-1]):
        return explain(RuntimeError(lines[-1]), config)
    return None


def _of_gpu(text: str) -> Failure | None:
    """What torch, Triton and bitsandbytes say of a GPU; None where it is nothing that is known."""
    known = gpu_failures.explain(text)
    if known is None:
        return None
    return Failure(f"{known.sentence}: {_short(' '.join(text.split()))}.", known.fix, DRIVER, {"device": "cpu"})


def _that_differ(remedy: Mapping[str, Any], config: JobConfig | None) -> dict[str, Any]:
    """The options of a remedy that this job does not have already."""
    if config is None:
        return {}
    found = {}
    for name, value in remedy.items():
        section, _, key = name.rpartition(".")
        holder: Any = config
        if section:
            holder = getattr(config, section)
        if getattr(holder, key) != value:
            found[name] = value
    return found


def _missing_package(text: str, config: JobConfig | None) -> Failure:
    reason = f"A package that these options need is missing: {_short(text)}."
    remedy: dict[str, Any] = {}
    if config is not None and config.report_to not in ("none", [], ["none"]):
        remedy = {"report_to": "none"}
    elif config is not None and "bitsandbytes" in text and config.quantization.load_in_4bit:
        remedy = {"quantization.load_in_4bit": False}
    return Failure(reason, "Install it, or choose other options (optim, report_to).", PACKAGE, remedy)


def is_out_of_memory(exc: BaseException, text: str) -> bool:
    """Of a processor or a GPU. `text`: the error's own words."""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    if isinstance(exc, OSError) and exc.errno == errno.ENOMEM:
        return True
    return isinstance(exc, (RuntimeError, OSError)) and bool(WITHOUT_MEMORY.search(text))


def _short(text: str, limit: int = 300) -> str:
    return (text if len(text) <= limit else text[: limit - 1] + "…").rstrip(".") or "no message"
