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
import subprocess
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
from tests.servers import clean_environment, studio

PROMPT = "What is the capital of France? " * 4
ADAPTERS, TOKENS = 8, 12
SHAPES = {"small": (768, 15, 2048), "large": (1536, 18, 4096)}  # about 110 M and 520 M parameters
CLIENTS, CLIENTS_S = 32, 120.0
MANY, BUDGET, REQUESTS = 200, 8, 500
ROUNDS = 9
VOCABULARY, ROWS = 128_256, 16  # of Llama 3, and the most rows of a batch
PARTS = ("sampling", "crowd", "many", "switch", "batch", "server")


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


def begun(model: Any, keys: Sequence[str | None]) -> tuple[Any, list[Any]]:
    """A batch that has read the prompt under each of `keys`, and its answers."""
    from studio.engine import intake
    from studio.engine.decoding import Batch
    from studio.engine.protocol import GenerationRequest
    from studio.types import GenerationParams

    model.prefixes._kept.clear()
    params = GenerationParams(temperature=0, max_new_tokens=1000)
    request = GenerationRequest("m", model.folder, params, prompts=(PROMPT,), n=len(keys), lane="batch")
    answers = intake.prepare(request, lambda _: None)
    for answer in answers:
        answer.stop_ids = frozenset()
    batch = Batch(model)
    batch.join(answers, keys)
    return batch, answers


