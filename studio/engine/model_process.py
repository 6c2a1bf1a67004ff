"""The process that holds the engine's model, as the server asks it: started ahead, started anew when it has ended, never two at once.

It ends by itself where the model gives way: after an unload, after idling, after an error that leaves its memory in doubt. What it had
not begun then is asked of the next one; what it had begun, and all it was asked when it is killed, fails with an error that says so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any

from studio import processes
from studio.engine import wire
from studio.engine.failures import LONGEST_STEP_S, ended, silent, stopping, unloaded
from studio.engine.protocol import Event
from studio.errors import EngineError
from studio.records import EngineStatus, LoadedModel

STATUS_S = 2.0  # a child that answers later is busy: what it said last counts
UNLOAD_S = 20.0  # for running answers to end
PING_S = 2.0
STOPPED_S = 6.0  # of silence, where the kernel says that the process is stopped

log = logging.getLogger("studio.engine")
Deliver = Callable[[Event], None]


@dataclass(eq=False)
class Asked:
    """What the child was asked: answers that `deliver` takes, or one value. `begun` and `finished` are indices of answers."""

    number: int
    message: dict[str, Any]
    deliver: Deliver | None = None
    begun: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    ready: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: EngineError | None = None

    def fail(self, error: EngineError) -> None:
        self.error = error
        self.ready.set()
        if self.deliver is not None:
            self.deliver(Event(error=error))

    def end(self, value: Any) -> None:
        self.value = value
        self.ready.set()


class ModelChild:
    """One process. What is sent is written by a thread of its own, so that nobody waits for it."""

    def __init__(self, idle_s: float) -> None:
        command = processes.module_command("studio.engine.model_child", "--idle-s", str(idle_s))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=processes.child_environment())
        self.has_left = False  # of its own accord
        self.was_silent = False  # and killed for it
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._write, name="model-asking", daemon=True).start()
        threading.Thread(target=self._pass_on, name="model-log", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        self._lines.put(json.dumps(message).encode() + b"\n")

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()

    def lines(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def close(self) -> None:
        """After it has ended."""
        self.process.wait()
        self._lines.put(b"")
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _write(self) -> None:
        assert self.process.stdin is not None
        while line := self._lines.get():
            try:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            except (OSError, ValueError):
                return  # it has ended, which its reader notices

    def _pass_on(self) -> None:
        """Its log is ours, whose file may change (see studio.lifeline)."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            os.write(2, line)


