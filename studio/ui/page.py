"""The frame that the tabs share: the row of tabs, and where the reader is (tab, dataset, job, chat, comparison), kept in the URL.

Knows nothing of what the tabs show.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

TABS = {
    "start": "Start",
    "data": "Data",
    "train": "Train",
    "jobs": "Jobs",
    "chat": "Chat",
    "compress": "Compress",
    "compare": "Compare",
    "models": "Models",
}


@dataclass(frozen=True)
class Place:
    """Where the reader is, as hidden fields: inputs of handlers, mirrored into the URL by studio.js, read back on load."""

    tab: gr.Textbox
    dataset: gr.Textbox
    job: gr.Textbox
    runs: gr.Textbox  # those that are compared on the Jobs tab
    chat: gr.Textbox
    comparison: gr.Textbox
    model: gr.Textbox  # base/NAME or adapter/NAME, on the Models tab

    @classmethod
    def build(cls) -> Place:
        """Call inside the Blocks, before the tabs."""
        return cls(**{field.name: hidden(field.name) for field in fields(cls)})

    def boxes(self) -> list[gr.Textbox]:
        return [getattr(self, field.name) for field in fields(self)]

    def keep_in_url(self) -> None:
        """Mirror every later change of a field into the URL, so that a reload shows the same thing."""
        for field in fields(self):
            box = getattr(self, field.name)
            box.change(
                None,
                inputs=[box],
                js=f"(value) => {{ studio.remember('{field.name}', value); return []; }}",
                queue=False,
                api_visibility="private",
            )


@dataclass(frozen=True)
class Page:
    """What every tab gets."""

    place: Place
    tabs: gr.Tabs


def hidden(name: str) -> gr.Textbox:
    """A field that only the page sees: what it shows now, or where the reader is."""
    return gr.Textbox(value="", visible="hidden", elem_id=f"place-{name}", label=name)


def stamp_box(tab: str) -> gr.Textbox:
    """What the page shows now, as `stamp` of it. It is held by the page, since answers to two looks may overtake each other on the way."""
    return hidden(f"{tab}-shown")


def stamp(*shown: Any) -> str:
    """Equal for equal things to show."""
    return hashlib.blake2s(repr(shown).encode(), digest_size=8).hexdigest()


def go(tab: str) -> Any:
    """The update that opens `tab`."""
    return gr.Tabs(selected=tab)


def opening(name: str) -> gr.Tab:
    return gr.Tab(TABS[name], id=name, elem_id=f"tab-{name}", elem_classes="studio-tab")


def ending(label: str, elem_id: str, visible: bool = True) -> gr.Button:
    """The next-step button that ends a tab; place it in a row of its own."""
    with gr.Row(elem_classes="next"):
        return gr.Button(label, elem_id=elem_id, variant="secondary", visible=visible, elem_classes="next-step")
