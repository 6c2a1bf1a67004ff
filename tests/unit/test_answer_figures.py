"""Numbers that are only shown: tokens and speed of answers, gains of drafts, memory left to a training, proofs of exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import sharing
from jobs.exporters import proof
from jobs.exporters.config import expected_bytes
from studio.engine import answer as answers
from studio.engine import client, speculation
from studio.engine.answer import GeneratedAnswer
from studio.engine.leases import Lease
from studio.engine.protocol import Event, GenerationRequest, ModelFolder, Usage
from studio.engine.replies import Reply
from studio.engine.speculation import Gain
from studio.engine.text import AnswerText
from studio.records import AnswerUsage, ChatMessage, EngineStatus, ExportFormat, LoadedModel, MessageState, Outtype, SpeculationGain
from studio.services import folders
from studio.settings import Settings
from studio.types import GenerationParams
from studio.ui import chat_shown, exports
from studio.ui.chat_answering import AnswerColumn


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A time that moves only when a test says so."""
    now = SimpleNamespace(at=100.0)
    for module in (answers, speculation):
        monkeypatch.setattr(module.time, "monotonic", lambda: now.at)
    yield now


def test_speed_counts_the_tokens_after_the_first_and_the_time_since_it(clock: SimpleNamespace) -> None:
    told: list[Event] = []
    folder, text = ModelFolder("m", Path("/m")), AnswerText(lambda ids: "x" * len(ids), [])
    made = GeneratedAnswer(folder, None, [1, 2, 3], 5, GenerationParams(), 0, frozenset(), text, told.append, submitted_at=clock.at)
    clock.at += 2.5  # waits and reads the prompt
    for _ in range(5):
        made.take(7)
        clock.at += 0.5
    end = told[-1]
    assert end.finish_reason == "length" and end.usage == Usage(3, 5)
    assert end.usage is not None and end.usage.as_json() == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert end.facts is not None
    assert (end.facts["first_token_s"], end.facts["seconds"], end.facts["tokens_per_s"]) == (2.5, 4.5, 2.0)


def test_one_token_has_no_speed(clock: SimpleNamespace) -> None:
    told: list[Event] = []
    text = AnswerText(lambda ids: "x" * len(ids), [])
    made = GeneratedAnswer(
        ModelFolder("m", Path("/m")), None, [1], 1, GenerationParams(), 0, frozenset(), text, told.append, submitted_at=clock.at
    )
    made.take(7)
    clock.at += 1
    assert made.facts()["tokens_per_s"] is None


def test_a_prompt_counts_once_for_all_its_answers() -> None:
    request = GenerationRequest("m", ModelFolder("m", Path("/m")), GenerationParams(), prompts=("a", "b"), n=2)
    reply = Reply(request)
    for index, written in enumerate((1, 2, 3, 4)):
        reply.take(Event(index, "x", finish_reason="stop", usage=Usage(10 if index < 2 else 20, written)))
    assert reply.body()["usage"] == {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40}


def test_the_gain_of_drafts_is_the_time_of_the_same_tokens_without_them(clock: SimpleNamespace) -> None:
    gain = Gain()
    for _ in range(3):
        started = clock.at
        clock.at += 2.0
        gain.plain(started)
    assert not gain.is_measuring
    for _ in range(6):
        for drafted, tokens in ((5, 4), (5, 2)):
            started = clock.at
            clock.at += 3.0
            gain.leap(started, drafted, tokens)
    # 36 tokens at 2 s each would have taken 72 s, and took 36 s
    assert gain.as_json() == {"drafted_tokens": 60, "accepted_tokens": 24, "tokens_per_pass": 3.0, "speedup": 2.0, "stopped": False}


@pytest.mark.parametrize(("passes", "tokens", "speedup"), [(10, 2, None), (14, 2, None), (15, 2, 10.0), (29, 1, None), (40, 1, 1.0)])
def test_no_gain_is_said_of_few_tokens_and_none_where_no_draft_was_right(
    clock: SimpleNamespace, passes: int, tokens: int, speedup: float | None
) -> None:
    gain = Gain(plain_steps=3, plain_s=3 * 5.0)
    for _ in range(passes):
        started = clock.at
        clock.at += 1.0  # noise: drafts that are all wrong seem to be five times as fast
        gain.leap(started, 5, tokens)
    assert gain.as_json()["speedup"] == speedup


