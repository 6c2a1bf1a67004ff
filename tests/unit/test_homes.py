"""A home opens where it lies: after a move, under a link, made by the version before; and what can't be opened is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio import processes
from studio.commands.terminal import plain
from studio.db import migrations
from studio.db.models import AdapterRow, BaseModelRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.homepaths import HomePaths
from studio.running import Running, announce
from studio.services import Studio, backups, restoring
from studio.services.storage import YOUNG_S
from studio.settings import STATIC, Settings, load
from tests import homes

EXPECTED: dict[str, Any] = json.loads((homes.FIXTURE / "seen.json").read_text(encoding="utf-8"))
PATHS = (("jobs", "run_dir"), ("jobs", "config"), ("jobs", "result"), ("adapters", "path"), ("base_models", "path"), ("job_events", "data"))


def at(home: Path) -> Settings:
    return load({"STUDIO_HOME": str(home)})


def look(settings: Settings) -> dict[str, Any]:
    studio = Studio.open(settings, at_terminal=True)
    try:
        return homes.seen(studio, plain, settings.home)
    finally:
        studio.db.dispose()


def missing(expected: Any, found: Any, where: str = "") -> list[str]:
    """What is expected and not found; fields that a later version has added are no difference."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [problem for key in expected for problem in missing(expected[key], found.get(key, "absent"), f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [problem for number, one in enumerate(expected) for problem in missing(one, found[number], f"{where}[{number}]")]
    return [f"{where}: {expected!r} is {found!r}"] if expected != found else []


def values(home: Path) -> dict[tuple[str, str], list[str]]:
    """What stands in the database itself."""
    with closing(sqlite3.connect(home / "studio.db")) as connection:
        return {(t, c): [str(v) for (v,) in connection.execute(f"SELECT {c} FROM {t} ORDER BY id")] for t, c in PATHS}


