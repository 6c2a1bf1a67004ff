"""What the Compress tab shows, as data of its pieces: words with their spaces, answers in blind order, the curve. Knows no services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.evaluation.metrics import Display, shown_on
from studio.ui import words

MOST_WORDS = 6000  # of a prompt that the page draws
METRICS = {metric.name: metric.title for metric in shown_on(Display.CURVE)} | {"judge": "judge's score"}


def compression(made: Mapping[str, Any], foreseen: Mapping[str, Any] | None, reader: str) -> dict[str, Any]:
    """Data of templates/compression.html. `foreseen`: what it saves where the reader's speed is known."""
    kept = made["kept"]
    shown = segments(made["original"], kept[:MOST_WORDS])
    saves = saving(foreseen) if foreseen else f"Ask both to measure how fast {reader} reads here: then the time saved stands here."
    return {"made": made, "segments": shown, "cut": len(kept) > MOST_WORDS, "shown": MOST_WORDS, "saves": saves}


def segments(original: str, kept: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
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


def answers(asked: Mapping[str, Any], votes: Mapping[str, int] | None, toy: bool) -> dict[str, Any]:
    """Data of templates/compression_answers.html; titles tell who is who only after the vote."""
    order = ("after", "before") if asked["is_swapped"] else ("before", "after")
    same = asked["before"]["text"] == asked["after"]["text"] and not asked["before"].get("error")
    reveals = {"before": "The whole prompt", "after": "The compressed prompt"}
    failed = [name for name in order if asked[name].get("error")]
    open_now = bool(asked.get("voted")) or same or bool(failed)  # beside an error there is nothing to vote on
    listed = [
        {"error": "", **asked[name], "title": reveals[name] if open_now else f"Answer {letter}"}
        for name, letter in zip(order, "AB", strict=True)
    ]
    return {
        "answers": listed,
        "voted": open_now,
        "same": same,
        "votes": votes,
        "contestant": asked["contestant"],
        "toy": toy,
        "saving": FITS if failed == ["before"] else saving(asked["saving"]),
        "judged": _judged(asked.get("judged"), [(name, answer["title"]) for name, answer in zip(order, listed, strict=True)]),
    }


def _judged(judged: Mapping[str, Any] | None, titles: Sequence[tuple[str, str]]) -> str:
    """What a judge said, in the names that the page shows: before the vote they tell nothing."""
    if judged is None:
        return ""
    if judged["winner"] is None:
        return f"{judged['judge']} gave no verdict that can be read."
    if judged["winner"] == "tie":
        why = "" if judged["consistent"] else ", for it changed its mind with the order"
        return f"{judged['judge']} finds neither better{why}."
    title = dict(titles)["before" if judged["winner"] == "original" else "after"]
    return f"{judged['judge']} prefers {title[0].lower() + title[1:] if title.startswith('The') else title}, asked in both orders."


def saving(found: Mapping[str, Any]) -> str:
    """One sentence from measured speeds."""
    if found.get("saved_s") is None:
        return "What it saves could not be measured: one of the prompts could not be read."
    even, saved = found["break_even_tokens"], float(found["saved_s"])
    cost = f"Compressing took {words.duration(found['compress_s'])}"
    if saved >= 0:
        tail = f"; below about {even:,} tokens compression costs more time than it saves here." if even else "."
        return f"{cost} and reading less saved more: {words.duration(saved)} in all{tail}"
    ahead = f"It pays from about {even:,} tokens on" if even else "This model reads so fast that it never pays in time, only in tokens"
    return f"{cost}, {words.duration(-saved)} more than reading less saved. {ahead}."


def curve(job: Mapping[str, Any]) -> dict[str, Any]:
    """Data of templates/compression_curve.html."""
    result = job.get("result") or {}
    metric = result.get("metric", "exact_match")
    points = sorted(result.get("points", []), key=lambda point: point["rate"])
    recommended = result.get("recommended")
    drawn = [
        {
            **point,
            "score": point[metric],
            "x": round(36 + 344 * point["rate"], 1),
            "y": round(154 - 142 * point[metric], 1),
            "is_recommended": point["rate"] == recommended,
        }
        for point in points
    ]
    ticks = [{"at": round(154 - 142 * value, 1), "label": f"{value:.0%}"} for value in (0, 0.5, 1)]
    part = (job["step"] or 0) / job["max_steps"] if job.get("max_steps") else 0.0
    called = METRICS[metric]
    more = [(name, METRICS[name]) for name in ("rougeL", "judge") if name != metric and points and name in points[0]]
    told = {"verdict": _verdict(result, called), "judge": result.get("judge", "")}
    return {"job": job, "points": drawn, "y_ticks": ticks, "part": part, "metric": called, "more": more, **told}


def _verdict(result: Mapping[str, Any], metric: str) -> str:
    if not result:
        return ""
    if result.get("recommended") is None:
        return f"The whole prompts score 0 % in {metric}, so no rate can be recommended: choose a model or a measure that gets some right."
    tolerance = words.share(result["tolerance"])
    if result["metric"] == "judge":
        return (
            f"Keep {words.share(result['recommended'])}: the lowest rate at which the judge's score stays within {tolerance} of "
            "50 %, which is as good as the whole prompts."
        )
    return (
        f"Keep {words.share(result['recommended'])}: the lowest rate at which {metric} stays within {tolerance} of the whole prompts' "
        f"{words.share(result['whole'])}."
    )
