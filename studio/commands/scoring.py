"""`studio metrics`, `studio agreement`, `studio leaderboard`: figures from files that anybody may have made, or from rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from studio.commands.terminal import JsonFlag, open_studio, read_text, show, table
from studio.errors import StudioError


def metrics(
    predictions: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Lines with prediction, and reference or references.")],
    stemmer: Annotated[bool, typer.Option("--stemmer", help="ROUGE on word stems (Porter).")] = False,
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="Also the share that fits this JSON schema.")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="REGEX", help="Also the share that holds this pattern.")] = None,
    json: JsonFlag = False,
) -> None:
    """Measure predictions against references."""
    from studio.evaluation import metrics as scores

    pairs = scores.read(predictions)
    found = scores.measure(pairs, stemmer=stemmer, schema=_schema(json_schema), pattern=pattern)
    show(found, json)


def agreement(
    verdicts: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Verdict lines with rater.")],
    truth: Annotated[str, typer.Option(metavar="R1,R2", help="Raters whose majority everyone is held against.")] = "",
    invalid: Annotated[str, typer.Option(metavar="tie|skip", help="What an invalid verdict counts as.")] = "tie",
    json: JsonFlag = False,
) -> None:
    """Do raters agree with each other, and with the majority?"""
    from studio.evaluation import agreement as raters
    from studio.evaluation import verdicts as lines

    if invalid not in ("tie", "skip"):
        raise StudioError(f"--invalid {invalid} is unknown.", "Use tie or skip.")
    names = [name.strip() for name in truth.split(",") if name.strip()]
    found = raters.agreement(lines.read(verdicts), names, "tie" if invalid == "tie" else "skip")
    pairs = table(found["pairs"], ("a", "b", "kappa", "agreement", "n"), "There is one rater only: nobody to agree with.")
    majority = [{"rater": name, **row} for name, row in found["majority"].items()]
    held = table(majority, ("rater", "accuracy", "precision", "recall", "f1", "n"), "") if majority else ""
    show(found, json, f"{pairs}\n{held}".strip())


def leaderboard(
    comparisons: Annotated[
        list[str] | None, typer.Argument(metavar="[COMPARISON]...", help="Whose verdicts count; none means all.")
    ] = None,
    verdicts: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Rate from a file of verdicts instead.")] = None,
    human_only: Annotated[bool, typer.Option("--human-only", help="People's votes only.")] = False,
    json: JsonFlag = False,
) -> None:
    """Ratings: win rate, Bradley-Terry and Elo, with intervals."""
    if verdicts is not None:
        from studio.evaluation import ratings
        from studio.evaluation import verdicts as lines

        if comparisons or human_only:
            raise StudioError("--verdicts rates a file and nothing else.", "Leave out the comparisons and --human-only.")
        found = ratings.leaderboard(lines.read(verdicts))
    else:
        found = open_studio().ratings.leaderboard(comparisons or [], human_only=human_only)
    show(found, json, _leaderboard_text(found))


def _leaderboard_text(found: dict[str, Any]) -> str:
    columns = ("name", "bradley_terry", "elo", "win_rate", "ci95", "games")
    lines = [table([_rounded(row) for row in found["contestants"]], columns, "There are no verdicts yet.")]
    return "\n".join([*lines, *found["warnings"]])


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    whole = {key: f"{row[key]:.0f}" for key in ("bradley_terry", "elo")}
    interval = f"{row['ci95'][0]:.2f}-{row['ci95'][1]:.2f}"
    return {**row, **whole, "win_rate": f"{row['win_rate']:.3f}", "ci95": interval}


def _schema(path: Path | None) -> dict[str, Any] | None:
    import json

    if path is None:
        return None
    try:
        value = json.loads(read_text(path))
    except ValueError as exc:
        raise StudioError(f"{path} is not valid JSON ({exc}).", "Give a JSON schema.") from None
    if not isinstance(value, dict):
        raise StudioError(f"{path} is no JSON schema: it holds no object.", "Give a JSON schema.")
    return value
