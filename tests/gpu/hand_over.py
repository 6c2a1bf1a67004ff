"""Part `hand-over`: the engine gives the card to a training and after an error, and nothing of its model stays there.

A real engine: it answers, refuses what a training's share leaves no room for, gives way, lets a training run, and fails in the middle of
a step. What is left of it is asked of the driver, and of its processes: none may hold torch.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from studio.settings import STATIC
from tests.engines import KEY, RunningEngine, engine, studio_field
from tests.gpu import child, models, training
from tests.gpu.machine import MIB, used_bytes
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

MOST_LEFT_MIB = 16
JOB, LARGE = "check", "8B"
ALL = 10**15  # bytes: more than any device has
SETTLE_S, LOOK_S = 20.0, 0.1
HELD = "libtorch"
WORD = "What is the capital of France? "


@dataclass(frozen=True)
class Client:
    """Asks the engine, for as long as there is time."""

    running: RunningEngine
    scale: Scale

    def ask(self, path: str, body: Any) -> httpx.Response:
        key = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(self.running.url + path, json=body, headers=key, timeout=self.scale.limit_s, trust_env=False)

    def complete(self, base: Path, prompt: Any) -> httpx.Response:
        studio = studio_field(base)
        if base.name == LARGE and models.lacks_room(self.scale, LARGE):
            studio["base"]["quantization"] = "nf4"
        body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 4, "studio": studio}
        return self.ask("/v1/completions", body)


def measure(scale: Scale) -> Measured:
    before = used_bytes()
    large = models.base(scale, LARGE)
    with engine(scale.folder / "engine") as running:
        client = Client(running, scale)
        loaded = client.complete(large, "Once upon a time")
        held = _left_mib(before)
        refused = _refused(client, scale, large)
        begun = time.monotonic()
        asked = client.ask("/engine/unload", {"job": JOB, "keep_bytes": ALL})
        unload_s = time.monotonic() - begun
        after_yield = _settled(running, before)
        trained = _train(scale)
        client.ask("/engine/resume", {"job": JOB})
        failed = client.complete(_without_a_row(scale), [_pieces()])
        after_error = _settled(running, before)
    figures = {
        "answered": loaded.status_code,
        "held_mib": held,
        "refused": refused,
        "unload_s": round(unload_s, 2),
        "given_back_bytes": asked.json()["unloaded_bytes"],
        "after_yield": after_yield,
        "trained": trained or "ended well",
        "failed": failed.status_code,
        "after_error": after_error,
    }
    missed = list(_broken(figures))
    said = (
        f"gives {figures['given_back_bytes'] / MIB:,.0f} MiB back in {unload_s:.1f} s; left on the card {after_yield['mib']:.0f} MiB after "
        f"giving way and {after_error['mib']:.0f} MiB after an error, processes with torch {after_yield['holders']} and "
        f"{after_error['holders']}; a training beside it {figures['trained']}"
    )
    left_out = ["bytes of a card, which is not here"] * scale.is_reduced
    return Measured(figures, said, missed, left_out)


def _broken(found: dict[str, Any]) -> Any:
    if found["answered"] != 200:
        yield f"the engine answered {found['answered']} before anything was asked of it"
    if found["refused"]["status"] != 503:
        yield f"beside a training that needs everything it answered {found['refused']['status']}, not 503"
    if found["failed"] != 500:
        yield f"a step that has to fail was answered with {found['failed']}"
    if found["trained"] != "ended well":
        yield f"the training that it gave way to failed: {found['trained']}"
    for when, left in (("giving way", found["after_yield"]), ("an error", found["after_error"])):
        if left["mib"] > MOST_LEFT_MIB or left["holders"]:
            yield f"after {when} {left['mib']:.0f} MiB of the card and {left['holders']} processes with torch are left"


def _refused(client: Client, scale: Scale, base: Path) -> dict[str, Any]:
    """Many long prompts while a job was promised everything."""
    client.ask("/engine/share", {"job": JOB, "keep_bytes": ALL})
    prompt = WORD * scale.of(1000, 60)
    answer = client.complete(base, [prompt] * scale.of(32, 4))
    error = answer.json().get("error", {}) if answer.status_code != 200 else {}
    return {"status": answer.status_code, "said": error.get("message", "")}


def _train(scale: Scale) -> str:
    """Why a training that the engine has given way to does not run; empty where it does."""
    config = training.job(scale, "lora-sft", {"max_steps": 1, "per_device_train_batch_size": 1, "max_length": scale.of(1024, 64)})
    made = training.run(scale, "hand-over", "1B", config)
    return training.why(child.call(scale.folder, "tests.gpu.training:train", scale.limit_s, folder=str(made.path)))


def _settled(running: RunningEngine, before: int) -> dict[str, Any]:
    """What is left of the model: at once, or within SETTLE_S where a process still ends."""
    deadline = time.monotonic() + SETTLE_S
    while _holders(running) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return {"mib": _left_mib(before), "holders": _holders(running)}


def _left_mib(before: int) -> float:
    return max(0, used_bytes() - before) / MIB


def _holders(running: RunningEngine) -> int:
    """Processes of the engine that have torch."""
    found = 0
    for process in psutil.Process(running.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends just now
            found += any(HELD in mapped.path for mapped in process.memory_maps())
    return found


def _pieces() -> int:
    return int(json.loads((STATIC / "starter" / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def _without_a_row(scale: Scale) -> Path:
    """The starter with a piece for which it has no row: a step with it fails, on a card in a way that leaves CUDA unusable."""
    folder = scale.folder / "models" / "wrong"
    shutil.copytree(STATIC / "starter", folder, ignore=shutil.ignore_patterns("recipe", "words"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": _pieces(), "content": "<more>", "special": True, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
