"""Machines with GPUs: a driver and a torch that stand in for real ones (tests.gpus), and a real studio in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio.db.session import Database
from studio.services import Studio, system
from studio.settings import Settings
from tests import gpus
from tests.chaos import stand_in
from tests.runs import open_store, submit
from tests.workers import row, wait_for, worker

ROOT = Path(__file__).resolve().parents[2]
LARGE = gpus.card(use=87, temperature=64, power=280_000)
SMALL = gpus.card("NVIDIA GeForce RTX 4070", 1, 12, used=2, capability=[8, 9])


def readings(folder: Path, *arguments: str, **machine: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_readings", str(folder), *arguments],
        env={**os.environ, **gpus.variables(**machine)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_torch_that_rejects_the_card_is_refused_everywhere_in_the_same_words(settings: Settings, tmp_path: Path) -> None:
    # the installed torch knows no CUDA; red when a job moves to the processor without a word, or anybody says "OK"
    driver = gpus.driver(LARGE, SMALL, version="550.54.14", cuda=12040)
    said = readings(tmp_path, "--placed", driver=driver, visible="1")
    problem = said["strip"]["problem"]
    assert "built for processors only" in problem and "RTX 4070" in problem and "driver 550.54.14 serves CUDA 12.4" in problem
    fix = "Run `make install TORCH_INDEX=https://download.pytorch.org/whl/cu126`"
    assert said["strip"]["fix"].startswith(fix)
    assert said["doctor"]["ok"] is False and problem in said["doctor"]["detail"] and said["doctor"]["fix"].startswith(fix)
    for refused in (said["auto"], said["placed"]["auto"]["refused"], said["placed"]["cuda"]["refused"], *said["fit"]["warnings"]):
        assert problem in refused and fix in refused
    assert said["placed"]["auto"]["remedy"] == {"device": "cpu"}
    # card 1 is shown and priced, the processor is taken by whoever asks for it, and is told so
    assert said["strip"]["device"] == "NVIDIA GeForce RTX 4070" and len(said["strip"]["devices"]) == 1
    assert said["fit"]["device"] == "cuda" and said["fit"]["room"] <= 12 * gpus.GIB
    assert said["cpu"] == "" and said["placed"]["cpu"]["where"] == "cpu"
    assert "device=cpu" in said["placed"]["cpu"]["notices"][0] and "RTX 4070" in said["placed"]["cpu"]["notices"][0]
    assert said["free_of_torch"]


def test_cards_that_torch_takes_are_shown_and_priced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # CUDA counts the fastest first: "1" is the second card of torch, not of the bus
    gpus.pretend(monkeypatch, driver=gpus.driver(SMALL, LARGE), torch=gpus.torch_of([SMALL, LARGE]), visible="1")
    studio = Studio.open(settings, at_terminal=True)
    strip, fit = studio.system.strip(), studio.fit.fit(base_model="starter")
    (device,) = strip.devices
    assert (strip.problem, device.name, device.memory_bytes) == ("", "NVIDIA GeForce RTX 3090", 24 * gpus.GIB)
    assert (device.use, device.temperature_c, device.power_w) == (0.87, 64, 280.0)
    assert fit.device == "cuda" and fit.warnings == [] and 12 * gpus.GIB < (fit.room_bytes or 0) <= 24 * gpus.GIB
    assert len(list(settings.cache.glob("torch-*.json"))) == 1  # the next process asks no child


def test_two_cards_run_two_jobs_at_once_each_with_one_of_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # trainers without torch, which none of this is about; red when a job sees two cards, or both jobs the same one
    cards = [gpus.card(used=5), gpus.card(number=1)]
    gpus.pretend(monkeypatch, driver=gpus.driver(*cards), torch=gpus.torch_of(cards), visible="0,1")
    db = open_store(settings)
    ids = [submit(db, stand_in.make(settings.runs / f"run-{number}", step_s=60), f"job-{number}") for number in range(3)]
    own = submit(db, stand_in.make(settings.runs / "own", step_s=60, device="cpu"), "own")
    with worker(module="tests.chaos.fast_worker"):
        seen = [trained_with(db, job_id) for job_id in (*ids[:2], own)]
        waiting = row(db, ids[2])
    assert seen == [cards[1]["uuid"], cards[0]["uuid"], ""]  # the freest first; the processor needs none
    assert (waiting.status, waiting.slot) == ("QUEUED", None)
    environment = json.loads((settings.runs / "run-0" / "attempts" / "1" / "environment.json").read_text("utf-8"))
    assert [one["name"] for one in environment["hardware"]["devices"]] == ["NVIDIA GeForce RTX 3090"]
    db.dispose()


def trained_with(db: Database, job_id: str) -> str:
    """CUDA_VISIBLE_DEVICES of the trainer of a running job."""
    job = wait_for(lambda: found if (found := row(db, job_id)).pid else None)
    return str(psutil.Process(job.pid).environ()["CUDA_VISIBLE_DEVICES"])


@pytest.mark.parametrize(
    ("machine", "ok", "detail", "fix"),
    [
        (
            {"driver": gpus.driver(error=[18, "Driver/library version mismatch"]), "torch": gpus.torch_of([], said="unknown error")},
            False,
            "The NVIDIA driver is here and does not work: Driver/library version mismatch.",
            "Restart the machine",
        ),
        (
            {"driver": gpus.driver(LARGE), "torch": gpus.torch_of([LARGE]), "visible": ""},
            False,
            "CUDA_VISIBLE_DEVICES is empty, which hides NVIDIA GeForce RTX 3090",
            "Unset it",
        ),
        (
            {
                "driver": gpus.driver({**LARGE, "used": int(23.8 * gpus.GIB), "processes": [[1, 20 * gpus.GIB]]}),
                "torch": gpus.torch_of([LARGE]),
            },
            False,
            "(PID 1, 20.0 GiB) holds the rest",
            "End that program, or name another card",
        ),
        (
            {"driver": gpus.driver(LARGE, SMALL), "torch": gpus.torch_of([LARGE, SMALL])},
            True,
            "NVIDIA GeForce RTX 4070, 12.0 GiB. The cards differ: a job that needs more than the 12.0 GiB",
            "",
        ),
        (
            {"driver": gpus.driver({**LARGE, "total": None}), "torch": gpus.torch_of([{**LARGE, "total": None}])},
            True,
            "NVIDIA GeForce RTX 3090, 16.0 GiB. NVIDIA GeForce RTX 3090 shares its memory with the processor",
            "",
        ),
    ],
    ids=["half installed", "hidden", "full", "two that differ", "no figures"],
)
def test_the_doctor_says_it_in_one_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], ok: bool, detail: str, fix: str
) -> None:
    gpus.pretend(monkeypatch, **machine)
    said = system._device()
    assert said.ok is ok and detail in said.detail and said.fix.startswith(fix)
    assert bool(fix) == (not ok)
