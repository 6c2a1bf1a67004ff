"""`studio judge` and `studio preferences`: verdicts on a comparison, and the dataset that comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, follow, leave_unless_succeeded, load_settings, open_studio, say, show
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.records import Judgement


def judge(
    comparison: Annotated[str, typer.Argument(metavar="COMPARISON")],
    judge: Annotated[
        str | None,
        typer.Option(metavar="J", help="reference (the rule; default where references exist), likelihood:MODEL, a model, or URL#MODEL."),
    ] = None,
    criteria: Annotated[str, typer.Option(metavar="TEXT", help="What the judge must go by.")] = "",
    template: Annotated[
        str | None, typer.Option(metavar="T", help="How a model is asked: pair, brief, mt-bench, mt-bench-single, score or rubric.")
    ] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Stop asking once this many tokens are spent.")] = None,
    probes: Annotated[bool, typer.Option(help="Also let a constant answer play, to try the judge.")] = True,
    concurrency: Annotated[int | None, typer.Option(min=1, max=64, help="Questions that wait together.")] = None,
    json: JsonFlag = False,
) -> None:
    """Judge every pair of a comparison in both orders, and say what speaks against the judge."""
    from studio import supervisor

    settings = load_settings()
    studio = open_studio(settings)
    will = studio.judging.estimate(comparison, judge, template=template)
    tokens = f"about {will.prompt_tokens:,} tokens to read, at most {will.completion_tokens:,} to write"
    say(f"{will.judge}: {will.questions} questions, {tokens}." + _time(will.seconds))
    made = studio.judging.judge(
        comparison, judge, criteria=criteria, template=template, budget_tokens=budget_tokens, probes=probes, concurrency=concurrency
    )
    needs_engine = made.kind == "model" and "#" not in made.judge
    with supervisor.assistance(settings, say, queues=("light",), engine=needs_engine):
        job = follow(studio, str(made.job))
    done = studio.judging.show(made.id)
    show(done, json, text(done))
    leave_unless_succeeded(job)


def _time(seconds: float | None) -> str:
    return f" About {seconds:.0f} s." if seconds else ""


def text(done: Judgement) -> str:
    """The readings for a person."""
    lines = [f"{done.judge} on {done.pairs or 0} pairs, both orders"]
    for name, share in (done.win_rate or {}).items():
        interval = (done.ci95 or {}).get(name)
        won = "no valid verdict"
        if share is not None and interval:
            won = f"wins {share:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"
        lines.append(f"  {name}: {won}")
    shares = {
        "same verdict in both orders": done.swap_consistency,
        "first answer wins": done.first_win_rate,
        "longer answer wins": done.longer_win_rate,
    }
    lines += [f"  {what}: {share:.0%}" for what, share in shares.items() if share is not None]
    return "\n".join([*lines, *(f"  ! {warning}" for warning in done.warnings or [])])


def preferences(
    comparisons: Annotated[list[str], typer.Argument(metavar="COMPARISON...")],
    name: Annotated[str | None, typer.Option(help="Name of the dataset.")] = None,
    min_margin: Annotated[float, typer.Option(metavar="M", help="How decided a pair must be: 0 any difference, 1 no doubt.")] = 0.5,
    source: Annotated[str, typer.Option(metavar="judge|human|both", help="Whose word counts; both takes people's first.")] = "both",
    json: JsonFlag = False,
) -> None:
    """Turn decided pairs into a preference dataset that knows where it comes from."""
    from studio.records import PreferenceSource  # brings pydantic: not for `studio --help`

    if source not in tuple(PreferenceSource):
        raise StudioError(f"--source {source} is unknown.", "Use judge, human or both.")
    made = open_studio().preferences.make(comparisons, name=name, min_margin=min_margin, source=PreferenceSource(source))
    left_out = ", ".join(f"{count} {reason}" for reason, count in made.provenance["left_out"].items())
    say(f"Left out: {left_out}." if left_out else "Nothing was left out.")
    show(made, json, f"{made.name} ({made.id}): {made.rows} pairs. Next: studio train --data {made.name} --recipe dpo …")
