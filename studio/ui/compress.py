"""Compress: what can I cut without losing the answer? Words kept and dropped, answers before and after, the curve.

Knows nothing of how texts are compressed: it asks the service and shows what comes back.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.compress.checks import KINDS
from studio.errors import StudioError
from studio.records import Compression
from studio.services import Studio
from studio.services.compression import MOST_CHARACTERS
from studio.ui import choices, compress_shown, pieces, words
from studio.ui.chat import ChatTab
from studio.ui.compress_jobs import CompressJobs
from studio.ui.compress_shown import AskedBoth
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Frame, go

METHODS = [
    ("LLMLingua-2: a classifier keeps the words that matter", "llmlingua2"),
    ("LongLLMLingua: keep the documents that answer the question", "longllmlingua"),
    ("Whole words that a model expects least (self-information)", "self_information"),
    ("Selective Context: whole sentences", "selective_context"),
    ("LLMLingua: drop tokens", "llmlingua"),
    ("Tags and JSON keep their form (structured)", "structured"),
]
BETTER = "Who judges the words. `studio compress --list` names better ones, for machines with a hub."
UNFOLD = "() => { document.querySelector('#compress-many button.label-wrap:not(.open)')?.click(); return []; }"
EXAMPLE = (
    "Item 28: Report from Development Services. Recommendation to declare an ordinance amending the Land Use District Map of the city, "
    "about 1.5 acres near the old harbour, at a cost of $80,000. We have not decided yet. John Smith asked, um, whether the parking would "
    "really stay as it is, and nobody could say so.\n\nQuestion: What does the amendment cost?"
)


class CompressTab:
    """Left: the prompt, how it is shortened, and jobs on many prompts. Right: words, figures, answers, the curve."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        with tab as self.tab, gr.Row(elem_classes="halves"):
            with gr.Column(scale=3, min_width=320):
                self._layout_prompt()
                self._layout_how()
                self.jobs = CompressJobs(studio, page)
            with gr.Column(scale=3, min_width=320):
                self._layout_shown()
        self._wire()

    def _layout_prompt(self) -> None:
        self.prompt = gr.Textbox(
            "",
            label="Prompt",
            info="What you would send to a model. Lines of --- between documents.",
            lines=8,
            max_lines=16,
            elem_id="compress-prompt",
        )
        with gr.Accordion("Documents from files, instruction, question", open=False, elem_id="compress-more"):
            self.files = gr.File(
                label="Text files, each one document", file_count="multiple", file_types=[".txt", ".md", ".json"], height=130
            )
            self.instruction = gr.Textbox("", label="Instruction", info="Stays in front, word for word.", elem_id="compress-instruction")
            self.question = gr.Textbox(
                "", label="Question", info="Stays at the end. LongLLMLingua keeps what answers it.", elem_id="compress-question"
            )

    def _layout_how(self) -> None:
        self.method = gr.Dropdown(METHODS, value="llmlingua2", label="Method", info="The first is the fastest.", elem_id="compress-method")
        self.rate = gr.Slider(
            5, 100, 50, step=5, label="Keep · rate, in % of the tokens", info="Lower is shorter and loses more.", elem_id="compress-rate"
        )
        self.reader = gr.Dropdown(label="Who reads it", info="Its tokens are counted, and it answers below.", elem_id="compress-reader")
        with gr.Accordion("A budget in tokens, what must stay, the compressor", open=False, elem_id="compress-options"):
            with gr.Row(elem_classes="fields"):
                self.window = gr.Number(
                    None, label="Fit into", info="Tokens in all; empty goes by the rate.", precision=0, elem_id="compress-window"
                )
                self.room = gr.Number(0, label="With room for", info="Tokens of the answer.", precision=0, elem_id="compress-room")
            self.must_keep = gr.CheckboxGroup(
                list(KINDS), label="Must stay", info="Checked either way; what is lost is named.", elem_id="compress-must"
            )
            self.force = gr.Textbox("", label="Words that must stay", info="Separated by commas.", max_lines=1, elem_id="compress-force")
            self.pattern = gr.Textbox(
                "", label="Pattern that must stay", info="A regular expression.", max_lines=1, elem_id="compress-pattern"
            )
            self.compressor = gr.Dropdown(
                label="Compressor",
                info="Who judges the words. `studio compress --list` names better ones, for machines with a hub.",
                elem_id="compress-compressor",
            )
        with gr.Row(elem_classes="buttons"):
            self.start = gr.Button("Compress", variant="primary", elem_id="compress-start", min_width=130)
            self.example = gr.Button("Try an example", elem_id="compress-example", min_width=130)
        self.notice = pieces.panel(elem_id="compress-notice", elem_classes="notice-place")

    def _layout_shown(self) -> None:
        self._made = gr.State(None)
        self._asked = gr.State(None)
        blank = pieces.empty("Paste a long prompt and see which words it can do without.", "Try an example", "example")
        self.shown = pieces.panel(blank, elem_id="compress-shown")
        self.text = gr.Textbox(
            "", label="The compressed prompt", lines=4, max_lines=12, visible=False, buttons=["copy"], elem_id="compress-text"
        )
        with gr.Row(visible=False, elem_classes="buttons") as self.after:
            self.ask = gr.Button("Ask both", elem_id="compress-ask", min_width=130)
        self.answers = pieces.panel(elem_id="compress-answers")
        with gr.Row(visible=False, elem_classes="fields making") as self.judging:
            self.judge = gr.Dropdown(label="Judge", info="Asked in both orders which answer is better.", scale=3, elem_id="compress-judge")
            self.decide = gr.Button("Let the judge decide", elem_id="compress-decide", min_width=170)
        self.curve = pieces.panel(elem_id="compress-curve")
        with gr.Row(visible=False, elem_classes="next") as self.ending:
            self.chat = gr.Button("Use in chat", elem_id="compress-chat")
            self.data = gr.Button("Use for a dataset", elem_id="compress-data")

    def _wire(self) -> None:
        told = tells(self.notice)
        asked = [self.prompt, self.files, self.instruction, self.question, self.method, self.rate, self.reader]
        asked += [self.window, self.room, self.must_keep, self.force, self.pattern, self.compressor]
        shown = [self.notice, self.shown, self.text, self.after, self.answers, self.judging, self.ending, self._made, self._asked]
        answered = [self.notice, self.answers, self.judging, self._asked]
        self.tab.select(
            steady(self.enter),
            inputs=[self.method, self.reader, self.compressor, self.judge],
            outputs=[self.reader, self.compressor, self.judge],
            **QUIET,
        )
        self.method.input(steady(self.offer), inputs=[self.method, self.compressor], outputs=[self.compressor], **QUIET)
        self.start.click(told(self.compress), inputs=asked, outputs=shown, **busy(self.shown))
        self.rate.release(told(self.slide), inputs=[self._made, *asked], outputs=shown, **busy(self.shown))
        gr.on([self.example.click, self.shown.select], lambda: EXAMPLE, outputs=[self.prompt], **QUIET)
        self.ask.click(told(self.ask_both), inputs=[self._made, self.reader], outputs=answered, **busy(self.answers))
        self.answers.select(told(self.vote), inputs=[self._made, self._asked], outputs=answered, **QUIET)
        self.decide.click(told(self.let_judge), inputs=[self._made, self._asked, self.judge], outputs=answered, **busy(self.answers))
        self.jobs.wire(self.tab, self.curve, self.method, self.compressor, self.reader, self.rate)
        self.data.click(
            None, js="() => { document.querySelector('#compress-many button.label-wrap:not(.open)')?.click(); return []; }", **QUIET
        )

    def wire_chat(self, chat: ChatTab) -> None:
        """The compressed prompt, typed into a new conversation with whoever reads it."""
        outputs = [self._page.tabs, self._page.place.chat, chat.message, chat.contestant]

        def hand(text: str, reader: str | None) -> list[Any]:
            who = reader or choices.STARTER
            return [go("chat"), "", text, gr.Dropdown(choices=[(who, who)], value=[who])]

        self.chat.click(hand, inputs=[self.text, self.reader], outputs=outputs, **QUIET)

    # what is offered

    def enter(self, method: str, reader: str | None, compressor: str | None, judge: str | None) -> dict[Any, Any]:
        readers, judges = choices.contestants(self._studio), choices.judges(self._studio)
        return {self.reader: choices.update(readers, reader), self.judge: choices.update(judges, judge), **self.offer(method, compressor)}

    def offer(self, method: str, compressor: str | None) -> dict[Any, Any]:
        """Compressors that can do `method`. One with a tiny vocabulary is not offered for LLMLingua, whose cuts would go through words."""
        fit = [entry for entry in self._studio.compression.compressors.list().compressors if method in entry.methods]
        if method == "llmlingua" and all(entry.cuts_words for entry in fit):
            why = "Here only the starter could, whose 4,096 pieces are fragments: choose self-information, or add a model such as gpt2."
            return {self.compressor: gr.Dropdown(choices=[], value=None, info=why)}
        good = [entry for entry in fit if method != "llmlingua" or not entry.cuts_words]
        return {self.compressor: choices.update([(f"{entry.name} · {entry.title}", entry.name) for entry in good], compressor)}

    # compressing

    def slide(self, made: Compression | None, *asked: Any) -> Any:
        """A new rate on the same prompt, at once where the classifier remembers it."""
        if made is None or made.method != "llmlingua2":
            return gr.skip()
        return self.compress(*asked)

    def compress(
        self,
        prompt: str,
        files: list[str] | None,
        instruction: str,
        question: str,
        method: str,
        rate: float,
        reader: str | None,
        window: float | None,
        room: float | None,
        must_keep: list[str],
        force: str,
        pattern: str,
        compressor: str | None,
    ) -> dict[Any, Any]:
        if compressor is None:
            raise StudioError(f"No compressor here can do {method} well.", "Choose self-information, or add a model such as gpt2.")
        who = reader or choices.STARTER
        counter = choices.STARTER  # for another server's model, whose tokenizer is not here
        if "#" not in who:
            counter, _, _ = who.partition(":")
        made = self._studio.compression.compress(
            _contexts(prompt, files),
            method=method,
            compressor=compressor,
            counter=counter,
            instruction=instruction.strip(),
            question=question.strip(),
            force_tokens=[word.strip() for word in force.split(",") if word.strip()],
            limit=MOST_CHARACTERS,
            options={"must_keep": [*must_keep], "keep_patterns": [text for text in (pattern,) if text]},
            **_wish(rate, window, room),
        )
        foreseen = self._studio.compression.foresee(made, who)
        return {
            self.shown: pieces.piece("compression", **compress_shown.compression(made, foreseen, who)),
            self.text: gr.Textbox(made.text, visible=True),
            self.after: gr.Row(visible=True),
            self.ending: gr.Row(visible=True),
            self.answers: "",
            self.judging: gr.Row(visible=False),
            self._made: made.model_copy(update={"kept": []}),  # which the page shows already
            self._asked: None,
        }

    # answers

    def ask_both(self, made: Compression | None, reader: str | None) -> dict[Any, Any]:
        if made is None:
            raise StudioError("There is nothing to ask yet.", "Compress a prompt first.")
        who = reader or choices.STARTER
        found = self._studio.compression.ask_both(made.original, made.text, who, compress_seconds=made.seconds)
        asked = AskedBoth(found, who, is_swapped=random.random() < 0.5)
        can_judge = not (found.before.error or found.after.error)
        return {self.answers: self._answers(asked), self.judging: gr.Row(visible=can_judge), self._asked: asked}

    def let_judge(self, made: Compression | None, asked: AskedBoth | None, judge: str | None) -> dict[Any, Any]:
        if made is None or asked is None or not judge:
            raise StudioError("There is nothing to judge yet.", "Ask both first, and choose a judge.")
        both = asked.answers
        verdict = self._studio.compression.judge_both(made.original, both.before.text, both.after.text, judge)
        asked = replace(asked, judged=verdict)
        return {self.answers: self._answers(asked), self._asked: asked}

    def vote(self, made: Compression | None, asked: AskedBoth | None, event: gr.EventData) -> dict[Any, Any]:
        if made is None or asked is None or asked.voted:
            return {}
        names = {"before": "original", "after": f"compressed {made.requested:.2f}"}
        first, second = (names[name] for name in asked.by_name)
        self._studio.compression.vote(made.original, asked.contestant, first, second, str(event._data["winner"]))
        asked = replace(asked, voted=True)
        return {self.answers: self._answers(asked), self._asked: asked}

    def _answers(self, asked: AskedBoth) -> str:
        votes = self._studio.compression.votes() if asked.voted else None
        return pieces.piece("compression_answers", **compress_shown.answers(asked, votes, choices.is_toy(asked.contestant)))


def _contexts(prompt: str, files: list[str] | None) -> list[str]:
    """Documents of the box, between lines of ---, and of the files."""
    found = [part.strip("\n") for part in f"\n{prompt}\n".split("\n---\n")]
    for file in files or []:
        try:
            found.append(Path(file).read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            raise StudioError(f"{Path(file).name} is no UTF-8 text.", "Save it as text.") from None
    return [text for text in found if text.strip()] or [""]


def _wish(rate: float, window: float | None, room: float | None) -> dict[str, Any]:
    if not window:
        return {"rate": rate / 100}
    left = window - (room or 0)
    if left < 1:
        what = f"{words.count(int(window), 'token')} leave no room for an answer of {int(room or 0):,}."
        raise StudioError(what, "Raise the first number.")
    return {"target_token": left}
