"""The engine beside a training: what it holds ends with a process, and what it promised holds however long the job runs."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jobs import sharing
from studio.compress import models as compressors
from studio.compress.process import CompressorProcess
from studio.engine import holders, leases
from studio.engine.leases import LeaseBook
from studio.errors import StudioError
from studio.settings import Settings
from tests.engines import KEY, RunningEngine, change_json, copy_model, engine, studio_field

MODEL = "studio.engine.model_child"
TOKENS = int(os.environ.get("STUDIO_LONG_PROMPT") or 1024)  # 4096 takes a minute


@pytest.fixture
def running(settings: Settings) -> Iterator[RunningEngine]:
    with engine(settings.home) as found:
        yield found


@pytest.fixture
def base(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


def ask(running: RunningEngine, path: str, body: Any = None, method: str = "POST") -> httpx.Response:
    return httpx.request(method, running.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=280)


def complete(running: RunningEngine, base: Path, **more: Any) -> httpx.Response:
    body = {"model": "m", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, "studio": studio_field(base), **more}
    return ask(running, "/v1/completions", body)


def status(running: RunningEngine) -> dict[str, Any]:
    found: dict[str, Any] = ask(running, "/engine/status", method="GET").json()
    return found


def model_processes(running: RunningEngine) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(running.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it ends just now
            if MODEL in child.cmdline():
                found.append(child)
    return found


def holds_torch(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("libtorch" in mapped.path for mapped in process.memory_maps())
    return False


def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_no_process_holds_the_model_after_giving_way_or_an_error_and_what_waited_is_answered(
    running: RunningEngine, base: Path, settings: Settings, tmp_path: Path
) -> None:
    # red when the engine frees its memory inside a process that goes on, or loses what waited for the next one
    assert complete(running, base).status_code == 200
    (holder,) = model_processes(running)
    assert holds_torch(holder) and holders.alive(settings.cache / "holders")[0].pid == holder.pid
    held = status(running)["loaded"]["bytes"]
    assert ask(running, "/engine/unload").json() == {"unloaded_bytes": held}
    assert not holder.is_running() and not any(map(holds_torch, model_processes(running)))
    assert holders.alive(settings.cache / "holders") == [] and status(running)["loaded"] is None
    # an error in the middle of a step: whatever it has left on a device goes with its process
    wrong = copy_model(base, tmp_path / "wrong")
    tokenizer = json.loads((wrong / "tokenizer.json").read_text())
    more = {"id": 512, "content": "<more>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append(more)  # a piece for which the model has no row
    (wrong / "tokenizer.json").write_text(json.dumps(tokenizer))
    failed = complete(running, wrong, prompt=[512])
    assert failed.status_code == 500 and "IndexError" in failed.text
    until(lambda: not any(map(holds_torch, model_processes(running))))
    assert complete(running, base).status_code == 200
    (holder,) = model_processes(running)
    holder.kill()  # as the kernel ends one for want of memory
    until(lambda: not holder.is_running())
    assert complete(running, base).status_code == 200


def test_an_engine_that_starts_again_leaves_a_training_what_was_promised(settings: Settings, base: Path) -> None:
    # red when a promise lives in the memory of the engine that made it
    with engine(settings.home) as first:
        ask(first, "/engine/unload", {"job": "night", "keep_bytes": 10**15}).raise_for_status()
        first.process.kill()
        first.process.wait()
    with engine(settings.home) as second:
        assert status(second)["yielded"]["job"] == "night"
        refused = complete(second, base)
        assert refused.status_code == 503 and "night until that job ends" in refused.text
        assert not any(map(holds_torch, model_processes(second))) or holders.alive(settings.cache / "holders") == []
        ask(second, "/engine/resume", {"job": "night"}).raise_for_status()
        assert complete(second, base).status_code == 200


def test_a_promise_holds_as_long_as_it_is_renewed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # 25 hours of a worker's beats; red when a lease ends in the middle of a run, or never after its worker died
    now = time.time()
    monkeypatch.setattr(leases.time, "time", lambda: now)
    alone = replace(settings, engine_url="")
    sharing.begin(alone, "night", 10**9, total=10**12)
    begun = LeaseBook(settings.cache).now()
    assert begun is not None
    for _ in range(25 * 60):
        now += leases.RENEW_S
        LeaseBook(settings.cache).renew("night", 10**9)
        found = LeaseBook(settings.cache).now()
        assert found is not None and (found.room_bytes, found.begun) == (begun.room_bytes, begun.begun)
    now += leases.LONGEST_S + 1
    assert LeaseBook(settings.cache).now() is None
    sharing.begin(alone, "day", 1, total=10**12)
    sharing.end(alone, "day")
    assert LeaseBook(settings.cache).now() is None


def test_a_compressor_gives_way_to_a_training_and_is_refused_what_the_training_needs(settings: Settings) -> None:
    # red when a compressor's model stays beside a training that needs its memory, or is loaded into what was promised
    process = CompressorProcess()
    arguments = {"contexts": ["The quick brown fox jumps over the lazy dog, and the dog does not mind it at all."], "rate": 0.5}
    alone = replace(settings, engine_url="")
    try:
        process.compress(compressors.WORDS_FOLDER, compressors.WORDS_FOLDER, arguments)
        (holder,) = holders.alive(settings.cache / "holders")
        assert holder.kind == holders.HolderKind.COMPRESSOR and holder.bytes > 0
        sharing.begin(alone, "night", 10**15, total=10**9)
        assert not psutil.pid_exists(holder.pid) or psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE
        with pytest.raises(StudioError, match="night has left") as refused:
            process.compress(compressors.WORDS_FOLDER, compressors.WORDS_FOLDER, arguments)
        assert "pause the job" in refused.value.fix
        sharing.end(alone, "night")
        assert process.compress(compressors.WORDS_FOLDER, compressors.WORDS_FOLDER, arguments).tokens_after > 0
    finally:
        process.close()


@pytest.mark.long
def test_long_prompts_under_a_small_budget_are_all_answered_by_a_model_that_is_loaded_once(
    settings: Settings, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # red when answers are admitted by their number, or the first that don't fit cost the model
    monkeypatch.setenv("STUDIO_KV_CACHE_MIB", str(6 * TOKENS // 1024))  # of the 20 (and 80 of 4k tokens) that all of them would take
    long = copy_model(base, tmp_path / "long")
    change_json(long / "config.json", max_position_embeddings=8192)
    prompts = [[1, *((7 * number + place) % 500 + 3 for place in range(TOKENS))] for number in range(16)]
    with engine(settings.home) as found:
        answered = complete(found, long, prompt=prompts, max_tokens=2)
        assert answered.status_code == 200 and len(answered.json()["choices"]) == 16
        assert all(choice["finish_reason"] in ("length", "stop") for choice in answered.json()["choices"])
        assert status(found)["loaded"]["base"] == "long"
        log = (settings.home / "engine.log").read_text()
        assert log.count("loaded in") == 1
    monkeypatch.setenv("STUDIO_KV_CACHE_MIB", "1")
    with engine(settings.home) as found:
        refused = complete(found, long, prompt=prompts[0], max_tokens=2)
        assert refused.status_code == 503 and "needs more memory for its keys and values" in refused.text
        assert complete(found, long).status_code == 200 and (settings.home / "engine.log").read_text().count("loaded in") == 1
