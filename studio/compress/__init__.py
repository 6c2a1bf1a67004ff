"""Prompt compression: text in, shorter text out, and what was lost. Importing this loads no library; `load` does.

Knows folders of models, never their names; no database, no UI.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.records import Compression

if TYPE_CHECKING:
    from studio.compress.compressor import Compressor

__all__ = ["Compression", "Compressor", "load"]


def load(compressor: str | Path, counter: str | Path | None = None, **options: Any) -> Compressor:
    """A compressor from the folder of a causal language model or of a token classifier.

    `counter`: folder of the model whose tokenizer counts; None counts with the compressor's own. `options`: `dtype`
    ("float32" or "bfloat16", whose results may differ) and `device`. Raises ModelError when the folder is neither kind.
    """
    from studio.compress.compressor import Compressor

    return Compressor.load(compressor, counter, **options)


def __getattr__(name: str) -> Any:
    if name == "Compressor":
        from studio.compress.compressor import Compressor

        return Compressor
    raise AttributeError(name)
