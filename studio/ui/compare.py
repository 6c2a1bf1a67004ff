"""Compare: which is better? The same prompts to a base and its adapters, answers side by side as they land, all kept.

Knows nothing of how answers are made: it creates a comparison and reads its rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.evaluation import prompts as comparison_prompts
from studio.records import (
    ENDED,
    Comparison,
    ComparisonAnswer,
    ComparisonPrompt,
    ComparisonSummary,
    JobKind,
    JobStatus,
    MatchScore,
    PromptMessage,
)
from studio.services import Studio
from studio.ui import choices, pieces, words
from studio.ui.compare_board import BoardPart
from studio.ui.compare_judge import JudgePart
from studio.ui.compare_vote import VotePart
from studio.ui.compare_worst import WorstPart
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Frame, go, stamp, stamp_box

PAGE_ROWS = 10  # prompts on the page at once
LIVE_S, IDLE_S = 1.0, 8.0
BASE = "base"
HELD_OUT, QUESTIONS = "held-out:", "questions:"  # before values of the list of prompts; a dataset's ID holds no colon
OFFERED_TRAININGS = 20


class CompareTab:
    """Left: prompts and contestants, and the comparisons that are kept. Right: the answers of the chosen one."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        with tab as self.tab:
            self._stamp = stamp_box("compare")
            self._timer = gr.Timer(IDLE_S)
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=2, min_width=300):
                    self._layout_choices()
                with gr.Column(scale=3, min_width=320):
                    self._layout_answers()
        self._wire()

    def _layout_choices(self) -> None:
        self.prompt = gr.Textbox("", label="One prompt", info="A question for everybody.", lines=2, max_lines=8, elem_id="compare-prompt")
        with gr.Accordion("Or many: a file of prompts, or a dataset", open=False, elem_id="compare-many"):
            self.file = gr.File(
                label="File of prompts: .jsonl with prompt and, if you have it, reference; or .txt, one a line",
                file_types=[".jsonl", ".txt"],
                height=130,
            )
            self.data = gr.Dropdown(
                label="Dataset, held-out rows, or published questions",
                info="Its questions become prompts, its answers references. Rows that a training held out are the fair ones.",
                elem_id="compare-data",
            )
        self.base_model = gr.Dropdown(label="Base model", info="Whose adapters take part.", elem_id="compare-base")
        self.contestants = gr.CheckboxGroup(label="Who answers", info="The base shows what training changed.", elem_id="compare-who")
        with gr.Accordion("Others: a server, or answers made elsewhere", open=False):
            self.servers = gr.Textbox("", label="Servers", info="URL#MODEL, separated by commas: any server of the OpenAI protocol.")
            self.made = gr.File(label="Answers: .jsonl with prompt_id, answer", file_types=[".jsonl"], file_count="multiple", height=150)
        self.max_new_tokens = gr.Number(
            128,
            label="Longest answer · max_new_tokens",
            info="In tokens. Answers are greedy, so the same prompt gives the same answer.",
            precision=0,
        )
        self.name = gr.Textbox("", label="Name", info="Empty makes one.", max_lines=1, elem_id="compare-name")
        self.start = gr.Button("Compare", variant="primary", elem_id="compare-start")
        self.notice = pieces.panel(elem_id="compare-notice", elem_classes="notice-place")
        self.list = pieces.panel(elem_id="compare-list")

    def _layout_answers(self) -> None:
        self.answers = pieces.panel(elem_id="compare-answers")
        with gr.Row(visible=False, elem_classes="buttons") as self.pager:
            self.earlier = gr.Button("Earlier prompts", min_width=130)
            self.later = gr.Button("Later prompts", min_width=130)
        self._first = gr.State(0)
        self.judging = JudgePart(self._studio, self._page)
        self.voting = VotePart(self._studio, self._page)
        self.board = BoardPart(self._studio, self._page)
        self.worst = WorstPart(self._studio, self._page)
        with gr.Row(elem_classes="next"):
            self.next = gr.Button("Next: train on more or better data", elem_id="compare-next", visible=False)

    def _wire(self) -> None:
        place = self._page.place
        shown = [place.comparison, self.list, self.answers, self.pager, self.next, self._stamp, self._timer]
        looked = [place.comparison, self._first, self._stamp]
        self.tab.select(
            steady(self.enter),
            inputs=[self.data, self.base_model, self.contestants],
            outputs=[self.data, self.base_model, self.contestants],
            **QUIET,
        )
        self.tab.select(steady(self.look), inputs=looked, outputs=shown, **QUIET)
        self._page.redraw("answers", [place.comparison.change], steady(self.look_anew), [place.comparison], [self._first, *shown])
        self._timer.tick(steady(self.tick), inputs=[place.tab, *looked], outputs=shown, **QUIET)
        self.base_model.input(self.offer, inputs=[self.base_model, self.contestants], outputs=[self.contestants], **QUIET)
        self.list.select(self.open, outputs=[place.comparison], **QUIET)
        who = [self.base_model, self.contestants, self.servers, self.made]
        asked = [self.prompt, self.file, self.data, *who, self.max_new_tokens, self.name]
        self.start.click(
            tells(self.notice)(self.compare), inputs=asked, outputs=[self.notice, self.name, self._first, *shown], **busy(self.answers)
        )
        for button, step in ((self.earlier, -PAGE_ROWS), (self.later, PAGE_ROWS)):
            turn = self._turning(step)
            button.click(steady(turn), inputs=[place.comparison, self._first], outputs=[self._first, *shown], **QUIET)
        self.next.click(lambda: go("data"), outputs=[self._page.tabs], **QUIET)
        self.answers.select(self.suggest, inputs=[self.contestants], outputs=[self.prompt], **QUIET)
        self.judging.wire(self.tab, self._timer)
        self.voting.wire()
        self.board.wire()
        self.worst.wire(self.tab)

    # what is offered

    def enter(self, data: str | None, base_model: str | None, chosen: list[str] | None) -> dict[Any, Any]:
        datasets = [("none", ""), *choices.datasets(self._studio), *self._published()]
        models = choices.base_models(self._studio)
        names = [name for _, name in models]
        base = next((name for name in (base_model, *names) if name in names), None)
        offered = self.offer(base, chosen)
        return {
            self.data: choices.update(datasets, data),
            self.base_model: choices.update(models, base_model),
            self.contestants: offered,
        }

    def _published(self) -> list[tuple[str, str]]:
        """Held-out rows of trainings, newest first, and questions that ship; their values say what they are."""
        succeeded = self._studio.jobs.list(JobStatus.SUCCEEDED)
        trainings = [job for job in succeeded if job.kind == JobKind.TRAIN][:OFFERED_TRAININGS]
        held_out = [(f"rows that {job.name} held out", f"{HELD_OUT}{job.id}") for job in trainings]
        return [*held_out, *((row.title, f"{QUESTIONS}{row.name}") for row in self._studio.comparisons.questions())]

    def offer(self, base_model: str | None, chosen: list[str] | None) -> Any:
        """The base and its adapters, newest first; at first the base and the newest are chosen."""
        offered: list[choices.Choice] = []
        if base_model:
            offered = [(f"{base_model} alone", BASE), *choices.adapters(self._studio, base_model)]
        values = [value for _, value in offered]
        kept = [name for name in chosen or [] if name in values]
        return gr.CheckboxGroup(choices=offered, value=kept or values[:2])

    def suggest(self, chosen: list[str] | None) -> str:
        return choices.example_for(self._studio, next((name for name in chosen or [] if name != BASE), ""))

    # what is shown

    def open(self, event: gr.EventData) -> str:
        return str(event._data["id"])

    def tick(self, tab: str, comparison_id: str, first: int, shown: str) -> Any:
        if tab != "compare":
            return gr.skip()
        return self.look(comparison_id, first, shown)

    def look_anew(self, comparison_id: str) -> dict[Any, Any]:
        return {self._first: 0, **self.look(comparison_id, 0, "")}

    def look(self, comparison_id: str, first: int, shown: str) -> Any:
        """Show the rows as they are now; nothing is sent when nothing moved."""
        rows = self._studio.comparisons.list()
        chosen = next((row for row in rows if comparison_id in (row.id, row.name)), next(iter(rows), None))
        now = stamp(first, chosen and chosen.id, [(row.id, row.status, row.progress.step) for row in rows])
        if now == shown:
            return gr.skip()
        live = any(row.status not in ENDED for row in rows)
        return {
            self._page.place.comparison: chosen.id if chosen else "",
            self.list: _list(rows, chosen),
            **self._show(chosen, first),
            self._stamp: now,
            self._timer: gr.Timer(LIVE_S if live else IDLE_S),
        }

    def _show(self, chosen: ComparisonSummary | None, first: int) -> dict[Any, Any]:
        if chosen is None:
            nothing = pieces.empty("Ask one thing, and see the base and your adapters answer side by side.", "Suggest a prompt", "suggest")
            return {self.answers: nothing, self.pager: gr.Row(visible=False), self.next: gr.Button(visible=False)}
        comparison = self._studio.comparisons.show(chosen.id)
        many = len(comparison.prompts) > PAGE_ROWS
        ended = comparison.status in ENDED
        return {
            self.answers: pieces.piece("comparison", **answers(comparison, first)),
            self.pager: gr.Row(visible=many),
            self.next: gr.Button(visible=ended),
        }

    def _turning(self, step: int) -> Any:
        def turn(comparison_id: str, first: int) -> dict[Any, Any]:
            total = self._studio.comparisons.show(comparison_id).prompt_count
            begin = min(max(0, first + step), max(0, (total - 1) // PAGE_ROWS * PAGE_ROWS))
            return {self._first: begin, **self.look(comparison_id, begin, "")}

        return turn

    # asking

    def compare(
        self,
        prompt: str,
        file: str | None,
        data: str | None,
        base_model: str | None,
        contestants: list[str],
        servers: str,
        made: list[str] | None,
        max_new_tokens: Any,
        name: str,
    ) -> dict[Any, Any]:
        if not base_model:
            raise StudioError("No base model is chosen.", "Choose one above.")
        files = {f"file:{Path(path).stem}": Path(path) for path in made or []}
        everybody = [*contestants, *(part.strip() for part in servers.split(",") if part.strip()), *files]
        if not everybody:
            raise StudioError("Nobody is chosen to answer.", "Tick at least one under Who answers.")
        source = self._prompts(prompt, file, data)
        params = {"max_new_tokens": int(max_new_tokens or 128)}
        created = self._studio.comparisons.create(
            **source, base_model=base_model, contestants=everybody, name=name.strip() or None, params=params, files=files
        )
        return {self.name: "", self._first: 0, **self.look(created.id, 0, "")}

    def _prompts(self, prompt: str, file: str | None, data: str | None) -> dict[str, Any]:
        """Exactly one source of prompts; to guess between several would compare something nobody asked for."""
        given = [name for name, value in (("a typed prompt", prompt.strip()), ("a file", file), ("a dataset", data)) if value]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given at once.".capitalize()
            if not given:
                what = "No prompt is given."
            raise StudioError(what, "Type one prompt, or upload a file, or choose a dataset: one of the three.")
        if file:
            return {"prompts": self._studio.comparisons.read_prompts(Path(file))}
        if not data:
            return {"prompts": [{"prompt": prompt.strip()}]}
        if data.startswith(HELD_OUT):
            return {"held_out": data.removeprefix(HELD_OUT)}
        if data.startswith(QUESTIONS):
            return {"questions": data.removeprefix(QUESTIONS)}
        return {"data": data}


def _list(rows: list[ComparisonSummary], chosen: ComparisonSummary | None) -> str:
    if not rows:
        return ""
    listed = [{"id": row.id, "name": row.name, "facts": _facts(row)} for row in rows]
    return pieces.piece("comparisons", comparisons=listed, selected=chosen and chosen.id)


def _facts(row: ComparisonSummary) -> str:
    facts = [
        "report after training" if row.training else "",
        words.count(row.prompt_count, "prompt"),
        words.count(len(row.contestants), "contestant"),
        words.STATUS_WORDS[row.status],
        words.ago(row.created_at),
    ]
    return " · ".join(fact for fact in facts if fact)


def answers(comparison: Comparison, first: int) -> dict[str, Any]:
    """Data of templates/comparison.html: prompts from number `first` on, each with one cell per contestant."""
    cells = {(answer.prompt_id, answer.contestant): answer for answer in comparison.answers}
    names, scores = comparison.contestants, comparison.scores
    total = len(comparison.prompts) * len(names)
    notes = comparison_prompts.essays(comparison.prompts)
    rows = [
        {
            "prompt": asked(prompt),
            "reference": prompt.get("reference"),
            "answers": [_cell(name, cells.get((prompt["id"], name)), prompt, comparison, prompt["id"] in notes) for name in names],
        }
        for prompt in comparison.prompts[first : first + PAGE_ROWS]
    ]
    return {
        "name": comparison.name,
        "state": comparison.status,
        "reason": comparison.reason,
        "fix": comparison.fix,
        "part": len(cells) / max(1, total),
        "progress": f"{len(cells)} of {words.count(total, 'answer')}",
        "scores": [{"contestant": _called(name, comparison), "text": _score(scores[name])} for name in names if _says(scores.get(name))],
        "notes": _notes(list(scores.values())),
        "first": first + 1,
        "rows": rows,
    }


def _called(name: str, comparison: Comparison) -> str:
    """What people call a contestant: the base by its own name."""
    return comparison.base_model if name == BASE else name


def _cell(name: str, answer: ComparisonAnswer | None, prompt: ComparisonPrompt, comparison: Comparison, is_note: bool) -> dict[str, Any]:
    toy = choices.is_toy(comparison.base_model) and "#" not in name and not name.startswith("file:")
    shown = {"contestant": _called(name, comparison), "toy": toy, "text": None, "error": "", "match": None, "seconds": None, "turns": []}
    if answer is None:
        return shown
    reference = prompt.get("reference")
    if reference and not answer.error:
        is_equal = answer.text.strip() == reference.strip()
        shown["match"] = is_equal or (None if is_note else False)
    if len(prompt["turns"]) > 1:
        shown["turns"] = answer.turns
    return {**shown, "text": answer.text, "error": answer.error, "seconds": answer.seconds}


def _says(score: MatchScore | None) -> bool:
    return score is not None and score.exact_match is not None


def _notes(scores: list[MatchScore]) -> str:
    """What is not counted among the exact matches."""
    left_out = max((score.left_out for score in scores), default=0)
    if not left_out:
        return ""
    return f"Exact match leaves out {words.count(left_out, 'prompt')}: the reference is a note to judge by, which no answer equals."


def _score(score: MatchScore) -> str:
    return f"{words.share(score.exact_match)} of {words.count(score.n, 'prompt')}"


def asked(prompt: ComparisonPrompt) -> str:
    """What was asked, every turn of it."""
    if len(prompt["turns"]) == 1:
        return _said(prompt["turns"][0])
    return "\n\n".join(f"Turn {number}: {_said(turn)}" for number, turn in enumerate(prompt["turns"], 1))


def _said(turn: list[PromptMessage]) -> str:
    """The messages of one turn; a lone question stands without its role."""
    if len(turn) == 1:
        return turn[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in turn)
