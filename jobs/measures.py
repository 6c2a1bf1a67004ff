"""Figures of a comparison's answers, per contestant: every metric against the references, length, time, and on request perplexity.

Rows in, plain values out; the work is done in child processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from studio.datasets.children import run_child
from studio.db.models import AnswerRow, ComparisonRow
from studio.settings import Settings

Pulse = Callable[[], None]


NO_LIKELIHOOD = "it needs a model of this machine and references to single questions"


class TextSets(TypedDict):
    """Two sets of texts whose distributions are compared."""

    texts: list[str]
    references: list[str]


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


def mauve(settings: Settings, base: Path, groups: Mapping[str, TextSets], pulse: Pulse | None = None) -> dict[str, dict[str, Any]]:
    """{group: what studio.evaluation.features says of it}: MAUVE of its texts against its references on features of `base`."""
    options = {"base": str(base), "groups": groups}
    return run_child("studio.evaluation.features", options, settings.cache, pulse=pulse)


def text_sets(comparison: ComparisonRow, answers: Sequence[AnswerRow]) -> dict[str, TextSets]:
    """{contestant: its answers, and the references to the same prompts}."""
    references = {prompt["id"]: prompt["reference"] for prompt in comparison.prompts if prompt.get("reference")}
    found: dict[str, TextSets] = {}
    for answer in answers:
        if not answer.error and answer.prompt_id in references:
            own = found.setdefault(answer.contestant, {"texts": [], "references": []})
            own["texts"].append(answer.text)
            own["references"].append(references[answer.prompt_id])
    return found


def add_perplexity(figures: dict[str, Any], measured: Mapping[str, Any] | None, reason: str) -> None:
    """Write the perplexity that was measured into a contestant's figures; without one null and the reason."""
    figures["perplexity"] = measured and measured["perplexity"]
    if figures["perplexity"] is None:
        figures["reasons"] = {**figures.get("reasons", {}), "perplexity": reason}


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