def mixed(base: Path, adapters: Sequence[Path], dtype: str, threads: int, rounds: int = 5) -> dict[str, Any]:
    """Steps of ADAPTERS answers in one batch beside as many passes one after the other, and beside the base alone; in turns.

    One thread is measured in processor time, two by the clock.
    """
    import torch

    from studio.engine.protocol import AdapterRef

    model = load(base, dtype)
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    keys = [model.attach(AdapterRef(folder.name, folder)).key for folder in adapters]
    (together, said), (bare, _) = begun(model, keys), begun(model, [None] * len(keys))
    alone = [begun(model, [key]) for key in keys]

    def step(*batches: Any) -> float:
        for batch in batches:
            batch.step()  # what was put together for other rows is put together again
        started = clock()
        for batch in batches:
            for _ in range(TOKENS // 4):
                batch.step()
        return clock() - started

    times = [(step(together), sum(step(batch) for batch, _ in alone), step(bare)) for _ in range(rounds)]
    ratio = statistics.median(one_by_one / mixed for mixed, one_by_one, _ in times)
    limit = statistics.median(one_by_one / plain for _, one_by_one, plain in times)
    same = [answer.ids for answer in said] == [answers[0].ids for _, answers in alone]
    return {"ratio": round(ratio, 2), "limit": round(limit, 2), "same": same}


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


def stream(client: httpx.Client, url: str, model: str, prompt: str, tokens: int) -> tuple[float, float]:
    """Through the studio's own /v1: seconds to the first token, and tokens per second after it. `client` keeps its connection."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "stream": True, "logprobs": 0}
    arrivals, begun = [], time.perf_counter()
    with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and '"finish_reason": null' in line:
                arrivals.append(time.perf_counter())
    return arrivals[0] - begun, (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-9)


class Bare:
    """transformers' own generate over the same base in this process, in float32 on one thread."""

    def __init__(self, base: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from studio.datasets.rendering import Renderer

        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self._renderer = Renderer.load(base)

    def completion(self, prompt: str) -> list[int]:
        return self._renderer.completion_prompt(prompt)

    def chat(self, prompt: str) -> list[int]:
        from studio.types import Message, Role

        return self._renderer.prompt([Message(role=Role.USER, content=prompt)]).ids

    def generate(self, prompt_ids: list[int], tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and tokens per second after it."""
        import torch
        from transformers.generation.streamers import BaseStreamer

        at: list[float] = []

        class Clock(BaseStreamer):
            def put(self, value: Any) -> None:
                at.append(time.perf_counter())

            def end(self) -> None:
                """Nothing is held back."""

        ids, begun = torch.tensor([prompt_ids]), time.perf_counter()
        more: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "streamer": Clock()}
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=torch.ones_like(ids), **more)
        written = at[1:]  # the first call hands over the prompt
        return written[0] - begun, (len(written) - 1) / max(written[-1] - written[0], 1e-9)


def page_first_token(url: str, model: str, prompts: Sequence[str]) -> list[float]:
    """Seconds from pressing Enter in the Chat tab to the first word on the page, for each prompt in a conversation of its own."""
    from playwright.sync_api import expect, sync_playwright

    from tests.browser import ARGUMENTS, find

    path = find()
    if path is None:
        return []
    watch = """() => { window.seen = 0; let begun = 0;
      addEventListener('keydown', () => { begun = performance.now(); }, {capture: true, once: true});
      new MutationObserver((_, me) => { const text = document.querySelector('#chat-live .text');
        if (text && text.textContent) { window.seen = performance.now() - begun; me.disconnect(); } })
        .observe(document.body, {childList: true, subtree: true, characterData: true}); }"""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page()
        page.goto(f"{url}/?tab=chat")
        page.locator("#chat-who input").press("Backspace")  # the starter, which is chosen at first
        page.locator("#chat-who input").fill(model)
        page.locator("#chat-who input").press("Enter")
        page.locator("#chat-max_new_tokens input").fill("4")
        for prompt in prompts:
            page.locator("#chat-new").click()
            expect(page.locator("#chat-transcript .message")).to_have_count(0, timeout=60_000)
            page.locator("#chat-message textarea").fill(prompt)
            page.evaluate(watch)
            page.locator("#chat-message textarea").press("Enter")
            page.wait_for_function("window.seen > 0", timeout=60_000)
            found.append(page.evaluate("window.seen") / 1000)
            # the answer is over: a message that is sent before has to wait, and is never answered
            expect(page.locator("#chat-transcript .message.assistant")).to_have_count(1, timeout=60_000)
            expect(page.locator("#chat-stop")).to_be_hidden(timeout=60_000)
        browser.close()
    return found


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
            memory[number] = sum(one.memory_info().rss for one in (process, *process.children()))  # the model has one of its own
    del os.environ["STUDIO_ADAPTER_MEMORY_MIB"]
    half = requests // 2
    return {"failures": failures, "grown_mib": round((memory[requests - 1] - memory[half]) / 2**20, 1)}


def _shapes(adapter: Path) -> list[list[int]]:
    from studio.catalogue.models import tensors

    return [list(shape) for _, _, shape in tensors(adapter / "adapter_model.safetensors")]


def crowd(url: str, model: str, seconds: float) -> dict[str, int]:
    """CLIENTS that ask without pause: how each request ended; none may take a minute."""
    ends: dict[str, int] = {"answered": 0, "refused with Retry-After": 0, "other": 0}
    lock, until = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "n": 1 + number % 4}
        while time.monotonic() < until:
            try:
                response = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
            except httpx.HTTPError:  # a hang, or a connection that broke
                with lock:
                    ends["other"] += 1
                continue
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


def sampling(params: dict[str, Any], repeats: int = 9) -> float:
    """Milliseconds of one thread to choose the tokens of ROWS answers from logits with a few likely tokens each."""
    import torch

    from studio.engine.sampling import Sampler, choose
    from tests.engines import answer

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(ROWS, VOCABULARY, generator=random)
    logits[:, :50] += 12 + 3 * torch.randn(ROWS, 50, generator=random)
    prompt, written = list(range(1000, 1400)), list(range(100))
    samplers = [Sampler(answer(written, seed=row, params=params, prompt_ids=prompt)) for row in range(ROWS)]
    times = []
    for _ in range(repeats + 1):
        begun = time.process_time()
        choose(samplers, logits)
        times.append(1000 * (time.process_time() - begun))
    return statistics.median(times[1:])


def of_the_sampling() -> Iterator[dict[str, Any]]:
    for params, most in (
        ({"temperature": 0.7}, None),
        ({"temperature": 0.7, "top_p": 0.9}, 15),
        ({"temperature": 0.7, "top_k": 50}, None),
        ({"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}, None),
    ):
        said = ", ".join(f"{name} {value}" for name, value in params.items())
        limit = f"at most {most}" if most else ""
        yield entry(f"{ROWS} tokens of {VOCABULARY:,}, {said}", round(sampling(params), 1), "ms", limit)


def of_the_batch(base: Path, adapters: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for dtype, most in (("float32", 4), ("bfloat16", 5)):
        for threads in (1, 2):
            found = mixed(base, adapters, dtype, threads)
            said = "tokens equal" if found["same"] else "tokens differ"
            against = f"{ADAPTERS} passes: {said}; the base reaches {found['limit']}; at least {most}"
            yield entry(f"{ADAPTERS} adapters in one batch, {dtype}, {threads} threads", found["ratio"], "x", against)


def of_the_switch(base: Path, adapters: Sequence[Path], dtype: str) -> Iterator[dict[str, Any]]:
    times = switching(base, adapters, dtype)
    ratio = round(times["reload_ms"] / times["switch_ms"], 1)
    yield entry("switch to a warm adapter", times["switch_ms"], "ms", f"reload {times['reload_ms']} ms; at most 20", ratio)
    yield entry("attach an adapter from disk", times["attach_ms"], "ms", "with its probe")


def of_the_server(base: Path, home: Path) -> Iterator[dict[str, Any]]:
    """The whole studio beside bare generate, in turns; every prompt begins with a number of its own, so none is known already."""
    home.mkdir()
    environment = clean_environment(home, OMP_NUM_THREADS="1")
    subprocess.run([sys.executable, "-m", "studio", "models", "add", str(base), "--name", "bench"], env=environment, check=True)
    with studio(home, OMP_NUM_THREADS="1") as running, httpx.Client(timeout=300, trust_env=False) as client:
        bare = Bare(base)
        stream(client, running.url, "bench", "0 Once", 4)
        bare.generate(bare.completion("0 Once"), 4)
        served, alone, in_chat = [], [], []
        for number in range(ROUNDS):
            served.append(stream(client, running.url, "bench", f"{number} {PROMPT}", 32))
            alone.append(bare.generate(bare.completion(f"{number} {PROMPT}"), 32))
        asked = [f"{10 + number} {PROMPT}" for number in range(ROUNDS)]
        seen = page_first_token(running.url, "bench", asked)[1:]
        in_chat = [bare.generate(bare.chat(prompt), 2)[0] for prompt in asked]
    first = statistics.median(one for one, _ in alone)
    added = 1000 * (statistics.median(one for one, _ in served) - first)
    yield entry("added time to first token, /v1", round(added, 1), "ms", f"bare {1000 * first:.0f} ms; at most 30")
    steady, plain = (statistics.median(one for _, one in found) for found in (served, alone))
    yield entry("tokens/s through /v1", round(steady, 1), "/s", f"bare {plain:.1f}; at least 0.95", round(steady / plain, 2))
    if seen:
        first = statistics.median(in_chat)
        added = 1000 * (statistics.median(seen) - first)
        yield entry("added time to first token, page", round(added, 1), "ms", f"bare {1000 * first:.0f} ms; at most 150")


def of_the_crowd(folder: Path, client_s: float) -> Iterator[dict[str, Any]]:
    with studio(folder / "crowd") as running:
        warm = {"model": "starter", "prompt": PROMPT, "max_tokens": 2}
        httpx.post(f"{running.url}/v1/completions", json=warm, timeout=120, trust_env=False).raise_for_status()
        ends = crowd(running.url, "starter", client_s)
    told = f"{ends['refused with Retry-After']} were 429 with Retry-After, {ends['other']} anything else"
    yield entry(f"{CLIENTS} clients for {client_s:g} s, answered", ends["answered"], "requests", told)


def of_many(folder: Path, requests: int) -> Iterator[dict[str, Any]]:
    kept = many_adapters(folder / "many", STATIC / "starter", folder, requests)
    yield entry(f"{MANY} adapters, memory for {BUDGET}, {requests} requests", kept["grown_mib"], "MiB", f"{kept['failures']} failures")


def run(
    size: str = "small", client_s: float = CLIENTS_S, requests: int = REQUESTS, parts: Sequence[str] = PARTS
) -> Iterator[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio, as they come."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        if "sampling" in parts:
            yield from of_the_sampling()
        if "crowd" in parts:
            yield from of_the_crowd(folder, client_s)
        if "many" in parts:
            yield from of_many(folder, requests)
        if not {"batch", "switch", "server"} & set(parts):
            return
        base = make_base(folder / "base", size)
        adapters = [make_adapter(base, folder / f"a{number}", number, strength=0.02) for number in range(ADAPTERS)]
        if "switch" in parts:
            yield from of_the_switch(base, adapters, "float32" if size == "small" else "bfloat16")  # as the engine chooses here
        if "batch" in parts:
            yield from of_the_batch(base, adapters)
        if "server" in parts:
            yield from of_the_server(base, folder / "home")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", choices=SHAPES, default="small")
    parser.add_argument("--seconds", type=float, default=CLIENTS_S, help="of the crowd")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be given several times")
    chosen = parser.parse_args()
    for found in run(chosen.parameters, chosen.seconds, chosen.requests, chosen.part or PARTS):
        ratio = f"   ratio {found['ratio']}" if found["ratio"] else ""
        print(f"{found['measure']:<52} {found['value']:>10,} {found['unit']:<9} {found['against']}{ratio}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
