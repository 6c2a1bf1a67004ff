"""What becomes of a dataset: report, fix, split, merge, pick, edit. Each change writes a new version.

Nothing is ever changed in place. Work on all rows is done by child processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

import orjson
from pydantic import ValidationError

from studio.datasets.children import run_child
from studio.datasets.json_records import json_bytes
from studio.datasets.rendering import Renderer
from studio.datasets.report import placeholders
from studio.datasets.report.checks import BY_NAME, CHECKS
from studio.datasets.report.child import Progress
from studio.datasets.report.control_tokens import ControlTokens
from studio.datasets.report.fixing import Fixed, Means, write_fixed
from studio.datasets.report.wanted import Wanted
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError, listed
from studio.records import Dataset, DatasetHalves, DatasetKind, DatasetReport, DatasetVersion
from studio.services import naming
from studio.services.data_reports import FullReport, ReportOptions, Reports
from studio.services.datasets import DatasetService
from studio.services.models import ModelService
from studio.services.versions import Draft, Origin, VersionShelf, derived
from studio.settings import Settings
from studio.types import Example

MAX_ROUNDS = 5  # one fix may uncover a fault: rows that are the same once their e-mail addresses are masked
ALL = "all"


class CurationService:
    """Use cases around the quality of rows. A dataset is named by its ID or name; row numbers count from 1, as lines do."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self._settings = settings
        self._datasets = datasets
        self._shelf = VersionShelf(settings, db)
        self._reports = Reports(settings, datasets, models, self._shelf)

    # looking

    def report(self, dataset: str, *, progress: Progress | None = None, **options: Unpack[ReportOptions]) -> DatasetReport:
        """Every finding with its rows, lengths, languages. Kept beside the rows: the same question is answered at once."""
        record = self._datasets.show(dataset)
        return self._reports.made(record, self._reports.wanted(record, options), progress).of(record)

    def cached_report(self, dataset: str, **options: Unpack[ReportOptions]) -> DatasetReport | None:
        """The report if it was made before, else None."""
        record = self._datasets.show(dataset)
        found = self._reports.kept(record, self._reports.wanted(record, options))
        return found and found.of(record)

    def versions(self, dataset: str) -> list[DatasetVersion]:
        """What this dataset came from and what was made of it, oldest first."""
        return self._shelf.family(self._datasets.show(dataset).id)

    # making versions

    def fix(
        self,
        dataset: str,
        checks: Sequence[str],
        *,
        name: str | None = None,
        values: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        **options: Unpack[ReportOptions],
    ) -> Dataset:
        """A version without what these checks find ("all": every check). Repeats itself until they find nothing more.

        `values`: placeholder -> what goes into its place, however it is written; without them, rows with placeholders are left out.
        """
        sought = known_checks(checks)
        self._shelf.claim(name)
        record = self._datasets.show(dataset)
        wanted = self._reports.wanted(record, options)
        report = self._reports.made(record, wanted, progress)
        if report.sampled and "language_mix" in sought:
            wanted = replace(wanted, every_language=True)
            report = self._reports.made(record, wanted, progress)
        faults = _faults(report, sought)
        if not faults:
            what = "anything" * (ALL in checks) or " or ".join(sought)
            raise StudioError(f"There is nothing to fix: the report on {record.name} does not find {what}.", "Choose another check.")
        means = Means(_control_tokens(wanted), _values(report, values or {}, sought))
        kind = record.kind
        if "single_class" in faults:
            kind, wanted = DatasetKind.SFT, replace(wanted, kind=DatasetKind.SFT.value)
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as folder:
            path, report, total = self._fixed(Path(folder), report, sought, wanted, means, progress)
            provenance: dict[str, Any] = {
                "made_by": "fix",
                "checks": list(faults),
                "found": {check: len(rows) for check, rows in faults.items()},
                "dropped": total.dropped,
                "changed": total.changed,
                "parents": [record.id],
            }
            if means.values:
                provenance["filled"] = sorted(means.values)
            if shown := _shown_options(options):
                provenance["options"] = shown
            with path.open("rb") as lines:
                turned = record.model_copy(update={"kind": kind})
                fixed = self._write(turned, provenance, name, self._shelf.next_name(record.name), lines)
        self._reports.keep(fixed, wanted, report)
        return fixed

    def split(self, dataset: str, *, test_size: float = 0.1, seed: int = 42, name: str | None = None) -> DatasetHalves:
        """NAME-train and NAME-eval; rows that are the same or almost the same stay on one side.

        `test_size` is a share (below 1) or a number of rows.
        """
        record = self._datasets.show(dataset)
        if not 0 < test_size < record.rows:
            raise StudioError(
                f"test_size {test_size:g} leaves no rows on one side; {record.name} has {record.rows:,}.",
                "Give a share such as 0.1, or a number of rows.",
            )
        stem = naming.from_stem(name or record.name)[: naming.LENGTH - 6]
        for side in ("train", "eval"):
            self._shelf.claim(name and f"{stem}-{side}")
        options = {"path": str(self._datasets.path(record.id)), "test_size": test_size, "seed": seed}
        held_out = set(run_child("studio.datasets.splitting", options, self._settings.cache)["held_out"])
        if not held_out:
            raise StudioError(f"All rows of {record.name} are the same or almost the same.", "A split would have an empty side.")
        shared = {"made_by": "split", "test_size": test_size, "seed": seed, "parents": [record.id]}
        origin = Origin.of(record)
        with self._shelf.drafting() as drafts:
            for side in ("train", "eval"):
                wanted = f"{stem}-{side}"
                drafts.append(Draft(origin, {**shared, "side": side}, name and wanted, wanted))
            for draft, other in zip(drafts, reversed(drafts), strict=True):
                draft.provenance.update(sibling=other.id, dropped=0, changed=0)
                self._shelf.write(draft, self._lines(record.id, held_out, inside=draft.provenance["side"] == "eval"))
            train, evaluation = self._shelf.keep(drafts)
        return DatasetHalves(train=self._datasets.show(train), eval=self._datasets.show(evaluation))

    def merge(self, datasets: Sequence[str], *, name: str | None = None) -> Dataset:
        """The rows of several datasets of one kind, one after the other; all of them."""
        records = [self._datasets.show(dataset) for dataset in datasets]
        if len(records) < 2:
            raise StudioError("There is nothing to merge.", "Name at least two datasets.")
        self._shelf.claim(name)
        first = records[0]
        for other in records[1:]:
            if other.kind != first.kind:
                raise StudioError(
                    f"{first.name} holds {first.kind} rows, and {other.name} {other.kind} rows.", "Merge datasets of one kind."
                )
        parents = [record.id for record in records]
        provenance = {"made_by": "merge", "parents": parents, "rows": [record.rows for record in records], "dropped": 0, "changed": 0}
        lines = (line for parent in parents for line in self._lines(parent))
        return self._write(first, provenance, name, derived(first.name, "merged"), lines)

    def pick(self, dataset: str, rows: int, *, seed: int = 42, name: str | None = None, progress: Progress | None = None) -> Dataset:
        """The `rows` best rows that differ most from each other, after LIMA; the provenance says how they were chosen."""
        record = self._datasets.show(dataset)
        if not 0 < rows <= record.rows:
            raise StudioError(f"{rows:,} rows can't be picked of {record.rows:,}.", "Ask for fewer, and at least one.")
        self._shelf.claim(name)
        report = self._reports.made(record, self._reports.wanted(record, {}), progress)
        options = {"path": str(self._datasets.path(record.id)), "rows": rows, "seed": seed, "findings": report.all_rows}
        picked = run_child("studio.datasets.curation", options, self._settings.cache, progress)
        provenance = {
            "made_by": "pick",
            "parents": [record.id],
            "dropped": record.rows - rows,
            "changed": 0,
            "seed": seed,
            **picked["how"],
        }
        return self._write(record, provenance, name, derived(record.name, f"best-{rows}"), self._lines(record.id, set(picked["rows"])))

    def edit_row(self, dataset: str, row: int, example: Mapping[str, Any], *, name: str | None = None) -> Dataset:
        """A version in which row `row` is `example` (the JSON of studio.types.Example)."""
        record = self._datasets.show(dataset)
        _check_rows(record, [row])
        self._shelf.claim(name)
        line = _checked_example(record, self._datasets.rows(record.id, offset=row - 1, limit=1)[0], example)
        lines = (line if number == row else old for number, old in enumerate(self._lines(record.id), start=1))
        provenance = {"made_by": "edit", "rows": [row], "dropped": 0, "changed": 1, "parents": [record.id]}
        return self._write(record, provenance, name, self._shelf.next_name(record.name), lines)

    def delete_rows(self, dataset: str, rows: Sequence[int], *, name: str | None = None) -> Dataset:
        """A version without these rows."""
        record = self._datasets.show(dataset)
        _check_rows(record, rows)
        self._shelf.claim(name)
        gone = {row - 1 for row in rows}
        provenance = {"made_by": "delete", "rows": sorted(set(rows)), "dropped": len(gone), "changed": 0, "parents": [record.id]}
        return self._write(record, provenance, name, self._shelf.next_name(record.name), self._lines(record.id, gone, inside=False))

    # fixing

    def _fixed(
        self, folder: Path, report: FullReport, checks: Sequence[str], wanted: Wanted, means: Means, progress: Progress | None
    ) -> tuple[Path, FullReport, Fixed]:
        """The fixed rows, the report on them, and how many were touched."""
        path, total = Path(wanted.path), Fixed()
        for number in range(MAX_ROUNDS):
            faults = _faults(report, checks)
            if not faults:
                break
            target = folder / f"{number}.jsonl"
            fixed = write_fixed(path, target, faults, means)
            if not fixed.rows and "single_class" in faults:
                raise StudioError(
                    "Every answer is marked bad, so there is none to imitate.",
                    "Add rows that are marked good: `studio data merge`.",
                )
            if not fixed.rows:
                raise StudioError("No row would be left.", "Fix fewer checks at a time, or edit the rows.")
            path, total = target, Fixed(fixed.rows, total.dropped + fixed.dropped, total.changed + fixed.changed)
            report = self._reports.again(replace(wanted, path=str(path)), progress)
        return path, report, total

    # rows

    def _lines(self, dataset_id: str, rows: set[int] | None = None, *, inside: bool = True) -> Iterator[bytes]:
        """The lines of a dataset: all, or those whose number (from 0) is in `rows`, or is not."""
        with self._datasets.path(dataset_id).open("rb") as file:
            for number, line in enumerate(file):
                if rows is None or (number in rows) is inside:
                    yield line

    def _write(self, origin: Dataset, provenance: dict[str, Any], name: str | None, default_name: str, lines: Iterable[bytes]) -> Dataset:
        with self._shelf.drafting() as drafts:
            drafts.append(Draft(Origin.of(origin), provenance, name, default_name))
            self._shelf.write(drafts[0], lines)
            kept = self._shelf.keep(drafts)
        return self._datasets.show(kept[0])


