"""The page as one Blocks: the strip, the tabs as studio.ui.tabs lists them, and where the reader was."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from studio.services import Studio
from studio.ui import pieces
from studio.ui.handlers import QUIET
from studio.ui.page import BuiltPage, Frame, Location, TabEntry, go
from studio.ui.strip import Strip
from studio.ui.tabs import TABS


def build(studio: Studio) -> gr.Blocks:
    """The whole page over `studio`'s services."""
    with gr.Blocks(title="Adapter Studio", analytics_enabled=False, fill_width=False, delete_cache=(3600, 86400)) as blocks:
        strip = Strip(studio)
        place = Location.build()
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            frame = Frame(place, tabs)
            built = [_fill(entry, studio, frame) for entry in TABS]
        frame.place_redrawn()
        strip.wire(frame, blocks)
        page = BuiltPage(studio, blocks, frame, [strip, *built])
        for entry in TABS:
            for link in entry.links:
                link(page)
        _restore(blocks, frame)
    return blocks


def _fill(entry: TabEntry, studio: Studio, frame: Frame) -> object:
    with entry.open() as tab:
        pieces.panel(pieces.piece("question", title=entry.title, question=entry.question), elem_classes="unseen")
    return entry.build(studio, frame, tab)


def _restore(blocks: gr.Blocks, frame: Frame) -> None:
    """On load, go where the URL says; afterwards keep the URL true."""
    boxes, names = frame.place.boxes(), json.dumps(frame.place.names())
    frame.place.keep_in_url()
    frame.tabs.change(None, outputs=[frame.place.tab], js="() => studio.currentTab()", **QUIET)
    blocks.load(_arrive, inputs=boxes, outputs=[frame.tabs, *boxes], js=f"() => studio.start({names})", **QUIET)


def _arrive(tab: str, *rest: str) -> list[Any]:
    if tab not in [entry.key for entry in TABS]:
        tab = TABS[0].key
    return [go(tab), tab, *rest]
