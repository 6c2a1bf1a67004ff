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
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select

from jobs.config import JobConfig
from jobs.rundir import RunDir, sha256
from studio.catalogue.models import ModelRef, inspect_folder
from studio.db.models import AdapterRow, DatasetRow, JobEventRow, JobRow
from studio.errors import ModelError, NotFoundError, StudioError
from studio.services import naming
from studio.services.archives import Archive, add_file, open_archive, refused, write_archive
from studio.services.jobs import JobService
from studio.types import Example

FORMAT = "adapter-studio-bundle/1"
CARD = "bundle.json"
TEMPLATE = "chat_template.jinja"
ROWS = ("train.jsonl", "eval.jsonl", TEMPLATE)  # what a rerun takes out besides the card
EDGE_BYTES = 1 << 20
RERUN = "rerun"  # kind of the event that ties a job to its bundle

Json = dict[str, Any]


class BundleService:
    """What a person can do with bundles of runs."""

    def __init__(self, jobs: JobService) -> None:
        self.jobs = jobs
        self.settings = jobs.settings
        self.db = jobs.db

    def bundle(self, job_id: str, to: Path) -> Json:
        """Write the bundle of a training that has succeeded: {"id", "name", "path", "bytes", "adapter_sha256"}."""
        shown = self.jobs.show(job_id)
        if shown["kind"] != "train" or shown["status"] != "SUCCEEDED":
            raise StudioError(f"{shown['name']} is no training that has succeeded.", "Bundle it when it has.")
        run = RunDir(Path(shown["run_dir"]))
        files = {name: run.path / name for name in ROWS if (run.path / name).is_file()}
        files |= {f"adapter/{file.name}": file for file in sorted(run.adapter.glob("*")) if file.is_file()}
        if "train.jsonl" not in files or "adapter/adapter_model.safetensors" not in files:
            raise NotFoundError(f"The files of {shown['name']} are gone from {run.path}.", "Retry the job, or restore them.")
        card = self._card(shown, run, files)

        def fill(archive: zipfile.ZipFile) -> None:
            for name, path in files.items():
                add_file(archive, path, name)
            archive.writestr("metrics.jsonl", "".join(json.dumps(point) + "\n" for point in self.jobs.metrics(shown["id"])))
            archive.writestr("report.md", _report(card))
            archive.writestr(CARD, json.dumps(card, indent=1, ensure_ascii=False))

        write_archive(to, fill)
        return {
            "id": shown["id"],
            "name": shown["name"],
            "path": str(to.absolute()),
            "bytes": to.stat().st_size,
            "adapter_sha256": card["adapter_sha256"],
        }

    def _card(self, job: Json, run: RunDir, files: Mapping[str, Path]) -> Json:
        config = JobConfig.model_validate(job["config"])
        folder = Path(config.model_name_or_path)
        with self.db.read() as session:
            dataset = session.get(DatasetRow, job["data"]) if job["data"] else None
        return {
            "format": FORMAT,
            "job": {key: job[key] for key in ("id", "name", "recipe", "attempt", "created_at", "started_at", "ended_at", "tags", "notes")},
            # a folder's name on this machine means nothing elsewhere and tells more than it should
            "config": {**config.model_dump(mode="json"), **_without_places(config)},
            "seed": config.seed,
            "base_model": {"name": Path(config.base_model).name, "fingerprint": fingerprint(folder)},
            "dataset": {"name": dataset.name, "sha256": dataset.sha256, "rows": dataset.rows, "kind": dataset.kind} if dataset else None,
            "environment": environment(run, job["attempt"]),
            "adapter_sha256": sha256(run.adapter / "adapter_model.safetensors"),
            "result": job["result"],
            "files": {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()},
        }

    def rerun(self, bundle: Path, name: str | None = None) -> Json:
        """Queue the bundle's training again, on the base model of the same content that is here; returns the job."""
        with (
            open_archive(bundle, self.settings.cache) as archive,
            tempfile.TemporaryDirectory(dir=self.settings.cache) as place,
        ):
            card = read_card(archive)
            config = self._config(archive, card)
            model = self._model(card)
            source = _take_out(archive, card, Path(place))
            threads = config.num_threads or _threads(card)
            config = config.model_copy(update={"base_model": model.name, "model_name_or_path": str(model.path), "num_threads": threads})
            wanted = str((card.get("job") or {}).get("name") or "rerun")
            note = {
                "bundle_sha256": sha256(bundle),
                "adapter_sha256": card["adapter_sha256"],
                "dataset_sha256": str((card.get("dataset") or {}).get("sha256") or "-"),
            }
            title = name or naming.from_stem(wanted)
            recipe = str((card.get("job") or {}).get("recipe") or "")[:64]
            return self.jobs.show(self.jobs.launch_files(source, config, recipe, title, is_given=bool(name), note=note, kind=RERUN))

    def verify(self, bundle: Path) -> Json:
        """Whether the bundle's training gives the same adapter here: {"reproduces": bool | None, "expected", "actual", "job", …}.

        The first call queues the rerun; `reproduces` is None until that has ended.
        """
        with open_archive(bundle, self.settings.cache) as archive:
            card = read_card(archive)
            _check_files(archive, card, self.settings.cache)
        job_id = self._rerun_of(sha256(bundle)) or self.rerun(bundle)["id"]
        job = self.jobs.show(job_id)
        with self.db.read() as session:
            actual = session.scalar(select(AdapterRow.sha256).where(AdapterRow.job_id == job_id)) if job["status"] == "SUCCEEDED" else None
        here = environment(RunDir(Path(job["run_dir"])), job["attempt"])
        return {
            "reproduces": actual == card["adapter_sha256"] if actual else None,
            "expected": card["adapter_sha256"],
            "actual": actual,
            "job": job_id,
            "name": job["name"],
            "status": job["status"],
            "reason": job["reason"],
            "fix": job["fix"],
            "results": {"expected": card.get("result") or {}, "actual": job["result"]},
            "environment_differences": _differences(card.get("environment") or {}, here) if here else {},
        }

    def _rerun_of(self, digest: str) -> str | None:
        with self.db.read() as session:
            query = (
                select(JobEventRow)
                .join(JobRow, JobRow.id == JobEventRow.job_id)
                .where(JobEventRow.kind == RERUN)
                .order_by(JobEventRow.id.desc())
            )
            return next((event.job_id for event in session.scalars(query) if event.data.get("bundle_sha256") == digest), None)

    def _config(self, archive: Archive, card: Json) -> JobConfig:
        """The options, without those that reach out of the run: a template anywhere on this disk, a service to report to."""
        try:
            config = JobConfig.model_validate(card["config"])
        except (KeyError, ValidationError):
            raise refused(archive.path, "its options are none of this version's") from None
        template = config.chat_template
        if template is not None and template.endswith(".jinja"):
            if TEMPLATE not in archive.names:
                raise refused(archive.path, f"its chat template is missing ({TEMPLATE})")
            template = Path(template).name
        return config.model_copy(update={"chat_template": template, "report_to": "none"})

    def _model(self, card: Json) -> ModelRef:
        """The base model by its content; its name may be another one here."""
        about = card.get("base_model") or {}
        wanted, name = about.get("fingerprint"), str(about.get("name") or "")
        models = self.jobs.models.list()
        for model in sorted(models, key=lambda found: found.name != name):
            folder = Path(model.path)
            if inspect_folder(folder).loadable and fingerprint(folder) == wanted:
                return ModelRef(model.name, folder)
        raise ModelError(f"The base model of this bundle ({name}) is not here.", "Add the very same model under Models.")


