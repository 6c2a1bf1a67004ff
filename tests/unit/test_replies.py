"""Replies of judges as people have seen them, each with the verdict it holds; what holds none is invalid, with the reason."""

from __future__ import annotations

import json
import random
import re

import pytest

from studio.evaluation import replies
from studio.records import InvalidReason

VERDICTS = {
    "a": [
        "A",
        "a",
        "Ａ",
        "**A**",
        "(A)",
        "[A]",
        "'A'",
        "“A”.",
        "Assistant A",
        "Response A",
        "Model A wins.",
        "Answer: A",
        "Answer: **A**",
        "**Answer:** A",
        "The answer is A.",
        "Final verdict: A",
        "**Final Verdict**: Assistant A",
        "### Final verdict\n\nA",
        "Verdict:\n[[A]]",
        "[[A]]",
        "[[a]]",
        "My verdict is [[A]].",
        "[[A>B]]",
        "[[A>>B]]",
        "[[B<A]]",
        "My final verdict is: [[A>>B]]",
        "A > B",
        "A\n\nBecause its facts are right.",
        "A\n\nBecause B is better written but wrong.",
        "A.\n\nBoth explain the sum, yet only one is right.\nThe other forgets a term.",
        "A because it names the river.",
        "A - it names the river.",
        "A, because it names the river.",
        "Response A is better",
        "I think Assistant A is better because it names its sources.",
        "Overall, response A is better.",
        "Both have merits. Overall, Assistant A's answer is better.",
        "I choose A.",
        "I would pick Response A over Response B.",
        "I prefer A.",
        "Response B is worse.",
        "Response A is better in style.\nResponse B is longer.\n\nWinner: A",
        "Winner: A, although B is better written.",
        "Winner: A\n\nLet me know if you need more.",
        '{"winner": "A"}',
        '{"Winner": "a", "why": "B is short"}',
        '{"verdict": "Assistant A", "confidence": 0.9}',
        '{"result": {"winner": "A", "margin": 2}}',
        "{'winner': 'A'}",
        '{"winner": "A", "explanation": "because the other',
        'Here is my verdict:\n```json\n{"winner": "A"}\n```',
        '```\n{"better": "A>B"}\n```\nThat is all.',
        'First some words. {"winner": "A"} ',
        '</think>{"winner":"A"}',
        "<think>B looks [[B]]</think>\n\nA",
        "<think>one</think> [[B]] <think>two [[B]]</think> A",
        "<reasoning>B?</reasoning><answer>A</answer>",
        "[THINK]B is longer[/THINK]Final verdict: A",
        "<|channel|>analysis<|message|>B maybe<|end|><|start|>assistant<|channel|>final<|message|>A",
        "\\boxed{A}",
        "$\\boxed{\\text{A}}$",
        "The better answer is A.",
        "B would be tempting, but the better response is A.",
        "答案：A",
        "最终结论：A",
        "**最终判断**：助手A更好",
        "助手A的回答更好。",
        "我选择A，因为它更准确。",
        "回答A优于回答B。",
        "A比B更好",
        "更好的回答是A",
        "【答案】A",
        "Urteil: A",
        "Respuesta: A",
        "勝者：A",
        "If forced to choose, I would pick A.",
        "This is not a tie: A wins.",
        "[[B]] would be wrong, so [[A]]",
        "At first [[B]] seems fuller. The better answer is A.",
        "First line.\n\n1. A is longer.\n2. B is shorter.\n\nTherefore, A is better.",
    ],
    "b": [
        "B",
        "Winner: B",
        "[[B>A]]",
        "[[A<B]]",
        "[[A<<B]]",
        "Assistant B wins.",
        "<think>At first [[A]] seems fuller.</think> The better answer is B.",
        "I compared both. [[A]] would be wrong, so [[B]]",
        "最终结论：B",
        "答案: **B**",
        "综上，B更好。",
        '{"winner": "B"}\n\nAssistant A is more detailed.',
        "A\nis longer.\n\nFinal verdict: B",
        "Assistant A\n- long\n\nAssistant B\n- right\n\nVerdict: B",
        "It is hard to say at first.\nVerdict: [[B]]",
        "Response A is not better, so Response B is better.",
        "Antwort: B",
        "Réponse : B",
    ],
    "tie": [
        "C",
        "[[C]]",
        "tie",
        "Tie.",
        "**Tie**",
        "It's a tie.",
        "It is a draw between A and B.",
        "A tie",
        "[[tie]]",
        "[[A=B]]",
        "A = B",
        "Verdict: tie",
        "Final verdict: a draw",
        "Answer: C",
        "Winner: neither",
        '{"winner": "C"}',
        '{"winner": "tie"}',
        "Both are equally good.",
        "Both answers are equally helpful.",
        "Neither answer is better.",
        "There is no clear winner.",
        "平局",
        "结论：平局",
        "两个回答一样好。",
        "A和B不分上下。",
        "Unentschieden",
        "Empate",
    ],
}
INVALID = {
    InvalidReason.EMPTY: ["", "  \n", "<think>A is right: [[A]]</think>", "</think>"],
    InvalidReason.UNFINISHED_REASONING: ["<think>A is better. [[A]]", "A <think> or rather", "<thinking>Final verdict: B"],
    InvalidReason.TWO_VERDICTS: [
        "a draw between [[A]] and [[B]]",
        "[[A]] [[B]]",
        "Response A is better in style. Response B is better in accuracy.",
        "Response A is better and Response B is better.",
        "I choose A. I choose B.",
    ],
    InvalidReason.UNREADABLE: [
        "D",
        "[[D]]",
        "[[A or B]]",
        "Verdict: A or B",
        "Answer: A/B",
        "Winner: 5",
        '{"winner": "D"}',
        '{"winner": "A", "verdict": "B"}',
        '{"winner": "A", "winner": "B"}',
        '{"winner": ""}',
    ],
    InvalidReason.NO_VERDICT: [
        "A or B",
        "A is better than B because",
        "<html><body>A</body></html>",
        "Both A and B have their merits.",
        "Answers A and B both have their merits. " * 30,
        "It depends on what you value.",
        "Perhaps A is better.",
        "A might be better.",
        "Which is better? A or B?",
        "Is A better?",
        "I can't decide between A and B.",
        "Response A is better in some respects.",
        "A is better if you like long answers.",
        "It is hard to say whether A is better.",
        "A more detailed answer would help.",
        "I would not choose A.",
        "I don't think A is better.",
        "Assistant A\n- long\n\nAssistant B\n- short",
        "A: long\nB: short",
        "各有优点，难以判断。",
        "A不比B好",
        "...",
        "I am sorry, I can't help with that.",
        '{"reason": "both are fine"}',
    ],
}
RATINGS = {
    "7": 7,
    "**7**": 7,
    "7.5": 7.5,
    "8,5": 8.5,
    "9/10": 9,
    "10/10": 10,
    "7 out of 10": 7,
    "Rating: 8": 8,
    "Rating: [[8.5]]": 8.5,
    "[[6]]": 6,
    "[[6/10]]": 6,
    "**Score:** 4/10": 4,
    "Good work.\n\nRating: [[9]]": 9,
    "7\n\nBecause it is right.": 7,
    "I would give it a 6.": 6,
    "I rate this answer 7 out of 10.": 7,
    "Rating from 1 to 10: 5": 5,
    "On a scale of 1 to 10, I give it 3.": 3,
    "Correctness: 9\nClarity: 5\n\nOverall: 7": 7,
    '{"rating": 8}': 8,
    '{"score": "8"}': 8,
    '```json\n{"rating": 2, "why": "wrong"}\n```': 2,
    "<think>[[3]] or 4?</think>\n8": 8,
    '<think>it is bad</think>{"rating": 2}': 2,
    "评分：8": 8,
    "8分": 8,
    "我给8分。": 8,
    "\\boxed{9}": 9,
}
NO_RATINGS = [
    "",
    "good",
    "11",
    "0",
    "-3",
    "[[-3]]",
    "[[11]]",
    "11/10",
    "11 of 10",
    "Rating: 11 of 10",
    "4/5",
    "80/100",
    "7-8",
    "[[7-8]]",
    "Rating: -3",
]
NO_RATINGS += [
    "<think>7",
    "[[7]] or [[8]]",
    '{"rating": 11}',
    '{"rating": true}',
    '{"rating": -3}',
    '{"rating": NaN}',
    "Between 6 and 8.",
    "85%",
    "8th",
    "Rating: 7 or 8",
]
EVERY = [(reply, verdict) for verdict, told in VERDICTS.items() for reply in told]


