"""One thread owns the model: it takes waiting answers, loads what they need and makes them together, step by step.

Answers for the same base join what is being made between two steps, chat before batch jobs; the first one that can't join (another
base, no memory for its adapter) lets the others run out and goes next. Imports torch on first use only.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from studio.engine import holders
from studio.engine.answer import GeneratedAnswer
from studio.engine.failures import LONGEST_STEP_S, as_engine_error, stopping, unloaded, yielded
from studio.engine.lanes import Lanes
from studio.engine.leases import LeaseBook, LoadTimes
from studio.engine.protocol import ModelFolder
from studio.errors import EngineError, ModelError
from studio.records import EngineStatus, LoadedModel, LoadingModel

if TYPE_CHECKING:
    from studio.engine.adapting import Attached
    from studio.engine.budget import KeyValueBudget
    from studio.engine.decoding import Passes
    from studio.engine.local import LocalModel

MAX_ROWS = 16  # answers made together
CHAT_ROWS = 4  # of these, kept free of batch jobs: who chats joins at the next step
MAX_WAITING = 64  # answers that wait; more are refused with 429
IDLE_S = 600.0

log = logging.getLogger("studio.engine")


class Scheduler:
    """The queue and the thread. `start` once, `close` once; every other method may be called from any thread."""

    def __init__(
        self,
        *,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
        idle_s: float = IDLE_S,
        cache: Path | None = None,
        adapter_bytes: int = 0,
        most_bytes: int = 0,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """`cache`: the studio's folder of load times and promises. `most_bytes`: of keys and values; 0 for what is free.

        `leave` ends this process; it is called where memory is given back.
        """
        self._max_rows = max_rows
        self._idle_s = idle_s
        self._adapter_bytes = adapter_bytes
        self._load_times = LoadTimes(cache and cache / "load_times.json")
        self._leases = LeaseBook(cache)
        self._holders = cache and cache / "holders"
        self._leave = leave
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting = Lanes(max_waiting)
        self._running: list[GeneratedAnswer] = []
        self._model: LocalModel | None = None
        self._assistant: LocalModel | None = None
        self._loading: LoadingModel | None = None
        self._loaded: LoadedModel | None = None
        self._last_used = time.monotonic()
        self._answer_s = 2.0  # how long an answer took lately, for Retry-After
        self._unload_by: float | None = None  # asked to unload; what still runs then is ended
        self._is_closing = False
        self._is_moved = False  # to the CPU, because of a lease
        self._is_spoiled = False  # a step has failed: what the model holds can't be relied on any more
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, answers: Sequence[GeneratedAnswer]) -> None:
        """Queue `answers`. Raises EngineError 429 when the queue is full, 503 when the engine is stopping."""
        with self._changed:
            if self._is_closing:
                raise stopping()
            self._waiting.add(answers, self._answer_s / self._max_rows)
            self._changed.notify_all()

    def status(self) -> EngineStatus:
        """What is loaded, what is loading since when, how many answers are made and wait, and to which job memory was given."""
        lease = self._leases.now()
        return EngineStatus(
            loaded=self._loaded,
            loading=self._loading,
            active=sum(not answer.is_over for answer in self._running),
            waiting=len(self._waiting),
            yielded=lease.record() if lease else None,
        )

    def unload(self, wait_s: float = 20.0) -> int:
        """Give the model's memory back once running answers are done, at the latest after `wait_s`. Bytes given back."""
        with self._changed:
            held = self._loaded.bytes if self._loaded else 0
            self._unload_by = time.monotonic() + wait_s
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._unload_by is None or self._is_closing, timeout=wait_s + LONGEST_STEP_S)
        return held

    def share(self, job: str, keep_bytes: int, *, gave_way: bool = False) -> None:
        """Until `resume`, as long as it is renewed, what is loaded anew must leave `keep_bytes` of what is free now to the job."""
        self._leases.begin(job, keep_bytes, gave_way=gave_way)

    def resume(self, job: str) -> None:
        """`job` has ended; harmless for another one."""
        self._leases.end(job)

    def close(self) -> None:
        """End every answer with an error at once. Safe to call from a signal handler."""
        with self._changed:
            self._is_closing = True
            for answer in [*self._running, *self._waiting]:
                answer.fail(stopping())
            self._changed.notify_all()

    # from here on: the engine's own thread

    def _run(self) -> None:
        while not self._is_closing:
            first = self._next_answer()
            if first is not None:
                self._serve(first)

    def _next_answer(self) -> GeneratedAnswer | None:
        """The answer to go on with; None after a nap, so that the caller looks at the world again."""
        is_idle = self._model is not None and not len(self._waiting) and time.monotonic() - self._last_used > self._idle_s
        if is_idle or self._is_spoiled or self._unload_by is not None:
            self._drop_model()
            self._is_spoiled = False
            if self._leave is not None and "torch" in sys.modules:
                self._leave()
        if self._model is not None and not len(self._waiting) and self._prepare(self._model):
            return None
        with self._changed:
            if self._model is None:
                self._unload_by = None
                self._changed.notify_all()
            first = self._waiting.first()
            if first is None:
                self._changed.wait(timeout=min(5.0, self._idle_s))
            return first

    def _prepare(self, model: LocalModel) -> bool:
        """Nobody waits: heed what was promised meanwhile, or make later answers faster. Whether there may be more to do."""
        left = self._left_for(model)
        if left is not None or model.in_place is None or not model.in_place.record_next():
            return False
        self._note_loaded(model)
        return True

    def _serve(self, first: GeneratedAnswer) -> None:
        """Make `first` and whatever may join it. The edge of the engine: whatever fails becomes an error of its answers."""
        try:
            model = self._model_for(first.base)
        except Exception as exc:  # noqa: BLE001
            with self._changed:
                same = [answer for answer in self._waiting if answer.base == first.base]
            self._is_spoiled = not isinstance(exc, (ModelError, EngineError, MemoryError))  # these came before anything was loaded
            return self._give_up(same, exc)
        try:
            self._make_answers(model)
            self._note_loaded(model)
        except Exception as exc:  # noqa: BLE001
            # peft leaves its hooks behind when a step fails, so the next answer loads anew; the memory goes once nothing on the way
            # here holds the model any more (see _next_answer)
            self._is_spoiled = True
            self._give_up(self._running, exc)
        finally:
            self._running = []
            self._last_used = time.monotonic()

    def _make_answers(self, model: LocalModel) -> None:
        from studio.engine import loading
        from studio.engine.budget import KeyValueBudget
        from studio.engine.decoding import Passes

        budget = KeyValueBudget(model.sizes, model.device, self._most_bytes, partial(self._left_for, model), lambda: model.taken_bytes)
        loading.cap_memory(model.device, self._leases.room_bytes())
        batch = Passes(model, budget)
        while not self._is_closing:
            newcomers = self._admit(model, batch, budget)
            self._running = batch.answers + [answer for answer, _ in newcomers]
            if not self._running:
                return
            if newcomers:
                batch.join([answer for answer, _ in newcomers], [attached.key if attached else None for _, attached in newcomers])
            batch.step()
            self._end_overdue()
            for answer in self._running:
                if answer.is_over:
                    self._answer_s += 0.2 * (time.monotonic() - answer.started_at - self._answer_s)

    def _left_for(self, model: LocalModel) -> int | None:
        """What a training leaves to answers beside the model itself; None where none runs. The model keeps no more between answers."""
        room = self._leases.room_bytes()
        left = None
        if room is not None and not (model.device.type == "cpu" and self._is_moved):
            left = max(0, room - model.bytes - model.adapter_bytes)
        model.make_do(left)
        return left

    def _admit(self, model: LocalModel, batch: Passes, budget: KeyValueBudget) -> list[tuple[GeneratedAnswer, Attached | None]]:
        """Take answers off the queue, first come first, as long as they fit into the batch."""
        admitted: list[tuple[GeneratedAnswer, Attached | None]] = []
        by_key = {attached.key: attached for attached in model.attached.values()}
        lanes = [by_key.get(key or "") for key in batch.adapters]
        batch_rows = sum(answer.lane == "batch" for answer in batch.answers)
        if not lanes:
            budget.look_again()
        lengths, reading = [answer.width for answer in batch.answers], [0]
        while len(lanes) < self._max_rows and batch.has_room:
            with self._changed:
                answer = self._waiting.first(takes_batch=batch_rows < max(1, self._max_rows - CHAT_ROWS))
                if answer is None or self._unload_by is not None or not self._fits(answer, model, lanes):
                    return admitted
                lengths.append(answer.width)
                reading.append(len(answer.prompt_ids))
                if not budget.admits(len(lengths), max(lengths), len(reading) - 1, max(reading)):
                    if lanes:
                        return admitted
                    model.make_do(0)  # what is only kept to be faster goes first
                    budget.look_again()
                self._waiting.take(answer)
            attached = self._attach(answer, model, lanes)
            self._equip(answer, model, attached)
            if answer.is_read_first and not answer.is_over:
                self._running = [*batch.answers, *(other for other, _ in admitted), answer]
                self._read_first(answer, model, attached, budget)
            if answer.limit and not answer.is_over:
                batch_rows += answer.lane == "batch"
                admitted.append((answer, attached))
                lanes.append(attached)
            if answer.is_read_first:
                break  # between two of them, what is being made goes on
        return admitted

    def _read_first(self, answer: GeneratedAnswer, model: LocalModel, attached: Attached | None, budget: KeyValueBudget) -> None:
        """What is wanted of the texts it was given, or a part of that, whose rest gets its turn later."""
        from studio.engine import reading

        reading.read(answer, model, attached.key if attached else None, budget)
        if not answer.limit and not answer.is_over:
            with self._changed:
                self._waiting.put_back(answer)

    def _equip(self, answer: GeneratedAnswer, model: LocalModel, attached: Attached | None) -> None:
        """What the answer needs beside its adapter: a drafter, and words for the reader."""
        from studio.engine.speculation import Assistant, Gain, PromptLookup

        answer.started_at = time.monotonic()
        own = attached.notes if attached else ()
        found = (*answer.notes, *own, *model.notes, *self._note_place(model))
        answer.notes = tuple(dict.fromkeys(found))  # an answer that is taken up again has some of them
        answer.gain = Gain()
        if answer.speculation is None or answer.is_over:
            return
        if not model.is_exact:
            answer.notes += ("Drafts are checked in 16 bit, where a near tie may fall the other way.",)
        try:
            assistant = answer.speculation.assistant
            drafting = None if assistant is None else self._assistant_for(assistant)
            slow = next((each for each in (model, drafting) if each is not None and not each.has_columns), None)
            if slow is not None:
                answer.notes += (f"No drafts were used: what {slow.folder.name} has read can't be taken back.",)
                return
            answer.drafter = PromptLookup() if drafting is None else Assistant(drafting)
        except Exception as exc:  # noqa: BLE001  (a folder from outside)
            answer.fail(as_engine_error(exc, f"{answer.speculation.assistant.name if answer.speculation.assistant else 'It'} can't assist"))

    def _assistant_for(self, folder: ModelFolder) -> LocalModel:
        from studio.engine import local

        if self._assistant is None or self._assistant.identity != local.base_fingerprint(folder.path):
            self._assistant = None
            self._assistant = local.load(folder, most=self._leases.room_bytes())
        return self._assistant

    def _note_place(self, model: LocalModel) -> tuple[str, ...]:
        lease = self._leases.now()
        return (f"Answered on the CPU while {lease.job} trains on the GPU.",) if lease and self._is_moved else ()

    def _fits(self, answer: GeneratedAnswer, model: LocalModel, lanes: Sequence[Attached | None]) -> bool:
        """Whether `answer` can be made beside those in `lanes`: on the same base, with memory for its adapter."""
        if (answer.base.path, answer.base.quantization) != (model.folder.path, model.folder.quantization):
            return False
        if not lanes or answer.adapter is None:
            return True
        try:
            return model.has_room(answer.adapter, [lane.key for lane in lanes if lane])
        except (ModelError, OSError):
            return True  # it will be refused when it is attached

    def _attach(self, answer: GeneratedAnswer, model: LocalModel, lanes: Sequence[Attached | None]) -> Attached | None:
        """The adapter of `answer` in memory; on failure the answer alone fails."""
        if answer.adapter is None:
            return None
        self._loading = LoadingModel(name=answer.adapter.name, since=time.time(), expected_s=None)
        try:
            return model.attach(answer.adapter, [lane.key for lane in lanes if lane])
        except Exception as exc:  # a folder from outside: anything may be wrong with it
            log.warning("adapter %s: %s", answer.adapter.name, exc, exc_info=not isinstance(exc, ModelError))
            answer.fail(as_engine_error(exc, f"Adapter {answer.adapter.name} can't be loaded"))
            return None
        finally:
            self._loading = None
            self._note_loaded(model)

    def _model_for(self, folder: ModelFolder) -> LocalModel:
        """The base in memory, loaded when it is not there or was made anew."""
        self._loading = LoadingModel(name=folder.name, since=time.time(), expected_s=self._load_times.expected(folder))
        try:
            from studio.engine import loading, local

            model = self._model
            is_asked = model is not None and (model.folder.path, model.folder.quantization) == (folder.path, folder.quantization)
            is_back = self._is_moved and self._leases.now() is None
            if model is not None and is_asked and not is_back and model.identity == local.base_fingerprint(folder.path):
                return model
            self._drop_model()
            loading.limit_threads()
            started = time.monotonic()
            self._model = self._load(folder)
            self._load_times.record(folder, time.monotonic() - started)
            self._note_loaded(self._model)
            log.info("%s loaded in %.1f s", folder.name, time.monotonic() - started)
            return self._model
        finally:
            self._loading = None

    def _load(self, folder: ModelFolder) -> LocalModel:
        """Beside a training: in the memory it was left, else on the CPU, else not before the training has ended."""
        from studio.engine import local

        lease = self._leases.now()
        self._is_moved = False
        if lease is None:
            return local.load(folder, budget_bytes=self._adapter_bytes)
        try:
            return local.load(folder, budget_bytes=self._adapter_bytes, most=self._leases.room_bytes())
        except MemoryError as exc:
            try:
                model = local.load(folder, budget_bytes=self._adapter_bytes, on_cpu=True) if is_on_gpu() else None
            except MemoryError:
                model = None
            if model is None:
                raise yielded(lease, str(exc)) from None
        self._is_moved = True
        return model

    def _note_loaded(self, model: LocalModel) -> None:
        from studio.engine import loading

        self._loaded = loading.described(model)
        self._note_held(f"the engine ({model.folder.name})", self._loaded.bytes + model.kept_bytes, model.device.type)

    def _drop_model(self) -> None:
        if self._model is None:
            return
        from studio.engine import loading

        log.info("%s unloaded", self._model.folder.name)
        device = self._model.device.type
        self._model, self._assistant, self._loaded = None, None, None
        loading.give_back_memory()
        self._note_held("the engine", 0, device)

    def _note_held(self, name: str, size: int, device: str) -> None:
        """For whoever plans memory."""
        if self._holders is not None:
            holders.note(self._holders, holders.HolderKind.ENGINE, name, size, device)

    def _give_up(self, answers: Sequence[GeneratedAnswer], exc: Exception) -> None:
        log.error("%s", exc, exc_info=not isinstance(exc, (ModelError, EngineError)))
        for answer in answers:
            answer.fail(as_engine_error(exc, f"{answer.base.name} can't answer"))

    def _end_overdue(self) -> None:
        """An unload does not wait for ever."""
        if self._unload_by is not None and time.monotonic() > self._unload_by:
            for answer in self._running:
                answer.fail(unloaded())


def is_on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
