"""The frame that the tabs share: what a tab is, and what the reader has open, kept in the URL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import gradio as gr

from studio.services import Studio
from studio.ui.handlers import LATEST, QUIET

Part = TypeVar("Part")
NOW = "() => String(performance.now())"


@dataclass(frozen=True)
class Location:
    """What the reader has open, as hidden fields: inputs of handlers, mirrored into the URL, read back on load."""

    tab: gr.Textbox
    dataset: gr.Textbox
    job: gr.Textbox
    runs: gr.Textbox  # those that are compared on the Jobs tab
    chat: gr.Textbox
    comparison: gr.Textbox
    model: gr.Textbox  # base/NAME or adapter/NAME, on the Models tab

    @classmethod
    def build(cls) -> Location:
        """Call inside the Blocks, before the tabs."""
        return cls(**{name: hidden(name) for name in cls.names()})

    @classmethod
    def names(cls) -> list[str]:
        """As they are called in the URL."""
        return [field.name for field in fields(cls)]

    def boxes(self) -> list[gr.Textbox]:
        return [getattr(self, name) for name in self.names()]

    def keep_in_url(self) -> None:
        """Mirror every later change of a field into the URL, so that a reload shows the same thing."""
        for name, box in zip(self.names(), self.boxes(), strict=True):
            box.change(
                None,
                inputs=[box],
                js=f"(value) => {{ studio.remember('{name}', value); return []; }}",
                queue=False,
                api_visibility="private",
            )


@dataclass(frozen=True)
class Frame:
    """What every tab gets."""

    place: Location
    tabs: gr.Tabs
    redrawn: list[gr.Textbox] = field(default_factory=list)  # one for each `redraw`, placed when all tabs are built

    def redraw(
        self, name: str, triggers: Sequence[Callable[..., Any]], handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> None:
        """Call `handler` after any of `triggers`, and once more where one of them comes meanwhile.

        It gets an event of its own. Gradio 6 repeats a whole event, for all its handlers, where one of them was asked meanwhile: two
        handlers of one event that both are `always_last` then ask each other without end, and the page stalls.
        """
        asked = hidden(f"redraw-{name}", render=False)
        self.redrawn.append(asked)
        gr.on(triggers, None, outputs=[asked], js=NOW, **QUIET)
        asked.change(handler, inputs=inputs, outputs=outputs, **LATEST)

    def place_redrawn(self) -> None:
        """Call inside the Blocks, behind the tabs."""
        for box in self.redrawn:
            box.render()


@dataclass(frozen=True)
class TabEntry:
    """One tab of the page. studio.ui.tabs lists them in their order."""

    key: str  # in the URL, and in `go`
    title: str  # on its button
    question: str  # what it answers for the reader; screen readers read it first
    build: Callable[[Studio, Frame, gr.Tab], object]  # fills the tab with components
    links: tuple[Callable[[BuiltPage], None], ...] = ()  # lead into other tabs; called once all are built

    def open(self) -> gr.Tab:
        return gr.Tab(self.title, id=self.key, elem_id=f"tab-{self.key}", elem_classes="studio-tab")


class BuiltPage:
    """The strip and the tabs of one page by their class: a link finds both its ends whatever was built first."""

    def __init__(self, studio: Studio, blocks: gr.Blocks, frame: Frame, parts: Iterable[object]) -> None:
        self.studio = studio
        self.blocks = blocks
        self.place = frame.place
        self.tabs = frame.tabs
        self._parts = {type(part): part for part in parts}

    def of(self, kind: type[Part]) -> Part:
        """The part that `kind` built."""
        part = self._parts[kind]
        assert isinstance(part, kind)
        return part


def hidden(name: str, render: bool = True) -> gr.Textbox:
    """A field that only the page sees: what it shows now, or where the reader is."""
    return gr.Textbox(value="", visible="hidden", elem_id=f"place-{name}", label=name, render=render)


def stamp_box(tab: str) -> gr.Textbox:
    """What the page shows now, as `stamp` of it. The page holds it, since two answers may arrive in the wrong order."""
    return hidden(f"{tab}-shown")


def stamp(*shown: Any) -> str:
    """Equal for equal things to show."""
    return hashlib.blake2s(repr(shown).encode(), digest_size=8).hexdigest()


def go(tab: str) -> Any:
    """The update that opens `tab`."""
    return gr.Tabs(selected=tab)


def ending(label: str, elem_id: str, visible: bool = True) -> gr.Button:
    """The next-step button that ends a tab; place it in a row of its own."""
    with gr.Row(elem_classes="next"):
        return gr.Button(label, elem_id=elem_id, variant="secondary", visible=visible, elem_classes="next-step")
