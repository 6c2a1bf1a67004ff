"""The methods by name: what each sets in llmlingua, what kind of model it needs, and which of the library's options may be given."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.compress.models import CAUSAL, CLASSIFIER, CompressorFacts
from studio.errors import StudioError


@dataclass(frozen=True)
class Method:
    """`sets`: arguments of the library that make the method what it is. `calibrated`: our choices where the rate is met for the caller."""

    name: str
    kind: str
    title: str
    call: str = "compress_prompt"
    sets: Mapping[str, Any] = field(default_factory=dict)
    calibrated: Mapping[str, Any] = field(default_factory=dict)
    needs_question: bool = False


METHODS = {
    method.name: method
    for method in (
        Method(
            "llmlingua2",
            CLASSIFIER,
            "LLMLingua-2: a classifier keeps the words that matter",
            calibrated={"use_context_level_filter": False},
        ),
        Method("llmlingua", CAUSAL, "LLMLingua: drop the tokens that a small model expects anyway"),
        Method(
            "longllmlingua",
            CAUSAL,
            "LongLLMLingua: keep the documents that answer the question",
            sets={"rank_method": "longllmlingua"},
            calibrated={"condition_in_question": "after_condition", "dynamic_context_compression_ratio": 0.3},
            needs_question=True,
        ),
        Method(
            "selective_context",
            CAUSAL,
            "Selective Context: keep the sentences that tell most",
            sets={"use_token_level_filter": False, "use_sentence_level_filter": True},
            calibrated={"use_context_level_filter": False},
        ),
        Method("structured", CAUSAL, "Structured: tags and JSON keep their form", call="structured_compress_prompt"),
        Method("self_information", CAUSAL, "Self-information: keep the words that a model expects least"),
    )
}
TOKEN_LEVEL = ("llmlingua", "longllmlingua", "llmlingua2")
RANKS = ("llmlingua", "longllmlingua", "gzip", "bm25")  # the library's others fetch models, or send the text away
LIBRARY_RATE = 0.5  # llmlingua's default
BUDGET = re.compile(r"[+*]\d+(\.\d+)?")
LARGEST_WINDOW = 1_000_000  # tokens
OWN = ("context", "instruction", "question", "rate", "target_token", "context_segs", "context_segs_rate", "context_segs_compress")


def method(name: str) -> Method:
    """Raises StudioError naming the methods there are."""
    if name not in METHODS:
        raise StudioError(f"There is no method {name!r}.", f"Choose of {', '.join(METHODS)}.")
    return METHODS[name]


def keeps_passages(facts: CompressorFacts, options: Mapping[str, Any]) -> bool:
    """Whether LongLLMLingua keeps passages and words whole: where dropping tokens would cut inside words, and nobody asks for it."""
    return facts.cuts_words and "use_token_level_filter" not in options


def check_options(chosen: Method, options: Mapping[str, Any]) -> None:
    """Raises StudioError for an option that the library does not have, or that would leave this machine."""
    from llmlingua import PromptCompressor

    known = set(inspect.signature(getattr(PromptCompressor, chosen.call)).parameters) - {"self", *OWN}
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise StudioError(f"{chosen.name} has no option {name!r}.", f"Did you mean {' or '.join(near)}?" if near else "See /api/docs.")
        if isinstance(value, (dict, set)) or (value is None and name not in ("force_context_ids", "force_context_number")):
            raise StudioError(f"Option {name} can't be {value!r}.", "Give a number, a text, true, false or a list.")
    size = options.get("iterative_size", 1)
    if not isinstance(size, int) or not 1 <= size <= LARGEST_WINDOW:  # with 0 or less the library never ends
        raise StudioError(f"iterative_size {size!r} is no whole number of 1 to {LARGEST_WINDOW:,}.", "The library's own is 200.")
    if not BUDGET.fullmatch(str(options.get("context_budget", "+100"))):  # the library evaluates it as code
        raise StudioError(f"context_budget {options['context_budget']!r} is not + or * and a number.", "Write +100 or *1.5.")
    if (rank := options.get("rank_method")) is not None and rank not in RANKS:
        raise StudioError(f"rank_method {rank!r} needs a service or a download.", f"Choose of {', '.join(RANKS)}.")
    if rank == "bm25" and importlib.util.find_spec("rank_bm25") is None:
        raise StudioError("rank_method bm25 needs the package rank_bm25.", "Install it, or choose gzip.")
