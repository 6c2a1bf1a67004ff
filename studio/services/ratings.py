"""What people and judges say together: blind ballots, votes, leaderboards, and how far raters agree. Knows nothing of how judges work."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.datasets.children import run_child
from studio.db.models import AdapterRow, AnswerRow, ComparisonRow, JobRow, JudgementRow, MetricRow, VerdictRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.evaluation.verdicts import PERSON, SCORES
from studio.records import Agreement, Ballot, BallotChoice, ContestantFacts, JobStatus, Leaderboard, Position, Vote, Winner
from studio.services import naming
from studio.services.comparisons import ComparisonService
from studio.services.work_time import seconds_of_work
from studio.settings import Settings

CHOICES = {
    BallotChoice.LEFT: Winner.A,
    BallotChoice.RIGHT: Winner.B,
    BallotChoice.TIE: Winner.TIE,
    BallotChoice.BOTH_BAD: Winner.TIE,
}
SHARED = 1 / 3  # of a person's ballots: pairs that everybody is shown
LAGGING = 2 / 3  # the chance of the left place for whoever was there less often (Efron's biased coin)
KEPT = 32  # figures kept in memory, by what they are made of
Unordered = tuple[str, frozenset[str]]  # a prompt and its two contestants
Line = tuple[str, str, str, str, str]  # the fields of a VerdictLine
Texts = dict[tuple[str, str], str]  # (prompt, contestant) -> the answer


class RatingService:
    """What a person can do with votes and verdicts. Figures are made in a child process and kept until a verdict joins."""

    def __init__(self, settings: Settings, db: Database, comparisons: ComparisonService) -> None:
        self.settings = settings
        self.db = db
        self.comparisons = comparisons
        self._made: dict[str, Any] = {}

    # people

    def ballot(self, comparison: str, voter: str) -> Ballot:
        """Two answers without names in random order, of a pair that `voter` has not seen yet; `left` is None when there is none.

        Every third ballot of a person is of the pairs that everybody is shown, so that people can be compared; the others are of those
        with the fewest votes.
        """
        person = _voter(voter)
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            answers = _texts(session, row)
            seen = {(v.prompt_id, frozenset((v.a, v.b))) for v in session.scalars(_votes_of(row, person))}
            cast = session.scalars(select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.judgement_id.is_(None)))
            votes = [(vote.prompt_id, vote.a, vote.b) for vote in cast]
        every = _pairs(row, answers)
        pairs = [pair for pair in every if _unordered(pair) not in seen]
        counts = {"voted": len(seen), "total": len(seen) + len(pairs)}
        if not pairs:
            return Ballot(comparison=row.id, ballot="", prompt=None, left=None, right=None, **counts)
        prompt_id, *names = _next_pair(_shared_pairs(row, every), pairs, seen, Counter(map(_unordered, votes)))
        names = _placed(names, votes)
        prompt = next(prompt for prompt in row.prompts if prompt["id"] == prompt_id)
        left, right = (answers[prompt_id, name] for name in names)
        sealed = _sealed(row, person, prompt_id, *names)
        return Ballot(comparison=row.id, ballot=sealed, prompt=prompt, left=left, right=right, **counts)

    def vote(self, comparison: str, voter: str, ballot: str, choice: str) -> Vote:
        """Keep a vote: left, right, tie or both-bad. Tells who was who; a second vote on the same pair replaces the first."""
        person = _voter(voter)
        if choice not in CHOICES:
            raise StudioError(f"{choice!r} can't be voted.", f"Vote {', '.join(CHOICES)}.")
        clicked = BallotChoice(choice)
        with self.db.write() as session:
            row = self.comparisons.find(session, comparison)
            opened = next((case for case in _orders(row) if _sealed(row, person, *case) == ballot), None)
            if opened is None:
                raise StudioError("This ballot is not of this voter and comparison.", "Ask for a new ballot.")
            prompt_id, left, right = opened
            for earlier in session.scalars(_votes_of(row, person).where(VerdictRow.prompt_id == prompt_id)):
                if {earlier.a, earlier.b} == {left, right}:
                    session.delete(earlier)
            vote = Vote(prompt_id=prompt_id, left=left, right=right, choice=clicked, winner=CHOICES[clicked])
            session.add(
                VerdictRow(
                    comparison_id=row.id,
                    rater=person,
                    prompt_id=prompt_id,
                    a=left,
                    b=right,
                    winner=vote.winner.value,
                    reply=vote.choice.value,
                )
            )
            return vote

    # figures

    def leaderboard(
        self, comparisons: Sequence[str] = (), *, human_only: bool = False, with_facts: bool = False, data: str | None = None
    ) -> Leaderboard:
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
            facts: dict[str, ContestantFacts] = {}
            if with_facts:
                facts = self._facts(session, rows, is_mixed)
        asked = [row.id for row in rows]
        if not lines:
            nothing = Position(first_win_rate=None, swap_consistency=None)
            return Leaderboard(contestants=[], position=nothing, pairs=[], missing_orders=0, invalid=0, warnings=[], comparisons=asked)
        found = Leaderboard(**self._figures("leaderboard", sorted(lines)), comparisons=asked)
        rated = [row.model_copy(update=dict(facts.get(row.name, ()))) for row in found.contestants]
        return found.model_copy(update={"contestants": rated})

    def agreement(self, comparison: str) -> Agreement:
        """Kappa between each two raters of one comparison, people and judges, over the pairs both looked at. Orders are averaged first."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            lines = _per_pair(_lines(session, row, human_only=False, is_mixed=False, every_judge=True))
        if not lines:
            return Agreement(pairs=[], majority={})
        return Agreement(**self._figures("agreement", sorted(lines, key=lambda line: (line[4], line))))

    def _figures(self, what: str, lines: Sequence[Line]) -> Any:
        """What a child process makes of the lines, or has made of the same ones before."""
        options = {"do": what, "verdicts": lines}
        key = hashlib.sha256(orjson.dumps(options)).hexdigest()
        if key not in self._made:
            if len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[key] = run_child("studio.evaluation", options, self.settings.cache)
        return self._made[key]

    def _facts(self, session: Session, rows: Sequence[ComparisonRow], is_mixed: bool) -> dict[str, ContestantFacts]:
        found: dict[str, ContestantFacts] = {}
        for row in rows:
            scores = self.comparisons.show(row.id).scores
            answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id, AnswerRow.error == "")).all()
            for name in row.contestants:
                own = [answer for answer in answers if answer.contestant == name]
                score = scores[name].exact_match if name in scores else None
                found[_name_among(name, row, is_mixed)] = ContestantFacts(
                    exact_match=score,
                    seconds_per_answer=_mean([answer.seconds for answer in own]),
                    tokens_per_answer=_mean([answer.completion_tokens for answer in own]),
                    **_of_adapter(session, name.rpartition(":")[2]),
                )
        return found


