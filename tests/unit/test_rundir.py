"""Run directories: a damaged checkpoint is never taken for a whole one, and events are read line by whole line."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from jobs.rundir import MANIFEST, RunDir, manifest_problems, move_into_place, write_json, write_manifest


def make_checkpoint(run: RunDir, step: int) -> Path:
    folder = run.checkpoints / f"checkpoint-{step}"
    (folder / "adapter").mkdir(parents=True)
    noise = random.Random(step)
    for name in (
        "adapter/adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "progress.json",
    ):
        (folder / name).write_bytes(noise.randbytes(200))
    write_manifest(folder)
    return folder


FILES = [
    "adapter/adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "progress.json",
    MANIFEST,
]


def truncate(path: Path, part: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[(bit * 37) % len(data)] ^= 1 << (bit % 8)
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    shutil.move(path.with_suffix(".elsewhere"), path.parents[3] / "elsewhere")
    path.symlink_to(path.parents[3] / "elsewhere")


DAMAGE = {
    "empty": lambda path: truncate(path, 0),
    "half": lambda path: truncate(path, 0.5),
    "all but the end": lambda path: truncate(path, 0.99),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": Path.unlink,
    **{f"bit {bit}": lambda path, bit=bit: flip(path, bit) for bit in range(4)},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    run = RunDir(tmp_path)
    whole, damaged = make_checkpoint(run, 9), make_checkpoint(run, 10)
    DAMAGE[damage](damaged / name)  # type: ignore[operator]
    if name == MANIFEST and not manifest_problems(damaged):
        return  # a flipped bit of white space changes nothing that the manifest says
    found, notices = run.last_verified_checkpoint()
    assert found == whole
    assert len(notices) == 1 and notices[0].startswith("checkpoint-10 is damaged")


def test_a_file_that_nobody_listed_spoils_a_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(RunDir(tmp_path), 1)
    (folder / "training_args.bin").write_bytes(b"pickle")
    assert manifest_problems(folder) == ["training_args.bin is not in the manifest"]


def test_a_link_in_place_of_a_file_spoils_a_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(RunDir(tmp_path), 1)
    replace_by_link(folder / "optimizer.pt")
    assert manifest_problems(folder) == ["optimizer.pt has changed"]


def test_a_checkpoint_in_the_making_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make_checkpoint(run, 2).rename(run.checkpoints / ".part-2-77")
    assert run.last_verified_checkpoint() == (None, [])


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (9, 100, 20):
        make_checkpoint(run, step)
    assert [folder.name for folder in run.checkpoint_folders()] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def test_keeping_copies_the_adapter_of_the_last_whole_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make_checkpoint(run, 4)
    flip(make_checkpoint(run, 8) / "optimizer.pt", 1)
    kept = run.keep_checkpoint()
    assert kept == run.adapter
    expected = (run.checkpoints / "checkpoint-4/adapter/adapter_model.safetensors").read_bytes()
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == expected
    assert RunDir(tmp_path / "none").keep_checkpoint() is None


def test_attempts_are_numbered_from_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.next_attempt() == 1
    for number in (1, 2, 10):
        run.attempt(number).path.mkdir(parents=True)
    assert run.next_attempt() == 11


def test_events_are_read_by_whole_lines_from_an_offset(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    assert attempt.read_events(0) == ([], 0)
    attempt.path.mkdir(parents=True)
    attempt.events.write_bytes(b'{"step": 1}\nnot json\n[1]\n{"step": 2}\n{"ste')
    events, offset = attempt.read_events(0)
    assert events == [{"step": 1}, {"step": 2}]
    with attempt.events.open("ab") as file:
        file.write(b'p": 3}\n')
    assert attempt.read_events(offset) == ([{"step": 3}], attempt.events.stat().st_size)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "adapter", tmp_path / "adapter.part"
    for folder, name in ((old, "a"), (new, "b")):
        folder.mkdir()
        (folder / name).touch()
    move_into_place(new, old)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"] and [p.name for p in old.iterdir()] == ["b"]


def test_json_is_written_aside_and_renamed(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "result.json", {"name": "Zoë"})
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["result.json"]
