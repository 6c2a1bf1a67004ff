"""Adapters by name: those that jobs made and those that were brought here; and who is meant by a contestant's name."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import rundir
from jobs.sections import RopeSection
from studio.catalogue import adapter_fit, adapter_limits, adapter_trial, library, rope
from studio.catalogue import models as folders
from studio.catalogue.models import ModelRef
from studio.db import lifecycle
from studio.db.models import AdapterRow, JobRow, new_id
from studio.db.session import Database
from studio.engine.kinds import UNANSWERABLE_KINDS
from studio.engine.protocol import AdapterRef, Contestant
from studio.errors import ModelError, NotFoundError, StudioError, plain
from studio.records import UNENDED, Adapter, Deleted, JobKind, JobStatus
from studio.services import adapter_files, naming
from studio.services.adapter_files import CONFIG, TEMPLATE, WEIGHTS
from studio.services.folders import delete_inside, size_of
from studio.services.models import ModelService
from studio.services.paging import ALL, Listed, Page
from studio.settings import Settings

OWN_KIND = "BOTTLENECK"  # the studio's, which peft learns of when it is met
MAX_TEMPLATE_BYTES = 1_000_000
Names = list[str]  # inside the class, `list` is its method


@dataclass(frozen=True)
class AdapterConfig:
    """adapter_config.json of an adapter that can answer here."""

    values: dict[str, Any]  # by peft's names

    @property
    def method(self) -> str:
        """As a job names it: lora, dora, ia3, prompt-tuning, ..."""
        kind = str(self.values["peft_type"]).lower().replace("_", "-")
        if kind == "lora" and self.values.get("use_dora"):
            return "dora"
        return kind

    @property
    def trained_on(self) -> str:
        """Name or path of the base model; "" where it is not told."""
        return plain(self.values.get("base_model_name_or_path") or "")


class AdapterService:
    """What a person can do with adapters."""

    def __init__(self, settings: Settings, db: Database, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.models = models

    def list(self, base_model: str | None = None, page: Page = ALL) -> Listed[Adapter]:
        """Newest first; with `base_model`, only those trained on it."""
        query = select(AdapterRow).order_by(AdapterRow.created_at.desc(), AdapterRow.id)
        if base_model is not None:
            query = query.where(AdapterRow.base_model == base_model)
        with self.db.read() as session:
            rows = page.read(session, query)
            return rows.as_are(_record(row) for (row,) in rows)

    def show(self, adapter_id: str) -> Adapter:
        with self.db.read() as session:
            return _record(self.find(session, adapter_id))

    def add(self, path: str | Path, name: str | None = None, *, base_model: str | None = None) -> Adapter:
        """Check an adapter's folder, or a zip file of one, and keep a copy. `base_model` says whose it is where adapter_config.json does not.

        Raises ModelError for what is no safetensors adapter of a base model that is here.
        """
        source = Path(path).expanduser().absolute()
        if source.suffix.lower() == adapter_files.ZIP and source.is_file():
            return self.add_files([source], name, base_model=base_model)
        config = _checked_config(source)
        base = self._base_of(config, base_model)
        config = AdapterConfig(adapter_limits.settled(config.values, source, base.path))
        self._check_fit(source, config, base)
        adapter_fit.check(source / WEIGHTS, config.values, base.path, base.name)
        with self.db.read() as session:
            self.choose_name(session, name, source.name)  # a bad name is told before anything is copied
        positions = rope.of_adapter(source)
        rope.scaled(folders.read_json(base.path / "config.json"), positions)
        adapter_id = new_id()
        folder = self._keep(source, adapter_id, config, positions)
        try:
            with self.db.write() as session:
                row = AdapterRow(
                    id=adapter_id,
                    name=self.choose_name(session, name, source.name),
                    base_model=base.name,
                    method=config.method,
                    path=str(folder),
                    bytes=size_of(folder),
                    sha256=rundir.sha256(folder / WEIGHTS),
                )
                session.add(row)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _record(row)

    def add_files(self, uploads: Sequence[Path], name: str | None = None, *, base_model: str | None = None) -> Adapter:
        """The same for uploaded files: those of the folder, or a zip file of it. Raises ModelError as `add` does."""
        with tempfile.TemporaryDirectory(dir=self.settings.cache) as place:
            folder = Path(place) / naming.from_stem(adapter_files.stem(uploads))
            try:
                adapter_files.gather(uploads, folder)
                return self.add(folder, name, base_model=base_model)
            except ModelError as refusal:  # where the studio keeps uploads helps nobody
                raise ModelError(refusal.message.replace(str(folder), folder.name), refusal.fix, **refusal.details) from None

    def delete(self, adapter_id: str) -> Deleted:
        """Delete an adapter and its files. Refused while a job that has not ended needs it."""
        with self.db.write() as session:
            row = self.find(session, adapter_id)
            active = session.scalars(select(JobRow).where(JobRow.status.in_(UNENDED))).all()
            using = [job for job in active if row.path in json.dumps(job.config)]
            for report in [job for job in using if job.kind == JobKind.REPORT and job.status != JobStatus.RUNNING]:
                lifecycle.cancel(session, report.id)  # nobody asked for it
                using.remove(report)
            needing = [job.name for job in using]
            if needing:
                raise StudioError(
                    f"Adapter {row.name} is needed by {', '.join(needing)}.", "Cancel these jobs first, or wait for their end."
                )
            session.delete(row)
        delete_inside(Path(row.path), self.settings.adapters, self.settings.runs)
        return Deleted(id=row.id, name=row.name)

    def resolve(self, contestant: str, base_model: str | None = None) -> Contestant:
        """Who is meant by BASE, BASE:ADAPTER, URL#MODEL, and, given `base_model`, by `base` or a bare adapter's name.

        Raises NotFoundError with near names, and ModelError for a base that can't be loaded.
        """
        if contestant.startswith(("http://", "https://")):
            return self._other_server(contestant)
        if contestant == "base":
            if not base_model:
                raise StudioError("'base' stands for a base model that was not named.", "Name it with --base-model (base_model over HTTP).")
            return Contestant(name=contestant, base=self.models.resolve(base_model, loadable=True))
        base_name, _, adapter_name = contestant.rpartition(":")
        adapter = self._get(adapter_name)
        if adapter and (base_name or base_model):
            return self._with_adapter(contestant, base_name or str(base_model), adapter)
        try:
            return Contestant(name=contestant, base=self.models.resolve(contestant, loadable=True))
        except NotFoundError:
            if adapter:  # its own base is the only one it can mean
                return self._with_adapter(contestant, adapter.base_model, adapter)
            raise self._unknown(contestant) from None

    def available(self) -> Names:
        """What can answer here: the starter, the added bases, then BASE:ADAPTER."""
        return list(self.available_since())

    def available_since(self) -> dict[str, float]:
        """What can answer here, with the time (seconds since 1970) at which the adapter, or the base's config.json, was made."""
        bases = {model.name: made_at(Path(model.path)) for model in self.models.list() if model.loadable}
        adapters = {f"{one.base_model}:{one.name}": one.created_at for one in self.list() if one.base_model in bases}
        return bases | adapters

    def _with_adapter(self, contestant: str, base_name: str, adapter: AdapterRow) -> Contestant:
        try:
            base = self.models.resolve(base_name, loadable=True)
        except NotFoundError:
            raise self._unknown(contestant) from None
        if base.name != adapter.base_model and base.path != self.models.resolve(adapter.base_model, allow_path=True).path:
            raise StudioError(
                f"Adapter {adapter.name} was trained on {adapter.base_model}, not on {base.name}.",
                f"Use {adapter.base_model}:{adapter.name}.",
            )
        if not (Path(adapter.path) / WEIGHTS).is_file():
            raise ModelError(f"The files of adapter {adapter.name} are gone from {adapter.path}.", "Train it again, or delete the adapter.")
        return Contestant(name=contestant, base=base, adapter=AdapterRef(adapter.name, Path(adapter.path), adapter.sha256))

    def _other_server(self, contestant: str) -> Contestant:
        url, _, model = contestant.partition("#")
        # to let strangers name addresses would let them reach whatever this machine can reach
        if not (self.models.at_terminal or (self.settings.is_loopback and not self.settings.has_login)):
            raise StudioError("Another server's model can't be named here.", "Use the command line of the machine that runs the studio.")
        if not model:
            raise StudioError(f"{contestant} names no model.", "Write it as URL#MODEL, such as http://127.0.0.1:8000/v1#qwen.")
        return Contestant(name=contestant, url=url, model=model)

    def _get(self, name: str) -> AdapterRow | None:
        with self.db.read() as session:
            return naming.get(session, AdapterRow, name)

    def find(self, session: Session, adapter_id: str) -> AdapterRow:
        """By ID or name. Raises NotFoundError with near names."""
        return naming.look_up(session, AdapterRow, adapter_id, "adapter")

    def _unknown(self, contestant: str) -> NotFoundError:
        known = self.available()
        bare = [name.rpartition(":")[2] for name in known if ":" in name]
        return NotFoundError(f"There is no model or adapter {contestant!r}.", naming.suggest(contestant, [*known, *bare]))

    def choose_name(self, session: Session, wanted: str | None, stem: str) -> str:
        """The name of a new adapter: `wanted`, or one made of `stem`. Raises StudioError where `wanted` can't be given."""
        # a job's name is the name of the adapter it will make
        return naming.choose(wanted, naming.from_stem(stem), naming.taken_in(session, AdapterRow.name, JobRow.name))

    def _base_of(self, config: AdapterConfig, base_model: str | None) -> ModelRef:
        if base_model is not None:
            return self.models.resolve(base_model, loadable=True)
        trained_on = config.trained_on
        for model in self.models.list():
            if trained_on in (model.name, model.path) or trained_on.endswith(f"/{model.name}"):
                return self.models.resolve(model.name, loadable=True)
        raise ModelError(
            f"The adapter was trained on {trained_on or 'an unnamed base model'}, which is not among your base models.",
            "Add that model first with `studio models add`, or name it with --base-model.",
        )

    def _check_fit(self, source: Path, config: AdapterConfig, base: ModelRef) -> None:
        """Every low-rank factor must belong to a layer of `base` of its width; other kinds are checked when they are loaded."""
        with tempfile.TemporaryDirectory(dir=self.settings.cache) as place:
            folder = Path(place) / source.name  # with adapter_config.json as it will be kept: what is tried is what will answer
            folder.mkdir()
            rundir.write_json(folder / CONFIG, config.values)
            try:
                (folder / WEIGHTS).symlink_to(source / WEIGHTS)
            except OSError:  # not for everybody on Windows
                shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
            reason = adapter_trial.check(folder / WEIGHTS, base.path, is_lora=config.values["peft_type"] == "LORA")
        if reason:
            raise ModelError(f"{source.name} does not fit {base.name}: {reason}.", adapter_fit.OTHER_BASE)

    def _keep(self, source: Path, adapter_id: str, config: AdapterConfig, positions: RopeSection) -> Path:
        folder, part = self.settings.adapters / adapter_id, self.settings.adapters / f".{adapter_id}.part"
        try:
            part.mkdir()
            rundir.write_json(part / CONFIG, config.values)
            shutil.copyfile(source / WEIGHTS, part / WEIGHTS)
            if (source / TEMPLATE).is_file():
                shutil.copyfile(source / TEMPLATE, part / TEMPLATE)
            if positions.is_set:
                rundir.write_json(part / rope.CARD, {rope.CARD_KEY: positions.chosen})
            part.rename(folder)
        except OSError as exc:
            shutil.rmtree(part, ignore_errors=True)
            raise StudioError(
                f"The adapter could not be copied to {folder} ({exc.strerror}).", "Free some space, or check the folder's rights."
            ) from None
        return folder


