"""`studio metrics`, `studio agreement`, `studio leaderboard`: figures from files that anybody may have made, or from rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.terminal import JsonFlag, open_studio, read_text, show, table
from studio.errors import StudioError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from studio.evaluation.scores import Pair
    from studio.records import Leaderboard, Rating

FACTS = ("exact_match", "bytes", "seconds_per_answer", "training", "training_seconds", "eval_loss")


def metrics(
    comparison: Annotated[str | None, typer.Argument(metavar="[COMPARISON]", help="Measure the answers of a comparison instead.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Lines with prediction, and reference or references.")
    ] = None,
    stemmer: Annotated[bool, typer.Option("--stemmer", help="ROUGE on word stems (Porter).")] = False,
    json_schema: Annotated[Path | None, typer.Option(metavar="FILE", help="Also the share that fits this JSON schema.")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="REGEX", help="Also the share that holds this pattern.")] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Of a comparison: also what each model makes of the references.")
    ] = False,
    mauve_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also MAUVE, on features of this base model; from 100 texts on.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure predictions against references: those of a file, or the answers of a comparison.

    What a metric can't say anything about is null, with the reason.
    """
    from studio.evaluation import metrics as scores
    from studio.evaluation import predictions as files

    if (comparison is None) == (predictions is None):
        raise StudioError("Give either --predictions or a comparison.", "--predictions takes a file, the argument an ID or a name.")
    if predictions is not None:
        if perplexity:
            raise StudioError("--perplexity needs the models, not only their answers.", "Name a comparison.")
        pairs = files.read(predictions)
        measured = scores.measure(pairs, stemmer=stemmer, schema=_schema(json_schema), pattern=pattern)
        _add_mauve(measured, pairs, mauve_model)
        show(measured, json, _figures_text(measured))
        return
    if stemmer:
        raise StudioError("--stemmer measures a file only.", "Leave it out.")
    found = open_studio().comparisons.metrics(
        str(comparison), perplexity=perplexity, schema=_schema(json_schema), pattern=pattern, mauve_model=mauve_model
    )
    rows = [{"name": name, **figures.model_dump()} for name, figures in found.contestants.items()]
    listed = (metric.name for metric in scores.shown_on(scores.Display.COMMAND))
    known = [name for name in listed if any(row.get(name) is not None for row in rows)]
    lines = [table(rows, ("name", "n", *known, "tokens", "seconds"), "Nobody has answered yet.")]
    for name, figures in found.contestants.items():
        lines += [f"{name}: {line}" for line in scores.notes(figures.reasons, figures.counted, figures.tokenizers, figures.n)]
    show(found, json, "\n".join(lines))


def _add_mauve(measured: dict[str, Any], pairs: Sequence[Pair], model: str | None) -> None:
    """MAUVE beside the other figures of a file; null with the reason where no model was named or the texts are too few."""
    from studio.evaluation.scores import NO_MODEL

    measured |= {"mauve": None, "mauve_details": None}
    reason = NO_MODEL
    if model is not None:
        figure = open_studio().comparisons.mauve(pairs, model)
        measured |= {"mauve": figure.mauve, "mauve_details": figure.model_dump()}
        reason = figure.reason
    if reason:
        measured["reasons"]["mauve"] = reason


def _figures_text(measured: Mapping[str, Any]) -> str:
    """One `name: value` a line, and below what the figures leave out."""
    from studio.evaluation import metrics as scores

    reported = {metric.name for metric in scores.METRICS} | {"n"}
    lines = [f"{name}: {value:.4g}" for name, value in measured.items() if name in reported and value is not None]
    return "\n".join([*lines, *scores.notes(measured["reasons"], measured["counted"], measured["tokenizers"], measured["n"])])


def agreement(
    verdicts: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="VerdictLine lines with rater.")],
    truth: Annotated[str, typer.Option(metavar="R1,R2", help="Raters whose majority everyone is held against.")] = "",
    invalid: Annotated[str, typer.Option(metavar="tie|skip", help="What an invalid verdict counts as.")] = "tie",
    json: JsonFlag = False,
) -> None:
    """Do raters agree with each other, and with the majority?"""
    from studio.evaluation import agreement as raters
    from studio.evaluation import verdicts as lines
    from studio.records import Agreement

    if invalid not in ("tie", "skip"):
        raise StudioError(f"--invalid {invalid} is unknown.", "Use tie or skip.")
    names = [name.strip() for name in truth.split(",") if name.strip()]
    found = Agreement(**raters.agreement(lines.read(verdicts), names, invalid))
    pairs = table(found.pairs, ("a", "b", "kappa", "kappa_ci95", "agreement", "n"), "There is one rater only: nobody to agree with.")
    majority = [{"rater": name, **score.model_dump()} for name, score in found.majority.items()]
    against = table(majority, ("rater", "accuracy", "precision", "recall", "f1", "n"), "")
    show(found, json, f"{pairs}\n{against}".strip())


def leaderboard(
    comparisons: Annotated[
        list[str] | None, typer.Argument(metavar="[COMPARISON]...", help="Whose verdicts count; none means all.")
    ] = None,
    verdicts: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Rate from a file of verdicts instead.")] = None,
    human_only: Annotated[bool, typer.Option("--human-only", help="People's votes only.")] = False,
    data: Annotated[str | None, typer.Option(metavar="ID", help="Only comparisons on the rows of this dataset.")] = None,
    json: JsonFlag = False,
) -> None:
    """Ratings: win rate, Bradley-Terry and Elo, with intervals."""
    if verdicts is not None:
        from studio.evaluation import ratings
        from studio.evaluation import verdicts as lines
        from studio.records import Leaderboard

        if comparisons or human_only or data:
            raise StudioError("--verdicts rates a file and nothing else.", "Leave out the comparisons, --data and --human-only.")
        found = Leaderboard(**ratings.leaderboard(lines.read(verdicts)))
    else:
        found = open_studio().ratings.leaderboard(comparisons or [], human_only=human_only, with_facts=True, data=data)
    show(found, json, _leaderboard_text(found))


def _leaderboard_text(found: Leaderboard) -> str:
    rows = [{**row.model_dump(), **_rounded(row)} for row in found.contestants]
    known = [key for key in FACTS if any(row[key] is not None for row in rows)]
    columns = ("name", "bradley_terry", "elo", "win_rate", "ci95", "games", *known)
    return "\n".join([table(rows, columns, "There are no verdicts yet."), *found.warnings])


def _rounded(row: Rating) -> dict[str, str]:
    low, high = row.ci95
    return {
        "bradley_terry": f"{row.bradley_terry:.0f}",
        "elo": f"{row.elo:.0f}",
        "win_rate": f"{row.win_rate:.3f}",
        "ci95": f"{low:.2f}-{high:.2f}",
    }


def _schema(path: Path | None) -> dict[str, JsonValue] | None:
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