def test_drafts_that_cost_more_than_they_bring_are_stopped_after_the_trial(clock: SimpleNamespace) -> None:
    gain = Gain(plain_steps=1, plain_s=1.0)
    for passes in range(1, speculation.TRIAL_PASSES + 1):
        started = clock.at
        clock.at += 2.0
        gain.leap(started, 5, 1)
        assert gain.is_losing == (passes == speculation.TRIAL_PASSES)


def message(usage: AnswerUsage, state: MessageState = MessageState.DONE) -> ChatMessage:
    return ChatMessage(
        id=1, position=1, role="assistant", content="x", contestant="m", state=state, usage=usage, mark="", original="", created_at=0.0
    )


def test_the_figures_under_an_answer_are_those_of_its_usage() -> None:
    usage = AnswerUsage(
        prompt_tokens=31, completion_tokens=1200, tokens_per_s=9.96, first_token_s=0.25, reused_tokens=16, finish_reason="length"
    )
    assert chat_shown.figures(message(usage, MessageState.STOPPED)) == [
        "1,200 tokens",
        "10.0 tokens/s",
        "first after 250 ms",
        "prompt 31 tokens",
        "16 of them known",
        "cut at the longest answer",
        "stopped here",
    ]
    assert chat_shown.figures(message(AnswerUsage(tokens_per_s=10.4, completion_tokens=1))) == ["1 token", "10 tokens/s"]
    assert chat_shown.figures(message(AnswerUsage())) == []


def test_the_gain_of_drafts_is_told_where_there_was_one() -> None:
    gain = SpeculationGain(drafted_tokens=10, accepted_tokens=4, speedup=1.5)
    said = "Drafts: 4 of 10 tokens were right, 1.5 times the plain speed"
    assert chat_shown.notes(AnswerUsage(notes=["mind"], speculation=gain)) == ["mind", f"{said}."]
    stopped = gain.model_copy(update={"stopped": True})
    assert chat_shown.notes(AnswerUsage(speculation=stopped)) == [f"{said}; stopped, since they did not pay."]
    assert chat_shown.notes(AnswerUsage(speculation=gain.model_copy(update={"speedup": None}))) == []


def test_of_what_an_engine_tells_only_what_has_the_right_type_is_kept() -> None:
    column = AnswerColumn("m")
    facts: dict[str, Any] = {
        "tokens_per_s": "fast",
        "first_token_s": 0.5,
        "reused_tokens": {},
        "notes": ["a", 1],
        "speculation": 3,
        "more": 1,
    }
    column.take(Event(text="x", finish_reason="stop", usage=Usage(2, 3), facts=facts))
    known = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "finish_reason": "stop", "first_token_s": 0.5, "notes": ["a"]}
    assert column.usage.model_dump(exclude_unset=True) == known and column.state == MessageState.DONE


def test_the_room_beside_a_training_is_what_was_free_without_what_it_keeps() -> None:
    lease = Lease("night", keep_bytes=7, free_bytes=10, expires=2e9, gave_way=True)
    record = lease.record()
    assert (record.job, record.keep_bytes, record.room_bytes, record.gave_way) == ("night", 7, 3, True)
    assert Lease("night", keep_bytes=11, free_bytes=10, expires=2e9).room_bytes == 0


@pytest.mark.parametrize(
    ("held", "needed", "asked"), [(40, 30, "share"), (41, 30, "yield_to"), (None, 70, "share"), (None, 71, "yield_to")]
)
def test_engine_and_training_share_up_to_seven_tenths(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, held: int | None, needed: int, asked: str
) -> None:
    calls: list[str] = []
    model = held and LoadedModel(base="m", quantization="", device="cpu", adapters=[], bytes=held, adapter_bytes=0, adapter_budget_bytes=0)
    status = EngineStatus(loaded=model or None)
    stand_in = SimpleNamespace(status=lambda: status, close=lambda: None, share=lambda *_: calls.append("share"))
    stand_in.yield_to = lambda *_: calls.append("yield_to")
    monkeypatch.setattr(client.EngineClient, "from_settings", lambda *_: stand_in)
    sharing.begin(settings, "night", needed, 100)
    assert calls == [asked]


def test_bytes_of_a_folder_are_those_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 5)
    (tmp_path / "below" / "b").write_bytes(b"x" * 7)
    assert folders.size_of(tmp_path) == 12