def _checked_config(folder: Path) -> AdapterConfig:
    """adapter_config.json as it is. Raises ModelError unless it describes what can answer, in safetensors, and asks for no code."""
    if not folder.is_dir():
        wrong = "is a file, not a folder" if folder.exists() else "is not there"
        raise ModelError(f"{folder} {wrong}.", f"Give the folder that holds {CONFIG} and {WEIGHTS}.")
    config = folders.read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind in UNANSWERABLE_KINDS or kind not in (OWN_KIND, *library.adapter_kinds()):
        raise ModelError(f"{folder / CONFIG}: peft_type {plain(kind)!r} can't be used here.", "Use a LoRA, IA3, prompt or prefix adapter.")
    if config.get("megatron_config"):
        raise ModelError(
            f"{folder / CONFIG} asks for code of its own (megatron_config), which the studio never runs.", "Use an adapter saved by peft."
        )
    _check_numbers(folder, config)
    _check_weights(folder)
    if (folder / TEMPLATE).is_file() and (folder / TEMPLATE).stat().st_size > MAX_TEMPLATE_BYTES:
        raise ModelError(
            f"{folder / TEMPLATE} is larger than {MAX_TEMPLATE_BYTES:,} bytes.", "Give the template that the adapter was trained with."
        )
    return AdapterConfig(config)


