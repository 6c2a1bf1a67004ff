"""Small parts with a rule of their own, each on values that show it."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.trainers import watch
from jobs.trainers.stopping import GRACE_S, STOPPED, StopWish
from jobs.trainers.whole_step import RandomStates
from studio.catalogue import library_child, targets
from studio.compress import selection
from studio.db.models import JobRow
from studio.engine import graphs, loading
from studio.errors import ModelError
from studio.services import Studio, job_records
from studio.services.forecast import Span
from tests.stores import add


def test_a_wish_to_stop_ends_at_once_until_there_is_something_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    alarms: list[int] = []

    def leave(code: int) -> None:
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(signal, "alarm", alarms.append)
    wish = StopWish()
    with pytest.raises(SystemExit):
        wish._leave()
    assert (ended, alarms, wish.is_set) == ([STOPPED], [], False)
    wish.begin_keeping()
    wish._leave()
    assert (ended, alarms, wish.is_set) == ([STOPPED], [int(GRACE_S)], True)


@pytest.mark.parametrize(
    ("name", "ends", "within"),
    [
        ("a.b.c", ["c", "b.c", "a.b.c"], "a.b.c"),
        ("c", ["c"], "c"),
        ("model.layers.3.mlp.up", ["up", "mlp.up", "layers.3.mlp.up", "model.layers.3.mlp.up"], "mlp.up"),
    ],
)
def test_ends_of_a_layers_name(name: str, ends: list[str], within: str) -> None:
    assert (targets._all_ends(name), targets.within_block(name)) == (ends, within)


def test_generators_of_devices_are_put_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["one", "two"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    states = RandomStates.take()
    drawn = torch.rand(3)
    states.put_back()
    assert torch.equal(torch.rand(3), drawn) and given == [["one", "two"]]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    RandomStates.take().put_back()
    assert len(given) == 1


@pytest.mark.parametrize(
    ("printed", "failure", "said"), [("", "", "could not be built"), ("x", "It failed", "It failed: its"), ("[" * 9**5, "", "built")]
)
def test_a_child_that_was_killed_is_said_to_be(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, printed: str, failure: str, said: str
) -> None:
    monkeypatch.setattr(library_child.processes, "output_of", lambda *_: printed)
    with pytest.raises(library_child.Unanswered) as refused:
        library_child.ask("module", tmp_path, failure=failure)
    assert said in refused.value.message and "killed" in refused.value.message and refused.value.fix == "Check its config.json."


def test_the_answer_of_a_child_is_its_last_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_child.processes, "output_of", lambda *_: 'noise\n{"error": null, "answer": [1]}\n')
    assert library_child.ask("module", tmp_path) == [1]
    monkeypatch.setattr(library_child.processes, "output_of", lambda *_: '{"error": {"message": "m", "fix": "f"}, "answer": null}')
    with pytest.raises(ModelError, match="m"):
        library_child.ask("module", tmp_path)


@pytest.mark.parametrize(("texts", "order"), [([" ", ""], []), ([" ", "a"], [1]), (["a", " ", "b"], [2, 0])])
def test_two_texts_are_ranked_and_one_is_not(monkeypatch: pytest.MonkeyPatch, texts: list[str], order: list[int]) -> None:
    monkeypatch.setattr(selection.llmlingua, "rank", lambda backend, texts, question, method: list(range(len(texts)))[::-1])
    chooser: Any = SimpleNamespace(texts=texts, backend=None, question="q", options={}, _given={"rank_method"})
    assert selection.Selector._rank(chooser) == order


def test_only_what_waits_or_runs_has_a_forecast(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add(studio, *(JobRow(kind="export", name=status, status=status) for status in ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED")))
    monkeypatch.setattr(job_records, "forecast", lambda session: dict.fromkeys(ids, Span(1.0, 2.0)))
    with studio.db.read() as session:
        starts = [job_records.detail(session, session.get_one(JobRow, job)).starts_in_s for job in ids]
    assert starts[:1] == [1.0] and starts[2:] == [None, None]


def test_a_step_is_warmed_up_on_a_stream_of_its_own_and_recordings_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Stream:
        def __init__(self, name: str = "aside") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            done.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def within(name: str) -> Any:
        done.append(name)
        yield

    cuda = SimpleNamespace(
        Stream=Stream,
        current_stream=lambda: Stream("main"),
        stream=lambda stream: within(stream.name),
        graph_pool_handle=lambda: done.append("pool") or "pool",
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: done.append("replayed")),
        graph=lambda graph, pool, capture_error_mode: within(f"recorded in {pool}"),
    )
    monkeypatch.setattr(graphs.torch, "cuda", cuda)
    recorder = graphs.recorder_for(SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    assert recorder is not None and graphs.recorder_for(SimpleNamespace(type="cpu")) is None  # type: ignore[arg-type]
    recording = recorder.record(lambda: done.append("step"))  # type: ignore[arg-type,return-value]
    around = ["aside waits for main", "aside", "step", "step", "main waits for aside"]
    assert done == [*around, "pool", "recorded in pool", "step"]
    recorder.record(lambda: done.append("step"))  # type: ignore[arg-type,return-value]
    assert done[8:] == [*around, "recorded in pool", "step"]
    recording.replay()
    assert done[-1] == "replayed"


@pytest.mark.parametrize(
    ("elapsed", "spent", "step", "is_last", "acts"),
    [
        (10.0, 0.0, 51, False, []),  # less than twenty seconds in all
        (10.0, 0.0, 50, False, ["answer", "drift"]),
        (10.0, 0.0, 51, True, ["answer", "drift"]),
        (100.0, 90.0, 50, False, []),  # without what looks took, it is a short one
        (4000.0, 1000.0, 50, False, []),  # looks have had their share
        (4000.0, 1000.0, 50, True, ["answer", "drift"]),
    ],
)
def test_looks_at_a_training_take_a_share_of_its_time(
    monkeypatch: pytest.MonkeyPatch, elapsed: float, spent: float, step: int, is_last: bool, acts: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(watch.time, "monotonic", lambda: elapsed)
    looker: Any = SimpleNamespace(
        _first_step=0, _begun=0.0, _spent=spent, _base_cost=0.0, _answer="answer", _measure_drift="drift",
        _costs={"answer": 1.0, "drift": 1.0}, _guarded=lambda act, seconds, step: done.append(act),
    )  # fmt: skip
    watch.Watch._look(looker, SimpleNamespace(global_step=step, max_steps=100), is_last)
    assert done == acts


@pytest.mark.parametrize(("general", "has_base", "drifts"), [([], True, []), ([1], False, []), ([1], True, [0.5])])
def test_drift_is_measured_where_there_is_something_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, general: list[Any], has_base: bool, drifts: list[float]
) -> None:
    told: list[Any] = []
    found = [1.0, 1.5, 1.5]

    @contextmanager
    def base() -> Any:
        yield

    monkeypatch.setattr(watch.drift, "advice", lambda value: "")
    looker: Any = SimpleNamespace(
        _general=general, _has_base=lambda: has_base, _base_surprise=None, _base=base, _general_surprise=lambda: found.pop(0),
        _told_drift=False, _log=SimpleNamespace(write=lambda kind, **values: told.append((kind, values))),
    )  # fmt: skip
    for _ in range(2 * bool(drifts) or 1):
        watch.Watch._measure_drift(looker, 9.0, 7)
    assert told == [("drift", {"step": 7, "drift": one, "base_loss": 1.0}) for one in drifts * 2]


@pytest.mark.parametrize(("is_here", "emptied"), [(True, ["emptied"]), (False, [])])
def test_freed_memory_of_a_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch, is_here: bool, emptied: list[str]) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_here)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    loading.give_back_memory()
    assert done == emptied


@pytest.mark.parametrize(("kind", "most", "share"), [("cuda", None, [1.0]), ("cuda", 25, [0.25]), ("cuda", 200, [1.0]), ("cpu", 25, [])])
def test_the_share_of_a_gpu_that_the_engine_may_take(
    monkeypatch: pytest.MonkeyPatch, kind: str, most: int | None, share: list[float]
) -> None:
    done: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: done.append(part))
    loading.cap_memory(SimpleNamespace(type=kind), most)  # type: ignore[arg-type]
    assert done == share