def known_checks(checks: Sequence[str]) -> list[str]:
    """The names of checks, "all" replaced by every one. Raises NotFoundError with near names."""
    if not checks:
        raise StudioError("No check is named.", f"Name one of {', '.join(BY_NAME)}, or all.")
    for check in checks:
        if check != ALL and check not in BY_NAME:
            raise NotFoundError(f"There is no check {check[:80]!r}.", naming.suggest(check, [*BY_NAME, ALL]))
    return [check.name for check in CHECKS if ALL in checks or check.name in checks]


def _faults(report: FullReport, checks: Sequence[str]) -> dict[str, list[int]]:
    return {check: report.all_rows[check] for check in checks if report.all_rows.get(check)}


def _control_tokens(wanted: Wanted) -> ControlTokens:
    """Those of the base model that the report was made for; without one, those that are widely used."""
    if wanted.model_folder is None:
        return ControlTokens()
    return ControlTokens.of(Renderer.load(Path(wanted.model_folder), wanted.chat_template))


def _values(report: FullReport, given: Mapping[str, str], checks: Sequence[str]) -> dict[str, str]:
    """What to put in the place of each placeholder. Raises StudioError for one without a value, and for a value without a place."""
    if not given:
        return {}
    values = {placeholders.key(name): value for name, value in given.items()}
    names = next((finding.names for finding in report.findings if finding.check == "placeholders"), {})
    asked = {placeholders.key(name): rows for name, rows in names.items()}
    if unknown := sorted(set(values) - set(asked)):
        raise StudioError(f"There is no placeholder {listed(unknown)}.", f"There are: {listed(asked) or 'none'}.")
    if "placeholders" not in checks:
        raise StudioError("Values are given, and the check placeholders is not named.", "Add --check placeholders.")
    if missing := [name for name in asked if not values.get(name, "").strip()]:
        raise StudioError(
            f"No value is given for the placeholder {listed(missing)}.", "Give one for each, or none at all to leave these rows out."
        )
    return values


