"""Figures of a comparison's answers, per contestant: every metric against the references, length, time, and on request perplexity.

Rows in, plain values out; the work is done in child processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studio.datasets.children import run_child
from studio.db.models import AnswerRow, ComparisonRow
from studio.settings import Settings

Pulse = Callable[[], None]


def measure(
    settings: Settings,
    comparison: ComparisonRow,
    answers: Sequence[AnswerRow],
    *,
    schema: Any = None,
    pattern: str | None = None,
    pulse: Pulse | None = None,
) -> dict[str, dict[str, Any]]:
    """{contestant: figures} of those that answered; the keys of studio.evaluation.metrics and of `evaluation.__main__.contestants`.

    `pulse` is called again and again meanwhile; what it raises ends the work.
    """
    references = {prompt["id"]: [prompt["reference"]] for prompt in comparison.prompts if prompt.get("reference")}
    contestants: dict[str, Any] = {}
    for answer in answers:
        own = contestants.setdefault(answer.contestant, {"texts": [], "pairs": [], "seconds": [], "tokens": [], "errors": 0})
        if answer.error:
            own["errors"] += 1
            continue
        own["texts"].append(answer.text)
        own["seconds"].append(answer.seconds)
        own["tokens"].append(answer.completion_tokens)
        if answer.prompt_id in references:
            own["pairs"].append([answer.text, references[answer.prompt_id]])
    if not contestants:
        return {}
    options = {"do": "metrics", "contestants": contestants, "schema": schema, "pattern": pattern}
    return run_child("studio.evaluation", options, settings.cache, pulse=pulse)


def perplexity(
    settings: Settings, comparison: ComparisonRow, contestant: Mapping[str, Any], pulse: Pulse | None = None
) -> dict[str, Any] | None:
    """{"perplexity", "tokens", "rows"} that a model of this machine gives to the references; None where that can't be said.

    `contestant` as engine.protocol.Contestant.as_json gives it. e to the mean negative log-probability of a token of the references,
    the end of the turn included, over all rows together.
    """
    asked = [prompt for prompt in comparison.prompts if prompt.get("reference") and len(prompt["turns"]) == 1]
    if contestant.get("studio") is None or not asked:
        return None
    conversations = [[*prompt["turns"][0], {"role": "assistant", "content": prompt["reference"]}] for prompt in asked]
    options = {"studio": contestant["studio"], "conversations": conversations, "last_only": True}
    found: dict[str, Any] = run_child("studio.evaluation.likelihood", options, settings.cache, pulse=pulse)
    return {key: found[key] for key in ("perplexity", "tokens", "rows")}
