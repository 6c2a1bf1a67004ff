"""Who is next: chat before batch jobs, but a batch job gets every fourth turn, so that neither waits for ever.

Knows answers by their lane only. Its caller holds the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from studio.engine.answer import GeneratedAnswer
from studio.errors import EngineError

CHAT_TURNS = 3  # in a row, while a batch job waits


class Lanes:
    """Waiting answers, in the order they came within each lane; each lane has a length of its own."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lanes: dict[str, deque[GeneratedAnswer]] = {"chat": deque(), "batch": deque()}
        self._chat_turns = 0

    def __iter__(self) -> Iterator[GeneratedAnswer]:
        for lane in self._lanes.values():
            yield from list(lane)

    def __len__(self) -> int:
        return sum(not answer.is_over for answer in self)

    def add(self, answers: Sequence[GeneratedAnswer], seconds_each: float) -> None:
        """Raises EngineError 429 when the lane is full. `seconds_each`: how long one of these answers takes to get its turn."""
        lane = self._lanes[answers[0].lane]
        waiting = sum(not answer.is_over for answer in list(lane))
        if waiting and waiting + len(answers) > self._max_waiting:
            after = max(1, round(seconds_each * waiting))
            raise EngineError(
                f"{waiting} answers are waiting already.", f"Ask again in {after} s.", status=429, code="queue_full", retry_after=after
            )
        lane.extend(answers)

    def first(self, takes_batch: bool = True) -> GeneratedAnswer | None:
        """The next one to be made; without `takes_batch`, of chat only."""
        for lane in self._lanes.values():
            while lane and lane[0].is_over:
                lane.popleft()
        chat, batch = self._lanes["chat"], self._lanes["batch"]
        if batch and takes_batch and (not chat or self._chat_turns >= CHAT_TURNS):
            return batch[0]
        return chat[0] if chat else None

    def take(self, answer: GeneratedAnswer) -> None:
        """It is being made now."""
        self._lanes[answer.lane].popleft()
        self._chat_turns = self._chat_turns + 1 if answer.lane == "chat" and self._lanes["batch"] else 0

    def put_back(self, answer: GeneratedAnswer) -> None:
        """A part of it was made, the rest is next."""
        self._lanes[answer.lane].appendleft(answer)