def test_only_what_lies_below_a_place_is_deleted(tmp_path: Path) -> None:
    place, outside = tmp_path / "exports", tmp_path / "outside"
    (place / "one").mkdir(parents=True)
    outside.mkdir()
    (place / "link").symlink_to(outside, target_is_directory=True)
    for hostile in (place, place / "..", place / "one" / ".." / ".." / "outside", place / "link", outside, tmp_path):
        assert not folders.delete_inside(hostile, place)
    assert outside.is_dir() and (place / "one").is_dir()
    assert folders.delete_inside(place / "one", tmp_path / "other", place) and not (place / "one").exists()


def test_the_room_of_an_export_follows_its_form() -> None:
    wanted = {
        (ExportFormat.MERGED, Outtype.F16): 2_200,
        (ExportFormat.MERGED, Outtype.Q8_0): 2_200,  # of GGUF only
        (ExportFormat.GGUF, Outtype.F16): 2_200,
        (ExportFormat.GGUF, Outtype.Q8_0): 1_168,
        (ExportFormat.ADAPTER, Outtype.F16): 220,
        (ExportFormat.GGUF_LORA, Outtype.F16): 220,
    }
    assert {key: expected_bytes(*key, 1_000, 100) for key in wanted} == wanted


def reference() -> proof.Reference:
    """Two prompts with answers of two and one tokens, over three logits; the adapter moves logits by 4, 4 and 1."""
    logits = [torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 3.9]]), torch.tensor([[0.0, 0.0, 9.0]])]
    behaviour = proof.Behaviour([[0, 1], [2]], logits)
    return proof.Reference([[5], [6]], behaviour, torch.tensor([4.0, 4.0, 1.0]))


def test_a_proof_counts_what_is_identical_and_how_far_it_is_off() -> None:
    known = reference()
    moved = [known.behaviour.logits[0] + torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.15]]), known.behaviour.logits[1] - 0.04]
    verdict = proof.judge(known, proof.Behaviour([[0, 1], [0]], moved), same_ids=True)
    assert (verdict.prompts, verdict.identical, verdict.clear_tokens, verdict.wrong_tokens) == (2, 1, 2, 0)
    assert verdict.max_logit_diff == pytest.approx(0.15) and verdict.effect == 4.0
    assert verdict.worst_share == pytest.approx(0.04)  # of the adapter's own 1 at the last place, which a quarter of 4 is too
    assert verdict.passed and verdict.reason == ""
    assert exports.proof(verdict).startswith("Proved on 2 prompts: 1 answers are identical")


@pytest.mark.parametrize(
    ("shift", "same_ids", "reason"),
    [
        (torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.25]]), True, "6.2%"),
        (torch.tensor([[-9.0, 0.0, 8.0], [0.0, 0.0, 0.0]]), True, "off by up to"),
        (torch.zeros(2, 3), False, "other token ids"),
        (torch.full((2, 3), torch.nan), True, "off by up to"),
    ],
)
def test_a_proof_fails_with_its_reason(shift: torch.Tensor, same_ids: bool, reason: str) -> None:
    known = reference()
    found = proof.Behaviour(known.behaviour.answers, [known.behaviour.logits[0] + shift, known.behaviour.logits[1]])
    verdict = proof.judge(known, found, same_ids)
    assert not verdict.passed and reason in verdict.reason
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict  # every figure is one that JSON has


def test_a_second_reader_must_pass_too_and_its_figures_stay_apart() -> None:
    good = proof.judge(reference(), reference().behaviour, same_ids=True)
    bad = good.model_copy(update={"passed": False, "reason": "It differs.", "identical": 1, "reader": "llama.cpp"})
    both = proof.together([good, bad])
    assert not both.passed and both.reason == "Read by llama.cpp: It differs." and both.identical == 2
    assert both.readers is not None and both.readers["llama.cpp"].identical == 1
    assert proof.together([good, good]).passed


def test_a_share_without_end_is_a_number_that_json_has() -> None:
    """Not a number anywhere, from an adapter that changes little: the largest number there is by a half has no end."""
    known = proof.Reference([[5]], proof.Behaviour([[0]], [torch.tensor([[4.0, 0.0]])]), torch.tensor([0.5]))
    verdict = proof.judge(known, proof.Behaviour([[0]], [torch.tensor([[torch.nan, 0.0]])]), same_ids=True)
    assert not verdict.passed and verdict.worst_share == torch.finfo(torch.float32).max
