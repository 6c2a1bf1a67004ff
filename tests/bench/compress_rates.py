"""Do the methods keep the rate that was asked for, and the passage that answers? On GSM8K, meeting, chat, Chinese and a source file.

`python -m tests.bench.compress_rates [NEEDLES]` prints the table of rates and, of NEEDLES seeded cases, how many needles were kept.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio import settings
from studio.settings import PACKAGE_ROOT, STATIC

RATES = (0.25, 0.5, 0.7)
STARTER, WORDS = STATIC / "starter", STATIC / "starter" / "words"
GOLDEN = "data/compression/golden/models"
BERT, XLM_R = "tiny-bert-base-multilingual-cased-clf", "tiny-xlm-roberta-large-clf"
TOKENS = {"use_token_level_filter": True}  # LongLLMLingua as published also where a vocabulary is small
QUESTION = "What was decided, and how much does it cost?"
NEEDLES = 100


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    rows = list(rates())
    found = [
        {
            "measure": f"{method}: rates within .05",
            "value": sum(row["ok"] for row in rows if row["method"] == method),
            "unit": f"of {sum(row['method'] == method for row in rows)}",
            "against": "",
        }
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    kept = sum(needle(seed) for seed in range(NEEDLES))
    return [
        *found,
        {"measure": "needles kept at 4x (LongLLMLingua, starter)", "value": kept, "unit": f"of {NEEDLES}", "against": "at least 95"},
    ]


def prompts(folder: Path) -> dict[str, list[str]]:
    """Name -> contexts."""
    with gzip.open(folder / "data/compression/llmlingua_test_prompts_expected.json.gz") as file:
        tests = json.load(file)
    second = tests["tests/test_llmlingua2.py"]["constants"]
    return {
        "gsm8k": [second["GSM8K_PROMPT"]],
        "meeting": [second["MEETINGBANK_PROMPT"]],
        "chat": [second["PROMPT"]],
        "chinese": list(second["LONGBENCH_PROMPT_LIST"]),
        "source": [(PACKAGE_ROOT / "studio" / "settings.py").read_text("utf-8")],
    }


def rates(only: str = "") -> Iterator[dict[str, Any]]:
    """One row per method, prompt and rate, as it is measured. `only`: names of prompts or of methods, with commas between."""
    from studio.compress import load

    folder = settings.load().test_data
    wanted = set(only.split(",")) if only else set()
    starter, words = load(STARTER), load(WORDS, STARTER)
    gpt2, llama, bert, xlm_r = (load(folder / GOLDEN / name) for name in ("gpt2-tiny", "llama-tiny", BERT, XLM_R))
    chosen: tuple[tuple[Any, str, dict[str, Any]], ...] = (
        *((compressor, "llmlingua2", {}) for compressor in (words, bert, xlm_r)),
        *((compressor, "llmlingua", {}) for compressor in (gpt2, llama)),
        *((compressor, "longllmlingua", TOKENS) for compressor in (gpt2, llama)),
        (starter, "longllmlingua", {}),
        (starter, "self_information", {}),
        *((compressor, "selective_context", {}) for compressor in (gpt2, starter)),
        *((compressor, "structured", {}) for compressor in (starter, words)),
    )
    named = {method for _, method, _ in chosen}
    for compressor, method, options in chosen:
        if wanted & named and method not in wanted:
            continue
        for name, contexts in prompts(folder).items():
            if wanted - named and name not in wanted:
                continue
            given = _tagged(contexts) if method == "structured" else contexts
            question = QUESTION if method == "longllmlingua" else ""
            for rate in RATES:
                made = compressor.compress(given, method=method, rate=rate, question=question, **options)
                achieved = made.achieved_compressible if method == "structured" else made.achieved
                slack = _longest_sentence(compressor, contexts) / made.tokens_before if method == "selective_context" else 0.05
                yield {
                    "method": f"{method} ({Path(compressor.name).name.removesuffix('-clf')})",
                    "prompt": name,
                    "requested": rate,
                    "achieved": achieved,
                    "ok": abs(achieved - rate) <= slack and made.achieved <= 1,
                    "seconds": round(made.seconds, 2),
                    "tokens": made.tokens_before,
                }


def _tagged(contexts: list[str]) -> list[str]:
    """The first line stays as it is, the rest is a section."""
    return [f"<llmlingua, compress=False>{text[:60]}</llmlingua><llmlingua>{text[60:]}</llmlingua>" for text in contexts]


def _longest_sentence(compressor: Any, contexts: list[str]) -> int:
    from studio.compress.llmlingua import sentences

    return max(compressor.backend.oai_tokenizer.count(piece) for text in contexts for piece in sentences(text))


def needle(seed: int) -> bool:
    """Whether the passage with the answer comes through whole, in the middle of others on other things, at a quarter of the tokens."""
    from studio.compress import load

    if "compressor" not in _held:
        _held["compressor"] = load(STARTER)
    rng = random.Random(seed)
    name, code = _name(rng), rng.randint(1000, 9999)
    wanted = f"The access code of {name} is {code}. It was changed last week."
    documents = [_filler(rng) for _ in range(19)]
    documents.insert(rng.randrange(len(documents) + 1), wanted)
    made = _held["compressor"].compress(documents, method="longllmlingua", question=f"What is the access code of {name}?", rate=0.25)
    return wanted in made.text


_held: dict[str, Any] = {}
PLACES = ("harbour", "library", "station", "market", "garden", "museum", "bridge", "school")
THINGS = ("opening hours", "new roof", "old clock", "north wall", "parking rules", "visitor count", "summer plan", "main door")


def _name(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)).capitalize()


def _filler(rng: random.Random) -> str:
    """Passages of one shape with the needle's, about other things, some of them with numbers and names too."""
    place, thing, name = rng.choice(PLACES), rng.choice(THINGS), _name(rng)
    return rng.choice(
        (
            f"The {thing} of the {place} was discussed by {name}. Nobody had more to say about it.",
            f"The budget of the {place} is {rng.randint(1000, 9999)}. It was agreed in spring.",
            f"{name} visited the {place} and asked about the {thing}. There was no answer yet.",
            f"In the {place} the {thing} will stay as it is for {rng.randint(2, 9)} years.",
        )
    )


def main() -> None:
    print(f"{'method':<44}{'prompt':<10}{'tokens':>8}{'asked':>7}{'got':>7}  ok   s")
    for row in rates(next((argument for argument in sys.argv[1:] if not argument.isdecimal()), "")):
        got, mark = f"{row['achieved']:.3f}", "yes" if row["ok"] else "NO"
        print(
            f"{row['method']:<44}{row['prompt']:<10}{row['tokens']:>8,}{row['requested']:>7}{got:>7}  {mark:<4}{row['seconds']}", flush=True
        )
    count = next((int(argument) for argument in sys.argv[1:] if argument.isdecimal()), NEEDLES)
    kept = sum(needle(seed) for seed in range(count))
    print(f"needles kept at 4x with LongLLMLingua and the starter: {kept} of {count}")


if __name__ == "__main__":
    main()
