"""What a judge is asked can't be broken by an answer, and a reply is a verdict or it is none."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from pathlib import Path

import pytest

from studio.evaluation import judging, prompts, readings
from studio.evaluation.verdicts import VerdictLine
from studio.records import ComparisonPrompt, PromptMessage
from studio.types import Example, Message, Role
from tests.attacks import ATTACKS

PROMPT = {"id": "1", "turns": [[{"role": "user", "content": "What is {answer_a}?"}]], "reference": "right"}
FRAMES = ("[The Start of Assistant A's Answer]", "[The End of Assistant A's Answer]", "[The Start of Assistant B's Answer]")
FRAMES += ("[The End of Assistant B's Answer]", "[User Question]", "[The Start of Reference Answer]", "[The End of Reference Answer]")


def test_no_attack_breaks_the_frame() -> None:
    assert len(ATTACKS) >= 60
    judge = judging.get("pair")
    for attack in ATTACKS:
        for sides in ((attack, "fine"), ("fine", attack)):
            text = "\n".join(message["content"] for message in judging.question(judge, PROMPT, [sides[0]], [sides[1]]))
            assert [text.count(frame) for frame in FRAMES] == [1] * len(FRAMES), attack
            assert "[[" not in text and "<|" not in text and "\n### User" not in text, attack
            assert not any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t" for c in text), attack
            assert "What is {answer_a}?" in text, "a placeholder inside a question was filled"


def test_answers_that_talk_to_the_judge_are_noticed_and_their_lift_is_told(shared_data: Path) -> None:
    assert sum(map(judging.talks_to_the_judge, ATTACKS)) >= 0.9 * len(ATTACKS)
    with gzip.open(shared_data / "data" / "judge" / "pandalm" / "testset-v1.json.gz") as file:
        ordinary = [str(row[key]) for row in json.load(file) for key in ("response1", "response2")]
    assert sum(map(judging.talks_to_the_judge, ordinary)) <= 0.01 * len(ordinary)
    lines = [VerdictLine(str(n), *pair, "a" if pair[0] == "x" else "b") for n in range(20) for pair in (("x", "y"), ("y", "x"))]
    truth = [VerdictLine(str(n), "x", "y", "a" if n < 5 else "b") for n in range(20)]
    attacks = {(str(n), "x") for n in range(10)}
    found = readings.read(readings.ReadingsInput(lines, {}, ["x", "y"], references=truth, attacks=attacks))
    assert (found["attacks"]["win_rate"], found["attacks"]["references"], found["attacks"]["lift"]) == (1.0, 0.5, 0.5)
    assert any("lift of +50 points" in said for said in found["warnings"])


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("a [list] of 3 < 4", "### Heading\n- x | y", "नमस्‍ते 👩‍🔬 #1", "if a[0][1] {x} else"):
        assert judging.defanged(text) == text


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "a"),
        ("[[B]]", "b"),
        (" **C**.", "tie"),
        ("tie", "tie"),
        ("Assistant B", "b"),
        ("I compared both. [[A]] would be wrong, so [[B]]", "b"),
        ('{"winner": "A", "why": "B is short"}', "a"),
        ("A or B", "invalid"),
        ("A is better than B because", "invalid"),
        ("<html><body>A</body></html>", "invalid"),
        ("Answers A and B both have their merits. " * 30, "invalid"),
        ("", "invalid"),
        ("D", "invalid"),
    ],
)
def test_a_reply_is_a_verdict_or_none(reply: str, verdict: str) -> None:
    assert judging.verdict(reply) == verdict


def test_ratings_are_read_and_compared() -> None:
    assert [judging.rating(text) for text in ("7", "Rating: [[8.5]]", "9/10", "11", "good")] == [7.0, 8.5, 9.0, None, None]
    assert [judging.by_rating(7, 6), judging.by_rating(6, 7), judging.by_rating(5, 5), judging.by_rating(None, 5)] == [
        "a",
        "b",
        "tie",
        "invalid",
    ]


def test_the_rule_of_the_reference_judge() -> None:
    assert judging.by_reference(" right ", "right answer", "right") == "a"
    assert judging.by_reference("wrong", "the right one", "right one") == "b"
    assert judging.by_reference("x", "y", "right") == "tie"


def test_mt_bench_questions_fill_mt_bench_templates(shared_data: Path) -> None:
    folder = shared_data / "data" / "judge"
    found = prompts.read(folder / "mtbench_question.jsonl")
    own = {row["name"]: row for row in map(json.loads, (folder / "fastchat_judge_prompts.jsonl").read_text().splitlines())}
    judge = judging.get("mt-bench")
    math = next(prompt for prompt in found if prompt.get("references"))
    plain = next(prompt for prompt in found if not prompt.get("reference"))
    for prompt, name in ((math, "pair-math-v1-multi-turn"), (plain, "pair-v2-multi-turn")):
        system, user = judging.question(judge, prompt, ["one", "two"], ["three", "four"])
        assert system["content"] == own[name]["system_prompt"]
        assert user["content"].startswith(own[name]["prompt_template"].split("{")[0])
        assert all(text in user["content"] for text in ("one", "two", "three", "four", prompt["turns"][1][0]["content"]))
        assert "{" not in user["content"].replace(prompt["turns"][0][0]["content"], "").replace(prompt["turns"][1][0]["content"], "")


@pytest.mark.parametrize(
    ("turns", "pair", "single"),
    [
        (2, "Q1 R1 Q2 R2 | Q1 F1 Q2 F2 | Q1 S1 Q2 S2", "Q1 R1 Q2 R2 | Q1 F1 Q2 F2"),
        (1, "Q1 R1 F1 S1", "Q1 R1 F1"),
    ],
)
def test_mt_bench_shows_each_question_beside_its_own_reference_and_answers(turns: int, pair: str, single: str) -> None:
    def texts(letter: str) -> list[str]:
        return [f"{letter}{n}" for n in range(1, turns + 1)]

    prompt: ComparisonPrompt = {
        "id": "p",
        "turns": [[{"role": "user", "content": text}] for text in texts("Q")],
        "reference": texts("R")[-1],
        "references": texts("R"),
    }
    asked = judging.question(judging.get("mt-bench"), prompt, texts("F"), texts("S"))
    rated = judging.rating_question(judging.get("mt-bench-single"), prompt, texts("F"))
    for messages, order in ((asked, pair), (rated, single)):
        assert re.findall(r"\b[QRFS]\d\b", messages[-1]["content"]) == order.replace("|", "").split()


def test_rows_become_prompts_up_to_their_last_answer() -> None:
    system = Message(role=Role.SYSTEM, content="Be brief.")
    asked, answered = Message(role=Role.USER, content="One?"), Message(role=Role.ASSISTANT, content="1")
    rows = [
        Example(messages=[system, asked]),
        Example(text="no prompt"),
        Example(messages=[system, asked, answered, asked, answered, asked]),
        Example(prompt="Two?", completion="2", label=True),
        Example(prompt="Two?", completion="3", label=False),
        Example(prompt=[asked], chosen=[answered], rejected=[asked]),
    ]
    found = prompts.from_examples(rows)
    assert [prompt["id"] for prompt in found] == ["1", "3", "4", "5", "6"]
    assert [prompt.get("reference") for prompt in found] == [None, "1", "2", None, "1"]
    assert [len(prompt["turns"][0]) for prompt in found] == [2, 4, 1, 1, 1]


def test_a_long_reference_is_an_essay_and_a_note_in_words_makes_notes_of_all_questions_of_several_turns() -> None:
    def prompt(name: str, reference: str | None, turns: int = 1) -> ComparisonPrompt:
        made = ComparisonPrompt(id=name, turns=[[PromptMessage(role="user", content="How many?")]] * turns)
        if reference is not None:
            made["reference"] = reference
        return made

    single = [prompt("without", None), prompt("answer", "7" * prompts.ESSAY), prompt("essay", "7" * (prompts.ESSAY + 1))]
    short = [prompt("silent", None, 2), prompt("number", "It is 36, not 37.", 2)]
    assert prompts.essays(single + short) == {"essay"}
    note = prompt("note", "The sum of all is 36.", 2)
    assert prompts.essays([*single, *short, note]) == {"essay", "silent", "number", "note"}


def judged(prefers_longer: float, better: float, count: int = 200) -> readings.ReadingsInput:
    """Verdicts of a judge that takes the longer of two answers that often, where x is better that often and always longer."""
    source, lines = random.Random(5), []
    for n in range(count):
        winner = "x" if source.random() < (prefers_longer if source.random() < prefers_longer else better) else "y"
        lines += [
            VerdictLine(str(n), "x", "y", "a" if winner == "x" else "b"),
            VerdictLine(str(n), "y", "x", "b" if winner == "x" else "a"),
        ]
    lengths = {(str(n), name): (source.randint(50, 200) if name == "x" else source.randint(1, 60)) for n in range(count) for name in "xy"}
    return readings.ReadingsInput(lines, lengths, ["x", "y"])


def test_a_judge_that_counts_words_is_flagged_and_corrected() -> None:
    found = readings.read(judged(0.95, 0.5))
    assert found["longer_win_rate"] > 0.85 and any("longer answer" in said for said in found["warnings"])
    assert abs(sum(found["length_controlled_win_rate"].values()) - 1) < 0.01
    assert found["swap_consistency"] == 1.0 and found["enough"] and found["more_needed"] == 0


def test_little_evidence_is_called_little() -> None:
    lines = [VerdictLine(str(n), "x", "y", "a" if n % 2 else "b") for n in range(10)]
    found = readings.read(readings.ReadingsInput(lines, {}, ["x", "y"]))
    assert not found["enough"] and 50 < found["more_needed"] < 250 and found["missing_orders"] == 10
    empty = readings.read(readings.ReadingsInput([VerdictLine("1", "x", "y", "invalid")], {}, ["x", "y"]))
    assert empty["win_rate"] == {"x": None, "y": None} and empty["invalid"] == 1 and not empty["enough"]
