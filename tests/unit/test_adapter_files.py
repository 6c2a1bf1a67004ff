"""What belongs to an adapter or a bundle among the files that a person gives, and the memory that a process says it took."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.trainers import peak
from jobs.trainers.peak import Peak
from studio.errors import ModelError, StudioError
from studio.services import adapter_files, bundle_card
from studio.services.bundle_card import RunEnvironment

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, f"of {name}")
    return path


def gathered(folder: Path, *uploads: Path) -> dict[str, str]:
    adapter_files.gather(uploads, folder)
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_of_a_zip_file_only_the_adapter_is_taken(tmp_path: Path) -> None:
    names = (f"x/{CONFIG}", f"x/{WEIGHTS}", "x/notes.txt", "x/old.bin", f"x/y/{WEIGHTS}", f"__MACOSX/x/{CONFIG}", "README.md")
    found = gathered(tmp_path / "to", zipped(tmp_path / "a.ZIP", *names))
    assert found == {CONFIG: f"of x/{CONFIG}", WEIGHTS: f"of x/{WEIGHTS}", "old.bin": ""}, "a pickle is named and never unpacked"
    assert adapter_files.stem([tmp_path / "b.json", tmp_path / "a.ZIP"]) == "a" and adapter_files.stem([tmp_path / "b.json"]) == "adapter"


def test_files_alone_are_an_adapter_too(tmp_path: Path) -> None:
    given = [tmp_path / name for name in (CONFIG, WEIGHTS, "notes.txt", "old.bin")]
    for file in given:
        file.write_text(file.name)
    assert gathered(tmp_path / "to", *given) == {CONFIG: CONFIG, WEIGHTS: WEIGHTS, "old.bin": ""}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((WEIGHTS,), f"holds no {CONFIG}"),
        ((f"a/{CONFIG}", f"b/{CONFIG}"), r"holds 2 adapters \(a, b\)"),
        ((f"__MACOSX/{CONFIG}",), f"holds no {CONFIG}"),
        (("../x", CONFIG), "no studio writes"),
    ],
)
def test_a_zip_file_with_none_or_several_is_refused(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        gathered(tmp_path / "to", zipped(tmp_path / "a.zip", *names))


def test_files_without_a_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).touch()
    with pytest.raises(ModelError, match=f"no {CONFIG} among"):
        gathered(tmp_path / "to", tmp_path / WEIGHTS)


def test_the_peak_is_what_came_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SELF", tmp_path)
    (tmp_path / "status").write_text("Name: x\nVmHWM:  900 kB\nVmRSS:  300 kB\n")
    made = Peak("cpu")
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert made.figures() == {"device": "cpu", "peak_memory_bytes": 600 * 1024}
    (tmp_path / "status").write_text("VmRSS: 300 kB\n")
    assert made.figures() == {"device": "cpu"}
    monkeypatch.setattr(peak, "SELF", tmp_path / "none")
    assert Peak("cpu").figures() == {"device": "cpu"} and made.figures() == {"device": "cpu"}


def test_the_peak_of_a_gpu_is_what_torch_had_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: done.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 7)
    assert Peak("cuda").figures() == {"device": "cuda", "peak_memory_bytes": 7} and done == ["reset"]


@pytest.mark.parametrize(("threads", "counted"), [(0, 0), (1024, 1024), (1025, 0), (-1, 0), ("4", 0), (None, 0), (1.5, 0)])
def test_threads_of_a_bundled_run(threads: Any, counted: int) -> None:
    assert RunEnvironment(hardware={"threads": threads}).threads == counted and RunEnvironment().threads == 0


@pytest.mark.parametrize(
    ("card", "said"),
    [([], "no bundle of this version"), ({"format": "other"}, "no bundle of this version"), ({"format": bundle_card.FORMAT}, "bundle")],
)
def test_a_card_of_a_bundle_that_can_not_be_used(card: Any, said: str) -> None:
    archive: Any = SimpleNamespace(json=lambda name: card, path=Path("a.zip"))
    with pytest.raises(StudioError, match=said):
        bundle_card.read_card(archive)


def test_a_card_of_a_bundle_names_its_files() -> None:
    values = {
        "format": bundle_card.FORMAT, "job": {}, "config": {}, "base_model": {}, "adapter_sha256": "a", "files": {"x": {"bytes": 1, "sha256": "s"}},
    }  # fmt: skip
    archive: Any = SimpleNamespace(json={bundle_card.CARD: values}.__getitem__, path=Path("a.zip"))
    found = bundle_card.read_card(archive)
    assert (found.digest("x"), found.digest("y"), found.job.name, found.job.attempt) == ("s", "", "rerun", 1)
