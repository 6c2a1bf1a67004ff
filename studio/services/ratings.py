"""What people and judges say together: blind ballots, votes, leaderboards, and how far raters agree. Knows nothing of how judges work."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.datasets.children import run_child
from studio.db.models import AdapterRow, AnswerRow, ComparisonRow, JobRow, JudgementRow, MetricRow, VerdictRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.evaluation.verdicts import PERSON
from studio.services import naming
from studio.services.comparisons import ComparisonService
from studio.settings import Settings

CHOICES = {"left": "a", "right": "b", "tie": "tie", "both-bad": "tie"}
KEPT = 32  # figures kept in memory, by what they are made of
Rows = list[dict[str, Any]]


class RatingService:
    """What a person can do with votes and verdicts. Figures are made in a child process and kept until a verdict joins."""

    def __init__(self, settings: Settings, db: Database, comparisons: ComparisonService) -> None:
        self.settings = settings
        self.db = db
        self.comparisons = comparisons
        self._made: dict[str, dict[str, Any]] = {}

    # people

    def ballot(self, comparison: str, voter: str) -> dict[str, Any]:
        """Two answers without names in random order, of a pair that `voter` has not seen yet; `left` is None when there is none.

        `ballot` goes back with the vote; it says nothing about who is who.
        """
        person = _voter(voter)
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            answers = _texts(session, row)
            seen = {(v.prompt_id, frozenset((v.a, v.b))) for v in session.scalars(_votes_of(row, person))}
            voted: dict[tuple[str, frozenset[str]], int] = defaultdict(int)
            for vote in session.scalars(select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.judgement_id.is_(None))):
                voted[vote.prompt_id, frozenset((vote.a, vote.b))] += 1
        pairs = [pair for pair in _pairs(row, answers) if (pair[0], frozenset(pair[1:])) not in seen]
        total = len(seen) + len(pairs)
        if not pairs:
            return {"comparison": row.id, "ballot": "", "prompt": None, "left": None, "right": None, "voted": len(seen), "total": total}
        fewest = min(voted[pair[0], frozenset(pair[1:])] for pair in pairs)
        prompt_id, *names = random.choice([pair for pair in pairs if voted[pair[0], frozenset(pair[1:])] == fewest])
        random.shuffle(names)
        prompt = next(prompt for prompt in row.prompts if prompt["id"] == prompt_id)
        left, right = (answers[prompt_id, name] for name in names)
        ballot = _sealed(row, person, prompt_id, *names)
        return {"comparison": row.id, "ballot": ballot, "prompt": prompt, "left": left, "right": right, "voted": len(seen), "total": total}

    def vote(self, comparison: str, voter: str, ballot: str, choice: str) -> dict[str, Any]:
        """Keep a vote: left, right, tie or both-bad. Tells who was who; a second vote on the same pair replaces the first."""
        person = _voter(voter)
        if choice not in CHOICES:
            raise StudioError(f"{choice!r} can't be voted.", f"Vote {', '.join(CHOICES)}.")
        with self.db.write() as session:
            row = self.comparisons.find(session, comparison)
            opened = next((case for case in _orders(row) if _sealed(row, person, *case) == ballot), None)
            if opened is None:
                raise StudioError("This ballot is not of this voter and comparison.", "Ask for a new ballot.")
            prompt_id, left, right = opened
            for earlier in session.scalars(_votes_of(row, person).where(VerdictRow.prompt_id == prompt_id)):
                if {earlier.a, earlier.b} == {left, right}:
                    session.delete(earlier)
            vote = VerdictRow(
                comparison_id=row.id, rater=person, prompt_id=prompt_id, a=left, b=right, winner=CHOICES[choice], reply=choice
            )
            session.add(vote)
            return {"prompt_id": prompt_id, "left": left, "right": right, "choice": choice, "winner": CHOICES[choice]}

    # figures

    def leaderboard(
        self, comparisons: Sequence[str] = (), *, human_only: bool = False, with_facts: bool = False, data: str | None = None
    ) -> dict[str, Any]:
        """Ratings over `comparisons` (all, when none is named; with `data`, those on its rows); the newest judgement of each, and votes.

        `with_facts` adds what is known of each contestant: exact match, size, seconds per answer, training run.
        """
        with self.db.read() as session:
            rows = [self.comparisons.find(session, name) for name in comparisons] or list(session.scalars(select(ComparisonRow)))
            if data is not None:
                wanted = self.comparisons.datasets.show(data).id
                rows = [row for row in rows if row.dataset_id == wanted]
            is_mixed = len({row.base_model for row in rows}) > 1
            lines = [line for row in rows for line in _lines(session, row, human_only, is_mixed=is_mixed)]
            facts = self._facts(session, rows, is_mixed) if with_facts else {}
        found = self._figures({"do": "leaderboard", "verdicts": sorted(lines)})
        contestants = [{**row, **facts.get(row["name"], {})} for row in found["contestants"]]
        return {**found, "contestants": contestants, "comparisons": [row.id for row in rows]}

    def agreement(self, comparison: str) -> dict[str, Any]:
        """Kappa between each two raters of one comparison, people and judges, over the pairs both looked at. Orders are averaged first."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            lines = _per_pair(_lines(session, row, human_only=False, is_mixed=False, every_judge=True))
        return self._figures({"do": "agreement", "verdicts": sorted(lines, key=lambda line: (line[4], line))})

    def _figures(self, options: dict[str, Any]) -> dict[str, Any]:
        if not options["verdicts"] and options["do"] == "leaderboard":
            position = {"first_win_rate": None, "swap_consistency": None}
            return {"contestants": [], "position": position, "pairs": [], "missing_orders": 0, "invalid": 0, "warnings": []}
        if not options["verdicts"]:
            return {"pairs": [], "majority": {}}
        key = hashlib.sha256(orjson.dumps(options)).hexdigest()
        if key not in self._made:
            if len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[key] = run_child("studio.evaluation", options, self.settings.cache)
        return self._made[key]

    def _facts(self, session: Session, rows: Sequence[ComparisonRow], is_mixed: bool) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            scores = self.comparisons.show(row.id)["scores"]
            answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id, AnswerRow.error == "")).all()
            for name in row.contestants:
                own = [answer for answer in answers if answer.contestant == name]
                seconds = sum(answer.seconds for answer in own) / len(own) if own else None
                tokens = sum(answer.completion_tokens for answer in own) / len(own) if own else None
                adapter = session.scalar(select(AdapterRow).where(AdapterRow.name == name.rpartition(":")[2]))
                training = session.get(JobRow, adapter.job_id) if adapter and adapter.job_id else None
                found[_whole(name, row) if is_mixed else name] = {
                    "exact_match": scores.get(name, {}).get("exact_match"),
                    "seconds_per_answer": seconds,
                    "tokens_per_answer": tokens,
                    "bytes": adapter.bytes if adapter else None,
                    "job": training.id if training else None,
                    "training": training.name if training else None,
                    "training_seconds": _seconds(training) if training else None,
                    "eval_loss": _eval_loss(session, adapter),
                }
        return found


