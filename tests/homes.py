"""A small home as the last version without relative paths made it, and a look at everything that it holds."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).resolve().parent / "fixtures" / "home-0004"
HOME, STATIC = "@HOME@", "@STATIC@"  # where the home and the package's files lay


def unpack(home: Path, *, named: Path | None = None, static: str = "/opt/former/static") -> Path:
    """The home at `home`; its rows say that it lies in `named`. The base model inside it has no weights (see `add_model`)."""
    places = {HOME: str(named or home), STATIC: static}
    shutil.copytree(FIXTURE / "files", home)
    for folder in ("models", "cache", "logs"):
        (home / folder).mkdir()
    (home / "models" / "own").mkdir()
    for file in home.rglob("*.json*"):
        file.write_text(_filled(file.read_text(encoding="utf-8"), places), encoding="utf-8")
    connection = sqlite3.connect(home / "studio.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(_filled((FIXTURE / "studio.sql").read_text(encoding="utf-8"), places))
    connection.close()
    return home


def add_model(home: Path, starter: Path) -> None:
    """Put the files of the base model `own`, which is a copy of the starter, into place."""
    shutil.copytree(starter, home / "models" / "own", dirs_exist_ok=True, ignore=shutil.ignore_patterns("recipe"))


def _filled(text: str, places: dict[str, str]) -> str:
    for mark, place in places.items():
        text = text.replace(mark, place)
    return text


def seen(studio: Any, plain: Any, home: Path) -> dict[str, Any]:
    """Everything that lists and shows say, as plain values, with marks where the home's and the package's folders stand."""
    comparisons = plain(studio.comparisons.list())
    judgements = [one for comparison in comparisons for one in plain(studio.judging.list(comparison["id"]))]
    conversations = plain(studio.chat.conversations())
    jobs = plain(studio.jobs.list())
    found = {
        "datasets": [plain(studio.datasets.show(one["id"])) for one in plain(studio.datasets.list())],
        "rows": [list(plain(list(studio.datasets.rows(one["id"])))) for one in plain(studio.datasets.list())],
        "jobs": [plain(studio.jobs.show(one["id"])) for one in jobs],
        "metrics": [plain(studio.jobs.metrics(one["id"])) for one in jobs],
        "logs": [studio.jobs.logs(one["id"], 20) for one in jobs],
        "models": [{"name": one["name"], "path": one["path"]} for one in plain(studio.models.list())],
        "adapters": [plain(studio.adapters.show(one["id"])) for one in plain(studio.adapters.list())],
        "conversations": [plain(studio.chat.messages(one["id"])) for one in conversations],
        "comparisons": [plain(studio.comparisons.show(one["id"])) for one in comparisons],
        "judgements": [plain(studio.judging.show(one["id"])) for one in judgements],
        "verdicts": [plain(studio.judging.verdicts(one["id"])) for one in judgements],
        "exports": [plain(studio.exports.show(one["id"])) for one in plain(studio.exports.list())],
        "keys": plain(studio.keys.list()),
    }
    static = next(one["path"] for one in found["models"] if one["name"] == "starter").removesuffix("/starter")
    text = json.dumps(found)
    for place, mark in ((str(home), HOME), (static, STATIC)):
        text = text.replace(f'"{place}', f'"{mark}')
    result: dict[str, Any] = json.loads(text)
    return result
