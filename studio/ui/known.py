"""Models that people use, on the Models tab: what trains and answers here, how large it is, a button to add it.

Knows nothing of what is here already; the tab fetches what is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr

from studio.records import SizeSource
from studio.services import Studio
from studio.ui import pieces

FITS = {"qlora-sft": "QLoRA", "lora-sft": "LoRA", "full": "full training"}
SOURCES = {
    SizeSource.CONFIG: "from a public copy of its config.json",
    SizeSource.LITGPT: "from litgpt's model configurations",
    SizeSource.LIBRARY: "from the defaults of its class in transformers",
    SizeSource.DOCUMENTATION: "from its documentation",
    SizeSource.MEMORY: "from what is publicly known, compared with its published number of parameters alone",
}


class KnownPiece:
    """The list with its filter, or what a search of the hub found."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.filter = gr.Textbox(
            "",
            label="Show only",
            info="A word of its name, licence or use.",
            max_lines=1,
            elem_id="models-filter",
        )
        self.panel = pieces.panel(elem_id="models-known")

    def draw(self, wanted: str) -> str:
        rows = self._studio.known.list()
        text = wanted.strip().lower()
        found = [row for row in rows if text in f"{row.repository} {row.licence} {row.good_for} {row.template}".lower()]
        return pieces.piece(
            "known_models",
            models=[(row, fitting(row.fits)) for row in found],
            total=len(rows),
            trained=sum(row.trains for row in found),
            chatting=sum(row.chats for row in found),
            asked=next((row.asked for row in rows if row.asked), "no library"),
            sources=SOURCES,
        )

    def find(self, query: str) -> str:
        """What the hub knows. Raises StudioError without a network."""
        return pieces.piece("found_models", models=self._studio.known.search(query), query=query)


def fitting(found: Mapping[str, bool | None]) -> str:
    """What of the usual methods fits here, in words."""
    good = [FITS[name] for name, fits in found.items() if fits]
    if good:
        return "fits here: " + ", ".join(good)
    if any(fits is False for fits in found.values()):
        return "too large for this machine"
    return ""
