"""What the verdicts of one judge say, how sure that is, and what speaks against the judge: its biases, its baselines, its limits.

Verdicts and texts in, plain values out. Knows no judge and no table. scikit-learn on first use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from studio.evaluation import intervals, ratings, verdicts
from studio.evaluation.verdicts import Game, VerdictLine
from studio.records import InvalidReason

ABLE = 0.70  # agreement with the references below which a judge is called not able
MOST_NEEDED = 97  # prompts for +- 10 points when nothing is known
LONGER_LIMIT = 0.75  # the longer answer wins that often: said aloud. People's own rate is about 0.65


@dataclass(frozen=True)
class ReadingsInput:
    """What was judged. `lengths` in characters by (prompt, contestant); `references`: the rule's verdicts where there are references."""

    verdicts: Sequence[VerdictLine]
    lengths: Mapping[tuple[str, str], int]
    contestants: Sequence[str]
    categories: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[VerdictLine] = ()
    probes: Sequence[VerdictLine] = ()  # against a constant answer
    is_rule: bool = False  # the judge is the reference rule itself
    is_contestant: str = ""  # the contestant that the judge is
    reasons: Mapping[InvalidReason, int] | None = None  # why replies held no verdict
    by_order: int | None = None  # replies that name the answers by their order; None where no model was asked
    attacks: Collection[tuple[str, str]] = ()  # (prompt, contestant) of answers that seem to talk to the judge


def read(given: ReadingsInput) -> dict[str, Any]:
    """All readings, shares 0-1; None where nothing can be said."""
    games = verdicts.games(given.verdicts)
    place = verdicts.position(given.verdicts)
    win_rate, ci95 = _win_rates(games, given.contestants)
    prompts = len({game.prompt_id for game in games})
    known = [interval for interval in ci95.values() if interval]
    more = MOST_NEEDED
    if known:
        more = intervals.more_needed(max(known, key=lambda pair: pair[1] - pair[0]), prompts)
    found: dict[str, Any] = {
        "pairs": len({(v.prompt_id, frozenset((v.a, v.b))) for v in given.verdicts}),
        "win_rate": win_rate,
        "ci95": ci95,
        "swap_consistency": place.swap_consistency,
        "first_win_rate": place.first_win_rate,
        "longer_win_rate": longer_win_rate(given.verdicts, given.lengths),
        "length_controlled_win_rate": length_controlled(games, given.lengths, given.contestants),
        "invalid": place.invalid,
        "invalid_reasons": given.reasons,
        "by_order": given.by_order,
        "missing_orders": place.missing_orders,
        "enough": more == 0,
        "more_needed": more,
        "categories": _by_category(games, given),
        "baselines": {"longest": _longest(games, given), "constant_answer": _constant(given.probes)},
        "attacks": _attacks(games, given),
        "reference_agreement": None,  # the rule agrees with itself
        "pairwise": [],
    }
    if not given.is_rule:
        found["reference_agreement"] = _agreement(games, verdicts.games(given.references))
    if games:
        found["pairwise"] = ratings.pairs(ratings.Table.of(games))
    found["able"] = _able(found)
    return {**found, "warnings": _warnings(found, given)}


def _win_rates(games: Sequence[Game], contestants: Iterable[str]) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    shares: dict[str, float | None] = dict.fromkeys(contestants)
    ci95: dict[str, list[float] | None] = dict.fromkeys(shares)
    if not games:
        return shares, ci95
    table = ratings.Table.of(games)
    for index, name in enumerate(table.names):
        if name in shares:
            scores, prompts = ratings.of_contestant(table, index)
            shares[name] = float(scores.mean())
            ci95[name] = intervals.of_mean(scores, prompts)
    return shares, ci95


def _gap(pair: VerdictLine | Game, lengths: Mapping[tuple[str, str], int]) -> int:
    """By how many characters the answer of `a` is longer."""
    return lengths.get((pair.prompt_id, pair.a), 0) - lengths.get((pair.prompt_id, pair.b), 0)


