"""The status strip on every tab: device, memory, what runs and for how long, what waits, what the engine holds.

Knows nothing of the tabs beyond their names: each chip is a link to its place.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.records import EngineStatus, Job
from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.handlers import QUIET, steady
from studio.ui.page import Frame, go, stamp, stamp_box

BUSY_S, IDLE_S = 2.0, 10.0


class Strip:
    """Refreshed every two seconds while something runs, else every ten."""

    def __init__(self, studio: Studio) -> None:
        self._system = studio.system
        self.panel = pieces.panel(elem_id="strip")
        self.shown = stamp_box("strip")
        self._timer = gr.Timer(IDLE_S)

    def wire(self, page: Frame, blocks: gr.Blocks) -> None:
        outputs = [self.panel, self.shown, self._timer]
        blocks.load(steady(self.refresh), inputs=[self.shown], outputs=outputs, **QUIET)
        self._timer.tick(steady(self.refresh), inputs=[self.shown], outputs=outputs, **QUIET)
        self.panel.select(self.follow, outputs=[page.tabs, page.place.job], **QUIET)

    def refresh(self, shown: str) -> Any:
        strip = self._system.strip()
        readings = chips(strip)
        if stamp(readings) == shown:
            return gr.skip()
        return {
            self.panel: pieces.piece("strip", chips=readings),
            self.shown: stamp(readings),
            self._timer: gr.Timer(BUSY_S if is_busy(strip) else IDLE_S),
        }

    def follow(self, event: gr.EventData) -> tuple[Any, Any]:
        target = event._data
        return go(target["tab"]), target.get("job") or gr.skip()


def is_busy(strip: dict[str, Any]) -> bool:
    return bool(strip["running"] or strip["queued"] or strip["engine"].loading)


def chips(strip: dict[str, Any]) -> list[dict[str, Any]]:
    """The strip's readings as links: {icon, text, tone, tab, job, part}."""
    found = [_chip("device", f"{strip['device']} · {strip['memory']}", "start")]
    for job in strip["running"]:
        found.append(_running(job))
    if strip["queued"]:
        found.append(_chip("clock", f"{strip['queued']} queued", "jobs"))
    elif not strip["running"]:
        found.append(_chip("pause", "nothing runs", "jobs"))
    found.append(_engine(strip["engine"]))
    return found


def _chip(icon: str, text: str, tab: str, *, tone: str = "plain", job: str = "", part: float | None = None) -> dict[str, Any]:
    return {"icon": icon, "text": text, "tab": tab, "tone": tone, "job": job, "part": part}


def _running(job: Job) -> dict[str, Any]:
    part = words.part(job.progress)
    text = " · ".join(item for item in (f"running {job.name}", words.share(part), words.left(job.progress.eta_s)) if item)
    return _chip("run", text, "jobs", tone="running", job=job.id, part=part)


def _engine(engine: EngineStatus) -> dict[str, Any]:
    if engine.loading:
        loading = engine.loading
        expected = f", about {words.duration(loading.expected_s)}" if loading.expected_s else ""
        return _chip("engine", f"engine: loading {loading.name}{expected}", "chat", tone="running")
    lease = engine.yielded
    if engine.loaded:
        text = f"engine: {engine.loaded.base}"
        if engine.loaded.adapters:
            text += f" + {words.count(len(engine.loaded.adapters), 'adapter')}"
        if lease:
            text += f", beside {lease.job}"
        return _chip("engine", text, "chat")
    if lease:
        return _chip("engine", f"engine: leaves room for {lease.job}", "chat")
    return _chip("engine", "engine: idle" if engine.ok else "engine: not answering", "chat")
