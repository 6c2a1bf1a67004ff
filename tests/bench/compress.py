"""Compression beside plain llmlingua 0.2.2 on the same stack: processor time for the same outputs, in pairs, and memory over 1,000 calls.

Plain is the library's own class with the fixes it needs to run here at all (token counter, cache conversion, sentence splitter,
word rule), without ours for speed. `python -m tests.bench compress` prints the ratios.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from studio.settings import STATIC

STARTER, WORDS = STATIC / "starter", STATIC / "starter" / "words"
PAIRS = 5
SYLLABLES = ["ka", "to", "mi", "re", "su", "lo", "na", "ve", "di", "po", "ba", "che", "ga", "ru"]


def run() -> Iterator[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio, as they are measured."""
    rng = random.Random(0)
    short = [_text(rng, rng.randint(8, 30)) for _ in range(200)]
    documents = [_text(rng, 60) for _ in range(50)]
    long = " ".join(_text(rng, 40) for _ in range(25))
    causal = {"method": "llmlingua", "rate": 0.5}
    ranked = {"method": "longllmlingua", "rate": 0.25, "question": f"What about {documents[7].split()[3]}?"}
    yield _entry("llmlingua2, 200 short texts in one call", 2.0, _ratio(WORDS, short, {"method": "llmlingua2", "rate": 0.5}))
    yield _entry("llmlingua, 1,000 words", 1.0, _ratio(STARTER, [long], causal))
    yield _entry("longllmlingua, 50 documents", 1.0, _ratio(STARTER, documents, ranked))
    yield from _second_rate(long)
    yield _memory(short[0])


def _text(rng: random.Random, count: int) -> str:
    words = ["".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3))) for _ in range(count)]
    return " ".join(words).capitalize() + "."


def _entry(measure: str, limit: float, found: dict[str, Any]) -> dict[str, Any]:
    told = f"plain {found['plain']:.3f} s; quartiles {found['low']:.2f}-{found['high']:.2f}; "
    told += f"{'same text' if found['is_same'] else 'TEXT DIFFERS'}; at least {limit:g}"
    return {"measure": measure, "value": round(found["ours"], 3), "unit": "s", "against": told, "ratio": round(found["ratio"], 2)}


def _plain(folder: Path) -> Any:
    """The library's class over the same weights, remembering nothing and padding as it does."""
    from llmlingua import prompt_compressor as library

    from studio.compress.llmlingua import Backend

    ours = Backend(folder, STARTER, device="cpu")
    plain = library.PromptCompressor.__new__(library.PromptCompressor)
    plain.__dict__.update(ours.__dict__)
    if ours.use_llmlingua2:
        plain.model = ours.raw_model
    return plain


def _ratio(folder: Path, contexts: list[str], asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds of ours and plain, their ratio with quartiles, whether the texts are the same; from alternating pairs."""
    from studio.compress import load
    from studio.compress.methods import METHODS

    ours, plain = load(folder, STARTER, device="cpu"), _plain(folder)
    given = {name: value for name, value in asked.items() if name != "method"} | dict(METHODS[asked["method"]].sets)
    texts: dict[str, str] = {}

    def our_way() -> None:
        _forget(ours)
        texts["ours"] = ours.compress(contexts, calibrate=False, **asked).text

    def plain_way() -> None:
        texts["plain"] = plain.compress_prompt(list(contexts), **given)["compressed_prompt"]

    pairs = [_pair(our_way, plain_way, swapped=bool(n % 2)) for n in range(PAIRS + 1)][1:]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "plain": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "low": ratios[len(ratios) // 4],
        "high": ratios[-1 - len(ratios) // 4],
        "is_same": texts["ours"] == texts["plain"],
    }


def _forget(compressor: Any) -> None:
    """Every call is the first one: what is remembered would make the comparison easy."""
    compressor.backend._ranks.clear()
    compressor.importance = type(compressor.importance)(compressor.backend)
    getattr(compressor.backend.model, "_known", {}).clear()


def _pair(first: Callable[[], Any], second: Callable[[], Any], *, swapped: bool) -> tuple[float, float]:
    found = {}
    for call in (second, first) if swapped else (first, second):
        started = time.process_time()
        call()
        found[call] = time.process_time() - started
    return found[first], found[second]


def _second_rate(text: str) -> Iterator[dict[str, Any]]:
    """A classifier of BERT's real size (random weights): a first rate, then another one on the same text."""
    from transformers import BertConfig, BertForTokenClassification

    from studio.compress import load

    with TemporaryDirectory() as name:
        big = Path(name)
        for file in WORDS.iterdir():
            (big / file.name).write_bytes(file.read_bytes())
        BertForTokenClassification(BertConfig(vocab_size=10_000, num_labels=2)).save_pretrained(big)
        for title, folder in (("BERT-base size", big), ("the shipped classifier", WORDS)):
            compressor = load(folder, STARTER, device="cpu")
            compressor.compress(text[:400], rate=0.5, calibrate=False)
            for way, calibrate in (("the library's own", False), ("met by search", True)):
                _forget(compressor)
                one, other = (functools.partial(compressor.compress, text, rate=rate, calibrate=calibrate) for rate in (0.5, 0.4))
                first, second = _pair(one, other, swapped=False)
                limit = "at least 50" if folder is big else "so small that bookkeeping is what is left"
                entry = {"measure": f"a second rate, {way}, {title}", "value": round(second, 4), "unit": "s"}
                yield {**entry, "against": f"first {first:.3f} s; {limit}", "ratio": round(first / second, 1)}


def _memory(text: str) -> dict[str, Any]:
    from studio.compress import load

    compressor, process, seen = load(WORDS, STARTER, device="cpu"), psutil.Process(), []
    for number in range(1000):
        compressor.compress(f"{text} {number}", rate=0.5, calibrate=False)
        if number in (199, 999):
            seen.append(process.memory_info().rss / 1024**2)
    return {
        "measure": "memory after call 1,000",
        "value": round(seen[1]),
        "unit": "MiB",
        "against": f"{seen[0]:.0f} after call 200",
        "ratio": None,
    }
