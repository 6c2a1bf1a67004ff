"""Will it fit? The peak memory of an exact configuration, what each change would save, and what past runs here say about it.

Predicts from config.json alone and starts nothing. Knows no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs import config as job_config
from jobs import recipes
from jobs.config import JobConfig
from studio.catalogue import hardware, memory
from studio.catalogue.architecture import decoder, text_config
from studio.catalogue.compatibility import conflicts
from studio.catalogue.memory import Prediction
from studio.catalogue.models import read_json
from studio.db.models import JobRow
from studio.db.session import Database
from studio.errors import ModelError, StudioError
from studio.services.models import ModelService
from studio.settings import Settings

GIB = 1024**3
ERROR = 0.1  # of a prediction, as measured: shown beside it
LEAST_RUNS, MOST_RUNS = 2, 20  # past runs that a correction is learned from
LIKE = 4.0  # runs whose prediction differs by no more than this factor are like this one
BOUNDS = (0.7, 1.4)  # a correction beyond these tells of something else
LONGEST, MOST_ROWS = 131_072, 1024
SHOWN_ADVICE = 8
WORTH = 0.01  # of the prediction: smaller savings are no advice


@dataclass(frozen=True)
class Asked:
    """One question: this job, on this model, there."""

    config: dict[str, Any]
    job: JobConfig
    device: str
    room: int | None  # bytes that a training may take; None where nobody knows the device
    correction: float = 1.0

    def predict(self, **changes: Any) -> Prediction:
        job = job_config.build(self.job.model_dump(mode="json"), changes) if changes else self.job
        return memory.predict(self.config, job, device=self.device)

    def bytes(self, **changes: Any) -> int:
        found = self.predict(**changes)
        return round(found.total * self.correction) + found.process

    def fits(self, **changes: Any) -> bool:
        return self.room is not None and self.bytes(**changes) <= self.room


class FitService:
    """What a person can ask before a launch."""

    def __init__(self, settings: Settings, db: Database, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.models = models

    def fit(
        self,
        *,
        base_model: str | None = None,
        model_config: Path | Mapping[str, Any] | None = None,
        recipe: str | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
        gpu_gib: float | None = None,
    ) -> dict[str, Any]:
        """Predicted peak memory in bytes, its breakdown, margin and advice. Raises StudioError for what can't be read.

        On a processor the prediction is what training adds to the imported process; `process_bytes` is that, and the margin counts both.
        """
        config = self._config(base_model, model_config)
        job = job_config.build(recipes.get(recipe or recipes.DEFAULT_RECIPE).options, options or {})
        if "max_length" not in (options or {}) and (context := decoder(config).context):  # as a launch cuts rows that nobody asked for
            job = job.model_copy(update={"max_length": min(job.max_length, context)})
        if gpu_gib is not None and not 0 < gpu_gib <= 100_000:
            raise StudioError(f"--gpu-gib {gpu_gib:g} is no size of a GPU.", "Give its memory in GiB, such as 24.")
        where = device or ("cuda" if gpu_gib is not None else job.device if job.device != "auto" else hardware.devices()[0].kind)
        correction, runs = self._correction(config, job, where) if gpu_gib is None else (1.0, 0)
        asked = Asked(config, job, where, _room(where, gpu_gib), correction)
        return {**_answer(asked), "correction": {"factor": round(correction, 3), "runs": runs}}

    def measured(self, job_id: str) -> dict[str, Any] | None:
        """{"measured_bytes", "predicted_bytes", "device"} of a run that has reported its peak; None for others."""
        with self.db.read() as session:
            job = session.get(JobRow, job_id)
            found = _measure(job) if job else None
        if found is None:
            return None
        measured, predicted, device = found
        return {"measured_bytes": measured, "predicted_bytes": predicted, "device": device}

    def methods_that_fit(self, config: Mapping[str, Any]) -> dict[str, bool | None]:
        """Recipe name -> whether it fits here with its own options; None where that can't be told."""
        where = hardware.devices()[0].kind
        room = _room(where, None)
        found: dict[str, bool | None] = {}
        for name in ("qlora-sft", "lora-sft", "full"):
            layer = {"method": "full"} if name == "full" else dict(recipes.get(name).options)
            small = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "per_device_eval_batch_size": 1}
            try:
                found[name] = Asked(dict(config), job_config.build(layer, small), where, room).fits() if room else None
            except StudioError:
                found[name] = None
        return found

    def recipes_that_fit(self, base_model: str) -> dict[str, bool | None]:
        """The same for a model that is here."""
        return self.methods_that_fit(self._config(base_model, None))

    def _config(self, base_model: str | None, model_config: Path | Mapping[str, Any] | None) -> dict[str, Any]:
        if (base_model is None) == (model_config is None):
            raise StudioError("Name one model: --base-model or --model-config.", "Give one of the two.")
        if isinstance(model_config, Mapping):
            return dict(model_config)
        if model_config is not None:
            file = model_config / "config.json" if model_config.is_dir() else model_config
            if not file.is_file():
                raise StudioError(f"{file} is no file.", "Give a model's config.json, or the folder that holds it.")
            return read_json(file)
        assert base_model is not None
        folder = self.models.resolve(base_model).path
        return read_json(folder / "config.json")

    def _correction(self, config: Mapping[str, Any], job: JobConfig, device: str) -> tuple[float, int]:
        """Measured / predicted of past runs like this one on this machine (their median), and how many they were."""
        wanted = memory.predict(dict(config), job, device=device).total
        query = select(JobRow).where(JobRow.kind == "train", JobRow.status == "SUCCEEDED").order_by(JobRow.ended_at.desc()).limit(200)
        ratios = []
        with self.db.read() as session:
            for past in session.scalars(query):
                found = _measure(past)
                if found and found[2] == device and 1 / LIKE <= found[1] / wanted <= LIKE:
                    ratios.append(found[0] / found[1])
                if len(ratios) == MOST_RUNS:
                    break
        if len(ratios) < LEAST_RUNS:
            return 1.0, 0
        return min(max(statistics.median(ratios), BOUNDS[0]), BOUNDS[1]), len(ratios)


