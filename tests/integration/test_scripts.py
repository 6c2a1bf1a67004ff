"""`studio jobs script`: what it writes needs transformers, trl, peft and datasets alone, and makes the job's adapter to the bit."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig, build
from jobs.rundir import RunDir
from studio.errors import NotFoundError
from studio.services.scripts import ScriptWriter
from tests.runs import make_run

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"transformers", "trl", "peft", "datasets", "torch"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "learning_rate": 2e-4},
    "LoRA": {},
    "DoRA": {"lora.use_dora": True},
    "QLoRA": {"quantization.load_in_4bit": True},
}
RECIPES = {"sft": "lora-sft", "dpo": "dpo", "kto": "kto"}
SHORT = {
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 3,
    "sample_answers": 0,
    "measure_drift": False,
    "quantization.load_in_4bit": False,
}
ALWAYS = ("sft LoRA", "sft QLoRA", "dpo DoRA")  # the others where all cells are tried
CELLS = {
    f"{objective} {method}": {"recipe": recipe, "options": {**SHORT, **options}}
    for objective, recipe in RECIPES.items()
    for method, options in METHODS.items()
}
CELLS["sft long context"] = {"recipe": "lora-sft", "options": {**SHORT, "rope.rope_type": "yarn", "rope.factor": 4.0}}
# what only the studio has, by the words of the script's first lines
OF_THE_STUDIO: dict[str, tuple[dict[str, Any], str]] = {
    "balanced": (
        {"recipe": "lora-sft", "options": {**SHORT, "train_sampling_strategy": "batch_rebalance"}},
        "balanced steps",
    ),
    "packed": (
        {"recipe": "lora-sft", "options": {**SHORT, "packing": True, "max_length": 128}},
        "packed rows",
    ),
    "orpo": (
        {"recipe": "orpo", "options": {**SHORT, "quantization.load_in_4bit": True}},
        "the start of orpo",
    ),
    "bottleneck": ({"recipe": "bottleneck-sft", "options": SHORT}, "bottleneck adapters"),
}


def is_tried(cell: str) -> bool:
    return cell in ALWAYS or os.environ.get("STUDIO_ALL_CELLS") == "1"


TRIED = {name: cell for name, cell in CELLS.items() if is_tried(name)}


@dataclass
class Outcome:
    """Of each cell: the job's adapter, the script's, and the script itself."""

    jobs: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def writer(name: str, run: RunDir) -> ScriptWriter:
    return ScriptWriter.of(name, JobConfig.model_validate_json(run.config.read_text(encoding="utf-8")), run)


def train_both(folder: Path, cases: dict[str, dict[str, Any]], *flags: str) -> Outcome:
    """All jobs in one process, all scripts in another, elsewhere."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    asked = json.dumps([{"name": name.replace(" ", "-"), **case} for name, case in cases.items()])
    command = [sys.executable, "-m", "tests.trainings", str(folder / "runs")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    found, trained = Outcome(), json.loads(done.stdout)
    arguments = []
    for name in cases:
        stem = name.replace(" ", "-")
        assert "sha256" in trained[stem], trained[stem]
        file = folder / f"{stem}.py"
        assert set(writer(name, RunDir(folder / "runs" / stem)).write(file)) < {path.name for path in folder.iterdir()}
        found.jobs[name], found.texts[name] = trained[stem]["sha256"], file.read_text(encoding="utf-8")
        arguments += [str(file), str(folder / "adapters" / stem)]
    command = [sys.executable, str(ROOT / "tests" / "scripted.py"), *flags, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    found.scripts = {name: made[str(folder / f"{name.replace(' ', '-')}.py")] for name in cases}
    return found


def imported(text: str) -> set[str]:
    """Packages, without Python's own."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found - sys.stdlib_module_names


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train_both(tmp_path_factory.mktemp("scripts"), TRIED)


@pytest.mark.parametrize("cell", TRIED)
def test_a_script_makes_the_adapter_of_its_job_without_the_studio(outcome: Outcome, cell: str) -> None:
    # red when a row, an option, the order of rows, the start or the end differs from the job's
    assert outcome.scripts[cell] == outcome.jobs[cell]
    assert imported(outcome.texts[cell]) <= LIBRARIES
    assert "nothing of the studio" in (ast.get_docstring(ast.parse(outcome.texts[cell])) or "")


def test_cells_are_told_apart(outcome: Outcome) -> None:
    assert len(set(outcome.jobs.values())) == len(TRIED)


@pytest.fixture(scope="module")
def with_studio(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    cases = {name: case for name, (case, _) in OF_THE_STUDIO.items()}
    return train_both(tmp_path_factory.mktemp("of-the-studio"), cases, "--with-studio")


@pytest.mark.long
@pytest.mark.parametrize("name", OF_THE_STUDIO)
def test_what_only_the_studio_has_is_named_in_the_first_lines_and_imported(with_studio: Outcome, name: str) -> None:
    head = " ".join((ast.get_docstring(ast.parse(with_studio.texts[name])) or "").split())
    assert "Needs Adapter Studio" in head and OF_THE_STUDIO[name][1] in head
    assert imported(with_studio.texts[name]) <= LIBRARIES | {"jobs"} and "jobs" in imported(with_studio.texts[name])
    assert with_studio.scripts[name] == with_studio.jobs[name]


def test_rows_are_written_as_they_are_learned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows=3, recipe="lora-sft", max_length=16)
    file = tmp_path / 'mine".py'
    assert writer("first", run).write(file) == [
        "mine-.train.jsonl",
        "mine-.eval.jsonl",
        "mine-.chat_template.jinja",
    ]
    rows = [json.loads(line) for line in (tmp_path / "mine-.train.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(len(row["input_ids"]) == len(row["labels"]) == 16 for row in rows)
    assert all(label in (-100, token) for row in rows for token, label in zip(row["input_ids"], row["labels"], strict=True))
    assert 0 < sum(label != -100 for label in rows[0]["labels"]) < 16


@pytest.mark.parametrize(
    ("options", "order"),
    [({"gradient_accumulation_steps": 1}, "random"), ({"gradient_accumulation_steps": 2}, "batch_rebalance")],
)
def test_the_order_that_the_rows_decide_is_written_down(tmp_path: Path, options: dict[str, Any], order: str) -> None:
    run = make_run(tmp_path / "run", rows=20, recipe="lora-sft", **options)
    lines = [json.dumps({"prompt": "Say", "completion": "so " * (60 if number % 5 == 0 else 1)}) for number in range(20)]
    run.train.write_text("\n".join(lines), encoding="utf-8")
    assert f'"train_sampling_strategy": "{order}"' in writer("first", run).text("first")


def test_a_run_whose_rows_are_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="rows of first are gone"):
        ScriptWriter.of("first", build({"base_model": "starter"}), RunDir(tmp_path))


@pytest.mark.parametrize(("device", "said"), [("cpu", ""), ("auto", "Training on the processor"), ("cuda", "set DEVICE to cpu")])
def test_a_script_moves_to_the_processor_only_where_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, said: str
) -> None:
    import platform

    import torch

    text = writer("first", make_run(tmp_path / "run", rows=3, recipe="lora-sft", device=device)).text("first")
    chosen = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "device_and_type")
    names: dict[str, Any] = {"torch": torch, "platform": platform, "DEVICE": device, "DTYPE": "auto"}
    exec(compile(ast.Module([chosen], []), "script", "exec"), names)
    if device == "cuda":
        with pytest.raises(SystemExit, match=said):
            names["device_and_type"]()
        return
    assert names["device_and_type"]()[0] == "cpu" and said in capsys.readouterr().out
    assert f'DEVICE = "{device}"' in text
