"""Adapters made of other adapters: sums with weights, kept in STUDIO_HOME/adapters as any imported one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from jobs import rundir
from studio.catalogue import arithmetic, rope
from studio.catalogue.models import read_json
from studio.db.models import AdapterRow, new_id
from studio.db.session import Database
from studio.errors import ModelError, StudioError
from studio.records import Adapter, MergeMethod
from studio.services.adapters import CONFIG, TEMPLATE, WEIGHTS, AdapterService
from studio.services.folders import size_of
from studio.settings import Settings

DENSITY = 0.5  # share of values that ties and dare keep, where nothing else is said
CARD = "studio.json"


class MergeService:
    """What a person can do with several adapters of one base."""

    def __init__(self, settings: Settings, db: Database, adapters: AdapterService) -> None:
        self.settings = settings
        self.db = db
        self.adapters = adapters

    def merge(
        self, weights: Mapping[str, float], method: str = MergeMethod.LINEAR, name: str | None = None, *, density: float = DENSITY
    ) -> Adapter:
        """Make the adapter that is the sum of others. One adapter of weight 1, the others 0, gives that adapter's own bytes.

        Raises StudioError for unknown names, different bases, and kinds that can't be added up.
        """
        _check(weights, method, density)
        with self.db.read() as session:
            rows = {wanted: self.adapters.find(session, wanted) for wanted in weights}
            self.adapters.choose_name(session, name, _stem(rows.values()))
        bases = sorted({row.base_model for row in rows.values()})
        if len(bases) > 1:
            raise ModelError(f"These adapters belong to different bases ({', '.join(bases)}).", "Merge adapters of one base model.")
        _check_positions(rows.values())
        used = {row.id: (row, float(weights[wanted])) for wanted, row in rows.items() if weights[wanted] != 0}
        folder = self._write(list(used.values()), method, density)
        try:
            with self.db.write() as session:
                row = AdapterRow(
                    id=folder.name,
                    name=self.adapters.choose_name(session, name, _stem(rows.values())),
                    base_model=bases[0],
                    method=method_of(folder),
                    path=str(folder),
                    bytes=size_of(folder),
                    sha256=rundir.sha256(folder / WEIGHTS),
                )
                session.add(row)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.adapters.show(row.id)

    def _write(self, used: list[tuple[AdapterRow, float]], method: str, density: float) -> Path:
        adapter_id = new_id()
        folder, part = self.settings.adapters / adapter_id, self.settings.adapters / f".{adapter_id}.part"
        first = Path(max(used, key=lambda pair: pair[1])[0].path)
        try:
            part.mkdir()
            if len(used) == 1 and used[0][1] == 1:
                shutil.copyfile(first / WEIGHTS, part / WEIGHTS)
                shutil.copyfile(first / CONFIG, part / CONFIG)
            else:
                parts = [arithmetic.read(Path(row.path), row.name) for row, _ in used]
                factors = arithmetic.combine(parts, [weight for _, weight in used], method, density)
                arithmetic.write(part, factors, read_json(first / CONFIG))
            if (first / TEMPLATE).is_file():
                shutil.copyfile(first / TEMPLATE, part / TEMPLATE)
            _write_card(part / CARD, used, method, density, first / CARD)
            part.rename(folder)
        except OSError as exc:
            raise StudioError(f"The adapter could not be written to {folder} ({exc.strerror}).", "Free some space.") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return folder


def parse(text: str) -> dict[str, float]:
    """`A=0.7,B=0.3` as weights by name. Raises StudioError."""
    found: dict[str, float] = {}
    for item in text.split(","):
        name, separator, number = item.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not (separator and name) or value != value:
            raise StudioError(f"--weights {item.strip()[:80]!r} names no adapter and weight.", "Write it as A=0.7,B=0.3.")
        if name in found:
            raise StudioError(f"Adapter {name} is named twice in --weights.", "Name each once.")
        found[name] = value
    return found


def method_of(folder: Path) -> str:
    return str(read_json(folder / CONFIG).get("peft_type", "")).lower()


def _check(weights: Mapping[str, float], method: str, density: float) -> None:
    if method not in tuple(MergeMethod):
        raise StudioError(f"Method {method[:40]!r} is not known.", f"Choose one of {', '.join(MergeMethod)}.")
    if not any(weights.values()):
        raise StudioError("Every weight is zero, so nothing would be left.", "Give at least one adapter another weight, as A=0.7,B=0.3.")
    if any(not abs(weight) <= 100 for weight in weights.values()):
        raise StudioError("A weight lies beyond -100 to 100.", "Weights around 0 to 1 are usual.")
    if not 0 < density <= 1:
        raise StudioError(f"density {density} is no share.", "Take a number above 0 and up to 1; 0.5 is usual.")


def _check_positions(rows: Iterable[AdapterRow]) -> None:
    """A sum of adapters has the positions of all of them."""
    found = {row.name: rope.of_adapter(Path(row.path)) for row in rows}
    first, *others = found.values()
    if any(other != first for other in others):
        said = ", ".join(f"{name}: {rope.described(positions) or 'as the base has them'}" for name, positions in found.items())
        raise ModelError(f"These adapters were trained with different positions ({said}).", "Merge adapters of one rope section.")


def _stem(rows: Iterable[AdapterRow]) -> str:
    return "-".join(row.name for row in rows)[:50]


def _write_card(target: Path, used: list[tuple[AdapterRow, float]], method: str, density: float, heaviest: Path) -> None:
    """What the merge was made of. `heaviest`: the card of the part that template and special tokens are taken from."""
    try:
        inherited = json.loads(heaviest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        inherited = {}
    card = {key: inherited[key] for key in ("chat_template", "special_tokens", "stop_strings", rope.CARD_KEY) if key in inherited}
    merge: dict[str, object] = {"method": method}
    if method != MergeMethod.LINEAR:
        merge["density"] = density
    merge["parts"] = [{"name": row.name, "sha256": row.sha256, "weight": weight} for row, weight in used]
    rundir.write_json(target, {**card, "base_model": used[0][0].base_model, "method": "merge", "merge": merge})
