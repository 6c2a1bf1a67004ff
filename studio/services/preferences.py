"""From verdicts to the next model: pairs that people or judges decided become a preference dataset that knows where it comes from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.datasets.json_records import json_bytes
from studio.db.models import AnswerRow, ComparisonRow, VerdictRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.evaluation.metrics import contains, exact_match_normalized, number_match
from studio.evaluation.verdicts import SCORES
from studio.records import ComparisonPrompt, Dataset, DatasetKind, LostPrompt, PreferenceSource, Winner
from studio.services import naming
from studio.services.comparisons import ComparisonService
from studio.services.datasets import DatasetService
from studio.services.ratings import newest_judgement
from studio.services.versions import Draft, Origin, VersionShelf
from studio.settings import Settings
from studio.types import Example, Message, Role

MIN_MARGIN = 0.5
EVERYBODY_WRONG = 1.0  # stands behind what was lost, whose score is below a half
Texts = dict[tuple[str, str], str]  # (prompt, contestant) -> the answer


@dataclass(frozen=True)
class RaterScore:
    """What one rater says of a pair: the score of a over its valid orders, and who won when which one was shown first."""

    score: float
    winners: Mapping[str, str]


Decisions = dict[tuple[str, str, str], dict[str, RaterScore]]  # (prompt, a, b) -> rater -> score


@dataclass(frozen=True)
class DecidedPair:
    """A row of the dataset, and where it comes from."""

    example: Example
    provenance: Mapping[str, object]


class PreferenceService:
    """What a person can do with decided pairs."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, comparisons: ComparisonService) -> None:
        self.db = db
        self.datasets = datasets
        self.comparisons = comparisons
        self._shelf = VersionShelf(settings, db)

    def make(
        self,
        comparisons: Sequence[str],
        *,
        name: str | None = None,
        min_margin: float = MIN_MARGIN,
        source: PreferenceSource = PreferenceSource.BOTH,
    ) -> Dataset:
        """A preference dataset of the pairs of `comparisons` that were decided by at least `min_margin`.

        The margin of a pair is |2 score - 1|: 1 when both orders (or all voters) name the same answer, 0 when they split. People's votes
        go before judges' where both spoke, unless `source` names one. Raises StudioError when no pair is left.
        """
        if not 0 <= min_margin <= 1:
            raise StudioError(f"A margin of {min_margin} is impossible.", "Give a number from 0 (any difference) to 1 (no doubt).")
        if not comparisons:
            raise StudioError("No comparison is named.", "Name one or more.")
        source = PreferenceSource(source)
        self._shelf.claim(name)
        left_out: Counter[str] = Counter()
        with self.db.read() as session:
            named = [self.comparisons.find(session, each) for each in comparisons]
            found = [*{row.id: row for row in named}.values()]  # one that is named twice, perhaps by its ID too, counts once
            pairs = [pair for row in found for pair in _pairs(session, row, min_margin, source, left_out)]
        if not pairs:
            why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nobody has judged or voted"
            raise StudioError(f"No pair was decided clearly enough ({why}).", "Judge or vote more, or lower the margin.")
        return self._keep(found, pairs, name, {"min_margin": min_margin, "source": source, "left_out": dict(left_out)})

    def worst(self, comparison: str, contestant: str, limit: int = 10) -> list[LostPrompt]:
        """Prompts of one turn that `contestant` got wrong: those it lost, the clearest first, then those that every answer got wrong.

        The proposal is the reference where there is one, else the answer that won.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            texts = _texts(session, row)
            lost: dict[str, tuple[float, str]] = {}
            for (prompt_id, a, b), said in _decisions(session, row, PreferenceSource.BOTH).items():
                own = {a: _score(said), b: 1 - _score(said)}
                if own.get(contestant, 0.5) < 0.5:
                    winner = max(own, key=own.__getitem__)
                    lost[prompt_id] = min(lost.get(prompt_id, (1.0, "")), (own[contestant], winner))
        for prompt_id in _unanswered(row, texts):
            lost.setdefault(prompt_id, (EVERYBODY_WRONG, ""))
        prompts = {prompt["id"]: prompt for prompt in row.prompts if len(prompt["turns"]) == 1}
        ordered = sorted((score, prompt_id, winner) for prompt_id, (score, winner) in lost.items() if prompt_id in prompts)
        return [
            LostPrompt(
                prompt_id=prompt_id,
                question=prompts[prompt_id]["turns"][0][-1]["content"],
                answer=texts.get((prompt_id, contestant), ""),
                better=prompts[prompt_id].get("reference") or texts.get((prompt_id, winner), ""),
            )
            for _, prompt_id, winner in ordered[:limit]
        ]

    def correct(self, comparison: str, answers: Mapping[str, str], *, name: str | None = None) -> Dataset:
        """A dataset of prompts of `comparison` (by their IDs) with these answers, to learn from. Raises StudioError without any."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
        prompts = {prompt["id"]: prompt for prompt in row.prompts}
        unknown = next((prompt_id for prompt_id in answers if prompt_id not in prompts), None)
        if unknown is not None:
            raise NotFoundError(f"Comparison {row.name} has no prompt {unknown[:100]!r}.", naming.suggest(unknown, list(prompts)))
        rows = [
            {"messages": [*prompts[prompt_id]["turns"][0], {"role": "assistant", "content": text.strip()}]}
            for prompt_id, text in answers.items()
            if text.strip()
        ]
        if not rows:
            raise StudioError("No answer is given.", "Show the worst prompts, and write what would have been right.")
        taken = {each.name for each in self.datasets.list()}
        free = naming.unique(f"{row.name[:50]}-corrections", lambda wanted: wanted in taken)
        return self.datasets.add_text("\n".join(orjson.dumps(each).decode() for each in rows), name=name or free)

    def _keep(self, rows: Sequence[ComparisonRow], pairs: Sequence[DecidedPair], name: str | None, how: Mapping[str, object]) -> Dataset:
        origin = Origin(DatasetKind.PREFERENCE, "preference", ", ".join(row.name for row in rows))
        provenance = {
            "made_by": "preferences",
            **how,
            "comparisons": [{"id": row.id, "name": row.name, "base_model": row.base_model, "sampling": row.params} for row in rows],
            "rows": [pair.provenance for pair in pairs],
        }
        draft = Draft(origin=origin, provenance=provenance, name=name, default_name=f"{rows[0].name[:50]}-preferences")
        with self._shelf.drafting() as drafts:
            drafts.append(draft)
            self._shelf.write(draft, (json_bytes(pair.example.as_json()) + b"\n" for pair in pairs))
            self._shelf.keep([draft])
        return self.datasets.show(draft.id)


