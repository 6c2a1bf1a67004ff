"""A storm of kill -9 over a real studio with real trainings: `python -m tests.chaos.storm --kills 200 --seed 1`.

Jobs of the same rows and options run one after the other while one process after the other is killed: trainer, workers,
page, engine, supervisor. After each kill the studio has to recover. At the end every job has succeeded with the adapter of
the run that nothing happened to. Prints one JSON document; the exit code says whether every promise was kept. SIGTERM ends
it early, with the document about the kills so far.

Stuck is what does not come back within STUCK_S of its death, and a queue in which for STUCK_S no attempt begins, no step is
kept and no job ends although nothing that trains has been killed meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import func, select

from jobs.rundir import RunDir
from studio import processes, supervisor
from studio import settings as studio_settings
from studio.db.models import AdapterRow, JobRow
from studio.records import ENDED
from tests.runs import make_run, open_store, submit
from tests.servers import clean_environment, free_port, processes_of
from tests.workers import trainers

STUCK_S = 30.0
LIMIT_S = 180.0  # after which the storm itself gives up
WAITING = 2  # jobs that are always there, so that an idle queue hides nothing
# a trainer is what dies most often in the field; the others have to be found again by everybody else
SHARES = {"trainer": 30, "worker-gpu": 15, "worker-light": 10, "web": 15, "engine": 15, "supervisor": 15}
TRAINING = ("trainer", "worker-gpu", "supervisor")  # whose death stops a training
MODULES = {"jobs.worker": "worker", "studio.web": "web", "studio.engine.server": "engine"}
# thirteen steps with everything that could make a resumed run differ
OPTIONS: dict[str, Any] = {"recipe": "qlora-sft", "rows": 52, "num_train_epochs": 1, "save_steps": 1, "eval_steps": 5}


class Storm:
    """One studio, its jobs, and what was seen."""

    def __init__(self, home: Path, seed: int, parts: list[str]) -> None:
        self.chance = random.Random(seed)
        self.parts = parts
        self.home = home
        self.environment = clean_environment(home, STUDIO_PORT=str(free_port()))
        self.settings = studio_settings.load(self.environment)
        self.settings.make_folders()
        self.db = open_store(self.settings)
        self.kills: Counter[str] = Counter()
        self.recovery_s: defaultdict[str, list[float]] = defaultdict(list)
        self.doubled = 0
        self.standstills_s: list[float] = []  # each without a move and without such a death
        self.last_kill = time.monotonic()
        self.is_over = threading.Event()
        self.jobs: list[str] = []
        self.up: subprocess.Popen[bytes] | None = None

    # the studio

    def start(self) -> None:
        with (self.home / "up.log").open("ab") as log:
            command = [sys.executable, "-m", "studio", "up"]
            self.up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)

    def members(self) -> dict[str, psutil.Process]:
        """The living processes of the studio by their part."""
        found: dict[str, psutil.Process] = {}
        if self.up is None or self.up.poll() is not None:
            return found
        found["supervisor"] = psutil.Process(self.up.pid)
        for process in found["supervisor"].children():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                part = next((part for module, part in MODULES.items() if module in words), None)
                if part and process.status() != psutil.STATUS_ZOMBIE:
                    found[f"worker-{words[-1]}" if part == "worker" else part] = process
        if (training := self.training()) is not None:
            found["trainer"] = training
        return found

    def training(self) -> psutil.Process | None:
        """The trainer of the job that runs, once the row knows it; a report that runs has none."""
        with self.db.read() as session:
            job = session.scalars(select(JobRow).where(JobRow.kind == "train", JobRow.status == "RUNNING")).first()
        if job is None or job.pid is None or job.pid_born is None or not processes.is_alive(job.pid, job.pid_born):
            return None
        with contextlib.suppress(psutil.Error):
            return psutil.Process(job.pid)
        return None

    def is_whole(self) -> bool:
        """Every part is there, the page answers, and a job trains."""
        members = self.members()
        return set(SHARES) <= set(members) and self._answers()

    def _answers(self) -> bool:
        found = supervisor.running(self.settings)
        if found is None:
            return False
        try:
            return httpx.get(f"{found.url}/health", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    # jobs

    def row(self, job_id: str) -> JobRow:
        with self.db.read() as session:
            return session.get_one(JobRow, job_id)

    def refill(self) -> None:
        waiting = sum(self.row(job_id).status not in ENDED for job_id in self.jobs)
        for number in range(len(self.jobs), len(self.jobs) + WAITING - waiting):
            self.jobs.append(submit(self.db, make_run(self.settings.runs / str(number), **OPTIONS), f"job-{number}"))

    def watch(self, ended: threading.Event) -> None:
        """One trainer at a time, whatever happens; and how long nothing moves."""
        made, since = self.moves(), time.monotonic()
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.Error):
                self.doubled += len(trainers(self.settings.runs)) > 1
            if (now_made := self.moves()) != made or self.last_kill > since:
                made, since = now_made, time.monotonic()
                self.standstills_s.append(0.0)
            else:
                self.standstills_s[-1:] = [time.monotonic() - since]

    def unbroken(self) -> str:
        """The digest of the adapter that nothing happens to."""
        self.refill()
        first = self.jobs[0]
        self.wait_for(lambda: self.row(first).status in ENDED, LIMIT_S)
        return self.digest(first)

    def digest(self, job_id: str) -> str:
        with self.db.read() as session:
            return session.scalar(select(AdapterRow.sha256).where(AdapterRow.job_id == job_id)) or ""

    def curve_is_whole(self, job_id: str) -> bool:
        """Each attempt's steps go on where a checkpoint was: together they are every step once or more, none left out."""
        run = RunDir(Path(self.row(job_id).run_dir))
        attempts = range(1, run.next_attempt())
        seen = {e["step"] for number in attempts for e in run.attempt(number).read_events(0)[0] if e["type"] == "progress"}
        return seen == set(range(1, max(seen, default=0) + 1)) and max(seen, default=0) == self.row(job_id).max_steps

    # the storm

    def wait_for(self, what: Callable[[], bool], limit_s: float) -> float:
        begun = time.monotonic()
        while not what():
            if time.monotonic() - begun > limit_s:
                raise TimeoutError(f"waited {limit_s:.0f} s in vain: {self.scene()}")
            time.sleep(0.1)
        return time.monotonic() - begun

    def scene(self) -> str:
        """What is there when something is not: the parts, and the jobs that have not ended."""
        jobs = [f"{job.name} {job.status} attempt {job.attempt}" for job in map(self.row, self.jobs) if job.status not in ENDED]
        return f"parts {sorted(self.members())}, jobs {jobs}, page answers {self._answers()}, kills {dict(self.kills)}; home {self.home}"

    def strike(self) -> None:
        """Kill one process at a random moment, and wait until all is there again."""
        self.refill()
        self.wait_for(self.is_whole, LIMIT_S)
        part = self.chance.choices(self.parts, [SHARES[part] for part in self.parts])[0]
        self.wait_for_moment(part)
        victim = self.members().get(part)
        if victim is None:  # it has just ended by itself
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
        self.kills[part] += 1
        begun = time.monotonic()
        if part in TRAINING:
            self.last_kill = begun
        if part == "supervisor":
            assert self.up
            self.up.wait()
            self.wait_for(lambda: not processes_of(self.home), LIMIT_S)
            self.start()
        self.wait_for(lambda: self.has_come_back(part, victim.pid), LIMIT_S)
        self.recovery_s[part].append(time.monotonic() - begun)

    def wait_for_moment(self, part: str) -> None:
        """Any moment will do for most; a trainer that is always killed before its first step could never end."""
        step = self.steps_made()
        if part in TRAINING and self.chance.random() < 0.7:
            with contextlib.suppress(TimeoutError):
                self.wait_for(lambda: self.steps_made() > step, LIMIT_S / 2)
            time.sleep(self.chance.uniform(0, 0.5))
        else:
            time.sleep(self.chance.uniform(0, 2))

    def steps_made(self) -> int:
        """Kept steps of all trainings together, and one for each that has ended: it only rises."""
        with self.db.read() as session:
            kept = session.scalar(select(func.sum(JobRow.checkpoint_step)).where(JobRow.kind == "train")) or 0
            ended = session.scalar(select(func.count()).where(JobRow.kind == "train", JobRow.status.in_(ENDED))) or 0
        return kept + ended

    def moves(self) -> tuple[int, int]:
        """Changes whenever the queue gets on."""
        with self.db.read() as session:
            begun = session.scalar(select(func.sum(JobRow.attempt)).where(JobRow.kind == "train")) or 0
        return begun, self.steps_made()

    def has_come_back(self, part: str, pid: int) -> bool:
        self.refill()  # the job that ran may have been the last one
        now = self.members()
        needed = {"trainer", "web", part}
        return needed <= set(now) and now[part].pid != pid and self._answers()

    def run(self, kills: int) -> dict[str, Any]:
        ended = threading.Event()
        self.start()
        watcher = threading.Thread(target=self.watch, args=(ended,), daemon=True)
        watcher.start()
        expected = self.unbroken()
        print(f"Unbroken run: {expected[:16]}", file=sys.stderr, flush=True)
        self.standstills_s = [0.0]
        begun = time.monotonic()
        gave_up = self._strike_until(kills, begun)
        seconds = time.monotonic() - begun
        for job_id in self.jobs:
            with contextlib.suppress(TimeoutError):
                self.wait_for(lambda job_id=job_id: self.row(job_id).status in ENDED, LIMIT_S)  # type: ignore[misc]
        ended.set()
        watcher.join()
        return {**self.report(expected, seconds), "asked": kills, "gave_up": gave_up}

    def _strike_until(self, kills: int, begun: float) -> str:
        """Until enough have been killed or somebody ends it; what it waited for in vain, if anything."""
        while self.kills.total() < kills and not self.is_over.is_set():
            try:
                self.strike()
            except TimeoutError as exc:
                return str(exc)
            if self.kills.total() % 10 == 0:
                print(f"{self.kills.total()} kills, {time.monotonic() - begun:.0f} s, {len(self.jobs)} jobs", file=sys.stderr, flush=True)
        return ""

    def report(self, expected: str, seconds: float) -> dict[str, Any]:
        rows = [self.row(job_id) for job_id in self.jobs]
        waits = sorted(wait for waits in self.recovery_s.values() for wait in waits)
        stuck = [wait for wait in (*waits, *self.standstills_s) if wait > STUCK_S]
        return {
            "kills": self.kills.total(),
            "by_part": dict(self.kills),
            "jobs": len(rows),
            "attempts": sum(job.attempt for job in rows),
            "lost": [(job.name, job.status, job.reason) for job in rows if job.status != "SUCCEEDED"],
            "doubled": self.doubled,
            "stuck_over_30_s": len(stuck),
            "other_adapters": [job.name for job in rows if job.status == "SUCCEEDED" and self.digest(job.id) != expected],
            "broken_curves": [job.name for job in rows if job.status == "SUCCEEDED" and not self.curve_is_whole(job.id)],
            "recovery_s": {"median": round(waits[len(waits) // 2], 2), "max": round(waits[-1], 2)} if waits else {},
            "longest_standstill_s": round(max(self.standstills_s), 2),
            "recovery_s_by_part": {part: round(max(waits), 2) for part, waits in self.recovery_s.items()},
            "seconds": round(seconds, 1),
            "seconds_per_kill": round(seconds / max(self.kills.total(), 1), 2),
        }

    def end(self) -> list[str]:
        """Stop the studio; whatever of it is left afterwards."""
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.up.wait(timeout=120)
        left = processes_of(self.home)
        named = [" ".join(process.cmdline()) for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return named


def is_kept(report: dict[str, Any]) -> bool:
    bad = ("lost", "doubled", "stuck_over_30_s", "other_adapters", "broken_curves", "processes_left", "gave_up")
    return report["kills"] >= report["asked"] and not any(report[promise] for promise in bad)


@contextlib.contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="studio-storm-", ignore_cleanup_errors=True) as made:
            yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description="Kill processes of a studio while it trains.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    parser.add_argument("--home", type=Path, help="where the studio keeps its files; left there afterwards")
    parser.add_argument("--part", action="append", choices=list(SHARES), help="kill only this; may be given more than once")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with folder(arguments.home) as home:
        storm = Storm(home.resolve(), arguments.seed, arguments.part or list(SHARES))

        def end(*_: object) -> None:
            if storm.is_over.is_set():
                sys.exit(143)  # the second time at once; its studio shall not outlive it
            storm.is_over.set()

        signal.signal(signal.SIGTERM, end)
        try:
            report = storm.run(arguments.kills)
        finally:
            left = storm.end()
        report = {"seed": arguments.seed, **report, "processes_left": left}
    print(json.dumps(report, indent=1))
    return 0 if is_kept(report) else 1


if __name__ == "__main__":
    sys.exit(main())
