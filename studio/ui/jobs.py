"""Jobs: how is it going? The queue and its history, and one job whole: progress, curve, log, reason and fix, cancel.

Everything is read from rows at each look, so a reload, a closed tab or a restart of the web process changes nothing.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.services import Studio
from studio.ui import chart, pieces, words
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Page, go, opening, stamp, stamp_box

LOG_LINES = 200
LIVE_S, IDLE_S = 1.5, 6.0
STAMPED = ("id", "status", "attempt", "progress", "adapter", "stopping", "reason")  # what can change of a job
TOLD_EVENTS, MAX_EVENTS = ("notice", "lost"), 6
HIDDEN_KINDS = ("compare",)  # shown on their own tab; they end in seconds


class JobsTab:
    """Left: the queue. Right: the chosen job."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page
        with opening("jobs") as self.tab:
            self._stamp = stamp_box("jobs")
            self._timer = gr.Timer(IDLE_S)
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=2, min_width=280):
                    self.list = pieces.panel(elem_id="jobs-list")
                with gr.Column(scale=3, min_width=320):
                    self._layout_job()
        self._wire()

    def _layout_job(self) -> None:
        self.head = pieces.panel(elem_id="job-head")
        with gr.Row(visible=False, elem_classes="buttons") as self.stopping:
            self.keep = gr.Button("Stop and keep what it learned", elem_id="job-keep", min_width=200)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="job-cancel", min_width=110)
        self.notice = pieces.panel(elem_id="jobs-notice", elem_classes="notice-place")
        self.curve = pieces.panel(elem_id="job-curve")
        with gr.Accordion("Log", open=False, elem_id="job-log", visible=False) as self.log_place:
            self.log = pieces.panel()
        with gr.Row(visible=False, elem_classes="next") as self.next:
            self.chat = gr.Button("Next: chat with it", variant="primary", elem_id="job-chat", min_width=180)
            self.compare = gr.Button("Compare it with the base", elem_id="job-compare", min_width=180)
        with gr.Row(visible=False, elem_classes="next") as self.after_failure:
            self.again = gr.Button("Next: change it and train again", elem_id="job-again", min_width=180)

    def _wire(self) -> None:
        place = self._page.place
        shown = [
            place.job,
            self.list,
            self.head,
            self.stopping,
            self.keep,
            self.curve,
            self.log,
            self.log_place,
            self.next,
            self.after_failure,
            self._stamp,
            self._timer,
        ]
        look = {"inputs": [place.job, self._stamp], "outputs": shown, **QUIET}
        self.tab.select(steady(self.look), **look)
        place.job.change(steady(self.look), **look)
        self._timer.tick(steady(self.tick), inputs=[place.tab, place.job, self._stamp], outputs=shown, **QUIET)
        self.list.select(self.open, outputs=[place.job, self._page.tabs], **QUIET)
        for button, stop in ((self.cancel, self.stop), (self.keep, self.stop_and_keep)):
            button.click(tells(self.notice)(stop), inputs=[place.job], outputs=[self.notice, *shown], **busy(self.head))

    def open(self, event: gr.EventData) -> tuple[Any, Any]:
        target = event._data
        return (target["id"], gr.skip()) if target["act"] == "open" else (gr.skip(), go("train"))

    def tick(self, tab: str, job_id: str, shown: str) -> Any:
        return self.look(job_id, shown) if tab == "jobs" else gr.skip()

    def look(self, job_id: str, shown: str) -> Any:
        """Show the rows as they are now; nothing is sent when nothing moved."""
        jobs = [job for job in self._studio.jobs.list() if job["kind"] not in HIDDEN_KINDS]
        chosen = next((job for job in jobs if job_id in (job["id"], job["name"])), jobs[0] if jobs else None)
        now = stamp(chosen and chosen["id"], [[job[key] for key in STAMPED] for job in jobs])
        if now == shown:
            return gr.skip()
        live = any(job["status"] not in words.FINAL for job in jobs)
        return {
            self._page.place.job: chosen["id"] if chosen else "",
            **self._show_list(jobs, chosen),
            **self._show_job(chosen),
            self._stamp: now,
            self._timer: gr.Timer(LIVE_S if live else IDLE_S),
        }

    def stop(self, job_id: str) -> Any:
        self._studio.jobs.cancel(job_id)
        return self.look(job_id, "")

    def stop_and_keep(self, job_id: str) -> Any:
        self._studio.jobs.cancel(job_id, keep=True)
        return self.look(job_id, "")

    def _show_list(self, jobs: list[dict[str, Any]], chosen: dict[str, Any] | None) -> dict[Any, Any]:
        if not jobs:
            return {self.list: pieces.empty("Nothing has been trained yet.", "Set up a training", "train")}
        rows = [{**job, "facts": _facts_in_list(job)} for job in jobs]
        return {self.list: pieces.piece("jobs", jobs=rows, selected=chosen and chosen["id"])}

    def _show_job(self, chosen: dict[str, Any] | None) -> dict[Any, Any]:
        if chosen is None:
            nothing = gr.Row(visible=False)
            return {
                self.head: "",
                self.stopping: nothing,
                self.curve: "",
                self.log: "",
                self.log_place: gr.Accordion(visible=False),
                self.next: nothing,
                self.after_failure: nothing,
            }
        job = self._studio.jobs.show(chosen["id"])
        drawing = chart.loss(self._studio.jobs.curves(job["id"]))
        return {
            self.head: pieces.piece("job", **_head(job)),
            self.stopping: gr.Row(visible=job["status"] not in words.FINAL and not job["stopping"]),
            self.keep: gr.Button(visible=job["status"] == "RUNNING"),
            self.curve: pieces.piece("chart", **drawing) if drawing else "",
            self.log: pieces.piece("log", text=self._studio.jobs.logs(job["id"], tail_lines=LOG_LINES)),
            self.log_place: gr.Accordion(visible=True),
            self.next: gr.Row(visible=bool(job["adapter"])),
            self.after_failure: gr.Row(visible=job["status"] in words.FINAL and not job["adapter"]),
        }


