"""The engine beside what it replaces: `python -m tests.bench.engine [--parameters small|large]`. Ratios of one run each.

A Llama of random weights and about 110 million parameters, with LoRAs of random weights; every part runs on one thread.
Mixed batch beside sequential passes, a warm switch beside a reload, the server beside bare `generate`, many adapters under
a small budget, and many clients at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from studio.settings import STATIC
from tests.engines import KEY, RunningEngine, engine, make_adapter, studio_field

PROMPT = "What is the capital of France? " * 4
ADAPTERS, TOKENS = 8, 12
SHAPES = {"small": (768, 15, 2048), "large": (1536, 18, 4096)}  # about 110 M and 520 M parameters
CLIENTS, CLIENTS_S = 32, 20.0
MANY, BUDGET, REQUESTS = 200, 8, 500


def make_base(folder: Path, size: str = "small") -> Path:
    """A random Llama with the starter's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, inner = SHAPES[size]
    vocabulary = json.loads((STATIC / "starter" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=12, num_key_value_heads=12,
        vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(STATIC / "starter" / name, folder / name)
    return folder


def load(base: Path, dtype: str) -> Any:
    import torch

    from studio.engine import loading, local
    from studio.engine.protocol import ModelFolder

    torch.set_num_threads(1)
    vars(loading)["choose_dtype"] = lambda *_: getattr(torch, dtype)
    return local.load(ModelFolder(base.name, base))


def write(model: Any, keys: Sequence[str | None], tokens: int = TOKENS) -> tuple[float, list[list[int]]]:
    """Seconds of the engine's own passes for one prompt under each of `keys`, in one batch."""
    from studio.engine import intake
    from studio.engine.decoding import Batch
    from studio.engine.protocol import GenerationRequest
    from studio.types import GenerationParams

    model.prefixes._kept.clear()
    params = GenerationParams(temperature=0, max_new_tokens=tokens)
    request = GenerationRequest("m", model.folder, params, prompts=(PROMPT,), n=len(keys), lane="batch")
    answers = intake.prepare(request, lambda _: None)
    for answer in answers:
        answer.stop_ids = frozenset()
    batch, started = Batch(model), time.process_time()
    batch.join(answers, keys)
    while batch.answers:
        batch.step()
    return time.process_time() - started, [answer.ids for answer in answers]


def mixed(base: Path, adapters: Sequence[Path], dtype: str, repeats: int = 2) -> dict[str, Any]:
    """ADAPTERS answers in one batch beside as many passes one after the other."""
    from studio.engine.protocol import AdapterRef

    model = load(base, dtype)
    keys = [model.attach(AdapterRef(folder.name, folder)).key for folder in adapters]
    write(model, keys, 2)
    ratios, same = [], True
    for _ in range(repeats):
        together, said = write(model, keys)
        alone = [write(model, [key]) for key in keys]
        ratios.append(sum(seconds for seconds, _ in alone) / together)
        same = same and said == [ids[0] for _, ids in alone]
    return {"ratio": round(statistics.median(ratios), 2), "same": same}


def switching(base: Path, adapters: Sequence[Path], dtype: str) -> dict[str, float]:
    """Milliseconds of a warm switch between two adapters, of attaching one from disk, and of loading the base."""
    from studio.engine.protocol import AdapterRef

    begun = time.perf_counter()
    model = load(base, dtype)
    reload_ms = 1000 * (time.perf_counter() - begun)
    refs = [AdapterRef(folder.name, folder) for folder in adapters[:3]]
    first = model.attach(refs[0])
    begun = time.perf_counter()
    second = model.attach(refs[1])
    attach_ms = 1000 * (time.perf_counter() - begun)
    times = []
    for number in range(20):
        ref, key = (refs[0], first.key) if number % 2 else (refs[1], second.key)
        begun = time.perf_counter()
        model.attach(ref)
        model._model_for([key])
        times.append(1000 * (time.perf_counter() - begun))
    return {"switch_ms": round(statistics.median(times), 2), "attach_ms": round(attach_ms, 1), "reload_ms": round(reload_ms, 1)}


def ask(running: RunningEngine, base: Path, adapter: Path | None = None, **more: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS, "studio": studio_field(base, adapter), **more}
    return httpx.post(f"{running.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=300)


def stream(running: RunningEngine, base: Path, tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it."""
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": tokens, "stream": True, "logprobs": 0, "studio": studio_field(base)}
    body["studio"]["lane"] = "batch"  # nothing of it is remembered: every prompt is read anew
    arrivals, begun = [], time.perf_counter()
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=300
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and '"finish_reason": null' in line:
                arrivals.append(time.perf_counter())
    return arrivals[0] - begun, (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])


def bare(base: Path, tokens: int) -> tuple[float, float]:
    """The same two figures of transformers' own generate in this process."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    from studio.datasets.rendering import Renderer

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.at: list[float] = []

        def put(self, value: Any) -> None:
            self.at.append(time.perf_counter())

        def end(self) -> None:
            """Nothing is held back."""

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.tensor([Renderer.load(base).completion_prompt(PROMPT)])
    found = []
    for _ in range(4):
        clock, begun = Clock(), time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, eos_token_id=None, streamer=clock
            )
        written = clock.at[1:]  # the first call hands over the prompt
        found.append((written[0] - begun, (len(written) - 1) / (written[-1] - written[0])))
    return statistics.median(first for first, _ in found[1:]), statistics.median(speed for _, speed in found[1:])


def many_adapters(home: Path, base: Path, folder: Path, requests: int = REQUESTS) -> dict[str, float]:
    """MANY adapters on disk, memory for BUDGET: failures, and how much the process grew over the second half."""
    adapters = [make_adapter(base, folder / f"many-{number}", number) for number in range(MANY)]
    size = sum(4 * math.prod(shape) for shape in _shapes(adapters[0]))
    os.environ["STUDIO_ADAPTER_MEMORY_MIB"] = str(max(1, round(BUDGET * size / 2**20)))
    failures, memory = 0, dict[int, int]()
    with engine(home) as running:
        process = psutil.Process(running.process.pid)
        for number in range(requests):
            failures += ask(running, base, adapters[(number * 37) % MANY], max_tokens=2).status_code != 200
            memory[number] = process.memory_info().rss
    del os.environ["STUDIO_ADAPTER_MEMORY_MIB"]
    half = requests // 2
    return {"failures": failures, "grown_mib": round((memory[requests - 1] - memory[half]) / 2**20, 1)}


def _shapes(adapter: Path) -> list[list[int]]:
    from studio.catalogue.models import tensors

    return [list(shape) for _, _, shape in tensors(adapter / "adapter_model.safetensors")]


def crowd(running: RunningEngine, base: Path, seconds: float) -> dict[str, int]:
    """CLIENTS that ask without pause: how each request ended."""
    ends: dict[str, int] = {"answered": 0, "refused with Retry-After": 0, "other": 0}
    lock, until = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        while time.monotonic() < until:
            response = ask(running, base, max_tokens=8, n=1 + number % 4)
            refused = response.status_code == 429 and "retry-after" in response.headers
            end = "answered" if response.status_code == 200 else "refused with Retry-After" if refused else "other"
            with lock:
                ends[end] += 1
            if refused:
                time.sleep(min(1.0, float(response.headers["retry-after"])))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return ends


def entry(measure: str, value: float, unit: str, against: str, ratio: float | None = None) -> dict[str, Any]:
    return {"measure": measure, "value": value, "unit": unit, "against": against, "ratio": ratio}


def of_the_batch(base: Path, adapters: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for dtype in ("bfloat16", "float32"):
        found = mixed(base, adapters, dtype)
        equal = "tokens equal" if found["same"] else "tokens differ"
        yield entry(f"{ADAPTERS} adapters in one batch, {dtype}", found["ratio"], "x", f"{ADAPTERS} passes: {equal}; at least 2")
    times = switching(base, adapters, "float32")
    ratio = round(times["reload_ms"] / times["switch_ms"], 1)
    yield entry("switch to a warm adapter", times["switch_ms"], "ms", f"reload {times['reload_ms']} ms; at most 20", ratio)
    yield entry("attach an adapter from disk", times["attach_ms"], "ms", "with its probe")


def of_the_server(base: Path, home: Path) -> Iterator[dict[str, Any]]:
    with engine(home) as running:
        stream(running, base, 4)
        served = [stream(running, base, 32) for _ in range(3)]
    first, speed = bare(base, 32)
    added = 1000 * (statistics.median(one for one, _ in served) - first)
    yield entry("added time to first token", round(added, 1), "ms", f"bare {1000 * first:.0f} ms; at most 30")
    steady = statistics.median(one for _, one in served)
    yield entry("tokens/s through the engine", round(steady, 1), "/s", f"bare {speed:.1f}; at least 0.95", round(steady / speed, 2))


def of_the_crowd(folder: Path, client_s: float, requests: int) -> Iterator[dict[str, Any]]:
    small = STATIC / "starter"
    with engine(folder / "crowd") as running:
        ask(running, small)
        ends = crowd(running, small, client_s)
    told = f"{ends['refused with Retry-After']} were 429 with Retry-After, {ends['other']} anything else"
    yield entry(f"{CLIENTS} clients for {client_s:g} s, answered", ends["answered"], "requests", told)
    kept = many_adapters(folder / "many", small, folder, requests)
    yield entry(f"{MANY} adapters, memory for {BUDGET}, {requests} requests", kept["grown_mib"], "MiB", f"{kept['failures']} failures")


def run(size: str = "small", client_s: float = CLIENTS_S, requests: int = REQUESTS) -> Iterator[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio, as they come."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        base = make_base(folder / "base", size)
        adapters = [make_adapter(base, folder / f"a{number}", number, strength=0.02) for number in range(ADAPTERS)]
        yield from of_the_crowd(folder, client_s, requests)
        yield from of_the_batch(base, adapters)
        yield from of_the_server(base, folder / "home")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", choices=SHAPES, default="small")
    parser.add_argument("--seconds", type=float, default=CLIENTS_S, help="of the crowd")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    chosen = parser.parse_args()
    for found in run(chosen.parameters, chosen.seconds, chosen.requests):
        ratio = f"   ratio {found['ratio']}" if found["ratio"] else ""
        print(f"{found['measure']:<52} {found['value']:>10,} {found['unit']:<9} {found['against']}{ratio}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
