"""How long torch's view of the GPUs is kept, and what of it is asked again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.catalogue import torch_view
from studio.catalogue.torch_view import RETRY_S, TorchDevice, TorchView

CUDA = TorchView(version="2", cuda="13.0", said="no device", digest="a")
HIP = TorchView(version="2", hip="7.0", said="no device", digest="a")
GPU = TorchDevice(name="one", total_bytes=2, free_bytes=1)


@pytest.mark.parametrize(
    ("view", "age_s", "is_fresh"),
    [
        (None, RETRY_S, False),
        (None, RETRY_S - 1, True),
        (CUDA, RETRY_S, False),
        (CUDA, RETRY_S - 1, True),
        (HIP, RETRY_S, False),
        (CUDA.model_copy(update={"is_available": True}), 1e9, True),
        (CUDA.model_copy(update={"said": "The driver is too old."}), 1e9, True),
        (TorchView(version="2", said="built for processors"), 1e9, True),
    ],
)
def test_a_refusal_that_may_go_away_is_looked_at_again(view: TorchView | None, age_s: float, is_fresh: bool) -> None:
    assert torch_view._is_fresh(view, age_s) is is_fresh


def test_the_kept_view_counts_for_the_same_question_and_as_long_as_it_is_true(tmp_path: Path, clock: Any) -> None:
    file = tmp_path / "torch.json"
    lasting = CUDA.model_copy(update={"is_available": True})
    measured = lasting.model_copy(update={"devices": [GPU]})

    def kept(view: TorchView, age_s: float, digest: str = "a") -> bool:
        torch_view._write(file, view)
        os.utime(file, (clock.now - age_s, clock.now - age_s))
        found = torch_view._read(file, digest)
        assert found in (None, view)
        return found is not None

    assert torch_view._read(file, "a") is None
    assert [kept(lasting, 1e6), kept(lasting, 1e6, "b"), kept(CUDA, RETRY_S), kept(CUDA, RETRY_S - 1)] == [True, False, False, True]
    assert [kept(measured, RETRY_S), kept(measured, RETRY_S + 1)] == [True, False], "what was free then says nothing about now"
    assert kept(CUDA, -1e6), "a clock that was set back"
    file.write_text("{")
    assert torch_view._read(file, "a") is None
    torch_view._write(tmp_path / "none.json", None)
    torch_view._write(tmp_path / "gone" / "none.json", CUDA)
    assert [one.name for one in tmp_path.iterdir()] == ["torch.json"]


def test_a_view_is_asked_for_once_for_each_device_that_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch_view, "_views", {})
    monkeypatch.setattr(torch_view, "_places", [])
    monkeypatch.setattr(torch_view, "_ask_child", lambda digest, with_memory: asked.append(with_memory))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [torch_view.ask("580", "2") for _ in range(2)] == [None, None] and asked == [False]
    torch_view.ask("580", "2", with_memory=True)
    torch_view.ask("590", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    torch_view.ask("580", "2")
    assert asked == [False, True, False, False]
    torch_view.keep_in(tmp_path)
    assert torch_view._places == [tmp_path]


@pytest.mark.parametrize(("with_memory", "full", "free"), [(True, False, 7), (True, True, None), (False, False, None)])
def test_free_memory_is_asked_for_on_wish_and_a_full_device_does_not_say(with_memory: bool, full: bool, free: int | None) -> None:
    class Cuda:
        def get_device_properties(self, index: int) -> Any:
            return SimpleNamespace(name=f"card {index}", uuid="GPU-AB", major=8, minor=6, total_memory=9, is_integrated=1)

        def mem_get_info(self, index: int) -> tuple[int, int]:
            if full:
                raise RuntimeError("out of memory")
            return 7, 9

    found = torch_view._device(Cuda(), 1, with_memory)
    assert found == TorchDevice(name="card 1", uuid="ab", capability=(8, 6), total_bytes=9, free_bytes=free, is_integrated=True)


@pytest.mark.parametrize(("uuid", "plain"), [("GPU-AB-1", "ab-1"), ("MIG-0a", "0a"), ("00000000-0000", ""), ("", ""), ("GPU-0-0", "")])
def test_uuids_of_driver_and_torch_are_compared_without_their_prefix(uuid: str, plain: str) -> None:
    assert torch_view.plain_uuid(uuid) == plain


CHILD = """
from studio.catalogue import torch_view
def look(with_memory):
    print("what a library prints")
    return torch_view.TorchView(version=str(with_memory))
torch_view.look = look
torch_view.main()
"""


@pytest.mark.parametrize(("arguments", "asked"), [([], "False"), (["--memory"], "True")])
def test_what_libraries_print_is_no_answer(arguments: list[str], asked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["version"] == asked and "a library" in done.stderr