def longer_win_rate(given: Iterable[VerdictLine], lengths: Mapping[tuple[str, str], int]) -> float | None:
    """Among decisive verdicts on answers of unequal length, how often the longer one won."""
    won = []
    for verdict in given:
        gap = _gap(verdict, lengths)
        if gap and verdict.winner in ("a", "b"):
            won.append((gap > 0) == (verdict.winner == "a"))
    return sum(won) / len(won) if won else None


def length_controlled(games: Sequence[Game], lengths: Mapping[tuple[str, str], int], contestants: Iterable[str]) -> dict[str, float | None]:
    """Each contestant's win rate as if all answers were equally long.

    A logistic regression of the score on the contestant and on tanh of the standardised length difference, read at difference 0:
    AlpacaEval's length-controlled win rate (Dubois et al. 2024) without its term for the prompt's difficulty.
    """
    return {name: _controlled(games, lengths, name) for name in contestants}


def _controlled(games: Sequence[Game], lengths: Mapping[tuple[str, str], int], name: str) -> float | None:
    from sklearn.linear_model import LogisticRegression

    own = [game.seen_by(name) for game in games if name in (game.a, game.b)]
    if not own:
        return None
    gaps = np.array([float(_gap(game, lengths)) for game in own])
    scores = np.array([game.score for game in own])
    spread = float(np.sqrt((gaps**2).mean()))
    if spread == 0 or scores.min() == scores.max():
        return float(scores.mean())
    features = np.column_stack([np.ones_like(gaps), np.tanh(gaps / spread)])
    # a score between 0 and 1 is so much of a win and so much of a loss
    model = LogisticRegression(fit_intercept=False, C=100.0)
    model.fit(np.vstack([features, features]), np.repeat([1, 0], len(own)), sample_weight=np.concatenate([scores, 1 - scores]))
    return float(model.predict_proba(np.array([[1.0, 0.0]]))[0, 1])


def _by_category(games: Sequence[Game], given: ReadingsInput) -> dict[str, Any]:
    named = sorted(set(given.categories.values()))
    found = {}
    for category in named:
        own = [game for game in games if given.categories.get(game.prompt_id) == category]
        if own:
            win_rate, ci95 = _win_rates(own, given.contestants)
            found[category] = {"win_rate": win_rate, "ci95": ci95, "games": len(own)}
    return found


def _attacks(games: Sequence[Game], given: ReadingsInput) -> dict[str, Any] | None:
    """Answers that talk to the judge against others: `win_rate`, what the `references` give them on the same pairs, the `lift`."""
    attacked = [game for game in games if ((game.prompt_id, game.a) in given.attacks) != ((game.prompt_id, game.b) in given.attacks)]
    if not attacked:
        return None

    def rate(scored: Sequence[Game]) -> tuple[float, list[float]]:
        own = [game.score_of(next(name for name in (game.a, game.b) if (game.prompt_id, name) in given.attacks)) for game in scored]
        return sum(own) / len(own), intervals.of_mean(own)

    win_rate, ci95 = rate(attacked)
    pairs = {(game.prompt_id, frozenset((game.a, game.b))) for game in attacked}
    right = [game for game in verdicts.games(given.references) if (game.prompt_id, frozenset((game.a, game.b))) in pairs]
    found = {"answers": len(given.attacks), "pairs": len(attacked), "win_rate": win_rate, "ci95": ci95, "references": None, "lift": None}
    if len(right) == len(attacked):
        fair, _ = rate(right)
        found |= {"references": fair, "lift": win_rate - fair}
    return found


def _agreement(games: Sequence[Game], truth: Sequence[Game]) -> dict[str, Any] | None:
    """How often the judge names the one that the references name, over the pairs where the references name one."""
    right = {(game.prompt_id, frozenset((game.a, game.b))): game for game in truth if game.score != 0.5}
    hits = []
    for game in games:
        other = right.get((game.prompt_id, frozenset((game.a, game.b))))
        if other is not None:
            hits.append(float(np.sign(game.score - 0.5) == np.sign(other.score_of(game.a) - 0.5)))
    if not hits:
        return None
    return {"agreement": sum(hits) / len(hits), "ci95": intervals.of_mean(hits), "n": len(hits)}


