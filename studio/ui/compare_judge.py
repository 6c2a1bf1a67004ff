"""Judge a comparison: who judges and by what, what it will take, what came of it, and what speaks against the judge.

Knows nothing of how judges are asked: it starts a judgement and shows its rows.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
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
                info="A rule on the references, a model, what a model itself would say (likelihood:MODEL), or URL#MODEL.",
                allow_custom_value=True,
                elem_id="judge-who",
            )
            with gr.Accordion("How a model is asked", open=False):
                self.template = gr.Dropdown(
                    [("the usual for this model", AUTOMATIC), *((row["title"], row["name"]) for row in studio.judging.templates())],
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
        for event in (tab.select, place.comparison.change):
            event(steady(self.look), inputs=[place.comparison, self._stamp], outputs=self._shown, **QUIET)
        timer.tick(steady(self.tick), inputs=[place.tab, place.comparison, self._stamp], outputs=self._shown, **QUIET)
        for change in (self.judge.change, self.template.change, place.comparison.change):
            change(steady(self.foretell), inputs=[place.comparison, self.judge, self.template], outputs=[self.estimate], **QUIET)
        asked = [place.comparison, self.judge, self.template, self.criteria, self.budget]
        self.start.click(tells(self.notice)(self.run), inputs=asked, outputs=[self.notice, *self._shown], **QUIET)

    def enter(self, judge: str | None) -> Any:
        models = self._studio.chat.available()
        offered = [
            ("The references, by rule (exact match, then ROUGE-L)", BY_REFERENCE),
            *((f"{name} answers A, B or tie" + (" (toy)" if choices.is_toy(name) else ""), name) for name in models),
            *((f"What {name} itself would say", f"likelihood:{name}") for name in models),
        ]
        return gr.Dropdown(choices=offered, value=judge or BY_REFERENCE)

    def foretell(self, comparison: str, judge: str | None, template: str) -> str:
        if not comparison or not judge:
            return ""
        try:
            will = self._studio.judging.estimate(comparison, judge, template=template or None)
        except StudioError:
            return ""
        tokens = f", about {will['prompt_tokens']:,} tokens to read" if will["prompt_tokens"] else ""
        tokens += f", at most {will['completion_tokens']:,} to write" if will["completion_tokens"] else ""
        time = f", about {words.duration(will['seconds'])}" if will["seconds"] else ""
        return pieces.piece("sentence", text=f"{words.count(will['questions'], 'question')}{tokens}{time}.")

    def run(self, comparison: str, judge: str | None, template: str, criteria: str, budget: float | None) -> dict[Any, Any]:
        if not comparison:
            raise StudioError("There is no comparison to judge.", "Compare first.")
        self._studio.judging.judge(
            comparison, judge or None, template=template or None, criteria=criteria, budget_tokens=int(budget) if budget else None
        )
        return self.look(comparison, "")

    def tick(self, tab: str, comparison: str, shown: str) -> Any:
        return self.look(comparison, shown) if tab == "compare" else gr.skip()

    def look(self, comparison: str, shown: str) -> Any:
        rows = self._studio.judging.list(comparison) if comparison else []
        now = stamp(comparison, [(row["id"], row["status"], row["progress"]["step"]) for row in rows])
        if now == shown:
            return gr.skip()
        verdicts = self._studio.judging.verdicts(rows[0]["id"], limit=SHOWN_VERDICTS) if rows else []
        asked = [{**row, "order": f"{_short(row['a'])} first, {_short(row['b'])} second"} for row in verdicts]
        return {
            self.readings: pieces.piece("judgements", judgements=[_judgement(row) for row in rows]),
            self.verdicts: pieces.piece("verdicts", verdicts=asked, limit=SHOWN_VERDICTS),
            self._stamp: now,
        }


def _judgement(row: dict[str, Any]) -> dict[str, Any]:
    """Data of one part of templates/judgements.html."""
    step, steps = row["progress"]["step"] or 0, row["progress"]["max_steps"] or 0
    return {
        "judge": row["judge"],
        "state": row["status"],
        "reason": row["reason"],
        "fix": row["fix"],
        "part": step / steps if steps else 0.0,
        "progress": " · ".join(item for item in (f"{step} of {steps} verdicts", words.left(row["progress"]["eta_s"])) if item),
        "pairs": row.get("pairs"),
        "wins": [_win(name, share, row["ci95"][name]) for name, share in row.get("win_rate", {}).items()],
        "facts": _facts(row) if "pairs" in row else [],
        "categories": [
            (name, [f"{_short(who)} {words.share(share)}" for who, share in part["win_rate"].items() if share is not None])
            for name, part in row.get("categories", {}).items()
        ],
        "warnings": [
            *(["The budget ended the asking before all pairs were judged."] if row.get("is_cut_by_budget") else []),
            *row.get("warnings", []),
        ],
        "able": row.get("able"),
    }


def _win(name: str, share: float | None, interval: list[float] | None) -> dict[str, Any]:
    if share is None or interval is None:
        return {"name": _short(name), "text": "no verdict", "share": 0.0, "low": 0.0, "high": 0.0}
    text = f"{words.share(share)} ({words.share(interval[0])} to {words.share(interval[1])})"
    return {"name": _short(name), "text": text, "share": share, "low": interval[0], "high": interval[1]}


def _facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    agreement = row["reference_agreement"]
    longest = (row["baselines"]["longest"] or {}).get("references")
    constant = row["baselines"]["constant_answer"]
    controlled = ", ".join(
        f"{_short(name)} {words.share(share)}" for name, share in row["length_controlled_win_rate"].items() if share is not None
    )
    found = [
        ("same verdict in both orders", row["swap_consistency"]),
        ("the answer shown first wins", row["first_win_rate"]),
        ("the longer answer wins", row["longer_win_rate"]),
        ("win rate at equal length", controlled or None),
        ("agrees with the references", agreement and f"{words.share(agreement['agreement'])} of {agreement['n']}"),
        ("“the longest wins” would agree", longest and words.share(longest["agreement"])),
        ("a constant answer wins", constant and f"{words.share(constant['win_rate'])} of {constant['n']}"),
        ("replies without a verdict", str(row["invalid"]) if row["invalid"] else None),
    ]
    return [(label, value if isinstance(value, str) else words.share(value)) for label, value in found if value is not None]


def _short(name: str) -> str:
    """A file or a URL by its last part."""
    return name.rpartition("/")[2] if name.startswith(("file:", "http")) else name
