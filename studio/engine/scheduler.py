"""One thread owns the model: it takes waiting answers, loads what they need and makes them together, step by step.

Answers for the same base join the running batch between two steps, in the order they came; the first one that can't join
(another base, an adapter that can't be mixed) lets the batch run out and goes next. Imports torch on first use only.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.engine.answer import Answer
from studio.engine.protocol import ModelFolder
from studio.errors import EngineError, ModelError

if TYPE_CHECKING:
    from studio.engine.decoding import Batch
    from studio.engine.local import Attached, LocalModel

MAX_ROWS = 16  # answers made together
MAX_WAITING = 64  # answers that wait; more are refused with 429
IDLE_S = 600.0
LONGEST_STEP_S = 120.0  # a load or a step can't be interrupted

log = logging.getLogger("studio.engine")


class Scheduler:
    """The queue and the thread. `start` once, `close` once; every other method may be called from any thread."""

    def __init__(
        self, *, max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING, idle_s: float = IDLE_S, times_path: Path | None = None
    ) -> None:
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._idle_s = idle_s
        self._load_times = LoadTimes(times_path)
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._model: LocalModel | None = None
        self._loading: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        self._last_used = time.monotonic()
        self._answer_s = 2.0  # how long an answer took lately, for Retry-After
        self._unload_by: float | None = None  # asked to unload; what still runs then is ended
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, answers: Sequence[Answer]) -> None:
        """Queue `answers`. Raises EngineError 429 when the queue is full, 503 when the engine is stopping."""
        with self._changed:
            if self._is_closing:
                raise _stopping()
            waiting = sum(not answer.is_over for answer in self._waiting)
            if waiting and waiting + len(answers) > self._max_waiting:
                after = max(1, round(self._answer_s * waiting / self._max_rows))
                raise EngineError(
                    f"{waiting} answers are waiting already.", f"Ask again in {after} s.", status=429, code="queue_full", retry_after=after
                )
            self._waiting.extend(answers)
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """What is loaded, what is loading since when, how many answers are made and how many wait."""
        waiting = sum(not answer.is_over for answer in list(self._waiting))
        active = sum(not answer.is_over for answer in self._running)
        return {"loaded": self._loaded, "loading": self._loading, "active": active, "waiting": waiting}

    def unload(self, wait_s: float = 20.0) -> int:
        """Give the model's memory back once running answers are done, at the latest after `wait_s`. Bytes given back."""
        with self._changed:
            held = int(self._loaded["bytes"]) if self._loaded else 0
            self._unload_by = time.monotonic() + wait_s
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._unload_by is None or self._is_closing, timeout=wait_s + LONGEST_STEP_S)
        return held

    def close(self) -> None:
        """End every answer with an error at once. Safe to call from a signal handler."""
        with self._changed:
            self._is_closing = True
            for answer in [*self._running, *self._waiting]:
                answer.fail(_stopping())
            self._changed.notify_all()

    # from here on: the engine's own thread

    def _run(self) -> None:
        while not self._is_closing:
            first = self._next_answer()
            if first is not None:
                self._serve(first)

    def _next_answer(self) -> Answer | None:
        """The answer to go on with; None after a nap, so that the caller looks at the world again."""
        is_idle = self._model is not None and not self._waiting and time.monotonic() - self._last_used > self._idle_s
        if is_idle or self._unload_by is not None:
            self._drop_model()
        with self._changed:
            if self._model is None:
                self._unload_by = None
                self._changed.notify_all()
            self._forget_finished()
            if self._waiting:
                return self._waiting[0]
            self._changed.wait(timeout=min(5.0, self._idle_s))
            return None

    def _forget_finished(self) -> None:
        while self._waiting and self._waiting[0].is_over:
            self._waiting.popleft()

    def _serve(self, first: Answer) -> None:
        """Make `first` and whatever may join it. The edge of the engine: whatever fails becomes an error of its answers."""
        try:
            model = self._model_for(first.base)
        except Exception as exc:  # noqa: BLE001
            with self._changed:
                same = [answer for answer in self._waiting if answer.base == first.base]
            return self._give_up(same, exc)
        try:
            self._make_answers(model)
        except Exception as exc:  # noqa: BLE001
            self._give_up(self._running, exc)
        finally:
            self._running = []
            self._last_used = time.monotonic()

    def _make_answers(self, model: LocalModel) -> None:
        from studio.engine.decoding import Batch

        batch = Batch(model)
        while not self._is_closing:
            newcomers = self._admit(model, batch)
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

    def _admit(self, model: LocalModel, batch: Batch) -> list[tuple[Answer, Attached | None]]:
        """Take answers off the queue, first come first, as long as they fit into the batch."""
        admitted: list[tuple[Answer, Attached | None]] = []
        by_key = {attached.key: attached for attached in model.attached.values()}
        lanes = [by_key.get(key or "") for key in batch.adapters]
        while len(lanes) < self._max_rows:
            with self._changed:
                self._forget_finished()
                if not self._waiting or self._unload_by is not None:
                    return admitted
                answer = self._waiting[0]
                if not self._fits(answer, model, lanes):
                    return admitted
                self._waiting.popleft()
            attached = self._attach(answer, model, lanes)
            answer.started_at = time.monotonic()
            if not answer.is_over:
                admitted.append((answer, attached))
                lanes.append(attached)
        return admitted

    def _fits(self, answer: Answer, model: LocalModel, lanes: Sequence[Attached | None]) -> bool:
        """Whether `answer` can be made beside those in `lanes`."""
        from studio.engine import local

        if answer.base.path != model.folder.path:
            return False
        if not lanes:
            return True
        if answer.adapter is None:
            return all(lane is None or lane.is_mixable for lane in lanes)
        try:
            config, identity = local.adapter_facts(answer.adapter)
        except (ModelError, OSError):
            return True  # it will be refused when it is attached
        known = model.attached.get(identity)
        if known is not None and all(lane == known for lane in lanes):
            return True
        return local.is_mixable(config) and all(lane is None or lane.is_mixable for lane in lanes) and model.holds_only("LORA")

    def _attach(self, answer: Answer, model: LocalModel, lanes: Sequence[Attached | None]) -> Attached | None:
        """The adapter of `answer` in memory; on failure the answer alone fails."""
        if answer.adapter is None:
            return None
        self._loading = {"name": answer.adapter.name, "since": time.time(), "expected_s": None}
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
        self._loading = {"name": folder.name, "since": time.time(), "expected_s": self._load_times.expected(folder)}
        try:
            from studio.engine import local

            model = self._model
            if model is not None and model.folder.path == folder.path and model.identity == local.base_fingerprint(folder.path):
                self._loading = None
                return model
            self._drop_model()
            local.limit_threads()
            started = time.monotonic()
            self._model = local.load(folder)
            self._load_times.record(folder, time.monotonic() - started)
            self._note_loaded(self._model)
            log.info("%s loaded in %.1f s", folder.name, time.monotonic() - started)
            return self._model
        finally:
            self._loading = None

    def _note_loaded(self, model: LocalModel) -> None:
        self._loaded = {"base": model.folder.name, "adapters": model.adapter_names, "bytes": model.bytes}

    def _drop_model(self) -> None:
        if self._model is None:
            return
        from studio.engine import local

        log.info("%s unloaded", self._model.folder.name)
        self._model, self._loaded = None, None
        local.give_back_memory()

    def _give_up(self, answers: Sequence[Answer], exc: Exception) -> None:
        log.error("%s", exc, exc_info=not isinstance(exc, (ModelError, EngineError)))
        for answer in answers:
            answer.fail(as_engine_error(exc, f"{answer.base.name} can't answer"))
        self._drop_model()  # peft leaves its hooks behind when a step fails, so the next answer loads anew

    def _end_overdue(self) -> None:
        """An unload does not wait for ever."""
        if self._unload_by is not None and time.monotonic() > self._unload_by:
            error = EngineError("The engine gave its memory to a training job.", "Ask again later.", status=503, code="engine_unloaded")
            for answer in self._running:
                answer.fail(error)


