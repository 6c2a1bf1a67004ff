"""Export and merge, for the Models tab: choose an adapter and a form, see why a form is refused, read the proof, fetch the files.

`build` makes it inside a tab; it looks by itself while that tab is open. Knows nothing of how files are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from studio.catalogue import gguf
from studio.errors import StudioError
from studio.records import K_QUANTS, PENDING, Export, ExportFormat, ExportProof, JobStatus, MergeMethod, Outtype
from studio.services import Studio
from studio.services.folders import is_inside
from studio.services.merging import parse
from studio.ui import choices, pieces, words
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Frame, stamp, stamp_box

TAB = "models"
LIVE_S, IDLE_S = 1.0, 8.0
FORMATS = {
    ExportFormat.ADAPTER: "Adapter (safetensors): small, needs its base model",
    ExportFormat.MERGED: "Whole model, 16 bit (merged safetensors)",
    ExportFormat.GGUF: "Whole model for llama.cpp and ollama (GGUF)",
    ExportFormat.GGUF_LORA: "Adapter for llama.cpp (GGUF LoRA)",
}
WORDS = {
    ExportFormat.ADAPTER: "adapter",
    ExportFormat.MERGED: "merged model",
    ExportFormat.GGUF: "GGUF",
    ExportFormat.GGUF_LORA: "GGUF LoRA",
}
OUTTYPES = [
    ("16 bit (f16)", Outtype.F16.value),
    ("16 bit of larger range (bf16)", Outtype.BF16.value),
    ("8 bit, half the size (q8_0)", Outtype.Q8_0.value),
    ("6 bit (q6_k)", Outtype.Q6_K.value),
    ("5 bit (q5_k_m)", Outtype.Q5_K_M.value),
    ("4 bit, a third of the size (q4_k_m)", Outtype.Q4_K_M.value),
]
NEEDS = "q6_k, q5_k_m and q4_k_m are made by llama.cpp's quantizer"
METHODS = [
    ("Add them up (linear)", MergeMethod.LINEAR.value),
    ("Keep the largest values, agree on signs (TIES)", MergeMethod.TIES.value),
    ("Thin out at random (DARE)", MergeMethod.DARE.value),
]
SHOWN = 20


def build(studio: Studio, page: Frame) -> ExportsPart:
    """Lay it out here, inside the Models tab, and wire it."""
    return ExportsPart(studio, page)


class ExportsPart:
    """What to write, and what was written."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        self._stamp = stamp_box("exports")
        self._timer = gr.Timer(IDLE_S)
        with gr.Column(elem_classes="exporting"):
            self._layout()
        self._wire()

    def _layout(self) -> None:
        gr.Markdown("### Export an adapter", elem_classes="section-title")
        self.adapter = gr.Dropdown(label="Adapter", info="What training made, or you brought here.", elem_id="export-adapter")
        self.format = gr.Radio(_formats(), value="merged", label="Form", info="What others can load it with.", elem_id="export-format")
        self.refused = pieces.panel(elem_id="export-refused")
        needs = NEEDS if gguf.has_quantizer() else f"{NEEDS}, which is not installed here."
        self.outtype = gr.Radio(
            OUTTYPES, value="f16", label="Numbers of the GGUF · outtype", info=needs, visible=False, elem_id="export-outtype"
        )
        self.importance = gr.Checkbox(
            True,
            label="Importance matrix · importance",
            info="Rounds least what matters on the training rows; of q6_k, q5_k_m and q4_k_m.",
            visible=False,
            elem_id="export-importance",
        )
        self.verify = gr.Slider(
            1,
            64,
            value=8,
            step=1,
            label="Prompts of the proof",
            info="The file is read back and must answer them as the adapter does.",
            elem_id="export-verify",
        )
        self.start = gr.Button("Write and prove it", variant="primary", elem_id="export-start")
        self.notice = pieces.panel(elem_id="export-notice", elem_classes="notice-place")
        self.list = pieces.panel(elem_id="export-list")
        with gr.Accordion("Upload a proved export to the hub", open=False, elem_id="export-push"):
            self.proved = gr.Dropdown(label="Export", info="Only what passed its proof can be uploaded.", elem_id="export-proved")
            self.repository = gr.Textbox("", label="Repository", info="OWNER/NAME; HF_TOKEN must be set.", elem_id="export-repository")
            self.private = gr.Checkbox(True, label="Private", info="Only you and your organisation see it on the hub.")
            self.push = gr.Button("Upload it")
        with gr.Accordion("Make one adapter of several", open=False, elem_id="merge"):
            self.weights = gr.Textbox(
                "", label="Adapters and weights", info="Such as first=0.7,second=0.3; all of one base.", elem_id="merge-weights"
            )
            self.method = gr.Radio(
                METHODS,
                value="linear",
                label="Method",
                info="linear adds the updates; ties settles signs first; dare drops part of each at random.",
                elem_id="merge-method",
            )
            self.name = gr.Textbox("", label="Name", info="Empty makes one.", max_lines=1, elem_id="merge-name")
            self.merge = gr.Button("Merge them", elem_id="merge-start")

    def _wire(self) -> None:
        tab, told = self._page.place.tab, tells(self.notice)
        shown = [self.adapter, self.proved, self.list, self._stamp, self._timer]
        seen: dict[str, Any] = {"inputs": [self.adapter, self.proved, self._stamp], "outputs": shown, **QUIET}
        gr.on([tab.change], steady(self.enter), inputs=[tab, *seen["inputs"]], outputs=shown, **QUIET)
        self._timer.tick(steady(self.enter), inputs=[tab, *seen["inputs"]], outputs=shown, **QUIET)
        chosen, depends = [self.format, self.outtype], [self.outtype, self.importance]
        gr.on([self.format.change, self.outtype.change], _visible, inputs=chosen, outputs=depends, **QUIET)
        self.adapter.change(steady(self.refuse), inputs=[self.adapter], outputs=[self.refused], **QUIET)
        asked = [self.adapter, self.format, self.outtype, self.verify, self.importance]
        begun = self.start.click(told(self.write), inputs=asked, outputs=[self.notice, self._stamp], **busy(self.list))
        acted = self.list.select(told(self.act), outputs=[self.notice, self._stamp], **QUIET)
        pushed = [self.proved, self.repository, self.private]
        self.push.click(told(self.upload), inputs=pushed, outputs=[self.notice], **busy(self.notice))
        added = [self.weights, self.method, self.name]
        made = self.merge.click(told(self.add_up), inputs=added, outputs=[self.notice, self.adapter], **busy(self.notice))
        for done in (begun, acted, made):
            done.then(steady(self.look), **seen)

    # what is done

    def write(self, adapter: str | None, form: str, outtype: str, verify: float, importance: bool) -> dict[Any, Any]:
        if not adapter:
            raise StudioError("No adapter is chosen.", "Train one first, or bring one with `studio adapters add`.")
        made = self._studio.exports.create(adapter, form, outtype=outtype, verify=int(verify), importance=importance)
        return {self.notice: pieces.said(f"{made.name} is queued; its proof appears below.", "info"), self._stamp: ""}

    def act(self, event: gr.EventData) -> dict[Any, Any]:
        act, export_id = event._data["act"], event._data["id"]
        if act == "cancel":
            self._studio.jobs.cancel(export_id)
        elif act == "delete":
            self._studio.exports.delete(export_id)
        return {self._stamp: ""}

    def upload(self, export_id: str | None, repository: str, private: bool) -> dict[Any, Any]:
        if not export_id:
            raise StudioError("No export is chosen.", "Write and prove one first.")
        done = self._studio.exports.push(export_id, repository.strip(), private=private)
        return {self.notice: pieces.said(f"Uploaded to {done.url}.")}

    def add_up(self, weights: str, method: str, name: str) -> dict[Any, Any]:
        made = self._studio.merging.merge(parse(weights), method, name.strip() or None)
        offered = choices.adapters(self._studio, None)
        return {self.notice: pieces.said(f"{made.name} is made."), self.adapter: gr.Dropdown(choices=offered, value=made.name)}

    # what is shown

    def enter(self, tab: str, *seen: Any) -> Any:
        return self.look(*seen) if tab == TAB else gr.skip()

    def refuse(self, adapter: str | None) -> str:
        """Why the chosen adapter can't take some forms."""
        found = self._studio.exports.formats(adapter) if adapter else {}
        reasons = dict.fromkeys(reason for reason in found.values() if reason)
        named = [(" or ".join(WORDS[ExportFormat(form)] for form, said in found.items() if said == reason), reason) for reason in reasons]
        return pieces.piece("formats", refused=named)

    def look(self, adapter: str | None, proved: str | None, shown: str) -> Any:
        """The list as it is now; nothing is sent when nothing moved."""
        rows = self._studio.exports.list()[:SHOWN]
        offered = choices.adapters(self._studio, None)
        moves = any(row.status in PENDING for row in rows)
        now = stamp(rows, offered, adapter)
        if now == shown:
            return gr.skip()
        passed = [(row.name, row.id) for row in rows if row.status == JobStatus.SUCCEEDED and row.files]
        return {
            self.adapter: choices.update(offered, adapter),
            self.proved: choices.update(passed, proved),
            self.list: pieces.piece("exports", exports=[self._shown(row) for row in rows]),
            self._stamp: now,
            self._timer: gr.Timer(LIVE_S if moves else IDLE_S),
        }

    def _shown(self, row: Export) -> dict[str, Any]:
        elsewhere = not is_inside(Path(row.path), self._studio.settings.exports)
        return {"export": row, "facts": facts(row), "proof": proof(row.verified), "elsewhere": elsewhere}


