"""Will it fit? The peak memory of an exact configuration, what each change would save, and what past runs here say about it.

Predicts from config.json alone and starts nothing. Knows no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from jobs import config as job_config
from jobs import recipes
from jobs.config import JobConfig
from studio.catalogue import hardware, memory, rope, suitability
from studio.catalogue.architecture import decoder
from studio.catalogue.compatibility import conflicts, without_device
from studio.catalogue.models import read_json
from studio.db.models import JobRow
from studio.db.session import Database
from studio.errors import ModelError, StudioError
from studio.records import (
    AvailableMemory,
    ChatMemory,
    Fit,
    MeasuredMemory,
    MemoryAdvice,
    MemoryBreakdown,
    MemoryCorrection,
)
from studio.services import planning, room
from studio.services.chosen_options import fitted, fitted_to_probe
from studio.services.measured_memory import correction, measure
from studio.services.models import STARTER_FOLDER, ModelService
from studio.services.planning import FitQuestion
from studio.services.room import Room
from studio.settings import Settings

GIB = 1024**3
ERROR = 0.1  # of a prediction, as measured: shown beside it
LONGEST, MOST_ROWS = 131_072, 1024
MOST_GIB = 100_000
SHOWN_ADVICE = 8
WORTH = 0.01  # of the prediction: smaller savings are no advice
Change = dict[str, JsonValue]  # options by dotted key


class FitService:
    """What a person can ask before a launch."""

    def __init__(self, settings: Settings, db: Database, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.models = models
        self.room = Room(settings, db)

    def fit(
        self,
        *,
        base_model: str | None = None,
        model_config: Path | Mapping[str, Any] | None = None,
        recipe: str | None = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
        gpu_gib: float | None = None,
        free_gib: float | None = None,
    ) -> Fit:
        """Predicted peak memory in bytes, its breakdown, margin, advice and plan. Raises StudioError for what can't be read.

        `gpu_gib`: the memory of a GPU that is this training's alone; `free_gib`: what is free of a device, of which the reserve is kept.
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
        _check_sizes(gpu_gib, free_gib)
        here: AvailableMemory | None = None
        size: int | None
        factor, runs = 1.0, 0
        if gpu_gib is not None:
            where, size = device or "cuda", round(gpu_gib * GIB)
        elif free_gib is not None:
            where, here = device or "cuda", room.counted(round(free_gib * GIB))
            size = here.available_bytes
        else:
            where = device or memory.device_of(job)
            factor, runs = correction(self.db, config, job, where)
            here = self.room.available(where)
            size = None if here is None else here.available_bytes
        asked = FitQuestion(config, job, where, size, factor, tuple(refusals))
        found = _answer(asked, MemoryCorrection(factor=round(factor, 3), runs=runs))
        return found.model_copy(update={"notices": [*chosen.notices], "available": here})

    def measured(self, job_id: str) -> MeasuredMemory | None:
        """What a run took that has reported its peak; None for others."""
        with self.db.read() as session:
            job = session.get(JobRow, job_id)
            if job is None:
                return None
            return measure(job)

    def methods_that_fit(self, config: Mapping[str, Any]) -> dict[str, bool | None]:
        """Recipe name -> whether it fits here with its own options; None where that can't be told."""
        where = hardware.usable()[0].kind
        here = self.room.available(where)
        found: dict[str, bool | None] = {}
        layers = {name: recipes.get(name).options for name in ("qlora-sft", "lora-sft")} | {"full": {"method": "full"}}
        for name, layer in layers.items():
            found[name] = None
            with contextlib.suppress(StudioError):
                if here is not None:
                    job = job_config.build(layer, planning.SMALLEST)
                    found[name] = FitQuestion(dict(config), job, where, here.available_bytes).fits()
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


def _check_sizes(gpu_gib: float | None, free_gib: float | None) -> None:
    """Raises StudioError for sizes that no device has, and for both at once."""
    if gpu_gib is not None and free_gib is not None:
        raise StudioError("--gpu-gib and --free-gib both say how much memory there is.", "Give one of the two.")
    for name, size in (("--gpu-gib", gpu_gib), ("--free-gib", free_gib)):
        if size is not None and not 0 < size <= MOST_GIB:
            raise StudioError(f"{name} {size:g} is no size of a GPU.", "Give its memory in GiB, such as 24.")


def _answer(asked: FitQuestion, corrected: MemoryCorrection) -> Fit:
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
        correction=corrected,
        plan=planning.plan(asked),
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