def _without_places(config: JobConfig) -> Json:
    template = config.chat_template
    is_file = template is not None and template.endswith(".jinja")
    return {
        "model_name_or_path": "",
        "base_model": Path(config.base_model).name,
        "chat_template": Path(template).name if template and is_file else template,
    }


def read_card(archive: Archive) -> Json:
    """bundle.json, whose outer form is checked. Raises StudioError."""
    card = archive.json(CARD)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise refused(archive.path, "it is no bundle of this version")
    if not all(isinstance(card.get(key), dict) for key in ("config", "files", "job", "base_model")) or not isinstance(
        card.get("adapter_sha256"), str
    ):
        raise refused(archive.path, f"{CARD} is not whole")
    return card


def environment(run: RunDir, attempt: int) -> Json:
    """Versions, device and threads of an attempt, as its worker has noted them; {} where it has not."""
    try:
        found = json.loads((run.attempt(attempt).path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _take_out(archive: Archive, card: Json, place: Path) -> RunDir:
    """The rows and the template, checked against the card, as a run directory."""
    run = RunDir(place)
    for name in ROWS:
        if name in archive.names:
            archive.extract(name, place / name)
            if _digest(card, name) != sha256(place / name):
                raise refused(archive.path, f"{name} has changed")
    if not run.train.exists():
        raise refused(archive.path, "it has no train.jsonl")
    run.eval.touch()
    for path in (run.train, run.eval):
        _check_rows(archive.path, path)
    return run


def _check_files(archive: Archive, card: Json, cache: Path) -> None:
    """Every file of the card is there and unchanged."""
    with tempfile.TemporaryDirectory(dir=cache) as place:
        for name in card["files"]:
            if name not in archive.names:
                raise refused(archive.path, f"{name[:80]!a} is missing")
            archive.extract(name, Path(place) / "file")
            if _digest(card, name) != sha256(Path(place) / "file"):
                raise refused(archive.path, f"{name} has changed")
    weights = "adapter/adapter_model.safetensors"
    if _digest(card, weights) != card["adapter_sha256"]:
        raise refused(archive.path, "its adapter is not the one that its card names")


def _check_rows(bundle: Path, path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                Example.model_validate_json(line)
            except ValidationError:
                raise refused(bundle, f"{path.name}, line {number} is no row of the studio") from None


def _digest(card: Json, name: str) -> str:
    entry = card["files"].get(name)
    return str(entry.get("sha256") or "") if isinstance(entry, dict) else ""


def _threads(card: Json) -> int:
    threads = ((card.get("environment") or {}).get("hardware") or {}).get("threads")
    return threads if isinstance(threads, int) and 0 <= threads <= 1024 else 0


def _differences(there: Json, here: Json) -> Json:
    """{"torch": [there, here], …}"""
    flat = [{**(found.get("versions") or {}), **(found.get("hardware") or {})} for found in (there, here)]
    return {
        key: [flat[0].get(key), flat[1].get(key)] for key in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(key) != flat[1].get(key)
    }


def _report(card: Json) -> str:
    """What a person reads first."""
    job, result, dataset = card["job"], card["result"], card["dataset"] or {}
    versions = ", ".join(f"{name} {version}" for name, version in (card["environment"].get("versions") or {}).items())
    figures = "\n".join(
        f"| {name} | {value:.6g} |" if isinstance(value, float) else f"| {name} | {value} |" for name, value in result.items()
    )
    return (
        f"# {job['name']}\n\n"
        f"Base model {card['base_model']['name']}, recipe {job['recipe'] or '-'}, seed {card['seed']}; "
        f"data {dataset.get('name', 'without a name')} ({dataset.get('rows', '?')} rows, sha256 {dataset.get('sha256', '?')}).\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n\n"
        f"Adapter sha256 `{card['adapter_sha256']}`. Made with {versions or 'unknown versions'}.\n"
        f"`studio jobs verify` trains it again and compares; every option is in `{CARD}`.\n"
        + (f"\n{job['notes']}\n" if job["notes"] else "")
    )
