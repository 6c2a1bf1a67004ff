"""Judges over HTTP, good and bad, on answers made elsewhere; votes; and what comes of them."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs import panel
from jobs.runner import Runner
from studio.db.models import AnswerRow
from studio.errors import StudioError
from studio.evaluation import judging
from studio.records import Comparison, Judgement
from studio.services import Studio
from studio.settings import Settings
from tests import workers

PROMPTS = 18
Reply = Callable[[str, str], str]
FORMS: list[Any] = []  # of replies, as the judge that is served was asked for them


@contextmanager
def served(reply: Reply, status: Callable[[int], int] = lambda _: 200, refuses_schemas: bool = False) -> Iterator[tuple[str, Counter[str]]]:
    """A judge that replies `reply(answer a, answer b)`; its URL#MODEL, and how often each question was asked."""
    asked: Counter[str] = Counter()
    FORMS.clear()
    count = iter(range(10**6))

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text, form = body["messages"][-1]["content"], body.get("response_format")
            FORMS.extend([form] if form else [])
            code = 400 if form and refuses_schemas else status(next(count))
            asked[text] += code == 200
            a, b = (text.split(f"[The Start of Assistant {side}'s Answer]\n")[1].split("\n[The End")[0] for side in "AB")
            said = {"choices": [{"message": {"content": reply(a, b)}}], "usage": {"prompt_tokens": 10, "completion_tokens": 1}}
            answer = reply(a, b).encode() if reply(a, b).startswith("<") else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}#m", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings, at_terminal=True)
    yield opened
    opened.db.dispose()


@pytest.fixture
def comparison(studio: Studio, tmp_path: Path) -> Comparison:
    """x is right in two of three, y in the others; wrong answers are longer."""
    rows = [{"id": str(n), "prompt": f"question {n}", "reference": f"right {n}"} for n in range(PROMPTS)]
    for name, is_right in (("x", lambda n: n % 3 > 0), ("y", lambda n: n % 3 == 0)):
        texts = [f"right {n}" if is_right(n) else f"wrong {n} with many more words" for n in range(PROMPTS)]
        lines = (json.dumps({"prompt_id": str(n), "answer": text}) for n, text in enumerate(texts))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = {f"file:{name}": tmp_path / f"{name}.jsonl" for name in "xy"}
    made = studio.comparisons.create(prompts=rows, base_model="starter", contestants=list(files), files=files, name="c")
    Runner(studio.settings, studio.db, "light").run()
    return studio.comparisons.show(made.id)


def judged(studio: Studio, judge: str | None = None, **options: Any) -> Judgement:
    made = studio.judging.judge("c", judge, **options)
    Runner(studio.settings, studio.db, "light").run()
    return studio.judging.show(made.id)


def test_the_reference_judge_gives_the_true_order(studio: Studio, comparison: Comparison) -> None:
    found = judged(studio)
    assert found.status == "SUCCEEDED" and found.judge == "reference" and found.pairs == PROMPTS
    assert found.win_rate == pytest.approx({"file:x": 2 / 3, "file:y": 1 / 3}) and found.swap_consistency == 1.0
    made = studio.preferences.make(["c"], name="prefs", min_margin=1.0)
    assert made.kind == "preference" and made.rows == PROMPTS
    row, origin = next(iter(studio.datasets.examples("prefs"))), made.provenance["rows"][0]
    assert row.chosen and row.rejected and row.chosen[0].content.startswith("right") and row.rejected[0].content.startswith("wrong")
    assert origin["chosen"] in ("file:x", "file:y") and len(origin["decided_by"]["reference"]) == 2


def test_the_worst_prompts_become_rows_to_learn_from(studio: Studio, comparison: Comparison) -> None:
    judged(studio)
    lost = studio.preferences.worst("c", "file:y", limit=3)
    assert len(lost) == 3 and all(row.answer.startswith("wrong") and row.better.startswith("right") for row in lost)
    made = studio.preferences.correct("c", {lost[0].prompt_id: "my own answer"})
    (row,) = studio.datasets.examples(made.id)
    assert made.kind == "sft" and row.messages and row.messages[-1].content == "my own answer"


