"""bundle.json: what a bundle says of its run. It comes from anywhere, so it is checked before anything is taken from it."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError

from jobs.rundir import RunDir
from studio.services.archives import Archive, refused

CARD = "bundle.json"
MAX_THREADS = 1024

Format = Literal["adapter-studio-bundle/1"]
FORMAT: Format = "adapter-studio-bundle/1"


class BundleFile(BaseModel):
    """A file of the bundle."""

    bytes: int
    sha256: str


class BundledJob(BaseModel):
    """The job that was bundled."""

    id: str = ""
    name: str = "rerun"
    recipe: str = ""
    attempt: int = 1
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    tags: list[str] = Field(default_factory=list)
    notes: str = ""


class BundledModel(BaseModel):
    """Its base model, known by its content."""

    name: str = ""
    fingerprint: str | None = None


class BundledData(BaseModel):
    """Its dataset, where that was still there."""

    name: str = "without a name"
    sha256: str = "-"
    rows: int | None = None
    kind: str | None = None


class RunEnvironment(BaseModel):
    """What the figures of a run depend on besides its config: versions, device, threads."""

    versions: dict[str, JsonValue] = Field(default_factory=dict)
    hardware: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def threads(self) -> int:
        """Threads of the run; 0 where that is not known."""
        threads = self.hardware.get("threads")
        if isinstance(threads, int) and 0 <= threads <= MAX_THREADS:
            return threads
        return 0


class BundleCard(BaseModel):
    """The whole of bundle.json."""

    format: Format
    job: BundledJob
    config: dict[str, JsonValue]
    seed: int | None = None
    base_model: BundledModel
    dataset: BundledData | None = None
    environment: RunEnvironment = Field(default_factory=RunEnvironment)
    adapter_sha256: str
    result: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, BundleFile]

    def digest(self, name: str) -> str:
        """sha256 of a file of the bundle; empty where the card does not name it."""
        entry = self.files.get(name)
        return entry.sha256 if entry else ""


def read_card(archive: Archive) -> BundleCard:
    """Raises StudioError when bundle.json can't be used."""
    card = archive.json(CARD)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise refused(archive.path, "it is no bundle of this version")
    try:
        return BundleCard.model_validate(card)
    except ValidationError:
        raise refused(archive.path, f"{CARD} is not whole") from None


def environment(run: RunDir, attempt: int) -> RunEnvironment | None:
    """Of an attempt, as its worker has noted it; None where it has not."""
    try:
        found = json.loads((run.attempt(attempt).path / "environment.json").read_text(encoding="utf-8"))
        return RunEnvironment.model_validate(found)
    except (OSError, ValueError):
        return None


def differences(there: RunEnvironment, here: RunEnvironment) -> dict[str, list[JsonValue]]:
    """{"torch": [there, here], …}"""
    pair = [{**one.versions, **one.hardware} for one in (there, here)]
    columns = {key: [one.get(key) for one in pair] for key in dict.fromkeys([*pair[0], *pair[1]])}
    return {key: values for key, values in columns.items() if values[0] != values[1]}


def as_markdown(card: BundleCard) -> str:
    """report.md: what a person reads first."""
    job, dataset = card.job, card.dataset or BundledData()
    versions = ", ".join(f"{name} {version}" for name, version in card.environment.versions.items())
    figures = "\n".join(f"| {name} | {_figure(value)} |" for name, value in card.result.items())
    rows = "?" if dataset.rows is None else dataset.rows
    text = (
        f"# {job.name}\n\n"
        f"Base model {card.base_model.name}, recipe {job.recipe or '-'}, seed {card.seed}; "
        f"data {dataset.name} ({rows} rows, sha256 {dataset.sha256}).\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n\n"
        f"Adapter sha256 `{card.adapter_sha256}`. Made with {versions or 'unknown versions'}.\n"
        f"`studio jobs verify` trains it again and compares; every option is in `{CARD}`.\n"
    )
    return text + (job.notes and f"\n{job.notes}\n")


def _figure(value: JsonValue) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