def _of_adapter(session: Session, name: str) -> dict[str, Any]:
    """The facts of a contestant that has an adapter of this studio, and of its training."""
    adapter = session.scalar(select(AdapterRow).where(AdapterRow.name == name))
    if adapter is None:
        return {}
    facts: dict[str, Any] = {"bytes": adapter.bytes}
    training = adapter.job_id and session.get(JobRow, adapter.job_id)
    if training:
        facts |= {"job": training.id, "training": training.name, "training_seconds": seconds_of_work(session, [training])[training.id]}
        facts["eval_loss"] = _eval_loss(session, training.id)
    return facts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _voter(name: str) -> str:
    if not name.strip() or not naming.valid(name.strip()):
        raise StudioError(f"{name!r} can't be a voter's name.", "Use letters, digits, dots, dashes and underscores.")
    return PERSON + name.strip()


def _votes_of(row: ComparisonRow, person: str) -> Any:
    return select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.judgement_id.is_(None), VerdictRow.rater == person)


def _texts(session: Session, row: ComparisonRow) -> Texts:
    answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id, AnswerRow.error == ""))
    return {(answer.prompt_id, answer.contestant): _whole(answer.turns or [answer.text]) for answer in answers}


def _whole(turns: Sequence[str]) -> str:
    """An answer for a voter; where there are several turns, each with its number."""
    if len(turns) == 1:
        return turns[0]
    return "\n\n".join(f"Turn {number}:\n{text}" for number, text in enumerate(turns, 1))


def _pairs(row: ComparisonRow, answers: Texts) -> list[tuple[str, str, str]]:
    """(prompt, one, other) of all pairs with two different answers; equal ones would waste a person's time."""
    cases = [(prompt["id"], one, other) for prompt in row.prompts for one, other in combinations(row.contestants, 2)]
    found = [(answers.get((p, one)), answers.get((p, other))) for p, one, other in cases]
    return [case for case, (one, other) in zip(cases, found, strict=True) if one is not None and other is not None and one != other]


def _unordered(pair: tuple[str, str, str]) -> Unordered:
    return pair[0], frozenset(pair[1:])


