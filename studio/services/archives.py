"""Zip files of the studio's own making: written aside and renamed, and read as if a stranger had made them.

Nothing is written outside the folder it is extracted to, and nothing is larger than it says or than the disk has room for.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from studio import privacy
from studio.errors import StudioError

MAX_MEMBERS = 200_000
MAX_RATIO, FREE_OF_RATIO_BYTES = 100, 64_000_000  # unpacked to packed, above a size that can't hurt
MAX_JSON_BYTES = 50_000_000
BLOCK = 1 << 20
PACKED = {".safetensors": zipfile.ZIP_STORED}  # what does not shrink is not tried


class Archive:
    """An opened zip file whose table of contents is harmless."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self.names = [entry.filename for entry in file.infolist() if not entry.is_dir()]

    def json(self, name: str) -> Any:
        """Raises StudioError when it is missing, too large, or no JSON."""
        try:
            entry = self._file.getinfo(name)
            if entry.file_size > MAX_JSON_BYTES:
                raise refused(self.path, f"{name} is too large")
            with self._reading():
                return json.loads(self._file.read(entry))
        except KeyError:
            raise refused(self.path, f"it has no {name}") from None
        except (ValueError, RecursionError):
            raise refused(self.path, f"{name} is no JSON") from None

    def extract(self, name: str, target: Path) -> None:
        """Write one member to `target`, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reading(), self._file.open(name) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, BLOCK)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as exc:
            raise refused(self.path, f"it is damaged ({exc})") from None


@contextlib.contextmanager
def open_archive(path: Path, room: Path) -> Iterator[Archive]:
    """The archive `path`, to be unpacked in `room`. Raises StudioError where it is none, damaged or hostile."""
    fix = "Name a file that the studio has written."
    if path.is_dir():
        raise StudioError(f"{path} is a folder.", fix)
    if not path.exists():
        raise StudioError(f"{path} is not there.", fix)
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise refused(path, f"it is no zip file ({exc})") from None
    with file:
        _check(path, file.infolist(), shutil.disk_usage(room).free)
        yield Archive(path, file)


def _check(path: Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    if len(entries) > MAX_MEMBERS:
        raise refused(path, f"it holds {len(entries)} files")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        parts = PurePosixPath(name).parts
        is_plain = not (name.startswith("/") or ".." in parts or any(char in name for char in "\\:\0") or not name.isprintable())
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not is_plain or kind not in (0, stat.S_IFREG, stat.S_IFDIR) or entry.flag_bits & 1 or name.casefold() in seen:
            raise refused(path, f"it holds an entry that no studio writes: {name[:80]!a}")
        seen.add(name.casefold())
    total, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > FREE_OF_RATIO_BYTES and total > MAX_RATIO * packed:
        raise refused(path, f"it would unpack to {total / 1e6:.0f} MB from {packed / 1e6:.1f}")
    if total > free:
        raise StudioError(
            f"{path.name} unpacks to {total / 1e6:.0f} MB; there are {free / 1e6:.0f} MB left.",
            "Free some space.",
        )


def write_archive(to: Path, fill: Callable[[zipfile.ZipFile], None], *, is_private: bool = False) -> None:
    """Make the zip file `to`, replacing it; on any error it is as it was. Raises StudioError for a place that can't hold a file."""
    to = to.absolute()
    fix = "Name a file in a folder that is there, such as run.zip."
    if to.is_dir():
        raise StudioError(f"{to} is a folder.", fix)
    if not to.parent.is_dir():
        raise StudioError(f"There is no folder {to.parent}.", fix)
    part = to.with_name(f".{to.name}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
            fill(file)
        part.chmod(0o600)
        if not is_private:
            privacy.hand_out(part)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def add_file(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    archive.write(path, name, PACKED.get(path.suffix, zipfile.ZIP_DEFLATED))


def refused(path: Path, why: str) -> StudioError:
    return StudioError(f"{path.name} can't be used: {why}.", "Use a file as the studio has written it.")
