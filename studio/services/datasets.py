"""Datasets: check and keep a file, show, render, export and delete it, and write the files of a run.

A dataset is a row and a folder `datasets/<id>/` with rows.jsonl, one Example per line; it never changes once it is kept.
Knows neither torch nor the page; hub datasets and old tokenizers are read by child processes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs.rundir import RunDir, fsync_folder
from studio.datasets import lengths as figures
from studio.datasets import parity
from studio.datasets.formats import FORMATS
from studio.datasets.ingest import Ingest, Problems, open_ingest
from studio.datasets.reading import FILE_TYPES
from studio.datasets.records import Problem
from studio.datasets.rendering import TEMPLATE_NAMES, Rendered, Renderer
from studio.datasets.splitting import split_file
from studio.db.models import ComparisonRow, DatasetRow, JobRow, new_id
from studio.db.session import Database
from studio.errors import DatasetError, NotFoundError, StudioError
from studio.services import naming
from studio.services.hub_rows import HubRows, file_name, is_hub
from studio.settings import Settings
from studio.types import Example

ROWS = "rows.jsonl"
RENDER_SAMPLE = 500  # rows that the shares of `render` are counted on
MAX_PAGE = 1000
WRITE_BYTES = 2 * 1024**2
MAX_KEPT_COLUMNS = 200
SAMPLE = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of Peru?"},
    {"role": "assistant", "content": "Lima"},
]


Rows = list[dict[str, Any]]  # `list` itself names a method below


class _Named(Protocol):
    @property
    def path(self) -> Path: ...


class _Models(Protocol):
    def resolve(self, name: str, allow_path: bool = False) -> _Named: ...


class DatasetService:
    """Use cases around datasets. Methods return plain dicts and lists; a dataset is named by its ID or its name."""

    def __init__(self, settings: Settings, db: Database, models: _Models) -> None:
        self._settings = settings
        self._db = db
        self._models = models
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
    ) -> dict[str, Any]:
        """Check a file (or "hub:NAME[:config[:split]]") and keep it; `filename` is an upload's own name.

        Raises DatasetError for the whole file, or with all problems of its rows (details: problems, count); TakenError.
        """
        if name is not None:
            self._claim(name)
        if is_hub(source):
            with self._hub.to_keep(str(source)) as path:
                return self._keep(path, file_name(str(source)), str(source), name, format, mapping, skip_bad)
        path = Path(source)
        return self._keep(path, filename or path.name, filename or path.name, name, format, mapping, skip_bad)

    def add_text(
        self,
        text: str,
        *,
        name: str | None = None,
        format: str | None = None,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
    ) -> dict[str, Any]:
        """Check and keep pasted text: JSON lines, a JSON document, or paragraphs."""
        if name is not None:
            self._claim(name)
        with self._pasted(text) as path:
            return self._keep(path, "pasted", "pasted text", name, format, mapping, skip_bad)

    def inspect(
        self,
        path: Path | str,
        *,
        filename: str | None = None,
        format: str | None = None,
        mapping: Mapping[str, str] | None = None,
        rows: int = 5,
    ) -> dict[str, Any]:
        """What `add` would make of a file or hub dataset, without keeping anything but what was fetched, for an hour."""
        if is_hub(path):
            with self._hub.to_look_at(str(path)) as fetched:
                return self.inspect(fetched, filename=file_name(str(path)), format=format, mapping=mapping, rows=rows)
        problems, count = Problems(), 0
        preview: Rows = []
        with open_ingest(Path(path), filename, format, mapping, self._settings.cache) as ingest:
            for batch in ingest.batches():
                for problem in batch.problems:
                    problems.add(problem)
                if len(preview) < rows:
                    preview += [json.loads(line) for line in batch.lines.split(b"\n", rows)[: rows - len(preview)] if line]
                count += batch.rows
            return {
                "format": ingest.layout.format.name,
                "kind": ingest.layout.format.kind,
                "formats": [known.name for known in FORMATS],
                "columns": ingest.columns,
                "roles": ingest.layout.format.role_names(),
                "mapping": ingest.layout.mapping,
                "encoding": ingest.source.encoding,
                "notes": ingest.source.notes,
                "preview": preview,
                "problems": problems.as_json(),
                "problem_count": problems.count,
                "rows": count,
            }

    def inspect_text(
        self, text: str, *, format: str | None = None, mapping: Mapping[str, str] | None = None, rows: int = 5
    ) -> dict[str, Any]:
        """What `add_text` would make of a text, without keeping anything."""
        with self._pasted(text) as path:
            return self.inspect(path, filename="pasted", format=format, mapping=mapping, rows=rows)

    def formats(self) -> Rows:
        """The known formats: `name`, `kind`, `roles` (the parts that a column can play) and `description`."""
        return [
            {"name": known.name, "kind": known.kind, "roles": known.role_names(), "description": known.description} for known in FORMATS
        ]

    def remembered(self, columns: Iterable[str]) -> dict[str, Any] | None:
        """How a file with exactly these columns was read and mapped the last time: `name`, `format`, `mapping`; None for new ones."""
        wanted = sorted(columns)
        with self._db.read() as session:
            kept = session.execute(
                select(DatasetRow.name, DatasetRow.format, DatasetRow.mapping, DatasetRow.provenance).order_by(DatasetRow.created_at.desc())
            )
            for name, format, mapping, provenance in kept:
                if wanted and sorted(provenance.get("columns") or []) == wanted:
                    return {"name": name, "format": format, "mapping": mapping}
        return None

    def list(self) -> Rows:
        """All datasets, the newest first."""
        with self._db.read() as session:
            return [
                _as_json(dataset) for dataset in session.scalars(select(DatasetRow).order_by(DatasetRow.created_at.desc(), DatasetRow.id))
            ]

    def show(self, dataset: str) -> dict[str, Any]:
        """One dataset. Raises NotFoundError."""
        with self._db.read() as session:
            return _as_json(_find(session, dataset))

    def path(self, dataset: str) -> Path:
        """The rows as JSON lines, one Example each."""
        return self._rows_path(self.show(dataset)["id"])

    def rows(self, dataset: str, offset: int = 0, limit: int = 20) -> Rows:
        """Some rows, from `offset` (0 is the first)."""
        stop = max(0, offset) + max(0, min(limit, MAX_PAGE))
        with self.path(dataset).open("rb") as file:
            return [json.loads(line) for number, line in enumerate(_until(file, stop)) if number >= offset]

    def examples(self, dataset: str) -> Iterator[Example]:
        """Every row, one at a time."""
        with self.path(dataset).open("rb") as file:
            for line in file:
                yield Example.model_validate_json(line)

    def delete(self, dataset: str) -> dict[str, Any]:
        """Forget a dataset. Runs keep their own copies of its rows; jobs and comparisons made of it stay and lose the link."""
        with self._db.write() as session:
            found = _find(session, dataset)
            record = _as_json(found)
            session.execute(update(JobRow).where(JobRow.dataset_id == found.id).values(dataset_id=None))
            session.execute(update(ComparisonRow).where(ComparisonRow.dataset_id == found.id).values(dataset_id=None))
            session.execute(update(DatasetRow).where(DatasetRow.parent_id == found.id).values(parent_id=None))
            session.delete(found)
        shutil.rmtree(self._folder(record["id"]), ignore_errors=True)  # what is left is a harmless orphan
        return record

    def export(self, dataset: str, to: Path | str) -> dict[str, Any]:
        """Write the rows as JSON lines to the file `to`, replacing it."""
        source, target = self.path(dataset), Path(to)
        if target.is_dir() or not target.name:
            raise StudioError(f"{target} is a folder.", "Name a file, such as rows.jsonl.")
        if not target.absolute().parent.is_dir():
            raise StudioError(f"There is no folder {target.absolute().parent}.", "Create it, or choose another place.")
        part = target.with_name(f".{target.name}.part")
        with _disk_errors(target.absolute().parent):
            try:
                shutil.copyfile(source, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return {"path": str(target), "bytes": target.stat().st_size}

    def render(
        self,
        dataset: str,
        *,
        base_model: str,
        rows: int = 3,
        offset: int = 0,
        max_length: int = 1024,
        chat_template: str | None = None,
        allow_path: bool = False,
    ) -> dict[str, Any]:
        """What a model will see and learn of some rows from `offset` on (0 is the first).

        Shares, percentiles and the histogram are over all rows, or an even sample of many. In each row `ids`, `tokens` and `learned`
        end at max_length; `cut` and `cut_learned` are the tokens behind it that training never sees.
        """
        renderer = Renderer.load(self._models.resolve(base_model, allow_path=allow_path).path, chat_template)
        checked = self.check_for_training(dataset, renderer, max_length, sample=RENDER_SAMPLE)
        examples = [Example.model_validate(row) for row in self.rows(dataset, offset=offset, limit=rows)]
        return {
            **checked,
            "total": checked["rows"],
            "rows": [_rendered_json(_render(renderer, example), number, max_length) for number, example in enumerate(examples, offset + 1)],
            "template_name": renderer.template_name,
            "template_sha256": renderer.template_sha256,
        }

    def templates(self, base_model: str, *, allow_path: bool = False) -> Rows:
        """The chat templates that fit a model, the one it gets by default first, each with how it writes a short conversation."""
        path = self._models.resolve(base_model, allow_path=allow_path).path
        default = Renderer.load(path)
        others = [Renderer.load(path, name) for name in TEMPLATE_NAMES if name != default.template_name]
        return [
            {**renderer.card(), "choice": name, "default": renderer is default, "preview": _preview(renderer)}
            for name, renderer in [("", default), *((other.template_name, other) for other in others)]
        ]

    def parity(
        self,
        dataset: str,
        *,
        base_model: str,
        rows: int = 20,
        max_length: int = 1024,
        chat_template: str | None = None,
        allow_path: bool = False,
    ) -> dict[str, Any]:
        """Whether training sees the ids that chat sends with the answer behind them, for `rows` rows spread evenly; see parity.compare."""
        renderer = Renderer.load(self._models.resolve(base_model, allow_path=allow_path).path, chat_template)
        return parity.compare(renderer, self._spread(dataset, rows), max_length)

    def _spread(self, dataset: str, rows: int) -> Iterator[tuple[int, Example]]:
        """At most `rows` rows with their numbers from 1, spread evenly, the first among them."""
        record = self.show(dataset)
        total = record["rows"]
        wanted = {n * total // rows + 1 for n in range(rows)} if 0 < rows < total else None
        with self._rows_path(record["id"]).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if wanted is None or number in wanted:
                    yield number, Example.model_validate_json(line)

    def check_for_training(self, dataset: str, renderer: Renderer, max_length: int, sample: int | None = None) -> dict[str, Any]:
        """Lengths and learned tokens of all rows, or of `sample` rows spread evenly; a row that can't be rendered learns nothing."""
        record = self.show(dataset)
        problems, lengths, truncated, unlearned, checked = Problems(), [], 0, 0, 0
        for number, example in self._spread(record["id"], sample or record["rows"]):
            checked += 1
            rendered = _render(renderer, example, max_length)
            if isinstance(rendered, DatasetError):
                problems.add(Problem(number, rendered.message, rendered.fix))
                unlearned += 1
                continue
            lengths.append(rendered.length)
            truncated += rendered.truncated
            unlearned += not any(rendered.learned[1:])  # the first token is never predicted
        return {
            "rows": record["rows"],
            "checked": checked,
            "share_truncated": truncated / max(1, checked),
            "share_without_learned_tokens": unlearned / max(1, checked),
            **figures.summary(lengths),
            "problems": problems.as_json(),
            "problem_count": problems.count,
        }

    def write_run_files(self, dataset: str, run_dir: RunDir, test_size: float, seed: int) -> dict[str, int]:
        """Write train.jsonl and eval.jsonl of a run: a seeded split with duplicates on one side (splitting.py), rows in their order."""
        source = self.path(dataset)
        held_out = split_file(source, test_size, seed)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        with (
            _disk_errors(run_dir.path),
            source.open("rb") as file,
            run_dir.train.open("wb") as train,
            run_dir.eval.open("wb") as evaluation,
        ):
            for line, out in zip(file, held_out, strict=True):
                (evaluation if out else train).write(line)
            for written in (train, evaluation):
                written.flush()
                os.fsync(written.fileno())
        return {"train_rows": len(held_out) - sum(held_out), "eval_rows": sum(held_out)}

    # keeping

    def _keep(
        self,
        path: Path,
        filename: str,
        source: str,
        name: str | None,
        format: str | None,
        mapping: Mapping[str, str] | None,
        skip_bad: bool,
    ) -> dict[str, Any]:
        """Write the rows aside, then in one transaction rename the file and insert the row; a crash leaves an orphan folder at most."""
        dataset_id = new_id()
        folder = self._folder(dataset_id)
        part = folder / f"{ROWS}.part"
        try:
            with (
                _disk_errors(self._settings.home),
                open_ingest(path, filename, format, mapping, self._settings.cache) as ingest,
                _disk_errors(self._settings.datasets),
            ):
                folder.mkdir(parents=True)
                kept = _write_rows(ingest, part, filename, skip_bad)
                record = DatasetRow(
                    id=dataset_id,
                    kind=ingest.layout.format.kind,
                    format=ingest.layout.format.name,
                    mapping=ingest.layout.mapping,
                    rows=kept.rows,
                    skipped=kept.problems.count,
                    source=source,
                    sha256=kept.sha256,
                    bytes=part.stat().st_size,
                    provenance={
                        "file_type": ingest.source.file_type,
                        "encoding": ingest.source.encoding,
                        "notes": ingest.source.notes,
                        "columns": ingest.columns[:MAX_KEPT_COLUMNS],
                    },
                )
            with self._db.write() as session:
                record.name = _free_name(session, name, filename)
                session.add(record)
                session.flush()
                part.replace(folder / ROWS)
                fsync_folder(folder)
        except DatasetError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            # one shape for programs: what is wrong with the file as a whole stands at its first line
            whole = [{"line": 1, "problem": exc.message, "fix": exc.fix}]
            exc.details = {"problems": whole, "count": 1, **exc.details}
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return {**_as_json(record), "problems": kept.problems.as_json()}

    def _claim(self, name: str) -> None:
        """Refuse a name at once, before a large file is read."""
        with self._db.read() as session:
            naming.claim(name, lambda wanted: _is_taken(session, wanted))

    def _folder(self, dataset_id: str) -> Path:
        return self._settings.datasets / dataset_id

    def _rows_path(self, dataset_id: str) -> Path:
        path = self._folder(dataset_id) / ROWS
        if not path.is_file():
            raise DatasetError(f"The rows of dataset {dataset_id} are gone from {path.parent}.", "Delete the dataset and add it again.")
        return path

    @contextmanager
    def _pasted(self, text: str) -> Iterator[Path]:
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError:
            raise DatasetError("The text holds half of a surrogate pair, which is no character.", "Remove it.") from None
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as folder, _disk_errors(self._settings.cache):
            path = Path(folder) / "pasted"
            path.write_bytes(content)
            yield path


