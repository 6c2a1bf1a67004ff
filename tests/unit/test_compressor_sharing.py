"""Compressors in memory: how many, which leaves, and what a training that runs leaves them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from studio.compress import child, sharing
from studio.compress.child import Shelf
from studio.compress.sharing import GIB, SharedMemory
from studio.engine import holders
from studio.errors import StudioError
from tests.stores import Clock


class Memory:
    """Notes what was asked and told; refuses what is called large."""

    def __init__(self) -> None:
        self.checked: list[tuple[str, str, int]] = []
        self.noted: list[tuple[str, int, str]] = []

    def check(self, folder: Path, dtype: str, held: int) -> None:
        self.checked.append((folder.name, dtype, held))
        if folder.name == "large":
            raise StudioError("The compressor large does not fit.", "Wait.")

    def note(self, name: str, size: int, device: str) -> None:
        self.noted.append((name, size, device))


class Made:
    """A compressor of ten numbers."""

    def __init__(self, folder: str, dtype: str) -> None:
        self.backend = SimpleNamespace(raw_model=torch.nn.Linear(9, 1, dtype=getattr(torch, dtype)), device="cpu")
        self.folder, self.counters = folder, []  # type: ignore[var-annotated]

    def recount(self, counter: str) -> None:
        self.counters.append(counter)

    def compress(self, what: str) -> Any:
        failures = {"memory": MemoryError(), "disk": OSError(28, "No space left on device"), "defect": KeyError("x")}
        if what in failures:
            raise failures[what]
        return SimpleNamespace(model_dump=lambda mode: {"text": what})


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr("studio.compress.load", lambda folder, counter, dtype: Made(folder, dtype))
    return Shelf(Memory())  # type: ignore[arg-type]


def test_three_compressors_stay_and_the_one_used_longest_ago_leaves(shelf: Shelf) -> None:
    memory: Any = shelf._memory
    first = shelf.take("/m/a", "c", "float32")
    assert shelf.take("/m/a", "d", "float32") is first and first.counters == ["c", "d"]  # type: ignore[attr-defined]
    shelf.take("/m/b", "c", "float32")
    shelf.take("/m/a", "c", "bfloat16")
    shelf.take("/m/a", "c", "float32")
    assert memory.checked == [("a", "float32", 0), ("b", "float32", 40), ("a", "bfloat16", 80)]
    assert memory.noted == [("a", 40, "cpu"), ("b", 80, "cpu"), ("a", 100, "cpu")] and shelf.bytes == 100
    shelf.take("/m/c", "c", "float32")
    assert memory.checked[-1] == ("c", "float32", 60), "b has left before"
    assert shelf.take("/m/a", "c", "float32") is first and len(memory.checked) == 4


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({"arguments": {"what": "short"}}, {"result": {"text": "short"}}),
        ({"arguments": {"what": "memory"}}, "There is not enough memory"),
        ({"arguments": {"what": "disk"}}, "No space left on device."),
        ({"arguments": {"what": "defect"}}, "because of a defect in the studio (KeyError: 'x')"),
        ({"compressor": "/m/large", "arguments": {"what": "x"}}, "The compressor large does not fit."),
    ],
)
def test_what_fails_is_answered_and_ends_nothing(shelf: Shelf, request_: dict[str, Any], answer: Any) -> None:
    found = child.answer(shelf, {"compressor": "/m/a", "counter": "c", **request_})
    if isinstance(answer, str):
        assert answer in found["error"]["message"] and found["error"]["fix"]
    else:
        assert found == answer
    assert (child.HELD, child.IDLE_S) == (3, 600)


def test_beside_a_training_a_compressor_takes_what_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SharedMemory(tmp_path)
    now: dict[str, Any] = {"lease": SimpleNamespace(job="night"), "room": 5 * GIB}
    memory._leases = SimpleNamespace(now=lambda: now["lease"], room_bytes=lambda: now["room"])  # type: ignore[assignment]
    monkeypatch.setattr(sharing, "count_parameters", lambda folder: GIB)
    memory.check(Path("/m/small"), "float32", GIB)
    memory.check(Path("/m/small"), "bfloat16", 3 * GIB)
    with pytest.raises(StudioError, match=r"The compressor small needs 4\.0 GiB, and night has left 3\.5 GiB") as refused:
        memory.check(Path("/m/small"), "float32", GIB * 3 // 2)
    assert refused.value.details == {"job": "night"}
    with pytest.raises(StudioError, match=r"needs 2\.0 GiB, and night has left 0\.0 GiB"):
        memory.check(Path("/m/small"), "float16", 6 * GIB)
    for free in ({"lease": None}, {"lease": SimpleNamespace(job="night"), "room": None}):
        now |= free
        memory.check(Path("/m/small"), "float32", 99 * GIB)


def test_a_compressor_loaded_before_a_training_gives_way_between_two_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    memory = SharedMemory(tmp_path)
    given: list[Any] = []
    looks: list[float] = []

    class Ended(Exception):
        pass

    def ended(status: int) -> None:
        assert memory.in_use.locked()
        raise Ended(status)

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if not given:
            raise TimeoutError

    monkeypatch.setattr(sharing.time, "sleep", sleep)
    monkeypatch.setattr(sharing.os, "_exit", ended)
    memory._leases = SimpleNamespace(now=lambda: given.pop(0))  # type: ignore[assignment]

    def lease(gave_way: bool, begun: float) -> Any:
        return SimpleNamespace(gave_way=gave_way, begun=begun)

    given += [lease(True, clock.now + 1)]
    with pytest.raises(TimeoutError):  # nothing is loaded
        memory._watch()
    memory.note("small", 7, "cpu")
    (held,) = holders.alive(tmp_path / "holders")
    assert (held.kind, held.name, held.bytes, held.device) == ("compressor", "the compressor small", 7, "cpu")
    given += [None, lease(False, clock.now + 1), lease(True, clock.now), lease(True, clock.now - 1)]
    with pytest.raises(TimeoutError):
        memory._watch()
    given += [lease(True, clock.now + 1), None]
    with pytest.raises(Ended):
        memory._watch()
    assert len(given) == 1 and set(looks) == {sharing.LOOK_S}
