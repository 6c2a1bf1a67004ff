"""A hundred ways to damage the newest checkpoint: each is found out, said, and training goes on from the one before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.rundir import MANIFEST, RunDir, manifest_problems
from jobs.trainers.checkpoints import CheckpointStore
from jobs.trainers.events import EventLog
from jobs.trainers.stopping import StopWish
from tests.chaos import stand_in

STEPS = 6
MUTANTS = 104


def truncate(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def zero(file: Path, chance: random.Random) -> None:
    """From some byte on, as after a power cut."""
    data = file.read_bytes()
    begin = chance.randrange(len(data.rstrip(b"\0")))
    file.write_bytes(data[:begin] + bytes(len(data) - begin))


def flip(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def lose(file: Path, chance: random.Random) -> None:
    file.unlink()


def rename(file: Path, chance: random.Random) -> None:
    file.rename(file.with_name(file.name + chance.choice([".part", ".old", "~", " (1)"])))


def exchange(file: Path, chance: random.Random) -> None:
    """Another file of the same checkpoint in its place."""
    others = [p for p in whole_files(file) if p.read_bytes() != file.read_bytes()]
    shutil.copy(chance.choice(others), file)


def add_a_file(file: Path, chance: random.Random) -> None:
    file.with_name(chance.choice([file.name + ".part", "training_args.bin", ".hidden", "pytorch_model.bin"])).write_bytes(b"x")


def empty(file: Path, chance: random.Random) -> None:
    for inner in checkpoint_of(file).iterdir():
        shutil.rmtree(inner) if inner.is_dir() else inner.unlink()


def edit_manifest(file: Path, chance: random.Random) -> None:
    """One digit of a size or a digest."""
    manifest = checkpoint_of(file) / MANIFEST
    text = manifest.read_text()
    places = [index for index, letter in enumerate(text) if letter.isdigit() and text[index - 1].isalnum()]
    place = chance.choice(places)
    manifest.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def shorten_manifest(file: Path, chance: random.Random) -> None:
    truncate(checkpoint_of(file) / MANIFEST, chance)


def lose_manifest(file: Path, chance: random.Random) -> None:
    (checkpoint_of(file) / MANIFEST).unlink()


def take_an_older_one(file: Path, chance: random.Random) -> None:
    """A file of the checkpoint before, of the same size: only its digest differs."""
    folder = checkpoint_of(file)
    shutil.copy(folder.with_name(f"checkpoint-{STEPS - 2}") / file.relative_to(folder), file)


def link(file: Path, chance: random.Random) -> None:
    elsewhere = checkpoint_of(file).parent.parent / "elsewhere"
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    truncate, zero, flip, lose, rename, exchange, add_a_file, empty, edit_manifest, shorten_manifest, lose_manifest,
    take_an_older_one, link,
]  # fmt: skip


def checkpoint_of(file: Path) -> Path:
    return next(folder for folder in file.parents if folder.name.startswith("checkpoint-"))


def whole_files(file: Path) -> list[Path]:
    return [p for p in checkpoint_of(file).rglob("*") if p.is_file() and p.name != MANIFEST]


def learn(run: RunDir, number: int) -> list[str]:
    """Train to the end; what was said on the way."""
    attempt = run.attempt(number)
    log = EventLog(attempt.events)
    stand_in.learn(run, attempt, log, StopWish())
    log.close()
    return [event["text"] for event in attempt.read_events(0)[0] if event["type"] == "notice"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that was killed before its last step's adapter was moved into place."""
    run = stand_in.make(tmp_path_factory.mktemp("runs") / "run", STEPS, step_s=0)
    assert learn(run, 1) == []
    shutil.rmtree(run.adapter)
    return run


@pytest.mark.parametrize("seed", range(MUTANTS))
def test_every_mutant_is_found_out_and_costs_only_its_own_steps(trained: RunDir, tmp_path: Path, seed: int) -> None:
    chance, damage = random.Random(seed), DAMAGES[seed % len(DAMAGES)]
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained.path, run.path)
    newest = run.checkpoint_folders()[-1]
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.name != MANIFEST and p.name != "progress.json")
    damage(chance.choice(files), chance)
    assert manifest_problems(newest)
    (notice,) = learn(run, 2)
    assert notice.startswith(f"Checkpoint checkpoint-{STEPS} is damaged (")
    assert (run.adapter / stand_in.WEIGHTS).read_bytes() == stand_in.chain(STEPS)
    assert [manifest_problems(folder) for folder in run.checkpoint_folders()] == [[], []]


def test_the_best_one_stays_however_old_it_gets(tmp_path: Path) -> None:
    store = CheckpointStore(RunDir(tmp_path), keep=2)
    for step in range(1, 8):
        store.write(step, lambda folder: (folder / "state").touch(), pinned=None if step < 2 else 2 if step < 7 else 6)
        steps = [int(folder.name.rpartition("-")[2]) for folder in store.run.checkpoint_folders()]
        assert steps == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [6, 7]][step - 1]
