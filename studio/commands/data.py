"""`studio data …`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands import curation
from studio.commands.terminal import JsonFlag, group, open_studio, say, show, table
from studio.datasets.file_types import PACKED, SUFFIXES
from studio.errors import StudioError, listed
from studio.row_options import LearnedTurns, Reasoning, RowOptions, SystemMessage

if TYPE_CHECKING:
    from pydantic import JsonValue

    from studio.records import Dataset, Parity, RenderedRow, Rendering

app = group("Datasets: add, look, render, report, fix, split, export.")

MAX_PROBLEMS = 5
COLUMNS = ("id", "name", "kind", "format", "rows")
LearnedTurnsFlag = Annotated[LearnedTurns, typer.Option(help="Which turns are learned, as a job's option of this name.")]
ReasoningFlag = Annotated[Reasoning, typer.Option(help="What becomes of reasoning, as a job's option of this name.")]
SystemMessageFlag = Annotated[SystemMessage, typer.Option(help="What becomes of system messages, as a job's option of this name.")]
TEMPLATE_HELP = "chatml, alpaca, alpaca-end, plain or a .jinja file; the model's own when left out."


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH|hub:NAME",
            help=f"A {', '.join(SUFFIXES)} file, also as {' or '.join(PACKED)}, or NAME[:CONFIG[:SPLIT]] of the hub.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it; its file's name when left out.")] = None,
    format: Annotated[str | None, typer.Option(help="How rows are read, such as alpaca or sharegpt; detected when left out.")] = None,
    map: Annotated[
        list[str] | None, typer.Option(metavar="ROLE=COLUMN", help="Which column plays which role (ROLE= for none); repeat it.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that can't be read.")] = False,
    json: JsonFlag = False,
) -> None:
    """Check a dataset and keep a copy."""
    mapping = dict(_pair(item) for item in map or []) or None
    place: str | Path = source if source.startswith("hub:") else Path(source)
    added = open_studio().datasets.add(place, name=name, format=format, mapping=mapping, skip_bad=skip_bad)
    show(
        added,
        json,
        "\n".join(
            [f"{added.name}: {added.rows} rows ({added.kind}, {added.format}), {added.skipped} skipped. ID {added.id}", *_read(added)]
        ),
    )


@app.command("list")
def list_(json: JsonFlag = False) -> None:
    """All datasets."""
    rows = open_studio().datasets.list()
    show(rows, json, table(rows, COLUMNS, "No dataset yet. Add one with `studio data add FILE`."))


@app.command("show")
def show_(dataset: Annotated[str, typer.Argument(metavar="ID")], json: JsonFlag = False) -> None:
    """One dataset."""
    show(open_studio().datasets.show(dataset), json)


@app.command()
def delete(dataset: Annotated[str, typer.Argument(metavar="ID")], json: JsonFlag = False) -> None:
    """Delete a dataset."""
    show(open_studio().datasets.delete(dataset), json, f"{dataset} is deleted.")


@app.command()
def export(
    dataset: Annotated[str, typer.Argument(metavar="ID")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="The .jsonl file to write.")],
    json: JsonFlag = False,
) -> None:
    """Write a dataset's rows to a file."""
    written = open_studio().datasets.export(dataset, to)
    show(written, json, f"{written.rows} rows are in {to}.")


