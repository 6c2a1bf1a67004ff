"""Chat: is it any good? A conversation in which each message picks who answers; answers stream, stop, retry and are kept.

Model output is text on this page, never HTML. Knows nothing of engines: it reads events of the chat service.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.services import Studio
from studio.types import GenerationParams
from studio.ui import choices, pieces, words
from studio.ui.handlers import QUIET, busy, message, steady, tells
from studio.ui.page import Page, opening, stamp_box

JOIN_S = 0.04  # tokens of this long become one update of the page
LOOK_S = 0.8  # between two looks at what the engine is loading
SAMPLING = GenerationParams.model_fields


@dataclass
class Answer:
    """One answer while it is written. Read by its own thread, shown by the handler, stopped by a button."""

    contestant: str
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    error: StudioError | None = None
    state: str = "stopped"  # until its end has come: done or failed
    stop: threading.Event = field(default_factory=threading.Event)


class ChatTab:
    """Left: the conversation. Right: who answers, how, and the conversations that are kept."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page
        self._answering: dict[str, Answer] = {}  # by conversation
        with opening("chat") as self.tab, gr.Row(elem_classes="halves"):
            with gr.Column(scale=3, min_width=320):
                self._layout_conversation()
            with gr.Column(scale=2, min_width=300):
                self._layout_choices()
        self._wire()

    def _layout_conversation(self) -> None:
        self.shown = stamp_box("chat")  # whose transcript the page shows, so that a late look can't undo a newer one
        self.transcript = pieces.panel(elem_id="chat-transcript")
        self.live = pieces.panel(elem_id="chat-live")
        self.notice = pieces.panel(elem_id="chat-notice", elem_classes="notice-place")
        self.message = gr.Textbox(
            "", label="Your message", info="Enter sends it, Shift+Enter starts a new line.", lines=1, max_lines=12, elem_id="chat-message"
        )
        with gr.Row(elem_classes="buttons"):
            self.send = gr.Button("Send", variant="primary", elem_id="chat-send", min_width=110)
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="chat-stop", min_width=110)
            self.retry = gr.Button("Retry", elem_id="chat-retry", min_width=90)
            self.undo = gr.Button("Undo", elem_id="chat-undo", min_width=90)
        with gr.Row(elem_classes="next"):
            self.compare = gr.Button("Next: compare with the base", elem_id="chat-compare", visible=False)

    def _layout_choices(self) -> None:
        self.contestant = gr.Dropdown(
            label="Who answers", info="A base model, or a base with an adapter. You may change it before each message.", elem_id="chat-who"
        )
        self.system = gr.Textbox(
            "",
            label="System prompt",
            info="Standing instructions that come before the conversation. Empty for none.",
            lines=2,
            max_lines=8,
            elem_id="chat-system",
        )
        with gr.Row():
            self.temperature = gr.Number(
                0.7, label="Temperature", info=SAMPLING["temperature"].description, minimum=0, maximum=5, step=0.1, min_width=150
            )
            self.max_new_tokens = gr.Number(
                256, label="Longest answer · max_new_tokens", info=SAMPLING["max_new_tokens"].description, precision=0, min_width=150
            )
        with gr.Row(elem_classes="buttons"):
            self.new = gr.Button("New conversation", elem_id="chat-new", min_width=150)
            self.delete = gr.Button("Delete this one", elem_id="chat-delete", min_width=130, visible=False)
        self.conversations = pieces.panel(elem_id="chat-list")

    def _wire(self) -> None:
        place = self._page.place
        looks = [place.chat, self.shown, self.transcript, self.conversations, self.compare, self.delete]
        self.tab.select(steady(self.enter), inputs=[place.chat, self.contestant], outputs=[self.contestant, *looks], **QUIET)
        place.chat.change(steady(self.turn_to), inputs=[place.chat, self.shown], outputs=[self.system, *looks], **QUIET)
        asked = [place.chat, self.message, self.contestant, self.system, self.temperature, self.max_new_tokens]
        answering = [self.notice, *looks, self.live, self.message, self.send, self.stop]
        told = tells(self.notice)
        asking = {"inputs": asked, "outputs": answering, **busy()}
        gr.on([self.send.click, self.message.submit], told(self.ask), **asking)
        self.retry.click(told(self.ask_again), **asking)
        self.stop.click(self.stop_answer, inputs=[place.chat], **QUIET)
        self.undo.click(told(self.take_back), inputs=[place.chat], outputs=[self.notice, *looks, self.message], **QUIET)
        self.new.click(self.begin, outputs=[*looks, self.notice], **QUIET)
        self.delete.click(told(self.forget), inputs=[place.chat], outputs=[self.notice, *looks], **QUIET)
        self.conversations.select(self.open, outputs=[place.chat], **QUIET)
        self.transcript.select(self.suggest, inputs=[self.contestant], outputs=[self.message], **QUIET)

    # what is shown

    def enter(self, chat_id: str, contestant: str | None) -> dict[Any, Any]:
        return {self.contestant: choices.update(choices.contestants(self._studio), contestant), **self.look(chat_id)}

    def look(self, chat_id: str) -> dict[Any, Any]:
        """The conversation and the list of all, from rows."""
        conversations = self._studio.chat.conversations()
        chosen = next((row for row in conversations if row["id"] == chat_id), None)
        messages = self._studio.chat.messages(chat_id) if chosen else []
        listed = pieces.piece("conversations", conversations=conversations, selected=chat_id) if conversations else ""
        return {
            self._page.place.chat: chosen["id"] if chosen else "",
            self.shown: chosen["id"] if chosen else "",
            self.transcript: _transcript(messages),
            self.conversations: listed,
            self.compare: gr.Button(visible=bool(messages)),
            self.delete: gr.Button(visible=chosen is not None),
        }

    def turn_to(self, chat_id: str, shown: str) -> dict[Any, Any]:
        """Another conversation, with the system prompt that it began with."""
        if chat_id and chat_id == shown:  # a new conversation that is being answered right now
            return {self.system: gr.skip()}
        chosen = next((row for row in self._studio.chat.conversations() if row["id"] == chat_id), None)
        return {self.system: chosen["system"] if chosen else gr.skip(), **self.look(chat_id)}

    def open(self, event: gr.EventData) -> str:
        return str(event._data["id"])

    def begin(self) -> dict[Any, Any]:
        return {**self.look(""), self.notice: ""}

    def forget(self, chat_id: str) -> dict[Any, Any]:
        self._studio.chat.delete(chat_id)
        return self.look("")

    def suggest(self, contestant: str | None) -> str:
        return choices.example_for(self._studio, (contestant or "").partition(":")[2])

    # asking

    def ask(
        self, chat_id: str, text: str, contestant: str | None, system: str, temperature: Any, max_new_tokens: Any
    ) -> Iterator[dict[Any, Any]]:
        if not text.strip():
            raise StudioError("The message is empty.", "Type one, then press Enter.")
        params, who = _params(temperature, max_new_tokens), self._who(contestant, chat_id)
        if not chat_id:
            chat_id = self._studio.chat.create(title=_title(text), system=system.strip())["id"]
        self._studio.chat.append(chat_id, role="user", content=text.strip())
        yield from self._answer(chat_id, who, params, system)

    def ask_again(
        self, chat_id: str, text: str, contestant: str | None, system: str, temperature: Any, max_new_tokens: Any
    ) -> Iterator[dict[Any, Any]]:
        """Drop the last answer and have it written anew, by whoever is chosen now."""
        params, who = _params(temperature, max_new_tokens), self._who(contestant, chat_id)
        messages = self._studio.chat.messages(chat_id) if chat_id else []
        asked = [row["position"] for row in messages if row["role"] == "user"]
        if not asked:
            raise StudioError("There is nothing to retry yet.", "Send a message first.")
        self._studio.chat.truncate(chat_id, asked[-1] + 1)
        for update in self._answer(chat_id, who, params, system):
            update.pop(self.message, None)  # what is being typed stays
            yield update

    def take_back(self, chat_id: str) -> dict[Any, Any]:
        """Remove the last question and its answer; the question returns to the box."""
        messages = self._studio.chat.messages(chat_id) if chat_id else []
        asked = [row for row in messages if row["role"] == "user"]
        if not asked:
            raise StudioError("There is nothing to undo yet.", "Send a message first.")
        self._studio.chat.truncate(chat_id, asked[-1]["position"])
        return {**self.look(chat_id), self.message: asked[-1]["content"]}

    def stop_answer(self, chat_id: str) -> None:
        if chat_id in self._answering:
            self._answering[chat_id].stop.set()

    def _who(self, contestant: str | None, chat_id: str) -> str:
        if chat_id in self._answering:
            raise StudioError("An answer is still being written.", "Wait for its end, or press Stop.")
        if not contestant:
            raise StudioError("Nobody is chosen to answer.", "Choose a model under Who answers.")
        return contestant

    def _answer(self, chat_id: str, who: str, params: GenerationParams, system: str) -> Iterator[dict[Any, Any]]:
        messages = [{"role": row["role"], "content": row["content"]} for row in self._studio.chat.messages(chat_id)]
        if system.strip():
            messages.insert(0, {"role": "system", "content": system.strip()})
        answer = self._answering[chat_id] = Answer(who)
        try:
            yield {
                **self.look(chat_id),
                **self._writing(True),
                self.message: "",
                self.notice: "",
                self.live: _live(answer, "Waiting for the engine"),
            }
            yield from self._stream(answer, messages, params)
        finally:  # also when the page was closed: what was written so far is kept
            del self._answering[chat_id]
            answer.stop.set()
            if answer.text or answer.state == "done":
                self._studio.chat.append(
                    chat_id, role="assistant", content=answer.text, contestant=who, state=answer.state, usage=answer.usage
                )
        told = message(answer.error) if answer.error else ""
        yield {**self.look(chat_id), **self._writing(False), self.live: "", self.notice: told}

    def _stream(self, answer: Answer, messages: list[dict[str, Any]], params: GenerationParams) -> Iterator[dict[Any, Any]]:
        """Updates of the live answer, at most one per JOIN_S."""
        events: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, args=(answer, messages, params, events), daemon=True).start()
        looked = time.monotonic()
        while not answer.stop.is_set():
            grown, ended = _take(answer, events)
            if ended:
                return
            if grown:
                yield {self.live: _live(answer, "")}
            elif not answer.text and time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                yield {self.live: _live(answer, self._loading())}

    def _read(self, answer: Answer, messages: list[dict[str, Any]], params: GenerationParams, events: queue.Queue[Any]) -> None:
        """In a thread of its own, so that a silent engine can be stopped too. None marks the end."""
        try:
            stream: Any = self._studio.chat.stream(answer.contestant, messages, params)
            try:
                for event in stream:
                    events.put(event)
                    if answer.stop.is_set():
                        break
            finally:
                stream.close()
        except StudioError as exc:
            answer.error, answer.state = exc, "failed"
        except Exception as exc:  # noqa: BLE001  the edge of this thread: the page must hear of it
            message(exc)
            answer.state = "failed"
            answer.error = StudioError("The answer broke off.", f"Try again; the log says more ({type(exc).__name__}).")
        finally:
            events.put(None)

    def _loading(self) -> str:
        loading = self._studio.system.strip()["engine"].get("loading")
        if not loading:
            return "Waiting for the engine"
        expected = f", about {words.duration(loading['expected_s'])}" if loading.get("expected_s") else ""
        return f"The engine is loading {loading['name']}{expected}"

    def _writing(self, now: bool) -> dict[Any, Any]:
        return {self.send: gr.Button(visible=not now), self.stop: gr.Button(visible=now)}


