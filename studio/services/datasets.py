"""Datasets: check and keep a file, show, render, export and delete it, and write the files of a run.

A dataset is a row and a folder `datasets/<id>/` with rows.jsonl, one Example per line; it never changes once it is kept.
Hub datasets and old tokenizers are read by child processes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sqlalchemy import select, update

from jobs.rundir import RunDir
from studio import privacy
from studio.catalogue.models import ModelRef
from studio.datasets import guessing, parity, template_limits
from studio.datasets.first_rows import first_rows
from studio.datasets.formats import BY_NAME, FORMATS, Format
from studio.datasets.ingest import Problems, open_ingest
from studio.datasets.rendering import TEMPLATE_NAMES, Renderer
from studio.datasets.report.control_tokens import of_model
from studio.datasets.splitting import split_file
from studio.datasets.template_losses import advice
from studio.db.models import ComparisonRow, DatasetRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.records import (
    ColumnChoice,
    Dataset,
    FirstRows,
    Inspection,
    KnownMapping,
    Parity,
    Rendering,
    RowFormat,
    RunRows,
    TemplateInfo,
    TrainingCheck,
    WrittenRows,
)
from studio.services import rendered_rows
from studio.services.chosen_options import longest_row
from studio.services.dataset_files import DatasetFiles, as_record, disk_errors, look_up
from studio.services.hub_rows import HubRows, file_name, is_hub
from studio.services.paging import ALL, Listed, Page
from studio.settings import Settings
from studio.types import Example, RowOptions

RENDER_SAMPLE = 500  # rows that the shares of `render` are counted on
PARITY_ROWS = 20  # that a launch compares
MAX_PAGE = 1000

Datasets = list[Dataset]  # `list` itself names a method below
Examples = list[Example]
Templates = list[TemplateInfo]
Formats = list[RowFormat]


class _Models(Protocol):
    def refuse_file(self, chat_template: object) -> None: ...

    def resolve(self, name: str, allow_path: bool = False) -> ModelRef: ...


class DatasetService:
    """Use cases around datasets. A dataset is named by its ID or its name; `show` looks it up."""

    def __init__(self, settings: Settings, db: Database, models: _Models) -> None:
        self._settings = settings
        self._db = db
        self._models = models
        self._files = DatasetFiles(settings, db)
        self._hub = HubRows(settings.cache)

    def add(
        self,
        source: Path | str,
        *,
        name: str | None = None,
        format: str | None = None,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        filename: str | None = None,
    ) -> Dataset:
        """Check a file (or "hub:NAME[:config[:split]]") and keep it; `filename` is an upload's own name.

        Raises DatasetError for the whole file, or with all problems of its rows (details: problems, count); TakenError.
        """
        self._files.claim(name)
        if is_hub(source):
            with self._hub.to_keep(str(source)) as path:
                return self._files.keep(path, file_name(str(source)), str(source), name, format, mapping, skip_bad)
        path = Path(source)
        known_as = filename or path.name
        return self._files.keep(path, known_as, known_as, name, format, mapping, skip_bad)

    def add_text(
        self,
        text: str,
        *,
        name: str | None = None,
        format: str | None = None,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
    ) -> Dataset:
        """Check and keep pasted text: JSON lines, a JSON document, or paragraphs."""
        self._files.claim(name)
        with self._files.pasted(text) as path:
            return self._files.keep(path, "pasted", "pasted text", name, format, mapping, skip_bad)

    def inspect(
        self,
        path: Path | str,
        *,
        filename: str | None = None,
        format: str | None = None,
        mapping: Mapping[str, str] | None = None,
        rows: int = 5,
    ) -> Inspection:
        """What `add` would make of a file or hub dataset, without keeping anything but what was fetched, for an hour."""
        if is_hub(path):
            with self._hub.to_look_at(str(path)) as fetched:
                return self.inspect(fetched, filename=file_name(str(path)), format=format, mapping=mapping, rows=rows)
        problems, count = Problems(), 0
        preview: Examples = []
        with open_ingest(Path(path), filename, format, mapping, self._settings.cache) as ingest:
            for batch in ingest.batches():
                for problem in batch.problems:
                    problems.add(problem)
                if len(preview) < rows:
                    lines = batch.lines.split(b"\n", rows)[: rows - len(preview)]
                    preview += [Example.model_validate_json(line) for line in lines if line]
                count += batch.rows
            found = ingest.layout.format
            return Inspection(
                format=found.name,
                kind=found.kind,
                formats=[known.name for known in FORMATS],
                columns=ingest.columns,
                roles=found.role_names(),
                mapping=ingest.layout.mapping,
                used=ingest.layout.mapping,
                used_message_keys=ingest.usage.used_message_keys(),
                unused=ingest.usage.unused(),
                encoding=ingest.source.encoding,
                notes=ingest.notes(),
                preview=preview,
                problems=problems.records(),
                problem_count=problems.count,
                rows=count,
            )

    def inspect_text(self, text: str, *, format: str | None = None, mapping: Mapping[str, str] | None = None, rows: int = 5) -> Inspection:
        """What `add_text` would make of a text, without keeping anything."""
        with self._files.pasted(text) as path:
            return self.inspect(path, filename="pasted", format=format, mapping=mapping, rows=rows)

    def table(self, path: Path | str, *, filename: str | None = None, rows: int = 5) -> FirstRows:
        """The first rows of a file or hub dataset as they are, and what its columns may be, also where they fit no format."""
        if is_hub(path):
            with self._hub.to_look_at(str(path)) as fetched:
                return first_rows(fetched, file_name(str(path)), self._settings.cache, rows)
        return first_rows(Path(path), filename, self._settings.cache, rows)

    def table_of_text(self, text: str, *, rows: int = 5) -> FirstRows:
        """The same of a text."""
        with self._files.pasted(text) as path:
            return first_rows(path, "pasted", self._settings.cache, rows)

    def choose_column(self, format: str, mapping: Mapping[str, str], column: str, role: str) -> ColumnChoice:
        """How columns are read once `column` plays `role` ("" for none); the format follows where it has no such role."""
        return _choice(*guessing.reassign(_known(format).name, mapping, column, role))

    def choose_format(self, format: str, mapping: Mapping[str, str]) -> ColumnChoice:
        """The columns of `mapping` in the roles of another format; what it has no role for is left out."""
        return _choice(format, guessing.translated(_known(format), mapping))

    def formats(self) -> Formats:
        """The known formats of rows, in the order in which they are tried."""
        return [RowFormat(name=known.name, kind=known.kind, roles=known.role_names(), description=known.description) for known in FORMATS]

    def remembered(self, columns: Iterable[str]) -> KnownMapping | None:
        """How a file with exactly these columns was read and mapped the last time; None for new ones."""
        wanted = sorted(columns)
        if not wanted:
            return None
        with self._db.read() as session:
            for row in session.scalars(select(DatasetRow).order_by(DatasetRow.created_at.desc())):
                if sorted(row.provenance.get("columns") or []) == wanted:
                    return KnownMapping(name=row.name, format=row.format, mapping=row.mapping)
        return None

    def list(self, page: Page = ALL) -> Listed[Dataset]:
        """The newest first."""
        with self._db.read() as session:
            rows = page.read(session, select(DatasetRow).order_by(DatasetRow.created_at.desc(), DatasetRow.id))
            return rows.as_are(as_record(row) for (row,) in rows)

    def show(self, dataset: str) -> Dataset:
        """One dataset. Raises NotFoundError."""
        with self._db.read() as session:
            return as_record(look_up(session, dataset))

    def path(self, dataset: str) -> Path:
        """The rows as JSON lines, one Example each."""
        return self._files.rows(self.show(dataset).id)

    def rows(self, dataset: str, offset: int = 0, limit: int = 20) -> Examples:
        """Some rows, from `offset` (0 is the first)."""
        first = max(0, offset)
        with self.path(dataset).open("rb") as file:
            lines = itertools.islice(file, first, first + max(0, min(limit, MAX_PAGE)))
            return [Example.model_validate_json(line) for line in lines]

    def examples(self, dataset: str) -> Iterator[Example]:
        """Every row, one at a time."""
        with self.path(dataset).open("rb") as file:
            for line in file:
                yield Example.model_validate_json(line)

    def delete(self, dataset: str) -> Dataset:
        """Forget a dataset. Runs keep their own copies of its rows; jobs and comparisons made of it stay and lose the link."""
        with self._db.write() as session:
            found = look_up(session, dataset)
            record = as_record(found)
            session.execute(update(JobRow).where(JobRow.dataset_id == found.id).values(dataset_id=None))
            session.execute(update(ComparisonRow).where(ComparisonRow.dataset_id == found.id).values(dataset_id=None))
            session.execute(update(DatasetRow).where(DatasetRow.parent_id == found.id).values(parent_id=None))
            session.delete(found)
        shutil.rmtree(self._files.folder(record.id), ignore_errors=True)  # what is left is a harmless orphan
        return record

    def export(self, dataset: str, to: Path | str) -> WrittenRows:
        """Write the rows as JSON lines to the file `to`, replacing it."""
        record = self.show(dataset)
        source, target = self._files.rows(record.id), Path(to)
        if target.is_dir() or not target.name:
            raise StudioError(f"{target} is a folder.", "Name a file, such as rows.jsonl.")
        if not target.absolute().parent.is_dir():
            raise StudioError(f"There is no folder {target.absolute().parent}.", "Create it, or choose another place.")
        part = target.with_name(f".{target.name}.part")
        with disk_errors(target.absolute().parent):
            try:
                shutil.copyfile(source, part)
                privacy.hand_out(part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return WrittenRows(path=str(target.absolute()), rows=record.rows, bytes=target.stat().st_size)

    @template_limits.budget.within(template_limits.PREVIEW_CPU_S)
    def render(
        self,
        dataset: str,
        *,
        base_model: str,
        rows: int = 3,
        offset: int = 0,
        max_length: int | None = None,
        chat_template: str | None = None,
        options: RowOptions | None = None,
        allow_path: bool = False,
    ) -> Rendering:
        """What a model will see and learn of some rows from `offset` on (0 is the first).

        Shares, percentiles and the histogram are over all rows, or an even sample of many. In each row `ids`, `tokens` and `learned`
        end at max_length, by default where a training ends them that sets none; `cut` and `cut_learned` are the tokens behind it.
        """
        self._models.refuse_file(chat_template)
        model = self._models.resolve(base_model, allow_path=allow_path)
        record = self.show(dataset)
        renderer = self.renderer(record, model.path, chat_template, options)
        if max_length is not None:
            return self.rendering(record, renderer, renderer, max_length, rows, offset)
        chosen = longest_row(model)
        found = self.rendering(record, renderer, renderer, chosen.config.max_length, rows, offset)
        return found.model_copy(update={"length_notice": " ".join(chosen.notices)})

    def rendering(
        self, record: Dataset, renderer: Renderer, seen: rendered_rows.Rows, max_length: int, rows: int, offset: int = 0
    ) -> Rendering:
        """Some rows as `seen`, which renders with `renderer`, has them."""
        spread = self._spread(record, RENDER_SAMPLE)
        checked = rendered_rows.check(seen, spread, max_length, record.rows, of_model(renderer))
        examples = enumerate(self.rows(record.id, offset=offset, limit=rows), start=offset + 1)
        figures = {name: getattr(checked, name) for name in TrainingCheck.model_fields if name != "rows"}
        return Rendering(
            **figures,
            total=checked.rows,
            max_length=max_length,
            advice=advice(renderer, checked),
            rows=[rendered_rows.rendered_row(seen, example, number, max_length) for number, example in examples],
            template_name=renderer.template_name,
            template_sha256=renderer.template_sha256,
        )

    @template_limits.budget.within(template_limits.PREVIEW_CPU_S)
    def templates(self, base_model: str, *, allow_path: bool = False) -> Templates:
        """The chat templates that fit a model, the one it gets by default first, each with how it writes a short conversation."""
        path = self._models.resolve(base_model, allow_path=allow_path).path
        default = Renderer.load(path)
        others = [Renderer.load(path, name) for name in TEMPLATE_NAMES if name != default.template_name]
        return [_template("", default), *(_template(other.template_name, other) for other in others)]

    @template_limits.budget.within(template_limits.PREVIEW_CPU_S)
    def parity(
        self,
        dataset: str,
        *,
        base_model: str,
        rows: int = 20,
        max_length: int | None = None,
        chat_template: str | None = None,
        options: RowOptions | None = None,
        allow_path: bool = False,
    ) -> Parity:
        """Whether training sees the ids that chat sends with the answer behind them, for `rows` rows spread evenly; see parity.compare."""
        self._models.refuse_file(chat_template)
        model = self._models.resolve(base_model, allow_path=allow_path)
        renderer = self.renderer(self.show(dataset), model.path, chat_template, options)
        return parity.compare(renderer, self._spread(self.show(dataset), rows), max_length or longest_row(model).config.max_length)

    def renderer(self, dataset: Dataset, folder: Path, chat_template: str | None, options: RowOptions | None) -> Renderer:
        """As a training on the dataset reads its rows; a template that prints a date gets the day on which the dataset was made."""
        options = options or RowOptions()
        return Renderer.load(folder, chat_template, replace(options, date=options.date or day_of(dataset.created_at)))

    def check_for_training(self, dataset: str, renderer: Renderer, max_length: int, sample: int | None = None) -> TrainingCheck:
        """Lengths and learned tokens of all rows, or of `sample` rows spread evenly; a row that can't be rendered learns nothing."""
        record = self.show(dataset)
        examples = self._spread(record, sample or record.rows)
        return rendered_rows.check(renderer, examples, max_length, record.rows, of_model(renderer))

    def sample_parity(self, record: Dataset, renderer: Renderer, max_length: int) -> Parity:
        """Parity of PARITY_ROWS rows, as a launch looks at it."""
        return parity.compare(renderer, self._spread(record, PARITY_ROWS), max_length)

    def _spread(self, record: Dataset, rows: int) -> Iterator[tuple[int, Example]]:
        """At most `rows` rows with their numbers from 1, spread evenly, the first among them."""
        total = record.rows
        wanted: Container[int] = range(1, total + 1)
        if 0 < rows < total:
            wanted = {n * total // rows + 1 for n in range(rows)}
        with self._files.rows(record.id).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number in wanted:
                    yield number, Example.model_validate_json(line)

    def write_run_files(self, dataset: str, run_dir: RunDir, test_size: float, seed: int) -> RunRows:
        """Write train.jsonl and eval.jsonl of a run: a seeded split with duplicates on one side (splitting.py), rows in their order."""
        source = self.path(dataset)
        held_out = split_file(source, test_size, seed)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        with (
            disk_errors(run_dir.path),
            source.open("rb") as file,
            run_dir.train.open("wb") as train,
            run_dir.eval.open("wb") as evaluation,
        ):
            for line, out in zip(file, held_out, strict=True):
                (evaluation if out else train).write(line)
            for written in (train, evaluation):
                written.flush()
                os.fsync(written.fileno())
        return RunRows(train_rows=len(held_out) - sum(held_out), eval_rows=sum(held_out))


def _known(format: str) -> Format:
    if format not in BY_NAME:
        raise StudioError(f"There is no format {format!r}.", f"Choose one of {', '.join(BY_NAME)}.")
    return BY_NAME[format]


def _choice(format: str, mapping: dict[str, str]) -> ColumnChoice:
    return ColumnChoice(format=format, mapping=mapping, missing=guessing.missing(format, mapping))


def _template(choice: str, renderer: Renderer) -> TemplateInfo:
    return TemplateInfo(choice=choice, default=not choice, preview=rendered_rows.preview(renderer), **renderer.card())


def day_of(seconds: float) -> str:
    """The day of a moment, in UTC, so that it is the same on every machine: 2026-11-30."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