def _voter(name: str) -> str:
    if not name.strip() or not naming.valid(name.strip()):
        raise StudioError(f"{name!r} can't be a voter's name.", "Use letters, digits, dots, dashes and underscores.")
    return PERSON + name.strip()


def _votes_of(row: ComparisonRow, person: str) -> Any:
    return select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.judgement_id.is_(None), VerdictRow.rater == person)


def _texts(session: Session, row: ComparisonRow) -> dict[tuple[str, str], str]:
    answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id, AnswerRow.error == ""))
    return {(answer.prompt_id, answer.contestant): "\n\n".join(answer.turns or [answer.text]) for answer in answers}


def _pairs(row: ComparisonRow, answers: dict[tuple[str, str], str]) -> list[tuple[str, str, str]]:
    """(prompt, one, other) of all pairs with two different answers; equal ones would waste a person's time."""
    cases = [(prompt["id"], one, other) for prompt in row.prompts for one, other in combinations(row.contestants, 2)]
    found = [(answers.get((p, one)), answers.get((p, other))) for p, one, other in cases]
    return [case for case, (one, other) in zip(cases, found, strict=True) if one is not None and other is not None and one != other]


def _orders(row: ComparisonRow) -> Iterable[tuple[str, str, str]]:
    for prompt in row.prompts:
        for one, other in combinations(row.contestants, 2):
            yield prompt["id"], one, other
            yield prompt["id"], other, one