def test_a_home_of_the_version_before_opens_unchanged_and_again_after_a_move(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "deep" / "second"
    homes.unpack(first)
    assert missing(EXPECTED, look(at(first))) == []
    assert (first / f"studio.db.before-{migrations.HEAD}").exists()
    second.parent.mkdir()
    shutil.move(first, second)
    assert missing(EXPECTED, look(at(second))) == []
    stored = "\n".join(value for column in values(second).values() for value in column)
    stored += "".join(file.read_text() for file in (second / "runs").glob("*/config.json"))
    assert str(tmp_path) not in stored and "/opt/former" not in stored
    assert "$STUDIO_HOME/runs/" in stored and "$STUDIO_STATIC/starter" in stored


def test_every_run_of_a_moved_home_can_be_started_by_hand(tmp_path: Path) -> None:
    homes.unpack(tmp_path / "first")
    look(at(tmp_path / "first"))
    moved = (tmp_path / "first").rename(tmp_path / "second")
    folders = {}
    for file in (moved / "runs").glob("*/config.json"):
        config = RunDir(file.parent).read_config()
        if "model_name_or_path" in config:
            folders[JobConfig.model_validate(config).base_model] = config["model_name_or_path"]
        else:
            assert (Path(config["adapter_path"]) / "adapter_config.json").is_file() and config["to"] == str(
                moved / "exports" / "first-adapter"
            )
    assert folders == {"starter": str(STATIC / "starter"), "own": str(moved / "models" / "own")}


def test_a_copy_made_by_hand_is_a_home_of_its_own(tmp_path: Path) -> None:
    """Its rows name the home that it was copied from, which is still there."""
    original = homes.unpack(tmp_path / "original")
    copy = homes.unpack(tmp_path / "copy", named=original)
    studio = Studio.open(at(copy))
    assert missing(EXPECTED, homes.seen(studio, plain, copy)) == []
    studio.adapters.delete("merged")
    assert plain(studio.exports.delete("first-adapter"))["deleted"]
    studio.db.dispose()
    assert len(list((copy / "adapters").iterdir())) == 1 and not list((copy / "exports").iterdir())
    assert len(list((original / "adapters").iterdir())) == 2 and list((original / "exports").iterdir())


def test_models_of_a_copy_without_runs_are_its_own(tmp_path: Path) -> None:
    home = homes.unpack(tmp_path / "home", named=tmp_path / "gone")
    with closing(sqlite3.connect(home / "studio.db")) as connection, connection:
        for table in ("verdicts", "judgements", "answers", "comparisons", "adapters", "metrics", "job_events", "jobs"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("INSERT INTO base_models SELECT 'x', 'outside', '/somewhere/models/else', '', 1, 1, 1, '', 0 FROM base_models")
    studio = Studio.open(at(home))
    found = {one["name"]: one["path"] for one in map(plain, studio.models.list())}
    studio.db.dispose()
    assert found == {"starter": str(STATIC / "starter"), "own": str(home / "models" / "own"), "outside": "/somewhere/models/else"}


def upgrade_and_die(home: Path, number: int) -> None:
    """In a child: upgrade the home, and die at the `number`-th write of a file."""
    written, left = os.fsync, number

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)
        written(descriptor)

    os.fsync = fsync
    migrations.migrate(Database(f"sqlite:///{home / 'studio.db'}"))
    os._exit(0)


def test_an_upgrade_that_is_killed_at_any_write_is_done_by_the_next(tmp_path: Path) -> None:
    number = 0
    while True:
        home = homes.unpack(tmp_path / f"home-{number}")
        child = os.fork()
        if child == 0:
            upgrade_and_die(home, number)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        with closing(sqlite3.connect(home / "studio.db")) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0004",)
        assert missing(EXPECTED, look(at(home))) == []
        assert "$$" not in "".join(file.read_text() for file in (home / "runs").glob("*/config.json"))
        number += 1
    assert number == 2 * 5  # each of five runs: its file and its folder


@pytest.mark.parametrize("way", ["link", "relative", "slash", "dots"])
def test_a_home_may_be_named_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    real = homes.unpack(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    name = {"link": str(tmp_path / "link"), "relative": "real", "slash": f"{real}/", "dots": "real/../real"}[way]
    settings = load({"STUDIO_HOME": name})
    assert missing(EXPECTED, look(settings)) == []
    studio = Studio.open(settings)
    with studio.db.write() as session:  # by the other name of the same folder
        session.add(AdapterRow(id="new", name="new", base_model="own", method="", bytes=1, path=str(real / "adapters" / "new")))
    assert plain(studio.adapters.show("new"))["path"] == str(settings.home / "adapters" / "new")
    studio.db.dispose()
    assert "adapters/new" in values(real)["adapters", "path"]
    assert all(not value.startswith("/") for value in values(real)["jobs", "run_dir"])


def test_storage_of_a_linked_home_spares_what_rows_and_processes_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = homes.unpack(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    studio = Studio.open(at(tmp_path / "link"))
    working = real / "runs" / "by-hand"
    for folder in (working, real / "runs" / "gone"):
        folder.mkdir()
        (folder / "file").write_bytes(b"12345")
    for path in real.rglob("*"):
        os.utime(path, (1_000_000_000 - YOUNG_S,) * 2)
    monkeypatch.chdir(working)
    unused = {Path(one["path"]).name for one in plain(studio.storage.show())["unused"]}
    studio.db.dispose()
    assert unused == {"gone"}


# refused in one line


def set_revision(home: Path, revision: str) -> None:
    with closing(sqlite3.connect(home / "studio.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def strange(home: Path) -> None:
    (home / "studio.db").unlink()
    with closing(sqlite3.connect(home / "studio.db")) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def no_revision(home: Path) -> None:
    with closing(sqlite3.connect(home / "studio.db")) as connection, connection:
        connection.execute("DELETE FROM alembic_version")


def running(home: Path) -> None:
    with closing(sqlite3.connect(home / "studio.db")) as connection, connection:
        connection.execute("UPDATE jobs SET status = 'RUNNING', owner = ? WHERE name = 'waiting'", (processes.owner_id(),))


REFUSED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "older": (lambda home: set_revision(home, "0002"), "too old for this one", "Open it once with a version that writes revision 0004"),
    "newer": (lambda home: set_revision(home, "0099"), "newer Adapter Studio", "Install the newer version"),
    "rubbish": (lambda home: (home / "studio.db").write_bytes(b"rubbish" * 1000) and None, "is damaged", "studio restore"),
    "torn": (lambda home: os.truncate(home / "studio.db", 5000), "is damaged", "studio restore"),
    "strange": (strange, "not a studio's", "STUDIO_HOME"),
    "no revision": (no_revision, "not a studio's", "STUDIO_HOME"),
    "running": (running, "Job waiting still runs", "Wait until the job has ended"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_opened_is_refused_in_one_line_and_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    home = homes.unpack(tmp_path / "home")
    spoil, words, fix = REFUSED[kind]
    spoil(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    with pytest.raises(StudioError, match=words) as caught:
        Studio.open(at(home))
    assert "\n" not in str(caught.value) and fix in caught.value.fix
    assert {path: path.read_bytes() for path in before} == before
    assert not list(home.glob("*.before-*"))


UPGRADE = "import sys; from studio.db import migrations, session; migrations.migrate(session.Database(sys.argv[1]))"


def upgrading(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", UPGRADE, f"sqlite:///{home / 'studio.db'}"], stderr=subprocess.PIPE)


def test_several_processes_upgrade_a_home_at_once(tmp_path: Path) -> None:
    home = homes.unpack(tmp_path / "home")
    starting = [upgrading(home) for _ in range(4)]
    assert [process.communicate(timeout=120)[1] for process in starting] == [b""] * 4
    assert missing(EXPECTED, look(at(home))) == []


def test_a_home_that_an_older_studio_serves_waits_for_its_end(tmp_path: Path) -> None:
    home = homes.unpack(tmp_path / "home")

    def serve(pid: int) -> None:
        announce(at(home), Running(pid, processes.born(pid) or 0.0, "", "", "", 0.0))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        serve(other.pid)
        with pytest.raises(StudioError, match="An older Adapter Studio runs") as caught:
            Studio.open(at(home))
        other.communicate(b"\n")
    assert "\n" not in str(caught.value) and not list(home.glob("*.before-*"))
    serve(os.getpid())
    process = upgrading(home)  # a child of the studio that runs here is of its version
    assert process.communicate(timeout=120)[1] == b"" and process.returncode == 0


# backups


def old_backup(tmp_path: Path, revision: str = "0004") -> Path:
    """As the version before wrote it, in another place."""
    home = homes.unpack(tmp_path / "there", named=Path("/elsewhere/home"))
    set_revision(home, revision)
    files = [p for folder in restoring.FOLDERS for p in sorted((home / folder).rglob("*")) if p.is_file()]
    card = {"format": backups.FORMAT, "home": "/elsewhere/home", "revision": revision, "written_at": 0.0, "files": len(files)}
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.write(home / "studio.db", "studio.db")
        for path in files:
            archive.write(path, path.relative_to(home).as_posix())
        archive.writestr("backup.json", json.dumps(card))
    return tmp_path / "old.zip"


def test_a_backup_of_the_version_before_restores(settings: Settings, tmp_path: Path) -> None:
    done = backups.restore(settings, old_backup(tmp_path))
    assert (done.models, done.before, done.home) == (["own"], None, str(settings.home))
    found = look(settings)
    assert missing({**EXPECTED, "exports": []}, {**found, "exports": []}) == []
    assert not list(settings.home.glob("*.before-*"))
    again = tmp_path / "again.zip"
    assert backups.backup(settings, again).models[0].path == str(settings.home / "models" / "own")
    elsewhere = at(tmp_path / "third")
    assert backups.restore(elsewhere, again).models == ["own"]
    assert missing({**EXPECTED, "exports": []}, {**look(elsewhere), "exports": []}) == []


def test_a_backup_that_is_too_old_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    backup = old_backup(tmp_path, "0003")
    with pytest.raises(StudioError, match=r"old\.zip was written by an Adapter Studio too old"):
        backups.restore(settings, backup)
    assert not (settings.home / "studio.db").exists() and not list(settings.runs.iterdir())


def test_a_damaged_studio_is_not_backed_up(settings: Settings, tmp_path: Path) -> None:
    (settings.home / "studio.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StudioError, match="is damaged"):
        backups.backup(settings, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_restore_that_was_cut_short_is_undone_where_the_home_lies_now(settings: Settings, tmp_path: Path) -> None:
    (settings.home / "studio.db").write_text("old")
    (settings.runs / "one").mkdir()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(restoring, "undo", lambda _settings: "")  # as if killed
        with restoring.replacing(settings, settings.home / "studio.db"):
            raise KeyboardInterrupt
    moved = replace(settings, home=settings.home.rename(tmp_path / "moved"), db_url="")
    settings.home.mkdir()
    (settings.home / "studio.db").write_text("a new home in the old place")
    assert restoring.recover(moved) == restoring.CUT_SHORT
    assert (moved.home / "studio.db").read_text() == "old" and (moved.runs / "one").is_dir()
    assert (settings.home / "studio.db").read_text() == "a new home in the old place"


# the mechanism


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("/a/home/runs/x", "runs/x"),
        ("/a/home/runs/x/", "runs/x"),
        ("/a/home2/runs/x", "/a/home2/runs/x"),
        ("/a/home", "/a/home"),
        ("/a/home/../b", "/a/home/../b"),
        ("/models/qwen", "/models/qwen"),
        ("", ""),
    ],
)
def test_only_paths_inside_the_home_are_relative(path: str, stored: str) -> None:
    paths = HomePaths(Path("/a/home"))
    assert paths.stored(path) == stored
    assert paths.absolute(stored) == path.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        "/a/home", "/a/home/x y", "$STUDIO_HOME", "$STUDIO_HOME/runs/x", "$$STUDIO_HOME/x", "$STUDIO_HOMES", "$STUDIO_STATIC/starter", "$",
        "say /a/home/x", f"{STATIC}/starter", "plain", "/a/home/../b",
    ],
)  # fmt: skip
def test_json_values_come_back_as_they_were(text: str) -> None:
    paths = HomePaths(Path("/a/home"))
    value = {"path": text, "deep": [{"to": text, "n": 1, "none": None}], "name": text}
    stored = paths.stored_json(value)
    assert paths.absolute_json(stored) == value
    assert "/a/home/x" not in stored["path"] or text.startswith("say")


def test_a_mark_with_dots_leads_nowhere() -> None:
    assert HomePaths(Path("/a/home")).absolute_json("$STUDIO_HOME/../../etc") == "$STUDIO_HOME/../../etc"
    assert HomePaths(Path("/a/home")).absolute("runs/../../etc") == "runs/../../etc"


def test_rows_are_found_by_their_absolute_paths(settings: Settings) -> None:
    db = Database(settings.db_url)
    migrations.migrate(db)
    path, outside = str(settings.models / "one"), "/models/two"
    with db.write() as session:
        for name, where in (("one", path), ("two", outside)):
            session.add(BaseModelRow(name=name, path=where, architecture="", parameters=1, context=1, loadable=True))
        session.add(JobRow(id="j", kind="train", name="j", config={"to": path, "base_model": path}, run_dir=str(settings.runs / "j")))
    with db.read() as session:
        assert [session.query(BaseModelRow).filter_by(path=one).one().name for one in (path, outside)] == ["one", "two"]
        job = session.get_one(JobRow, "j")
        assert (job.config, job.run_dir) == ({"to": path, "base_model": path}, str(settings.runs / "j"))
    db.dispose()
    stored = values(settings.home)
    assert sorted(stored["base_models", "path"]) == [outside, "models/one"]
    assert json.loads(stored["jobs", "config"][0]) == {"to": "$STUDIO_HOME/models/one", "base_model": path}