class LoadTimes:
    """How long each base took to load last time; kept in a file so that the first load after a start is foretold too."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, float] = known if isinstance(known, dict) else {}

    def expected(self, folder: ModelFolder) -> float | None:
        return self._known.get(str(folder.path))

    def record(self, folder: ModelFolder, seconds: float) -> None:
        self._known[str(folder.path)] = round(seconds, 1)
        if self._path is None:
            return
        try:
            self._path.write_text(json.dumps(self._known), encoding="utf-8")
        except OSError as exc:
            log.warning("%s: %s", self._path, exc)  # a full disk must not cost an answer


def as_engine_error(exc: Exception, what: str) -> EngineError:
    """Any failure as one clear error of the protocol."""
    if isinstance(exc, EngineError):
        return exc
    if isinstance(exc, ModelError):
        return EngineError(exc.message, exc.fix, status=400, code="model_not_loadable")
    text = " ".join(str(exc).split())[:300]
    if type(exc).__name__ == "OutOfMemoryError" or isinstance(exc, MemoryError) or "not enough memory" in text:
        reason = text if type(exc) is MemoryError and text else "there is not enough memory"
        fix = "Choose a smaller model, shorten the prompt, or wait for the running job to end."
        return EngineError(f"{what}: {reason}.", fix, status=503, code="out_of_memory")
    fix = "See the engine's log; another model may work."
    return EngineError(f"{what}: {type(exc).__name__}: {text}.", fix, status=500, code="engine_error")


def _stopping() -> EngineError:
    return EngineError("The engine is stopping.", "Ask again in a few seconds.", status=503, code="engine_stopping")
