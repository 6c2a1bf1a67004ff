"""`studio chat` and `studio compare`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import (
    JsonFlag,
    follow,
    leave_unless_succeeded,
    load_settings,
    open_studio,
    read_text,
    sampling,
    say,
    show,
)
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.records import Comparison, ComparisonAnswer, MatchScore

BaseModel = Annotated[str, typer.Option(metavar="MODEL", help="Base model: a name, or a folder.")]


def chat(
    message: Annotated[str, typer.Argument(metavar="MESSAGE")],
    base_model: BaseModel,
    adapter: Annotated[list[str] | None, typer.Option(metavar="A", help="Who answers; repeat it. base stands for the base model.")] = None,
    system: Annotated[str | None, typer.Option(help="Instruction before the conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token; the default 0.7 samples, so that answers differ.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer; without one each is drawn afresh.")] = None,
    quantization: Annotated[str, typer.Option(metavar="nf4|int8", help="Hold the base in 4 or 8 bit; else as it is.")] = "",
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="GBNF grammar that the answer must follow.")] = None,
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON schema that the answer must follow.")] = None,
    json: JsonFlag = False,
) -> None:
    """Ask once; one answer per contestant, sampled unless --temperature is 0."""
    from studio import supervisor

    if grammar and json_schema:
        raise StudioError("--grammar and --json-schema can't be given together.", "Keep one of them.")
    params = sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    from studio.engine.protocol import QUANTIZATIONS  # brings pydantic: not for `studio --help`

    if quantization not in QUANTIZATIONS:
        raise StudioError(f"--quantization {quantization} is not known.", "Choose nf4 or int8.")
    from studio.types import Message, Role

    grammar_text = read_text(grammar) if grammar else None
    schema = _schema(json_schema) if json_schema else None
    messages = [Message(role=Role.USER, content=message)]
    if system:
        messages.insert(0, Message(role=Role.SYSTEM, content=system))
    names = adapter or ["base"]
    settings = load_settings()
    for name in names:  # before an engine is started for them
        open_studio(settings).adapters.resolve(name, base_model)
    with supervisor.assistance(settings, say, engine=True) as assisted:
        answers = open_studio(assisted).chat.answer(
            names, messages, params, base_model=base_model, grammar=grammar_text, json_schema=schema, quantization=quantization
        )
    lines = [f"{answer.contestant}: {answer.text}" for answer in answers]
    if len(answers) == 1:
        lines = [answers[0].text]
    show({"answers": answers}, json, "\n".join(lines))


def compare(
    base_model: BaseModel,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Lines with prompt or messages, and reference if there is one; or: mt-bench, vicuna."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="ID", help="Ask the rows of this dataset; their answers are the references.")] = None,
    held_out: Annotated[str | None, typer.Option(metavar="JOB", help="Ask the rows that this training held out.")] = None,
    contestants: Annotated[str, typer.Option(metavar="A,B", help="Who answers, separated by commas.")] = "base",
    name: Annotated[str | None, typer.Option(help="Name of the comparison.")] = None,
    json: JsonFlag = False,
) -> None:
    """Let contestants answer the same prompts."""
    from studio import supervisor

    if sum(given is not None for given in (prompts, data, held_out)) != 1:
        raise StudioError("Give one of --prompts, --data and --held-out.", "--prompts takes a file, --data a dataset's ID or name.")
    settings = load_settings()
    studio = open_studio(settings)
    known = {row.name for row in studio.comparisons.questions()}
    questions = str(prompts) if prompts and str(prompts) in known and not prompts.exists() else None
    rows = studio.comparisons.read_prompts(prompts) if prompts and not questions else None
    names = [item.strip() for item in contestants.split(",") if item.strip()]
    created = studio.comparisons.create(
        prompts=rows, data=data, questions=questions, held_out=held_out, base_model=base_model, contestants=names, name=name
    )
    with supervisor.assistance(settings, say, queues=("light",), engine=True):
        job = follow(studio, str(created.job))
    done = studio.comparisons.show(created.id)
    show(done, json, _comparison_text(done))
    leave_unless_succeeded(job)


def _comparison_text(comparison: Comparison) -> str:
    lines = [f"{answer.prompt_id}  {answer.contestant}: {_answered(answer)}" for answer in comparison.answers]
    for contestant, score in comparison.scores.items():
        lines.append(f"{contestant}: {_match(score)}")
    return "\n".join(lines)


def _answered(answer: ComparisonAnswer) -> str:
    """Every turn where there are several; why there is no answer."""
    turns: list[str] = []
    if len(answer.turns) > 1 or answer.error:
        turns = [f"[turn {number}] {text}" for number, text in enumerate(answer.turns, 1)]
    return " ".join([*turns, answer.error]).strip() or answer.text


def _match(score: MatchScore) -> str:
    if score.exact_match is None:
        return f"exact match can't be said. {score.reason}"
    said = f"exact match {score.exact_match:.2f} of {score.n} prompts"
    if score.left_out:
        said += f"; {score.left_out} left out, whose reference is a note to judge by"
    return said


def _schema(path: Path) -> str:
    """The text of a JSON schema, checked to be an object."""
    import json

    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise StudioError(f"{path} is not valid JSON ({exc}).", "Give a JSON schema.") from None
    if not isinstance(value, dict):
        raise StudioError(f"{path} is no JSON schema: it holds no object.", "Give a JSON schema.")
    return text
