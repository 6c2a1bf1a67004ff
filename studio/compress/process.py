"""Have texts compressed in a child process, so that this one never holds torch. Knows folders; starts the child on first use."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio import processes
from studio.catalogue import hardware
from studio.errors import StudioError
from studio.records import Compression


class CompressorProcess:
    """One child with its compressors. Safe to share between threads; requests wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def compress(self, compressor: Path, counter: Path, arguments: Mapping[str, Any], dtype: str = "float32") -> Compression:
        """Raises StudioError with the child's words, or when the child is killed."""
        request = {"compressor": str(compressor), "counter": str(counter), "dtype": dtype, "arguments": dict(arguments)}
        with self._lock:
            answer = self._ask(request) or self._ask(request)  # a child that has just ended by idling is started again
        if answer is None:
            raise StudioError("The compressor's process was killed, perhaps for want of memory.", "Use a smaller one.")
        if "error" in answer:
            error = dict(answer["error"])
            raise StudioError(error.pop("message"), error.pop("fix"), **error)
        return Compression(**answer["result"])

    def close(self) -> None:
        """End the child; what it is working on fails."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            self.close()
            return None
        value: dict[str, Any] = json.loads(line)
        return value

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            environment = {
                **processes.child_environment(),
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            environment.setdefault("OMP_NUM_THREADS", str(hardware.thread_budget("engine")))
            self._child = subprocess.Popen(
                processes.module_command("studio.compress.child"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        return self._child