def test_prompts_that_everybody_got_wrong_are_among_the_worst(studio: Studio) -> None:
    prompts = [{"id": f"p{n}", "prompt": f"{n} and {n}?", "reference": f"{2 * n}"} for n in range(1, 5)]
    made = studio.comparisons.create(prompts=prompts, base_model="starter", contestants=["base"], name="sums")
    answers = {"p1": "2", "p2": "It is 4.", "p3": "seven", "p4": "80"}
    with studio.db.write() as session:
        for prompt_id, text in answers.items():
            session.add(AnswerRow(comparison_id=made.id, prompt_id=prompt_id, contestant="base", text=text, seconds=1.0))
    assert [(row.prompt_id, row.answer, row.better) for row in studio.preferences.worst("sums", "base")] == [
        ("p3", "seven", "6"),
        ("p4", "80", "8"),
    ]


def test_a_judge_that_always_says_a_is_seen_through_and_cached(studio: Studio, comparison: Comparison) -> None:
    with served(lambda a, b: "A") as (judge, asked):
        found = judged(studio, judge)
        assert (found.first_win_rate, found.swap_consistency, found.win_rate["file:x"]) == (1.0, 0.0, 0.5)
        assert found.able is False and any("not able" in said for said in found.warnings)
        assert found.baselines.constant_answer.win_rate == 0.5
        again, before = judged(studio, judge), sum(asked.values())
        assert again.cached == again.verdicts == found.verdicts and sum(asked.values()) == before
    with pytest.raises(StudioError, match="decided clearly"):
        studio.preferences.make(["c"])


def test_another_server_is_held_to_a_verdict_where_it_knows_schemas(studio: Studio, comparison: Comparison) -> None:
    with served(lambda a, b: '{"winner": "A"}' if a.startswith("right") else '{"winner": "B"}', refuses_schemas=False) as (judge, asked):
        found = judged(studio, judge, probes=False)
        assert found.invalid == 0 and found.swap_consistency == 1.0
        assert {form["type"] for form in FORMS} == {"json_schema"} and len(FORMS) == sum(asked.values())
        assert FORMS[0]["json_schema"]["schema"]["properties"]["winner"]["enum"] == ["A", "B", "C"]
    with served(lambda a, b: "A" if a.startswith("right") else "B", refuses_schemas=True) as (judge, asked):
        assert judged(studio, judge, probes=False).invalid == 0 and set(asked.values()) == {1}


def test_a_judge_that_counts_words_is_flagged_and_a_perfect_one_is_not(studio: Studio, comparison: Comparison) -> None:
    with served(lambda a, b: "A" if len(a) > len(b) else "B") as (judge, _):
        found = judged(studio, judge, probes=False)
    assert found.longer_win_rate == 1.0 and any("longer answer" in said for said in found.warnings)
    with served(lambda a, b: "A" if a.startswith("right") else "B") as (judge, _):
        found = judged(studio, judge)
    assert found.able and found.reference_agreement.agreement == 1.0 and found.swap_consistency == 1.0


@pytest.mark.parametrize("reply", ["<html>A</html>", "Both A and B have merits. " * 40])
def test_garbage_is_counted_not_believed(studio: Studio, comparison: Comparison, reply: str) -> None:
    with served(lambda a, b: reply) as (judge, _):
        found = judged(studio, judge)
    assert found.status == "SUCCEEDED" and found.invalid == 2 * PROMPTS and found.win_rate["file:x"] is None


def test_trouble_that_passes_is_waited_for_and_nothing_is_judged_twice(
    studio: Studio, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel, "FIRST_PAUSE_S", 0.01)
    with served(lambda a, b: "A" if a.startswith("right") else "B", lambda n: (503, 200, 429)[n % 3] if n < 30 else 200) as (judge, asked):
        found = judged(studio, judge)
    assert found.status == "SUCCEEDED" and found.invalid == 0 and set(asked.values()) == {1}
    found = judged(studio, "http://127.0.0.1:1#gone")
    assert found.status == "FAILED" and "no answer in 6 attempts" in found.reason and "retry" in found.fix


