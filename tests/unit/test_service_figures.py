"""Figures and answers of services at their edges: savings, forecasts, fit, keys, recall, reports, leftovers. Real rows, no engine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.config import build
from studio.catalogue import memory
from studio.db import queue_order
from studio.db.models import (
    AdapterRow,
    ApiKeyRow,
    CachedAnswerRow,
    ComparisonRow,
    ConversationRow,
    DatasetRow,
    JobRow,
    JudgementRow,
)
from studio.engine.protocol import Usage
from studio.errors import EngineError, NotFoundError, StudioError
from studio.records.datasets import Alternative
from studio.services import Studio, fit, forecast, judged, launch_answers, launch_rows, recall, reports, savings, storage
from studio.services.forecast import Pace, Span
from studio.services.models import STARTER_FOLDER
from studio.settings import Settings
from studio.types import GenerationParams
from tests.stores import Clock, add

# savings


class Asked:
    """An engine that answers, or refuses with a status."""

    def __init__(self, status: int | None = None) -> None:
        self.status, self.seen = status, []  # type: ignore[var-annotated]

    def chat(self, who: Any, messages: Any, params: GenerationParams) -> Any:
        self.seen.append((messages[0].content, params.max_new_tokens, params.temperature))
        if self.status is not None:
            raise EngineError("too long", "shorten", status=self.status)
        return SimpleNamespace(text="Lima", prompt_tokens=7, completion_tokens=2, seconds=0.12345)


def test_a_prompt_is_read_with_a_number_in_front_for_one_token() -> None:
    engine = Asked()
    assert savings.reading(engine, None, "the text") == (7, 0.12345)  # type: ignore[arg-type]
    ((text, tokens, temperature),) = engine.seen
    number, rest = text.split(" ", 1)
    assert len(number) == 6 and number.isdigit() and rest == "the text" and (tokens, temperature) == (1, 0.0)
    found = savings.answered(engine, None, "the text", savings.GREEDY)  # type: ignore[arg-type]
    assert found.model_dump() == {"text": "Lima", "prompt_tokens": 7, "completion_tokens": 2, "seconds": 0.123, "error": ""}
    assert engine.seen[1] == ("the text", 64, 0.0)


@pytest.mark.parametrize("status", [400, 403, 413, 428, 430, 499])
def test_what_one_prompt_cannot_have_is_its_own_error(status: int) -> None:
    found = savings.answered(Asked(status), None, "x", savings.GREEDY)  # type: ignore[arg-type]
    assert "too long" in found.error and (found.text, found.prompt_tokens, found.completion_tokens, found.seconds) == ("", 0, 0, 0.0)
    assert savings.reading(Asked(status), None, "x") == (0, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503])
def test_what_no_prompt_can_have_ends_the_question(status: int) -> None:
    with pytest.raises(EngineError):
        savings.answered(Asked(status), None, "x", savings.GREEDY)  # type: ignore[arg-type]
    with pytest.raises(EngineError):
        savings.reading(Asked(status), None, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "took", "saved", "per_token", "even"),
    [
        ((1000, 1.0), (500, 0.5), 0.11, 0.39, 0.001, 25),  # a token saves 0.5 ms and costs 0.1 ms: 10 ms are back after 25
        ((1000, 1.0), (500, 0.5), 0.005, 0.495, 0.001, 10),  # what takes less than 10 ms has no more than that to earn back
        ((1000, 1.0), (500, 0.5), 0.51, -0.01, 0.001, None),
        ((1000, 0.5), (500, 0.6), 0.2, -0.2, 0.0, None),  # reading fewer took longer: noise
        ((10, 1.0), (10, 0.5), 0.1, None, None, None),
        ((10, 1.0), (9, 0.5), 0.0, 0.5, 0.5, 0),
        ((10, 1.0), (0, 0.0), 0.1, None, None, None),
    ],
)
def test_savings(before: tuple[int, float], after: tuple[int, float], took: float, saved: float, per_token: float, even: int) -> None:
    found = savings.predict(before, after, took)
    assert (found.saved_s, found.read_s_per_token, found.break_even_tokens) == (saved, per_token, even)
    assert found.compress_s == (None if saved is None else round(took, 3))


# forecasts

CONFIG = {"base_model": "starter", "method": "lora", "quantization": {"load_in_4bit": False}}
KEY = forecast._key(CONFIG)
PACES = [Pace(KEY, "d1", step, around) for step, around in ((1.0, 5.0), (3.0, 7.0), (2.0, 6.0), (9.0, 90.0), (4.0, 8.0), (100.0, 100.0))]


def job(name: str = "job", **values: Any) -> JobRow:
    given = {"kind": "train", "name": name, "config": CONFIG, "dataset_id": None, "checkpoint_step": 0, "attempt": 1, "result": {}}
    return JobRow(**{**given, "status": "RUNNING", "queue": "gpu", "updated_at": 1_000_000.0, **values})


@pytest.mark.parametrize(
    ("values", "paces", "seconds"),
    [
        ({"planned_steps": 10}, PACES[:1], 5 + 10),
        ({"planned_steps": 10, "max_steps": 4}, PACES[:1], 5 + 4),
        ({"planned_steps": 10, "checkpoint_step": 7}, PACES[:1], 5 + 3),
        ({"planned_steps": 10, "checkpoint_step": 70}, PACES[:1], 5),
        ({"planned_steps": 1}, PACES, 7 + 3),  # the medians of the first five
        ({}, PACES, None),
        ({"planned_steps": 10}, [], None),
        ({"planned_steps": 10, "config": {**CONFIG, "method": "full"}}, PACES, None),
        ({"planned_steps": 1, "dataset_id": "d2"}, [*PACES, Pace(KEY, "d2", 0.5, 1.0)], 1.5),  # the same data before others
    ],
)
def test_how_long_a_training_takes(values: dict[str, Any], paces: list[Pace], seconds: float | None) -> None:
    assert forecast.duration(job(**values), paces) == seconds


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ({"eta_s": 30.0, "updated_at": 999_990.0}, 20.0),
        ({"eta_s": 5.0, "updated_at": 999_990.0}, 0.0),
        ({"eta_s": 30.0, "updated_at": 1_000_009.0}, 30.0),  # a clock that was set back
        ({"kind": "export", "planned_steps": 10}, None),
        ({"planned_steps": 10, "started_at": 999_996.0}, 11.0),
        ({"planned_steps": 10, "started_at": None}, 15.0),
        ({"planned_steps": 10, "started_at": 900_000.0}, 0.0),
        ({"planned_steps": 10, "started_at": 900_000.0, "attempt": 2}, 15.0),  # it began long before this attempt
        ({}, None),
    ],
)
def test_how_long_a_running_job_has_left(values: dict[str, Any], left: float | None) -> None:
    assert forecast._left(job(**values), PACES[:1], 1_000_000.0) == left


@pytest.mark.parametrize(
    ("values", "step_s", "around_s"),
    [
        ({"step": 4, "max_steps": 10, "eta_s": 12.0, "started_at": 999_980.0}, 2.0, 12.0),
        ({"step": 4, "max_steps": 10, "eta_s": 12.0, "started_at": 999_980.0, "attempt": 2}, 2.0, 0.0),
        ({"step": 4, "max_steps": 10, "eta_s": 12.0, "started_at": None}, 2.0, 0.0),
        ({"step": 9, "max_steps": 10, "eta_s": 1.0, "started_at": 999_980.0}, 1.0, 11.0),
        ({"step": 10, "max_steps": 10, "eta_s": 1.0}, None, None),
        ({"step": 0, "max_steps": 10, "eta_s": 1.0}, None, None),
        ({"step": 4, "max_steps": 10, "eta_s": 0.0}, None, None),
        ({"step": 4, "max_steps": None, "eta_s": 1.0}, None, None),
        ({"status": "SUCCEEDED", "result": {"steps": 5, "seconds": 10.0}, "started_at": 10.0, "ended_at": 23.0}, 2.0, 3.0),
        ({"status": "SUCCEEDED", "result": {"steps": 5, "seconds": 10.0}, "started_at": 10.0, "ended_at": 15.0}, 2.0, 0.0),
        ({"status": "SUCCEEDED", "result": {"steps": 5}, "started_at": 10.0, "ended_at": 15.0}, None, None),
        ({"status": "SUCCEEDED", "result": {"seconds": 5}, "started_at": 10.0, "ended_at": 15.0}, None, None),
    ],
)
def test_the_pace_of_one_run(values: dict[str, Any], step_s: float | None, around_s: float) -> None:
    assert forecast._measured(job(**values)) == (None if step_s is None else Pace(KEY, None, step_s, around_s))


def test_queued_jobs_follow_one_another_from_when_the_device_is_free(studio: Studio, clock: Clock) -> None:
    past = job("past", status="SUCCEEDED", result={"steps": 10, "seconds": 10.0}, started_at=1.0, ended_at=13.0)
    held = job("held", eta_s=50.0, slot="device:0")
    light = job("light", kind="judge", queue="light", eta_s=500.0)
    waits = {"status": "QUEUED", "attempt": 0, "planned_steps": 10}
    one, two = job("one", rank=1.0, **waits), job("two", rank=3.0, **waits)
    add(studio, past, held, light, one, two)
    behind = job("behind", rank=2.0, after_id=two.id, **waits)
    never = job("never", rank=4.0, after_id=add(studio, job("aside", status="PAUSED"))[0], **waits)
    done = job("done", rank=5.0, after_id=past.id, **waits)
    add(studio, behind, never, done)

    def ends() -> dict[str, tuple[float | None, float | None]]:
        with studio.db.read() as session:
            names = {row.id: row.name for row in session.query(JobRow)}
            return {names[one]: (span.starts_in_s, span.ends_in_s) for one, span in forecast.forecast(session).items()}

    # ten steps of a second and two around them
    assert ends() == {
        "held": (None, 50.0), "light": (None, 500.0), "one": (50.0, 62.0), "two": (62.0, 74.0), "behind": (74.0, 86.0),
        "done": (86.0, 98.0), "never": (None, None),
    }  # fmt: skip
    with studio.db.write() as session:
        queue_order.pause_queue(session, "gpu")
    assert ends()["one"] == (None, None) and ends()["held"] == (None, 50.0)
    with studio.db.write() as session:
        queue_order.resume_queue(session, "gpu")
        row = session.get_one(JobRow, held.id)
        row.eta_s, row.kind = None, "export"
    assert ends()["one"] == (None, None), "how long an export takes is not known"
    assert forecast._places_are_free_in([3.0, 5.0], 1) == [5.0] and Span() == Span(None, None)


def test_the_latest_hundred_trainings_are_looked_at(studio: Studio) -> None:
    made = [
        job(f"j{n}", status="SUCCEEDED", result={"steps": 1, "seconds": 1.0 + n}, started_at=0.0, ended_at=1000.0 + n) for n in range(102)
    ]
    running = job("r", step=1, max_steps=2, eta_s=7.0, started_at=999_999.0)
    add(
        studio,
        *made,
        running,
        job("failed", status="FAILED", result={"steps": 1, "seconds": 5.0}),
        job("e", kind="export", status="SUCCEEDED"),
    )
    with studio.db.read() as session:
        steps = [pace.step_s for pace in forecast._paces(session)]
    assert steps == [7.0, *(1.0 + n for n in range(101, 1, -1))]


# fit


def past_run(n: int, ratio: float, **values: Any) -> JobRow:
    config = {"model_name_or_path": str(STARTER_FOLDER), "quantization": {"load_in_4bit": True}, "max_length": 256, "device": "cpu"}
    predicted = memory.predict(memory.model_config(STARTER_FOLDER), build(config), device="cpu").total
    result = {"peak_memory_bytes": round(predicted * ratio), "device": "cpu", "longest_row": 256, **values.pop("result", {})}
    return JobRow(
        **{"kind": "train", "name": f"p{n}", "status": "SUCCEEDED", "config": config, "result": result, "ended_at": float(n), **values}
    )


@pytest.mark.parametrize(
    ("ratios", "factor", "runs"),
    [
        ([1.2], 1.0, 0),
        ([1.2, 1.1], 1.15, 2),
        ([3.0, 3.0], 1.4, 2),
        ([0.1, 0.1], 0.7, 2),
        ([0.9] * 5 + [1.2] * 16 + [1.1] * 4, 1.2, 20),  # the latest twenty
    ],
)
def test_past_runs_correct_within_bounds(studio: Studio, ratios: list[float], factor: float, runs: int) -> None:
    add(studio, *(past_run(n, ratio) for n, ratio in enumerate(ratios)))
    add(studio, past_run(90, 1.3, status="FAILED"), past_run(91, 1.3, kind="export"), past_run(92, 1.3, result={"device": "cuda"}))
    add(studio, past_run(93, 0.0), past_run(94, 1.3, result={"peak_memory_bytes": 1.5}), past_run(95, 1.3, config={"max_length": -1}))
    found = studio.fit.fit(base_model="starter", options={"max_length": 256, "device": "cpu"}).correction
    assert (found.factor, found.runs) == (pytest.approx(factor, abs=0.002), runs)


@pytest.mark.parametrize(("longest", "length"), [(7, 256), (8, 8), (255, 255), (256, 256), (300, 256), ("64", 256), (None, 256)])
def test_a_measured_run_is_held_against_its_longest_row(studio: Studio, longest: Any, length: int) -> None:
    ids = add(studio, past_run(1, 1.0, result={"longest_row": longest}))
    found = studio.fit.measured(ids[0])
    config = {"model_name_or_path": str(STARTER_FOLDER), "quantization": {"load_in_4bit": True}, "max_length": length, "device": "cpu"}
    wanted = memory.predict(memory.model_config(STARTER_FOLDER), build(config), device="cpu").total
    assert found is not None and found.predicted_bytes == wanted


@pytest.mark.parametrize(
    ("options", "offered", "missing"),
    [
        (
            {"per_device_train_batch_size": 2},
            {"Half the batch, the same rows per step": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}},
            [],
        ),
        ({"per_device_train_batch_size": 1}, {}, ["Half the batch, the same rows per step"]),
        ({"per_device_eval_batch_size": 1}, {}, ["Evaluate one row at a time"]),
        ({"per_device_eval_batch_size": 2}, {"Evaluate one row at a time": {"per_device_eval_batch_size": 1}}, []),
        ({"max_length": 129}, {"Half the longest row": {"max_length": 64}}, []),
        ({"max_length": 128}, {}, ["Half the longest row"]),
        ({"gradient_checkpointing": True}, {}, ["Recompute activations"]),
        ({"gradient_checkpointing": False}, {"Recompute activations": {"gradient_checkpointing": True}}, []),
        ({"lora.r": 5}, {"Half the rank": {"lora.r": 2}}, []),
        ({"lora.r": 4}, {}, ["Half the rank", "Plain LoRA", "Train no layers whole", "No packing"]),
        ({"lora.use_dora": True}, {"Plain LoRA": {"lora.use_dora": False}}, []),
        ({"lora.modules_to_save": ["embed_tokens"]}, {"Train no layers whole": {"lora.modules_to_save": None}}, []),
        ({"packing": True}, {"No packing": {"packing": False}}, []),
        ({"optim": "adamw_torch"}, {"An 8-bit optimizer": {"optim": "paged_adamw_8bit"}}, []),
        ({"optim": "paged_adamw_8bit"}, {}, ["An 8-bit optimizer"]),
        ({"quantization.load_in_4bit": True}, {}, ["Keep the base in 4 bits"]),
        (
            {"quantization.load_in_4bit": False},
            {"Keep the base in 4 bits": {"quantization.load_in_4bit": True, "quantization.load_in_8bit": False}},
            ["Train an adapter instead of everything, on a 4-bit base"],
        ),
        (
            {"method": "full", "quantization.load_in_4bit": False},
            {
                "Train an adapter instead of everything, on a 4-bit base": {
                    "method": "lora",
                    "quantization.load_in_4bit": True,
                    "quantization.load_in_8bit": False,
                }
            },
            ["Keep the base in 4 bits", "Half the rank", "Plain LoRA"],
        ),
    ],
)
def test_what_a_person_could_change(options: dict[str, Any], offered: dict[str, Any], missing: list[str]) -> None:
    found = dict(fit._changes(build(options)))
    assert {words: found.get(words) for words in offered} == offered and not set(missing) & set(found)
    assert [fit._text(value) for value in (True, False, 3, "x", None)] == ["true", "false", "3", "x", "None"]


# rows of a launch


def test_what_the_rows_of_a_launch_have_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = SimpleNamespace(in_row=lambda row: row.get("control", []))
    monkeypatch.setattr(launch_answers.ControlTokens, "of", lambda renderer: control)

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows: list[dict[str, Any]] = [
        {"prompt": "a", "chosen": said("x"), "rejected": said("x"), "control": ["<s>", "</s>"], "label": True},
        {"prompt": "a", "chosen": said("x"), "rejected": said("y"), "control": ["<s>"], "label": False},
        {"prompt": "a", "chosen": said("z"), "rejected": said("z"), "label": 1},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paired = launch_answers.look(file, None, launch_answers.RowForm.PAIRED)  # type: ignore[arg-type]
    assert (paired.rows, paired.identical, dict(paired.marks), dict(paired.control), paired.rows_with_control) == (
        3,
        [1, 3],
        {},
        {"<s>": 2, "</s>": 1},
        2,
    )
    marked = launch_answers.look(file, None, launch_answers.RowForm.MARKED)  # type: ignore[arg-type]
    assert (marked.identical, dict(marked.marks)) == ([], {True: 1, False: 2})
    named: Any = SimpleNamespace(name="pairs")
    assert launch_answers._of_control_tokens(named, paired)[0].startswith(
        "2 of 3 rows of pairs hold control tokens written as text (<s> in 2, </s> in 1)"
    )
    assert (
        launch_answers._of_control_tokens(named, launch_answers.AnswersSeen(3))
        == launch_answers._of_pairs(named, launch_answers.AnswersSeen(3))
        == []
    )


def test_equal_answers_are_left_out_up_to_a_fifth_and_refused_above(monkeypatch: pytest.MonkeyPatch) -> None:
    named: Any = SimpleNamespace(name="pairs")
    (said,) = launch_answers._of_pairs(named, launch_answers.AnswersSeen(10, [2, 5]))
    assert said.startswith("2 of 10 pairs of pairs have two equal answers (row 2, 5) and are left out; `studio data fix pairs")
    with pytest.raises(StudioError, match=r"3 of 10 pairs of pairs .* there is nothing to prefer"):
        launch_answers._of_pairs(named, launch_answers.AnswersSeen(10, [1, 2, 3]))


@pytest.mark.parametrize(
    ("marks", "loss", "said", "fix"),
    [
        ([True, False], "kto", "", ""),
        ([], "kto", "", ""),
        ([True], "kto", "All 4 answers of rows are marked good, and kto learns from good answers beside bad ones", "Or imitate them"),
        ([False], "kto", "All 4 answers of rows are marked bad, and kto", "Add rows that are marked good"),
        ([True], "apo_zero_unpaired", "marked good: apo_zero_unpaired makes them likelier, with no bad ones", ""),
        ([False], "apo_zero_unpaired", "marked bad: apo_zero_unpaired makes them less likely, with no good ones", ""),
    ],
)
def test_marks_of_one_kind_only(marks: list[bool], loss: str, said: str, fix: str) -> None:
    seen = launch_answers.AnswersSeen(4)
    seen.marks.update(marks)
    config: Any = SimpleNamespace(kto=SimpleNamespace(loss_type=loss))
    named: Any = SimpleNamespace(name="rows")
    if fix:
        with pytest.raises(StudioError, match=said) as caught:
            launch_answers._of_marks(named, seen, config)
        assert fix in caught.value.fix and ("imitate" in caught.value.fix) == (marks == [True])
    else:
        found = launch_answers._of_marks(named, seen, config)
        assert len(found) == bool(said) and all(said in one for one in found)


@pytest.mark.parametrize(
    ("counts", "p99", "said", "change"),
    [
        ((5, 5, 5), 0, "row 3: the template refuses it", None),
        ((4, 5, 5), 70, "with max_length=64: their answers begin behind it", {"max_length": 70}),
        ((4, 5, 4), 9, "with max_length=64: their answers begin behind it", {"max_length": 65}),
        ((4, 4, 5), 0, "they have no answer of the assistant", None),
    ],
)
def test_why_rows_teach_nothing(counts: tuple[int, int, int], p99: float, said: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_rows, "_folding_helps", lambda *_: False)
    problems, cut, nothing = counts
    found: Any = SimpleNamespace(
        share_without_learned_tokens=0.456, problem_count=problems, cut_before_learned=cut, nothing_learned=nothing, p99=p99,
        problems=[SimpleNamespace(line=3, problem="the template refuses it.", fix="Mend it.")],
    )  # fmt: skip
    config: Any = SimpleNamespace(max_length=64, learned_turns="all")
    named: Any = SimpleNamespace(name="rows")
    refused = launch_rows.nothing_to_learn(None, named, None, found, config)  # type: ignore[arg-type]
    assert (
        refused.message.startswith("46% of the rows of rows hold no token to learn (more than 20% is refused)") and said in refused.message
    )
    assert refused.details.get("change") == change
    monkeypatch.setattr(launch_rows, "_folding_helps", lambda *_: True)
    folded = launch_rows.nothing_to_learn(None, named, None, found, config)  # type: ignore[arg-type]
    assert (folded.details.get("change") == {"system_message": "fold"}) == (counts == (5, 5, 5))


def test_a_problem_is_one_line_for_each_thing_or_for_each_way_on() -> None:
    one = launch_rows.refusals_of(StudioError("Bad.", "Mend.", change={"a": 1}))
    assert [(r.message, r.fix, r.change) for r in one] == [("Bad.", "Mend.", {"a": 1})]
    two = launch_rows.refusals_of(StudioError("Bad.", "Mend.", problems=["x", "y"]))
    assert [(r.message, r.fix) for r in two] == [("x", "Mend."), ("y", "Mend.")]
    ways = [{"title": "Fold", "change": {"s": "fold"}}, {"title": "Drop", "change": {"s": "drop"}}]
    found = launch_rows.refusals_of(StudioError("Bad.", "Mend.", alternatives=ways))
    assert [(r.message, r.fix, r.change) for r in found] == [("Bad.", "Fold.", {"s": "fold"}), ("Or:", "Drop.", {"s": "drop"})]


# recall, keys, verdicts, reports


def test_an_answer_is_given_again_only_where_it_would_be_the_same(tmp_path: Path, studio: Studio) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    adapter = SimpleNamespace(sha256="s", path=tmp_path)
    contestant = SimpleNamespace(base=SimpleNamespace(path=tmp_path), url="", quantization="", adapter=None, chat_template=None)

    def key(
        params: GenerationParams | None = None, messages: Any = ({"role": "user", "content": "x"},), more: Any = None, **values: Any
    ) -> str | None:
        who: Any = SimpleNamespace(**{**vars(contestant), **values})
        return recall.key_of(who, messages, params or GenerationParams(temperature=0.0), more or {})

    plain = key()
    assert plain == key() and plain is not None and len(plain) == 64
    assert key(GenerationParams(temperature=0.5)) is None and key(GenerationParams(temperature=0.5, seed=0)) is not None
    assert key(base=None) is None and key(url="http://x") is None
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    others = [key(), key(adapter=adapter), key(quantization="4bit"), key(chat_template="chatml"), key(messages=()), key(more={"a": 1})]
    others += [key(GenerationParams(temperature=0.0, max_new_tokens=1)), plain]
    assert len(set(others)) == len(others)
    add(studio, first := ConversationRow(), second := ConversationRow())
    with studio.db.write() as session:
        recall.keep(session, "k", first.id, "text", "stop", Usage(1, 2))
        recall.keep(session, "k", second.id, "other", "length", None)
        recall.keep(session, "l", second.id, "bare", "stop", None)
    with studio.db.read() as session:
        found = recall.find(session, "k")
        assert found is not None and (found.text, found.conversation_id, found.usage["total_tokens"]) == ("text", first.id, 3)
        assert recall.find(session, "m") is None and session.get_one(CachedAnswerRow, "l").usage == {}


def test_a_key_is_shown_once_and_known_until_it_is_deleted(studio: Studio) -> None:
    made = studio.keys.create("  my\n tool ")
    assert made.name == "my tool" and made.key.startswith("studio-") and len(made.key) == 7 + 43
    assert studio.keys.find(made.key) and not studio.keys.find(made.key + "x")
    with studio.db.read() as session:
        assert made.key not in str([(row.name, row.sha256) for row in session.query(ApiKeyRow)])
    longest = studio.keys.create("x" * 64)
    for name in ("x" * 65, " \n"):
        with pytest.raises(StudioError, match="1 to 64 characters"):
            studio.keys.create(name)
    assert [key.name for key in studio.keys.list()] == ["x" * 64, "my tool"]
    assert studio.keys.delete(made.id).name == "my tool" and not studio.keys.find(made.key)
    with pytest.raises(NotFoundError):
        studio.keys.delete(made.id)
    assert [key.id for key in studio.keys.list()] == [longest.id]


def adapter_row(job_id: str | None, name: str = "mine") -> AdapterRow:
    return AdapterRow(name=name, base_model="starter", method="lora", job_id=job_id, path=f"/a/{name}", bytes=1)


def test_the_newest_judgement_that_speaks_of_an_adapter_counts(studio: Studio) -> None:
    one, two, three = add(studio, job("one"), job("two"), job("three"))
    add(studio, adapter_row(one, "mine"), adapter_row(two, "other"))
    same = ComparisonRow(name="same", base_model="starter", contestants=[], prompts=[])
    far = ComparisonRow(name="far", base_model="elsewhere", contestants=[], prompts=[])
    add(studio, same, far)

    def judgement(comparison: ComparisonRow, at: float, **rates: float | None) -> JudgementRow:
        readings = {"win_rate": rates, "ci95": {name: [0.1, 0.9] for name in rates}}
        return JudgementRow(comparison_id=comparison.id, judge=f"j{at:g}", kind="model", readings=readings, created_at=at)

    add(
        studio,
        judgement(same, 1.0, mine=0.25),
        judgement(same, 2.0, mine=0.75),
        judgement(far, 3.0, mine=1.0),
        judgement(same, 4.0, mine=None),
    )
    add(studio, judgement(far, 0.5, **{"starter:other": 0.5}))
    with studio.db.read() as session:
        found = judged.judged(session, [one, two, three])
        assert judged.judged(session, [three]) == {three: None}
    assert {name: verdict and (verdict.win_rate, verdict.judge, verdict.comparison, verdict.ci95) for name, verdict in found.items()} == {
        one: (0.75, "j2", "same", [0.1, 0.9]),
        two: (0.5, "j0.5", "far", [0.1, 0.9]),
        three: None,
    }


def test_the_newest_report_of_a_training(studio: Studio) -> None:
    training, other = add(studio, job("first", status="SUCCEEDED"), job("other", kind="export"))
    with pytest.raises(NotFoundError, match="first has no report"):
        studio.reports.show("first")
    assert studio.reports.latest("first") is None
    for name, said in (("other", "other is no training"), ("first", "first has no adapter to report on")):
        with pytest.raises(StudioError, match=said):
            studio.reports.make(name)
    config = {"comparison": "c"}
    made = [
        job(f"r{n}", kind="report", queue="light", status="QUEUED", after_id=training, config=config, created_at=float(n), priority=-1)
        for n in (2, 3, 1)
    ]
    made[0].result = {"rows": 4, "secret": 1}
    add(
        studio,
        *made,
        job("r9", kind="train", after_id=training, created_at=9.0),
        job("r8", kind="report", after_id=other, created_at=8.0, config=config),
    )
    assert studio.reports.show("first").job == made[1].id and studio.reports.hurry("first").job == made[1].id
    with studio.db.read() as session:
        assert [session.get_one(JobRow, row.id).priority for row in made] == [-1, 0, -1]
    assert reports.record(made[0]).rows == 4


def test_what_nothing_refers_to_takes_room_until_it_is_cleaned(studio: Studio, settings: Settings) -> None:
    old = time.time() - storage.YOUNG_S - 60

    def put(noun: str, name: str, size: int, at: float = old) -> Path:
        folder = settings.home / noun / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * size)
        os.utime(folder / "file", (at, at))
        os.utime(folder, (at, at))
        return folder

    before = {one.noun: one.bytes for one in studio.storage.show().nouns}
    gone, young, kept = put("datasets", "gone", 100), put("datasets", "young", 10, old + 120), put("datasets", "kept", 20)
    run = put("runs", "done", 7)
    checkpoints = put("runs/done", "checkpoints", 1000)
    going = put("runs", "going", 5)
    put("runs/going", "checkpoints", 3)
    put(f"{storage.BEFORE}-1", "x", 50)
    (settings.home / "adapters" / "link").symlink_to(gone)
    add(studio, DatasetRow(id="kept", name="kept", kind="sft", format="x", rows=1))
    add(studio, job("done", status="SUCCEEDED", run_dir=str(run)), job("going", status="FAILED", run_dir=str(going)))
    shown = studio.storage.show()
    assert [(one.noun, one.path, one.bytes, one.why) for one in shown.unused] == [
        ("datasets", str(gone), 100, storage.WHY["datasets"]),
        ("runs", str(checkpoints), 1000, storage.CHECKPOINTS),
    ]
    nouns = {one.noun: (one.bytes - before.get(one.noun, 0), one.unused_bytes) for one in shown.nouns}
    assert (
        nouns["datasets"] == (130, 100) and nouns["runs"] == (1015, 1000) and nouns[storage.BEFORE] == (50, 0) and nouns["adapters"][1] == 0
    )
    assert shown.unused_bytes == 1100 and shown.free_bytes > 0
    cleaned = studio.storage.clean()
    assert cleaned.freed_bytes == 1100 and cleaned.kept == [] and not gone.exists() and not checkpoints.exists()
    assert young.exists() and kept.exists() and going.exists() and run.exists() and list(settings.home.glob("**/.gone-*")) == []
    assert studio.storage.clean().deleted == [] and storage.BEFORE not in {"datasets", "runs"}


def test_what_a_template_leaves_out_is_refused_unless_it_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [
        Alternative(title="Fold it", change={"system_message": "fold"}),
        Alternative(title="Go on", change={"template_losses": "accept"}),
    ]
    monkeypatch.setattr(launch_rows, "losses", lambda *_: [SimpleNamespace(sentence="No system message.", alternatives=ways)])
    found: Any = SimpleNamespace(left_out={}, checked=1)
    (refused,) = launch_rows.template_refusals(None, found, build({}))  # type: ignore[arg-type]
    assert refused.message == "No system message."
    assert refused.fix == "Set system_message=fold (fold it), or template_losses=accept (go on)."
    assert launch_rows.template_refusals(None, found, build({"template_losses": "accept"})) == []  # type: ignore[arg-type]
