"""Exports: an adapter in a form that others can use, each proved to behave like it. Queues jobs; the writing is done in jobs.export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import queue
from jobs.exporters import kinds
from jobs.exporters.config import (
    CALIBRATION,
    CALIBRATION_ROWS,
    MAX_PROMPTS,
    PROMPTS,
    ExportConfig,
    ProofPrompt,
    check_space,
    expected_bytes,
)
from jobs.kinds import queue_of
from jobs.rundir import RunDir
from studio import processes
from studio.catalogue import gguf, rope, rope_flags
from studio.catalogue.models import count_parameters, read_json
from studio.db import lifecycle
from studio.db.models import AdapterRow, DatasetRow, JobRow, new_id
from studio.db.session import Database
from studio.engine.protocol import BaseFolder
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import (
    ENDED,
    K_QUANTS,
    Deleted,
    Export,
    ExportFormat,
    JobKind,
    JobProgress,
    JobStatus,
    Outtype,
    PushedExport,
    QueueName,
    WrittenExport,
)
from studio.services import naming
from studio.services.adapters import CONFIG, WEIGHTS, AdapterService
from studio.services.folders import delete_inside
from studio.services.paging import ALL, Listed, Page
from studio.settings import PACKAGE_ROOT, Settings
from studio.types import Message, Role

KIND = JobKind.EXPORT
DEFAULT_PROMPTS = 8
GENERAL = (  # asked where the adapter's own rows are not known or too few
    "What is the capital of Peru?", "Say hello.", "Write one sentence about the sea.", "Name three colours.",
    "What is the opposite of cold?", "Tell me a short story about a dog.", "How do I make tea?", "Who are you?",
)  # fmt: skip
MAX_TEXT = 200  # characters of a plain text that the model goes on from
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
Exports = list[Export]  # inside the class, `list` is a use case
Prompts = list[ProofPrompt]
Lines = list[str]


class ExportService:
    """What a person can do with exports."""

    def __init__(self, settings: Settings, db: Database, adapters: AdapterService) -> None:
        self.settings = settings
        self.db = db
        self.adapters = adapters

    def create(
        self,
        adapter: str,
        format: str,
        *,
        outtype: str = Outtype.F16,
        to: Path | None = None,
        verify: int = DEFAULT_PROMPTS,
        importance: bool = True,
    ) -> Export:
        """Queue an export; returns it. `to` is a folder of the person at the terminal; left out it is one of STUDIO_HOME/exports.

        `importance`: a K-quant is rounded with an importance matrix from the training rows, where they are known.

        Raises StudioError with the reason when this adapter can't take this form or there is no room for it.
        """
        _check_choices(format, outtype, verify)
        with self.db.read() as session:
            row = self.adapters.find(session, adapter)
        base = self.adapters.resolve(f"{row.base_model}:{row.name}").base
        assert base is not None
        self._check(row, base, format)
        with self.db.read() as session:
            name = naming.unique(f"{row.name[:50]}-{format}", naming.taken_in(session, JobRow.name, AdapterRow.name))
        target = self._target(to, name)
        config = ExportConfig(
            adapter=row.name,
            adapter_path=row.path,
            base_model=Path(base.name).name,  # a folder's own name: its place on this machine is nobody's business
            base_path=str(base.path),
            format=ExportFormat(format),
            outtype=Outtype(outtype),
            to=str(target),
            verify=verify,
            importance=importance,
            about=self._about(row),
        )
        _check_room(config, row.bytes)
        return self._queue(config, name, row)

    def list(self, page: Page = ALL) -> Listed[Export]:
        """Newest first."""
        with self.db.read() as session:
            rows = page.read(session, select(JobRow).where(JobRow.kind == KIND).order_by(JobRow.created_at.desc(), JobRow.id))
            return rows.as_are(_record(job) for (job,) in rows)

    def show(self, export_id: str) -> Export:
        with self.db.read() as session:
            return _record(self.find(session, export_id))

    def file(self, export_id: str, name: str) -> Path:
        """One file of an export, to be downloaded. Raises NotFoundError for a name that is not among its files."""
        export = self.show(export_id)
        if name not in export.files:
            raise NotFoundError(f"Export {export.name} has no file {name[:100]!r}.", naming.suggest(name, export.files))
        return Path(export.path) / name

    def delete(self, export_id: str) -> Deleted:
        """Delete the files of an export that lies in STUDIO_HOME/exports; the row keeps its proof. Refused while it is written."""
        export = self.show(export_id)
        if export.status not in ENDED:
            raise StudioError(f"Export {export.name} is being written.", "Cancel its job first.")
        if not delete_inside(Path(export.path), self.settings.exports):
            raise StudioError(f"{export.path} is not the studio's own.", "Delete the folder yourself.")
        return Deleted(id=export.id, name=export.name)

    def check_push(self, repository: str) -> None:
        """Raises StudioError for what can't be a repository, before anything is written for it."""
        if self.settings.hub_offline:
            raise StudioError("The hub is switched off (HF_HUB_OFFLINE).", "Unset it, or export without a push.")
        if not REPOSITORY.fullmatch(repository):
            raise StudioError(f"{repository[:100]!r} is no repository of the hub.", "Write it as OWNER/NAME.")

    def push(self, export_id: str, repository: str, *, private: bool = True) -> PushedExport:
        """Upload a proved export to the hub. The token is the environment's, HF_TOKEN. Raises StudioError."""
        self.check_push(repository)
        export = self.show(export_id)
        if export.verified is not None and export.verified.passed is None:
            raise StudioError(f"Export {export.name} is not proved: {export.verified.reason}", "Push one that has passed its proof.")
        if export.status != JobStatus.SUCCEEDED or not export.files:
            raise StudioError(f"Export {export.name} is not there, or not proved.", "Push one that has passed its proof.")
        visibility = "private" if private else "public"
        command = processes.module_command("studio.catalogue.upload", export.path, repository, visibility)
        environment = processes.child_environment(for_hub=True)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PACKAGE_ROOT, env=environment
        ) as child:
            assert child.stdout is not None
            answer = child.stdout.read()  # stdin stays open until here: its end tells the child that we are gone
        try:
            said = json.loads(answer.splitlines()[-1])
        except (ValueError, IndexError):
            raise StudioError(f"The upload to {repository} ended without an answer.", "Try again.") from None
        if said["error"]:
            raise StudioError(said["error"]["message"], said["error"]["fix"])
        return PushedExport(repository=repository, url=said["url"])

    def formats(self, adapter: str) -> dict[str, str]:
        """Every format, with the reason why this adapter can't take it; "" where it can."""
        with self.db.read() as session:
            row = self.adapters.find(session, adapter)
        found: dict[str, str] = {}
        for format in ExportFormat:
            try:
                self._check(row, self.adapters.resolve(f"{row.base_model}:{row.name}").base, format)
                found[format] = ""
            except StudioError as refusal:
                found[format] = str(refusal)
        return found

    def _check(self, row: AdapterRow, base: BaseFolder | None, format: str) -> None:
        assert base is not None
        folder = Path(row.path)
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"The files of adapter {row.name} are gone from {folder}.", "Train it again, or delete the adapter.")
        kinds.check(format, read_json(folder / CONFIG))
        positions = rope.of_adapter(folder)
        if format == ExportFormat.GGUF_LORA and positions.is_set and not rope_flags.has_llama_cpp_flags(positions):
            raise ModelError(
                f"It was trained with positions ({rope.described(positions)}) that llama.cpp has no flags for, and a GGUF LoRA states none.",
                kinds.AS_MERGED,
            )
        if format in (ExportFormat.GGUF, ExportFormat.GGUF_LORA):
            try:
                family = gguf.check(base.path)
                if positions.is_set:
                    gguf.check_positions(family, rope.scaled(read_json(base.path / "config.json"), positions))
            except ModelError as refusal:
                said = f"{base.name} can't become GGUF: {refusal.message[0].lower()}{refusal.message[1:]}"
                raise ModelError(said, refusal.fix) from None

    def _target(self, to: Path | None, name: str) -> Path:
        """The folder that the export becomes: `to`, or one inside it where it holds something already."""
        if to is None:
            return self.settings.exports / name
        target = to.expanduser().absolute()
        if target.exists() and not target.is_dir():
            raise StudioError(f"{target} is a file, not a folder.", "Name a folder with --to.")
        if target.is_dir() and any(target.iterdir()):
            target = target / name
            if target.exists():
                raise StudioError(f"{target} exists already.", "Name a new or an empty folder with --to.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StudioError(f"{target} can't be made ({exc.strerror}).", "Name a folder that you may write to with --to.") from None
        return target

    def _queue(self, config: ExportConfig, name: str, row: AdapterRow) -> Export:
        job = JobRow(
            id=new_id(), kind=KIND, queue=queue_of(KIND), name=name, config=config.model_dump(mode="json"), base_model=row.base_model
        )
        run = RunDir(self.settings.runs / job.id)
        job.run_dir = str(run.path)
        try:
            run.path.mkdir(parents=True)
            run.write_config(job.config)
            lines = [prompt.model_dump_json(exclude_none=True) for prompt in self._prompts(row, config.verify)]
            (run.path / PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            if config.is_rounded and config.importance:
                (run.path / CALIBRATION).write_text("".join(self._calibration(row)), encoding="utf-8")
            with self.db.write() as session:
                lifecycle.submit(session, job)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        queue.notify(self.settings.queue_path, QueueName.GPU)
        return self.show(job.id)

    def _prompts(self, row: AdapterRow, count: int) -> Prompts:
        """What the proof asks: held-out rows of the adapter's own run first, then rows it was trained on, then general ones."""
        training = self._training(row)
        own: Prompts = []
        if training is not None and training.run_dir:
            run = RunDir(Path(training.run_dir))
            own = [*_asked(run.eval, count), *_asked(run.train, count)]
        more = [f"What comes after {number}?" for number in range(count)]
        general = [ProofPrompt(messages=[Message(role=Role.USER, content=text)]) for text in (*GENERAL, *more)]
        return [*own[:count], *general][:count]

    def _calibration(self, row: AdapterRow) -> Lines:
        """The first training rows of the adapter's run, a line each; [] where they are not known."""
        training = self._training(row)
        if training is None or not training.run_dir:
            return []
        file = RunDir(Path(training.run_dir)).train
        if not file.is_file():
            return []
        with file.open(encoding="utf-8") as lines:
            return [*islice(lines, CALIBRATION_ROWS)]

    def _training(self, row: AdapterRow) -> JobRow | None:
        """The job that made the adapter."""
        if row.job_id is None:
            return None
        with self.db.read() as session:
            return session.get(JobRow, row.job_id)

    def _about(self, row: AdapterRow) -> dict[str, str | int]:
        """What the card says of the data and the run."""
        training = self._training(row)
        if training is None or training.dataset_id is None:
            return {}
        with self.db.read() as session:
            data = session.get(DatasetRow, training.dataset_id)
        if data is None:
            return {}
        return {"data": data.name, "rows": data.rows, "kind": data.kind, "sha256 of the rows": data.sha256}

    def find(self, session: Session, export_id: str) -> JobRow:
        """The job of an export, by ID or name. Raises NotFoundError with near names."""
        return naming.look_up(session, JobRow, export_id, "export", JobRow.kind == KIND)


def _check_choices(format: str, outtype: str, verify: int) -> None:
    for option, value, choices in (("format", format, tuple(ExportFormat)), ("outtype", outtype, tuple(Outtype))):
        if value not in choices:
            raise StudioError(f"{option} {value[:40]!r} is not known.", f"Choose one of {', '.join(choices)}.")
    if format == ExportFormat.GGUF and outtype in K_QUANTS and not gguf.has_quantizer():
        raise StudioError(
            f"{outtype} is made by llama.cpp's quantizer, which is not installed here.",
            f"{gguf.INSTALL}; or choose f16, bf16 or q8_0.",
        )
    if not 1 <= verify <= MAX_PROMPTS:
        raise StudioError(f"verify {verify} is no possible number of prompts.", f"Take 1 to {MAX_PROMPTS}.")


def _check_room(config: ExportConfig, adapter_bytes: int) -> None:
    needed = expected_bytes(config.format, config.outtype, count_parameters(Path(config.base_path)), adapter_bytes)
    check_space(needed, Path(config.to).parent)


def _asked(file: Path, count: int) -> Iterator[ProofPrompt]:
    """The questions of up to `count` rows of a run."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            if prompt := _prompt(line):
                yield prompt


def _prompt(line: str) -> ProofPrompt | None:
    """A row of training without its answer."""
    row = json.loads(line)
    if row.get("text"):
        return ProofPrompt(text=row["text"][:MAX_TEXT])
    if isinstance(row.get("prompt"), str):
        return ProofPrompt(text=row["prompt"])
    messages = row.get("messages") or row.get("prompt") or []
    last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    before = [Message(role=message["role"], content=message["content"] or "") for message in messages[:last]]
    return ProofPrompt(messages=before) if before else None


def _record(job: JobRow) -> Export:
    format, folder = ExportFormat(job.config["format"]), Path(job.config["to"])
    written, reason = _written(job)
    is_there = written is not None and job.status in ENDED and folder.is_dir()
    size, files = (written.bytes, written.files) if written and is_there else (0, [])
    return Export(
        id=job.id,
        name=job.name,
        adapter=job.config["adapter"],
        base_model=job.base_model,
        format=format,
        outtype=Outtype(job.config["outtype"]) if format == ExportFormat.GGUF else None,
        status=JobStatus(job.status),
        reason=job.reason or reason,
        fix=job.fix,
        path=str(folder),
        bytes=size,
        # names only: what a row of a restored backup says must not lead out of the folder
        files=[name for name in files if Path(name).name == name and (folder / name).is_file()],
        verified=written.verified if written else None,
        progress=JobProgress(step=job.step, max_steps=job.max_steps, eta_s=job.eta_s),
        created_at=job.created_at,
    )


def _written(job: JobRow) -> tuple[WrittenExport | None, str]:
    """What it wrote, None before that; and why this can't be told, where it can't."""
    if not job.result:
        return None, ""
    try:
        return WrittenExport.model_validate(job.result), ""
    except ValidationError:
        return None, "Another version of the studio wrote it, and this one can't read its proof."
