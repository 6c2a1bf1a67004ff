"""A file value that a program forges opens no file of this machine, and Python files of the current folder never run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import Server, clean_environment, free_port, wait_for, web

SECRET = "-----a private key of the person who runs the studio-----"
FILE_INPUTS = ("file", "uploadbutton", "dropdown", "multimodaltextbox", "radio", "textbox")
PER_KIND = 6  # handlers tried for each kind of input


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with web(tmp_path_factory.mktemp("files") / "home") as started:
        yield started


def forged(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": "rows.jsonl", "size": 60, "meta": {"_type": "gradio.FileData"}}


def handlers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Some handlers for each kind of input through which a file value could come."""
    kinds = {component["id"]: component["type"] for component in config["components"]}
    chosen = {}
    for kind in FILE_INPUTS:
        taking = [d for d in config["dependencies"] if d["backend_fn"] and any(kinds.get(i) == kind for i in d["inputs"])]
        chosen.update({d["id"]: d for d in taking[:PER_KIND]})
    assert len(chosen) > PER_KIND
    return list(chosen.values())


def replies(client: httpx.Client, dependency: dict[str, Any], value: Any) -> str:
    """Everything that the page says after this call, through the queue and directly."""
    session = f"forged{dependency['id']}"
    body = {"data": [value] * len(dependency["inputs"]), "fn_index": dependency["id"], "session_hash": session, "event_data": None}
    said = [client.post("/gradio_api/run/predict", json=body).text]
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code == 200:
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                said.append(line)
                if '"close_stream"' in line or '"process_completed"' in line:
                    break
    return "\n".join(said)


def test_a_forged_file_value_opens_nothing(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519.jsonl"
    secret.write_text(json.dumps({"prompt": SECRET, "completion": SECRET}) + "\n")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        client.get("/")
        for dependency in handlers(client.get("/config").json()):
            said = replies(client, dependency, forged(secret))
            assert SECRET not in said, dependency["api_name"]
        assert not [file for file in (server.home / "cache").rglob("*") if file.is_file() and SECRET in file.read_text(errors="replace")]
        assert client.get(f"/gradio_api/file={secret}").status_code in (403, 404)


def test_an_endless_file_is_not_read(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        client.get("/")
        replies(client, handlers(client.get("/config").json())[0], forged(Path("/dev/zero")))
        assert client.get("/health").status_code == 200


def test_an_ordinary_upload_still_works(server: Server, tmp_path: Path) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        client.get("/")
        answer = client.post("/gradio_api/upload", files={"files": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n')})
        (path,) = answer.json()
        assert Path(path).is_relative_to(server.home / "cache" / "gradio")
        dependency = next(d for d in handlers(client.get("/config").json()))
        assert "Cannot move" not in replies(client, dependency, forged(Path(path)))


def test_files_that_a_page_left_behind_are_cleared_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "home" / "cache" / "gradio" / "0" / "rows.jsonl"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    with web(tmp_path / "home") as server:
        assert httpx.get(server.url, trust_env=False, timeout=120).status_code == 200
    assert not left.exists()


@pytest.mark.parametrize("name", ["timeit", *(pytest.param(name, marks=pytest.mark.long) for name in ("gradio", "json", "torch"))])
def test_python_files_of_the_current_folder_never_run(tmp_path: Path, name: str) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    home.mkdir()
    (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    port = free_port()
    command = [str(Path(sys.executable).parent / "studio"), "up", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=here, stdout=log, stderr=log, env=clean_environment(home), text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, tmp_path / "log")
        assert httpx.get(url, trust_env=False, timeout=120).status_code == 200
        assert httpx.get(f"{url}/api/status", trust_env=False, timeout=120).status_code == 200
    finally:
        process.terminate()
        process.wait(timeout=120)
    assert not (tmp_path / "ran").exists()
