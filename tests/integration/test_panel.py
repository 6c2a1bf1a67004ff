"""Judges that are served and reply as models do: aloud, hedging, as JSON, in Chinese; and panels of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.runner import Runner
from studio.errors import StudioError
from studio.evaluation import verdicts
from studio.records import Comparison, Judgement
from studio.services import Studio
from studio.settings import Settings

PROMPTS = 20  # x is right in 14, y in 6: seven to three
Reply = Callable[[str, str, int], Any]


@contextmanager
def served(judges: dict[str, Reply]) -> Iterator[str]:
    """A real server of the OpenAI protocol, one model a judge: `reply(right letter, wrong letter, number of the prompt)`; its URL."""

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            shown = re.findall(r"\[The Start of Assistant[ A]*'s Answer\]\n(\w+)", text)[0]
            letters = {True: ("A", "B"), False: ("B", "A")}[shown == "right"]
            message = judges[body["model"]](*letters, int(text.split("question ")[1].split()[0]))
            if not isinstance(message, dict):
                message = {"content": message}
            said = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
            answer = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings, at_terminal=True)
    yield opened
    opened.db.dispose()


def answered(studio: Studio, folder: Path, texts: dict[str, list[list[str]]], rows: list[dict[str, Any]]) -> Comparison:
    for name, own in texts.items():
        lines = (json.dumps({"question_id": row["id"], "choices": [{"turns": turns}]}) for row, turns in zip(rows, own, strict=True))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    files = {f"file:{name}": folder / f"{name}.jsonl" for name in texts}
    made = studio.comparisons.create(prompts=rows, base_model="starter", contestants=list(files), files=files, name="c")
    Runner(studio.settings, studio.db, "light").run()
    return studio.comparisons.show(made.id)


@pytest.fixture
def comparison(studio: Studio, tmp_path: Path) -> Comparison:
    rows = [{"id": str(n), "prompt": f"question {n} ?", "reference": f"right {n}"} for n in range(PROMPTS)]
    texts = {
        "x": [[f"right {n}" if n % 10 < 7 else f"wrong {n}"] for n in range(PROMPTS)],
        "y": [[f"right {n}" if n % 10 >= 7 else f"wrong {n}"] for n in range(PROMPTS)],
    }
    return answered(studio, tmp_path, texts, rows)


def judged(studio: Studio, judge: str, **options: Any) -> Judgement:
    made = studio.judging.judge("c", judge, **{"probes": False, **options})
    Runner(studio.settings, studio.db, "light").run()
    return studio.judging.show(made.id)


def aloud(right: str, wrong: str, number: int) -> str:
    return f"<think>At first [[{wrong}]] seems fuller.\nFinal verdict: {wrong}</think>\nThe better answer is {right}."


def beside(right: str, wrong: str, number: int) -> dict[str, Any]:
    return {"reasoning_content": f"Perhaps [[{wrong}]]", "content": f"**{right}**"}


def as_json(right: str, wrong: str, number: int) -> str:
    return f'My verdict, though {wrong} is longer:\n```json\n{{"winner": "{right}", "why": "{wrong} is wrong"}}\n```'


def in_chinese(right: str, wrong: str, number: int) -> str:
    return f"<think>助手{wrong}更好？</think>助手{wrong}更详细，但有错误。\n最终结论：{right}"


def in_order(right: str, wrong: str, number: int) -> str:
    named = {"A": ("first", "1"), "B": ("second", "2")}[right]
    return [f"The {named[0]} answer is better.", f"Answer {named[1]}", named[1]][number % 3]


def hedging(right: str, wrong: str, number: int) -> Any:
    """No verdict on four of the twenty prompts, each in another way."""
    none: dict[int, Any] = {
        0: "It is a draw between [[A]] and [[B]].",
        1: "Both have their merits; it depends.",
        2: {"content": None, "reasoning_content": f"[[{right}]]"},
        3: f"<think>It must be {right}: [[{right}]]",
    }
    return none.get(number, f"Both have merits. Overall, response {right} is better.")


@pytest.mark.parametrize("judge", [aloud, beside, as_json, in_chinese, in_order])
def test_a_planted_seven_to_three_is_found_whatever_the_form(studio: Studio, comparison: Comparison, judge: Reply) -> None:
    with served({"m": judge}) as url:
        found = judged(studio, f"{url}#m")
    assert found.win_rate == {"file:x": pytest.approx(0.7), "file:y": pytest.approx(0.3)}
    assert (found.invalid, found.invalid_reasons, found.swap_consistency, found.first_win_rate) == (0, {}, 1.0, 0.5)
    assert found.by_order == 40 * (judge is in_order) and any("'the first answer'" in told for told in found.warnings or []) == (
        judge is in_order
    )
    assert found.reference_agreement and found.reference_agreement.agreement == 1.0


def test_replies_without_a_verdict_are_counted_exactly_and_named(studio: Studio, comparison: Comparison) -> None:
    with served({"m": hedging}) as url:
        found = judged(studio, f"{url}#m")
    assert found.invalid == 8
    assert found.invalid_reasons == {"two verdicts": 2, "no verdict": 2, "empty": 2, "unfinished reasoning": 2}
    assert found.win_rate and found.win_rate["file:x"] == pytest.approx(10 / 16)  # of the pairs that have a verdict
    assert "8 replies held no verdict (2 empty, 2 no verdict, 2 two verdicts, 2 unfinished reasoning)." in (found.warnings or [])


def test_a_judge_of_single_answers_that_leaves_the_scale(studio: Studio, comparison: Comparison) -> None:
    def rated(letter: str, wrong: str, number: int) -> str:
        """`letter` is A where the answer is right."""
        if number == 0:
            return {"A": "[[-3]]", "B": "11 of 10"}[letter]
        return f"<think>[[1]]</think>It is fine.\n\nRating: [[{ {'A': 8, 'B': 3}[letter] }]]"

    with served({"m": rated}) as url:
        found = judged(studio, f"{url}#m", template="score")
    assert found.invalid == 2 and found.invalid_reasons == {"not on the scale": 2}
    assert found.win_rate and found.win_rate["file:x"] == pytest.approx(13 / 19)


def first(right: str, wrong: str, number: int) -> str:
    return "A"


def test_a_panel_has_the_majority_and_each_judges_readings(studio: Studio, comparison: Comparison) -> None:
    """Two that know and one that always says the first: the majority is the truth, and each stands with its own figures."""
    with served({"aloud": aloud, "first": first, "hedging": hedging}) as url:
        names = [f"{url}#aloud", f"{url}#first", f"{url}#hedging"]
        will = studio.judging.estimate("c", ",".join(names))
        found = judged(studio, ", ".join(names), probes=True)
        assert will.questions == 3 * 2 * PROMPTS
    assert (found.status, found.kind, found.judge, found.pairs) == ("SUCCEEDED", "panel", ",".join(names), PROMPTS)
    assert found.win_rate and found.panel and found.agreement
    # where the hedging one says nothing, two are left: they agree in one order and split in the other
    assert found.win_rate["file:x"] == pytest.approx((10 + 4 * 0.75) / 20) and found.invalid == 0
    assert list(found.panel) == names
    own = [found.panel[name] for name in names]
    assert [one.invalid for one in own] == [0, 0, 8] and [one.first_win_rate for one in own] == [0.5, 1.0, 0.5]
    assert [one.win_rate and one.win_rate["file:x"] for one in own] == pytest.approx([0.7, 0.5, 10 / 16])
    assert [one.able for one in own] == [True, False, True] and own[1].baselines and own[1].baselines.constant_answer
    kappas = {(row.a, row.b): row for row in found.agreement.pairs}
    assert len(kappas) == 3
    same, none = kappas[names[0], names[2]], kappas[names[0], names[1]]
    assert (same.kappa, same.agreement, same.n) == (1.0, 1.0, 32) and same.kappa_ci95 and 0.6 < same.kappa_ci95[0] < same.kappa_ci95[1] == 1
    assert (none.kappa, none.agreement, none.n) == (0.0, 0.5, 40)
    assert any(f"{names[2]}: 8 replies held no verdict" in said for said in found.warnings or [])
    every = studio.judging.list("c")
    assert [row.judge for row in every] == [",".join(names), *names] and {row.member_of for row in every[1:]} == {found.id}
    rows = studio.judging.verdicts(found.id, limit=1000)
    assert len([row for row in rows if not row.probe]) == 2 * PROMPTS and all(f"{names[0]}: " in row.reply for row in rows)
    assert studio.ratings.leaderboard(["c"]).contestants[0].win_rate == pytest.approx(found.win_rate["file:x"])


def test_a_panel_with_a_rule_and_what_is_no_panel(studio: Studio, comparison: Comparison) -> None:
    with served({"one": as_json, "two": in_chinese}) as url:
        found = judged(studio, f"{url}#one,reference,{url}#two")
    shown = found.model_dump(mode="json")
    assert set(shown["panel"]) == {f"{url}#one", "reference", f"{url}#two"} and shown["win_rate"]["file:x"] == pytest.approx(0.7)
    assert [row["kappa"] for row in shown["agreement"]["pairs"]] == [1.0] * 3
    for wrong in ("reference,", "reference,reference", ",".join(f"{url}#{n}" for n in range(10))):
        with pytest.raises(StudioError, match="no panel"):
            studio.judging.judge("c", wrong)
    with pytest.raises(StudioError, match="no model or adapter"):
        studio.judging.judge("c", "reference,nobody")
    with pytest.raises(StudioError, match="no template"):
        studio.judging.judge("c", "reference", template="pair")


def test_the_majority_of_words() -> None:
    said = [
        (["a", "a", "b"], "a"),
        (["a", "b"], "tie"),
        (["a", "b", "tie"], "tie"),
        (["invalid", "b"], "b"),
        (["invalid"], "invalid"),
        ([], "invalid"),
    ]
    assert [verdicts.majority(winners) for winners, _ in said] == [wanted for _, wanted in said]


# two turns


def test_an_answer_that_lacks_a_turn_is_an_error_and_is_not_judged(studio: Studio, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "turns": [f"question {n} ?", "And then?"], "reference": ["one", "a note of more than five words here"]}
        for n in range(4)
    ]
    texts = {
        "x": [["right", "right then"]] * 4,
        "y": [["wrong", "wrong then"], ["wrong"], ["wrong", "$ERROR$"], ["wrong", "b", "c"]],
    }
    found = answered(studio, tmp_path, texts, rows)
    own = [answer for answer in found.answers if answer.contestant == "file:y"]
    assert [answer.text for answer in own] == ["wrong then", "", "", ""]
    assert [answer.error for answer in own[1:]] == [
        "The file has 1 of 2 answers, one for each turn.",
        "Turn 2 of 2 failed: the file holds $ERROR$ in its place.",
        "The file has 3 of 2 answers, one for each turn.",
    ]
    assert own[0].turns == ["wrong", "wrong then"] and own[1].turns == ["wrong"]
    score = found.scores["file:x"]
    assert (score.exact_match, score.n, score.left_out) == (None, 0, 4) and "notes" in score.reason
    made = studio.judging.judge("c", "likelihood:starter")
    assert made.kind == "likelihood"
    ballot = studio.ratings.ballot("c", "ann")
    assert ballot.total == 1 and {ballot.left, ballot.right} == {
        "Turn 1:\nright\n\nTurn 2:\nright then",
        "Turn 1:\nwrong\n\nTurn 2:\nwrong then",
    }


def test_a_turn_that_fails_while_comparing_leaves_no_answer(studio: Studio) -> None:
    """The server refuses the second turn of every conversation: what it said before is kept as a turn and is no answer."""
    rows = [{"id": "1", "turns": ["question 1 ?", "And then?"]}, {"id": "2", "prompt": "question 2 ?"}]
    with contestant_of_one_turn() as url:
        studio.comparisons.create(prompts=rows, base_model="starter", contestants=[url, f"{url}-twin"], name="c")
        Runner(studio.settings, studio.db, "light").run()
    own = {answer.prompt_id: answer for answer in studio.comparisons.show("c").answers if answer.contestant == url}
    assert (own["1"].text, own["1"].turns) == ("", ["an answer"]) and own["1"].error.startswith("Turn 2 of 2 failed: ")
    assert (own["2"].text, own["2"].error) == ("an answer", "")


@contextmanager
def contestant_of_one_turn() -> Iterator[str]:
    class Contestant(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_refused = len(body["messages"]) > 1
            said: dict[str, Any] = {"choices": [{"message": {"content": "an answer"}, "finish_reason": "stop"}]}
            if is_refused:
                said = {"error": {"message": "The conversation is too long.", "code": "too_long"}}
            answer = json.dumps(said).encode()
            self.send_response(400 if is_refused else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Contestant)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}#m"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# people


@pytest.mark.parametrize("voters", [2, 3])
def test_voters_share_a_third_of_their_ballots(studio: Studio, tmp_path: Path, voters: int) -> None:
    rows = [{"id": str(n), "prompt": f"question {n} ?"} for n in range(44)]
    answered(studio, tmp_path, {name: [[f"{name} says {n}"] for n in range(44)] for name in ("right", "second", "third")}, rows)
    names = ["ann", "ben", "cleo"][:voters]
    seen: dict[str, list[tuple[str, frozenset[str]]]] = {name: [] for name in names}
    lefts = 0
    for turn in range(30 * voters):  # one after the other at first, then in turns
        voter = names[turn % voters] if turn >= 10 * voters else names[turn // 10]
        ballot = studio.ratings.ballot("c", voter)
        assert ballot.total == 132 and ballot.left
        vote = studio.ratings.vote("c", voter, ballot.ballot, "left" if ballot.left < str(ballot.right) else "right")
        seen[voter].append((vote.prompt_id, frozenset((vote.left, vote.right))))
        lefts += vote.left < vote.right
    assert all(len(set(own)) == len(own) == 30 for own in seen.values()), "somebody saw a pair twice"
    for one in names:
        for other in names:
            if one != other:
                assert 0.25 <= len(set(seen[one]) & set(seen[other])) / 30 <= 0.45
    assert abs(lefts / (30 * voters) - 0.5) <= 0.15
    pairs = [row for row in studio.ratings.agreement("c").pairs if row.a.startswith("human:") and row.b.startswith("human:")]
    assert len(pairs) == voters * (voters - 1) // 2
    assert all(row.n == 10 and row.agreement == 1.0 and (row.kappa is None or row.kappa_ci95) for row in pairs)
