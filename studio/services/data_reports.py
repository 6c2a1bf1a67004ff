"""Reports on datasets: made by a child process, kept beside the rows, found again when the same is asked."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from studio.datasets.children import run_child
from studio.datasets.report.child import Progress
from studio.datasets.report.wanted import Wanted
from studio.errors import StudioError
from studio.records import Dataset, DatasetReport
from studio.services.chosen_options import longest_row
from studio.services.datasets import DatasetService, day_of
from studio.services.models import ModelService
from studio.services.versions import VersionShelf
from studio.settings import Settings

REPORT_VERSION = 3  # a report made by other rules is made again


class ReportOptions(TypedDict, total=False):
    """How a report is made, everywhere the same."""

    base_model: str | None  # count in its tokens, and look for rows that are cut off
    max_length: int | None  # of a row in tokens; None: as a training cuts it that sets none
    chat_template: str | None
    against: Sequence[str]  # datasets that shall share no row with this one; the other side of a split always counts as one
    allow_path: bool  # base_model may be a folder


class FullReport(DatasetReport):
    """A report with every row of each finding, as it is kept."""

    dataset: str = ""  # the same rows may be those of several
    all_rows: dict[str, list[int]]  # check -> rows

    def of(self, dataset: Dataset) -> DatasetReport:
        """As people see it."""
        shown = {name: getattr(self, name) for name in DatasetReport.model_fields}
        return DatasetReport(**{**shown, "dataset": dataset.id})


class Reports:
    """Makes and keeps reports, one at a time."""

    def __init__(self, settings: Settings, datasets: DatasetService, models: ModelService, shelf: VersionShelf) -> None:
        self._settings = settings
        self._datasets = datasets
        self._models = models
        self._shelf = shelf
        self._one_at_a_time = threading.Lock()  # a report takes every core

    def wanted(self, dataset: Dataset, options: ReportOptions) -> Wanted:
        """What the child is asked."""
        others = {self._datasets.show(other).id for other in options.get("against", ())} | self._shelf.sibling(dataset.id)
        if dataset.id in others:
            raise StudioError(f"{dataset.name} can't be compared with itself.", "Name another dataset in against.")
        asked = Wanted(
            path=str(self._datasets.path(dataset.id)),
            kind=dataset.kind.value,
            against=[str(self._datasets.path(other)) for other in sorted(others)],
        )
        self._models.refuse_file(options.get("chat_template"))
        base_model = options.get("base_model")
        if not base_model:
            return asked
        model = self._models.resolve(base_model, allow_path=options.get("allow_path", False))
        max_length = options.get("max_length")
        if max_length is None:
            max_length = longest_row(model).config.max_length
        if max_length < 1:
            raise StudioError(f"max_length can't be {max_length}.", "Give a number of tokens, such as 1024.")
        template = options.get("chat_template") or None
        return replace(asked, model_folder=str(model.path), max_length=max_length, chat_template=template, date=day_of(dataset.created_at))

    def made(self, dataset: Dataset, wanted: Wanted, progress: Progress | None) -> FullReport:
        """The report that is kept, else a new one, which is kept from now on."""
        found = self.kept(dataset, wanted)
        if found is not None:
            return found
        with self._one_at_a_time:
            found = self.kept(dataset, wanted) or self._run(wanted, progress)
        self.keep(dataset, wanted, found)
        return found

    def again(self, wanted: Wanted, progress: Progress | None) -> FullReport:
        """A new report on rows that are no dataset yet; it is not kept."""
        with self._one_at_a_time:
            return self._run(wanted, progress)

    def kept(self, dataset: Dataset, wanted: Wanted) -> FullReport | None:
        try:
            return FullReport.model_validate_json(self._path(dataset.id, wanted).read_bytes())
        except (OSError, ValidationError):
            return None

    def keep(self, dataset: Dataset, wanted: Wanted, report: FullReport) -> None:
        path = self._path(dataset.id, wanted)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        part.write_text(report.model_dump_json(), encoding="utf-8")
        part.replace(path)

    def _run(self, wanted: Wanted, progress: Progress | None) -> FullReport:
        made = run_child("studio.datasets.report", asdict(wanted), self._settings.cache, progress)
        return FullReport.model_validate(made)

    def _path(self, dataset_id: str, wanted: Wanted) -> Path:
        asked = json.dumps({**asdict(wanted), "path": "", "version": REPORT_VERSION}, sort_keys=True)
        return self._shelf.folder(dataset_id) / "reports" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"
