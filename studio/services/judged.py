"""What judges have said of a training's adapter, for the table of runs. Reads rows; knows nothing of how judges are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.db.models import AdapterRow, ComparisonRow, JudgementRow


def judged(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Job ID -> {"win_rate", "ci95", "judge", "comparison"} of the newest finished judgement with its adapter; None where there is none."""
    adapters = session.scalars(select(AdapterRow).where(AdapterRow.job_id.in_(job_ids))).all()
    query = select(JudgementRow, ComparisonRow).join(ComparisonRow, JudgementRow.comparison_id == ComparisonRow.id)
    newest_first = session.execute(query.order_by(JudgementRow.created_at.desc())).all() if adapters else []
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(job_ids)
    for adapter in adapters:
        looks = (_of(adapter, judgement, comparison) for judgement, comparison in newest_first)
        found[str(adapter.job_id)] = next((look for look in looks if look), None)
    return found


def _of(adapter: AdapterRow, judgement: JudgementRow, comparison: ComparisonRow) -> dict[str, Any] | None:
    rates = judgement.readings.get("win_rate") or {}
    names = (f"{adapter.base_model}:{adapter.name}", *([adapter.name] if comparison.base_model == adapter.base_model else []))
    name = next((name for name in names if rates.get(name) is not None), None)
    if name is None:
        return None
    interval = (judgement.readings.get("ci95") or {}).get(name)
    return {"win_rate": rates[name], "ci95": interval, "judge": judgement.judge, "comparison": comparison.name}
