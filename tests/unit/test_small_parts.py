"""Small parts with a rule of their own, each on values that show it."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.trainers.stopping import GRACE_S, STOPPED, StopWish
from jobs.trainers.whole_step import RandomStates
from studio.catalogue import library_child, targets
from studio.compress import selection
from studio.db.models import JobRow
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
