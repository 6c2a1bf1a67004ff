"""Step by step: a batch of answers over one model, which answers join and leave between two steps.

Rows are padded on the left, so that the last column is the newest token of every row. Prompts that begin like one read before
go on from there; an answer that is alone may take several drafted tokens at once. Knows nothing of requests or queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from studio.engine.answer import GeneratedAnswer
from studio.engine.budget import KeyValueBudget, too_long
from studio.engine.failures import is_out_of_memory
from studio.engine.in_place import InPlace
from studio.engine.prefixes import SHORTEST, Prefixes, States, shared_length
from studio.engine.rows import GrowingRows, Held
from studio.engine.sampling import NextToken, Sampler, broken_logits, choose
from studio.engine.speculation import Drafter
from studio.errors import EngineError


class Model(Protocol):
    """What a batch needs of a model."""

    prefixes: Prefixes
    in_place: InPlace | None  # where rows are decoded in memory that is taken once

    @property
    def device(self) -> torch.device: ...

    def recover(self) -> None:
        """After a pass that ran out of memory: give back what it left."""
        ...

    def recalls(self, key: str | None) -> bool:
        """Whether what was read with an adapter can be kept for the next prompt that begins alike."""
        ...

    def lead(self, key: str | None) -> int:
        """Columns that an adapter puts before a prompt."""
        ...

    def new_cache(self) -> Any: ...

    def is_plain(self, key: str | None) -> bool:
        """Whether it is the base, or an adapter that rows of the base may stand beside."""
        ...

    def shares_batch(self, first: str | None, second: str | None) -> bool:
        """Whether rows of two adapters, None for the base, may be in one batch."""
        ...

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, adapters: Sequence[str | None], keep: int = ...) -> Tensor:
        """Logits of the last `keep` columns, [rows, keep, vocabulary]; fills the cache. `adapters`: a key per row, None for the base."""
        ...


Row = tuple[GeneratedAnswer, str | None]  # an answer and the key of its adapter


@dataclass(frozen=True)
class Group:
    """Answers whose prompts are read together; all of them begin with `shared`, of which `states` holds the start."""

    answers: list[GeneratedAnswer]
    adapters: list[str | None]
    shared: Sequence[int] = ()
    states: States = ()


class Passes:
    """Answers in the making, in as many batches as the model needs: what can't share one is read in passes of its own, in turn.

    Where memory runs out, half of a batch is set aside and read again later: each token depends on the text before it alone.
    """

    def __init__(self, model: Model, budget: KeyValueBudget | None = None) -> None:
        self._model = model
        self._budget = budget
        if budget is not None and model.in_place is not None:
            model.in_place.bound(lambda: budget.limit)
        self._batches: list[Batch] = []
        self._aside: list[Row] = []
        self._most = 1  # rows that are read again at once

    @property
    def answers(self) -> list[GeneratedAnswer]:
        return [*(answer for batch in self._batches for answer in batch.answers), *(answer for answer, _ in self._aside)]

    @property
    def adapters(self) -> list[str | None]:
        return [*(key for batch in self._batches for key in batch.adapters), *(key for _, key in self._aside)]

    @property
    def has_room(self) -> bool:
        """Whether anything may join: not while some of what was begun waits for memory."""
        return not self._aside

    def join(self, answers: Sequence[GeneratedAnswer], adapters: Sequence[str | None]) -> None:
        """Read the prompts of `answers`, choose their first tokens, and take in those that go on."""
        joining: list[tuple[Batch, list[Row]]] = [(batch, []) for batch in self._batches]
        for answer, key in zip(answers, adapters, strict=True):
            among = (rows for batch, rows in joining if self._admits([*batch.adapters, *(other for _, other in rows)], key))
            rows = next(among, None)
            if rows is None:
                rows = []
                joining.append((Batch(self._model), rows))
            rows.append((answer, key))
        self._batches = [batch for batch, _ in joining]
        for batch, rows in joining:
            if rows and self._holds(batch, rows):
                self._run(batch, partial(batch.join, [answer for answer, _ in rows], [key for _, key in rows]), rows)
            elif rows:
                self._halve(batch, rows)
        self._batches = [batch for batch in self._batches if batch.answers]

    def step(self) -> None:
        """One more token for every answer, batch by batch."""
        for batch in self._batches:
            if self._holds(batch, []):
                self._run(batch, batch.step, [])
            else:
                self._halve(batch, [])
        self._batches = [batch for batch in self._batches if batch.answers]
        self._aside = [row for row in self._aside if not row[0].is_over]
        if self._aside and not self._batches:
            self._read_again()

    def _holds(self, batch: Batch, newcomers: Sequence[Row]) -> bool:
        """Whether there is room for one more token of each."""
        columns = max([batch.columns, *(len(answer.prompt_ids) + len(answer.ids) for answer, _ in newcomers)])
        return self._budget is None or self._budget.holds(len(batch.answers) + len(newcomers), columns + 1)

    def _run(self, batch: Batch, step: Callable[[], None], newcomers: Sequence[Row]) -> None:
        """A step that may run out of memory. Its error is let go of before anything else: it holds what the step has allocated."""
        try:
            step()
            return
        except Exception as exc:
            if not is_out_of_memory(exc):
                raise
        if self._budget is not None:
            rows = {id(answer): answer for answer in (*batch.answers, *(answer for answer, _ in newcomers))}
            self._budget.learn(len(rows), max(len(answer.prompt_ids) + len(answer.ids) for answer in rows.values()))
        begun = [*batch.set_aside(), *newcomers]
        self._model.recover()
        self._halve(batch, begun)

    def _halve(self, batch: Batch, newcomers: Sequence[Row]) -> None:
        """Set a batch aside; half of it is read again at once where nothing else is made, the rest after it. One alone fails."""
        rows = [*{id(row[0]): row for row in (*batch.set_aside(), *newcomers) if not row[0].is_over}.values()]
        if len(rows) == 1 and not any(other.answers for other in self._batches):
            ((answer, _),) = rows
            answer.fail(too_long(self._budget, len(answer.prompt_ids) + len(answer.ids)))
            return
        self._aside += rows
        self._most = max(1, len(rows) // 2)

    def _read_again(self) -> None:
        """As many of what was set aside as there is room for, the oldest first."""
        rows: list[Row] = []
        while self._aside and len(rows) < self._most and (not rows or self._fits([*rows, self._aside[0]])):
            rows.append(self._aside.pop(0))
        self.join([answer for answer, _ in rows], [key for _, key in rows])

    def _fits(self, rows: Sequence[Row]) -> bool:
        if self._budget is None:
            return True
        lengths = [len(answer.prompt_ids) + len(answer.ids) for answer, _ in rows]
        return self._budget.admits(len(rows), max(lengths) + 1, len(rows), max(lengths))

    def _admits(self, present: Sequence[str | None], key: str | None) -> bool:
        return all(self._model.shares_batch(other, key) for other in set(present))


class Batch:
    """Answers in the making. `answers` and `adapters` have one entry per row."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._samplers: list[Sampler] = []
        self.adapters: list[str | None] = []
        self._rows: Held = GrowingRows(model)
        self._next = torch.empty(0, dtype=torch.long)

    @property
    def answers(self) -> list[GeneratedAnswer]:
        return [sampler.answer for sampler in self._samplers]

    @property
    def columns(self) -> int:
        """Tokens of the longest row that were read."""
        return self._rows.columns

    def set_aside(self) -> list[Row]:
        """Let go of everything; the rows that it held."""
        rows = list(zip(self.answers, self.adapters, strict=True))
        self._take_over(Batch(self._model))
        return rows

    def join(self, answers: Sequence[GeneratedAnswer], adapters: Sequence[str | None]) -> None:
        """Read the prompts of `answers`, choose their first tokens, and take in those that go on."""
        for group in self._groups(answers, adapters):
            newcomers = Batch(self._model)
            newcomers._read(group)
            if not newcomers._samplers:
                continue
            if self._samplers:
                self._absorb(newcomers)
            else:
                self._take_over(newcomers)

    def step(self) -> None:
        """One more token for every answer, or several for one that is alone and drafts; those that are over leave."""
        self._drop_finished()
        if not self._samplers:
            return
        first, started = self._samplers[0], time.monotonic()
        drafter = first.answer.drafter if len(self._samplers) == 1 and first.takes_likeliest else None
        if drafter is not None and not first.answer.gain.is_measuring and not first.answer.gain.is_losing:
            return self._leap(first.answer, drafter, started)
        self._choose(self._pass(self._next[:, None])[:, -1])
        if drafter is not None and first.answer.gain.is_measuring:
            first.answer.gain.plain(started)

    def _pass(self, ids: Tensor, keep: int = 1) -> Tensor:
        """Logits of the last `keep` of these tokens, which come next."""
        self._rows = self._rows.ready(ids.shape[1])
        return self._rows.read(ids, self.adapters, keep)

    def _leap(self, answer: GeneratedAnswer, drafter: Drafter, started: float) -> None:
        """Check a draft in one pass and take as much of it as the model itself would have said, and one token more."""
        draft = drafter.propose([*answer.prompt_ids, *answer.ids], answer.limit - answer.completion_tokens - 1)
        ids = torch.tensor([[int(self._next[0]), *draft]], device=self._next.device)
        logits = self._pass(ids, ids.shape[1])[0]
        if not torch.isfinite(logits.max()):
            answer.fail(broken_logits(answer))
            return self._drop_finished()
        chosen = logits.argmax(dim=-1).tolist()
        right = shared_length(draft, chosen)
        self._rows.crop(len(draft) - right)
        taken = 0
        for token_id in chosen[: right + 1]:
            if not answer.is_over:
                answer.take(token_id)
                taken += 1
        self._next = torch.tensor(chosen[right : right + 1], device=self._next.device)
        answer.gain.leap(started, len(draft), taken)
        self._drop_finished()

    # reading prompts

    def _groups(self, answers: Sequence[GeneratedAnswer], adapters: Sequence[str | None]) -> Iterator[Group]:
        """First those that begin like nothing known, in one mixed pass; then those that share a beginning, by adapter."""
        by_adapter: dict[str | None, list[GeneratedAnswer]] = {}
        for answer, key in zip(answers, adapters, strict=True):
            by_adapter.setdefault(key, []).append(answer)
        alike = []
        fresh: list[tuple[GeneratedAnswer, str | None]] = []
        for key, members in by_adapter.items():
            found = []
            if self._model.recalls(key):
                found = list(self._alike(members, key))
            alike += found
            taken = {id(answer) for group in found for answer in group.answers}
            fresh += [(answer, key) for answer in members if id(answer) not in taken]
        if fresh:
            yield Group([answer for answer, _ in fresh], [key for _, key in fresh])
        yield from alike

    def _alike(self, members: list[GeneratedAnswer], key: str | None) -> Iterator[Group]:
        """All of `members` in one group where their prompts begin alike, else each with what is known of its own."""
        first, *others = members
        common = len(first.prompt_ids) - 1  # the last token is always read: its logits are the first choice
        for other in others:
            common = min(shared_length(first.prompt_ids[:common], other.prompt_ids), len(other.prompt_ids) - 1)
        if others and common >= SHORTEST:
            _, states = self._model.prefixes.find(key, first.prompt_ids[:common])
            yield Group(members, [key] * len(members), first.prompt_ids[:common], states)
            return
        for answer in members:
            known, states = self._model.prefixes.find(key, answer.prompt_ids[:-1])
            if known:
                yield Group([answer], [key], answer.prompt_ids[:known], states)

    def _read(self, group: Group) -> None:
        self._samplers, self.adapters = [Sampler(answer) for answer in group.answers], group.adapters
        rows = GrowingRows(self._model)
        self._rows = rows
        if group.shared:
            self._read_shared(group, rows.cache)
        begun = len(group.shared)
        lead = self._model.lead(group.adapters[0])
        rests = [[*answer.prompt_ids, *answer.ids][begun:] for answer in group.answers]  # with its own, where it was set aside
        length = max(len(rest) for rest in rests)
        ids = torch.zeros(len(rests), length, dtype=torch.long)
        mask = torch.zeros(len(rests), begun + lead + length, dtype=torch.long)
        mask[:, : begun + lead] = 1
        for row, rest in enumerate(rests):
            ids[row, length - len(rest) :] = torch.tensor(rest, dtype=torch.long)
            mask[row, begun + lead + length - len(rest) :] = 1
        rows.begin(mask.to(self._model.device))
        self._choose(rows.read_last(ids.to(self._model.device), self.adapters)[:, -1])

    def _read_shared(self, group: Group, cache: Any) -> None:
        """The common beginning once, in one row; then the same for every row."""
        for number, (keys, values) in enumerate(group.states):
            cache.update(keys, values, number)
        known = cache.get_seq_length()
        if known < len(group.shared):
            mask = torch.ones(1, len(group.shared), dtype=torch.long, device=self._model.device)
            ids = torch.tensor([group.shared[known:]], device=self._model.device)
            self._model.forward(ids, mask, mask.cumsum(1) - 1, cache, group.adapters[:1])
            self._model.prefixes.keep(group.adapters[0], group.shared, [(layer.keys, layer.values) for layer in cache.layers])
        for number, answer in enumerate(group.answers):
            answer.reused_tokens = len(group.shared) if number else known
        for layer in cache.layers:
            layer.keys = layer.keys.expand(len(group.answers), -1, -1, -1)
            layer.values = layer.values.expand(len(group.answers), -1, -1, -1)

    # choosing tokens

    def _choose(self, logits: Tensor) -> None:
        """Give every answer its next token. `logits`: [rows, vocabulary]."""
        choices, self._next = choose(self._samplers, logits)
        for sampler, choice in zip(self._samplers, choices, strict=True):
            if sampler.answer.is_over:
                continue
            if choice.error is not None:
                sampler.answer.fail(choice.error)
            else:
                _take(sampler.answer, choice)
        self._drop_finished()

    # rows

    def _drop_finished(self) -> None:
        keep = [row for row, sampler in enumerate(self._samplers) if not sampler.answer.is_over]
        if len(keep) == len(self._samplers):
            return
        self._remember(set(range(len(self._samplers))) - set(keep))
        self._samplers = [self._samplers[row] for row in keep]
        self.adapters = [self.adapters[row] for row in keep]
        if not keep:
            self._rows = GrowingRows(self._model)
            return
        self._next = self._next[torch.tensor(keep, device=self._next.device)]
        self._rows = self._rows.select(keep)

    def _remember(self, rows: set[int]) -> None:
        """Conversations go on: the next prompt begins with this one and its answer. Batch jobs ask each thing once."""
        for row in rows:
            answer, key = self._samplers[row].answer, self.adapters[row]
            if answer.lane != "chat" or answer.error is not None or not self._model.recalls(key):
                continue
            read = [*answer.prompt_ids, *answer.ids][: self._rows.count(row)]
            states = self._rows.states(row, len(read)) if len(read) >= SHORTEST else ()
            if states:
                self._model.prefixes.keep(key, read, states)

    def _take_over(self, other: Batch) -> None:
        """Hold the rows of `other`, and nothing of what was here before."""
        self._samplers, self.adapters = other._samplers, other.adapters
        self._rows, self._next = other._rows, other._next
        where = self._model.in_place
        if (
            where is not None
            and self.adapters
            and isinstance(self._rows, GrowingRows)
            and all(map(self._model.is_plain, set(self.adapters)))
        ):
            self._rows = where.place(self._rows, self.adapters)

    def _absorb(self, other: Batch) -> None:
        """Put the rows of `other` below these."""
        assert isinstance(other._rows, GrowingRows), "prompts are read into a cache that grows"
        self._rows = self._rows.absorb(other._rows, other.adapters)
        self._next = torch.cat([self._next, other._next])
        self._samplers += other._samplers
        self.adapters += other.adapters


def _take(answer: GeneratedAnswer, choice: NextToken) -> None:
    try:
        answer.take(choice.token_id, choice.logprobs)
    except EngineError as exc:  # a grammar that can't go on ends its own answer only
        answer.fail(exc)
