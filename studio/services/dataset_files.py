"""The files of datasets: rows are written to a folder, then kept with their row of the database in one transaction."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from jobs.rundir import fsync_folder
from studio.datasets.file_types import PACKED, SUFFIXES
from studio.datasets.ingest import Ingest, Problems, open_ingest
from studio.db.models import DatasetRow, new_id
from studio.db.session import Database
from studio.errors import DatasetError, StudioError
from studio.records import Dataset, DatasetKind, UnusedParts
from studio.services import naming
from studio.settings import Settings

ROWS = "rows.jsonl"
WRITE_BYTES = 2 * 1024**2
MAX_KEPT_COLUMNS = 200


def look_up(session: Session, dataset: str) -> DatasetRow:
    """The row of a dataset by its ID or name. Raises NotFoundError with near names."""
    return naming.look_up(session, DatasetRow, dataset, "dataset")


def as_record(row: DatasetRow) -> Dataset:
    provenance = row.provenance or {}
    return Dataset(
        id=row.id,
        name=row.name,
        kind=DatasetKind(row.kind),
        format=row.format,
        rows=row.rows,
        skipped=row.skipped,
        mapping=row.mapping,
        used=row.mapping,
        used_message_keys=provenance.get("used_message_keys") or {},
        unused=provenance.get("unused") or UnusedParts(),
        notes=provenance.get("notes") or [],
        source=row.source,
        bytes=row.bytes,
        sha256=row.sha256,
        parent=row.parent_id,
        provenance=provenance,
        created_at=row.created_at,
    )


class DatasetFiles:
    """The folder `datasets/`: one folder for each dataset, with rows.jsonl."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._db = db

    def folder(self, dataset_id: str) -> Path:
        return self._settings.datasets / dataset_id

    def rows(self, dataset_id: str) -> Path:
        """Raises DatasetError when the file is gone."""
        path = self.folder(dataset_id) / ROWS
        if not path.is_file():
            raise DatasetError(f"The rows of dataset {dataset_id} are gone from {path.parent}.", "Delete the dataset and add it again.")
        return path

    def claim(self, name: str | None) -> None:
        """Refuse a name that is taken or invalid at once, before any work. Raises TakenError or StudioError."""
        if name is not None:
            with self._db.read() as session:
                naming.claim(name, naming.taken_in(session, DatasetRow.name))

    @contextmanager
    def pasted(self, text: str) -> Iterator[Path]:
        """A text as a file, while it is read."""
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError:
            raise DatasetError("The text holds half of a surrogate pair, which is no character.", "Remove it.") from None
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as folder, disk_errors(self._settings.cache):
            path = Path(folder) / "pasted"
            path.write_bytes(content)
            yield path

    def keep(
        self,
        path: Path,
        filename: str,
        source: str,
        name: str | None,
        format: str | None,
        mapping: Mapping[str, str] | None,
        skip_bad: bool,
    ) -> Dataset:
        """Check a file and keep its rows. A crash leaves a folder without a dataset at most."""
        dataset_id = new_id()
        folder = self.folder(dataset_id)
        part = folder / f"{ROWS}.part"
        try:
            with (
                disk_errors(self._settings.home),
                open_ingest(path, filename, format, mapping, self._settings.cache) as ingest,
                disk_errors(self._settings.datasets),
            ):
                folder.mkdir(parents=True)
                written = _write_rows(ingest, part, filename, skip_bad)
                row = _row(dataset_id, ingest, written, source, part.stat().st_size)
            with self._db.write() as session:
                default = naming.from_stem(_stem(filename))
                row.name = naming.choose(name, default, naming.taken_in(session, DatasetRow.name))
                session.add(row)
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
        return as_record(row).model_copy(update={"problems": written.problems.records()})


def _row(dataset_id: str, ingest: Ingest, written: _Written, source: str, size: int) -> DatasetRow:
    opened, layout = ingest.source, ingest.layout
    return DatasetRow(
        id=dataset_id,
        kind=layout.format.kind.value,
        format=layout.format.name,
        mapping=layout.mapping,
        rows=written.rows,
        skipped=written.problems.count,
        source=source,
        sha256=written.sha256,
        bytes=size,
        provenance={
            "file_type": opened.file_type,
            "encoding": opened.encoding,
            "notes": ingest.notes(),
            "columns": ingest.columns[:MAX_KEPT_COLUMNS],
            "used_message_keys": {key: used.model_dump() for key, used in ingest.usage.used_message_keys().items()},
            "unused": ingest.usage.unused(MAX_KEPT_COLUMNS).model_dump(mode="json"),
        },
    )


class _Written:
    """What was written of a file."""

    def __init__(self) -> None:
        self.rows = 0
        self.sha256 = ""
        self.problems = Problems()


def _write_rows(ingest: Ingest, part: Path, filename: str, skip_bad: bool) -> _Written:
    """Write every example to `part`. Raises DatasetError with all problems, unless they are to be skipped."""
    written = _Written()
    with _HashedFile(part) as file:
        for batch in ingest.batches():
            for problem in batch.problems:
                written.problems.add(problem)
            if batch.rows and (skip_bad or not written.problems.count):
                file.write(batch.lines)
                written.rows += batch.rows
        written.sha256 = file.close()
    if written.problems.count and not skip_bad:
        raise written.problems.error(filename, "Or skip the rows with problems.")
    if not written.rows and written.problems.count:
        raise written.problems.error(filename)
    if not written.rows:
        raise DatasetError(f"{filename} has no rows.", "Choose another file.")
    return written


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
def disk_errors(folder: Path) -> Iterator[None]:
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


def _stem(filename: str) -> str:
    name = Path(filename).name
    for suffix in (*PACKED, *SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name