def _shared_pairs(row: ComparisonRow, pairs: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The pairs that every voter is shown, in the order in which they are: a third of all, chosen by their names alone."""
    by_chance = sorted(pairs, key=lambda pair: hashlib.sha256(orjson.dumps([row.id, *pair])).digest())
    return by_chance[: math.ceil(len(pairs) * SHARED)]


def _next_pair(
    shared: Sequence[tuple[str, str, str]], left: Sequence[tuple[str, str, str]], seen: Collection[Unordered], voted: Counter[Unordered]
) -> tuple[str, str, str]:
    """What of the pairs that are `left` a person who has `seen` others is shown now."""
    common = {_unordered(pair) for pair in shared}
    is_left = set(left)
    next_shared = [pair for pair in shared if pair in is_left]
    own = [pair for pair in left if _unordered(pair) not in common]
    if next_shared and (not own or len(common & set(seen)) < SHARED * len(seen)):
        return next_shared[0]
    fewest = min(voted[_unordered(pair)] for pair in own)
    return random.choice([pair for pair in own if voted[_unordered(pair)] == fewest])


def _placed(names: list[str], votes: Sequence[tuple[str, str, str]]) -> list[str]:
    """Left and right: by chance, in favour of the one that was on the left less often, so that both are about as often there."""
    one, other = names
    lead = sum((a == one) - (a == other) for _, a, b in votes if {a, b} == {one, other})
    chance = 0.5
    if lead:
        chance = LAGGING if lead < 0 else 1 - LAGGING
    if random.random() < chance:
        return [one, other]
    return [other, one]


def _orders(row: ComparisonRow) -> Iterable[tuple[str, str, str]]:
    for prompt in row.prompts:
        for one, other in combinations(row.contestants, 2):
            yield prompt["id"], one, other
            yield prompt["id"], other, one


def _sealed(row: ComparisonRow, person: str, prompt_id: str, left: str, right: str) -> str:
    """The order of one ballot as a number that shows neither name."""
    return hashlib.sha256(orjson.dumps([row.id, row.created_at, person, prompt_id, left, right])).hexdigest()[:32]


def _lines(session: Session, row: ComparisonRow, human_only: bool, *, is_mixed: bool, every_judge: bool = False) -> list[Line]:
    """Verdict lines of a comparison, prompts named apart from those of others, contestants by whole names where bases are mixed."""
    newest = newest_judgement(session, row)
    query = select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.is_probe.is_(False)).order_by(VerdictRow.id)
    if human_only:
        query = query.where(VerdictRow.judgement_id.is_(None))
    elif not every_judge:
        query = query.where(VerdictRow.judgement_id.is_(None) | (VerdictRow.judgement_id == newest))
    found = {}
    for verdict in session.scalars(query):  # of one judge only its last word
        a, b = (_name_among(name, row, is_mixed) for name in (verdict.a, verdict.b))
        found[verdict.prompt_id, a, b, verdict.rater] = verdict.winner
    return [(f"{row.id}:{prompt_id}", a, b, winner, rater) for (prompt_id, a, b, rater), winner in found.items()]


def newest_judgement(session: Session, row: ComparisonRow) -> str | None:
    """The last word on a comparison: of judges that are able while there is one. Earlier ones stay readable and count no more."""
    ended = (
        select(JudgementRow)
        .join(JobRow, JudgementRow.job_id == JobRow.id)
        .where(JudgementRow.comparison_id == row.id, JobRow.status == JobStatus.SUCCEEDED)
    )
    found = session.scalars(ended.order_by(JudgementRow.created_at.desc())).all()
    able = [judgement for judgement in found if judgement.readings.get("able") is not False]
    return next((judgement.id for judgement in [*able, *found]), None)


def _name_among(name: str, row: ComparisonRow, is_mixed: bool) -> str:
    """A contestant's name on a leaderboard: whole, so with its base, where comparisons of several bases are rated together."""
    if not is_mixed or ":" in name or "#" in name or name == row.base_model:
        return name
    return row.base_model if name == "base" else f"{row.base_model}:{name}"


def _per_pair(lines: Iterable[Line]) -> list[Line]:
    """One line per rater and pair: what both orders agree on, else a tie; names in alphabetical order."""
    scores: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for prompt_id, a, b, winner, rater in lines:
        if winner in SCORES:
            one, other = sorted((a, b))
            score = SCORES[winner]
            if one != a:
                score = 1 - score
            scores[prompt_id, one, other, rater].append(score)
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    return [(prompt_id, a, b, _winner(mean), rater) for (prompt_id, a, b, rater), mean in means.items()]


def _winner(score: float) -> Winner:
    if score == 0.5:
        return Winner.TIE
    return Winner.A if score > 0.5 else Winner.B


def _eval_loss(session: Session, job_id: str) -> float | None:
    """On the held-out rows of its own training; e to its power is the perplexity."""
    newest = select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.kind == "eval").order_by(MetricRow.step.desc()).limit(1)
    last = session.scalar(newest)
    if last is None:
        return None
    loss: float | None = last.values.get("eval_loss", last.values.get("loss"))
    return loss
