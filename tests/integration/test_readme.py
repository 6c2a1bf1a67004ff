"""The README's commands do what it says: every `sh` block is run, in order, on an empty STUDIO_HOME."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("readme")
    return os.environ | {
        "STUDIO_HOME": str(home),
        "STUDIO_PORT": "17861",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def run(command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


def first_url(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout
    for line in process.stdout:
        yield from re.findall(r"http://\S+", line)


def start_and_stop(command: str, environment: dict[str, str]) -> None:
    process = subprocess.Popen(shlex.split(command), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        url = next(first_url(process))
        with urllib.request.urlopen(url.rstrip("/") + "/health", timeout=120) as response:
            assert json.load(response)["status"] == "ok"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=120)
        process.stdout.close() if process.stdout else None


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_every_command_of_the_readme_runs(environment: dict[str, str]) -> None:
    for command in commands():
        if command == "make test":
            continue  # this is it
        if command == "make run":
            start_and_stop(command, environment)
        elif command == "studio demo":
            check_demo(json.loads(run("studio demo --json", environment)))
        else:
            assert run(command, environment).strip(), f"{command} printed nothing"


def check_demo(result: dict) -> None:
    """What "The loop stands" promises: the base fails the held-out rows, the adapter has learned them."""
    assert result["before"]["n"] == result["after"]["n"] >= 40
    assert result["before"]["exact_match"] <= 0.1
    assert result["after"]["exact_match"] >= 0.9
    assert result["job"] and result["adapter"]


def test_the_readme_is_short_and_its_links_exist() -> None:
    assert len(README.splitlines()) <= 250
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in set(re.findall(r"`((?:studio|jobs|static|tests)/[\w./-]*\w/?)`", README)):
        assert (ROOT / name).exists(), name


def test_the_first_lines_are_a_spaces_header() -> None:
    header = README.split("---")[1]
    assert "sdk: docker" in header
    assert "app_port: 7860" in header
