"""Judge a comparison: who judges and by what, what it will take, what came of it, and what speaks against the judge.

Knows nothing of how judges are asked: it starts a judgement and shows its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import JudgeKind, Judgement, JudgementReadings, RaterPair, Verdict
from studio.services import Studio
from studio.ui import choices, pieces, words
from studio.ui.handlers import QUIET, steady, tells
from studio.ui.page import Frame, stamp, stamp_box

SHOWN_VERDICTS = 40
BY_REFERENCE = "reference"
AUTOMATIC = ""


class JudgePart:
    """Choices, then readings, then every question and reply."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        with gr.Accordion("Judge: which is better?", open=False, elem_id="compare-judging"):
            self.judge = gr.Dropdown(
                label="Judge",
                info="A rule on the references, a model, what a model itself would say (likelihood:MODEL), or URL#MODEL. Several with commas are a panel.",
                allow_custom_value=True,
                elem_id="judge-who",
            )
            with gr.Accordion("How a model is asked", open=False):
                self.template = gr.Dropdown(
                    [("the usual for this model", AUTOMATIC), *((row.title, row.name) for row in studio.judging.templates())],
                    value=AUTOMATIC,
                    label="Question",
                    info="Every pair is asked in both orders.",
                    elem_id="judge-template",
                )
                self.criteria = gr.Textbox("", label="Criteria", info="What the judge must go by, in your words.", lines=2)
                self.budget = gr.Number(
                    None,
                    label="Budget in tokens",
                    info="Asking stops once so many are read and written; empty for no limit. What was judged is kept.",
                    precision=0,
                    minimum=1,
                    elem_id="judge-budget",
                )
            self.estimate = pieces.panel(elem_classes="hint")
            self.start = gr.Button("Judge", variant="primary", elem_id="judge-start")
            self.notice = pieces.panel(elem_id="judge-notice", elem_classes="notice-place")
            self.readings = pieces.panel(elem_id="judge-readings")
            with gr.Accordion("Every question and reply", open=False):
                self.verdicts = pieces.panel(elem_id="judge-verdicts")
        self._stamp = stamp_box("judge")
        self._shown = [self.readings, self.verdicts, self._stamp]

    def wire(self, tab: gr.Tab, timer: gr.Timer) -> None:
        place = self._page.place
        tab.select(steady(self.enter), inputs=[self.judge], outputs=[self.judge], **QUIET)
        self._page.redraw(
            "readings", [tab.select, place.comparison.change], steady(self.look), [place.comparison, self._stamp], self._shown
        )
        timer.tick(steady(self.tick), inputs=[place.tab, place.comparison, self._stamp], outputs=self._shown, **QUIET)
        chosen = [place.comparison, self.judge, self.template]
        self._page.redraw("estimate", [field.change for field in chosen], steady(self.estimate_shown), chosen, [self.estimate])
        asked = [*chosen, self.criteria, self.budget]
        self.start.click(tells(self.notice)(self.run), inputs=asked, outputs=[self.notice, *self._shown], **QUIET)

    def enter(self, judge: str | None) -> Any:
        offered = [
            ("The references, by rule (exact match, then ROUGE-L over words of their script)", BY_REFERENCE),
            *choices.judges(self._studio),
        ]
        return gr.Dropdown(choices=offered, value=judge or BY_REFERENCE)

    def estimate_shown(self, comparison: str, judge: str | None, template: str) -> str:
        if not comparison or not judge:
            return ""
        try:
            will = self._studio.judging.estimate(comparison, judge, template=template or None)
        except StudioError:
            return ""
        parts = [words.count(will.questions, "question")]
        if will.prompt_tokens:
            parts.append(f"about {will.prompt_tokens:,} tokens to read")
        if will.completion_tokens:
            parts.append(f"at most {will.completion_tokens:,} to write")
        if will.seconds:
            parts.append(f"about {words.duration(will.seconds)}")
        return pieces.piece("sentence", text=f"{', '.join(parts)}.")

    def run(self, comparison: str, judge: str | None, template: str, criteria: str, budget: float | None) -> dict[Any, Any]:
        if not comparison:
            raise StudioError("There is no comparison to judge.", "Compare first.")
        tokens = int(budget or 0) or None
        self._studio.judging.judge(comparison, judge or None, template=template or None, criteria=criteria, budget_tokens=tokens)
        return self.look(comparison, "")

    def tick(self, tab: str, comparison: str, shown: str) -> Any:
        if tab != "compare":
            return gr.skip()
        return self.look(comparison, shown)

    def look(self, comparison: str, shown: str) -> Any:
        rows = self._studio.judging.list(comparison) if comparison else []
        now = stamp(comparison, [(row.id, row.status, row.progress.step) for row in rows])
        if now == shown:
            return gr.skip()
        verdicts = self._studio.judging.verdicts(rows[0].id, limit=SHOWN_VERDICTS) if rows else []
        return {
            self.readings: pieces.piece("judgements", judgements=[_judgement(row) for row in rows]),
            self.verdicts: pieces.piece("verdicts", verdicts=[_verdict(row) for row in verdicts], limit=SHOWN_VERDICTS),
            self._stamp: now,
        }


