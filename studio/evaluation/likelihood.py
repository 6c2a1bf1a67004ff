"""`python -m studio.evaluation.likelihood OPTIONS OUT`: the summed log-probability a model gives to the answers of conversations.

A process of its own, so that torch and the model end with it. OPTIONS: `studio` (the folders, as requests to the engine name them),
`conversations` (lists of messages) and `last_only` (only the last answer of each counts); OUT: `scores`, one `{"logprob", "tokens",
"prompt_tokens", "seconds"}` each, and `perplexity` over all `tokens` of all `rows`. Knows no judge.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from studio.catalogue import rope, text_models
from studio.datasets.rendering import Rendered, Renderer
from studio.datasets.report.child import Progress, run
from studio.engine.protocol import AdapterRef, read_folders
from studio.types import Example, Message

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096


def scores(options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Natural log-probabilities, summed over the tokens that training would learn: the answers and the ends of their turns."""
    base, adapter, template = read_folders(options["studio"])
    if not template and adapter and (adapter.path / "chat_template.jinja").is_file():
        template = str(adapter.path / "chat_template.jinja")
    renderer = Renderer.load(base.path, template)
    rows = [renderer.example(Example(messages=[Message(**message) for message in messages])) for messages in options["conversations"]]
    if options.get("last_only"):
        rows = [_last_only(row) for row in rows]
    model = load_model(base.path, adapter and adapter.path)
    found: list[dict[str, Any]] = [{}] * len(rows)
    done = 0
    for batch in batches([len(row.ids) for row in rows]):
        for number, value in zip(batch, _score(model, [rows[number] for number in batch]), strict=True):
            found[number] = value
        done += len(batch)
        progress("reading", done / len(rows))
    tokens = sum(row["tokens"] for row in found)
    perplexity = None
    if tokens:
        perplexity = math.exp(-sum(row["logprob"] for row in found) / tokens)
    return {"scores": found, "perplexity": perplexity, "tokens": tokens, "rows": len(rows)}


def _last_only(row: Rendered) -> Rendered:
    """Learned tokens of the last answer alone: its text and the end of its turn."""
    end = next((place for place in range(len(row.learned), 0, -1) if row.learned[place - 1]), 0)
    begin = next((place for place in range(end, 0, -1) if not row.learned[place - 1]), 0)
    return replace(row, learned=[begin <= place < end for place in range(len(row.learned))])


def load_model(base: Any, adapter: Any) -> Any:
    import torch

    model, _ = text_models.load(base, config=text_models.config_of(base, rope.of_adapter(adapter)), dtype=torch.float32)
    if adapter is not None:
        from studio.engine import adapting

        model, _ = adapting.attach(AdapterRef(adapter.name, adapter), model, "default", torch.device("cpu"))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers by length, so that a batch pads little; about BATCH_TOKENS each."""
    made: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not made or (len(made[-1]) + 1) * lengths[number] > BATCH_TOKENS:
            made.append([])
        made[-1].append(number)
    return made


def _score(model: Any, rows: Sequence[Rendered]) -> list[dict[str, Any]]:
    import torch

    started = time.monotonic()
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows], device=model.device)
    learned = torch.tensor([row.learned + [False] * (length - len(row.ids)) for row in rows], device=model.device)
    with torch.inference_mode():
        # learned tokens before the prompt have places of their own in front
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -length:]
        chosen = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        sums = (chosen * learned[:, 1:]).sum(dim=1).tolist()
    seconds = (time.monotonic() - started) / len(rows)
    return [
        {"logprob": total, "tokens": sum(row.learned), "prompt_tokens": len(row.ids), "seconds": seconds}
        for total, row in zip(sums, rows, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], scores))