class _Kept:
    """What was written of a file."""

    def __init__(self) -> None:
        self.rows = 0
        self.sha256 = ""
        self.problems = Problems()


def _write_rows(ingest: Ingest, part: Path, filename: str, skip_bad: bool) -> _Kept:
    """Write every example to `part`. Raises DatasetError with all problems, unless they are to be skipped."""
    kept = _Kept()
    with _HashedFile(part) as file:
        for batch in ingest.batches():
            for problem in batch.problems:
                kept.problems.add(problem)
            if batch.rows and (skip_bad or not kept.problems.count):
                file.write(batch.lines)
                kept.rows += batch.rows
        kept.sha256 = file.close()
    if kept.problems.count and not skip_bad:
        raise kept.problems.error(filename, "Or skip the rows with problems.")
    if not kept.rows:
        raise kept.problems.error(filename) if kept.problems.count else DatasetError(f"{filename} has no rows.", "Choose another file.")
    return kept


class _HashedFile:
    """A new file, written and hashed by a thread of its own while the next rows are made."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] = self._thread.submit(self._append, b"")
        self._pending: list[bytes] = []
        self._size = 0

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def write(self, lines: bytes) -> None:
        """Raises OSError of this or an earlier call."""
        self._pending.append(lines)
        self._size += len(lines)
        if self._size >= WRITE_BYTES:
            self._flush()

    def close(self) -> str:
        """The digest of what is on the disk now."""
        self._flush()
        self._written.result()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _flush(self) -> None:
        self._written.result()  # two blocks in memory at most
        self._written = self._thread.submit(self._append, b"".join(self._pending))
        self._pending, self._size = [], 0

    def _append(self, block: bytes) -> None:
        self._digest.update(block)
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk as one line."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StudioError(
                f"There is no space left on the disk of {folder}.", "Free some, or set STUDIO_HOME to another disk."
            ) from None
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StudioError(f"{folder} can't be written to.", "Change its permissions, or choose another place.") from None
        raise


def _find(session: Session, dataset: str) -> DatasetRow:
    found = session.get(DatasetRow, dataset) or session.scalar(select(DatasetRow).where(DatasetRow.name == dataset))
    if found is None:
        raise NotFoundError(f"There is no dataset {dataset[:80]!r}.", naming.suggest(dataset, session.scalars(select(DatasetRow.name))))
    return found


def _free_name(session: Session, wanted: str | None, filename: str) -> str:
    def is_taken(name: str) -> bool:
        return _is_taken(session, name)

    return naming.claim(wanted, is_taken) if wanted else naming.unique(naming.from_stem(_stem(filename)), is_taken)


def _is_taken(session: Session, name: str) -> bool:
    return session.scalar(select(DatasetRow.id).where(DatasetRow.name == name)) is not None


def _as_json(dataset: DatasetRow) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "kind": dataset.kind,
        "format": dataset.format,
        "rows": dataset.rows,
        "skipped": dataset.skipped,
        "mapping": dataset.mapping,
        "problems": [],
        "source": dataset.source,
        "bytes": dataset.bytes,
        "sha256": dataset.sha256,
        "parent": dataset.parent_id,
        "provenance": dataset.provenance,
        "created_at": dataset.created_at,
    }


def _stem(filename: str) -> str:
    name = Path(filename).name
    for suffix in (".gz", ".zip", *FILE_TYPES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _until(file: Any, stop: int) -> Iterator[bytes]:
    for _ in range(stop):
        line = file.readline()
        if not line:
            return
        yield line


def _render(renderer: Renderer, example: Example, max_length: int | None = None) -> Rendered | DatasetError:
    try:
        return renderer.example(example, max_length)
    except DatasetError as exc:
        return exc


def _rendered_json(rendered: Rendered | DatasetError, number: int, max_length: int) -> dict[str, Any]:
    """A row that was rendered whole, as training cuts it."""
    if isinstance(rendered, DatasetError):
        nothing: dict[str, Any] = {"text": "", "tokens": [], "ids": [], "learned": [], "cut": [], "cut_learned": [], "truncated": False}
        return {"row": number, **nothing, "length": 0, "problem": str(rendered)}
    tokens = rendered.tokens()
    return {
        "row": number,
        "text": rendered.text,
        "tokens": tokens[:max_length],
        "ids": rendered.ids[:max_length],
        "learned": rendered.learned[:max_length],
        "cut": tokens[max_length:],
        "cut_learned": rendered.learned[max_length:],
        "truncated": rendered.length > max_length,
        "length": rendered.length,
    }


def _preview(renderer: Renderer) -> dict[str, Any]:
    """How a template writes SAMPLE; one that refuses system prompts gets it without."""
    rendered = _render(renderer, Example.model_validate({"messages": SAMPLE}))
    if isinstance(rendered, DatasetError):
        rendered = _render(renderer, Example.model_validate({"messages": SAMPLE[1:]}))
    return _rendered_json(rendered, 1, RENDER_SAMPLE)