def _verdict(row: Verdict) -> dict[str, Any]:
    return {**row.model_dump(mode="json"), "order": f"{words.short(row.a)} first, {words.short(row.b)} second"}


def _judgement(row: Judgement) -> dict[str, Any]:
    """Data of one part of templates/judgements.html."""
    step, steps = row.progress.step or 0, row.progress.max_steps or 0
    shown: dict[str, Any] = {
        "judge": row.judge,
        "role": _role(row),
        "state": row.status,
        "reason": row.reason,
        "fix": row.fix,
        "part": step / max(1, steps),
        "progress": " · ".join(item for item in (f"{step} of {steps} verdicts", words.left(row.progress.eta_s)) if item),
        "pairs": row.pairs,
        "able": row.able,
    }
    if row.pairs is None:  # it has not ended
        return shown
    warnings = list(row.warnings or [])
    if row.is_cut_by_budget:
        warnings.insert(0, "The budget ended the asking before all pairs were judged.")
    intervals = row.ci95 or {}
    return {
        **shown,
        "wins": [_win(name, share, intervals.get(name)) for name, share in (row.win_rate or {}).items()],
        "facts": _facts(row),
        "categories": [(name, _shares(part.win_rate)) for name, part in (row.categories or {}).items()],
        "warnings": warnings,
        "panel": [_member(name, own) for name, own in (row.panel or {}).items()],
        "raters": [rater_row(pair) for pair in row.agreement.pairs] if row.agreement else [],
    }


def _role(row: Judgement) -> str:
    if row.kind == JudgeKind.PANEL:
        return "panel: the majority of its judges"
    return "a judge of the panel" if row.member_of else ""


def _member(name: str, own: JudgementReadings) -> dict[str, str]:
    """One judge of a panel, for a row of the table."""
    agreed = own.reference_agreement
    return {
        "judge": words.short(name),
        "wins": ", ".join(_shares(own.win_rate)) or "no verdict",
        "invalid": f"{own.invalid} of {own.verdicts}",
        "first": words.share(own.first_win_rate) or "–",
        "swap": words.share(own.swap_consistency) or "–",
        "agrees": (agreed and f"{words.share(agreed.agreement)} of {agreed.n}") or "–",
    }


def rater_row(row: RaterPair) -> dict[str, Any]:
    """Two raters, for a row of a table of agreement."""
    kappa = "–"
    if row.kappa is not None:
        kappa = f"{row.kappa:.2f}"
    if row.kappa_ci95:
        kappa += f" ({row.kappa_ci95[0]:.2f} to {row.kappa_ci95[1]:.2f})"
    return {"one": _rater(row.a), "other": _rater(row.b), "kappa": kappa, "agreement": words.share(row.agreement) or "–", "n": row.n}


def _win(name: str, share: float | None, interval: list[float] | None) -> dict[str, Any]:
    if share is None or interval is None:
        return {"name": words.short(name), "text": "no verdict", "share": 0.0, "low": 0.0, "high": 0.0}
    text = words.share_with_interval(share, interval)
    return {"name": words.short(name), "text": text, "share": share, "low": interval[0], "high": interval[1]}


def _shares(rates: Mapping[str, float | None] | None) -> list[str]:
    return [f"{words.short(name)} {words.share(share)}" for name, share in (rates or {}).items() if share is not None]


def _rater(name: str) -> str:
    """A rater in few letters; of a panel, its judges."""
    judges = [judge.rpartition("#")[2] for judge in name.split(",")]
    if len(judges) > 1:
        return f"panel of {', '.join(judges)}"
    return name.removeprefix("https://").removeprefix("http://")


def _invalid(row: Judgement) -> str:
    """How many replies hold no verdict, and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted((row.invalid_reasons or {}).items()))
    return f"{row.invalid} ({reasons})" if reasons else str(row.invalid)


def _facts(row: Judgement) -> list[tuple[str, str]]:
    """What speaks for and against the judge; what can't be said is left out."""
    found = {
        "same verdict in both orders": words.share(row.swap_consistency),
        "the answer shown first wins": words.share(row.first_win_rate),
        "the longer answer wins": words.share(row.longer_win_rate),
        "win rate at equal length": ", ".join(_shares(row.length_controlled_win_rate)),
        "replies without a verdict": _invalid(row),
    }
    if row.reference_agreement:
        found["agrees with the references"] = f"{words.share(row.reference_agreement.agreement)} of {row.reference_agreement.n}"
    longest, constant = row.baselines and row.baselines.longest.references, row.baselines and row.baselines.constant_answer
    if longest:
        found["“the longest wins” would agree"] = words.share(longest.agreement)
    if constant:
        found["a constant answer wins"] = f"{words.share(constant.win_rate)} of {constant.n}"
    return [(label, value) for label, value in found.items() if value]