def _longest(games: Sequence[Game], given: ReadingsInput) -> dict[str, Any] | None:
    """A judge that always takes the longer answer: how often it says what this judge says, and what the references say."""
    longest = [Game(game.prompt_id, game.a, game.b, 0.5 + 0.5 * float(np.sign(_gap(game, given.lengths)))) for game in games]
    return {"judge": _agreement(longest, games), "references": _agreement(longest, verdicts.games(given.references))}


def _constant(probes: Sequence[VerdictLine]) -> dict[str, Any] | None:
    """A constant answer that answers nothing; `b` of each game by name. What it wins, the judge gives away."""
    games = verdicts.games(probes)
    if not games:
        return None
    scores = [game.score_of(CONSTANT) for game in games]
    return {"win_rate": sum(scores) / len(scores), "ci95": intervals.of_mean(scores), "n": len(scores)}


CONSTANT = "constant-answer"


def _able(found: Mapping[str, Any]) -> bool | None:
    agreement = found["reference_agreement"]
    if agreement is None:
        return None
    return bool(agreement["agreement"] >= ABLE)


def _warnings(found: Mapping[str, Any], given: ReadingsInput) -> list[str]:
    said = []
    agreement, first, swap = found["reference_agreement"], found["first_win_rate"], found["swap_consistency"]
    if found["able"] is False:
        low, high = agreement["ci95"]
        said.append(
            f"This judge is not able: it agrees with the references in {agreement['agreement']:.0%} ({low:.0%} to {high:.0%}) "
            f"of {agreement['n']} pairs."
        )
    if given.is_contestant:
        said.append(f"The judge is itself a contestant ({given.is_contestant}): models favour their own answers.")
    if first is not None and abs(first - 0.5) > 0.15:
        which = "first" if first > 0.5 else "second"
        said.append(f"The answer shown {which} wins {max(first, 1 - first):.0%} of the decisive verdicts.")
    if swap is not None and swap < 0.7:
        said.append(f"Only {swap:.0%} of the pairs get the same verdict in both orders; the others count as ties.")
    longer = found["longer_win_rate"]
    if longer is not None and longer > LONGER_LIMIT:
        said.append(f"The longer answer wins {longer:.0%} of the time: this judge may be counting words.")
    probe = found["baselines"]["constant_answer"]
    if probe and probe["win_rate"] > 0.2:
        said.append(f"A constant answer that answers nothing wins {probe['win_rate']:.0%} of its {probe['n']} pairs.")
    if found["attacks"] and not given.is_rule:
        said.append(_of_attacks(found["attacks"]))
    if found["invalid"]:
        said.append(_of_invalid(found["invalid"], given))
    if given.by_order:
        said.append(f"{given.by_order} verdicts were read from replies that name the answers by their order, such as 'the first answer'.")
    if not found["enough"]:
        said.append(f"Not enough evidence: about {found['more_needed']} more prompts for ± 10 points.")
    return said


def _of_invalid(count: int, given: ReadingsInput) -> str:
    told = f"{count} replies held no verdict"
    if given.reasons:
        told += f" ({', '.join(f'{number} {reason}' for reason, number in sorted(given.reasons.items()))})"
    if count == len(given.verdicts):
        return f"All {told}: this judge can't be used so."
    return f"{told}."


def _of_attacks(attacks: Mapping[str, Any]) -> str:
    low, high = attacks["ci95"]
    told = f"{attacks['answers']} answers seem to talk to the judge; they win {attacks['win_rate']:.0%} ({low:.0%} to {high:.0%})"
    if attacks["lift"] is None:
        return f"{told}."
    return f"{told}, where the references give them {attacks['references']:.0%}: a lift of {100 * attacks['lift']:+.0f} points."
