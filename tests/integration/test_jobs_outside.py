"""Jobs from outside: the commands and the routes answer with the shapes that are promised, and refuse in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import httpx
import pytest

from studio import cli
from studio.settings import Settings
from tests.servers import web

Run = Callable[..., tuple[int, str, str]]
ROWS = "".join(json.dumps({"prompt": f"Say {n}", "completion": f"number {n}"}) + "\n" for n in range(20))


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process: (exit code, stdout, stderr). The dataset `tiny` and the job `first` are there."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["studio", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    (tmp_path / "tiny.jsonl").write_text(ROWS)
    assert call("data", "add", str(tmp_path / "tiny.jsonl"))[0] == 0
    assert call("train", "--data", "tiny", "--base-model", "starter", "--set", "max_steps=2", "--name", "first")[0] == 0
    return call


def document(run: Run, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_commands_of_the_queue(run: Run) -> None:
    second = document(run, "jobs", "clone", "first", "--set", "lora.r=4", "--name", "second")
    assert (second["status"], second["config"]["lora"]["r"]) == ("QUEUED", 4)
    assert document(run, "jobs", "move", "second", "--before", "first")["priority"] == 0
    assert [job["name"] for job in document(run, "jobs", "list")] == ["second", "first"]
    assert document(run, "jobs", "move", "first", "--priority", "2")["priority"] == 2
    assert [job["name"] for job in document(run, "jobs", "list")] == ["first", "second"]
    assert document(run, "jobs", "pause", "first")["status"] == "PAUSED"
    assert document(run, "jobs", "resume", "first")["status"] == "QUEUED"
    assert document(run, "jobs", "pause")["paused"] is True
    code, out, err = run("jobs", "list")
    assert code == 0 and "queue is paused" in err and "queue is paused" not in out
    assert document(run, "jobs", "resume")["paused"] is False
    assert "paused" not in run("jobs", "list")[2]
    document(run, "jobs", "cancel", "first")
    assert document(run, "jobs", "retry", "first")["status"] == "QUEUED"


def test_commands_of_the_history(run: Run) -> None:
    document(run, "jobs", "clone", "first", "--set", "seed=7")
    assert document(run, "jobs", "tag", "first", "good", "old")["tags"] == ["good", "old"]
    assert document(run, "jobs", "tag", "first", "--remove", "old")["tags"] == ["good"]
    assert document(run, "jobs", "note", "first", "looks right")["notes"] == "looks right"
    assert [job["name"] for job in document(run, "jobs", "list", "--search", "right good")] == ["first"]
    assert document(run, "jobs", "compare", "first", "first-2")["differences"] == {"seed": [42, 7]}
    assert "seed" in run("jobs", "compare", "first", "first-2")[1]
    compile(run("jobs", "script", "first")[1], "first.py", "exec")


def test_a_sweep_from_the_command_line(run: Run) -> None:
    sweep = document(run, "sweep", "--data", "tiny", "--base-model", "starter", "--grid", "lora.r=[4, 8]", "--name", "grid")
    assert (sweep["kind"], [child["options"] for child in sweep["children"]]) == ("sweep", [{"lora.r": 4}, {"lora.r": 8}])
    assert document(run, "jobs", "cancel", "grid")["status"] == "CANCELLED"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs", "pause", "nothing"], "nothing"),
        (["jobs", "resume", "firs"], "Did you mean first?"),
        (["jobs", "retry", "first"], "has not failed"),
        (["jobs", "retry", "first", "--fix"], "No change of options"),
        (["jobs", "move", "first"], "priority"),
        (["jobs", "move", "first", "--before", "no"], "no"),
        (["jobs", "clone", "first", "--set", "lora.rank=3"], "lora.r"),
        (["jobs", "clone", "first", "--name", "first"], "taken"),
        (["jobs", "compare", "first"], "two"),
        (["jobs", "bundle", "first", "--to", "x.zip"], "no training that has succeeded"),
        (["jobs", "rerun", "/nowhere.zip"], "not there"),
        (["jobs", "verify", "/"], "a folder"),
        (["sweep", "--data", "tiny", "--base-model", "starter", "--grid", "seed=3"], "no list"),
        (["restore", "/nowhere.zip"], "not there"),
        (["backup", "--to", "/nowhere/x.zip"], "no folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments, "--json")
    assert code == 1 and words in err and err.count("\n") == 1
    assert set(json.loads(out)["error"]) >= {"message", "fix"}


def test_a_backup_comes_back_unless_a_studio_runs(run: Run, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "studio.zip"
    made = document(run, "backup", "--to", str(file))
    assert made["bytes"] == file.stat().st_size
    document(run, "jobs", "note", "first", "written after the backup")
    with filelock.FileLock(settings.lock_path):
        code, _, err = run("restore", str(file))
        assert code == 1 and "is running" in err
    done = document(run, "restore", str(file))
    assert done["models"] == [] and Path(done["before"]).is_dir()
    assert document(run, "jobs", "show", "first")["notes"] == ""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with web(tmp_path_factory.mktemp("jobs") / "home") as server, httpx.Client(base_url=server.url, trust_env=False, timeout=120) as made:
        added = made.post("/api/datasets", files={"file": ("tiny.jsonl", ROWS.encode())})
        assert added.status_code == 201
        yield made


def test_routes_of_the_queue(client: httpx.Client) -> None:
    body = {"data": "tiny", "base_model": "starter", "options": {"max_steps": 2}}
    for name in ("one", "two"):
        assert client.post("/api/jobs", json={**body, "name": name}).status_code == 201
    assert client.post("/api/queue/pause").json()["paused"] is True
    assert client.get("/api/queue").json() == {"running": [], "queued": 2, "paused": True, "queue_eta_s": None}
    assert client.get("/api/status").json()["paused"] is True
    assert client.post("/api/queue/resume").json()["paused"] is False
    assert client.post("/api/jobs/two/move", json={"before": "one"}).status_code == 200
    assert [job["name"] for job in client.get("/api/jobs").json()] == ["two", "one"]
    assert client.post("/api/jobs/one/pause").json()["status"] == "PAUSED"
    assert client.post("/api/jobs/one/resume").json()["status"] == "QUEUED"
    client.post("/api/jobs/one/cancel")
    assert client.post("/api/jobs/one/retry").json()["status"] == "QUEUED"
    cloned = client.post("/api/jobs/one/clone", json={"options": {"seed": 7}, "name": "three"})
    assert (cloned.status_code, cloned.json()["config"]["seed"]) == (201, 7)
    compared = client.get("/api/jobs/compare", params={"job": ["one", "three"]}).json()
    assert compared["differences"] == {"seed": [42, 7]} and set(compared["curves"]) == set(compared["results"])
    assert client.post("/api/jobs/one/tags", json={"add": ["good"]}).json()["tags"] == ["good"]
    assert client.post("/api/jobs/one/note", json={"text": "fine"}).json()["notes"] == "fine"
    assert [job["name"] for job in client.get("/api/jobs", params={"search": "fine"}).json()] == ["one"]
    assert "SFTTrainer" in client.get("/api/jobs/one/script").json()["script"]
    grid = client.post("/api/sweeps", json={**body, "options": {}, "grid": {"seed": [1, 2]}, "name": "grid"})
    assert (grid.status_code, len(grid.json()["children"])) == (201, 2)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/jobs/nothing/pause", None, 404),
        ("POST", "/api/jobs/one/retry", {"fix": True}, 400),
        ("POST", "/api/jobs/one/move", {"place": 1}, 422),
        ("POST", "/api/jobs/one/move", {"priority": 10**9}, 422),
        ("POST", "/api/jobs/one/clone", {"options": {"base_model": "/etc"}}, 404),
        ("POST", "/api/jobs/one/clone", {"options": {"chat_template": "/etc/x.jinja"}}, 400),
        ("POST", "/api/sweeps", {"data": "tiny", "grid": {"chat_template": ["/etc/x.jinja"]}}, 400),
        ("POST", "/api/sweeps", {"data": "tiny", "grid": {"seed": [1] * 99}}, 400),
        ("GET", "/api/jobs/one/bundle", None, 400),
        ("GET", "/api/jobs/compare?job=one", None, 400),
    ],
)
def test_routes_refuse_in_our_shape(client: httpx.Client, method: str, path: str, body: Any, status: int) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code in (status, 400 if status == 422 else status), answer.text
    assert set(answer.json()["error"]) >= {"message", "fix"}


def test_a_bundle_that_is_none_is_refused_over_http(client: httpx.Client) -> None:
    for path in ("/api/jobs/rerun", "/api/jobs/verify"):
        answer = client.post(path, files={"file": ("x.zip", b"rubbish")})
        assert answer.status_code == 400 and "no zip file" in answer.json()["error"]["message"]