def test_a_killed_worker_judges_no_pair_twice(studio: Studio, comparison: Comparison) -> None:
    with served(lambda a, b: time.sleep(0.05) or ("A" if a.startswith("right") else "B")) as (judge, asked):
        made = studio.judging.judge("c", judge, concurrency=2, probes=False)
        with workers.worker("light") as process:
            kept = workers.wait_for(lambda: len(studio.judging.verdicts(made.id)) >= 10 and studio.judging.verdicts(made.id))
            process.kill()
            process.wait()
        before = {(row.prompt_id, row.a) for row in studio.judging.verdicts(made.id)}
        assert {(row.prompt_id, row.a) for row in kept} <= before
        with workers.worker("light"):
            workers.wait_for_status(studio.db, made.job, "SUCCEEDED")
    found = studio.judging.show(made.id)
    assert found.verdicts == 2 * PROMPTS == len(asked) and found.win_rate["file:x"] == pytest.approx(2 / 3)
    assert 10 <= len(before) < 2 * PROMPTS and sum(asked.values()) <= 2 * PROMPTS + 2, "only what was under way is asked again"


def test_a_budget_ends_the_asking(studio: Studio, comparison: Comparison) -> None:
    with served(lambda a, b: "A") as (judge, asked):
        found = judged(studio, judge, budget_tokens=55, concurrency=1)
    assert found.is_cut_by_budget and found.verdicts == 5 and sum(asked.values()) == 5


def test_an_estimate_counts_every_answer_in_both_orders(studio: Studio, comparison: Comparison) -> None:
    # red when one order is forgotten, an answer is counted once for all its questions, or replies are not counted
    before = studio.judging.estimate("c", "starter", template="pair")
    assert before.questions == 2 * PROMPTS and before.seconds is None
    assert before.completion_tokens == before.questions * judging.get("pair").max_new_tokens
    with studio.db.write() as session:
        session.execute(update(AnswerRow).values(text=AnswerRow.text + "x" * 40))
    after = studio.judging.estimate("c", "starter", template="pair")
    assert after.prompt_tokens - before.prompt_tokens == before.questions * 2 * 40 / 4  # two answers a question, four letters a token
    rule = studio.judging.estimate("c")
    assert (rule.judge, rule.questions, rule.prompt_tokens, rule.completion_tokens, rule.seconds) == ("reference", 2 * PROMPTS, 0, 0, 0.0)


def test_people_vote_blind_and_are_compared_with_the_judge(studio: Studio, comparison: Comparison) -> None:
    judged(studio)
    for voter, count in (("ann", 5), ("ben", 3)):
        for _ in range(count):
            ballot = studio.ratings.ballot("c", voter)
            assert "file:" not in ballot.model_dump_json()
            told = studio.ratings.vote("c", voter, ballot.ballot, "left" if ballot.left.startswith("right") else "right")
            assert {told.left, told.right} == {"file:x", "file:y"}
    assert studio.ratings.ballot("c", "ann").voted == 5
    pairs = {(row.a, row.b): row for row in studio.ratings.agreement("c").pairs}
    assert pairs["human:ann", "reference"].agreement == 1.0 and pairs["human:ann", "reference"].n == 5
    board = studio.ratings.leaderboard(["c"], human_only=True)
    assert board.contestants and board.contestants[0].games <= 8
    with pytest.raises(StudioError, match="ballot"):
        studio.ratings.vote("c", "ben", "0" * 32, "left")


def test_what_cannot_be_judged_is_refused_at_once(studio: Studio, comparison: Comparison) -> None:
    lone = studio.comparisons.create(prompts=[{"prompt": "x"}], base_model="starter", contestants=["base"], name="lone")
    for name, judge, said in (
        (lone.id, "starter", "one contestant"),
        ("c", "nobody", "no model or adapter"),
        ("nothing", None, "no comparison"),
    ):
        with pytest.raises(StudioError, match=said):
            studio.judging.judge(name, judge)
    with pytest.raises(StudioError, match="no references"):
        studio.judging.judge(lone.id)
