"""Will it fit? The peak memory of an exact configuration, what each change would save, and what past runs here say about it.

Predicts from config.json alone and starts nothing. Knows no torch.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from sqlalchemy import select

from jobs import config as job_config
from jobs import recipes
from jobs.config import JobConfig
from studio.catalogue import hardware, memory, rope, suitability
from studio.catalogue.architecture import decoder
from studio.catalogue.compatibility import conflicts, without_device
from studio.catalogue.memory import Prediction
from studio.catalogue.models import read_json
from studio.db.models import JobRow
from studio.db.session import Database
from studio.errors import ModelError, StudioError
from studio.records import ChatMemory, Fit, JobKind, JobStatus, MeasuredMemory, MemoryAdvice, MemoryBreakdown, MemoryCorrection
from studio.services.chosen_options import fitted, fitted_to_probe
from studio.services.models import STARTER_FOLDER, ModelService
from studio.settings import Settings

GIB = 1024**3
ERROR = 0.1  # of a prediction, as measured: shown beside it
LEAST_RUNS, MOST_RUNS = 2, 20  # past runs that a correction is learned from
LIKE = 4.0  # runs whose prediction differs by no more than this factor are like this one
BOUNDS = (0.7, 1.4)  # a correction beyond these tells of something else
LONGEST, MOST_ROWS = 131_072, 1024
SHOWN_ADVICE = 8
WORTH = 0.01  # of the prediction: smaller savings are no advice
Change = dict[str, JsonValue]  # options by dotted key


@dataclass(frozen=True)
class FitQuestion:
    """One question: this job, on this model, there."""

    config: dict[str, Any]
    job: JobConfig
    device: str
    room: int | None  # bytes that a training may take; None where the device is not known
    correction: float = 1.0
    refusals: tuple[str, ...] = ()  # what the probe of the model says against it

    def predict(self, **changes: Any) -> Prediction:
        job = self.job
        if changes:
            job = job_config.build(job.model_dump(mode="json"), changes)
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
    ) -> Fit:
        """Predicted peak memory in bytes, its breakdown, margin and advice. Raises StudioError for what can't be read.

        On a processor the prediction is what training adds to the imported process; `process_bytes` is that, and the margin counts both.
        """
        config = self._config(base_model, model_config)
        job = job_config.build(recipes.get(recipe or recipes.DEFAULT_RECIPE).options, options or {})
        chosen = fitted(job, options or {}, config, decoder(config).context, base_model or "the model")  # as a launch does
        refusals: list[str] = []
        if base_model is not None and (ref := self.models.resolve(base_model)).path != STARTER_FOLDER:
            with contextlib.suppress(ModelError):  # a launch says why it can't be probed
                probe = self.models.probe_of(ref)
                chosen = fitted_to_probe(chosen, options or {}, probe, base_model)
                refusals = list(map(str, suitability.conflicts(chosen.config, probe)))
        job = chosen.config
        if gpu_gib is None:
            where = device or memory.device_of(job)
            factor, runs = self._correction(config, job, where)
        elif 0 < gpu_gib <= 100_000:
            where, factor, runs = device or "cuda", 1.0, 0
        else:
            raise StudioError(f"--gpu-gib {gpu_gib:g} is no size of a GPU.", "Give its memory in GiB, such as 24.")
        asked = FitQuestion(config, job, where, _room(where, gpu_gib), factor, tuple(refusals))
        found = _answer(asked, MemoryCorrection(factor=round(factor, 3), runs=runs))
        return found.model_copy(update={"notices": [*chosen.notices]})

    def measured(self, job_id: str) -> MeasuredMemory | None:
        """What a run took that has reported its peak; None for others."""
        with self.db.read() as session:
            job = session.get(JobRow, job_id)
            if job is None:
                return None
            return _measure(job)

    def methods_that_fit(self, config: Mapping[str, Any]) -> dict[str, bool | None]:
        """Recipe name -> whether it fits here with its own options; None where that can't be told."""
        where = hardware.devices()[0].kind
        room = _room(where, None)
        found: dict[str, bool | None] = {}
        layers = {name: recipes.get(name).options for name in ("qlora-sft", "lora-sft")} | {"full": {"method": "full"}}
        small = {
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": True,
            "per_device_eval_batch_size": 1,
        }
        for name, layer in layers.items():
            found[name] = None
            with contextlib.suppress(StudioError):
                if room:
                    found[name] = FitQuestion(dict(config), job_config.build(layer, small), where, room).fits()
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
            file = model_config
            if file.is_dir():
                file /= "config.json"
            if not file.is_file():
                raise StudioError(f"{file} is no file.", "Give a model's config.json, or the folder that holds it.")
            return read_json(file)
        assert base_model is not None
        folder = self.models.resolve(base_model).path
        return read_json(folder / "config.json")

    def _correction(self, config: Mapping[str, Any], job: JobConfig, device: str) -> tuple[float, int]:
        """Measured / predicted of past runs like this one on this machine (their median), and how many they were."""
        wanted = memory.predict(dict(config), job, device=device).total
        succeeded = (JobRow.kind == JobKind.TRAIN, JobRow.status == JobStatus.SUCCEEDED)
        query = select(JobRow).where(*succeeded).order_by(JobRow.ended_at.desc()).limit(200)
        ratios = []
        with self.db.read() as session:
            for past in session.scalars(query):
                found = _measure(past)
                if found and found.device == device and 1 / LIKE <= found.predicted_bytes / wanted <= LIKE:
                    ratios.append(found.measured_bytes / found.predicted_bytes)
                if len(ratios) == MOST_RUNS:
                    break
        if len(ratios) < LEAST_RUNS:
            return 1.0, 0
        return min(max(statistics.median(ratios), BOUNDS[0]), BOUNDS[1]), len(ratios)