def _take(answer: Answer, events: queue.Queue[Any]) -> tuple[bool, bool]:
    """Wait for an event, then gather what comes within JOIN_S. Returns whether text grew, and whether the answer ended."""
    until = time.monotonic() + JOIN_S
    grown = False
    while (wait := until - time.monotonic()) > 0:
        try:
            event = events.get(timeout=wait)
        except queue.Empty:
            break
        if event is None:
            return grown, True
        if event.error:
            answer.error, answer.state = event.error, "failed"
        if event.finish_reason:
            answer.state = "done"
        if event.usage:
            answer.usage = event.usage.as_json()
        answer.text += event.text
        grown = grown or bool(event.text)
    return grown, False


def _params(temperature: Any, max_new_tokens: Any) -> GenerationParams:
    limit = SAMPLING["max_new_tokens"]
    if not isinstance(temperature, (int, float)) or not 0 <= temperature <= 5:
        raise StudioError("Temperature must be a number from 0 to 5.", "0 always takes the likeliest token; 0.7 is usual.")
    if not isinstance(max_new_tokens, (int, float)) or not 1 <= max_new_tokens <= 32768:
        raise StudioError("The longest answer must be a number of tokens from 1 to 32768.", f"{limit.default} is usual.")
    return GenerationParams(temperature=temperature, max_new_tokens=int(max_new_tokens))


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 48 else line[:47] + "…"


def _live(answer: Answer, waiting: str) -> str:
    return pieces.piece("live", who=answer.contestant, toy=choices.is_toy(answer.contestant), text=answer.text, waiting=waiting)


def _transcript(messages: list[dict[str, Any]]) -> str:
    if not messages:
        return pieces.empty("Say something to a model, and change who answers as you go.", "Suggest a question", "suggest")
    return pieces.piece("transcript", messages=[_shown(row) for row in messages])


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    is_answer = row["role"] == "assistant"
    notes = {"stopped": "stopped here", "failed": "broke off here"}
    tokens = (row.get("usage") or {}).get("completion_tokens")
    note = " · ".join(item for item in (words.count(tokens, "token") if tokens else "", notes.get(row.get("state") or "", "")) if item)
    return {
        "role": row["role"],
        "who": row["contestant"] if is_answer else "you",
        "toy": is_answer and choices.is_toy(row["contestant"]),
        "content": row["content"],
        "state": row.get("state") or "done",
        "note": note if is_answer else "",
    }