def _measure(job: JobRow) -> tuple[int, int, str] | None:
    """(measured, predicted, device) of one run; the prediction is for the longest row that it really had."""
    peak = (job.result or {}).get("peak_memory_bytes")
    if not isinstance(peak, int) or peak <= 0:
        return None
    try:
        config = JobConfig.model_validate(job.config)
        longest = (job.result or {}).get("longest_row")
        if isinstance(longest, int) and 8 <= longest < config.max_length and not config.packing:
            config = config.model_copy(update={"max_length": longest})
        device = str((job.result or {}).get("device") or "cpu")
        folder = Path(config.model_name_or_path)
        predicted = memory.predict(read_json(folder / "config.json"), config, device=device).total
        return peak, predicted - (memory.CUDA_CONTEXT if device == "cuda" else 0), device  # torch counts what it allocates itself
    except (StudioError, ValueError, OSError):
        return None  # its model is gone, or its options were another version's


def _room(device: str, gpu_gib: float | None) -> int | None:
    """Bytes that a training may take: a GPU's whole memory (chat gives way), or what is free of the main memory now."""
    if gpu_gib is not None:
        return round(gpu_gib * GIB)
    if device == "cpu":
        return hardware.memory().free_bytes
    here = hardware.devices()[0]
    return here.memory_bytes if here.kind == "cuda" else None


