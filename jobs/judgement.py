"""One judgement: a judge looks at every pair of answers in both orders; verdicts are kept as they land, then read.

A restart goes on where it ended, and a question that this judge has answered before is taken from the rows. Knows the tables and the
engine's client; what is asked and how replies are read is studio.evaluation's.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.light import LightContext, LightJobStopped
from jobs.panel import RATING_BREAK, AnswerPair, JudgeQuestion, PairJudge, PanelJudge, identity_of, open_judge
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.errors import StudioError
from studio.evaluation import judging, readings, replies
from studio.evaluation.verdicts import VerdictLine
from studio.records import InvalidReason, JudgeKind, TemplateKind, Verdict

CONCURRENCY = 16  # questions that wait together; the engine batches them and reads what they share once
PROBES = 10  # prompts on which a constant answer plays against a contestant
CONSTANT_TEXT = "I am sorry, I can't say anything about that."

Progress = Callable[[int, int], None]  # (verdicts so far, of how many)

log = logging.getLogger(__name__)


class JudgementRun:
    """What one judgement needs: the comparison, its answers, the judge, and what was said already."""

    def __init__(self, context: LightContext, config: dict[str, Any], judge: PairJudge | None = None) -> None:
        """`config` is the job's, with `judgement`; `judge` is one that is open already."""
        self.context = context
        self.config = config
        with context.db.read() as session:
            self.judgement = session.get_one(JudgementRow, str(config["judgement"]))
            self.comparison = session.get_one(ComparisonRow, self.judgement.comparison_id)
            answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == self.comparison.id, AnswerRow.error == "")).all()
            self.contestants = _resolved(session, self.comparison)
        self.prompts = {prompt["id"]: prompt for prompt in self.comparison.prompts}
        self.answers = {(answer.prompt_id, answer.contestant): answer.turns or [answer.text] for answer in answers}
        self.kind = JudgeKind(self.judgement.kind)
        how = {"kind": self.kind, "template": self.judgement.template, "criteria": self.judgement.criteria}
        self.judge = judge or open_judge({**config, **how}, context.settings, context.stop_requested)

    def finish(self, progress: Progress | None = None) -> dict[str, Any]:
        """Ask what is open, read all verdicts, and keep what they say. `progress` is called instead of the job's own."""
        is_cut = self.ask(progress or self.context.progress)
        return self.keep_readings({**self.read(), "is_cut_by_budget": is_cut})

    def keep_readings(self, found: dict[str, Any]) -> dict[str, Any]:
        with self.context.db.write() as session:
            session.get_one(JudgementRow, self.judgement.id).readings = found
        return found

    # what to look at

    def pairs(self) -> Iterator[AnswerPair]:
        """Both orders of every pair of answers to one prompt, prompt by prompt; then those against a constant answer."""
        for prompt_id, prompt in self.prompts.items():
            present = [name for name in self.comparison.contestants if (prompt_id, name) in self.answers]
            for a, b in itertools.permutations(present, 2):
                yield AnswerPair(prompt, a, b, self.answers[prompt_id, a], self.answers[prompt_id, b])
        if self.config.get("probes", True) and self.kind in (JudgeKind.MODEL, JudgeKind.PANEL):
            yield from self._probes()

    def _probes(self) -> Iterator[AnswerPair]:
        name = next((name for name in reversed(self.comparison.contestants)), "")
        for prompt_id in [key for key in self.prompts if (key, name) in self.answers][:PROBES]:
            prompt, own = self.prompts[prompt_id], self.answers[prompt_id, name]
            constant = [CONSTANT_TEXT] * len(own)
            yield AnswerPair(prompt, name, readings.CONSTANT, own, constant, is_probe=True)
            yield AnswerPair(prompt, readings.CONSTANT, name, constant, own, is_probe=True)

    def ask(self, progress: Progress) -> bool:
        """Ask about what has no verdict yet; whether the budget ended it. Raises StudioError, LightJobStopped."""
        done = self._done()
        pairs = list(self.pairs())
        if not pairs:
            raise StudioError("There is no pair of answers to judge.", "Compare at least two contestants that answered.")
        still_open = [pair for pair in pairs if (pair.prompt["id"], pair.a, pair.b) not in done]
        progress(len(pairs) - len(still_open), len(pairs))
        questions = self.judge.questions(still_open)
        known = self._known({question.key for question in questions})
        return self._ask_all(questions, known, len(pairs), progress)

    def _done(self) -> set[tuple[str, str, str]]:
        query = select(VerdictRow.prompt_id, VerdictRow.a, VerdictRow.b).where(VerdictRow.judgement_id == self.judgement.id)
        with self.context.db.read() as session:
            return {(prompt_id, a, b) for prompt_id, a, b in session.execute(query)}

    def _spent(self) -> int:
        """Tokens that this judgement took before a restart: a budget is for the whole of it."""
        tokens = func.coalesce(func.sum(VerdictRow.prompt_tokens + VerdictRow.completion_tokens), 0)
        with self.context.db.read() as session:
            return int(session.scalar(select(tokens).where(VerdictRow.judgement_id == self.judgement.id)) or 0)

    def _known(self, keys: Iterable[str]) -> dict[str, VerdictRow]:
        """Earlier verdicts of equal judges on equal questions."""
        wanted = sorted(keys)
        found: dict[str, VerdictRow] = {}
        with self.context.db.read() as session:
            for begin in range(0, len(wanted), 500):
                part = wanted[begin : begin + 500]
                rows = session.scalars(select(VerdictRow).where(VerdictRow.key.in_(part), VerdictRow.winner != "invalid"))
                found |= {row.key: row for row in rows}
        return found

    def _ask_all(self, questions: Sequence[JudgeQuestion], known: dict[str, VerdictRow], total: int, progress: Progress) -> bool:
        budget = int(self.config.get("budget_tokens") or 0)
        concurrency = int(self.config.get("concurrency") or CONCURRENCY)
        count, spent = total - len(questions), self._spent()
        remaining = iter(questions)
        with ThreadPoolExecutor(concurrency) as pool:
            waiting: set[Future[VerdictRow | None]] = set()
            try:
                while True:
                    is_cut = bool(budget) and spent >= budget
                    room = 0 if is_cut else concurrency - len(waiting)
                    for question in itertools.islice(remaining, room):
                        waiting.add(pool.submit(self._verdict, question, known))
                    if not waiting:
                        return is_cut and next(remaining, None) is not None
                    finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    rows = [row for future in finished if (row := future.result()) is not None]
                    count += len(finished)
                    spent += sum(row.prompt_tokens + row.completion_tokens for row in rows)
                    self._keep(rows)
                    progress(count, total)
            finally:
                for future in waiting:
                    future.cancel()

    def _keep(self, rows: Sequence[VerdictRow]) -> None:
        if rows:
            with self.context.db.write() as session:
                session.add_all(rows)
        if self.context.stop_requested():
            raise LightJobStopped

    def _verdict(self, question: JudgeQuestion, known: dict[str, VerdictRow]) -> VerdictRow | None:
        earlier = known.get(question.key)
        try:
            verdict = question.pair.verdict(earlier.winner, question.asked, earlier.reply) if earlier else question.ask()
        except StudioError as exc:
            if question.pair.is_probe:
                log.info("A probe of the judge was left out: %s", exc)
                return None
            raise
        return self.row(verdict, question.key, is_cached=earlier is not None)

    def row(self, verdict: Verdict, key: str = "", is_cached: bool = False) -> VerdictRow:
        """A verdict as a row of this judgement."""
        return VerdictRow(
            comparison_id=self.comparison.id,
            judgement_id=self.judgement.id,
            rater=self.judgement.judge,
            key=key,
            is_probe=verdict.probe,
            is_cached=is_cached,
            **verdict.model_dump(mode="json", exclude={"rater", "probe", "cached"}),
        )

    # what it says

    def rows(self) -> Sequence[VerdictRow]:
        """All verdicts so far."""
        with self.context.db.read() as session:
            return session.scalars(select(VerdictRow).where(VerdictRow.judgement_id == self.judgement.id).order_by(VerdictRow.id)).all()

    def read(self) -> dict[str, Any]:
        """The readings of all verdicts so far, and what they took."""
        rows = self.rows()
        own = [as_verdict(row) for row in rows if not row.is_probe]
        given = readings.ReadingsInput(
            verdicts=own,
            lengths={key: len("".join(turns)) for key, turns in self.answers.items()},
            contestants=self.comparison.contestants,
            categories={key: prompt["category"] for key, prompt in self.prompts.items() if prompt.get("category")},
            references=list(self._by_reference()),
            probes=[as_verdict(row) for row in rows if row.is_probe],
            is_rule=self.kind == JudgeKind.REFERENCE,
            is_contestant=self.own_name(),
            reasons=self._reasons(rows),
            by_order=self._by_order(rows),
            attacks={key for key, turns in self.answers.items() if any(map(judging.talks_to_the_judge, turns))},
        )
        taken = {
            "verdicts": len(rows),
            "cached": sum(row.is_cached for row in rows),
            "prompt_tokens": sum(row.prompt_tokens for row in rows),
            "completion_tokens": sum(row.completion_tokens for row in rows),
            "seconds": round(sum(row.seconds for row in rows), 2),
        }
        return {**readings.read(given), **taken}

    def _by_reference(self) -> Iterator[VerdictLine]:
        """What the rule says of the same pairs, where there are references."""
        for prompt_id, prompt in self.prompts.items():
            if prompt.get("reference"):
                present = [name for name in self.comparison.contestants if (prompt_id, name) in self.answers]
                for a, b in itertools.combinations(present, 2):
                    texts = self.answers[prompt_id, a][-1], self.answers[prompt_id, b][-1]
                    yield VerdictLine(prompt_id, a, b, judging.by_reference(*texts, prompt["reference"]))

    def _reasons(self, rows: Iterable[VerdictRow]) -> dict[InvalidReason, int] | None:
        """Why replies of a model are invalid."""
        if self.kind != JudgeKind.MODEL:
            return None
        reasons = [_reason(row, judging.get(self.judgement.template).kind) for row in rows if row.winner == "invalid" and not row.is_probe]
        return dict(Counter(reasons))

    def _by_order(self, rows: Iterable[VerdictRow]) -> int | None:
        """Replies of a model that name the answers by their order."""
        if self.kind != JudgeKind.MODEL or judging.get(self.judgement.template).kind != TemplateKind.PAIRWISE:
            return None
        read = [replies.verdict_reading(row.reply) for row in rows if row.winner in ("a", "b") and not row.is_probe]
        return sum(one.by_order for one in read)

    def own_name(self) -> str:
        """The contestants that the judge is, or that sit on the panel, if any."""
        judges = [self.judge]
        if isinstance(self.judge, PanelJudge):
            judges = list(self.judge.judges.values())
        own = [one.identity for one in judges if one.identity]
        return ", ".join(name for name, value in self.contestants.items() if identity_of(value) in own)


def _reason(row: VerdictRow, kind: TemplateKind) -> InvalidReason:
    """Why the reply of a row holds no verdict; of two ratings, why the first that is none is none."""
    if kind == TemplateKind.PAIRWISE:
        return replies.verdict_reading(row.reply).reason or InvalidReason.NO_VERDICT
    reasons = [replies.rating_reading(reply).reason for reply in row.reply.split(RATING_BREAK)]
    return next((reason for reason in reasons if reason), InvalidReason.NO_VERDICT)


def as_verdict(row: VerdictRow) -> VerdictLine:
    return VerdictLine(row.prompt_id, row.a, row.b, row.winner, row.rater)


def _resolved(session: Session, comparison: ComparisonRow) -> dict[str, dict[str, Any]]:
    job = comparison.job_id and session.get(JobRow, comparison.job_id)
    if not job:
        return {}
    return {value["name"]: value for value in job.config.get("contestants", [])}
