"""What a person can do about long prompts: what is refused, what is handed to the compressor, votes and verdicts, and the jobs it makes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.compress.models import WORDS_FOLDER
from studio.db.models import JobRow
from studio.errors import StudioError
from studio.records import Compression, CompressionSaving, PromptAnswer, SweepPrompt, Verdict, Winner
from studio.services import Studio, compression
from studio.services.models import STARTER_FOLDER


def made(**values: Any) -> Compression:
    given = {
        "text": "s",
        "tokens_before": 100,
        "tokens_after": 40,
        "requested": 0.5,
        "achieved": 0.4,
        "counter": "",
        "method": "m",
        "seconds": 0.1,
    }
    return Compression(**{**given, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"limit": 9}, "The prompt has 10 characters; at most 9 are taken here"),
        ({"dtype": "float16"}, "dtype 'float16' is not float32 or bfloat16"),
        ({"rate": None}, "either a rate or a target"),
        ({"compressor": "nothing"}, "There is no compressor or model 'nothing'"),
        ({"method": "llmlingua", "compressor": "llmlingua2-words"}, "llmlingua needs a causal language model"),
        ({"options": {"self": 1}}, "There is no option 'self'"),
        ({"options": {"must_keep": "numbers"}}, "must_keep is no list of texts"),
        ({"options": {"keep_patterns": [1]}}, "keep_patterns is no list of texts"),
    ],
)
def test_what_cannot_be_compressed(studio: Studio, values: dict[str, Any], said: str) -> None:
    if "compressor" in values and values["compressor"].endswith("words"):
        values = {**values, "compressor": next(one.name for one in studio.compression.compressors.list().compressors)}
    with pytest.raises(StudioError) as caught:
        studio.compression.compress(["12345", "67890"], **{"rate": 0.5, **values})
    assert said in caught.value.message


def test_what_the_compressor_is_given(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(studio.compression.process, "compress", lambda *given: calls.append(given) or made())
    found = studio.compression.compress(["12345", "67890"], rate=0.5, limit=10, options={"must_keep": ["numbers"], "rate": 0.9})
    chosen, counting, arguments, dtype = calls.pop()
    assert (chosen, counting, dtype) == (WORDS_FOLDER, STARTER_FOLDER, "float32")
    assert arguments == {
        "must_keep": ["numbers"], "contexts": ["12345", "67890"], "method": None, "rate": 0.5, "target_token": None, "instruction": "",
        "question": "", "force_tokens": [], "force_digits": False,
    }  # fmt: skip
    assert (found.counter, found.warnings) == ("starter", []) and found.compressor
    other = studio.compression.compress(["x"], target_token=5, method="llmlingua", dtype="bfloat16", counter="starter")
    assert other.compressor == "starter" and other.warnings == ["Computed in bfloat16: another machine, or float32, may keep other words."]
    assert calls.pop()[0] == STARTER_FOLDER
    with pytest.raises(StudioError, match="There is no compressor"):
        studio.compression.compress(["x"], rate=0.5, compressor=str(STARTER_FOLDER / "nothing"))
    studio.compression.compress(["x"], rate=0.5, method="llmlingua", compressor=str(STARTER_FOLDER))
    studio.models.at_terminal = False
    for name in (str(STARTER_FOLDER), "hub:a/b"):
        with pytest.raises(StudioError, match="There is no compressor"):
            studio.compression.compress(["x"], rate=0.5, compressor=name)


def test_both_prompts_are_answered_and_the_speed_is_remembered(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    speeds = iter([(100, 1.0), (40, 0.4), (10, 0.1), (10, 0.1)])
    monkeypatch.setattr(compression.savings, "reading", lambda engine, who, text: next(speeds))

    def answered(engine: Any, who: Any, text: str, params: Any) -> PromptAnswer:
        seen.append((text, params.temperature, params.max_new_tokens))
        return PromptAnswer(text=text, prompt_tokens=1, completion_tokens=1, seconds=1.0)

    monkeypatch.setattr(compression.savings, "answered", answered)
    assert studio.compression.foresee(made(), "starter") is None
    found = studio.compression.ask_both("long", "short", "starter", compress_seconds=0.1, params={"max_new_tokens": 5})
    assert (found.before.text, found.after.text, found.saving.saved_s, seen) == (
        "long",
        "short",
        0.5,
        [("long", 0.0, 5), ("short", 0.0, 5)],
    )
    foreseen = studio.compression.foresee(made(), "starter")
    assert isinstance(foreseen, CompressionSaving) and (foreseen.saved_s, foreseen.read_s_per_token) == (0.5, 0.01)
    studio.compression.ask_both("a", "b", "starter")
    assert studio.compression._reading == {"starter": 0.01}, "a reading without a speed changes nothing"


def test_a_judge_prefers_one_of_two_answers(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(compression.panel, "open_judge", lambda config, settings: SimpleNamespace(close=lambda: closed.append(True)))

    def said(*winners: str) -> Any:
        verdicts = [Verdict(prompt_id="1", a="one", b="other", winner=Winner(winner), reply=f"r {winner}") for winner in winners]
        monkeypatch.setattr(compression.panel, "judge_both_orders", lambda judge, pairs: [verdicts])
        found = studio.compression.judge_both("p", "before", "after", "starter")
        return found.winner, found.consistent, found.replies

    assert said("a", "b") == ("original", True, ["r a", "r b"]) and said("b", "a")[:2] == ("compressed", True)
    assert said("a", "a")[:2] == ("tie", False) and said()[:2] == ("tie", True) and said("invalid", "invalid")[:2] == (None, None)
    assert closed == [True] * 5
    for judge in ("reference", "starter,reference"):
        with pytest.raises(StudioError, match="needs references"):
            studio.compression.judge_both("p", "a", "b", judge)


def test_votes_are_kept_line_by_line_and_counted(studio: Studio) -> None:
    assert studio.compression.votes().model_dump() == {"original": 0, "compressed": 0, "tie": 0}
    for first, second, winner in (
        ("original", "compressed 50 %", "a"),
        ("original", "compressed", "b"),
        ("compressed 40 %", "original", "a"),
        ("original", "compressed", "tie"),
    ):
        vote = studio.compression.vote("prompt", "starter", first, second, winner)
    assert len(vote.prompt_id) == 12 and vote.rater == "human" and vote.answered_by == "starter"
    with studio.compression.votes_path.open("a") as file:
        file.write("\n")
    assert studio.compression.votes().model_dump() == {"original": 1, "compressed": 2, "tie": 1}
    with pytest.raises(StudioError, match="A vote is a, b or tie"):
        studio.compression.vote("p", "starter", "a", "b", "invalid")


ROWS = [SweepPrompt(text="long", question="Why?", reference="one two"), SweepPrompt(text="other", reference="three")]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rates": [0.5, 0.0]}, "The rate 0.0 is not above 0"),
        ({"rates": [1.5]}, "The rate 1.5 is not above 0"),
        ({"rates": []}, "is not above 0"),
        ({"metric": "bleu"}, "There is no metric 'bleu' here"),
        ({"metric": "number_match"}, "number_match can't be measured on these prompts"),
        ({"rows": [SweepPrompt(text="x")]}, "A prompt has no reference"),
        ({"rows": None}, "No prompts are given"),
    ],
)
def test_what_cannot_be_swept(studio: Studio, values: dict[str, Any], said: str) -> None:
    with pytest.raises(StudioError, match=said):
        studio.compression.sweep(**{"contestant": "starter", "rows": ROWS, **values})


def test_a_sweep_is_a_job_of_the_rates_and_the_whole_prompt(studio: Studio) -> None:
    job = studio.compression.sweep(contestant="starter", rows=ROWS, rates=[0.5, 0.25, 0.5])
    again = studio.compression.sweep(contestant="starter", rows=ROWS, metric="judge", rates=[1])
    assert (job.name, again.name, job.status, job.kind) == ("compress-sweep", "compress-sweep-2", "QUEUED", "compress-sweep")
    with studio.db.read() as session:
        config, other = (session.get_one(JobRow, one.id).config for one in (job, again))
        assert session.get_one(JobRow, job.id).queue == "light"
    assert (config["rates"], config["metric"], config["judge"], config["tolerance"], config["method"]) == (
        [1.0, 0.5, 0.25],
        "exact_match",
        None,
        0.05,
        "llmlingua2",
    )
    assert (
        config["compressor"] == str(WORDS_FOLDER) and config["counter"] == str(STARTER_FOLDER) and config["params"]["max_new_tokens"] == 64
    )
    assert [row["question"] for row in config["prompts"]] == ["Why?", ""] and other["judge"]["judge"] == "likelihood:starter"
    assert studio.compression.result(job.id).model_dump() == {} == studio.compression.result("gone").model_dump()
    result = {"points": [], "tolerance": 0.05, "metric": "exact_match", "judge": "", "recommended": 0.5, "whole": 1.0}
    with studio.db.write() as session:
        session.get_one(JobRow, again.id).result = result
        session.get_one(JobRow, again.id).created_at += 10
    latest = studio.compression.latest_sweep()
    assert latest is not None and (latest.id, latest.method) == (again.id, "llmlingua2") and latest.result is not None
    assert latest.result.recommended == 0.5 and studio.compression.result(again.id).model_dump()["recommended"] == 0.5


def test_the_first_rows_of_a_dataset_are_swept(studio: Studio) -> None:
    assert studio.compression.latest_sweep() is None
    rows = "".join(f'{{"instruction": "question {n}", "output": "answer {n}"}}\n' for n in range(60))
    data = studio.datasets.add_text(rows, name="rows")
    job = studio.compression.sweep(contestant="http://far/v1#m", data="rows")
    few = studio.compression.sweep(contestant="starter", data=data.id, limit=2)
    with studio.db.read() as session:
        config, other = (session.get_one(JobRow, one.id).config for one in (job, few))
    assert len(config["prompts"]) == 50 and [row["reference"] for row in other["prompts"]] == ["answer 0", "answer 1"]
    assert config["counter"] == str(STARTER_FOLDER), "another server's tokenizer is not here"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"texts": "all"}, "There are no texts 'all'"),
        ({"rate": 0.0}, "is not above 0 and below 1"),
        ({"rate": 1.0}, "is not above 0 and below 1"),
        ({"method": "longllmlingua"}, "needs a question of its own"),
        ({"name": "rows"}, "The name 'rows' is taken"),
    ],
)
def test_what_makes_no_shorter_dataset(studio: Studio, values: dict[str, Any], said: str) -> None:
    studio.datasets.add_text('{"text": "a b c"}\n', name="rows")
    with pytest.raises(StudioError, match=said):
        studio.compression.compress_data("rows", **{"rate": 0.5, **values})


def test_a_shorter_dataset_is_a_job(studio: Studio) -> None:
    data = studio.datasets.add_text('{"text": "a b c"}\n', name="rows")
    job = studio.compression.compress_data("rows", 0.5, force_digits=True)
    named = studio.compression.compress_data("rows", 0.5, name="short", texts="text", method="llmlingua")
    with studio.db.read() as session:
        config, other = (session.get_one(JobRow, one.id).config for one in (job, named))
    assert (job.name, config["name"], config["texts"], config["rows"], config["parent"]) == (
        "compress-rows-compressed",
        "rows-compressed",
        "longest",
        1,
        data.id,
    )
    assert config["options"] == {"force_digits": True} and Path(config["folder"]).name == config["dataset"] and config["rate"] == 0.5
    assert (other["name"], other["texts"], other["compressor"]) == ("short", "text", str(STARTER_FOLDER))
