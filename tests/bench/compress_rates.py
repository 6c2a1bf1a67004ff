"""Do the methods keep the rate that was asked for? On GSM8K, meeting, chat and Chinese prompts and a source file.

`python -m tests.bench.compress_rates [PROMPT,METHOD…]` prints the table of rates.
"""

from __future__ import annotations

import gzip
import json
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


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    rows = list(rates())
    return [
        {
            "measure": f"{method}: rates within .05",
            "value": sum(row["ok"] for row in rows if row["method"] == method),
            "unit": f"of {sum(row['method'] == method for row in rows)}",
            "against": "",
        }
        for method in dict.fromkeys(row["method"] for row in rows)
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


def main() -> None:
    print(f"{'method':<46}{'prompt':<10}{'tokens':>8}{'asked':>7}{'got':>7}  ok   s")
    for row in rates(sys.argv[1] if len(sys.argv) > 1 else ""):
        got, mark = f"{row['achieved']:.3f}", "yes" if row["ok"] else "NO"
        print(
            f"{row['method']:<46}{row['prompt']:<10}{row['tokens']:>8,}{row['requested']:>7}{got:>7}  {mark:<4}{row['seconds']}", flush=True
        )


if __name__ == "__main__":
    main()
