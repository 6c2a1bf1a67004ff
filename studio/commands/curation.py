"""`studio data report | fix | split | merge | pick | edit | drop | versions`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.terminal import JsonFlag, open_studio, read_text, say, show, table
from studio.errors import StudioError, listed
from studio.terminals import redraw

if TYPE_CHECKING:
    from studio.records import Dataset, DatasetReport, Finding, Lengths
    from studio.services.data_reports import ReportOptions

ID = Annotated[str, typer.Argument(metavar="ID", help="A dataset's ID or name.")]
Name = Annotated[str | None, typer.Option(help="What to call the new version.")]
Seed = Annotated[int, typer.Option(help="The same seed chooses the same rows.")]
BaseModel = Annotated[str | None, typer.Option(help="Count in its tokens, and look for rows that are cut off: a name or a folder.")]
LENGTH_HELP = "Longest row in tokens; when left out, what a training takes that sets none."
MaxLength = Annotated[int | None, typer.Option(min=8, help=f"{LENGTH_HELP} Needs --base-model.")]
Template = Annotated[str | None, typer.Option("--chat-template", help="As in `render`; needs --base-model.")]
Against = Annotated[list[str] | None, typer.Option(metavar="ID", help="A dataset that shall share no row with this one; repeat it.")]

FIELDS = ("check", "count", "severity", "rows", "title")
SHOWN_ROWS = 6
BAR = 40


def report(
    dataset: ID,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    chat_template: Template = None,
    against: Against = None,
    json: JsonFlag = False,
) -> None:
    """Name everything that is wrong with the rows."""
    curation = open_studio().curation
    options = _options(base_model, max_length, chat_template, against)
    made = curation.report(dataset, **options, progress=_tell)
    show(made, json, _report_text(made, dataset))


def fix(
    dataset: ID,
    check: Annotated[list[str], typer.Option(metavar="NAME", help="A check that the report names, or all; repeat it.")],
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What to put in the place of a placeholder; repeat it. Else drop the row."),
    ] = None,
    name: Name = None,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    chat_template: Template = None,
    against: Against = None,
    json: JsonFlag = False,
) -> None:
    """Write a version without what these checks find."""
    curation = open_studio().curation
    options = _options(base_model, max_length, chat_template, against)
    fixed = curation.fix(dataset, check, name=name, values=_values(fill or []), **options, progress=_tell)
    done = fixed.provenance
    show(fixed, json, f"{_made(fixed)} {done['dropped']:,} rows are left out, {done['changed']:,} changed.")


def split(
    dataset: ID,
    test_size: Annotated[float, typer.Option(help="Share of the rows to hold out, or from 1 on their number.")] = 0.1,
    seed: Seed = 42,
    name: Annotated[str | None, typer.Option(help="NAME-train and NAME-eval are made.")] = None,
    json: JsonFlag = False,
) -> None:
    """Write two versions, to train on and to measure on; duplicates stay on one side."""
    halves = open_studio().curation.split(dataset, test_size=test_size, seed=seed, name=name)
    show(halves, json, f"{_made(halves.train)}\n{_made(halves.eval)}")


def merge(
    datasets: Annotated[list[str], typer.Argument(metavar="ID ID…", help="Datasets of one kind.")],
    name: Name = None,
    json: JsonFlag = False,
) -> None:
    """Write a version with the rows of several datasets."""
    merged = open_studio().curation.merge(datasets, name=name)
    show(merged, json, _made(merged))


def pick(
    dataset: ID,
    rows: Annotated[int, typer.Option(min=1, help="How many.")],
    seed: Seed = 42,
    name: Name = None,
    json: JsonFlag = False,
) -> None:
    """Write a version with the best rows that differ most from each other."""
    picked = open_studio().curation.pick(dataset, rows, seed=seed, name=name, progress=_tell)
    show(picked, json, f"{_made(picked)} {picked.provenance['how']}")


def edit(
    dataset: ID,
    row: Annotated[int, typer.Option(min=1, help="Its number, counted from 1.")],
    to: Annotated[str, typer.Option(metavar="JSON|FILE|-", help="The new row as JSON, in the form that `export` writes; - reads stdin.")],
    name: Name = None,
    json: JsonFlag = False,
) -> None:
    """Write a version with one row changed."""
    edited = open_studio().curation.edit_row(dataset, row, _row(to), name=name)
    show(edited, json, _made(edited))


def drop(
    dataset: ID,
    row: Annotated[list[int], typer.Option(min=1, help="Its number, counted from 1; repeat it.")],
    name: Name = None,
    json: JsonFlag = False,
) -> None:
    """Write a version without some rows."""
    left = open_studio().curation.delete_rows(dataset, row, name=name)
    show(left, json, _made(left))


def versions(dataset: ID, json: JsonFlag = False) -> None:
    """What a dataset came from, and what was made of it."""
    found = open_studio().curation.versions(dataset)
    names = {version.id: version.name for version in found}
    rows = [{**dict(each), "from": names.get(each.parent or ""), "made_by": each.provenance.get("made_by", "add")} for each in found]
    show(found, json, table(rows, ("id", "name", "rows", "made_by", "from"), "No version."))


COMMANDS = (report, fix, split, merge, pick, edit, drop, versions)


def _options(base_model: str | None, max_length: int | None, chat_template: str | None, against: list[str] | None) -> ReportOptions:
    return {
        "base_model": base_model,
        "max_length": max_length,
        "chat_template": chat_template,
        "against": against or [],
        "allow_path": True,
    }


def _values(assignments: list[str]) -> dict[str, str]:
    """`NAME=VALUE` each; a name may be written as in the text, such as {{name}}."""
    values = {}
    for each in assignments:
        name, separator, value = each.partition("=")
        if not separator or not name.strip():
            raise StudioError(f"--fill {each!r} has no '='.", "Write it as NAME=VALUE.")
        values[name.strip()] = value
    return values


def _tell(stage: str, share: float) -> None:
    if sys.stderr.isatty():
        redraw(f"{stage}: {share:.0%}", is_last=share >= 1)


def _made(dataset: Dataset) -> str:
    return f"{dataset.name}: {dataset.rows:,} rows. ID {dataset.id}."


def _row(to: str) -> dict[str, Any]:
    import json

    text = to
    if to == "-":
        text = sys.stdin.read()
    elif not to.lstrip().startswith("{"):
        text = read_text(Path(to))
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise StudioError(
            f"--to is not valid JSON ({exc}).", 'Write such as {"messages": [{"role": "user", "content": "…"}, …]}.'
        ) from None
    if not isinstance(row, dict):
        raise StudioError("--to is no JSON object.", 'Write such as {"messages": [{"role": "user", "content": "…"}, …]}.')
    return row


def _report_text(made: DatasetReport, dataset: str) -> str:
    lines = [_lengths("Rows", made.lengths), _lengths("Answers", made.answers)]
    if made.languages:
        languages = "Languages: " + ", ".join(f"{each.language} {each.share:.1%}" for each in made.languages[:6])
        if asked := (made.sampled or {}).get("language_mix"):
            languages += f" (of {asked:,} rows)"
        lines.append(languages)
    lines += ["", *(_histogram(made.lengths)), ""]
    if not made.findings:
        return "\n".join([*lines, f"Nothing is wrong with the {made.rows:,} rows."])
    rows = [{**dict(finding), "rows": _numbers(finding)} for finding in made.findings]
    lines.append(table(rows, FIELDS, ""))
    for finding in made.findings:
        lines += ["", f"{finding.check}: {finding.explanation}", f"  Fix: {finding.fix}"]
        if finding.names:
            lines.append(f"  Found: {listed(f'{name} in {rows:,}' for name, rows in finding.names.items())}")
        lines += [f"  row {example.row}: {example.text}" for example in finding.examples[:2]]
    say(f"To fix: studio data fix {dataset} --check {made.findings[0].check}")
    return "\n".join(lines)


def _numbers(finding: Finding) -> str:
    return " ".join(map(str, finding.rows[:SHOWN_ROWS])) + " …" * (finding.count > SHOWN_ROWS)


def _lengths(title: str, lengths: Lengths) -> str:
    percentiles = f"p50 {lengths.p50:,}, p95 {lengths.p95:,}, p99 {lengths.p99:,}, max {lengths.max:,}"
    return f"{title} in {lengths.unit}: {percentiles}, mean {lengths.mean:,.1f}"


def _histogram(lengths: Lengths, bins: int = 12) -> list[str]:
    """A few bars of signs; the bins of the report taken together by threes or fours."""
    found = lengths.histogram
    step = max(1, -(-len(found) // bins))
    groups = [found[start : start + step] for start in range(0, len(found), step)]
    counts = [sum(each.count for each in group) for group in groups]
    most = max([1, *counts])
    return [
        f"{group[0].start:>7,} - {group[-1].end - 1:<7,} {'#' * -(-count * BAR // most)} {count:,}"
        for group, count in zip(groups, counts, strict=True)
    ]