def _shown_options(options: ReportOptions) -> ReportOptions:
    """What changed the report, for the provenance."""
    shown = ["against"]
    if options.get("base_model"):
        shown += ["base_model", "max_length", "chat_template"]
    return cast(ReportOptions, {key: value for key, value in options.items() if value and key in shown})


def _check_rows(record: Dataset, rows: Sequence[int]) -> None:
    if not rows:
        raise StudioError("No row is named.", "Give row numbers, counted from 1.")
    for row in rows:
        if not 1 <= row <= record.rows:
            raise StudioError(f"{record.name} has no row {row}.", f"Rows count from 1 to {record.rows:,}.")


def _checked_example(record: Dataset, old: Example, example: Mapping[str, Any]) -> bytes:
    """A row as it is kept. Raises StudioError when it is no row of this dataset's kind."""
    try:
        new = Example.model_validate(example).as_json()
        line = json_bytes(new) + b"\n"
    except ValidationError as exc:
        problem = exc.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the row"
        raise StudioError(f"This is no row: {where}: {problem['msg']}.", "Keep the form of the row that you edit.") from None
    except orjson.JSONEncodeError:
        raise StudioError("The row holds half of a surrogate pair, which is no character.", "Remove it.") from None
    before = old.as_json()
    parts = set(before) - {"tools"}
    if set(new) - {"tools"} != parts or any(type(new[part]) is not type(before[part]) for part in parts):
        raise StudioError(f"A row of {record.name} has {', '.join(sorted(parts))}.", "Keep the form of the row that you edit.")
    return line
