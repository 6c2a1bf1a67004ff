"""RunDir: the files of one run, the contract between worker and trainer. Knows nothing of rows in a database.

In: config.json train.jsonl eval.jsonl chat_template.{jinja,json}. Per attempt: attempts/N/{events.jsonl,log.txt,result.json}.
Shared: checkpoints/. Out, moved into place when an attempt has succeeded: adapter/ and result.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.homepaths import HomePaths
from studio.settings import COPIES

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # in a checkpoint: what the trainer keeps beyond its library's state
MAX_EVENT_BYTES = 4_000_000  # read at once
BALLAST_BYTES = 16_384
STOPPED = 75  # exit code of a trainer that was asked to stop and did (EX_TEMPFAIL: try again later)


@dataclass(frozen=True)
class Attempt:
    """The files of one attempt."""

    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def ballast(self) -> Path:
        """Room on the disk that a running attempt holds, to be able to say in its result that the disk is full."""
        return self.path / "ballast"

    def read_events(self, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Whole lines behind byte `offset` and the offset behind them; what is no JSON object is passed over."""
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                block = file.read(MAX_EVENT_BYTES)
        except FileNotFoundError:
            return [], offset
        whole = block[: block.rfind(b"\n") + 1]
        if not whole and len(block) == MAX_EVENT_BYTES:
            return [], offset + len(block)  # no event of ours is that long
        return [event for line in whole.splitlines() if (event := _event(line)) is not None], offset + len(whole)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class RunDir:
    """Names the files of a run directory; makes none of them by itself."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def train(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def eval(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def chat_template(self) -> Path:
        return self.path / "chat_template.jinja"

    @property
    def template_card(self) -> Path:
        """Name, hash, special tokens and stop strings of that template, for people; nothing reads it back."""
        return self.path / "chat_template.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def copies(self) -> Path:
        """Bases as they are kept in 4 bits, of all runs of a studio; none are kept where this folder is not there."""
        return self.path.parent.parent / COPIES

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def write_config(self, values: Any) -> None:
        """Write config.json. Paths inside the home that holds this run are stored without it: a moved run can still be started."""
        write_json(self.config, self._paths().stored_json(values))

    def read_config(self) -> Any:
        """The values of config.json, with absolute paths. Raises ValueError for what is no JSON."""
        return self._paths().absolute_json(json.loads(self.config.read_text(encoding="utf-8")))

    def _paths(self) -> HomePaths:
        return HomePaths(Path(os.path.abspath(self.path)).parent.parent)  # a run is HOME/runs/ID

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.attempts / str(number))

    def next_attempt(self) -> int:
        """The number after the last attempt; 1 first."""
        numbers = [int(p.name) for p in self.attempts.glob("*") if p.name.isdigit()]
        return max(numbers, default=0) + 1

    def kept_template(self) -> str | None:
        """Path of the template that the run was given; None where there is none."""
        if not self.chat_template.exists():
            return None
        return str(self.chat_template)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    def checkpoint_folders(self) -> list[Path]:
        """Folders that call themselves checkpoints, oldest first; not verified."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
        return sorted(found, key=checkpoint_step)

    def last_verified_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that matches its manifest, and one sentence for each newer one that does not."""
        damaged: list[str] = []
        for folder in reversed(self.checkpoint_folders()):
            problems = manifest_problems(folder)
            if not problems:
                return folder, damaged
            damaged.append(f"{folder.name} is damaged ({problems[0]}) and was left out.")
        return None, damaged

    def keep_checkpoint(self) -> Path | None:
        """Move the adapter of the last verified checkpoint into place; None when there is no such checkpoint."""
        checkpoint, _ = self.last_verified_checkpoint()
        if checkpoint is None:
            return None
        copy = self.path / "adapter.part"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(checkpoint / "adapter", copy)
        move_into_place(copy, self.adapter)
        return self.adapter


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def write_json(path: Path, value: Any) -> None:
    """Write aside, fsync, rename: the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make renames inside `path` durable; a no-op where folders can't be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """List size and sha256 of every file under `folder`, after fsyncing each, into manifest.json."""
    entries = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        entries[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    write_json(folder / MANIFEST, entries)


def manifest_problems(folder: Path) -> list[str]:
    """What differs between `folder` and its manifest; an empty list means whole and unchanged."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        return [f"{MANIFEST} can't be read ({type(exc).__name__})"]
    problems = []
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}
    problems += [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        size, digest = expected[name]
        file = folder / name
        try:
            if file.is_symlink() or file.stat().st_size != size or sha256(file) != digest:
                problems.append(f"{name} has changed")
        except OSError as exc:
            problems.append(f"{name} can't be read ({exc.strerror})")
    return problems


def move_into_place(source: Path, target: Path) -> None:
    """Replace the folder `target` by `source`; both on one file system."""
    if target.exists():
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        source.rename(target)
    fsync_folder(target.parent)