def test_the_table_is_large() -> None:
    assert len(EVERY) + sum(map(len, INVALID.values())) >= 150


@pytest.mark.parametrize(("reply", "verdict"), EVERY)
def test_a_verdict_is_read(reply: str, verdict: str) -> None:
    assert replies.verdict(reply) == verdict


@pytest.mark.parametrize(("reply", "reason"), [(reply, reason) for reason, told in INVALID.items() for reply in told])
def test_what_holds_no_verdict_is_invalid_with_the_reason(reply: str, reason: InvalidReason) -> None:
    found = replies.verdict_reading(reply)
    assert (found.value, found.reason) == ("", reason)
    assert replies.verdict(reply) == "invalid"


def test_a_soft_word_counts_where_nothing_contradicts_it() -> None:
    soft = "A is better in style.\n\nHowever I would have to think about it."
    assert replies.verdict(soft) == "a"
    assert replies.verdict_reading(f"B is better in detail.\n\n{soft}").reason is InvalidReason.TWO_VERDICTS


@pytest.mark.parametrize(("reply", "rating"), list(RATINGS.items()))
def test_a_rating_is_read(reply: str, rating: float) -> None:
    assert replies.rating(reply) == rating


@pytest.mark.parametrize("reply", NO_RATINGS)
def test_what_is_no_rating_is_none(reply: str) -> None:
    assert replies.rating(reply) is None


