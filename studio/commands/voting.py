"""`studio ballot`, `vote`, `worst` and `correct`: what a person says of a comparison's answers, and the rows that come of it."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from studio.commands.terminal import JsonFlag, open_studio, read_text, show, table
from studio.errors import StudioError

Comparison = Annotated[str, typer.Argument(metavar="COMPARISON", help="By ID or name.")]
Voter = Annotated[str, typer.Option(metavar="NAME", help="Who votes.")]


def ballot(comparison: Comparison, voter: Voter, json: JsonFlag = False) -> None:
    """Show two answers without names, of a pair that this person has not seen yet."""
    show(open_studio().ratings.ballot(comparison, voter), json)


def vote(
    comparison: Comparison,
    ballot: Annotated[str, typer.Argument(metavar="BALLOT", help="As `studio ballot` shows it.")],
    choice: Annotated[str, typer.Argument(metavar="CHOICE", help="left, right, tie or both-bad.")],
    voter: Voter,
    json: JsonFlag = False,
) -> None:
    """Keep a vote, and tell who was who."""
    show(open_studio().ratings.vote(comparison, voter, ballot, choice), json)


def worst(
    comparison: Comparison,
    contestant: Annotated[str, typer.Argument(metavar="CONTESTANT", help="Whose answers.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many prompts.")] = 10,
    json: JsonFlag = False,
) -> None:
    """List prompts that a contestant got wrong, each with a proposal for a better answer."""
    rows = open_studio().preferences.worst(comparison, contestant, limit)
    show(rows, json, table(rows, ("prompt_id", "question", "answer", "better"), f"{contestant} has lost nothing yet."))


def correct(
    comparison: Comparison,
    answers: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='Lines {"prompt_id", "answer"}.')],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the dataset.")] = None,
    json: JsonFlag = False,
) -> None:
    """Make a dataset of a comparison's prompts with better answers, to learn from."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(answers).splitlines(), 1):
        if line.strip():
            prompt, answer = _correction(line, f"{answers}, line {number}")
            if prompt in found:
                raise StudioError(f"{answers}, line {number} answers prompt {prompt[:100]!r} again.", "Keep one answer for each prompt.")
            found[prompt] = answer
    show(open_studio().preferences.correct(comparison, found, name=name), json)


def _correction(line: str, place: str) -> tuple[str, str]:
    try:
        value = json_module.loads(line)
        prompt, answer = value["prompt_id"], value["answer"]
    except (ValueError, TypeError, KeyError, RecursionError):
        prompt = answer = None
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise StudioError(f"{place} is no correction.", 'Write {"prompt_id": …, "answer": …}, both texts.')
    return prompt, answer
