"""Verdicts: who was shown first, who won, who said so; and the games they make.

A verdict line is `{"prompt_id", "a", "b", "winner": "a"|"b"|"tie"|"invalid", "rater"?}` where `a` was shown first; the swapped order
is a line of its own. Knows nothing of judges, files of answers or tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from studio.errors import DatasetError
from studio.records import Winner

WINNERS = tuple(Winner)
SWAPPED = {"a": "b", "b": "a", "tie": "tie", "invalid": "invalid"}
PERSON = "human:"  # people vote on one order only: each ballot is drawn anew
SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class VerdictLine(NamedTuple):
    """One look at two answers; `a` was shown first."""

    prompt_id: str
    a: str
    b: str
    winner: str
    rater: str = ""


@dataclass(frozen=True, order=True)
class Game:
    """All verdicts on one prompt and pair. `score` is that of `a`, 0-1; `a` is the name that came first in the verdicts."""

    prompt_id: str
    a: str
    b: str
    score: float

    def score_of(self, name: str) -> float:
        """The score of one of the two."""
        return self.score if name == self.a else 1 - self.score

    def seen_by(self, name: str) -> Game:
        """The same game with `name` as a."""
        return self if name == self.a else Game(self.prompt_id, self.b, self.a, 1 - self.score)


@dataclass(frozen=True)
class OrderEffect:
    """What the order did. Shares are None where nothing can be said."""

    first_win_rate: float | None
    swap_consistency: float | None
    both_orders: int
    missing_orders: int
    invalid: int


def read(path: Path) -> list[VerdictLine]:
    """Verdict lines of a file. Raises DatasetError with every bad line."""
    found: list[VerdictLine] = []
    problems: list[dict[str, Any]] = []
    for number, row in json_lines(path):
        try:
            found.append(from_row(row))
        except DatasetError as exc:
            problems.append({"line": number, "problem": exc.message, "fix": exc.fix})
    raise_problems(path, problems)
    if not found:
        raise DatasetError(f"{path.name} holds no verdicts.", 'Write one JSON object a line: {"prompt_id", "a", "b", "winner"}.')
    return found


def from_row(row: Any) -> VerdictLine:
    """Raises DatasetError for a row that is no verdict."""
    if not isinstance(row, dict):
        raise DatasetError("not a JSON object", 'Write {"prompt_id", "a", "b", "winner"}.')
    missing = [name for name in ("prompt_id", "a", "b", "winner") if row.get(name) in (None, "")]
    if missing:
        raise DatasetError(f"{', '.join(missing)} is missing", 'Each line needs "prompt_id", "a", "b" and "winner".')
    a, b, winner = str(row["a"]), str(row["b"]), row["winner"]
    if a == b:
        raise DatasetError(f"a and b are the same contestant, {a!r}", "Name two contestants.")
    if winner not in WINNERS:
        raise DatasetError(f"winner {winner!r} is unknown", f"Use one of {', '.join(WINNERS)}; a is the one shown first.")
    return VerdictLine(str(row["prompt_id"]), a, b, winner, str(row.get("rater") or ""))


def json_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number, value) of each line that is not blank. Raises DatasetError for what is no JSON-lines file."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise DatasetError(f"{path} is {what}.", "Name a .jsonl file.")
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as exc:
                raise DatasetError(
                    f"{path.name}, line {number}: not valid JSON ({exc.msg}).", "Put one JSON object on each line, in UTF-8."
                ) from None


def raise_problems(path: Path, problems: Sequence[dict[str, Any]]) -> None:
    """All problems of a file at once, the first one in words."""
    if problems:
        first = problems[0]
        raise DatasetError(
            f"{path.name}, line {first['line']}: {first['problem']} ({len(problems)} problems in all).",
            str(first["fix"]),
            problems=list(problems[:100]),
            count=len(problems),
        )


def games(verdicts: Iterable[VerdictLine]) -> list[Game]:
    """One game per prompt and pair: the mean of its valid orders, a tie 0.5; several raters count alike. None without a valid order."""
    orders: dict[tuple[str, str, str], dict[str, tuple[list[float], list[float]]]] = {}
    for prompt_id, a, b, winner, rater in verdicts:
        score = SCORES.get(winner)
        if score is None:
            continue
        pair, is_swapped = (prompt_id, a, b), (prompt_id, b, a) in orders
        if is_swapped:
            pair, score = (prompt_id, b, a), 1.0 - score
        orders.setdefault(pair, {}).setdefault(rater, ([], []))[is_swapped].append(score)
    return [Game(*key, score=_mean([_of_rater(said) for said in raters.values()])) for key, raters in orders.items()]


def majority(winners: Iterable[str]) -> str:
    """What more than half of those say who gave a verdict; a tie where no word has that many, invalid where nobody gave one."""
    valid = [winner for winner in winners if winner in SCORES]
    if not valid:
        return "invalid"
    best, count = Counter(valid).most_common(1)[0]
    if count * 2 > len(valid):
        return best
    return "tie"


def _of_rater(orders: tuple[list[float], list[float]]) -> float:
    return _mean([_mean(scores) for scores in orders if scores])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def position(verdicts: Iterable[VerdictLine]) -> OrderEffect:
    """First-position rate over decisive verdicts; consistency over the pairs (of one rater) with both orders valid."""
    seen: dict[tuple[str, ...], dict[str, set[str | None]]] = {}
    first = decisive = invalid = 0
    for prompt_id, a, b, winner, rater in verdicts:
        key = (prompt_id, *sorted((a, b)), rater)
        outcome = {"a": a, "b": b, "tie": ""}.get(winner)
        seen.setdefault(key, {}).setdefault(a, set()).add(outcome)
        invalid += outcome is None
        first += winner == "a"
        decisive += bool(outcome)
    alone = sum(len(orders) == 1 and not key[-1].startswith(PERSON) for key, orders in seen.items())
    valid = [orders for orders in seen.values() if len(orders) == 2 and not any(None in said for said in orders.values())]
    consistent = sum(len(set.union(*orders.values())) == 1 for orders in valid)
    return OrderEffect(
        first_win_rate=_share(first, decisive),
        swap_consistency=_share(consistent, len(valid)),
        both_orders=len(valid),
        missing_orders=alone,
        invalid=invalid,
    )
