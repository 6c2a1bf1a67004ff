"""`python -m studio.engine.model_child`: the process that holds the engine's model, and that ends where the model gives way.

Requests and events are JSON lines; the server (studio.engine.model_process) asks. Light until the first answer: torch comes with it.
Ends with its parent.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TextIO

from studio import settings
from studio.catalogue import torch_view
from studio.engine import card, wire
from studio.engine.answer import GeneratedAnswer
from studio.engine.bodies import parse_chat, parse_completion
from studio.engine.failures import as_engine_error
from studio.engine.protocol import Event, GenerationRequest
from studio.engine.reading_bodies import parse_embedding
from studio.engine.scheduler import IDLE_S, Scheduler
from studio.errors import EngineError

SWITCH_S = 0.001  # the thread that computes lets the one that speaks go first: a token shall not wait for the next one
PREPARED_AT_ONCE = 4  # requests whose prompts are rendered and counted
PARSERS: dict[str, Callable[[Any], GenerationRequest]] = {"chat": parse_chat, "completion": parse_completion, "embedding": parse_embedding}


class Speaker:
    """Writes what is said in the order in which it is said, in a thread of its own: who computes never waits for a reader."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="speaker", daemon=True)
        self._thread.start()

    def say(self, **message: Any) -> None:
        self._lines.put(message)

    def finish(self) -> None:
        """Returns once everything is written."""
        self._lines.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (message := self._lines.get()) is not None:
            try:
                self._out.write(json.dumps(message) + "\n")
                self._out.flush()
            except OSError:
                os._exit(0)  # the server is gone


class HeldModel:
    """The scheduler as the server asks it."""

    def __init__(self, speaker: Speaker, idle_s: float) -> None:
        chosen = settings.load()
        self._speaker = speaker
        cache = chosen.cache if chosen.home.is_dir() else None
        torch_view.keep_in(chosen.cache)
        card.take_freest()
        sizes = {"adapter_bytes": chosen.adapter_memory_bytes, "most_bytes": chosen.kv_cache_bytes}
        self._scheduler = Scheduler(idle_s=idle_s, cache=cache, leave=self._leave, **sizes)
        self._scheduler.start()
        self._answers: dict[int, list[GeneratedAnswer]] = {}
        self._preparing: set[int] = set()
        self._cancelled: set[int] = set()  # of these
        self._pool = ThreadPoolExecutor(PREPARED_AT_ONCE, thread_name_prefix="intake")
        self._lock = threading.Lock()

    def take(self, message: Mapping[str, Any]) -> None:
        """Act on one line of the server."""
        number, does = message["id"], message["op"]
        if does == "cancel":
            self._cancel(number)
        elif does == "ping":
            self._speaker.say(id=number, value=True)
        elif does == "status":
            self._speaker.say(id=number, value=self._scheduler.status().model_dump(mode="json", exclude={"ok"}))
        elif does == "unload":
            threading.Thread(target=self._unload, args=(number, message["wait_s"]), daemon=True).start()
        else:
            self._preparing.add(number)
            self._pool.submit(self._prepare, number, message)

    def _prepare(self, number: int, message: Mapping[str, Any]) -> None:
        from studio.engine import intake, tokenizing  # tokenizers and grammars: not needed while idle

        try:
            if message["op"] == "read":
                self._speaker.say(id=number, value=tokenizing.READINGS[message["kind"]](message["body"]))
                return
            request = PARSERS[message["kind"]](message["body"])
            answers = intake.prepare(request, lambda event: self._deliver(number, event))
            answers = [answer for answer in answers if answer.index not in message["done"]]
            with self._lock:
                if number in self._cancelled:
                    return
                self._answers[number] = answers
            self._scheduler.submit(answers)
        except Exception as exc:
            if not isinstance(exc, EngineError):
                logging.getLogger("studio.engine").exception("a request could not be read")
            self._speaker.say(id=number, error=wire.error_as_json(as_engine_error(exc, "The request can't be answered")))
        finally:
            with self._lock:
                self._preparing.discard(number)
                self._cancelled.discard(number)

    def _deliver(self, number: int, event: Event) -> None:
        self._speaker.say(id=number, event=wire.event_as_json(event))
        with self._lock:
            if all(answer.is_over for answer in self._answers.get(number, ())):
                self._answers.pop(number, None)

    def _cancel(self, number: int) -> None:
        with self._lock:
            found = self._answers.pop(number, None)
            if found is None and number in self._preparing:
                self._cancelled.add(number)
        for answer in found or ():
            answer.cancel()

    def _unload(self, number: int, wait_s: float) -> None:
        self._speaker.say(id=number, value=self._scheduler.unload(wait_s))

    def _leave(self) -> None:
        """End this process, and with it everything that it holds on the device. What still waits is asked again of the next one."""
        self._speaker.say(id=0, value="bye")
        self._speaker.finish()
        os._exit(0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.engine.model_child", description="Holds the engine's model.")
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help="end after this long without a request, once a model is loaded")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; the pipe carries events only
    # models come from outside: no token within reach, nothing fetched
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    # peft would import it and torch's compiler with it: 3 s and 50 MB, until a quantised base is asked for (studio.engine.loading)
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    sys.setswitchinterval(SWITCH_S)
    model = HeldModel(Speaker(out), options.idle_s)
    for line in sys.stdin.buffer:
        model.take(json.loads(line))
    os._exit(0)  # the server is gone, and the engine's thread may be deep in torch: nothing to tidy up there


if __name__ == "__main__":
    main()