def _sealed(row: ComparisonRow, person: str, prompt_id: str, left: str, right: str) -> str:
    """The order of one ballot as a number that shows neither name."""
    return hashlib.sha256(orjson.dumps([row.id, row.created_at, person, prompt_id, left, right])).hexdigest()[:32]


def _lines(
    session: Session, row: ComparisonRow, human_only: bool, *, is_mixed: bool, every_judge: bool = False
) -> list[tuple[str, str, str, str, str]]:
    """Verdict lines of a comparison, prompts named apart from those of others, contestants by whole names where bases are mixed."""
    newest = newest_judgement(session, row)
    query = select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.is_probe.is_(False)).order_by(VerdictRow.id)
    if human_only:
        query = query.where(VerdictRow.judgement_id.is_(None))
    elif not every_judge:
        query = query.where(VerdictRow.judgement_id.is_(None) | (VerdictRow.judgement_id == newest))
    found = {}
    for verdict in session.scalars(query):  # of one judge only its last word
        a, b = (_whole(name, row) if is_mixed else name for name in (verdict.a, verdict.b))
        found[verdict.prompt_id, a, b, verdict.rater] = verdict.winner
    return [(f"{row.id}:{prompt_id}", a, b, winner, rater) for (prompt_id, a, b, rater), winner in found.items()]


def newest_judgement(session: Session, row: ComparisonRow) -> str | None:
    """The last word on a comparison: of judges that are able while there is one. Earlier ones stay readable and count no more."""
    ended = (
        select(JudgementRow)
        .join(JobRow, JudgementRow.job_id == JobRow.id)
        .where(JudgementRow.comparison_id == row.id, JobRow.status == "SUCCEEDED")
    )
    found = session.scalars(ended.order_by(JudgementRow.created_at.desc())).all()
    able = [judgement for judgement in found if judgement.readings.get("able") is not False]
    return next((judgement.id for judgement in [*able, *found]), None)


def _whole(name: str, row: ComparisonRow) -> str:
    if name == "base":
        return row.base_model
    return name if ":" in name or "#" in name or name == row.base_model else f"{row.base_model}:{name}"


def _per_pair(lines: Iterable[tuple[str, str, str, str, str]]) -> list[tuple[str, str, str, str, str]]:
    """One line per rater and pair: what both orders agree on, else a tie; names in alphabetical order."""
    scores: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for prompt_id, a, b, winner, rater in lines:
        if winner != "invalid":
            score = {"a": 1.0, "b": 0.0}.get(winner, 0.5)
            one, other = sorted((a, b))
            scores[prompt_id, one, other, rater].append(score if one == a else 1 - score)
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    return [(p, a, b, "a" if mean > 0.5 else "b" if mean < 0.5 else "tie", rater) for (p, a, b, rater), mean in means.items()]


def _seconds(job: JobRow) -> float | None:
    return job.ended_at - job.started_at if job.ended_at and job.started_at else None


def _eval_loss(session: Session, adapter: AdapterRow | None) -> float | None:
    """On the held-out rows of its own training; e to its power is the perplexity."""
    if adapter is None or not adapter.job_id:
        return None
    last = session.scalar(
        select(MetricRow).where(MetricRow.job_id == adapter.job_id, MetricRow.kind == "eval").order_by(MetricRow.step.desc()).limit(1)
    )
    return None if last is None else last.values.get("eval_loss", last.values.get("loss"))
