"""Run scripts of trainings one after the other, in a process that has no studio: `python tests/scripted.py SCRIPT ADAPTER …`.

Prints the adapters' sha256 as JSON. `--with-studio` first: the studio may be imported.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path


class NoStudio(MetaPathFinder):
    """Whoever imports the studio fails."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ("studio", "jobs"):
            raise ImportError(f"{fullname} is the studio's")
        return None


def main(arguments: list[str]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    if arguments[0] == "--with-studio":
        del arguments[0]
    else:
        sys.meta_path.insert(0, NoStudio())
    found = {}
    for script, adapter in zip(arguments[::2], arguments[1::2], strict=True):
        sys.argv = [script, adapter]
        runpy.run_path(script, run_name="__main__")
        found[script] = hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()
    json.dump(found, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