EXCHANGED = str.maketrans("ABab", "BAba")


@pytest.mark.parametrize(("reply", "verdict"), [(reply, verdict) for reply, verdict in EVERY if verdict != "tie"])
def test_the_letters_exchanged_exchange_the_verdict(reply: str, verdict: str) -> None:
    """No form favours a letter. Only whole letters are exchanged, so words stay."""
    turned = re.sub(r"(?<![A-Za-zＡ])[ABab](?![A-Za-z])(?! (?:draw|tie)\b)", lambda found: found[0].translate(EXCHANGED), reply).replace(
        "Ａ", "Ｂ"
    )
    assert replies.verdict(turned) == {"a": "b", "b": "a"}[verdict]


WORDS = [
    "the",
    "river",
    "question",
    "names",
    "facts",
    "sources",
    "length",
    "42",
    "clear",
    "wording",
    "however",
    "both",
    "text",
    "reader",
    "useful",
    "7",
    "long",
    "short",
    "einen",
    "河流",
    "ответ",
]
ENDINGS = [
    "\n\n[[{}]]",
    "\nFinal verdict: {}",
    "\n\n**{}**",
    "\nThe better answer is {}.",
    '\n```json\n{{"winner": "{}"}}\n```',
    "\n最终结论：{}",
]


def noise(source: random.Random, lines: int) -> str:
    return "\n".join(" ".join(source.choices(WORDS, k=source.randint(1, 12))) + source.choice([".", "!", "", ":"]) for _ in range(lines))


@pytest.mark.parametrize("ending", ENDINGS)
def test_noise_before_a_verdict_changes_nothing(ending: str) -> None:
    source = random.Random(ending)
    for _ in range(60):
        letter = source.choice("AB")
        before = noise(source, source.randint(0, 12))
        thought = source.choice(
            ["", f"<think>{noise(source, 3)} [[{source.choice('AB')}]]</think>", f"[[{source.choice('AB')}]] {noise(source, 1)}</think>\n"]
        )
        reply = thought + before + ending.format(letter)
        assert replies.verdict(reply) == letter.lower(), reply


def test_noise_alone_is_never_a_verdict() -> None:
    source = random.Random(3)
    for _ in range(300):
        reply = noise(source, source.randint(1, 12))
        assert replies.verdict(reply) == "invalid", reply


def test_no_reply_takes_long_or_raises() -> None:
    """Whatever a server sends: deep, long, half a character."""
    deep = '{"a":' * 5000
    for reply in (
        deep,
        "[" * 50_000,
        "{" * 50_000,
        "A " * 50_000,
        "\ud800",
        "[[" * 30_000,
        "is better " * 20_000,
        "A>" * 30_000,
        "</think>" * 20_000,
    ):
        assert replies.verdict(reply) in ("a", "b", "tie", "invalid")
        assert replies.rating(reply) is None
    assert replies.verdict(deep + "\nVerdict: A") == "a"
    assert replies.verdict(json.dumps({"winner": "A", "why": "x" * 30_000})) == "a"


