"""A home of the version before, moved: its adapters answer, what waited is trained, and what was made can be made again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio.commands.terminal import plain
from studio.db.models import JobRow
from studio.services import Studio
from studio.settings import STATIC, load
from studio.supervisor import assistance
from studio.types import GenerationParams
from tests import homes

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
WAIT_S = 240.0


def ended(studio: Studio, name: str) -> dict[str, object]:
    deadline = time.monotonic() + WAIT_S
    while (job := plain(studio.jobs.show(name)))["status"] not in ENDED and time.monotonic() < deadline:
        time.sleep(0.3)
    return dict(job)


@pytest.mark.long
def test_everything_of_a_moved_home_works(tmp_path: Path) -> None:
    former = homes.unpack(tmp_path / "former", named=Path("/elsewhere/home"))
    homes.add_model(former, STATIC / "starter")
    Studio.open(load({"STUDIO_HOME": str(former)})).db.dispose()
    home = former.rename(tmp_path / "home")
    question, params = [{"role": "user", "content": "Who saw the cat?"}], GenerationParams(temperature=0.0, max_new_tokens=12)
    with assistance(load({"STUDIO_HOME": str(home)}), lambda _line: None, queues=("gpu",), engine=True) as settings:
        studio = Studio.open(settings, at_terminal=True)
        answers = plain(studio.chat.answer(["starter:first", "own:second", "starter:imported"], question, params))
        said = homes_answer(studio, "starter:first")
        assert answers[0]["text"] == said and all(answer["text"] for answer in answers)
        reports = [one["job"] for one in map(plain, studio.comparisons.list()) if one["training"]]
        with studio.db.read() as session:  # running them would take longer than all of this test
            asked = [one["studio"]["adapter"] for job in reports for one in session.get_one(JobRow, job).config["contestants"]]
        assert sum((Path(adapter["path"]) / "adapter_config.json").is_file() for adapter in asked if adapter) == len(reports) == 2
        studio.jobs.cancel(plain(studio.jobs.clone("second", name="clone"))["id"])
        studio.jobs.cancel(plain(studio.jobs.retry("cancelled"))["id"])
        studio.jobs.resume_queue()
        exported = plain(studio.exports.create("second", "adapter", verify=1))
        for name in ("waiting", exported["name"]):
            job = ended(studio, name)
            assert job["status"] == "SUCCEEDED", (name, job["reason"])
            assert str(job["run_dir"]).startswith(f"{home}/runs/")
        (adapter,) = [one for one in map(plain, studio.adapters.list()) if one["name"] == "waiting"]
        assert Path(adapter["path"]).is_relative_to(home) and Path(adapter["path"], "adapter_model.safetensors").is_file()
        assert Path(plain(studio.exports.show(exported["name"]))["path"]).is_relative_to(home / "exports")
        run = Path(str(plain(studio.jobs.show("second"))["run_dir"]))
        studio.chat.engine.close()
        studio.db.dispose()
    stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert stored["model_name_or_path"] == "$STUDIO_HOME/models/own"
    again = subprocess.run([sys.executable, "-m", "jobs.train", str(run)], capture_output=True, text=True, cwd=tmp_path, timeout=WAIT_S)
    assert again.returncode == 0, again.stderr[-2000:]


def homes_answer(studio: Studio, contestant: str) -> str:
    """What the contestant said in the home's own chat."""
    (conversation,) = map(plain, studio.chat.conversations())
    return next(
        one["content"]
        for one in map(plain, studio.chat.messages(conversation["id"]))
        if one["role"] == "assistant" and one["contestant"] == contestant
    )