def _pairs(
    session: Session, row: ComparisonRow, min_margin: float, source: PreferenceSource, left_out: Counter[str]
) -> Iterator[DecidedPair]:
    texts = _texts(session, row)
    prompts = {prompt["id"]: prompt for prompt in row.prompts}
    for (prompt_id, a, b), said in _decisions(session, row, source).items():
        score = _score(said)
        margin = abs(2 * score - 1)
        chosen, rejected = (a, b) if score > 0.5 else (b, a)
        reason = _reason_against(
            prompts.get(prompt_id), texts.get((prompt_id, chosen)), texts.get((prompt_id, rejected)), margin, min_margin
        )
        if reason:
            left_out[reason] += 1
            continue
        provenance = {
            "comparison": row.id,
            "prompt_id": prompt_id,
            "chosen": chosen,
            "rejected": rejected,
            "margin": margin,
            "decided_by": {
                rater: [{"first": first, "winner": winner} for first, winner in own.winners.items()] for rater, own in said.items()
            },
        }
        yield DecidedPair(_example(prompts[prompt_id], texts[prompt_id, chosen], texts[prompt_id, rejected]), provenance)


def _unanswered(row: ComparisonRow, texts: Texts) -> list[str]:
    """Prompts with a reference that no contestant's answer holds."""
    references = {prompt["id"]: prompt["reference"] for prompt in row.prompts if prompt.get("reference")}
    return [
        prompt_id
        for prompt_id, reference in references.items()
        if not any(_is_right(texts.get((prompt_id, name), ""), reference) for name in row.contestants)
    ]


def _is_right(answer: str, reference: str) -> bool:
    """Numbers are compared where the reference is one, or marks one as its answer."""
    is_number = "####" in reference or not any(letter.isalpha() for letter in reference)
    measures = (exact_match_normalized, contains, *(number_match,) * is_number)
    return any(measure(answer, [reference]) for measure in measures)


def _score(said: Mapping[str, RaterScore]) -> float:
    """Of a, the mean over raters."""
    return sum(own.score for own in said.values()) / len(said)


def _texts(session: Session, row: ComparisonRow) -> Texts:
    answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id, AnswerRow.error == ""))
    return {(answer.prompt_id, answer.contestant): answer.text for answer in answers}


def _decisions(session: Session, row: ComparisonRow, source: PreferenceSource) -> Decisions:
    """A judge must have shown both orders; a rater with an order that has no verdict says nothing."""
    counts = VerdictRow.judgement_id.is_(None) | (VerdictRow.judgement_id == newest_judgement(session, row))
    query = select(VerdictRow).where(VerdictRow.comparison_id == row.id, VerdictRow.is_probe.is_(False), counts).order_by(VerdictRow.id)
    lines: dict[tuple[str, str, str], dict[tuple[bool, str], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for verdict in session.scalars(query):
        a, b = sorted((verdict.a, verdict.b))
        is_person = verdict.judgement_id is None
        lines[verdict.prompt_id, a, b][is_person, verdict.rater][verdict.a] = verdict.winner
    found: Decisions = {}
    for (prompt_id, a, b), raters in lines.items():
        people = {rater: winners for (is_person, rater), winners in raters.items() if is_person}
        judges = {rater: winners for (is_person, rater), winners in raters.items() if not is_person and len(winners) == 2}
        wanted = {
            PreferenceSource.HUMAN: people,
            PreferenceSource.JUDGE: judges,
            PreferenceSource.BOTH: people or judges,
        }[source]
        scored = {rater: _scored(winners, a) for rater, winners in wanted.items() if Winner.INVALID not in winners.values()}
        if scored:
            found[prompt_id, a, b] = scored
    return found


def _scored(winners: Mapping[str, str], a: str) -> RaterScore:
    values = [SCORES[winner] if first == a else 1 - SCORES[winner] for first, winner in winners.items()]
    return RaterScore(sum(values) / len(values), dict(winners))


def _reason_against(prompt: ComparisonPrompt | None, chosen: str | None, rejected: str | None, margin: float, min_margin: float) -> str:
    if prompt is None or chosen is None or rejected is None:
        return "without an answer"
    if len(prompt["turns"]) > 1:
        return "with several turns, whose earlier answers differ"
    if margin == 0 or margin < min_margin:
        return "undecided"
    if chosen.strip() == rejected.strip():
        return "with equal answers"
    if not chosen.strip():
        return "won by an empty answer"
    return ""


def _example(prompt: ComparisonPrompt, chosen: str, rejected: str) -> Example:
    messages = [Message.model_validate(message) for message in prompt["turns"][0]]
    return Example(
        prompt=messages,
        chosen=[Message(role=Role.ASSISTANT, content=chosen)],
        rejected=[Message(role=Role.ASSISTANT, content=rejected)],
    )
