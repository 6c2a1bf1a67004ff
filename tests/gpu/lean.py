"""A Python that has only what a machine of `make gpu-wheels` has: what is carried there and what it brings, linked from this one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from tests.gpu.wheels import EXPECTED, PURE, WHEELS, normalised

REQUIREMENT = re.compile(r"[\w.-]+")


def make(folder: Path) -> Path:
    """The program of such a virtual environment. What is not installed here is left out: on a processor, triton."""
    program = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for place in (program.parent, site):
        place.mkdir(parents=True)
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    program.symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8")
    for found in distributions():
        for top in sorted({file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}):
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return program


def distributions() -> Iterator[metadata.Distribution]:
    """What is carried there, and what it brings with all that this needs in turn."""
    waiting, seen = [*EXPECTED], set[str]()
    while waiting:
        name = normalised(waiting.pop())
        found = _installed(name)
        if name in seen or found is None:
            continue
        seen.add(name)
        yield found
        needed = (line for line in found.requires or () if "extra ==" not in line)
        waiting += [match.group() for line in needed if (match := REQUIREMENT.match(line))]
    for name in {*map(normalised, (*WHEELS, *PURE))} - seen:
        if (found := _installed(name)) is not None:
            yield found


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