def _facts_in_list(job: dict[str, Any]) -> str:
    if job["status"] == "RUNNING":
        return " · ".join(item for item in (_progress(job), words.left(job["progress"]["eta_s"])) if item)
    if job["status"] in words.FINAL and job["started_at"]:
        return f"{words.ago(job['ended_at'])} · took {words.elapsed(job['started_at'], job['ended_at'])}"
    return f"added {words.ago(job['created_at'])}"


def _head(job: dict[str, Any]) -> dict[str, Any]:
    progress = job["progress"]
    part = (progress["step"] or 0) / progress["max_steps"] if progress["max_steps"] else 0.0
    text = " · ".join(item for item in (_progress(job), words.share(part) if part else "", words.left(progress["eta_s"])) if item)
    waiting = "waiting for its turn" if job["status"] == "QUEUED" else "starting: the model is being loaded"
    if job["stopping"]:
        text = "stopping, and keeping what it learned" if job["stopping"] == "keep" else "stopping"
    facts = [f"{job['kind']} on {job['base_model']}" if job.get("base_model") else job["kind"], f"added {words.ago(job['created_at'])}"]
    if job["started_at"]:
        facts.append(f"{'took' if job['ended_at'] else 'running for'} {words.elapsed(job['started_at'], job['ended_at'])}")
    if job["attempt"] > 1:
        facts.append(f"attempt {job['attempt']}")
    return {
        "job": job,
        "facts": " · ".join(facts),
        "part": part,
        "progress": text or waiting,
        "readings": _readings(job),
        "events": _events(job),
    }


def _readings(job: dict[str, Any]) -> list[tuple[str, str]]:
    """What a run that ended has reached."""
    result = job["result"]
    labels = (("train_loss", "loss on training rows"), ("eval_loss", "loss on held-out rows"))
    found = [(label, f"{result[key]:.3f}") for key, label in labels if isinstance(result.get(key), (int, float))]
    if result.get("tokens"):
        found.append(("tokens read", f"{result['tokens']:,}"))
    return found


def _events(job: dict[str, Any]) -> list[str]:
    """What the trainer noticed, and each time the run was lost; newest last."""
    found = [
        event.get("text") if event["kind"] == "notice" else event.get("reason") for event in job["events"] if event["kind"] in TOLD_EVENTS
    ]
    return list(dict.fromkeys(text for text in found if text))[-MAX_EVENTS:]


def _progress(job: dict[str, Any]) -> str:
    progress = job["progress"]
    return f"step {progress['step']} of {progress['max_steps']}" if progress["step"] is not None and progress["max_steps"] else ""
