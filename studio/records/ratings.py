"""Ballots, votes, ratings and agreement."""

from __future__ import annotations

from studio.records.base import Record
from studio.records.judging import BallotChoice, ComparisonPrompt, ContestantPair, Winner


class Ballot(Record):
    """Two answers without names. `ballot` goes back with the vote and says nothing about who is who."""

    comparison: str
    ballot: str  # "" where no pair is left
    prompt: ComparisonPrompt | None
    left: str | None  # null where no pair is left
    right: str | None
    voted: int
    total: int


class Vote(Record):
    """A vote that was kept, and who was who."""

    prompt_id: str
    left: str
    right: str
    choice: BallotChoice
    winner: Winner


class ContestantFacts(Record):
    """What is known of a contestant besides its ratings; null where it is not known, or was not asked for."""

    exact_match: float | None = None
    seconds_per_answer: float | None = None
    tokens_per_answer: float | None = None
    bytes: int | None = None  # of the adapter
    job: str | None = None  # the training
    training: str | None = None  # its name
    training_seconds: float | None = None
    eval_loss: float | None = None


class Rating(ContestantFacts):
    """A contestant's place on a leaderboard."""

    name: str
    bradley_terry: float
    bradley_terry_ci95: list[float] | None
    elo: float
    win_rate: float
    ci95: list[float]  # of win_rate
    games: int


class Position(Record):
    """What the order of the answers did; null where nothing can be said."""

    first_win_rate: float | None
    swap_consistency: float | None


class Leaderboard(Record):
    """Contestants, best first."""

    contestants: list[Rating]
    position: Position
    pairs: list[ContestantPair]
    missing_orders: int
    invalid: int
    warnings: list[str]
    comparisons: list[str] | None = None  # whose verdicts count; null for a file of verdicts


class LostPrompt(Record):
    """A prompt on which a contestant lost or everybody was wrong, with a proposal for a better answer."""

    prompt_id: str
    question: str
    answer: str
    better: str