# answers named by their order; each with who is meant
IN_ORDER = {
    "a": [
        "the first answer", "The 1st answer.", "Answer 1", "1", "**1**", "1.", "first", "Number 1", "Answer: 1", "The first one is better.",
        "Response one is better.", "Answer #1 is better", "1\n\nBecause it is right.", "Winner: 1", "Final verdict: first", "Verdict:\n1",
        "Both were read with care.\n\nVerdict:\n\n1", "1\n  \nIt is right.", "**My choice**\n---\n1", "Its facts are right.\nWinner\n1",
        "[[1]]", "[[first]]", '{"winner": 1}', '{"winner": "first"}', '{"winner": "Answer 1"}', '{"better_answer": "1"}', "I choose 1.",
        "I prefer the first.", "The first answer is better than the second answer.", "The second response is worse.", "First is better.",
        "1 is better than 2.", "Assistant 1 wins.", "The better answer is 1.", "The better response is the first one.",
        "Both are good, but the first answer is better.", "<think>2?</think>1", "Overall, the first response is better.",
        "The winner is the first answer, because it names the river.", "I would go with response 1 because it is right.",
        "I compared the first answer and the second answer.\n\nThe first answer is better.",
    ],
    "tie": [
        "both are equal", "Both answers are equal.", "The first and the second answer are equally good.",
        "Neither the first nor the second is better.", "Answer 1 and answer 2 are equal.",
    ],
    "invalid": [
        "1 mistake", "There is 1 mistake.", "The answer has 1 mistake.", "1 or 2", "first or second", "[[1 or 2]]", "Winner: 1/2", "3",
        "The correct answer is 1.", "The answer is 2.", "1. it is short\n2. it is long", "1\nmistake was found",
        "Verdict:\nit is hard\n1", "It is short\n1\nIt is long",
        "It is short.\n\n1\n\nIt is long.", "It is short\n1", "First, it is short. Second, it is wrong.",
        "First: [[8]]\nSecond: [[2]]", "Response 1: 8\nResponse 2: 9", "Answer 1: good\nAnswer 2: bad", "1\n2", "1.5", "Answer 3",
        "Which is better, the first or the second answer?", "Perhaps the first answer is better.", "The first step is better explained.",
        "I prefer the first answer and the second answer.", "For one thing, it is short.", "On second thought, no.", "Score: 1",
        "The first answer is better in style.\nThe second answer is better in facts.", "The second question is better answered.",
    ],
}  # fmt: skip
ORDERED = [(reply, verdict) for verdict, told in IN_ORDER.items() for reply in told]
TURNED = {"first": "second", "1st": "2nd", "1": "2", "one": "two"}
TURNED |= {other: one for one, other in TURNED.items()}


@pytest.mark.parametrize(("reply", "verdict"), ORDERED)
def test_answers_may_be_named_by_their_order_and_exchanged_the_verdict_is_exchanged(reply: str, verdict: str) -> None:
    found = replies.verdict_reading(reply)
    assert (found.value or "invalid", found.by_order) == (verdict, verdict == "a")
    if verdict == "a":
        plain = reply.replace("first one", "first reply").replace("better one", "better reply")
        turned = re.sub(r"(?i)\b(?:first|second|1st|2nd|1|2|one|two)\b", lambda said: TURNED[said[0].lower()], plain)
        assert turned != reply and replies.verdict(turned) == "b", turned


def test_a_reply_that_names_both_equally_is_never_a_verdict() -> None:
    names = ["the first answer", "the second answer", "first", "second", "answer 1", "answer 2", "1", "2", "the first one", "response two"]
    said = [
        "{0} and {1}",
        "{0}, {1}",
        "{0} or {1}",
        "I prefer {0} and {1}.",
        "Winner: {0} or {1}",
        "{0} / {1}",
        "Both {0} and {1} are good.",
    ]
    said += ["{0} is better and {1} is better.", "{0} is clear.\n{1} is clear.", "- {0}\n- {1}"]
    first, second = names[::2], names[1::2]
    for form in said:
        for one, other in [*zip(first, second, strict=True), *zip(second, first, strict=True)]:
            reply = form.format(one, other)
            assert replies.verdict(reply) not in ("a", "b"), reply
            assert replies.verdict(reply.capitalize()) not in ("a", "b"), reply


def test_numbers_in_noise_are_no_verdict() -> None:
    source = random.Random(5)
    for _ in range(300):
        words = source.choices([*WORDS, "1", "2", "first", "second", "one", "mistakes", "of", "answer"], k=source.randint(3, 14))
        reply = " ".join([*words, source.choice(["mistakes", "words", "questions"])]) + "."
        assert replies.verdict(reply) == "invalid", reply