def _measure(job: JobRow) -> MeasuredMemory | None:
    """Of one run; the prediction is for the longest row that it really had."""
    result = job.result or {}
    peak = result.get("peak_memory_bytes")
    if not isinstance(peak, int) or peak <= 0:
        return None
    try:
        config = JobConfig.model_validate(job.config)
        longest = result.get("longest_row")
        if isinstance(longest, int) and 8 <= longest < config.max_length and not config.packing:
            config = config.model_copy(update={"max_length": longest})
        device = str(result.get("device") or "cpu")
        folder = Path(config.model_name_or_path)
        gives_back = bool(result.get("gives_memory_back", True))
        predicted = memory.predict(read_json(folder / "config.json"), config, device=device, gives_back=gives_back).total
        if device == "cuda":
            predicted -= memory.CUDA_CONTEXT  # torch counts what it allocates itself
        return MeasuredMemory(measured_bytes=peak, predicted_bytes=predicted, device=device)
    except (StudioError, ValueError, OSError):
        return None  # its model is gone, or its options were another version's


def _room(device: str, gpu_gib: float | None) -> int | None:
    """Bytes that a training may take: a GPU's whole memory (chat gives way), or what is free of the main memory now."""
    if gpu_gib is not None:
        return round(gpu_gib * GIB)
    if device == "cpu":
        return hardware.memory().free_bytes
    here = hardware.devices()[0]
    if here.kind != "cuda":
        return None
    return here.memory_bytes


def _answer(asked: FitQuestion, correction: MemoryCorrection) -> Fit:
    found = asked.predict()
    parts = {name: round(value * asked.correction) for name, value in found.parts.items()}
    predicted = sum(parts.values())
    model = decoder(asked.config, context=rope.longer(asked.config, asked.job.rope))
    chat = model.parameters * memory.number_bytes(asked.device)
    margin = fits = stays_loaded = None
    if asked.room is not None:
        margin = asked.room - predicted - found.process
        fits, stays_loaded = margin >= 0, margin >= chat
    return Fit(
        predicted_bytes=predicted,
        breakdown=MemoryBreakdown(**parts),
        margin_bytes=margin,
        fits=fits,
        advice=_advice(asked, predicted + found.process),
        device=asked.device,
        room_bytes=asked.room,
        process_bytes=found.process,
        paged_bytes=found.paged,
        error_bytes=round(ERROR * predicted),
        peak_at=found.moment,
        parameters=model.parameters,
        trainable_parameters=found.trained,
        longest_max_length=_largest(lambda n: asked.fits(max_length=n), min(model.context or LONGEST, LONGEST), 64, asked),
        largest_batch=_largest(lambda n: asked.fits(per_device_train_batch_size=n), MOST_ROWS, 1, asked),
        chat=ChatMemory(bytes=chat, stays_loaded=stays_loaded),
        warnings=[*found.notes, *_warnings(asked)],
        correction=correction,
    )


def _warnings(asked: FitQuestion) -> list[str]:
    """Why a launch of this would be refused; it is predicted all the same."""
    against = without_device(asked.job) + conflicts(asked.job, asked.device, asked.config)
    found = [*map(str, against), *asked.refusals]
    if not asked.refusals and not asked.predict().trained:
        found.append(f"Method {asked.job.method} would train nothing of this model.")
    if isinstance(asked.config.get("quantization_config"), dict):
        found.append("The model's own file is stored quantised; this is predicted for its 16-bit version.")
    return found


def _largest(fits: Callable[[int], bool], most: int, step: int, asked: FitQuestion) -> int | None:
    """The largest multiple of `step` up to `most` that fits, 0 where none does; None where the device is not known."""
    if asked.room is None:
        return None
    low, high = 0, max(most // step, 1)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            does = fits(middle * step)
        except StudioError:
            does = False
        if does:
            low = middle
        else:
            high = middle - 1
    return low * step


def _advice(asked: FitQuestion, predicted: int) -> list[MemoryAdvice]:
    """Changes that save memory, the greatest first."""
    found: list[MemoryAdvice] = []
    for words, options in _changes(asked.job):
        try:
            saved = predicted - asked.bytes(**options)
        except (StudioError, ModelError):
            continue
        stands = {str(conflict) for conflict in conflicts(asked.job, asked.device)}
        changed = job_config.build(asked.job.model_dump(mode="json"), options)
        if saved > WORTH * predicted and {str(conflict) for conflict in conflicts(changed, asked.device)} <= stands:
            text = ", ".join(f"{key}={_text(value)}" for key, value in options.items())
            found.append(MemoryAdvice(change=f"{words} ({text})", saves_bytes=saved, options=options))
    return sorted(found, key=lambda one: -one.saves_bytes)[:SHOWN_ADVICE]


def _text(value: JsonValue) -> str:
    """As a person writes it behind --set."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _changes(job: JobConfig) -> list[tuple[str, Change]]:
    """What a person could change, in words and as options; only what is not so already."""
    batch, rows, length = job.per_device_train_batch_size, job.per_device_eval_batch_size, job.max_length
    four: Change = {"quantization.load_in_4bit": True, "quantization.load_in_8bit": False}
    smaller: Change = {
        "per_device_train_batch_size": batch // 2,
        "gradient_accumulation_steps": job.gradient_accumulation_steps * 2,
    }
    candidates: list[tuple[bool, str, Change]] = [
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