def facts(row: Export) -> str:
    """What was written, how large it is, and when."""
    found = [f"{row.format} {row.outtype}" if row.outtype else row.format, words.ago(row.created_at)]
    if row.bytes:
        found.insert(1, words.size(row.bytes))
    return " · ".join(found)


def proof(verified: ExportProof | None) -> str:
    """The proof in words: what was asked, what came out."""
    if not verified:
        return ""
    if verified.passed is None:
        return f"Not proved. {verified.reason}"
    if not verified.passed or verified.worst_share is None:
        return f"The proof failed. {verified.reason}"
    if verified.rounding:
        return (
            f"Proved in 16 bit, and rounded: its tensors are off by at most {words.share(verified.rounding.worst_error)} of their size. "
            f"On {words.count(verified.prompts, 'prompt')} {verified.identical} answers are identical, "
            f"and logits move by up to {words.share(verified.worst_share)} of what the adapter changes."
        )
    return (
        f"Proved on {words.count(verified.prompts, 'prompt')}: {verified.identical} answers are identical, "
        f"and it is off by at most {words.share(verified.worst_share)} of what the adapter changes (5 % would fail)."
    )


def _visible(form: str, outtype: str) -> tuple[Any, Any]:
    """Which of the settings of a GGUF are there."""
    is_gguf = form == ExportFormat.GGUF
    return gr.Radio(visible=is_gguf), gr.Checkbox(visible=is_gguf and outtype in K_QUANTS)


def _formats() -> list[tuple[str, str]]:
    return [(label, format.value) for format, label in FORMATS.items()]
