"""Jobs: how is it going? The queue and its history, one job whole with all that can be done to it, and runs beside each other.

Everything is read from rows at each look, so a reload, a closed tab or a restart of the web process changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import ENDED, Job, JobKind, JobStatus, QueueOverview
from studio.services import Studio
from studio.ui import chart, jobs_compare, jobs_head, jobs_queue, jobs_watched, measured, pieces
from studio.ui.handlers import LATEST, QUIET, busy, steady, tells
from studio.ui.page import Frame, go, hidden, stamp, stamp_box

LOG_LINES = 200
LIVE_S, IDLE_S = 1.5, 6.0
# what can change of a job
STAMPED = ("id", "status", "attempt", "progress", "adapter", "stopping", "reason", "priority", "tags", "notes")
HIDDEN_KINDS = (JobKind.COMPARE,)  # shown on their own tab; they end in seconds
Update = dict[Any, Any]


class JobsTab:
    """Left: the queue. Right: the chosen job, or the runs that are compared."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        with tab as self.tab:
            self._stamp = stamp_box("jobs")
            self._written = hidden("jobs-written")  # the job whose tags and note are in the fields
            self._timer = gr.Timer(IDLE_S)
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=2, min_width=280):
                    self._layout_queue()
                with gr.Column(scale=3, min_width=320):
                    self.notice = pieces.panel(elem_id="jobs-notice", elem_classes="notice-place")
                    self.runs = pieces.panel(elem_id="job-runs", visible=False)
                    with gr.Column(elem_id="job-one") as self.one:
                        self._layout_job()
        self._wire()

    def _layout_queue(self) -> None:
        self.queue = pieces.panel(elem_id="jobs-queue")
        self.search = gr.Textbox(
            "",
            placeholder="Search names, data, tags, notes",
            label="Search jobs",
            info="By name, data, tag or note.",
            show_label=False,
            max_lines=1,
            elem_id="jobs-search",
        )
        self.list = pieces.panel(elem_id="jobs-list")

    def _layout_job(self) -> None:
        self.head = pieces.panel(elem_id="job-head")
        self.actions = pieces.panel(elem_id="job-actions")
        self.curve = pieces.panel(elem_id="job-curve")
        self.smooth = gr.Checkbox(False, label="Smooth the curve", container=False, visible=False, elem_id="job-smooth")
        with gr.Accordion("What it answers", open=True, elem_id="job-watched", visible=False) as self.watched_place:
            self.watched = pieces.panel()
        with gr.Accordion("Base against this run", open=True, elem_id="job-report", visible=False) as self.report_place:
            self.report = pieces.panel()
            self.open_report = gr.Button("Open it in Compare: judge, vote, make preferences", elem_id="job-report-open", min_width=180)
        with gr.Accordion("More curves: speed, drift, memory", open=False, elem_id="job-more", visible=False) as self.more_place:
            self.more = pieces.panel()
        with gr.Accordion("Tags and note", open=False, elem_id="job-words", visible=False) as self.words_place:
            self.tags = gr.Textbox("", label="Tags", info="Words to find it by, with commas between them.", max_lines=1, elem_id="job-tags")
            self.note = gr.Textbox("", label="Note", info="What you want to remember of this run.", lines=2, elem_id="job-note")
            self.save = gr.Button("Save tags and note", elem_id="job-save", min_width=160)
        with gr.Accordion("Log", open=False, elem_id="job-log", visible=False) as self.log_place:
            self.log = pieces.panel()
        with gr.Row(visible=False, elem_classes="next") as self.next:
            self.chat = gr.Button("Next: chat with it", variant="primary", elem_id="job-chat", min_width=180)
            self.compare = gr.Button("Compare it with the base", elem_id="job-compare", min_width=180)
        with gr.Row(visible=False, elem_classes="next") as self.after_end:
            self.again = gr.Button("Change it and train again", elem_id="job-again", min_width=180)

    def _wire(self) -> None:
        place, tabs = self._page.place, self._page.tabs
        shown = [place.job, self.queue, self.list, self.runs, self.one, self.head, self.actions, self.curve, self.smooth]
        shown += [
            self.watched_place,
            self.watched,
            self.report_place,
            self.report,
            self.open_report,
            self.more_place,
            self.more,
            self.words_place,
            self.tags,
            self.note,
            self.log_place,
            self.log,
        ]
        shown += [self.next, self.after_end, self.again, self._stamp, self._written, self._timer]
        seen = [place.job, place.runs, self.search, self.smooth, self._stamp, self._written]
        look: dict[str, Any] = {"inputs": seen, "outputs": shown, **QUIET}
        looking = [self.tab.select, place.job.change, place.runs.change, self.search.change, self.smooth.change]
        gr.on(looking, steady(self.look), **{**look, **LATEST})
        self._timer.tick(steady(self.tick), inputs=[place.tab, *seen], outputs=shown, **QUIET)
        moved = [self.notice, place.job, place.runs, tabs, self._stamp]
        for panel, waiting in ((self.list, QUIET), (self.queue, QUIET), (self.actions, busy(self.head))):
            done = panel.select(tells(self.notice)(self.act), inputs=[place.runs], outputs=moved, **waiting)
            done.then(steady(self.look), **look)
        self.open_report.click(steady(self.compared), inputs=[place.job], outputs=[tabs, place.comparison], **QUIET)
        saved = self.save.click(
            tells(self.notice)(self.write), inputs=[self._written, self.tags, self.note], outputs=[self.notice, self._stamp], **QUIET
        )
        saved.then(steady(self.look), **look)

    # what is done

    def act(self, picked: str, event: gr.EventData) -> Update:
        """Whatever was clicked in a list or under the head of a job; it carries the ID of its job, whatever is shown by now."""
        target, jobs, place = event._data, self._studio.jobs, self._page.place
        act, job_id = target["act"], target.get("id", "")
        services = {
            "cancel": jobs.cancel,
            "keep": lambda one: jobs.cancel(one, keep=True),
            "pause": jobs.pause,
            "resume": jobs.resume,
            "retry": jobs.retry,
            "move": lambda one: jobs.move(one, before=target["before"]),
            "pause-queue": lambda _: jobs.pause_queue(),
            "resume-queue": lambda _: jobs.resume_queue(),
        }
        if act in services:
            services[act](job_id)
            return {self._stamp: ""}
        if act == "remedy":
            return {place.job: jobs.apply_remedy(job_id).id, self._stamp: ""}
        moves: dict[str, Update] = {
            "open": {place.job: job_id},
            "pick": {place.runs: jobs_compare.toggled(picked, job_id)},
            "children": {place.runs: f"{jobs_compare.MODE},{job_id}"},
            "start-picking": {place.runs: jobs_compare.MODE},
            "stop-picking": {place.runs: ""},
        }
        return moves.get(act) or {self._page.tabs: go("train")}

    def compared(self, job_id: str) -> Update:
        """To the comparison that the report has filled."""
        return {self._page.tabs: go("compare"), self._page.place.comparison: self._studio.reports.show(job_id).comparison}

    def write(self, job_id: str, tags: str, note: str) -> Update:
        """Keep the tags and the note of the job that the fields belong to."""
        wanted = [tag.strip() for tag in tags.split(",") if tag.strip()]
        before = self._studio.jobs.show(job_id).tags
        self._studio.jobs.tag(job_id, wanted, remove=[tag for tag in before if tag not in wanted])
        job = self._studio.jobs.note(job_id, note)
        return {self.notice: pieces.said(f"Kept with {job.name}."), self._stamp: ""}

    # what is shown

    def tick(self, tab: str, *seen: Any) -> Any:
        if tab != "jobs":
            return gr.skip()
        return self.look(*seen)

    def look(self, job_id: str, picked: str, search: str, smooth: bool, shown: str, written: str) -> Any:
        """Show the rows as they are now; nothing is sent when nothing moved."""
        every = [job for job in self._studio.jobs.list() if job.kind not in HIDDEN_KINDS]
        overview = self._studio.jobs.overview()
        chosen = next((job for job in every if job_id in (job.id, job.name)), next(iter(every), None))
        minutes = [int((job.ends_at or 0) // 60) for job in every if job.status == JobStatus.QUEUED]
        report = None
        if chosen and chosen.kind == JobKind.TRAIN:
            report = self._studio.reports.latest(chosen.id)
        told = report and (report.status, report.progress.step)
        parts = (chosen and chosen.id, told, picked, search, smooth, minutes, overview.paused)
        now = stamp(*parts, [[getattr(job, key) for key in STAMPED] for job in every])
        if now == shown:
            return gr.skip()
        statuses = {job.status for job in every} | {report.status for report in [report] if report}
        pace = IDLE_S if statuses <= ENDED else LIVE_S
        update: Update = {self._stamp: now, self._timer: gr.Timer(pace)}
        if chosen and chosen.id != job_id:
            update[self._page.place.job] = chosen.id
        looks = self._show_runs(update, picked)
        self._show_queue(update, every, overview, search, picked, looks, chosen)
        if not jobs_compare.is_on(picked):
            self._show_job(update, chosen, smooth, written)
        return update

    def _show_runs(self, update: Update, picked: str) -> dict[str, str]:
        """The comparison in the place of the job, while runs are picked; returns the colour of each run."""
        is_on = jobs_compare.is_on(picked)
        update[self.one] = gr.Column(visible=not is_on)
        update[self.runs] = gr.HTML("", visible=is_on)
        if not is_on:
            return {}
        wanted = [job_id for job_id in jobs_compare.slots(picked) if job_id]
        looks = jobs_compare.looks(picked, [])
        data: Mapping[str, Any] = {"jobs": [], "sentence": jobs_compare.HINT}
        drawn = ""
        try:
            if len(wanted) > 1 or (wanted and self._studio.jobs.show(wanted[0]).kind == JobKind.SWEEP):
                compared = self._studio.jobs.compare(wanted)
                looks = jobs_compare.looks(picked, compared.jobs)
                data = jobs_compare.beside(compared, looks)
        except StudioError as exc:
            drawn = pieces.notice(exc)
        update[self.runs] = gr.HTML(drawn or pieces.piece("runs", **data), visible=True)
        return looks

    def _show_queue(
        self,
        update: Update,
        every: list[Job],
        overview: QueueOverview,
        search: str,
        picked: str,
        looks: Mapping[str, str],
        chosen: Job | None,
    ) -> None:
        if not every:
            update[self.queue] = ""
            update[self.list] = pieces.empty("Nothing has been trained yet.", "Set up a training", "train")
            return
        update[self.queue] = pieces.piece(
            "queue",
            sentence=jobs_queue.sentence(overview, time.time()),
            paused=overview.paused,
            busy=bool(overview.queued or overview.running),
            picking=jobs_compare.is_on(picked),
            comparable=sum(job.kind in jobs_queue.COMPARABLE for job in every) > 1,
        )
        listed = every
        if search.strip():
            found = {job.id for job in self._studio.jobs.list(search=search)}
            listed = [job for job in every if job.id in found]
        update[self.list] = pieces.piece(
            "jobs", groups=jobs_queue.groups(listed, looks), selected=chosen and chosen.id, picking=jobs_compare.is_on(picked)
        )

    def _show_job(self, update: Update, chosen: Job | None, smooth: bool, written: str) -> None:
        is_there = chosen is not None
        update |= {self.words_place: gr.Accordion(visible=is_there), self.log_place: gr.Accordion(visible=is_there)}
        if chosen is None:
            told = (self.head, self.actions, self.curve, self.watched, self.report, self.more, self.log, self._written)
            update |= dict.fromkeys(told, "")
            update |= {self.smooth: gr.Checkbox(visible=False)}
            update |= dict.fromkeys((self.watched_place, self.report_place, self.more_place), gr.Accordion(visible=False))
            update |= dict.fromkeys((self.next, self.after_end), gr.Row(visible=False))
            return
        job = self._studio.jobs.show(chosen.id)
        curves = self._studio.jobs.curves(job.id)
        drawing, small = chart.loss(curves, smooth=smooth), jobs_watched.small_charts(curves)
        answered, report = jobs_watched.watched(job.watched), measured.report(job.report)
        update |= {
            self.head: pieces.piece("job", **jobs_head.head(job)),
            self.actions: pieces.piece("job_actions", **jobs_head.actions(job)),
            self.curve: _drawn("chart", drawing),
            self.smooth: gr.Checkbox(visible=bool(drawing)),
            self.watched: _drawn("watched", answered),
            self.watched_place: gr.Accordion(visible=bool(answered)),
            self.report: _drawn("report", report),
            self.report_place: gr.Accordion(visible=bool(report)),
            self.open_report: gr.Button(visible=bool(report and report["state"] == JobStatus.SUCCEEDED)),
            self.more: pieces.piece("small_charts", charts=small),
            self.more_place: gr.Accordion(visible=bool(small)),
            self.log: pieces.piece("log", text=self._studio.jobs.logs(job.id, tail_lines=LOG_LINES)),
            self.next: gr.Row(visible=bool(job.adapter)),
            self.after_end: gr.Row(visible=job.kind == JobKind.TRAIN and job.status in ENDED),
            self.again: gr.Button("Change it and train again" if job.adapter else "Next: change it and train again"),
        }
        if written != job.id:  # what is being typed stays
            update |= {self.tags: ", ".join(job.tags), self.note: job.notes, self._written: job.id}


def _drawn(template: str, data: dict[str, Any] | None) -> str:
    """Nothing where there is nothing to show yet."""
    return pieces.piece(template, **data) if data else ""