@app.command()
def render(
    dataset: Annotated[str, typer.Argument(metavar="ID")],
    base_model: Annotated[str, typer.Option(help="Whose tokenizer and template: a name or a folder.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 3,
    offset: Annotated[int, typer.Option(min=0, help="How many rows to leave out before the first one shown.")] = 0,
    max_length: Annotated[int | None, typer.Option(min=8, help=curation.LENGTH_HELP)] = None,
    chat_template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    learned_turns: LearnedTurnsFlag = LearnedTurns.MARKED,
    reasoning: ReasoningFlag = Reasoning.LEARN,
    system_message: SystemMessageFlag = SystemMessage.KEEP,
    json: JsonFlag = False,
) -> None:
    """Show what the model will see and learn."""
    rendered = open_studio().datasets.render(
        dataset,
        base_model=base_model,
        rows=rows,
        offset=offset,
        max_length=max_length,
        chat_template=chat_template,
        options=RowOptions(learned_turns, reasoning, system_message),
        allow_path=True,
    )
    show(rendered, json, _rendered_text(rendered))
    if not json:
        say("What is learned stands between « and ».")


@app.command()
def parity(
    dataset: Annotated[str, typer.Argument(metavar="ID")],
    base_model: Annotated[str, typer.Option(help="Whose tokenizer and template: a name or a folder.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows to compare, spread evenly.")] = 20,
    max_length: Annotated[int | None, typer.Option(min=8, help=curation.LENGTH_HELP)] = None,
    chat_template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    learned_turns: LearnedTurnsFlag = LearnedTurns.MARKED,
    reasoning: ReasoningFlag = Reasoning.LEARN,
    system_message: SystemMessageFlag = SystemMessage.KEEP,
    json: JsonFlag = False,
) -> None:
    """Check that training sees the tokens that a chat would send, with the answer behind them."""
    found = open_studio().datasets.parity(
        dataset,
        base_model=base_model,
        rows=rows,
        max_length=max_length,
        chat_template=chat_template,
        options=RowOptions(learned_turns, reasoning, system_message),
        allow_path=True,
    )
    show(found, json, _parity_text(found))


for command in curation.COMMANDS:
    app.command()(command)


def _read(added: Dataset) -> list[str]:
    """What of the file was used, what was not, and what was guessed."""
    used = ", ".join(f"{role} from {column!r}" for role, column in added.used.items())
    columns = [f"{column!r} ({count} rows)" for column, count in added.unused.columns.items()]
    keys = [f"{key!r} ({count} messages)" for key, count in added.unused.message_keys.items()]
    lines = [f"Used: {used}."]
    if added.used_message_keys:
        read = [
            f"{key!r} as {use.read_as} ({use.messages} message{'s' * (use.messages != 1)})" for key, use in added.used_message_keys.items()
        ]
        lines.append(f"Message keys used: {', '.join(read)}.")
    if columns:
        lines.append(f"Columns not used: {', '.join(columns)}.")
    if keys:
        lines.append(f"Message keys not used: {', '.join(keys)}.")
    return lines + added.notes


def _rendered_text(rendered: Rendering) -> str:
    lines = [f"[{len(row.ids)} tokens, {sum(row.learned)} learned{', cut' * row.truncated}]\n{_marked(row)}" for row in rendered.rows]
    shares = f"cut at {rendered.max_length} tokens {rendered.share_truncated:.1%}, without learned tokens {rendered.share_without_learned_tokens:.1%}"
    lengths = f"p50 {rendered.p50}, p95 {rendered.p95}, p99 {rendered.p99}"
    said = [rendered.length_notice] * bool(rendered.length_notice)
    said += [f"{count} rows: the chat template leaves out {what.replace('_', ' ')}." for what, count in rendered.left_out.items()]
    if rendered.empty_reasoning:
        said.append(f"{rendered.empty_reasoning} rows teach an empty block of reasoning (reasoning=context does not).")
    if rendered.control_tokens:
        tokens = listed(f"{token} in {rows}" for token, rows in rendered.control_tokens.items())
        said.append(f"Control tokens are written as text, and the model reads them as such: {tokens} rows.")
    refused = [f"Row {problem.line}: {problem.problem} {problem.fix}" for problem in rendered.problems[:MAX_PROBLEMS]]
    return "\n\n".join([*lines, "\n".join([f"All rows: {shares}; tokens {lengths}.", *said, *refused])])


def _parity_text(found: Parity) -> str:
    return "\n".join([_compared(found), *_losses(found)])


def _losses(found: Parity) -> list[str]:
    """What the template leaves out, with the ways on, and the date that it prints."""
    lines = []
    for loss in found.losses:
        lines.append(loss.sentence)
        lines += [f"  {_assigned(way.change)}: {way.title}." for way in loss.alternatives]
    if found.training_date:
        lines.append(
            f"The template prints a date: training {found.training_date}, chat the day's own ({found.chat_date}). That is no difference."
        )
    return lines


def _assigned(change: dict[str, JsonValue]) -> str:
    return " ".join(f"--set {key}={value}" for key, value in change.items())


def _compared(found: Parity) -> str:
    skipped = ""
    if found.skipped:
        skipped = f" {found.skipped} rows without an answer, or refused by the template, were left out."
    if found.same:
        return f"Identical in {found.rows} rows (template {found.template_name}).{skipped}"
    first = found.first_difference
    if first is None:
        return f"There was no row to compare.{skipped}"
    return (
        f"Identical in {found.identical} of {found.rows} rows (template {found.template_name}).{skipped}\n"
        f"First difference: row {first.row}, token {first.position + 1}. {first.reason}\n"
        f"both      …{first.shared!r}\ntraining  {first.training_next!r}\nchat      {first.chat_next!r}"
    )


def _marked(row: RenderedRow) -> str:
    if row.problem:
        return row.problem
    marked, was_learned = "", False
    for token, is_learned in zip(row.tokens, row.learned, strict=True):
        marked += "«" * (is_learned and not was_learned) + "»" * (was_learned and not is_learned) + token
        was_learned = is_learned
    return marked + "»" * was_learned


def _pair(item: str) -> tuple[str, str]:
    role, separator, column = item.partition("=")
    if not (separator and role):
        raise StudioError(f"--map {item!r} is not of the form role=column.", "Write it such as --map prompt=question.")
    return role, column