def _check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelError for a rank or strength that no adapter has: with some, every answer is noise."""
    rank, alpha = config.get("r", 1), config.get("lora_alpha", 1)
    is_rank = isinstance(rank, int) and rank > 0
    is_alpha = isinstance(alpha, (int, float)) and math.isfinite(alpha)
    if not (is_rank and is_alpha and isinstance(config.get("rank_pattern") or {}, dict)):
        raise ModelError(
            f"{folder / CONFIG}: r={plain(rank)}, lora_alpha={plain(alpha)} and its rank_pattern are no numbers that an adapter has.",
            "Use an adapter saved by peft.",
        )


def _check_weights(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise ModelError(
            f"{folder} holds no {WEIGHTS}, only {pickles[0]}, which can run code when it is opened.",
            "Save it as safetensors: save_pretrained of peft does.",
        )
    raise ModelError(f"{folder} holds no {WEIGHTS}.", f"Give the folder that holds {WEIGHTS}.")


def _record(row: AdapterRow) -> Adapter:
    return Adapter(
        id=row.id,
        name=row.name,
        base_model=row.base_model,
        method=row.method,
        job=row.job_id,
        path=row.path,
        bytes=row.bytes,
        created_at=row.created_at,
    )


def made_at(folder: Path) -> float:
    """When a model's folder was made; 0 where it is gone."""
    try:
        return (folder / "config.json").stat().st_mtime
    except OSError:
        return 0.0
