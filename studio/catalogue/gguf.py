"""What of a model a GGUF file can carry: its family, its positions, its tokenizer. Reads JSON, writes nothing.

llama.cpp knows ways to split text by name only, and no normalisers: a tokenizer that it would cut in another way is refused,
since the model would then read other tokens than it was trained on. Knows neither torch nor the format's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.catalogue.models import read_json
from studio.errors import ModelError

FAMILIES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}  # architecture -> GGUF's name
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of tokens
LEAST = -1e6  # score of a piece that no merge makes
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
OTHER_FORMATS = "Export it as merged (safetensors) or as adapter."

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe", rf"{_WORDS}\p{{N}}{_REST}": "qwen2", _TEKKEN: "tekken"}


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer as GGUF states it; lists have one entry per row of the embedding. `scores` for `llama`, `merges` for `gpt2`."""

    model: str  # llama (SentencePiece) or gpt2 (byte-level BPE)
    pre: str  # llama.cpp's name of the way text is split
    adds_space: bool
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]


def check(folder: Path) -> str:
    """GGUF's name of the model's family. Raises ModelError with the reason why GGUF can't carry the model."""
    config = read_json(folder / "config.json")
    name = str((config.get("architectures") or ["an unnamed architecture"])[0])
    if name not in FAMILIES:
        raise ModelError(f"Only {', '.join(FAMILIES)} can be written as GGUF here, and this is a {name}.", OTHER_FORMATS)
    if (name == "LlamaForCausalLM" and config.get("attention_bias")) or config.get("mlp_bias"):
        raise ModelError(f"This {name} has biases (attention_bias or mlp_bias), which its GGUF form lacks.", OTHER_FORMATS)
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"This {name} uses {config['hidden_act']}, and GGUF knows silu for it.", OTHER_FORMATS)
    kind = rope(config)["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(f"Its positions are scaled by {kind}, which can't be written as GGUF here.", OTHER_FORMATS)
    read_vocabulary(folder)
    return FAMILIES[name]


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings with `rope_type` and `rope_theta`, wherever this version of config.json keeps them."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = found.get("rope_type") or found.get("type") or "default"
    theta = found.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**found, "rope_type": str(kind), "rope_theta": float(theta)}


def read_vocabulary(folder: Path) -> GgufVocabulary:
    """The model's tokenizer in GGUF's terms. Raises ModelError naming what GGUF can't carry."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError("Its tokenizer has no tokenizer.json, which the GGUF form is made from.", OTHER_FORMATS)
    source = read_json(folder / "tokenizer.json")
    model = source.get("model") or {}
    if model.get("type") != "BPE":
        raise ModelError(f"Its tokenizer is of kind {model.get('type')}, and GGUF is written for BPE here.", OTHER_FORMATS)
    kind, pre, adds_space = _way(source)
    added = {int(token["id"]): token for token in source.get("added_tokens") or []}
    tokens = {int(i): str(text) for text, i in model["vocab"].items()} | {i: str(token["content"]) for i, token in added.items()}
    rows = int(read_json(folder / "config.json").get("vocab_size") or 0)
    if max(tokens) >= rows:
        raise ModelError(f"Its tokenizer has {max(tokens) + 1:,} tokens, its embedding {rows:,} rows.", OTHER_FORMATS)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufVocabulary(
        model=kind,
        pre=pre,
        adds_space=adds_space,
        tokens=[tokens.get(row, f"[PAD{row}]") for row in range(rows)],
        kinds=[_kind(row, tokens, added, model.get("unk_token"), kind) for row in range(rows)],
        scores=_scores(rows, tokens, added, merges) if kind == "llama" else [],
        merges=merges if kind == "gpt2" else [],
    )


def _way(source: Mapping[str, Any]) -> tuple[str, str, bool]:
    """(model, pre, adds_space) of tokenizer.json."""
    steps = _steps(source.get("pre_tokenizer"), "pretokenizers")
    normalizers = _steps(source.get("normalizer"), "normalizers")
    kinds = [step["type"] for step in steps]
    if kinds in (["Metaspace"], []):
        return _sentencepiece(source, steps, normalizers)
    pre = _byte_level(steps, kinds)
    if normalizers and not (pre == "qwen2" and [step["type"] for step in normalizers] == ["NFC"]):
        raise ModelError(
            f"Its tokenizer changes text before it is cut ({_named(normalizers)}), and a GGUF file carries no normaliser.", OTHER_FORMATS
        )
    return "gpt2", pre, False


def _sentencepiece(source: Mapping[str, Any], steps: list[dict[str, Any]], normalizers: list[dict[str, Any]]) -> tuple[str, str, bool]:
    spaced = [step["type"] for step in normalizers]
    to_marks = any(
        step["type"] == "Replace" and (step.get("pattern"), step.get("content")) == ({"String": " "}, "▁") for step in normalizers
    )
    if steps and not normalizers:  # Metaspace does both itself
        adds_space, is_known = steps[0].get("prepend_scheme", "always") != "never", True
    else:
        adds_space, is_known = "Prepend" in spaced, to_marks and not steps and spaced in (["Prepend", "Replace"], ["Replace"])
    if not is_known:
        raise ModelError(
            f"Its tokenizer changes text before it is cut ({_named(normalizers)}), and a GGUF file carries no normaliser.", OTHER_FORMATS
        )
    if not source["model"].get("byte_fallback"):
        raise ModelError("Its tokenizer has no byte tokens, which GGUF's SentencePiece form needs.", OTHER_FORMATS)
    return "llama", "default", adds_space


def _byte_level(steps: list[dict[str, Any]], kinds: list[str]) -> str:
    """llama.cpp's name for the way a byte-level tokenizer splits text. Raises ModelError."""
    if kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space"):
        raise ModelError("Its tokenizer puts a space before every text (add_prefix_space), which llama.cpp does not.", OTHER_FORMATS)
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = (steps[0].get("pattern") or {}).get("Regex", "")
        if pattern in SPLITS and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
            return SPLITS[pattern]
    raise ModelError(f"Its tokenizer splits text in a way that llama.cpp has no name for ({' then '.join(kinds)}).", OTHER_FORMATS)


def _steps(value: Any, inner: str) -> list[dict[str, Any]]:
    if not value:
        return []
    return [step for one in value[inner] for step in _steps(one, inner)] if value.get("type") == "Sequence" else [dict(value)]


def _named(steps: list[dict[str, Any]]) -> str:
    return ", ".join(str(step["type"]) for step in steps) or "none that GGUF knows"


def _kind(row: int, tokens: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], unknown: str | None, model: str) -> int:
    text = tokens.get(row)
    if text is None:
        return UNUSED
    if model == "llama" and text == unknown:
        return UNKNOWN
    if row in added:
        return CONTROL if added[row].get("special") else USER_DEFINED
    return BYTE if model == "llama" and _is_byte(text) else NORMAL


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _scores(rows: int, tokens: Mapping[int, str], added: Mapping[int, Any], merges: list[str]) -> list[float]:
    """SentencePiece joins the pair whose piece scores highest; the earlier a merge, the higher its piece."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), number)

    def score(row: int) -> float:
        text = tokens.get(row, "")
        if text in rank:
            return -float(rank[text]) - 1
        if row in added or _is_byte(text):
            return 0.0
        return LEAST

    return [score(row) for row in range(rows)]


def without_generation_tags(template: str) -> str:
    """The chat template for llama.cpp's Jinja: `{% generation %}` only marks what training learns. Blanks stay as they were."""
    return GENERATION.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)
