"""The dataset service on a real database, real files, a real tokenizer and real child processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.rundir import RunDir
from studio.catalogue.models import ModelRef
from studio.datasets.rendering import Renderer
from studio.db import migrations
from studio.db.models import DatasetRow, JobRow
from studio.db.session import Database, database
from studio.errors import DatasetError, NotFoundError, StudioError, TakenError
from studio.records import Dataset, KnownMapping, RunRows
from studio.services.datasets import DatasetService
from studio.settings import Settings

KEYS = {"id", "name", "kind", "format", "rows", "skipped", "mapping", "problems"}


class Folders:
    """Models named by their folder."""

    def refuse_file(self, chat_template: object) -> None:
        """As at a terminal."""

    def resolve(self, name: str, allow_path: bool = False) -> ModelRef:
        return ModelRef(name, Path(name))


@pytest.fixture
def db(settings: Settings) -> Database:
    opened = database(settings.db_url, settings.sqlite_journal)
    migrations.migrate(opened)
    return opened


@pytest.fixture
def service(settings: Settings, db: Database) -> DatasetService:
    return DatasetService(settings, db, Folders())


@pytest.fixture
def instructions(shared_data: Path) -> Path:
    return shared_data / "data" / "instructions"


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"question": f"q{n}", "answer": f"a{n}"} for n in range(count)]


def folders_of(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.datasets.iterdir())


def test_what_is_added_is_shown_listed_and_read_back(service: DatasetService, tmp_path: Path) -> None:
    added = service.add(write(tmp_path, "My rows!.jsonl", pairs(30)))
    assert Dataset.model_fields.keys() >= KEYS
    assert (added.name, added.kind, added.format, added.rows) == ("My-rows", "sft", "question-answer", 30)
    assert (added.skipped, added.problems, added.mapping) == (0, [], {"question": "question", "answer": "answer"})
    assert service.show("My-rows") == service.show(added.id) == added
    assert service.list() == [added]
    rows = service.rows(added.id, offset=28, limit=5)
    assert [row.messages[0].content for row in rows] == ["q28", "q29"]
    assert [row.as_json() for row in rows] == [json.loads(line) for line in service.path(added.id).read_text().splitlines()[28:]]
    assert len(list(service.examples(added.id))) == 30
    assert len(service.path(added.id).read_text().splitlines()) == 30


def test_real_files_of_every_kind(service: DatasetService, instructions: Path) -> None:
    kinds = {path.name: (added.kind, added.rows) for path in instructions.iterdir() for added in [service.add(path)]}
    assert kinds["identity.json"] == ("sft", 91)
    assert kinds["fastchat_dummy_conversation.json"] == ("sft", 500)
    assert kinds["dpo_en_demo.json.gz"] == ("preference", 300)
    assert kinds["gsm8k_train.jsonl.gz"] == ("sft", 7473)
    assert all(not dataset.problems and not dataset.skipped for dataset in service.list())


def test_problems_are_raised_once_and_nothing_is_kept(service: DatasetService, settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [*pairs(3), *["nope"] * 150, *pairs(2)])
    with pytest.raises(DatasetError) as caught:
        service.add(path)
    error = caught.value
    assert error.message.startswith("a.jsonl, line 4: Not valid JSON") and "150" in error.message
    assert error.details["count"] == 150 and len(error.details["problems"]) == 100
    assert error.details["problems"][0].keys() == {"line", "problem", "fix"}
    assert service.list() == [] and folders_of(settings) == []


def test_a_file_that_fits_no_format_has_the_same_shape_of_error(service: DatasetService, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        service.add(write(tmp_path, "a.jsonl", [{"foo": 1, "bar": 2}]))
    problems = caught.value.as_json()["problems"]
    assert caught.value.details["count"] == 1 and problems[0]["line"] == 1 and "foo, bar" in problems[0]["problem"] and problems[0]["fix"]


def test_bad_rows_can_be_skipped(service: DatasetService, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [*pairs(2), "nope", {"question": "x"}, *pairs(1)])
    added = service.add(path, skip_bad=True)
    assert (added.rows, added.skipped, [problem.line for problem in added.problems]) == (3, 2, [3, 4])
    with pytest.raises(DatasetError, match="line 1"):
        service.add(write(tmp_path, "b.jsonl", ["nope"]), skip_bad=True)


def test_names(service: DatasetService, tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", pairs(1))
    assert [service.add(path).name for _ in range(3)] == ["rows", "rows-2", "rows-3"]
    assert service.add(path, filename="../../etc/Übung 1.json.gz").name.endswith("bung-1")
    with pytest.raises(TakenError, match="rows"):
        service.add(tmp_path / "not even read.jsonl", name="rows")
    for name in ("base", "-x", "a b", "x" * 65, "../x"):
        with pytest.raises(StudioError):
            service.add(path, name=name)
    with pytest.raises(NotFoundError, match="Did you mean rows"):
        service.show("rowss")


def test_two_at_once_get_two_names(service: DatasetService, tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", pairs(200))
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(service.add(path).name)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == ["rows", *(f"rows-{n}" for n in range(2, 7))]


def test_inspecting_keeps_nothing(service: DatasetService, settings: Settings, tmp_path: Path) -> None:
    found = service.inspect(write(tmp_path, "upload.tmp", [*pairs(8), "nope"]), filename="mine.jsonl")
    assert (found.format, found.kind, found.rows, found.problem_count) == ("question-answer", "sft", 8, 1)
    assert found.columns == ["question", "answer"] and found.roles[:3] == ["question", "answer", "context"]
    assert len(found.preview) == 5 and "alpaca" in found.formats
    assert service.inspect_text("question,answer\nx,y\n").format == "question-answer"
    assert folders_of(settings) == [] and not list(settings.cache.iterdir())


def test_pasted_text(service: DatasetService) -> None:
    assert service.add_text('{"prompt": "a", "completion": "b"}', name="mine").name == "mine"
    assert service.add_text("One thought.\n\nAnother.").kind == "text"
    with pytest.raises(DatasetError, match="is empty"):
        service.add_text("  ")
    with pytest.raises(DatasetError, match="surrogate"):
        service.add_text("half \ud800")


def test_deleting_leaves_jobs_and_their_files_alone(service: DatasetService, settings: Settings, db: Database, tmp_path: Path) -> None:
    added = service.add(write(tmp_path, "rows.jsonl", pairs(20)))
    run = RunDir(settings.runs / "r")
    service.write_run_files(added.id, run, test_size=0.1, seed=1)
    with db.write() as session:
        session.add(JobRow(id="j", kind="train", name="j", dataset_id=added.id, run_dir=str(run.path)))
    assert service.delete("rows") == added
    with db.read() as session:
        assert session.scalars(select(DatasetRow)).all() == []
        assert session.get_one(JobRow, "j").dataset_id is None
    assert folders_of(settings) == [] and run.train.is_file()
    with pytest.raises(NotFoundError):
        service.delete("rows")


def test_export(service: DatasetService, tmp_path: Path) -> None:
    added = service.add(write(tmp_path, "rows.jsonl", pairs(3)))
    target = tmp_path / "out.jsonl"
    assert service.export("rows", target).bytes == target.stat().st_size
    again = service.add(target)
    assert (again.rows, again.sha256) == (3, added.sha256)
    for place in (tmp_path, tmp_path / "none" / "out.jsonl"):
        with pytest.raises(StudioError):
            service.export("rows", place)


def test_run_files_hold_the_split(service: DatasetService, tmp_path: Path) -> None:
    added = service.add(write(tmp_path, "rows.jsonl", [*pairs(50), *pairs(50)]))
    first, second = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    assert service.write_run_files(added.id, first, test_size=0.2, seed=3) == RunRows(train_rows=80, eval_rows=20)
    service.write_run_files(added.id, second, test_size=0.2, seed=3)
    assert first.train.read_bytes() == second.train.read_bytes() and first.eval.read_bytes() == second.eval.read_bytes()
    train, held_out = set(first.train.read_text().splitlines()), set(first.eval.read_text().splitlines())
    assert len(train | held_out) == 50 and not train & held_out


def test_rendering_shows_tokens_and_counts_what_is_cut(service: DatasetService, shared_data: Path, instructions: Path) -> None:
    folder = str(shared_data / "models" / "mistral-v1-tokenizer")
    service.add(instructions / "gsm8k_test.jsonl", name="gsm")
    found = service.render("gsm", base_model=folder, rows=2, max_length=100)
    assert len(found.rows) == 2 and found.p50 < found.p95 < found.p99
    assert found.share_truncated > 0.9 and 0 < found.share_without_learned_tokens < 0.9
    row = service.render("gsm", base_model=folder, rows=1).rows[0]
    assert len(row.ids) == len(row.learned) == len(row.tokens)
    assert "".join(row.tokens) == row.text and not row.truncated
    answer = "".join(token for token, own in zip(row.tokens, row.learned, strict=True) if own)
    assert answer.strip().startswith("Janet sells 16 - 3 - 4") and answer.endswith("#### 18</s>")


def test_a_page_of_rows_shows_what_is_cut_off(service: DatasetService, shared_data: Path, instructions: Path) -> None:
    folder = str(shared_data / "models" / "mistral-v1-tokenizer")
    service.add(instructions / "gsm8k_test.jsonl", name="gsm")
    whole = service.render("gsm", base_model=folder, rows=2, offset=3, max_length=4096)
    found = service.render("gsm", base_model=folder, rows=2, offset=3, max_length=60)
    assert [row.row for row in found.rows] == [4, 5] and found.total == 1319
    for row, uncut in zip(found.rows, whole.rows, strict=True):
        assert uncut.cut == [] and len(row.tokens) == len(row.ids) == 60
        assert row.tokens + row.cut == uncut.tokens and row.learned + row.cut_learned == uncut.learned
        assert row.length == uncut.length == 60 + len(row.cut)
    assert sum(part.count for part in found.histogram) == found.checked and found.max >= found.p99


def test_parity_compares_rows_from_everywhere(service: DatasetService, shared_data: Path, tmp_path: Path) -> None:
    folder = str(shared_data / "models" / "mistral-v1-tokenizer")
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}" + " " * (n == 36)} for n in range(40)]
    service.add(write(tmp_path, "rows.jsonl", rows))
    found = service.parity("rows", base_model=folder, rows=10)
    assert (found.rows, found.identical, found.same, found.template_name) == (10, 9, False, "model")
    assert found.first_difference.row == 37 and "white space" in found.first_difference.reason
    assert service.parity("rows", base_model=folder, rows=10, chat_template="chatml").same


def test_templates_come_with_a_preview(service: DatasetService, shared_data: Path) -> None:
    chat = service.templates(str(shared_data / "models" / "mistral-v1-tokenizer"))
    base = service.templates(str(shared_data / "models" / "stories260K"))
    assert [each.name for each in chat] == ["model", "chatml", "alpaca", "alpaca-end", "plain"]
    assert [(each.name, each.choice) for each in base] == [
        ("alpaca", ""),
        *((name, name) for name in ("chatml", "alpaca-end", "plain")),
    ]
    for each in chat + base:
        preview = each.preview
        learned = "".join(token for token, own in zip(preview.tokens, preview.learned, strict=True) if own)
        assert "Lima" in learned and "Peru" in preview.text and "Peru" not in learned
    assert all("### End" in each.stop_strings for each in base if each.name == "alpaca-end")


def test_a_mapping_is_remembered_for_the_same_columns(service: DatasetService, tmp_path: Path) -> None:
    mapping = {"prompt": "wort", "completion": "sinn"}
    service.add(write(tmp_path, "rows.jsonl", [{"wort": "Haus", "sinn": "house"}]), format="prompt-completion", mapping=mapping)
    assert service.remembered(["sinn", "wort"]) == KnownMapping(name="rows", format="prompt-completion", mapping=mapping)
    assert service.remembered(["wort"]) is None and service.remembered([]) is None
    with pytest.raises(DatasetError, match="fit no known format") as caught:
        service.inspect_text("a1,b1\nx,y\n")
    assert caught.value.details["columns"] == ["a1", "b1"]


def test_rows_that_a_template_refuses_are_counted_and_named(service: DatasetService, shared_data: Path, tmp_path: Path) -> None:
    renderer = Renderer.load(shared_data / "models" / "mistral-v1-tokenizer")
    wrong = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    right = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    added = service.add(write(tmp_path, "rows.jsonl", [right, wrong, right, right]))
    found = service.check_for_training(added.id, renderer, 1024)
    assert (found.rows, found.checked, found.share_without_learned_tokens) == (4, 4, 0.25)
    assert [problem.line for problem in found.problems] == [2] and "alternate" in found.problems[0].problem
    assert service.check_for_training(added.id, renderer, 1024, sample=2).checked == 2


def test_a_hub_name_without_network_is_one_line(service: DatasetService, settings: Settings) -> None:
    with pytest.raises(DatasetError, match="hub:nobody/nothing could not be read") as caught:
        service.add("hub:nobody/nothing")
    assert "\n" not in str(caught.value) and "network" in caught.value.fix
    assert folders_of(settings) == [] and not list(settings.cache.iterdir())


@pytest.mark.parametrize("name", ["", "../rows", "/etc", "-x", "a/b/c"])
def test_a_hub_name_is_never_a_path(service: DatasetService, name: str) -> None:
    with pytest.raises(DatasetError, match="names no hub dataset"):
        service.add(f"hub:{name}")


def test_the_hub_child_writes_rows(tmp_path: Path) -> None:
    # a folder is the one thing that `datasets` loads without a network
    write(tmp_path, "train.jsonl", pairs(5))
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "studio.datasets.hub", str(tmp_path), "", "", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == pairs(5)


def test_a_full_disk_is_one_line(service: DatasetService, settings: Settings, tmp_path: Path) -> None:
    if not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("A small disk needs root and unshare.")
    path = write(tmp_path, "rows.jsonl", pairs(100_000))
    code = (
        "import sys; from studio import settings as s; from studio.db.session import database; from studio.db import migrations\n"
        "from studio.services.datasets import DatasetService; from studio.errors import StudioError\n"
        "at = s.load(); db = database(at.db_url, at.sqlite_journal); migrations.migrate(db)\n"
        f"try: DatasetService(at, db, None).add({str(path)!r})\n"
        "except StudioError as exc: print(exc)\n"
        "print(sum(1 for _ in at.datasets.iterdir()))\n"
    )
    mount = f'mount -t tmpfs -o size=1m none {settings.datasets} && exec "$0" -c "$1"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount, sys.executable, code], capture_output=True, text=True, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("This machine lets nobody mount.")
    assert done.stdout.startswith("There is no space left on the disk"), done.stderr
    assert done.stdout.splitlines()[-1] == "0"


def test_the_service_imports_nothing_heavy(service: DatasetService, settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", pairs(2))
    code = (
        "import sys; from studio import settings as s; from studio.db.session import database; from studio.db import migrations\n"
        "from studio.services.datasets import DatasetService\n"
        "at = s.load(); db = database(at.db_url, at.sqlite_journal); migrations.migrate(db)\n"
        f"DatasetService(at, db, None).add({str(path)!r})\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'trl', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
