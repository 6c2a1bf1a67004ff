"""Whether a base and its tokenizer belong together, by their numbers of tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from studio.datasets.tokenization import load_vocabulary
from studio.datasets.tokenizer_limits import LengtheningError
from studio.errors import ModelError

UNUSED = 0.5  # of the outputs may have no token: published models round up, by a few hundred


def check_vocabulary(folder: Path, vocabulary: int) -> None:
    """Raises ModelError where tokens would have no embedding, or most outputs no token. `vocabulary`: of the model."""
    tokens = _tokens(folder)
    if not tokens or not vocabulary:
        return
    last, text = max((number, text) for text, number in tokens.items())
    if last >= vocabulary:
        beyond = sum(number >= vocabulary for number in tokens.values())
        raise ModelError(
            f"The tokenizer of {folder} has {beyond:,} tokens beyond the {vocabulary:,} that the model knows; the last is "
            f"{text[:40]!r}, number {last:,}.",
            "Use the tokenizer that was published with the model, or resize the model's embeddings (resize_token_embeddings of transformers).",
        )
    if len(tokens) < (1 - UNUSED) * vocabulary:
        raise ModelError(
            f"The tokenizer of {folder} has {len(tokens):,} tokens for a model of {vocabulary:,}: it belongs to another model.",
            "Use the tokenizer that was published with the model.",
        )


def _tokens(folder: Path) -> dict[str, int]:
    """Text and number of all tokens; empty where no file can be read, which is said where the tokenizer is used."""
    file = folder / "tokenizer.json"
    found: dict[str, int] = {}
    try:
        found = load_vocabulary(folder).tokenizer.get_vocab(with_added_tokens=True)
    except LengtheningError:
        raise
    except ModelError:
        return {}
    if found and file.is_file():  # without the tokens that tokenizer_config.json names and the file lacks
        found = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    return found
