"""Answers that are given again: the same prompt to the same model and adapter with the same parameters needs no engine.

Sampled answers only where a seed was given. Knows rows and files, nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from studio.catalogue import models as folders
from studio.db.models import CachedAnswerRow
from studio.engine.protocol import Contestant, Usage
from studio.types import GenerationParams


def key_of(contestant: Contestant, messages: Sequence[Mapping[str, Any]], params: GenerationParams, more: Mapping[str, Any]) -> str | None:
    """None where the answer may differ next time: sampling without a seed, or another server's model."""
    if contestant.base is None or contestant.url or (params.temperature > 0 and params.seed is None):
        return None
    sampling = params.model_dump(mode="json")
    if not params.min_p:  # keys of answers that were kept before it was known
        del sampling["min_p"]
    asked = {
        "base": [str(contestant.base.path), *_stamps(contestant.base.path), contestant.quantization],
        "adapter": contestant.adapter and [contestant.adapter.sha256, str(contestant.adapter.path), *_template(contestant.adapter.path)],
        "template": contestant.chat_template,
        "messages": list(messages),
        "params": sampling,
        "more": dict(more),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def find(session: Session, key: str) -> CachedAnswerRow | None:
    return session.get(CachedAnswerRow, key)


def keep(session: Session, key: str, conversation_id: str, text: str, finish_reason: str, usage: Usage | None) -> None:
    """The first conversation to hear it owns the row: with it, it is deleted."""
    if session.get(CachedAnswerRow, key) is None:
        row = CachedAnswerRow(key=key, conversation_id=conversation_id, text=text, finish_reason=finish_reason)
        if usage:
            row.usage = dict(usage.as_json())
        session.add(row)


def _stamps(folder: Path) -> list[Any]:
    """Changes when the model is made anew."""
    files = [*folders.weight_files(folder), *(folder / name for name in ("config.json", "tokenizer.json", "chat_template.jinja"))]
    return [[file.name, file.stat().st_mtime_ns, file.stat().st_size] for file in files if file.is_file()]


def _template(folder: Path) -> list[Any]:
    file = folder / "chat_template.jinja"
    return [hashlib.sha256(file.read_bytes()).hexdigest()] if file.is_file() else []
