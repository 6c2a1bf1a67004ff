"""`python -m studio.compress.child`: the process that holds compressors. Requests and answers are JSON lines.

A request names folders; who may name which folder is decided by whoever asks. Ends with its parent, and after idling.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import settings
from studio.compress.sharing import SharedMemory
from studio.errors import StudioError, of_this_machine

if TYPE_CHECKING:
    from studio.compress.compressor import Compressor

IDLE_S = 600.0
HELD = 3  # compressors in memory

log = logging.getLogger(__name__)


class Shelf:
    """Compressors that were asked for lately, by folder and options of loading."""

    def __init__(self, memory: SharedMemory) -> None:
        self._held: OrderedDict[tuple[str, str], Compressor] = OrderedDict()
        self._memory = memory

    @property
    def bytes(self) -> int:
        models = (held.backend.raw_model for held in self._held.values())
        return sum(weight.numel() * weight.element_size() for model in models for weight in model.parameters())

    def take(self, folder: str, counter: str, dtype: str) -> Compressor:
        from studio.compress import load

        key = (folder, dtype)
        if key not in self._held:
            while len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._memory.check(Path(folder), dtype, self.bytes)
            self._held[key] = load(folder, counter, dtype=dtype)
            self._memory.note(Path(folder).name, self.bytes, self._held[key].backend.device)
        self._held.move_to_end(key)
        self._held[key].recount(counter)
        return self._held[key]


def answer(shelf: Shelf, request: dict[str, Any]) -> dict[str, Any]:
    """A Compression as JSON, or the error."""
    try:
        compressor = shelf.take(request["compressor"], request["counter"], request.get("dtype", "float32"))
        return {"result": compressor.compress(**request["arguments"]).model_dump(mode="json")}
    except StudioError as exc:
        return {"error": exc.as_json()}
    except MemoryError:
        return {"error": StudioError("There is not enough memory to compress this.", "Use a smaller compressor.").as_json()}
    except Exception as exc:
        log.exception("compressing failed")
        what = f"This could not be compressed because of a defect in the studio ({type(exc).__name__}: {exc})."
        defect = StudioError(what, "The log of the studio has the details; another method or compressor may work.")
        return {"error": (of_this_machine(exc) or defect).as_json()}


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; the pipe carries answers only
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    memory = SharedMemory(settings.load().cache)
    shelf, timer = Shelf(memory), _timer()
    memory.watch()
    for line in sys.stdin.buffer:
        timer.cancel()
        with memory.in_use:
            out.write(json.dumps(answer(shelf, json.loads(line)), ensure_ascii=True, default=str) + "\n")
            out.flush()
        timer = _timer()
    os._exit(0)


def _timer() -> threading.Timer:
    timer = threading.Timer(IDLE_S, os._exit, args=(0,))
    timer.daemon = True
    timer.start()
    return timer


if __name__ == "__main__":
    main()
