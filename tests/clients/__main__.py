"""Generate a Python client from a running studio's /api/openapi.json, and have it list the jobs: `python -m tests.clients ENVIRONMENT`.

ENVIRONMENT is a virtual environment that holds openapi-python-client and nothing of the studio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from tests.servers import web

SCRIPT = Path(__file__).with_name("list_jobs.py")
ROWS = "\n".join(json.dumps({"prompt": f"What is {n} and 1?", "completion": f"{n + 1}"}) for n in range(8))


def main(environment: Path) -> int:
    """1 where the generator complains or the client does not say what the studio says."""
    # nothing of the studio's own environment reaches the generator, which looks for ruff beside it
    surroundings = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "")}
    with (
        tempfile.TemporaryDirectory() as folder,
        web(Path(folder) / "home") as server,
        httpx.Client(base_url=server.url) as api,
    ):
        data = _answer(api.post("/api/datasets/text", json={"text": ROWS, "name": "sums"}))
        jobs = [
            _answer(api.post("/api/jobs", json={"data": data["id"], "name": name, "options": {"max_steps": 1}})) for name in ("one", "two")
        ]
        known = api.get("/api/jobs").json()
        generate = [
            "openapi-python-client",
            "generate",
            "--url",
            f"{server.url}/api/openapi.json",
            "--output-path",
            f"{folder}/made/studio_client",
        ]
        Path(folder, "made").mkdir()
        made = _run(
            [str(environment / "bin" / generate[0]), *generate[1:], "--meta", "none", "--fail-on-warning"],
            folder,
            surroundings,
        )
        listed = json.loads(_run([str(environment / "bin" / "python"), str(SCRIPT), server.url], f"{folder}/made", surroundings))
    print(made.strip())
    print(f"The generated client lists {len(listed)} jobs: {listed}")
    expected = [[job["id"], job["name"], job["status"], job["progress"]["step"]] for job in known]
    if listed != expected or {job["id"] for job in jobs} != {job["id"] for job in known}:
        print(f"The studio has {expected}.", file=sys.stderr)
        return 1
    return 0


def _answer(response: httpx.Response) -> dict[str, object]:
    assert response.is_success, response.text
    return response.json()


def _run(command: list[str], folder: str, surroundings: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
