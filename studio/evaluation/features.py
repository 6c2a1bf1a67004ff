"""`python -m studio.evaluation.features OPTIONS OUT`: MAUVE of answers against references on features of a base model.

A process of its own, so that torch and the model end with it. OPTIONS: `base` (the folder) and `groups`, by name: `texts` and
`references`. OUT, by name: `mauve` (null with `reason` where there are too few texts), how many `answers` and `references` counted, how
many texts were `empty` and left out or `cut` to `max_tokens`, and `clusters`. A feature is the hidden state of a text's last token
after the last layer, as mauve-text takes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.datasets.report.child import Progress, run
from studio.datasets.tokenization import load_vocabulary
from studio.evaluation import mauve
from studio.evaluation.likelihood import batches, load_model

MAX_TOKENS = 1024  # of a text, as in mauve-text
Floats = NDArray[np.float64]


def work(options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    base, groups = Path(options["base"]), options["groups"]
    tokenizer = load_vocabulary(base).tokenizer
    wanted = dict.fromkeys(text for group in groups.values() for text in (*group["texts"], *group["references"]))
    ids = {text: tokenizer.encode(text).ids for text in wanted}
    readable = {name: {side: [text for text in group[side] if ids[text]] for side in group} for name, group in groups.items()}
    features: dict[str, Floats] = {}
    limit = MAX_TOKENS
    if any(min(map(len, group.values())) >= mauve.MIN_TEXTS for group in readable.values()):
        model = load_model(base, None)
        limit = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS)
        features = _features(model, {text: tokens[:limit] for text, tokens in ids.items() if tokens}, progress)
    found = {}
    for name, group in readable.items():
        given = [*groups[name]["texts"], *groups[name]["references"]]
        found[name] = {
            **_measured(group["texts"], group["references"], features),
            "empty": sum(not ids[text] for text in given),
            "cut": sum(len(ids[text]) > limit for text in given),
            "max_tokens": limit,
        }
    return found


def _measured(texts: Sequence[str], references: Sequence[str], features: Mapping[str, Floats]) -> dict[str, Any]:
    clusters = mauve.number_of_clusters(len(texts), len(references))
    counts = {"answers": len(texts), "references": len(references), "clusters": clusters}
    if min(len(texts), len(references)) < mauve.MIN_TEXTS:
        there = f"there are {len(texts)} answers and {len(references)} references that hold a token"
        return {"mauve": None, "reason": f"it compares distributions and needs {mauve.MIN_TEXTS} texts on either side; {there}", **counts}
    sides = [np.stack([features[text] for text in side]) for side in (texts, references)]
    return {"mauve": mauve.of_features(*sides), "reason": "", **counts}


def _features(model: Any, ids: Mapping[str, Sequence[int]], progress: Progress) -> dict[str, Floats]:
    texts, found = list(ids), {}
    for batch in batches([len(ids[text]) for text in texts]):
        for number, vector in zip(batch, _last_states(model, [ids[texts[number]] for number in batch]), strict=True):
            found[texts[number]] = vector
        progress("reading", len(found) / len(texts))
    return found


def _last_states(model: Any, rows: Sequence[Sequence[int]]) -> Floats:
    """The hidden state of each row's last token after the last layer: float64 [rows, width]."""
    import torch

    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=model.device)
    # the model without its output layer; a composed one gives the layers that read text
    decoder: Callable[..., Any] = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    with torch.inference_mode():
        states = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = torch.tensor([len(row) - 1 for row in rows], device=states.device)
    found = states[torch.arange(len(rows), device=states.device), last].double().cpu().numpy()
    return np.asarray(found, dtype=np.float64)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], work))
