"""Rows that are decoded in place, in a bucket of memory that is taken once.

Prompts are read as everywhere, into a cache of their own, and copied in. Rows that end leave their place empty until others take it
or the rest fits a smaller bucket. Where a bucket would take more than is left, rows go back to a cache that grows. Imports torch;
knows nothing of answers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from studio.engine import graphs, recordings
from studio.engine.buckets import MOST_ROWS, Arena, Bucket, Shape, shape_for
from studio.engine.graphs import Recorder
from studio.engine.prefixes import States
from studio.engine.recordings import Recordings
from studio.engine.rows import GrowingRows, Held, Reader
from studio.engine.stepping import FAILURES, PADDING, PASSES, TOKENS
from studio.errors import message_of

HEADROOM = 32  # columns that a bucket has left when rows come
GENEROUS = 0.125  # of what may be taken, which is taken at once: what was recorded is lost when more is needed
MOST_CELLS = 2**15  # columns of all rows that are taken so
ON_CPU = False  # as fast there (0.98 to 1.11 of the time of a growing cache, 110 M parameters), and nothing is recorded
SMALLEST_VOCABULARY = 8


log = logging.getLogger("studio.engine")


class InPlaceRunner(recordings.RecordedRunner, Reader, Protocol):
    """A model in memory."""

    device: torch.device


class InPlace:
    """The arena of one model, who decodes there, and the steps that were recorded."""

    def __init__(self, runner: InPlaceRunner, recorder: Recorder | None) -> None:
        self._runner = runner
        self._limit: Callable[[], int] | None = None
        self._most: int | None = None  # one byte less than was too much once
        self._arena: Arena | None = None
        self._buckets: dict[Shape, Bucket] = {}
        self._holder: weakref.ref[BucketRows] | None = None
        self.steps = Recordings(runner, recorder)

    @property
    def bytes(self) -> int:
        return 0 if self._arena is None else self._arena.bytes

    @property
    def is_lent(self) -> bool:
        return self._holder is not None and self._holder() is not None

    def bound(self, limit: Callable[[], int]) -> None:
        """`limit`: bytes that keys and values may take, at any time."""
        self._limit = limit

    def place(self, rows: GrowingRows, adapters: Sequence[str | None]) -> Held:
        """Have these rows decoded here, where nobody else is and there is room."""
        if self.is_lent:
            return rows
        if self._arena is None:
            self._arena = Arena(rows.cache.layers, self._runner.device)
        if not self.allows(shape_for(len(adapters), rows.columns + HEADROOM)):
            self.give_back()  # a cache that grows needs it
            return rows
        held = BucketRows(self, self._runner)
        self._holder = weakref.ref(held)
        return held.absorb(rows, adapters)

    def leave(self) -> None:
        """Nobody decodes here."""
        self._holder = None

    def allows(self, shape: Shape) -> bool:
        """Whether so much may be taken."""
        bound = self._bound()  # whoever says so may have taken the arena back
        if self._arena is None or shape.rows > MOST_ROWS:
            return False
        return bound is None or max(self._arena.bytes_of(shape.cells), self._arena.bytes) <= bound

    def _bound(self) -> int | None:
        """Bytes that may be taken; None where nobody has said so."""
        bounds = [bound for bound in (self._limit and self._limit(), self._most) if bound is not None]
        return min(bounds, default=None)

    def grow(self, shape: Shape) -> Arena:
        """The memory, with room for `shape`. Where it grows, no bucket is right any more, and nothing that was recorded."""
        assert self._arena is not None
        if not self._arena.holds(shape):
            self.steps.drop()
            self._buckets.clear()
            generous = int(GENEROUS * (self._bound() or 0)) // self._arena.bytes_of(1)
            self._arena.grow(max(shape.cells, min(generous, MOST_CELLS)))
        return self._arena

    def keeps(self, bucket: Bucket) -> bool:
        """Whether its memory is still that of the arena."""
        return self._buckets.get(bucket.shape) is bucket

    def bucket(self, shape: Shape) -> Bucket:
        arena = self.grow(shape)
        if shape not in self._buckets:
            blocks = [arena.layer(number, shape) for number in range(len(arena))]
            self._buckets[shape] = Bucket(shape, blocks, self._runner.device)
        return self._buckets[shape]

    def give_back(self, *, was_too_much: bool = False) -> None:
        """Let the memory go, unless somebody decodes here. `was_too_much`: so much is never taken again."""
        if self.is_lent or self._arena is None:
            return
        if was_too_much and self.bytes:
            self._most = self.bytes - 1
            log.warning("Memory ran out: keys and values take less than %.2f GiB at a time from now on.", self.bytes / 2**30)
        self.steps.give_back()
        self._buckets.clear()
        self._arena = None

    def record_next(self) -> bool:
        """Record the step that was made most often, where one is worth it and nobody decodes here. False where there is nothing to do."""
        wanted = self.steps.wanted()
        if wanted is None or self.is_lent or self._arena is None or not self._arena.holds(wanted.shape):
            return False
        self.steps.record(wanted, self.bucket(wanted.shape))
        return True


class BucketRows:
    """Rows of a batch in a bucket: `places` in it, and where each begins. A place that is empty is computed and not looked at."""

    def __init__(self, owner: InPlace, runner: InPlaceRunner) -> None:
        self._owner, self._runner = owner, runner
        self._bucket: Bucket | None = None
        self._places: list[int] = []
        self._at: Tensor | slice = slice(0)  # the same on the device
        self._starts: list[int] = []
        self._end = 0

    @property
    def columns(self) -> int:
        return self._end - min(self._starts, default=self._end)

    def ready(self, tokens: int) -> Held:
        bucket = self._held
        if self._owner.allows(bucket.shape) and self._end + tokens <= bucket.shape.columns:
            return self
        return self._moved(shape_for(len(self._places), self.columns + tokens + HEADROOM))

    @torch.inference_mode()
    def read(self, ids: Tensor, adapters: Sequence[str | None], keep: int = 1) -> Tensor:
        bucket = self._held
        keys = [adapters[0]] * bucket.shape.rows  # who is not there shall not matter
        for place, key in zip(self._places, adapters, strict=True):
            keys[place] = key
        self._end += ids.shape[1]
        if ids.shape[1] == 1:
            bucket.ids[self._at] = ids
            return self._owner.steps.step(bucket, keys)[self._at][:, None]
        wide = ids.new_zeros(bucket.shape.rows, ids.shape[1])
        wide[self._at] = ids
        return self._owner.steps.several(bucket, keys, wide, keep)[self._at]

    @torch.inference_mode()
    def crop(self, columns: int) -> None:
        self._end -= columns
        self._held.end.sub_(columns)
        self._held.positions.sub_(columns)
        self._held.mask[:, self._end :] = False

    def count(self, row: int) -> int:
        return int(self._held.mask[self._places[row]].sum())

    @torch.inference_mode()
    def states(self, row: int, tokens: int) -> States:
        place, layers = self._places[row], self._held.cache.layers
        if any(not layer.is_initialized for layer in layers):
            return ()
        at = self._held.mask[place].nonzero()[:tokens, 0]
        return [(layer.keys[place : place + 1, :, at], layer.values[place : place + 1, :, at]) for layer in layers]

    @torch.inference_mode()
    def select(self, keep: Sequence[int]) -> Held:
        bucket = self._held
        gone = torch.tensor([place for row, place in enumerate(self._places) if row not in keep], device=bucket.mask.device)
        bucket.mask[gone] = False
        bucket.positions[gone] = 0
        self._set_places([self._places[row] for row in keep])
        self._starts = [self._starts[row] for row in keep]
        shape = shape_for(len(keep), self.columns + HEADROOM)
        if shape.rows < bucket.shape.rows:
            return self._moved(shape)
        return self

    @torch.inference_mode()
    def absorb(self, other: GrowingRows, adapters: Sequence[str | None]) -> Held:
        bucket, count = self._bucket, len(self._places) + len(adapters)
        if bucket is None or count > bucket.shape.rows or other.columns > self._end or self._end >= bucket.shape.columns:
            return self._moved(shape_for(count, max(self.columns, other.columns) + HEADROOM), other, adapters)
        free = [place for place in range(bucket.shape.rows) if place not in self._places][: len(adapters)]
        for mine, theirs in zip(bucket.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:
                _put(mine.keys, free, self._end, theirs.keys)
                _put(mine.values, free, self._end, theirs.values)
        self._take_in(bucket, free, other.mask)
        return self

    # where the rows lie

    @property
    def _held(self) -> Bucket:
        assert self._bucket is not None
        return self._bucket

    @torch.inference_mode()
    def _moved(self, shape: Shape, other: GrowingRows | None = None, adapters: Sequence[str | None] = ()) -> Held:
        """All rows in a bucket of this shape, or in a cache that grows where that is too much."""
        if self._owner.allows(shape):
            self._move(shape, other)
            return self
        rows = self._grown()
        self._bucket = None
        self._owner.leave()
        self._owner.give_back()
        if other is None:
            return rows
        return rows.absorb(other, adapters)

    def _move(self, shape: Shape, other: GrowingRows | None) -> None:
        """Layer by layer, so that no more than one of them is there twice."""
        old, width = self._bucket, self.columns
        start, count = self._end - width, len(self._places)
        end, places = width, list(range(count))
        mask = None if old is None else old.mask[self._places, start : self._end]
        if other is not None:
            end = max(width, other.columns)
        arena = self._owner.grow(shape)
        self._bucket = None
        for number in range(len(arena)):
            mine = _copied(old, number, self._places, start, self._end)
            if old is not None and not self._owner.keeps(old):
                old.cache.layers[number].keys = old.cache.layers[number].values = None  # or both were there at a time
            for kind, memory in enumerate(arena.layer(number, shape)):
                if memory is None:
                    continue
                memory.zero_()
                if mine is not None:
                    memory[:count, :, end - width : end] = mine[kind]
                if other is not None:
                    layer = other.cache.layers[number]
                    memory[count : count + len(other.mask), :, end - other.columns : end] = (layer.keys, layer.values)[kind]
        bucket = self._owner.bucket(shape)
        bucket.clear()
        bucket.end.fill_(end)
        self._bucket, self._end, self._places, self._starts = bucket, end, [], []
        if mask is not None and count:
            self._take_in(bucket, places, mask)
        if other is not None:
            self._take_in(bucket, list(range(count, count + len(other.mask))), other.mask)

    def _take_in(self, bucket: Bucket, places: Sequence[int], mask: Tensor) -> None:
        """Rows whose keys and values lie there already, right before `end`."""
        index = torch.tensor(places, device=bucket.mask.device)
        begins = self._end - mask.shape[1]
        bucket.mask[index] = False
        bucket.mask[index, begins : self._end] = mask.bool()
        bucket.positions[index] = mask.long().sum(1, keepdim=True)
        self._set_places([*self._places, *places])
        self._starts += (mask.long().argmax(1) + begins).tolist()

    def _set_places(self, places: list[int]) -> None:
        self._places, self._at = places, slice(len(places))
        if places != list(range(len(places))):
            self._at = torch.tensor(places, device=self._held.mask.device)

    def _grown(self) -> GrowingRows:
        """The same rows in a cache that grows."""
        bucket, start = self._held, self._end - self.columns
        rows = GrowingRows(self._runner)
        rows.mask = bucket.mask[self._places, start : self._end].long()
        for number in range(len(bucket.cache.layers)):
            copied = _copied(bucket, number, self._places, start, self._end)
            if copied is not None:
                rows.cache.update(*copied, number)
        return rows


def of(runner: InPlaceRunner, is_close: Callable[[Tensor, Tensor], bool]) -> tuple[InPlace | None, str]:
    """For a model whose rows can be padded, or why there is none. `is_close`: two passes say the same but for rounding."""
    device = runner.device
    if device.type != "cuda" and not ON_CPU:
        return None, "a processor gains nothing by it"
    made = InPlace(runner, graphs.recorder_for(device))
    try:
        found, expected = _trial(made, runner, made.place), _trial(made, runner, lambda rows, _: rows)
        if all(map(is_close, found, expected)):
            return made, ""
        reason = "in memory that is taken once its logits are others"
    except torch.OutOfMemoryError:
        raise
    except FAILURES as exc:
        reason = message_of(exc)
    finally:
        made.give_back()
    log.warning("Nothing is decoded in place: %s", reason)
    return None, reason


def _trial(made: InPlace, runner: InPlaceRunner, place: Callable[[GrowingRows, Sequence[str | None]], Held]) -> list[Tensor]:
    """Logits of two rows of different length: of several tokens and of one, behind a prompt."""
    ids = torch.arange(1, 2 * TOKENS + 1, device=runner.device).view(2, TOKENS) % SMALLEST_VOCABULARY
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    first, *others = PASSES
    rows, keys = GrowingRows(runner), (None, None)
    rows.begin(mask[:, : first[1]])
    rows.read_last(ids[:, : first[1]], keys)
    held = place(rows, keys)
    found = []
    for begin, end in others:
        held = held.ready(end - begin)
        found.append(held.read(ids[:, begin:end], keys, end - begin).float().clone())
    return found


def _copied(bucket: Bucket | None, number: int, places: Sequence[int], start: int, end: int) -> tuple[Tensor, Tensor] | None:
    """Keys and values of one layer, of these rows and columns; None where there are none."""
    if bucket is None or not places:
        return None
    layer: DynamicLayer = bucket.cache.layers[number]
    if not layer.is_initialized:
        return None
    index = torch.tensor(places, device=bucket.mask.device)
    return layer.keys[index, :, start:end], layer.values[index, :, start:end]


def _put(memory: Tensor, places: Sequence[int], end: int, states: Tensor) -> None:
    """Rows of keys or values into these places, right before column `end`; the rest of each place is empty."""
    index = torch.tensor(places, device=memory.device)
    memory[index] = 0
    memory[index, :, end - states.shape[2] : end] = states
