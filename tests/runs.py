"""Small run directories and jobs for tests: the starter, a few rows, a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import config, recipes
from jobs.objectives import RowForm
from jobs.rundir import RunDir, write_json
from studio.db import lifecycle, migrations
from studio.db.models import JobRow
from studio.db.session import Database
from studio.settings import STATIC, Settings

STARTER = STATIC / "starter"
WORDS = ["cat", "dog", "sun", "moon", "tree", "fish", "bird", "frog", "star", "ball"]
# everything that could make a resumed run differ: dropout, accumulation, a schedule, evaluations
SMALL = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "lora.r": 4,
    "lora.lora_dropout": 0.1,
    "save_steps": 2,
    "eval_steps": 4,
}


def make_run(path: Path, *, rows: int = 24, recipe: str = "qlora-sft", model: Path = STARTER, **options: Any) -> RunDir:
    """A run directory as JobService writes it: 12 steps by default."""
    run = RunDir(path)
    run.path.mkdir(parents=True)
    values = {**SMALL, "base_model": "starter", "model_name_or_path": str(model), **{k.replace("__", "."): v for k, v in options.items()}}
    built = config.build(recipes.get(recipe).options, values)
    write_json(run.config, built.model_dump(mode="json"))
    kind = (built.objective_entry.rows, built.objective_entry.trains_on == ("text",))
    run.train.write_text("".join(_row(number, *kind) for number in range(rows)), encoding="utf-8")
    run.eval.write_text("".join(_row(number, *kind) for number in range(rows, rows + 4)), encoding="utf-8")
    return run


def _row(number: int, form: RowForm, is_text: bool) -> str:
    """A row that the objective learns from."""
    first, second = WORDS[number % 10], WORDS[(number * 7 + 3) % 10]
    answer = f"The {first} saw the {second}." * (1 + number % 3)
    prompt = [{"role": "user", "content": f"Who saw the {second}? {number}"}]
    good, bad = [{"role": "assistant", "content": answer}], [{"role": "assistant", "content": f"No {first}."}]
    rows: dict[RowForm, Any] = {
        RowForm.IMITATION: {"messages": [*prompt, *good]},
        RowForm.PAIRED: {"prompt": prompt, "chosen": good, "rejected": bad},
        RowForm.MARKED: {"prompt": prompt, "completion": good if number % 2 else bad, "label": bool(number % 2)},
    }
    if is_text:
        return json.dumps({"text": f"{answer} {number}"}) + "\n"
    return json.dumps(rows[form]) + "\n"


def open_store(settings: Settings) -> Database:
    db = Database(settings.db_url)
    migrations.migrate(db)
    return db


def submit(db: Database, run: RunDir, name: str = "first", **values: Any) -> str:
    """Queue the run as a job; its ID."""
    options = json.loads(run.config.read_text(encoding="utf-8"))
    with db.write() as session:
        return lifecycle.submit(
            session, JobRow(kind="train", name=name, config=options, run_dir=str(run.path), base_model="starter", **values)
        ).id
