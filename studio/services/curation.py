"""What is wrong with a dataset, and what becomes of it: report, fix, split, merge, pick, edit. Each writes new versions.

Nothing is ever changed in place. Work on all rows is done by child processes; knows neither torch nor the page.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypedDict, Unpack

import orjson
from pydantic import ValidationError

from studio.datasets.children import run_child
from studio.datasets.report.checks import BY_NAME, CHECKS
from studio.datasets.report.fixing import Fixed, write_fixed
from studio.db.models import DatasetRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.services import naming
from studio.services.datasets import DatasetService
from studio.services.models import ModelService
from studio.services.versions import Draft, VersionShelf
from studio.settings import Settings
from studio.types import Example

REPORT_VERSION = 2  # a report made by other rules is made again
MAX_ROUNDS = 5  # one fix may uncover a fault: rows that are the same once their e-mail addresses are masked
MAX_LENGTH = 1024
ALL = "all"
SMALL_CHANGES = ("fix", "edit", "delete")  # versions that take the place of the one they come from

Json = dict[str, Any]
Progress = Callable[[str, float], None]


class ReportOptions(TypedDict, total=False):
    """How a report is made, everywhere the same."""

    base_model: str | None  # count in its tokens, and look for rows that are cut off
    max_length: int  # of a row in tokens
    chat_template: str | None
    against: Sequence[str]  # datasets that shall share no row with this one; the other side of a split always counts as one
    allow_path: bool  # base_model may be a folder


class CurationService:
    """Use cases around the quality of rows. A dataset is named by its ID or name; row numbers count from 1, as lines do."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self._settings = settings
        self._datasets = datasets
        self._models = models
        self._shelf = VersionShelf(settings, db)
        self._one_at_a_time = threading.Lock()  # a report takes every core

    # looking

    def report(self, dataset: str, *, progress: Progress | None = None, **options: Unpack[ReportOptions]) -> Json:
        """Every finding with its rows, lengths, languages. Kept beside the rows: the same question is answered at once."""
        record = self._datasets.show(dataset)
        return _for_people(record, self._made(record, self._asked(record, options), progress))

    def cached_report(self, dataset: str, **options: Unpack[ReportOptions]) -> Json | None:
        """The report if it was made before, else None."""
        record = self._datasets.show(dataset)
        made = self._kept(record, self._asked(record, options))
        return None if made is None else _for_people(record, made)

    def versions(self, dataset: str) -> list[Json]:
        """What this dataset came from and what was made of it, oldest first."""
        wanted = self._datasets.show(dataset)["id"]
        everyone = self._shelf.everyone()
        family = _ancestors(everyone, wanted) | {wanted} | _descendants(everyone, wanted)
        return [
            {
                "id": each.id,
                "name": each.name,
                "rows": each.rows,
                "parent": each.parent_id,
                "provenance": each.provenance,
                "created_at": each.created_at,
            }
            for each in everyone
            if each.id in family
        ]

    # making versions

    def fix(
        self,
        dataset: str,
        checks: Sequence[str],
        *,
        name: str | None = None,
        progress: Progress | None = None,
        **options: Unpack[ReportOptions],
    ) -> Json:
        """A version without what these checks find ("all": every check). Repeats itself until they find nothing more."""
        wanted = known_checks(checks)
        self._shelf.claim(name)
        record = self._datasets.show(dataset)
        asked = self._asked(record, options)
        made = self._made(record, asked, progress)
        if "sampled" in made and "language_mix" in wanted:
            asked = {**asked, "every_language": True}
            made = self._made(record, asked, progress)
        faults = _faults(made, wanted)
        if not faults:
            sought = "anything" if ALL in checks else " or ".join(wanted)
            raise StudioError(f"There is nothing to fix: the report on {record['name']} does not find {sought}.", "Choose another check.")
        counts = {check: len(rows) for check, rows in faults.items()}
        with tempfile.TemporaryDirectory(dir=self._settings.cache) as folder:
            path, made, total = self._fixed(Path(folder), self._datasets.path(record["id"]), made, wanted, asked, progress)
            provenance = {
                "made_by": "fix",
                "checks": list(counts),
                "found": counts,
                "dropped": total.dropped,
                "changed": total.changed,
                "parents": [record["id"]],
                **({"options": shown} if (shown := _shown_options(options)) else {}),
            }
            with path.open("rb") as lines:
                fixed = self._write(record, provenance, name, self._next_version(record), lines)
        self._keep_report(fixed["id"], {**asked, "path": str(self._datasets.path(fixed["id"]))}, made)
        return fixed

    def split(self, dataset: str, *, test_size: float = 0.1, seed: int = 42, name: str | None = None) -> dict[str, Json]:
        """NAME-train and NAME-eval; rows that are the same or almost the same stay on one side.

        `test_size` is a share (below 1) or a number of rows.
        """
        record = self._datasets.show(dataset)
        if not 0 < test_size < record["rows"]:
            raise StudioError(
                f"test_size {test_size:g} leaves no rows on one side; {record['name']} has {record['rows']:,}.",
                "Give a share such as 0.1, or a number of rows.",
            )
        stem = naming.from_stem(name or record["name"])[: naming.LENGTH - 6]
        for side in ("train", "eval"):
            self._shelf.claim(f"{stem}-{side}" if name is not None else None)
        options = {"path": str(self._datasets.path(record["id"])), "test_size": test_size, "seed": seed}
        held_out = set(run_child("studio.datasets.splitting", options, self._settings.cache)["held_out"])
        if not held_out:
            raise StudioError(f"All rows of {record['name']} are the same or almost the same.", "A split would have an empty side.")
        shared = {"made_by": "split", "test_size": test_size, "seed": seed, "parents": [record["id"]]}
        with self._shelf.drafting() as drafts:
            for side in ("train", "eval"):
                wanted = f"{stem}-{side}"
                drafts.append(Draft(record, {**shared, "side": side}, wanted if name is not None else None, wanted))
            for draft, other in zip(drafts, reversed(drafts), strict=True):
                draft.provenance.update(sibling=other.id, dropped=0, changed=0)
                self._shelf.write(draft, self._lines(record["id"], held_out, inside=draft.provenance["side"] == "eval"))
            train, evaluation = self._shelf.keep(drafts)
        return {"train": self._datasets.show(train), "eval": self._datasets.show(evaluation)}

    def merge(self, datasets: Sequence[str], *, name: str | None = None) -> Json:
        """The rows of several datasets of one kind, one after the other; all of them."""
        records = [self._datasets.show(dataset) for dataset in datasets]
        if len(records) < 2:
            raise StudioError("There is nothing to merge.", "Name at least two datasets.")
        self._shelf.claim(name)
        first = records[0]
        for other in records[1:]:
            if other["kind"] != first["kind"]:
                raise StudioError(
                    f"{first['name']} holds {first['kind']} rows, and {other['name']} {other['kind']} rows.", "Merge datasets of one kind."
                )
        parents = [record["id"] for record in records]
        provenance = {"made_by": "merge", "parents": parents, "rows": [record["rows"] for record in records], "dropped": 0, "changed": 0}
        lines = (line for parent in parents for line in self._lines(parent))
        return self._write(first, provenance, name, _derived(first["name"], "merged"), lines)

    def pick(self, dataset: str, rows: int, *, seed: int = 42, name: str | None = None, progress: Progress | None = None) -> Json:
        """The `rows` best rows that differ most from each other, after LIMA; the provenance says how they were chosen."""
        record = self._datasets.show(dataset)
        if not 0 < rows <= record["rows"]:
            raise StudioError(f"{rows:,} rows can't be picked of {record['rows']:,}.", "Ask for fewer, and at least one.")
        self._shelf.claim(name)
        made = self._made(record, self._asked(record, {}), progress)
        options = {"path": str(self._datasets.path(record["id"])), "rows": rows, "seed": seed, "findings": made["all_rows"]}
        picked = run_child("studio.datasets.curation", options, self._settings.cache, progress)
        provenance = {
            "made_by": "pick",
            "parents": [record["id"]],
            "dropped": record["rows"] - rows,
            "changed": 0,
            "seed": seed,
            **picked["how"],
        }
        return self._write(
            record, provenance, name, _derived(record["name"], f"best-{rows}"), self._lines(record["id"], set(picked["rows"]))
        )

    def edit_row(self, dataset: str, row: int, example: Mapping[str, Any], *, name: str | None = None) -> Json:
        """A version in which row `row` is `example` (the JSON of studio.types.Example)."""
        record = self._datasets.show(dataset)
        _check_rows(record, [row])
        self._shelf.claim(name)
        line = _checked_example(record, self._datasets.rows(record["id"], offset=row - 1, limit=1)[0], example)
        lines = (line if number == row else old for number, old in enumerate(self._lines(record["id"]), start=1))
        provenance = {"made_by": "edit", "rows": [row], "dropped": 0, "changed": 1, "parents": [record["id"]]}
        return self._write(record, provenance, name, self._next_version(record), lines)

    def delete_rows(self, dataset: str, rows: Sequence[int], *, name: str | None = None) -> Json:
        """A version without these rows."""
        record = self._datasets.show(dataset)
        _check_rows(record, rows)
        self._shelf.claim(name)
        gone = {row - 1 for row in rows}
        provenance = {"made_by": "delete", "rows": sorted(set(rows)), "dropped": len(gone), "changed": 0, "parents": [record["id"]]}
        return self._write(record, provenance, name, self._next_version(record), self._lines(record["id"], gone, inside=False))

    # reports

    def _asked(self, record: Json, options: ReportOptions) -> dict[str, Any]:
        """What the child is asked. Options that change nothing are left out, so that a report is found again."""
        others = {self._datasets.show(other)["id"] for other in options.get("against", ())} | self._sibling(record["id"])
        if record["id"] in others:
            raise StudioError(f"{record['name']} can't be compared with itself.", "Name another dataset in against.")
        asked: dict[str, Any] = {"path": str(self._datasets.path(record["id"])), "kind": record["kind"]}
        if others:
            asked["against"] = [str(self._datasets.path(other)) for other in sorted(others)]
        if base_model := options.get("base_model"):
            max_length = options.get("max_length", MAX_LENGTH)
            if max_length < 1:
                raise StudioError(f"max_length can't be {max_length}.", "Give a number of tokens, such as 1024.")
            folder = self._models.resolve(base_model, allow_path=options.get("allow_path", False)).path
            asked |= {"model_folder": str(folder), "max_length": max_length, "chat_template": options.get("chat_template") or None}
        return asked

    def _sibling(self, dataset_id: str) -> set[str]:
        """The other side of the split that a dataset comes from, in its newest version."""
        everyone = self._shelf.everyone()
        known = {each.id: each for each in everyone}
        each = known.get(dataset_id)
        while each is not None and (each.provenance or {}).get("made_by") in SMALL_CHANGES:
            each = known.get(each.parent_id or "")
        provenance = each.provenance if each is not None else {}
        sibling = known.get(provenance.get("sibling", "")) if provenance.get("made_by") == "split" else None
        if sibling is None:
            return set()
        newest = sibling
        for later in everyone:
            if later.parent_id == newest.id and (later.provenance or {}).get("made_by") in SMALL_CHANGES:
                newest = later
        return {newest.id}

    def _made(self, record: Json, options: Mapping[str, Any], progress: Progress | None) -> Json:
        made = self._kept(record, options)
        if made is None:
            with self._one_at_a_time:
                made = self._kept(record, options) or run_child("studio.datasets.report", options, self._settings.cache, progress)
            self._keep_report(record["id"], options, made)
        return made

    def _kept(self, record: Json, options: Mapping[str, Any]) -> Json | None:
        try:
            kept: Json = orjson.loads(self._report_path(record["id"], options).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return kept

    def _keep_report(self, dataset_id: str, options: Mapping[str, Any], made: Json) -> None:
        path = self._report_path(dataset_id, options)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(orjson.dumps(made))
        part.replace(path)

    def _report_path(self, dataset_id: str, options: Mapping[str, Any]) -> Path:
        asked = json.dumps({**options, "path": "", "version": REPORT_VERSION}, sort_keys=True)
        return self._shelf.folder(dataset_id) / "reports" / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.json"

    # fixing

    def _fixed(
        self, folder: Path, path: Path, made: Json, checks: Sequence[str], options: Mapping[str, Any], progress: Progress | None
    ) -> tuple[Path, Json, Fixed]:
        """The fixed rows, the report on them, and how many were touched."""
        total = Fixed()
        for number in range(MAX_ROUNDS):
            faults = _faults(made, checks)
            if not faults:
                break
            target = folder / f"{number}.jsonl"
            fixed = write_fixed(path, target, faults)
            if not fixed.rows:
                raise StudioError("No row would be left.", "Fix fewer checks at a time, or edit the rows.")
            path, total = target, Fixed(fixed.rows, total.dropped + fixed.dropped, total.changed + fixed.changed)
            with self._one_at_a_time:
                made = run_child("studio.datasets.report", {**options, "path": str(path)}, self._settings.cache, progress)
        return path, made, total

    # rows

    def _lines(self, dataset_id: str, rows: set[int] | None = None, *, inside: bool = True) -> Iterator[bytes]:
        """The lines of a dataset: all, or those whose number (from 0) is in `rows`, or is not."""
        with self._datasets.path(dataset_id).open("rb") as file:
            for number, line in enumerate(file):
                if rows is None or (number in rows) is inside:
                    yield line

    def _next_version(self, record: Json) -> str:
        return _next_version(record["name"], {each.name for each in self._shelf.everyone()})

    def _write(self, origin: Json, provenance: Json, name: str | None, default_name: str, lines: Iterable[bytes]) -> Json:
        with self._shelf.drafting() as drafts:
            drafts.append(Draft(origin, provenance, name, default_name))
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


def _faults(made: Json, checks: Sequence[str]) -> dict[str, list[int]]:
    return {check: made["all_rows"][check] for check in checks if made["all_rows"].get(check)}


def _for_people(record: Json, made: Json) -> Json:
    return {"dataset": record["id"], **{key: value for key, value in made.items() if key != "all_rows"}}


def _shown_options(options: ReportOptions) -> Json:
    """What changed the report, for the provenance."""
    counted = ("base_model", "max_length", "chat_template") if options.get("base_model") else ()
    return {key: value for key, value in options.items() if value and key in (*counted, "against")}


def _check_rows(record: Json, rows: Sequence[int]) -> None:
    if not rows:
        raise StudioError("No row is named.", "Give row numbers, counted from 1.")
    for row in rows:
        if not 1 <= row <= record["rows"]:
            raise StudioError(f"{record['name']} has no row {row}.", f"Rows count from 1 to {record['rows']:,}.")


def _checked_example(record: Json, old: Json, example: Mapping[str, Any]) -> bytes:
    """A row as it is kept. Raises StudioError when it is no row of this dataset's kind."""
    try:
        new = Example.model_validate(example).as_json()
        line = orjson.dumps(new) + b"\n"
    except ValidationError as exc:
        problem = exc.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the row"
        raise StudioError(f"This is no row: {where}: {problem['msg']}.", "Keep the form of the row that you edit.") from None
    except orjson.JSONEncodeError:
        raise StudioError("The row holds half of a surrogate pair, which is no character.", "Remove it.") from None
    parts = set(old) - {"tools"}
    if set(new) - {"tools"} != parts or any(type(new[part]) is not type(old[part]) for part in parts):
        raise StudioError(f"A row of {record['name']} has {', '.join(sorted(parts))}.", "Keep the form of the row that you edit.")
    return line


# lineage and names


def _parents(each: DatasetRow) -> set[str]:
    return {parent for parent in [each.parent_id, *(each.provenance or {}).get("parents", [])] if parent}


def _ancestors(everyone: Sequence[DatasetRow], wanted: str) -> set[str]:
    known = {each.id: each for each in everyone}
    found: set[str] = set()
    waiting = {wanted}
    while waiting:
        waiting = {parent for each in waiting if each in known for parent in _parents(known[each])} - found
        found |= waiting
    return found


def _descendants(everyone: Sequence[DatasetRow], wanted: str) -> set[str]:
    found = {wanted}
    while True:
        more = {each.id for each in everyone if each.id not in found and _parents(each) & found}
        if not more:
            return found
        found |= more


VERSION = re.compile(r"(.+)-v(\d{1,5})")


def _next_version(name: str, taken: Set[str]) -> str:
    """The first free of name-v2, name-v3, …; for name-v4 from name-v5 on."""
    found = VERSION.fullmatch(name)
    stem, number = (found[1], int(found[2])) if found else (name, 1)
    return next(wanted for wanted in (_derived(stem, f"v{n}") for n in itertools.count(number + 1)) if wanted not in taken)


def _derived(name: str, suffix: str) -> str:
    return f"{name[: naming.LENGTH - 1 - len(suffix) - 4]}-{suffix}"
