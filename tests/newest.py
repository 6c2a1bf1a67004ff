"""`python -m tests.newest`: the newest releases of the pinned libraries within their major version, and the contract tests on them.

A requirement with an upper bound in pyproject.toml is a library whose next release may break something here. Each is taken
up to its next major version, installed in a scratch environment beside the rest, and the tests that are marked `contract` run
there. The exit code is theirs. `--dry-run` only resolves. TORCH_INDEX=URL takes torch from another index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Pinned:
    """A requirement whose version is bounded above, and the same without that bound."""

    name: str
    requirement: str
    next_releases: str


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


def pinned(requirement: str) -> Pinned | None:
    """None for a requirement that takes any later version anyway."""
    parsed = Requirement(requirement)
    lowest = [bound.version for bound in parsed.specifier if bound.operator in (">=", "==", "~=")]
    if not lowest or all(bound.operator == ">=" for bound in parsed.specifier):
        return None
    next_major = Version(lowest[0]).major + 1
    return Pinned(canonicalize_name(parsed.name), requirement, f"{parsed.name}>={lowest[0]},<{next_major}")


def relaxed(all_requirements: list[str]) -> list[str]:
    found = []
    for requirement in all_requirements:
        library = pinned(requirement)
        found.append(requirement if library is None else library.next_releases)
    return found


def resolve(python: Path, wanted: list[str], *, dry_run: bool) -> dict[str, str]:
    """Install (or only resolve) and return the version of every package. Ends the program where that can't be done."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--report", str(report)]
        if dry_run:
            command.append("--dry-run")
        if index := os.environ.get("TORCH_INDEX"):
            command += ["--extra-index-url", index]
        if subprocess.run([*command, *wanted], check=False).returncode:
            sys.exit("These requirements can't be installed together: pip says above which of them disagree.")
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}


def tell(found: dict[str, str]) -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in constraints)}
    print(f"{'library':20} {'tested':14} newest")
    for library in filter(None, map(pinned, requirements())):
        newest = found.get(library.name, "not resolved")
        mark = "" if newest == tested.get(library.name) else "  new"
        print(f"{library.name:20} {tested.get(library.name, '-'):14} {newest}{mark}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.newest", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="only resolve and print the versions")
    dry_run = parser.parse_args().dry_run
    with tempfile.TemporaryDirectory(prefix="studio-next-") as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        tell(resolve(python, relaxed(requirements()), dry_run=dry_run))
        if dry_run:
            return 0
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps", "-e", str(ROOT)]
        subprocess.run(install, check=True)
        return subprocess.run([python, "-m", "pytest", "-q", "-m", "contract", "tests"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
