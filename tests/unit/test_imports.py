"""Imports go down the house; the web process stays free of torch and the trainer of the database."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# longest matching prefix wins; a module may import its own level and lower ones
LEVELS = {
    "studio.__main__": 7,
    "studio.cli": 7,
    "studio.commands": 7,
    "studio.supervisor": 7,
    "studio.web": 6,
    "studio.api": 6,
    "studio.auth": 6,
    "studio.login": 6,
    "studio.connections": 6,
    "studio.scopes": 6,
    "studio.origins": 6,
    "studio.ui": 6,
    "studio.services": 5,
    "jobs": 4,
    "studio.datasets": 3,
    "studio.catalogue": 3,
    "studio.engine": 3,
    "studio.compress": 3,
    "studio.evaluation": 3,
    "studio.db": 2,
    "jobs.config": 2,
    "jobs.sections": 2,
    "jobs.bottleneck": 2,
    "jobs.kinds": 2,
    "jobs.objectives": 2,
    "jobs.recipes": 2,
    "jobs.row_fields": 2,
    "jobs.device_fields": 2,
    "jobs.rundir": 2,
    "studio.errors": 1,
    "studio.settings": 1,
    "studio.homepaths": 1,
    "studio.types": 1,
    "studio.records": 1,
    "studio.running": 1,
    "studio": 0,
}
TRAINER_MAY_IMPORT = (
    "jobs",
    "jobs.config",
    "jobs.sections",
    "jobs.bottleneck",
    "jobs.objectives",
    "jobs.recipes",
    "jobs.rundir",
    "jobs.train",
    "jobs.trainers",
    "studio",
    "studio.catalogue",
    "studio.catalogue.architecture",  # what a config.json says, without torch
    "studio.catalogue.hardware",  # the GPUs that are here
    "studio.catalogue.nvml",  # and what their driver says of them
    "studio.catalogue.torch_view",  # and torch
    "studio.catalogue.fused",  # experts that are stored as one tensor
    "studio.catalogue.ready_copy",  # a base as it is kept in 4 bits
    "studio.catalogue.gpu_failures",  # what libraries say of a GPU
    "studio.catalogue.keys",  # whether a base holds all its weights
    "studio.catalogue.rope",  # positions beyond the base's context
    "studio.catalogue.rope_flags",  # and how other programs are told of them
    "studio.catalogue.models",  # headers of safetensors files
    "studio.catalogue.quick_imports",  # bitsandbytes
    "studio.catalogue.anatomy",  # what a model's weights are for
    "studio.catalogue.targets",  # what all-linear means
    "studio.catalogue.precision",  # the number format of the arithmetic
    "studio.catalogue.reach",  # what an adapter reaches, in words
    "studio.records",
    "studio.catalogue.text_models",  # the class that loads a base as a model of text
    "studio.catalogue.quantising",  # what of a base is kept in fewer bits
    "studio.datasets",
    "studio.datasets.rendering",
    "studio.errors",
    "studio.types",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for folder in ("studio", "jobs") for p in sorted((ROOT / folder).rglob("*.py"))}


def imported(name: str) -> set[str]:
    """Our own modules that `name` imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module or "")
    return {module for module in found if module in MODULES}


def level(name: str) -> int:
    prefix = name
    while prefix not in LEVELS:
        prefix = prefix.rpartition(".")[0]
        assert prefix, f"{name} has no level; give it a room in the house"
    return LEVELS[prefix]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    upward = {target for target in imported(name) if level(target) > level(name)}
    assert not upward, f"{name} (level {level(name)}) imports up: {sorted(upward)}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n == "jobs.train" or n.startswith("jobs.trainers")))
def test_the_trainer_imports_only_its_contract(name: str) -> None:
    foreign = {t for t in imported(name) if t not in TRAINER_MAY_IMPORT and not t.startswith("jobs.trainers.")}
    assert not foreign


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_trainer_does_not_import_the_database() -> None:
    assert "sqlalchemy" not in modules_after("import jobs.train")


@pytest.mark.parametrize("heavy", ["torch", "transformers", "peft", "trl", "datasets"])
def test_the_web_module_does_not_import_heavy_libraries(heavy: str) -> None:
    assert heavy not in modules_after("import studio.web")
