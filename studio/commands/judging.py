"""`studio judge` and `studio preferences`: verdicts on a comparison, and the dataset that comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, follow, leave_unless_succeeded, load_settings, open_studio, say, show
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.records import Judgement, JudgementReadings, RaterPair


def judge(
    comparison: Annotated[str, typer.Argument(metavar="COMPARISON")],
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="J",
            help="reference (the rule; default where references exist), likelihood:MODEL, a model, or URL#MODEL; several with commas are a panel.",
        ),
    ] = None,
    criteria: Annotated[str, typer.Option(metavar="TEXT", help="What the judge must go by.")] = "",
    template: Annotated[
        str | None, typer.Option(metavar="T", help="How a model is asked: pair, brief, mt-bench, mt-bench-single, score or rubric.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop asking once this many tokens are spent; the judges of a panel share them.")
    ] = None,
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
    needs_engine = any(asks_engine(name) for name in made.judge.split(","))
    with supervisor.assistance(settings, say, queues=("light",), engine=needs_engine):
        job = follow(studio, str(made.job))
    done = studio.judging.show(made.id)
    show(done, json, text(done))
    leave_unless_succeeded(job)


def asks_engine(judge: str) -> bool:
    """Whether our own engine is asked."""
    return judge != "reference" and not judge.startswith("likelihood:") and "#" not in judge


def _time(seconds: float | None) -> str:
    return f" About {seconds:.0f} s." if seconds else ""


def text(done: Judgement) -> str:
    """The readings for a person."""
    lines = [f"{done.judge} on {done.pairs or 0} pairs, both orders"]
    if done.panel:
        lines = [f"The majority of {len(done.panel)} judges on {done.pairs or 0} pairs, both orders"]
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
    if done.invalid is not None:
        lines.append(f"  replies without a verdict: {done.invalid}{_reasons(done)}")
    for name, own in (done.panel or {}).items():
        lines.append(f"  {name}: {_of_member(own)}")
    if done.agreement:
        lines += [f"  {_agreed(pair)}" for pair in done.agreement.pairs]
    return "\n".join([*lines, *(f"  ! {warning}" for warning in done.warnings or [])])


def _reasons(done: JudgementReadings) -> str:
    if not done.invalid_reasons:
        return ""
    return f" ({', '.join(f'{count} {reason}' for reason, count in sorted(done.invalid_reasons.items()))})"


def _of_member(own: JudgementReadings) -> str:
    """One judge of a panel in a line."""
    wins = [f"{name} wins {share:.0%}" for name, share in (own.win_rate or {}).items() if share is not None]
    said = [*wins, f"{own.invalid} replies without a verdict{_reasons(own)}"]
    if own.swap_consistency is not None:
        said.append(f"same verdict in both orders {own.swap_consistency:.0%}")
    if own.reference_agreement is not None:
        said.append(f"agrees with the references in {own.reference_agreement.agreement:.0%}")
    return ", ".join(said)


def _agreed(pair: RaterPair) -> str:
    said = f"{pair.a} and {pair.b}: "
    if pair.agreement is None:
        return said + "no verdict on the same pair"
    kappa = "kappa can't be said"
    if pair.kappa is not None:
        kappa = f"kappa {pair.kappa:.2f}"
    if pair.kappa_ci95:
        kappa += f" ({pair.kappa_ci95[0]:.2f} to {pair.kappa_ci95[1]:.2f})"
    return said + f"{kappa}, the same verdict in {pair.agreement:.0%} of {pair.n}"


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
