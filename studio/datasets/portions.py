"""A long file of JSON lines, mapped by two processes at once: each takes every other portion, the batches come back in the file's order.

`python -m studio.datasets.portions OPTIONS` is such a process; OPTIONS is JSON. It writes to stdout: for each batch a head, the
examples' lines and the problems (their lines counted from the portion's beginning); behind a portion's last one an end.
"""

from __future__ import annotations

import importlib
import os
import struct
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import orjson

from studio.datasets.batches import Batch, Batcher
from studio.datasets.children import child_environment
from studio.datasets.formats import BY_NAME, Layout
from studio.datasets.json_records import JsonLines
from studio.datasets.records import Problem
from studio.errors import StudioError
from studio.lifeline import end_with_parent

WORTH_BYTES = 32 * 1024**2  # a shorter file is read before the processes have started
PROCESSES = 2  # each takes some 20 MB of memory
PORTION_BYTES = 256 * 1024
PIPE_BYTES = 1024**2  # room for the portion that a process works on while the other's is read

HEAD = struct.Struct("<?IQQ")  # is it an end?, rows (at an end: lines of the portion), bytes of lines, bytes of problems


def are_worth(lines: JsonLines) -> bool:
    """Whether a second process would save time: the rest of the file is long, and has a name that another process can open."""
    file = lines.file
    if not isinstance(getattr(file, "name", None), (str, os.PathLike)):
        return False
    return os.fstat(file.fileno()).st_size - file.tell() > WORTH_BYTES and available_cores() > 1


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(lines: JsonLines, batcher: Batcher) -> Iterator[Batch]:
    """What `batcher.of_lines(lines)` gives."""
    before, begin, end = lines.number, lines.file.tell(), os.fstat(lines.file.fileno()).st_size
    options = {"path": str(Path(lines.file.name).absolute()), "begin": begin, "end": end, "portion": PORTION_BYTES}
    options |= {"format": batcher.layout.format.name, "mapping": batcher.layout.mapping}
    with ExitStack() as stack:
        pipes = [stack.enter_context(_worker({**options, "turn": turn})) for turn in range(PROCESSES)]
        for portion in range(-(-(end - begin) // PORTION_BYTES)):
            before = yield from received(pipes[portion % PROCESSES], before)


def received(pipe: IO[bytes], before: int) -> Generator[Batch, None, int]:
    """The batches of one portion, which begins behind so many lines; gives back how many lines there are up to its end."""
    while len(head := pipe.read(HEAD.size)) == HEAD.size:
        is_end, count, lines_size, problems_size = HEAD.unpack(head)
        if is_end:
            return before + int(count)
        lines = pipe.read(lines_size)
        problems = [Problem(before + line, problem, fix) for line, problem, fix in orjson.loads(pipe.read(problems_size) or b"[]")]
        yield Batch(lines, count, problems)
    raise StudioError("The file could not be read: a process ended, perhaps for want of memory.", "Try again with less running.")


@contextmanager
def _worker(options: dict[str, Any]) -> Iterator[IO[bytes]]:
    """The stdout of a process that ends with the context."""
    command = [sys.executable, "-P", "-m", "studio.datasets.portions", orjson.dumps(options).decode()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=child_environment()) as worker:
        assert worker.stdout is not None
        _widen(worker.stdout)
        try:
            yield worker.stdout
        finally:
            worker.kill()


def _widen(pipe: IO[bytes]) -> None:
    """Where a system does not have it, a process waits until its portion is read."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        pass


# in the process


class _Span:
    """The lines of a file that begin between two places, as a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int, is_line_start: bool) -> None:
        self._file = file
        self._end = end
        self._in_line = False
        file.seek(begin)
        if not is_line_start:
            file.seek(begin - 1)
            if not file.readline(end - begin + 1).endswith(b"\n"):
                file.seek(end)  # the line of an earlier portion goes on behind this one

    def read(self, size: int) -> bytes:
        return self._given(self._file.read(max(0, min(size, self._end - self._file.tell()))))

    def readline(self, size: int) -> bytes:
        """The rest of a line also from behind the end."""
        return self._given(self._file.readline(size)) if self._in_line or self._file.tell() < self._end else b""

    def _given(self, content: bytes) -> bytes:
        self._in_line = content != b"" and not content.endswith(b"\n")
        return content


def work(options: dict[str, Any], out: BinaryIO) -> None:
    """Write the batches of this process's portions to `out`."""
    batcher = Batcher(Layout(BY_NAME[options["format"]], options["mapping"]))
    start, end, portion = options["begin"], options["end"], options["portion"]
    with Path(options["path"]).open("rb") as file:
        for begin in range(start + options["turn"] * portion, end, PROCESSES * portion):
            lines = JsonLines(_Span(file, begin, min(begin + portion, end), is_line_start=begin == start))
            for batch in batcher.of_lines(lines):
                problems = orjson.dumps([(each.line, each.problem, each.fix) for each in batch.problems]) if batch.problems else b""
                out.write(HEAD.pack(False, batch.rows, len(batch.lines), len(problems)))
                out.write(batch.lines)
                out.write(problems)
            out.write(HEAD.pack(True, lines.number, 0, 0))
            out.flush()


if __name__ == "__main__":
    end_with_parent()
    try:
        work(orjson.loads(sys.argv[1]), sys.stdout.buffer)
    except BrokenPipeError:  # nobody wants the rest
        os._exit(1)
