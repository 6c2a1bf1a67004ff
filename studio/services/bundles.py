"""A run in one file: everything that made it and what came out; run again elsewhere, and compared to the bit.

Knows no process: a rerun is a job like any other.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, ValidationError
from sqlalchemy import select

from jobs.config import JobConfig
from jobs.rundir import RunDir, sha256
from studio.catalogue.models import ModelRef, inspect_folder
from studio.datasets.rendering import names_file
from studio.db.models import AdapterRow, DatasetRow, JobEventRow, JobRow
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import Bundle, BundleCheck, BundleResults, JobDetail, JobKind, JobStatus
from studio.services import bundle_card, naming
from studio.services.archives import Archive, add_file, open_archive, refused, write_archive
from studio.services.bundle_card import CARD, FORMAT, BundleCard, BundledData, BundledJob, BundledModel, BundleFile
from studio.services.jobs import JobService
from studio.types import Example

TEMPLATE = "chat_template.jinja"
ROWS = ("train.jsonl", "eval.jsonl", TEMPLATE)  # what a rerun takes out besides the card
WEIGHTS = "adapter/adapter_model.safetensors"
EDGE_BYTES = 1 << 20
RERUN = "rerun"  # kind of the event that ties a job to its bundle


class BundleService:
    """What a person can do with bundles of runs."""

    def __init__(self, jobs: JobService) -> None:
        self.jobs = jobs
        self.settings = jobs.settings
        self.db = jobs.db

    def bundle(self, job_id: str, to: Path) -> Bundle:
        """Write the bundle of a training that has succeeded."""
        job = self.jobs.show(job_id)
        if job.kind != JobKind.TRAIN or job.status != JobStatus.SUCCEEDED:
            raise StudioError(f"{job.name} is no training that has succeeded.", "Bundle it when it has.")
        run = RunDir(Path(job.run_dir))
        files = {name: run.path / name for name in ROWS if (run.path / name).is_file()}
        files |= {f"adapter/{file.name}": file for file in sorted(run.adapter.glob("*")) if file.is_file()}
        if "train.jsonl" not in files or WEIGHTS not in files:
            raise NotFoundError(f"The files of {job.name} are gone from {run.path}.", "Retry the job, or restore them.")
        card = self._card(job, run, files)

        def fill(archive: zipfile.ZipFile) -> None:
            for name, path in files.items():
                add_file(archive, path, name)
            archive.writestr("metrics.jsonl", "".join(json.dumps(point) + "\n" for point in self.jobs.metrics(job.id)))
            archive.writestr("report.md", bundle_card.as_markdown(card))
            archive.writestr(CARD, json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False))

        write_archive(to, fill)
        size = to.stat().st_size
        return Bundle(id=job.id, name=job.name, path=str(to.absolute()), bytes=size, adapter_sha256=card.adapter_sha256)

    def _card(self, job: JobDetail, run: RunDir, files: Mapping[str, Path]) -> BundleCard:
        config = JobConfig.model_validate(job.config)
        with self.db.read() as session:
            dataset = session.get(DatasetRow, job.data) if job.data else None
        kept = {name: BundleFile(bytes=path.stat().st_size, sha256=sha256(path)) for name, path in files.items()}
        return BundleCard(
            format=FORMAT,
            job=BundledJob.model_validate(job, from_attributes=True),
            # a folder's name on this machine means nothing elsewhere and tells more than it should
            config={**config.model_dump(mode="json"), **_without_places(config)},
            seed=config.seed,
            base_model=BundledModel(name=Path(config.base_model).name, fingerprint=fingerprint(Path(config.model_name_or_path))),
            dataset=BundledData.model_validate(dataset, from_attributes=True) if dataset else None,
            environment=bundle_card.environment(run, job.attempt) or bundle_card.RunEnvironment(),
            adapter_sha256=kept[WEIGHTS].sha256,
            result=job.result,
            files=kept,
        )

    def rerun(self, bundle: Path, name: str | None = None) -> JobDetail:
        """Queue the bundle's training again, on the base model of the same content that is here."""
        with (
            open_archive(bundle, self.settings.cache) as archive,
            tempfile.TemporaryDirectory(dir=self.settings.cache) as place,
        ):
            card = bundle_card.read_card(archive)
            config = self._config(archive, card)
            model = self._model(card)
            source = _take_out(archive, card, Path(place))
            threads = config.num_threads or card.environment.threads
            here = {"base_model": model.name, "model_name_or_path": str(model.path), "num_threads": threads}
            note: dict[str, JsonValue] = {
                "bundle_sha256": sha256(bundle),
                "adapter_sha256": card.adapter_sha256,
                "dataset_sha256": (card.dataset and card.dataset.sha256) or "-",
            }
            queued = self.jobs.cloner.launch_files(
                source,
                config.model_copy(update=here),
                card.job.recipe[:64],
                name or naming.from_stem(card.job.name or "rerun"),
                is_given=bool(name),
                note=note,
                kind=RERUN,
            )
            return self.jobs.show(queued)

    def verify(self, bundle: Path) -> BundleCheck:
        """Whether the bundle's training gives the same adapter here. The first call queues the rerun."""
        with open_archive(bundle, self.settings.cache) as archive:
            card = bundle_card.read_card(archive)
            _check_files(archive, card, self.settings.cache)
        job_id = self._rerun_of(sha256(bundle)) or self.rerun(bundle).id
        job = self.jobs.show(job_id)
        actual = None
        if job.status == JobStatus.SUCCEEDED:
            with self.db.read() as session:
                actual = session.scalar(select(AdapterRow.sha256).where(AdapterRow.job_id == job_id))
        here = bundle_card.environment(RunDir(Path(job.run_dir)), job.attempt)
        return BundleCheck(
            reproduces=actual == card.adapter_sha256 if actual else None,
            expected=card.adapter_sha256,
            actual=actual,
            job=job_id,
            name=job.name,
            status=job.status,
            reason=job.reason,
            fix=job.fix,
            results=BundleResults(expected=card.result, actual=job.result),
            environment_differences=bundle_card.differences(card.environment, here) if here else {},
        )

    def _rerun_of(self, digest: str) -> str | None:
        with self.db.read() as session:
            query = select(JobEventRow).join(JobRow, JobRow.id == JobEventRow.job_id).where(JobEventRow.kind == RERUN)
            events = session.scalars(query.order_by(JobEventRow.id.desc()))
            return next((event.job_id for event in events if event.data.get("bundle_sha256") == digest), None)

    def _config(self, archive: Archive, card: BundleCard) -> JobConfig:
        """The options, without those that reach out of the run: a template anywhere on this disk, a service to report to."""
        try:
            config = JobConfig.model_validate(card.config)
        except ValidationError:
            raise refused(archive.path, "its options are none of this version's") from None
        template = config.chat_template
        if template is not None and names_file(template):
            if TEMPLATE not in archive.names:
                raise refused(archive.path, f"its chat template is missing ({TEMPLATE})")
            template = Path(template).name
        return config.model_copy(update={"chat_template": template, "report_to": "none"})

    def _model(self, card: BundleCard) -> ModelRef:
        """The base model by its content; its name may be another one here."""
        wanted = card.base_model
        models = self.jobs.models.list()
        for model in sorted(models, key=lambda found: found.name != wanted.name):
            folder = Path(model.path)
            if inspect_folder(folder).loadable and fingerprint(folder) == wanted.fingerprint:
                return ModelRef(model.name, folder)
        raise ModelError(f"The base model of this bundle ({wanted.name}) is not here.", "Add the very same model under Models.")


