"""Which answers join a batch: rows that are kept for chat, memory, other bases and adapters without room."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine import scheduler
from studio.engine.lanes import Lanes
from studio.errors import EngineError, ModelError

BASE = SimpleNamespace(path=Path("/base"), quantization="")


def answer(lane: str = "batch", **more: Any) -> Any:
    values = {"base": BASE, "adapter": None, "width": 10, "prompt_ids": [0] * 4, "limit": 5, "is_over": False, "is_read_first": False}
    return SimpleNamespace(**{"lane": lane, **values, **more})


class Budget:
    """Has room for so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows, self.asked, self.looks = rows, [], 0  # type: ignore[var-annotated]

    def admits(self, *asked: int) -> bool:
        self.asked.append(asked)
        return asked[0] <= self.rows

    def look_again(self) -> None:
        self.looks += 1


def admitted(
    waiting: Sequence[Any],
    *,
    rows: int = 8,
    running: Sequence[Any] = (),
    room: int = 99,
    has_room: bool = True,
    unload: float | None = None,
) -> tuple[list[Any], Budget, list[int]]:
    lanes = Lanes(99)
    for one in waiting:
        lanes.add([one], 1.0)
    gave: list[int] = []
    model: Any = SimpleNamespace(attached={}, folder=BASE, make_do=gave.append, has_room=lambda adapter, others: has_room)
    batch: Any = SimpleNamespace(adapters=[None] * len(running), answers=list(running), has_room=True)
    budget = Budget(room)
    owner: Any = SimpleNamespace(
        _max_rows=rows, _waiting=lanes, _changed=threading.Condition(), _unload_by=unload, _running=[],
        _attach=lambda answer, model, lanes: None, _equip=lambda *_: None, _read_first=lambda *_: None,
    )  # fmt: skip
    owner._fits = lambda *asked: scheduler.Scheduler._fits(owner, *asked)
    found = scheduler.Scheduler._admit(owner, model, batch, budget)  # type: ignore[arg-type]
    return [one for one, _ in found], budget, gave


@pytest.mark.parametrize(
    ("rows", "batch", "chat", "taken"), [(8, 9, 0, 4), (8, 9, 9, 8), (4, 3, 0, 1), (2, 3, 0, 1), (6, 3, 0, 2), (8, 0, 9, 8)]
)
def test_rows_are_kept_for_chat_and_one_at_least_is_for_batch_jobs(rows: int, batch: int, chat: int, taken: int) -> None:
    found, _, _ = admitted([answer() for _ in range(batch)] + [answer("chat") for _ in range(chat)], rows=rows)
    assert len(found) == taken
    assert sum(one.lane == "batch" for one in found) <= max(1, rows - 4)


def test_rows_of_batch_jobs_that_run_count() -> None:
    assert admitted([answer()], rows=6, running=[answer()])[0] and not admitted([answer()], rows=6, running=[answer(), answer()])[0]
    assert len(admitted([answer("chat")] * 9, rows=6, running=[answer(), answer()])[0]) == 4


def test_memory_is_asked_for_with_the_longest_and_given_way_for_the_first() -> None:
    found, budget, gave = admitted([answer("chat"), answer("chat", width=30, prompt_ids=[0] * 7), answer("chat")], room=2)
    assert len(found) == 2 and budget.asked == [(1, 10, 1, 4), (2, 30, 2, 7), (3, 30, 3, 7)] and (budget.looks, gave) == (1, [])
    found, budget, gave = admitted([answer("chat")], room=0)
    assert len(found) == 1 and (budget.looks, gave) == (2, [0]), "alone it is tried all the same"
    found, budget, gave = admitted([answer("chat")], running=[answer("chat", width=20)], room=1)
    assert found == [] and budget.asked == [(2, 20, 1, 4)] and (budget.looks, gave) == (0, [])


def test_what_does_not_fit_waits() -> None:
    other = SimpleNamespace(path=Path("/other"), quantization="")
    assert admitted([answer("chat", base=other)])[0] == [] and admitted([answer("chat")], unload=1.0)[0] == []
    adapter = SimpleNamespace(name="a")
    assert len(admitted([answer("chat", adapter=adapter)], has_room=False)[0]) == 1, "alone it makes room"
    assert admitted([answer("chat", adapter=adapter)], running=[answer("chat")], has_room=False)[0] == []
    assert len(admitted([answer("chat", adapter=adapter)], running=[answer("chat")])[0]) == 1


def test_what_is_read_first_is_one_at_a_time_and_what_is_over_takes_no_row() -> None:
    assert len(admitted([answer("chat", is_read_first=True), answer("chat")])[0]) == 1
    assert admitted([answer("chat", is_over=True), answer("chat", limit=0)])[0] == []


def test_an_adapter_that_is_broken_is_refused_later() -> None:
    def broken(adapter: Any, others: Any) -> bool:
        raise ModelError("No.", "")

    model: Any = SimpleNamespace(folder=BASE, has_room=broken)
    assert scheduler.Scheduler._fits(None, answer(adapter=object()), model, [None])  # type: ignore[arg-type]


def test_a_full_lane_says_when_to_ask_again() -> None:
    lanes = Lanes(3)
    lanes.add([answer("chat")] * 9, 0.1)  # an empty one takes whatever comes at once
    for seconds, after in ((0.01, 1), (0.6, 5)):
        with pytest.raises(EngineError) as refused:
            lanes.add([answer("chat")], seconds)
        assert (refused.value.status, refused.value.details["retry_after"]) == (429, after)
    lanes.add([answer("batch")] * 2, 0.1)
    lanes.add([answer("batch")], 0.1)
    with pytest.raises(EngineError):
        lanes.add([answer("batch")], 0.1)


def test_chat_goes_first_but_not_for_ever() -> None:
    lanes = Lanes(99)
    lanes.add([answer("batch") for _ in range(3)], 1.0)
    lanes.add([answer("chat") for _ in range(5)], 1.0)
    order = []
    while (found := lanes.first()) is not None:
        lanes.take(found)
        order.append(found.lane[0])
    assert "".join(order) == "cccbccbb"
    lanes.add([answer("batch")], 1.0)
    assert lanes.first(takes_batch=False) is None
