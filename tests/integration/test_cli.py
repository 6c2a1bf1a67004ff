"""The command line: one line and an exit code for every outcome, one JSON document with --json, and the loop without a page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import config
from studio import cli
from studio.commands.terminal import open_studio
from studio.settings import Settings
from tests.servers import clean_environment, processes_of

Run = Callable[..., tuple[int, str, str]]
ROWS = '{"prompt": "Say one", "completion": "one"}\n{"prompt": "Say two", "completion": "two"}\n'


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["studio", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "numbers.jsonl"
    file.write_text(ROWS)
    return str(file)


def document(run: Run, *arguments: str) -> Any:
    code, out, _ = run(*arguments, "--json")
    assert code == 0, out
    return json.loads(out)


def test_help_comes_at_once_and_names_every_command() -> None:
    started = time.process_time()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "studio", "--help"], capture_output=True, text=True, check=True)
    for command in ("up", "demo", "doctor", "data", "models", "train", "jobs", "adapters", "chat", "compare"):
        assert f"  {command} " in done.stdout
    heavy = ("torch", "gradio", "fastapi", "sqlalchemy", "pydantic", "psutil", "httpx")
    assert not [name for name in heavy if f" {name}\n" in done.stderr]
    assert time.process_time() - started < 1


def test_keys_and_sessions_are_listed_and_taken_back(run: Run) -> None:
    made = document(run, "keys", "add", "ci", "--scope", "chat", "--days", "7")
    assert made["key"].startswith("studio-") and made["expires_at"] - made["created_at"] == 7 * 24 * 3600
    code, out, _ = run("keys", "list")
    assert code == 0 and "chat" in out and made["key"] not in out
    assert run("keys", "add", "x", "--scope", "all")[0] == run("keys", "add", "x", "--days", "0")[0] == run("sessions", "end")[0] == 1
    assert document(run, "keys", "delete", "ci")["deleted"] is True and document(run, "keys", "list") == []
    studio = open_studio()
    cookies = [studio.sessions.open("", agent="Firefox Linux") for _ in range(3)]
    first, *others = document(run, "sessions", "list")
    assert "Firefox on Linux" in run("sessions", "list")[1] and len(others) == 2
    assert [one["id"] for one in document(run, "sessions", "end", first["id"])] == [first["id"]]
    assert len(document(run, "sessions", "end", "--all")) == 2 and not any(map(studio.sessions.find, cookies))
    assert run("sessions", "end", first["id"])[0] == 1 and run("sessions", "list")[1] == "Nobody is logged in.\n"


def test_the_version_is_that_of_the_installed_package(run: Run) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version") == (0, f"studio {project['version']}\n", "")


def test_the_help_of_train_lists_every_option_of_a_job(run: Run) -> None:
    code, out, _ = run("train", "--help")
    words = " ".join(out.split())
    assert code == 0
    for option in config.options():
        assert option.key in words and " ".join(option.description.split())[:40] in words


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["data", "nothing"], ["data", "list", "--nothing"], ["train"], ["chat", "hi"], ["up", "--port", "x"]]
)
def test_an_unknown_command_or_option_is_exit_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data", "add", "/no/such/file"], "/no/such/file"),
        (["data", "add", "/tmp"], "folder"),
        (["data", "add", "{rows}", "--map", "prompt"], "--map"),
        (["data", "add", "{rows}", "--name", "no name"], "no name"),
        (["data", "show", "nothing"], "nothing"),
        (["data", "delete", "nothing"], "nothing"),
        (["data", "export", "nothing", "--to", "x"], "nothing"),
        (["data", "render", "nothing", "--base-model", "starter"], "nothing"),
        (["models", "add", "/no/such/folder"], "/no/such/folder"),
        (["models", "add", "{rows}"], "is a file"),
        (["models", "add", "hub:no/such"], "hub"),
        (["models", "show", "nothing"], "nothing"),
        (["models", "remove", "starter"], "starter"),
        (["train", "--data", "nothing", "--base-model", "starter"], "nothing"),
        (["train", "--data", "nothing", "--base-model", "startr"], "starter"),
        (["train", "--data", "x", "--base-model", "starter", "--set", "lora.r"], "key=value"),
        (["train", "--data", "x", "--base-model", "starter", "--set", "lora.rank=3"], "lora.r"),
        (["train", "--data", "x", "--base-model", "starter", "--recipe", "qlora"], "qlora-sft"),
        (["jobs", "show", "nothing"], "nothing"),
        (["jobs", "cancel", "nothing"], "nothing"),
        (["adapters", "show", "nothing"], "nothing"),
        (["adapters", "add", "/no/such/folder"], "/no/such/folder"),
        (["chat", "hi", "--base-model", "nothing"], "nothing"),
        (["chat", "hi", "--base-model", "starter", "--adapter", "nothing"], "nothing"),
        (["chat", "hi", "--base-model", "starter", "--temperature", "-1"], "--temperature"),
        (["chat", "hi", "--base-model", "starter", "--json-schema", "/no/such/file"], "/no/such/file"),
        (["compare", "--base-model", "starter"], "--prompts"),
        (["compare", "--base-model", "starter", "--prompts", "/no/such/file"], "/no/such/file"),
    ],
)
def test_what_the_user_must_change_is_exit_1_in_one_line(run: Run, rows: str, arguments: list[str], told: str) -> None:
    filled = [argument.format(rows=rows) for argument in arguments]
    code, out, err = run(*filled, "--json")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "Traceback" not in err and told in err
    error = json.loads(out)["error"]
    assert error["message"] and told in json.dumps(error)
    code, out, _ = run(*filled)
    assert (code, out) == (1, "")


def test_a_file_with_bad_rows_names_the_first_and_the_count(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(ROWS + "{\n[]\n")
    code, out, err = run("data", "add", str(tmp_path / "bad.jsonl"), "--json")
    error = json.loads(out)["error"]
    assert code == 1 and "line 3" in err and error["count"] == 2 and [p["line"] for p in error["problems"]] == [3, 4]
    added = document(run, "data", "add", str(tmp_path / "bad.jsonl"), "--skip-bad")
    assert (added["rows"], added["skipped"]) == (2, 2)


def test_a_value_of_the_environment_that_can_not_be_used_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_PORT", "many")
    code, _, err = run("data", "list")
    assert code == 1 and "STUDIO_PORT" in err


def test_a_disk_that_can_not_be_written_is_one_line(run: Run, settings: Settings) -> None:
    (settings.home / "studio.db").mkdir()
    code, _, err = run("data", "list")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "database" in err and "STUDIO_HOME" in err


def test_data_is_added_listed_shown_exported_and_deleted(run: Run, rows: str, tmp_path: Path) -> None:
    added = document(run, "data", "add", rows)
    assert (added["name"], added["rows"], added["kind"], added["problems"]) == ("numbers", 2, "sft", [])
    assert document(run, "data", "add", rows)["name"] == "numbers-2"
    assert {row["name"] for row in document(run, "data", "list")} == {"numbers", "numbers-2"}
    assert document(run, "data", "show", added["id"])["id"] == added["id"]
    assert document(run, "data", "export", "numbers", "--to", str(tmp_path / "out.jsonl"))["rows"] == 2
    assert (tmp_path / "out.jsonl").read_text().count("\n") == 2
    document(run, "data", "delete", "numbers")
    assert "numbers-2" in run("data", "list")[1]


def test_rendering_takes_a_name_or_a_folder_with_a_tokenizer_only(run: Run, rows: str, shared_data: Path) -> None:
    run("data", "add", rows)
    folder = str(shared_data / "models" / "mistral-v1-tokenizer")
    by_folder = document(run, "data", "render", "numbers", "--base-model", folder, "--rows", "1")
    assert document(run, "models", "add", folder, "--name", "mistral")["loadable"] is False
    assert document(run, "data", "render", "numbers", "--base-model", "mistral", "--rows", "1") == by_folder
    assert any(by_folder["rows"][0]["learned"]) and len(by_folder["rows"]) == 1
    code, _, err = run("train", "--data", "numbers", "--base-model", "mistral")
    assert code == 1 and "Tokenizer only" in err


def test_models_are_added_once_by_name_and_removed(run: Run, stories260k: Path) -> None:
    added = document(run, "models", "add", str(stories260k))
    assert (added["name"], added["parameters"], added["loadable"]) == ("stories260K", 260_032, True)
    assert [model["name"] for model in document(run, "models", "list")] == ["starter", "stories260K"]
    assert run("models", "add", str(stories260k), "--name", "stories260K")[0] == 1
    document(run, "models", "remove", "stories260K")
    assert stories260k.is_dir() and len(document(run, "models", "list")) == 1


def test_without_a_studio_a_job_waits_in_the_queue(run: Run, rows: str, stories260k: Path) -> None:
    run("data", "add", rows)
    code, out, err = run("train", "--data", "numbers", "--base-model", str(stories260k), "--set", "max_steps=2", "--name", "one", "--json")
    job = json.loads(out)
    assert code == 0 and job["status"] == "QUEUED" and "studio up" in err
    assert job["progress"] == {"step": None, "max_steps": None, "eta_s": None}
    assert run("train", "--data", "numbers", "--base-model", str(stories260k), "--name", "one")[0] == 1
    assert document(run, "jobs", "list")[0]["id"] == job["id"] and document(run, "jobs", "metrics", "one") == []
    assert document(run, "jobs", "cancel", "one")["status"] == "CANCELLED"


def test_who_waits_for_a_job_that_is_cancelled_leaves_with_3(run: Run, settings: Settings, rows: str, stories260k: Path) -> None:
    run("data", "add", rows)
    command = [sys.executable, "-m", "studio", "train", "--data", "numbers", "--base-model", str(stories260k)]
    command += ["--set", "max_steps=100000", "--recipe", "lora-sft", "--name", "long", "--wait", "--json"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(settings.home))
    try:
        while not any(job["status"] == "RUNNING" for job in document(run, "jobs", "list")):
            assert waiting.poll() is None
            time.sleep(0.3)
        started = psutil.Process(waiting.pid).children(recursive=True)
        assert any("jobs.worker" in process.cmdline() for process in started)
        document(run, "jobs", "cancel", "long")
        out, err = waiting.communicate(timeout=120)
    finally:
        waiting.kill()
        waiting.wait()
    assert waiting.returncode == 3 and json.loads(out)["status"] == "CANCELLED" and "cancelled" in err
    assert not [process for process in started if process.is_running()]


def test_chat_starts_an_engine_of_its_own_and_leaves_none(settings: Settings, stories260k: Path) -> None:
    command = [sys.executable, "-m", "studio", "chat", "Hello", "--base-model", str(stories260k), "--adapter", "base", "--json"]
    command += ["--max-new-tokens", "4", "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(settings.home), timeout=1200)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert [answer["contestant"] for answer in answers] == ["base"] and answers[0]["completion_tokens"] <= 4
    assert not processes_of(settings.home)