def _answer(asked: Asked) -> dict[str, Any]:
    found = asked.predict()
    parts = {name: round(value * asked.correction) for name, value in found.parts.items()}
    predicted = sum(parts.values())
    margin = None if asked.room is None else asked.room - predicted - found.process
    model = decoder(asked.config)
    chat = model.parameters * (2 if asked.device == "cuda" else hardware.cpu_number_bytes())
    return {
        "predicted_bytes": predicted,
        "breakdown": parts,
        "margin_bytes": margin,
        "fits": None if margin is None else margin >= 0,
        "advice": _advice(asked, predicted + found.process),
        "device": asked.device,
        "room_bytes": asked.room,
        "process_bytes": found.process,
        "paged_bytes": found.paged,
        "error_bytes": round(ERROR * predicted),
        "peak_at": found.moment,
        "parameters": model.parameters,
        "trainable_parameters": found.trained,
        "longest_max_length": _largest(lambda n: asked.fits(max_length=n), min(model.context or LONGEST, LONGEST), 64, asked),
        "largest_batch": _largest(lambda n: asked.fits(per_device_train_batch_size=n), MOST_ROWS, 1, asked),
        "chat": {"bytes": chat, "stays_loaded": None if margin is None else margin >= chat},
        "warnings": [*found.notes, *_refusals(asked)],
    }


def _refusals(asked: Asked) -> list[str]:
    """Why a launch of this would be refused; it is predicted all the same."""
    found = [str(conflict) for conflict in conflicts(asked.job, asked.device, text_config(asked.config))]
    if isinstance(asked.config.get("quantization_config"), dict):
        found.append("The model's own file is stored quantised; this is predicted for its 16-bit version.")
    return found


def _largest(fits: Callable[[int], bool], most: int, step: int, asked: Asked) -> int | None:
    """The largest multiple of `step` up to `most` that fits, 0 where none does; None where nobody knows the device."""
    if asked.room is None:
        return None
    low, high = 0, max(most // step, 1)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            low, high = (middle, high) if fits(middle * step) else (low, middle - 1)
        except StudioError:
            high = middle - 1
    return low * step


def _advice(asked: Asked, predicted: int) -> list[dict[str, Any]]:
    """Changes that save memory, the greatest first: [{"change", "saves_bytes", "options"}]."""
    found: list[dict[str, Any]] = []
    for words, options in _changes(asked.job):
        try:
            saved = predicted - asked.bytes(**options)
        except (StudioError, ModelError):
            continue
        stands = {str(conflict) for conflict in conflicts(asked.job, asked.device)}
        changed = job_config.build(asked.job.model_dump(mode="json"), options)
        if saved > WORTH * predicted and {str(conflict) for conflict in conflicts(changed, asked.device)} <= stands:
            text = ", ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items())
            found.append({"change": f"{words} ({text})", "saves_bytes": saved, "options": options})
    return sorted(found, key=lambda one: -one["saves_bytes"])[:SHOWN_ADVICE]


def _changes(job: JobConfig) -> list[tuple[str, dict[str, Any]]]:
    """What a person could change, in words and as options; only what is not so already."""
    batch, rows, length = job.per_device_train_batch_size, job.per_device_eval_batch_size, job.max_length
    four = {"quantization.load_in_4bit": True, "quantization.load_in_8bit": False}
    smaller = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": job.gradient_accumulation_steps * 2}
    candidates: list[tuple[bool, str, dict[str, Any]]] = [
        (not job.gradient_checkpointing, "Recompute activations", {"gradient_checkpointing": True}),
        (batch > 1, "Half the batch, the same rows per step", smaller),
        (rows > 1, "Evaluate one row at a time", {"per_device_eval_batch_size": 1}),
        (length > 128, "Half the longest row", {"max_length": length // 2}),
        (job.method != "full" and not job.quantization.load_in_4bit, "Keep the base in 4 bits", four),
        (job.method == "full", "Train an adapter instead of everything, on a 4-bit base", {"method": "lora", **four}),
        (not job.quantization.bnb_4bit_use_double_quant, "Double quantisation", {"quantization.bnb_4bit_use_double_quant": True}),
        ("8bit" not in job.optim, "An 8-bit optimizer", {"optim": "paged_adamw_8bit"}),
        (job.method == "lora" and job.lora.r > 4, "Half the rank", {"lora.r": job.lora.r // 2}),
        (job.method == "lora" and job.lora.use_dora, "Plain LoRA", {"lora.use_dora": False}),
        (bool(job.lora.modules_to_save), "Train no layers whole", {"lora.modules_to_save": None}),
        (job.packing, "No packing", {"packing": False}),
    ]  # fmt: skip
    return [(words, options) for applies, words, options in candidates if applies]
