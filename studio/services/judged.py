"""What judges have said of a training's adapter, for the table of runs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.db.models import AdapterRow, ComparisonRow, JudgementRow
from studio.records import RunVerdict


def judged(session: Session, job_ids: Sequence[str]) -> dict[str, RunVerdict | None]:
    """Job ID -> the newest finished judgement with its adapter; None where there is none."""
    found: dict[str, RunVerdict | None] = dict.fromkeys(job_ids)
    adapters = session.scalars(select(AdapterRow).where(AdapterRow.job_id.in_(job_ids))).all()
    if not adapters:
        return found
    query = select(JudgementRow, ComparisonRow).join(ComparisonRow, JudgementRow.comparison_id == ComparisonRow.id)
    newest_first = session.execute(query.order_by(JudgementRow.created_at.desc())).all()
    for adapter in adapters:
        verdicts = (_of(adapter, judgement, comparison) for judgement, comparison in newest_first)
        found[str(adapter.job_id)] = next((verdict for verdict in verdicts if verdict), None)
    return found


def _of(adapter: AdapterRow, judgement: JudgementRow, comparison: ComparisonRow) -> RunVerdict | None:
    rates = judgement.readings.get("win_rate") or {}
    names = [f"{adapter.base_model}:{adapter.name}"]
    if comparison.base_model == adapter.base_model:
        names.append(adapter.name)
    name = next((name for name in names if rates.get(name) is not None), None)
    if name is None:
        return None
    interval = (judgement.readings.get("ci95") or {}).get(name)
    return RunVerdict(win_rate=rates[name], ci95=interval, judge=judgement.judge, comparison=comparison.name)
