"""`studio compress`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, open_studio, read_text, say, show
from studio.errors import StudioError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from studio.services import Studio


def compress(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE…|-", help="Each file is one context; - reads standard input.")] = None,
    method: Annotated[
        str | None, typer.Option(help="llmlingua2 (default), llmlingua, longllmlingua, selective_context, structured or self_information.")
    ] = None,
    compressor: Annotated[str | None, typer.Option(metavar="M", help="Who compresses: a name, a folder or hub:NAME.")] = None,
    counter: Annotated[str | None, typer.Option(metavar="M", help="Whose tokens count: the model that will read the prompt.")] = None,
    rate: Annotated[float | None, typer.Option(help="Share of the tokens to keep, above 0 and at most 1.")] = None,
    target_token: Annotated[float | None, typer.Option(help="Tokens to keep at most.")] = None,
    instruction: Annotated[str, typer.Option(help="Stays in front, as it is.")] = "",
    question: Annotated[str, typer.Option(help="Stays at the end, as it is; longllmlingua keeps what answers it.")] = "",
    force_token: Annotated[list[str] | None, typer.Option(metavar="T", help="A word or mark that stays; repeat it.")] = None,
    force_digits: Annotated[bool, typer.Option("--force-digits", help="Every number stays.")] = False,
    param: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="An option of llmlingua, or must_keep=numbers,negations, keep_patterns=REGEX.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the compressors there are.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make a prompt shorter, and say what was lost."""
    studio = open_studio()
    if list_:
        _list(studio, json)
        return
    options = _options(param or [])
    dtype = str(options.pop("dtype", "float32"))
    made = studio.compression.compress(
        _contexts(files or ["-"]),
        method=method,
        compressor=compressor,
        counter=counter,
        rate=rate,
        target_token=target_token,
        instruction=instruction,
        question=question,
        force_tokens=force_token or [],
        force_digits=force_digits,
        dtype=dtype,
        options=options,
    )
    if not json:
        for warning in made.warnings:
            say(warning)
        say(f"{made.tokens_before:,} tokens became {made.tokens_after:,} ({made.achieved:.0%}, asked {made.requested:.0%}).")
    show(made, json, made.text)


def _list(studio: Studio, json: bool) -> None:
    found = studio.compression.compressors.list()
    lines = [f"{entry.name}: {entry.title} ({', '.join(entry.methods)})" for entry in found.compressors]
    lines += [f"{entry.name}: {entry.title}" for entry in found.known]
    show(found, json, "\n".join(lines))


def _contexts(files: list[str]) -> list[str]:
    return [_standard_input() if name == "-" else read_text(Path(name)) for name in files]


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise StudioError("Standard input is no UTF-8 text.", "Pipe a text in.") from None


def _options(pairs: list[str]) -> dict[str, JsonValue]:
    """K=V of the command line, values as JSON where they are JSON."""
    import json

    found: dict[str, JsonValue] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator):
            raise StudioError(f"--param {pair} is not K=V.", "Write --param iterative_size=50.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    for name in ("must_keep", "keep_patterns"):
        given = found.get(name)
        if isinstance(given, str):
            kinds = [part.strip() for part in given.split(",")]
            found[name] = [given] if name == "keep_patterns" else [*kinds]
    return found