def _without_places(config: JobConfig) -> dict[str, JsonValue]:
    template = config.chat_template
    if template is not None and names_file(template):
        template = Path(template).name
    return {"model_name_or_path": "", "base_model": Path(config.base_model).name, "chat_template": template}


def fingerprint(folder: Path) -> str:
    """Of a model's content: its config and tokenizer whole, of the weights size, beginning and end. Seconds, not minutes, at any size."""
    digest = hashlib.sha256()
    wanted = (*folder.glob("*.safetensors"), folder / "config.json", folder / "tokenizer.json")
    for path in sorted((file for file in wanted if file.is_file()), key=lambda file: file.name):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors" or size <= 2 * EDGE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(size - EDGE_BYTES)
                digest.update(file.read())
    return digest.hexdigest()


def _take_out(archive: Archive, card: BundleCard, place: Path) -> RunDir:
    """The rows and the template, checked against the card, as a run directory."""
    run = RunDir(place)
    for name in ROWS:
        if name in archive.names:
            archive.extract(name, place / name)
            if card.digest(name) != sha256(place / name):
                raise refused(archive.path, f"{name} has changed")
    if not run.train.exists():
        raise refused(archive.path, "it has no train.jsonl")
    run.eval.touch()
    for path in (run.train, run.eval):
        _check_rows(archive.path, path)
    return run


def _check_files(archive: Archive, card: BundleCard, cache: Path) -> None:
    """Every file of the card is there and unchanged."""
    with tempfile.TemporaryDirectory(dir=cache) as place:
        for name in card.files:
            if name not in archive.names:
                raise refused(archive.path, f"{name[:80]!a} is missing")
            archive.extract(name, Path(place) / "file")
            if card.digest(name) != sha256(Path(place) / "file"):
                raise refused(archive.path, f"{name} has changed")
    if card.digest(WEIGHTS) != card.adapter_sha256:
        raise refused(archive.path, "its adapter is not the one that its card names")


def _check_rows(bundle: Path, path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                Example.model_validate_json(line)
            except ValidationError:
                raise refused(bundle, f"{path.name}, line {number} is no row of the studio") from None
