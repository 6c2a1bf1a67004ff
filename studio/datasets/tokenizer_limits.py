"""Parts of a stranger's tokenizer that would make a text many times longer: three replacements in a row turn a letter into a gigabyte."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from studio.errors import ModelError

MOST_GROWTH = 64.0  # characters for one; published tokenizers replace a space by a mark of its size
MOST_ADDED = 1_000  # characters or tokens around a text


class LengtheningError(ModelError):
    """A tokenizer that can be read, and must not be used."""


def excess(tokenizer: Tokenizer) -> str:
    """Which part lengthens texts beyond reason, as the end of a sentence; "" where none does."""
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(_steps(_described(getattr(tokenizer, name))))
        if math.prod(max(1.0, _growth(step)) for step in steps) > MOST_GROWTH:
            return f"its {name} makes texts more than {MOST_GROWTH:.0f} times longer"
        if sum(len(str(step.get("prepend", ""))) for step in steps) > MOST_ADDED:
            return f"its {name} puts more than {MOST_ADDED:,} characters before a text"
    if sum(map(_added, _steps(_described(tokenizer.post_processor)))) > MOST_ADDED:
        return f"its post_processor puts more than {MOST_ADDED:,} tokens around a text"
    return ""


def _described(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {}
    return found


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A part, or those of a sequence, at any depth."""
    inner = [one for key in ("normalizers", "pretokenizers", "decoders", "processors") for one in part.get(key) or []]
    if not inner:
        yield part
    for one in inner:
        yield from _steps(one)


def _growth(step: dict[str, Any]) -> float:
    """Characters that a replacement puts for one; a regular expression may find nothing, everywhere."""
    if step.get("type") != "Replace":
        return 1.0
    text = step.get("pattern", {}).get("String")
    size = len(str(step.get("content", "")))
    return size / len(text) if text else size + 1.0


def _added(step: dict[str, Any]) -> int:
    """Tokens that a template puts around a text, or around two."""
    sizes = {name: len(token.get("ids", [])) for name, token in (step.get("special_tokens") or {}).items()}
    pieces = [piece["SpecialToken"]["id"] for key in ("single", "pair") for piece in step.get(key) or [] if "SpecialToken" in piece]
    return sum(sizes.get(name, 1) for name in pieces)
