"""Steps over buckets that were recorded, so that the device runs them without the host; and how rows get their adapters in them.

A step is recorded for a bucket and for the adapters that it computes: none, one for all rows, or some among which each row has its
own. Imports torch; knows nothing of answers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from studio.engine.buckets import MOST_ROWS, Bucket, Shape
from studio.engine.graphs import Recorder, Recording
from studio.engine.slots import Arrangement, Standing
from studio.errors import message_of

WORTH = 8  # steps of a kind after which it is recorded
MOST_RECORDED = 32
MOST_STANDING = 2  # sets of adapters that are laid out at a time
MOST_SOLE = 16  # single adapters likewise, which costs nothing but words
LAID_OUT = 8  # adapters that are computed although fewer are needed

log = logging.getLogger("studio.engine")


class Kind(NamedTuple):
    """The adapters that a step computes; `is_mixed`: each row has one of them or none, else all rows have the only one."""

    among: tuple[str, ...]
    is_mixed: bool


class WantedRecording(NamedTuple):
    """A step that may be recorded."""

    shape: Shape
    kind: Kind


class RecordedRunner(Protocol):
    """What runs the model over a bucket."""

    def run_in_place(self, rows: Arrangement | None, bucket: Bucket, ids: Tensor, positions: Tensor, keep: int = ...) -> Tensor:
        """Logits of the last `keep` of `ids`, [rows, keep, vocabulary], which are written behind `bucket.end`. `rows`: None for the base."""
        ...


class Recordings:
    """Steps of one model. `refusal`: why nothing is recorded any more, "" as long as nothing has failed."""

    def __init__(self, runner: RecordedRunner, recorder: Recorder | None) -> None:
        self._runner, self._recorder = runner, recorder
        self._recorded: dict[WantedRecording, tuple[Recording, Arrangement | None]] = {}  # latest used last, as are those below
        self._standing: dict[Kind, Standing] = {}
        self._sole: dict[tuple[str, int], Arrangement] = {}
        self._steps: Counter[WantedRecording] = Counter()  # that were not recorded
        self.refusal = ""

    def __len__(self) -> int:
        return len(self._recorded)

    def step(self, bucket: Bucket, keys: Sequence[str | None]) -> Tensor:
        """Logits [rows, vocabulary] of the tokens in the bucket, which is ready for the next ones then; good until the next step."""
        wanted = self._choose(bucket.shape, keys)
        if wanted in self._recorded:
            recording, rows = self._recorded.pop(wanted)
            self._recorded[wanted] = recording, rows
            if isinstance(rows, Standing):
                rows.assign(keys)
            recording.replay()
            return recording.result
        self._steps[wanted] += 1
        return self._run(bucket, self._arranged(wanted.kind, keys))

    @torch.inference_mode()
    def several(self, bucket: Bucket, keys: Sequence[str | None], ids: Tensor, keep: int) -> Tensor:
        """Logits [rows, keep, vocabulary] of the last `keep` of several tokens per row."""
        rows = self._arranged(self._choose(bucket.shape, keys).kind, keys)
        count = torch.arange(ids.shape[1], device=ids.device)
        bucket.mask.index_fill_(1, bucket.end + count, True)
        logits = self._runner.run_in_place(rows, bucket, ids, bucket.positions + count, keep)
        bucket.positions.add_(ids.shape[1])
        bucket.end.add_(ids.shape[1])
        return logits

    def drop(self) -> None:
        """The memory of the buckets is gone."""
        self._recorded.clear()

    def give_back(self) -> None:
        """Whatever takes memory beside the buckets."""
        self._recorded.clear()
        self._standing.clear()
        self._sole.clear()

    def forget(self, key: str) -> None:
        """An adapter has left: what was put together or recorded with it is of no use."""
        self._sole = {known: rows for known, rows in self._sole.items() if known[0] != key}
        self._standing = {kind: rows for kind, rows in self._standing.items() if key not in kind.among}
        self._recorded = {wanted: kept for wanted, kept in self._recorded.items() if key not in wanted.kind.among}
        self._steps = Counter({wanted: steps for wanted, steps in self._steps.items() if key not in wanted.kind.among})

    @torch.inference_mode()
    def _run(self, bucket: Bucket, rows: Arrangement | None) -> Tensor:
        """One step, in which nothing depends on what the host knows."""
        bucket.mask.index_fill_(1, bucket.end.view(1), True)
        logits = self._runner.run_in_place(rows, bucket, bucket.ids, bucket.positions)
        bucket.positions.add_(1)
        bucket.end.add_(1)
        return logits[:, -1]

    # adapters

    def _choose(self, shape: Shape, keys: Sequence[str | None]) -> WantedRecording:
        """The step for these rows, if possible one that was recorded."""
        possible = [WantedRecording(shape, kind) for kind in self._kinds(keys)]
        return next((wanted for wanted in possible if wanted in self._recorded), possible[0])

    def _kinds(self, keys: Sequence[str | None]) -> Iterator[Kind]:
        used = {key for key in keys if key is not None}
        if len(set(keys)) == 1:
            yield Kind(tuple(used), False)
        for kind in reversed(self._standing):
            if used <= set(kind.among) and len(kind.among) <= max(LAID_OUT, len(used)):
                yield kind
        yield Kind(tuple(sorted(used)), True)

    def _arranged(self, kind: Kind, keys: Sequence[str | None]) -> Arrangement | None:
        if not kind.among:
            return None
        if kind.is_mixed:
            rows = self._standing.pop(kind, None) or Standing(MOST_ROWS, kind.among)
            self._standing[kind] = rows
            if len(self._standing) > MOST_STANDING:
                oldest = next(iter(self._standing))
                del self._standing[oldest]
                self._recorded = {wanted: kept for wanted, kept in self._recorded.items() if wanted.kind != oldest}
            rows.assign(keys)
            return rows
        place = kind.among[0], len(keys)
        sole = self._sole.pop(place, None) or Arrangement(kind.among * len(keys))
        self._sole[place] = sole
        if len(self._sole) > MOST_SOLE:
            del self._sole[next(iter(self._sole))]
        return sole

    # recording

    def wanted(self) -> WantedRecording | None:
        """The step that is most worth being recorded."""
        if self._recorder is None or self.refusal:
            return None
        return next((wanted for wanted, steps in self._steps.most_common(1) if steps >= WORTH), None)

    @torch.inference_mode()
    def record(self, wanted: WantedRecording, bucket: Bucket) -> None:
        """Record it, in a bucket that nobody uses. Where that fails, steps go on as they were, and `refusal` says why."""
        assert self._recorder is not None
        del self._steps[wanted]
        rows = self._arranged(wanted.kind, (wanted.kind.among or (None,))[:1] * bucket.shape.rows)
        try:
            bucket.clear()
            recording = self._recorder.record(lambda: self._run(bucket, rows))
            if isinstance(rows, Standing) and rows.hindrance:
                raise RuntimeError(rows.hindrance)
        except Exception as exc:  # noqa: BLE001  (whatever a model does on the device)
            self.refusal = message_of(exc)
            log.warning("A step could not be recorded, so steps are launched one operation at a time: %s", self.refusal)
            return
        finally:
            bucket.clear()
        self._recorded[wanted] = recording, rows
        if len(self._recorded) > MOST_RECORDED:
            del self._recorded[next(iter(self._recorded))]
        said = ", ".join(wanted.kind.among) or "the base"
        log.info("Recorded: a step of %d rows of up to %d columns with %s.", *wanted.shape, said)
