"""The status strip on every tab: device, memory, what runs and for how long, what waits, what the engine holds.

Each chip is a link to its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.records import DeviceReading, EngineStatus, Job, StatusStrip
from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.handlers import QUIET, steady
from studio.ui.page import Frame, go, stamp, stamp_box

BUSY_S, IDLE_S = 2.0, 10.0
GIB = 1024**3


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
        pause = {True: BUSY_S, False: IDLE_S}[is_busy(strip)]
        return {
            self.panel: pieces.piece("strip", chips=readings),
            self.shown: stamp(readings),
            self._timer: gr.Timer(pause),
        }

    def follow(self, event: gr.EventData) -> tuple[Any, Any]:
        target = event._data
        return go(target["tab"]), target.get("job") or gr.skip()


@dataclass(frozen=True)
class Chip:
    """A reading as a link to its place: a tab, or a job there. `part` of 1 is drawn as a bar."""

    icon: str
    text: str
    tab: str
    tone: str = "plain"
    job: str = ""
    part: float | None = None


def is_busy(strip: StatusStrip) -> bool:
    return bool(strip.running or strip.queued or strip.engine.loading)


def chips(strip: StatusStrip) -> list[Chip]:
    found = [*map(_device, strip.devices), *map(_running, strip.running)]
    if strip.problem:
        found.insert(0, Chip("warn", f"GPU not used: {strip.problem}", "start", tone="failed"))
    if strip.queued:
        found.append(Chip("clock", f"{strip.queued} queued", "jobs"))
    elif not strip.running:
        found.append(Chip("pause", "nothing runs", "jobs"))
    return [*found, _engine(strip.engine)]


def _device(device: DeviceReading) -> Chip:
    readings = [device.name, f"{device.used_bytes / GIB:.1f} of {device.memory_bytes / GIB:.0f} GiB"]
    if device.use is not None:
        readings.append(f"{device.use:.0%}")
    if device.temperature_c is not None:
        readings.append(f"{device.temperature_c} °C")
    if device.power_w is not None:
        readings.append(f"{device.power_w:.0f} W")
    return Chip("device", " · ".join(readings), "start")


def _running(job: Job) -> Chip:
    part = words.part(job.progress)
    readings = (f"running {job.name}", words.share(part), words.left(job.progress.eta_s))
    return Chip("run", " · ".join(filter(None, readings)), "jobs", tone="running", job=job.id, part=part)


def _engine(engine: EngineStatus) -> Chip:
    lease = engine.yielded
    if engine.loading:
        text = f"engine: loading {engine.loading.name}"
        if engine.loading.expected_s:
            text += f", about {words.duration(engine.loading.expected_s)}"
        return Chip("engine", text, "chat", tone="running")
    if engine.loaded:
        text = f"engine: {engine.loaded.base}"
        if engine.loaded.adapters:
            text += f" + {words.count(len(engine.loaded.adapters), 'adapter')}"
        if lease:
            text += f", beside {lease.job}"
        return Chip("engine", text, "chat")
    if lease:
        return Chip("engine", f"engine: leaves room for {lease.job}", "chat")
    if engine.ok:
        return Chip("engine", "engine: idle", "chat")
    return Chip("engine", "engine: not answering", "chat")
