"""Start: what is this, and does it work here? The demo as five steps, each one button.

What is done is read from datasets, jobs, chats and comparisons, so that it is the same after a reload.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from studio.records import ENDED, UNSUCCESSFUL, JobStatus
from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.demo import DemoState, DemoSteps
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.logins import LoginsPiece
from studio.ui.page import Frame, go, stamp, stamp_box
from studio.ui.storage import StoragePiece

LIVE_S, IDLE_S = 2.0, 10.0
AGAIN = "Train it again"  # the button of the training once a try has failed or was cancelled
STEPS = (  # act, title, button, text; an empty text is the training's progress
    (
        "add",
        "Add the demo rows",
        "Add the demo rows",
        "288 support messages, each with the one word that says which queue should get it.",
    ),
    (
        "train",
        "Train an adapter",
        "Train the adapter",
        "The starter, a toy model that ships with the studio, learns from them with real 4-bit QLoRA. About a minute.",
    ),
    ("watch", "Watch it learn", "Watch it", ""),
    ("chat", "Ask it", "Ask the adapter", "A message it has never seen. Change who answers to see the toy alone."),
    (
        "compare",
        "Compare it with the base",
        "Compare",
        "Messages kept back from training, base and adapter side by side, with a score.",
    ),
)


class StartTab:
    """Left: the demo. Right: the doctor."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        self._demo = DemoSteps(studio)
        with tab as self.tab:
            self._shown = stamp_box("start")
            self._timer = gr.Timer(IDLE_S)
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=3, min_width=320):
                    pieces.panel(pieces.piece("welcome"))
                    self.steps = pieces.panel(elem_id="start-steps", elem_classes="card")
                    self.notice = pieces.panel(elem_id="start-notice", elem_classes="notice-place")
                    with gr.Row(elem_classes="next"):
                        self.own = gr.Button("Bring your own data", elem_id="start-own")
                with gr.Column(scale=2, min_width=300):
                    self.doctor = pieces.panel(elem_id="start-doctor")
                    self.storage = StoragePiece(studio, "start-disk")
                    self.logins = LoginsPiece(studio)

    def wire(self, blocks: gr.Blocks, contestant: gr.Dropdown, message: gr.Textbox) -> None:
        """`contestant` and `message` are the chat tab's: the fourth step fills them in."""
        place, tabs = self._page.place, self._page.tabs
        shown = [self.steps, self._shown, self._timer]
        gr.on([blocks.load, self.tab.select], steady(self.look), inputs=[self._shown], outputs=shown, **QUIET)
        self._timer.tick(steady(self.tick), inputs=[place.tab, self._shown], outputs=shown, **QUIET)
        blocks.load(self.examine, outputs=[self.doctor], **QUIET)
        self.storage.wire(blocks.load)
        self.logins.wire(blocks.load)
        outputs = [self.notice, *shown, tabs, place.job, place.chat, place.comparison, contestant, message]
        self.steps.select(tells(self.notice)(self._acting(contestant, message)), inputs=[self._shown], outputs=outputs, **busy(self.steps))
        self.own.click(lambda: go("data"), outputs=[tabs], **QUIET)

    def examine(self) -> str:
        checks = self._studio.system.doctor().checks
        troubles = [check for check in checks if not check.ok]
        fine = [check for check in checks if check.ok]
        return pieces.piece("doctor", checks=troubles + fine, troubles=len(troubles))

    def tick(self, tab: str, shown: str) -> Any:
        if tab not in ("", "start"):
            return gr.skip()
        return self.look(shown)

    def look(self, shown: str) -> Any:
        """The steps as the rows have them now; nothing is sent when nothing moved."""
        state = self._demo.state()
        found = steps(state)
        if stamp(found) == shown:
            return gr.skip()
        pause = IDLE_S
        if state.job is not None and state.job.status not in ENDED:
            pause = LIVE_S
        return {
            self.steps: pieces.piece("steps", steps=found),
            self._shown: stamp(found),
            self._timer: gr.Timer(pause),
        }

    def _acting(self, contestant: gr.Dropdown, message: gr.Textbox) -> Any:
        place, tabs = self._page.place, self._page.tabs

        def act(shown: str, event: gr.EventData) -> dict[Any, Any]:
            match event._data["act"]:
                case "add":
                    self._demo.add()
                    return dict(self.look(""))
                case "train":
                    return {tabs: go("jobs"), place.job: self._demo.train().id}
                case "watch":
                    return {tabs: go("jobs"), place.job: self._demo.job().id}
                case "chat":
                    who = self._demo.contestant()
                    filled = gr.Dropdown(choices=[(who, who)], value=[who])
                    return {tabs: go("chat"), place.chat: "", contestant: filled, message: self._demo.question()}
                case "compare":
                    return {tabs: go("compare"), place.comparison: self._demo.compare().id}
            return {}

        return act


@dataclass(frozen=True)
class DemoStep:
    """A step as it is shown; `button` is empty where there is nothing to do, `part` of 1 is drawn as a bar."""

    act: str
    title: str
    text: str
    button: str
    state: str  # done, now or later
    part: float | None = None


def steps(state: DemoState) -> list[DemoStep]:
    """The five steps with what is done, what is next and what comes later; only the possible ones have a button."""
    has_rows, has_job, has_adapter = state.dataset is not None, state.job is not None, state.adapter is not None
    # one that was stopped and kept has an adapter too
    has_failed = state.job is not None and state.job.status in UNSUCCESSFUL and not has_adapter
    is_trained = has_job and not has_failed
    done = [has_rows, is_trained, has_adapter, state.chatted, state.compared]
    offered = [not has_rows, has_rows and not is_trained, has_job, has_adapter, has_adapter]
    found = []
    for number, (act, title, button, text) in enumerate(STEPS):
        step = DemoStep(act, title, text or _progress(state), button * offered[number], _when(done, number))
        if act == "train" and has_failed and has_rows:
            step = replace(step, button=AGAIN)
        if act == "watch" and state.job is not None and not has_adapter:
            step = replace(step, part=words.part(state.job.progress))
        found.append(step)
    return found


def _when(done: list[bool], number: int) -> str:
    if done[number]:
        return "done"
    if all(done[:number]):
        return "now"
    return "later"


def _progress(state: DemoState) -> str:
    job = state.job
    if job is None or state.adapter is not None or job.status == JobStatus.SUCCEEDED:
        return "The loss falls while it learns; you may close the page meanwhile."
    if job.status in UNSUCCESSFUL:
        return f"{words.STATUS_WORDS[job.status].capitalize()}: {job.reason or 'stopped by you'}. {AGAIN}."
    part = words.part(job.progress)
    share = words.STATUS_WORDS[job.status]
    if part is not None:
        share = words.share(part)
    return " · ".join(filter(None, (share, words.left(job.progress.eta_s))))
