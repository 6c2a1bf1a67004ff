"""A tokenizer in GGUF's terms. Reads JSON, writes nothing.

llama.cpp knows ways to split text by name only, and no normalisers: a tokenizer that it would cut in another way is refused,
since the model would then read other tokens than it was trained on. Knows neither torch nor the format's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.catalogue.models import read_json, tensors, weight_files
from studio.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of tokens
PHI3 = re.compile("phi-?3", re.IGNORECASE)
LEAST = -1e6  # score of a piece that no merge makes
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
OTHER_FORMATS = "Export it as merged (safetensors) or as adapter."

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str, digits: str) -> str:
    """Words that begin anew with an upper-case letter, as tokenizers of 2024 and later cut them."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return rf"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}|{digits}{_SLASHES}"


LLAMA3 = rf"{_WORDS}\p{{N}}{{1,3}}{_REST}"
SPLITS = {
    LLAMA3: "llama-bpe",
    rf"{_WORDS}\p{{N}}{_REST}": "qwen2",
    _cased("", r"\p{N}"): "tekken",
    _cased(f"{_SHORT}?", r"\p{N}{1,3}"): "gpt-4o",
}
COMPOSED = ("qwen2",)  # llama.cpp leaves out the NFC of these, as its own converter does


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
    strips: bool = False  # blanks behind control tokens are taken away


def read_vocabulary(folder: Path, rows: int | None = None) -> GgufVocabulary:
    """The model's tokenizer in GGUF's terms, for an embedding of `rows` rows. Raises ModelError naming what GGUF can't carry."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError("Its tokenizer has no tokenizer.json, which the GGUF form is made from.", OTHER_FORMATS)
    source = read_json(folder / "tokenizer.json")
    model = source.get("model") or {}
    if model.get("type") != "BPE":
        raise ModelError(f"Its tokenizer is of kind {model.get('type')}, and GGUF is written for BPE here.", OTHER_FORMATS)
    kind, pre, adds_space = _way(source)
    added = {int(token["id"]): token for token in source.get("added_tokens") or []}
    tokens = {int(i): str(text) for text, i in model["vocab"].items()} | {i: str(token["content"]) for i, token in added.items()}
    rows = _rows(folder) if rows is None else rows
    if max(tokens) >= rows:
        raise ModelError(f"Its tokenizer has {max(tokens) + 1:,} tokens, its embedding {rows:,} rows.", OTHER_FORMATS)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufVocabulary(
        model=kind,
        pre=pre,
        adds_space=adds_space,
        tokens=[_spelled(tokens.get(row, f"[PAD{row}]"), row in added and kind == "llama") for row in range(rows)],
        kinds=[_kind(row, tokens, added, model.get("unk_token"), kind) for row in range(rows)],
        scores=_scores(rows, tokens, added, merges) if kind == "llama" else [],
        merges=merges if kind == "gpt2" else [],
        strips=any(token.get("special") and token.get("rstrip") for token in added.values()),
    )


def general_name(name: str, strips: bool) -> str:
    """The name that a file is given: llama.cpp takes blanks behind control tokens away in every file that is called a Phi-3."""
    if strips:
        return f"{name} (phi-3)"
    return PHI3.sub("Phi 3", name)


def _rows(folder: Path) -> int:
    """Rows of the embedding: what the config says, else (a wrapper's config may leave it to its class) what the weights say."""
    config = read_json(folder / "config.json")
    stated = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if stated or "text_config" not in config:
        return int(stated or 0)
    shapes = (shape for file in weight_files(folder) for name, _, shape in tensors(file) if name.endswith("embed_tokens.weight"))
    return int(next(shapes, (0,))[0])


def _spelled(text: str, is_sought: bool) -> str:
    """An added token of marks as llama.cpp seeks it in the text, where they are still blanks."""
    if is_sought and text and not text.strip("▁"):
        return " " * len(text)
    return text


def _way(source: Mapping[str, Any]) -> tuple[str, str, bool]:
    """(model, pre, adds_space) of tokenizer.json."""
    steps = _steps(source.get("pre_tokenizer"), "pretokenizers")
    normalizers = _steps(source.get("normalizer"), "normalizers")
    if _has_marks(normalizers):  # there are no blanks left to split at
        steps = [step for step in steps if (step["type"], step.get("pattern")) != ("Split", {"String": " "})]
    kinds = [step["type"] for step in steps]
    if kinds in (["Metaspace"], []):
        return _sentencepiece(source, steps, normalizers)
    pre = _byte_level(steps, kinds)
    if pre == "llama-bpe" and not source["model"].get("ignore_merges"):
        pre = "dbrx"  # the same split, and no word is taken whole that its merges do not make
    if normalizers and not (pre in COMPOSED and [step["type"] for step in normalizers] == ["NFC"]):
        raise ModelError(
            f"Its tokenizer changes text before it is cut ({_named(normalizers)}), and a GGUF file carries no normaliser.", OTHER_FORMATS
        )
    return "gpt2", pre, False


def _sentencepiece(source: Mapping[str, Any], steps: list[dict[str, Any]], normalizers: list[dict[str, Any]]) -> tuple[str, str, bool]:
    spaced, to_marks = [step["type"] for step in normalizers], _has_marks(normalizers)
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


def _has_marks(normalizers: list[dict[str, Any]]) -> bool:
    """Whether blanks become marks."""
    wanted = ("Replace", {"String": " "}, "▁")
    return any((step["type"], step.get("pattern"), step.get("content")) == wanted for step in normalizers)


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