class ModelProcess:
    """Safe to share between threads; `close` may be called from a signal handler."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._child: ModelChild | None = None
        self._asked: dict[int, Asked] = {}
        self._numbers = itertools.count(1)
        self._is_closing = False
        self._last = EngineStatus()
        self._gone = threading.Condition(self._lock)

    def start(self) -> None:
        """Have a process ready before it is needed."""
        with self._lock:
            if self._child is None and not self._is_closing:
                self._child = ModelChild(self._idle_s)
                threading.Thread(target=self._listen, args=(self._child,), name="model-events", daemon=True).start()

    def watch(self) -> None:
        """From now on replace a process that lives and does not answer: stopped by a signal, or hung where nothing else may run."""
        threading.Thread(target=self._watch, name="model-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._is_closing:
            time.sleep(PING_S)
            with self._lock:
                child = self._child
                if child is None or self._is_closing:
                    continue
                asked = self._ask({"op": "ping"})
            began = time.monotonic()
            while not asked.ready.wait(PING_S) and child is self._child:
                waited = time.monotonic() - began
                if waited > LONGEST_STEP_S or (waited > STOPPED_S and processes.is_stopped(child.process.pid)):
                    log.warning("The model's process has not answered for %.0f s and is started anew.", waited)
                    child.was_silent = True
                    child.kill()
                    break

    def submit(self, kind: str, body: Any, deliver: Deliver) -> int:
        """Have a request answered; `deliver` is called from another thread. Its number, for `cancel`."""
        return self._ask({"op": "answer", "kind": kind, "body": body, "done": []}, deliver).number

    def cancel(self, number: int) -> None:
        """Nobody waits for this one any more; harmless when it is over."""
        with self._lock:
            if self._asked.pop(number, None) is not None and self._child is not None:
                self._child.send({"op": "cancel", "id": number})

    def read(self, kind: str, body: Any, within_s: float) -> Any:
        """What needs a tokenizer alone: one of studio.engine.tokenizing.READINGS. Raises EngineError."""
        return self._value(self._ask({"op": "read", "kind": kind, "body": body}), within_s)

    def status(self) -> EngineStatus:
        """As the child says, or said last."""
        with self._lock:
            if self._child is None:
                return EngineStatus()
            asked = self._ask({"op": "status"})
        with contextlib.suppress(EngineError):
            self._last = EngineStatus.model_validate(self._value(asked, STATUS_S))
        return self._last

    def unload(self, wait_s: float = UNLOAD_S) -> int:
        """Have the process end once running answers are done, at the latest after `wait_s`. Bytes its model held."""
        loaded: LoadedModel | None = self.status().loaded
        with self._lock:
            child = self._child
            if child is None:
                return 0
            asked = self._ask({"op": "unload", "wait_s": wait_s})
        if not asked.ready.wait(wait_s + LONGEST_STEP_S):
            child.kill()  # deep in a load or a step
        if child.has_left or child.process.poll() is not None or asked.error is not None:
            with self._gone:
                self._gone.wait_for(lambda: self._child is not child, timeout=UNLOAD_S)
        return 0 if loaded is None else loaded.bytes

    def close(self) -> None:
        """End every answer with an error and the process at once."""
        with self._lock:
            self._is_closing = True
            asked, self._asked = list(self._asked.values()), {}
            child = self._child
        for one in asked:
            one.fail(stopping())
        if child is not None:
            child.kill()

    def _ask(self, message: dict[str, Any], deliver: Deliver | None = None) -> Asked:
        with self._lock:
            if self._is_closing:
                raise stopping()
            self.start()
            asked = Asked(next(self._numbers), message, deliver)
            self._asked[asked.number] = asked
            assert self._child is not None
            self._child.send({**message, "id": asked.number})
        return asked

    def _value(self, asked: Asked, within_s: float) -> Any:
        is_there = asked.ready.wait(within_s)
        with self._lock:
            self._asked.pop(asked.number, None)
        if asked.error is not None:
            raise asked.error
        if not is_there:
            raise EngineError("The engine is busy.", "Ask again in a few seconds.", status=503, code="engine_busy")
        return asked.value

    # from here on: the thread that listens to one child

    def _listen(self, child: ModelChild) -> None:
        for line in child.lines():
            with contextlib.suppress(ValueError):  # half a line of one that was killed
                self._take(child, json.loads(line))
        child.close()
        log.info("The model's process has ended (%s).", child.process.returncode)
        self._after(child)

    def _take(self, child: ModelChild, said: Mapping[str, Any]) -> None:
        if said["id"] == 0:
            child.has_left = True
            return
        with self._lock:
            asked = self._asked.get(said["id"])
            if asked is None:
                return  # cancelled
            if "value" in said or "error" in said:
                self._asked.pop(asked.number)
        if "error" in said:
            asked.fail(wire.read_error(said["error"]))
        elif "value" in said:
            asked.end(said["value"])
        else:
            self._pass_event(asked, wire.read_event(said["event"]))

    def _pass_event(self, asked: Asked, event: Event) -> None:
        assert asked.deliver is not None
        asked.begun.add(event.index)
        if event.finish_reason is not None:
            asked.finished.add(event.index)
        asked.deliver(event)

    def _after(self, child: ModelChild) -> None:
        """The next process goes on with what this one had not begun, where it has left in good order."""
        with self._lock:
            asked, self._asked = list(self._asked.values()), {}
            self._child = None
            self._last = EngineStatus()
            if child.has_left:
                self.start()
            for one in asked:
                self._go_on(one, child)
            self._gone.notify_all()

    def _go_on(self, asked: Asked, child: ModelChild) -> None:
        if asked.message["op"] == "unload":
            asked.end(0)
        elif child.was_silent:
            asked.fail(silent())
        elif not child.has_left or self._child is None:
            asked.fail(ended(child.process.returncode))
        elif asked.begun != asked.finished:
            asked.fail(unloaded())
        else:
            asked.message["done"] = sorted(asked.finished)
            self._asked[asked.number] = asked
            self._child.send({**asked.message, "id": asked.number})
