"""What the Compress tab shows, as data of its pieces: words with their spaces, answers in blind order, the curve. Knows no services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.evaluation.metrics import Display, shown_on
from studio.records import (
    Compression,
    CompressionAnswers,
    CompressionSaving,
    CompressionSweep,
    CompressionVerdict,
    CompressionVotes,
    CompressionWinner,
    PromptAnswer,
    SweepResult,
)
from studio.ui import words

MOST_WORDS = 6000  # of a prompt that the page draws
METRICS = {metric.name: metric.title for metric in shown_on(Display.CURVE)} | {"judge": "judge's score"}


@dataclass(frozen=True)
class AskedBoth:
    """Both answers as the page holds them until they are asked for again."""

    answers: CompressionAnswers
    contestant: str
    is_swapped: bool  # the answer to the compressed prompt is A
    voted: bool = False
    judged: CompressionVerdict | None = None

    @property
    def by_name(self) -> dict[str, PromptAnswer]:
        """`before` and `after` in the order in which they are shown."""
        both = {"before": self.answers.before, "after": self.answers.after}
        return dict(reversed(both.items())) if self.is_swapped else both


def compression(made: Compression, foreseen: CompressionSaving | None, reader: str) -> dict[str, Any]:
    """Data of templates/compression.html. `foreseen`: what it saves where the reader's speed is known."""
    saves = f"Ask both to measure how fast {reader} reads here: then the time saved stands here."
    if foreseen:
        saves = saving(foreseen)
    shown = segments(made.original, made.kept[:MOST_WORDS])
    return {"made": made, "segments": shown, "cut": len(made.kept) > MOST_WORDS, "shown": MOST_WORDS, "saves": saves}


def segments(original: str, kept: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The original as stretches that stayed or went, white space with the stretch before it."""
    found: list[tuple[str, bool]] = []
    cursor = 0
    for word, is_kept in kept:
        at = original.find(word, cursor)
        if at < 0:  # of JSON, whose strings are shown without their escapes
            continue
        gap, text = original[cursor:at], word
        cursor = at + len(word)
        if gap.strip():  # what stayed as it is, between
            found.append((gap, True))
        elif gap and found:
            found[-1] = (found[-1][0] + gap, found[-1][1])
        if found and found[-1][1] == bool(is_kept):
            found[-1] = (found[-1][0] + text, bool(is_kept))
        else:
            found.append((text, bool(is_kept)))
    return found


FITS = "The whole prompt can't be read by this model; the compressed one can."


def answers(asked: AskedBoth, votes: CompressionVotes | None, toy: bool) -> dict[str, Any]:
    """Data of templates/compression_answers.html; titles tell who is who only after the vote."""
    shown = asked.by_name
    before, after = asked.answers.before, asked.answers.after
    failed = [name for name, answer in shown.items() if answer.error]
    same = before.text == after.text and not before.error
    open_now = asked.voted or same or bool(failed)  # beside an error there is nothing to vote on
    titles = {name: f"Answer {letter}" for name, letter in zip(shown, "AB", strict=True)}
    if open_now:
        titles = {"before": "The whole prompt", "after": "The compressed prompt"}
    return {
        "answers": [{**answer.model_dump(), "title": titles[name]} for name, answer in shown.items()],
        "voted": open_now,
        "same": same,
        "votes": votes,
        "contestant": asked.contestant,
        "toy": toy,
        "saving": FITS if failed == ["before"] else saving(asked.answers.saving),
        "judged": _judged(asked.judged, titles),
    }


def _judged(verdict: CompressionVerdict | None, titles: Mapping[str, str]) -> str:
    """What a judge said, in the names that the page shows: before the vote they tell nothing."""
    if verdict is None:
        return ""
    if verdict.winner is None:
        return f"{verdict.judge} gave no verdict that can be read."
    if verdict.winner == CompressionWinner.TIE:
        why = "" if verdict.consistent else ", for it changed its mind with the order"
        return f"{verdict.judge} finds neither better{why}."
    title = titles[{CompressionWinner.ORIGINAL: "before", CompressionWinner.COMPRESSED: "after"}[verdict.winner]]
    return f"{verdict.judge} prefers {title.replace('The ', 'the ')}, asked in both orders."


def saving(found: CompressionSaving) -> str:
    """One sentence from measured speeds."""
    if found.saved_s is None:
        return "What it saves could not be measured: one of the prompts could not be read."
    even, saved = found.break_even_tokens, found.saved_s
    cost = f"Compressing took {words.duration(found.compress_s)}"
    if saved >= 0:
        tail = "."
        if even:
            tail = f"; below about {even:,} tokens compression costs more time than it saves here."
        return f"{cost} and reading less saved more: {words.duration(saved)} in all{tail}"
    ahead = "This model reads so fast that it never pays in time, only in tokens"
    if even:
        ahead = f"It pays from about {even:,} tokens on"
    return f"{cost}, {words.duration(-saved)} more than reading less saved. {ahead}."


def curve(job: CompressionSweep) -> dict[str, Any]:
    """Data of templates/compression_curve.html."""
    result = job.result
    part = (job.step or 0) / job.max_steps if job.max_steps else 0.0
    shown: dict[str, Any] = {"job": job, "part": part, "metric": "", "points": [], "more": [], "verdict": "", "judge": ""}
    shown["y_ticks"] = [{"at": round(154 - 142 * value, 1), "label": f"{value:.0%}"} for value in (0, 0.5, 1)]
    if result is None:
        return shown
    if result.whole is None:  # of a sweep that was queued before such were refused
        return {**shown, "job": job.model_copy(update={"reason": f"{METRICS[result.metric]} can't say anything about these references."})}
    points = [point.model_dump(exclude_none=True) for point in sorted(result.points, key=lambda point: point.rate)]
    drawn = [
        {
            **point,
            "score": point[result.metric],
            "x": round(36 + 344 * point["rate"], 1),
            "y": round(154 - 142 * point[result.metric], 1),
            "is_recommended": point["rate"] == result.recommended,
        }
        for point in points
    ]
    more = [(name, METRICS[name]) for name in ("rougeL", "judge") if name != result.metric and name in points[0]]
    called = METRICS[result.metric]
    return {**shown, "points": drawn, "metric": called, "more": more, "verdict": _verdict(result, called), "judge": result.judge}


def _verdict(result: SweepResult, metric: str) -> str:
    if result.recommended is None:
        return f"The whole prompts score 0 % in {metric}, so no rate can be recommended: choose a model or a measure that gets some right."
    tolerance = words.share(result.tolerance)
    if result.metric == "judge":
        return (
            f"Keep {words.share(result.recommended)}: the lowest rate at which the judge's score stays within {tolerance} of "
            "50 %, which is as good as the whole prompts."
        )
    return (
        f"Keep {words.share(result.recommended)}: the lowest rate at which {metric} stays within {tolerance} of the whole prompts' "
        f"{words.share(result.whole)}."
    )
