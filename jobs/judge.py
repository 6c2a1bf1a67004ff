"""The light job `judge`: one judge, or a panel of judges one after the other, whose majority is kept as a judgement of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete

from jobs.judgement import JudgementRun, Progress, as_verdict
from jobs.light import LightContext
from jobs.panel import AnswerPair, PanelJudge, said_together
from studio.db.models import VerdictRow
from studio.evaluation import agreement
from studio.records import Verdict, Winner

Look = tuple[str, str, str]  # prompt, shown first, shown second


def run(context: LightContext) -> dict[str, Any]:
    """Judge what has no verdict yet, then read the verdicts. Raises EngineError when a judge can't be reached, LightJobStopped when asked."""
    attempt = JudgementRun(context, context.config)
    try:
        if isinstance(attempt.judge, PanelJudge):
            found = _run_panel(attempt, attempt.judge)
        else:
            found = attempt.finish()
    finally:
        attempt.judge.close()
    return {"judgement": attempt.judgement.id, "verdicts": found["verdicts"], "cached": found["cached"]}


def _run_panel(panel: JudgementRun, judge: PanelJudge) -> dict[str, Any]:
    """Each judge by itself, then what most of them say of each look, and how far they agree."""
    config = panel.config
    budget = config.get("budget_tokens")
    if budget:  # an equal part for each
        budget = max(1, int(budget) // len(config["members"]))
    runs, found = [], {}
    for number, member in enumerate(config["members"]):
        run = JudgementRun(panel.context, {**config, **member, "budget_tokens": budget}, judge.judges[member["judge"]])
        found[member["judge"]] = run.finish(_part(panel.context, number, len(config["members"])))
        runs.append(run)
    _keep_majority(panel, runs)
    lines = [as_verdict(row) for run in runs for row in run.rows() if not row.is_probe]
    readings = panel.read()
    readings |= {name: sum(own[name] for own in found.values()) for name in ("cached", "prompt_tokens", "completion_tokens", "seconds")}
    warnings = [*readings["warnings"], *(f"{name}: {said}" for name, own in found.items() for said in _against(own))]
    readings |= {"warnings": warnings, "is_cut_by_budget": any(own["is_cut_by_budget"] for own in found.values())}
    return panel.keep_readings({**readings, "panel": found, "agreement": agreement.agreement(lines, list(found), invalid="skip")})


def _part(context: LightContext, number: int, count: int) -> Progress:
    """Progress of one of `count` judges as progress of the whole."""
    return lambda step, steps: context.progress(number * steps + step, count * steps)


def _against(own: dict[str, Any]) -> list[str]:
    """What speaks against one judge of a panel whatever the others say."""
    said = []
    if own["able"] is False:
        said.append(f"agrees with the references in {own['reference_agreement']['agreement']:.0%} only.")
    if own["invalid"]:
        said.append(f"{own['invalid']} replies held no verdict.")
    return said


def _keep_majority(panel: JudgementRun, runs: Sequence[JudgementRun]) -> None:
    """One verdict for each look that a judge has taken. Made afresh: a restart may know more."""
    said: dict[Look, dict[str, Verdict]] = {}
    for run in runs:
        for row in run.rows():
            own = said.setdefault((row.prompt_id, row.a, row.b), {})
            own[row.rater] = Verdict(prompt_id=row.prompt_id, a=row.a, b=row.b, winner=Winner(row.winner), probe=row.is_probe)
    rows = []
    for (prompt_id, a, b), verdicts in said.items():
        is_probe = any(verdict.probe for verdict in verdicts.values())
        pair = AnswerPair(panel.prompts[prompt_id], a, b, (), (), is_probe)
        rows.append(panel.row(said_together(pair, verdicts)))
    with panel.context.db.write() as session:
        session.execute(delete(VerdictRow).where(VerdictRow.judgement_id == panel.judgement.id))
        session.add_all(rows)
