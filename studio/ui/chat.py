"""Chat: is it any good? Each message picks who answers, one or several side by side; answers stream, stop, go on and are kept.

Model output is text on this page, never HTML. Knows nothing of engines: it reads events of the chat service.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import ChatMessage, MessageState
from studio.services import Studio
from studio.services.harvest import context
from studio.types import Message, Role
from studio.ui import chat_shown, chat_turns, choices, pieces, sharing, words
from studio.ui.chat_answering import AnswerColumn, Answering
from studio.ui.chat_keeping import KeepingPiece
from studio.ui.chat_settings import DRAFTS, SettingsPiece, Wishes, wishes
from studio.ui.handlers import QUIET, busy, message, steady, tells
from studio.ui.page import Frame, stamp_box
from studio.ui.programs import ProgramsPiece

MOST_AT_ONCE = 16  # as many as the engine makes in one batch


class ChatTab:
    """Left: the conversation. Right: who answers, how, the exact prompt, and the conversations that are kept."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        self._answering: dict[str, Answering] = {}  # by conversation
        with tab as self.tab, gr.Row(elem_classes="halves"):
            with gr.Column(scale=3, min_width=320):
                self._layout_conversation()
            with gr.Column(scale=2, min_width=300):
                self._layout_choices()
        self._wire()

    def _layout_conversation(self) -> None:
        self.shown = stamp_box("chat")  # whose transcript the page shows, so that a late look can't undo a newer one
        with gr.Column(elem_id="chat-scroll"):  # of one height while it holds messages: what is below stays where it is
            self.transcript = pieces.panel(elem_id="chat-transcript")
            self.live = pieces.panel(elem_id="chat-live")
        self.notice = pieces.panel(elem_id="chat-notice", elem_classes="notice-place")
        self.position = gr.State(0)
        with gr.Column(visible=False, elem_id="chat-correct") as self.correcting:
            self.corrected = gr.Textbox("", label="What it should have said", info="Both answers become a pair to learn from.", lines=3)
            with gr.Row(elem_classes="buttons"):
                self.keep_correction = gr.Button("Keep this answer", variant="primary", elem_id="chat-correct-keep", min_width=140)
                self.drop_correction = gr.Button("Leave it as it was", min_width=140)
        with gr.Column(visible=False, elem_id="chat-results") as self.resulting:
            self.result = gr.Textbox(
                "",
                label="Result of the call",
                info="What the tool would answer. For several calls one line each, in their order.",
                lines=2,
                max_lines=12,
                elem_id="chat-result",
            )
            with gr.Row(elem_classes="buttons"):
                self.send_result = gr.Button("Send the result", variant="primary", elem_id="chat-result-send", min_width=140)
        self.message = gr.Textbox(
            "", label="Your message", info="Enter sends it, Shift+Enter starts a new line.", lines=1, max_lines=12, elem_id="chat-message"
        )
        with gr.Row(elem_classes="buttons"):
            self.send = gr.Button("Send", variant="primary", elem_id="chat-send", min_width=110)
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="chat-stop", min_width=110)
            self.retry = gr.Button("Retry", elem_id="chat-retry", min_width=90)
            self.undo = gr.Button("Undo", elem_id="chat-undo", min_width=90)
            self.go_on = gr.Button("Continue", elem_id="chat-go-on", min_width=100, visible=False)
        with gr.Row(elem_classes="next"):
            self.compare = gr.Button("Next: compare with the base", elem_id="chat-compare", visible=False)

    def _layout_choices(self) -> None:
        self.contestant = gr.Dropdown(
            label="Who answers",
            info="A base, or a base with an adapter; several answer side by side in one batch. You may change it before each message.",
            multiselect=True,
            allow_custom_value=True,
            max_choices=MOST_AT_ONCE,
            elem_id="chat-who",
        )
        self.sharing = pieces.panel(elem_id="chat-sharing")
        self.system = gr.Textbox(
            "",
            label="System prompt",
            info="Standing instructions that come before the conversation. Empty for none.",
            lines=2,
            max_lines=8,
            elem_id="chat-system",
        )
        self.settings = SettingsPiece()
        with gr.Accordion("The exact prompt", open=False, elem_id="chat-exact"):
            self.show_prompt = gr.Button("Show what the model will read", elem_id="chat-show-prompt")
            self.prompt = pieces.panel(elem_id="chat-prompt")
        self.keeping = KeepingPiece(self._studio)
        self.programs = ProgramsPiece(self._studio)

    def _wire(self) -> None:
        place, keeping = self._page.place, self.keeping
        looks = [place.chat, self.shown, self.transcript, self.compare, self.go_on, self.resulting, *keeping.outputs]
        entered = [self.contestant, self.settings.speculation, *looks]
        self.tab.select(steady(self.enter), inputs=[place.chat, self.contestant], outputs=entered, **QUIET)
        place.chat.change(
            steady(self.turn_to), inputs=[place.chat, self.shown], outputs=[self.system, self.settings.tools, *looks], **QUIET
        )
        asked = [self.shown, self.message, self.contestant, self.system, *self.settings.inputs]
        answering = [self.notice, *looks, self.live, self.message, self.result, self.send, self.stop]
        told = tells(self.notice)
        asking = {"inputs": asked, "outputs": answering, **busy()}
        gr.on([self.send.click, self.message.submit], told(self.ask), **asking)
        self.send_result.click(told(self.give_results), inputs=[*asked, self.result], outputs=answering, **busy())
        self.retry.click(told(self.ask_again), **asking)
        self.go_on.click(told(self.continue_answer), **asking)
        self.stop.click(self.stop_answer, inputs=[self.shown], **QUIET)
        self.undo.click(told(self.take_back), inputs=[self.shown], outputs=[self.notice, *looks, self.message], **QUIET)
        correction = [self.position, self.corrected, self.correcting]
        acting = [self.notice, *looks, self.message, *correction]
        self.transcript.select(told(self.act), inputs=[self.shown, self.contestant], outputs=acting, **QUIET)
        kept = {"outputs": [self.notice, *looks, *correction], **QUIET}
        self.keep_correction.click(told(self.correct), inputs=[self.shown, self.position, self.corrected], **kept)
        self.drop_correction.click(lambda: gr.Column(visible=False), outputs=[self.correcting], **QUIET)
        asked_now = [self.shown, self.message, self.contestant, self.system, self.settings.tools]
        shown = {"inputs": asked_now, "outputs": [self.notice, self.prompt]}
        self.show_prompt.click(told(self.exact), **shown, **busy(self.prompt))
        # a new conversation is in the URL from its first word; its place is told at the end, since that costs another call
        self.shown.change(None, inputs=[self.shown], js="(value) => { studio.remember('chat', value); return []; }", **QUIET)
        keeping.new.click(self.begin, outputs=[*looks, self.notice], **QUIET)
        keeping.delete.click(told(self.forget), inputs=[self.shown], outputs=[self.notice, *looks], **QUIET)
        keeping.wire(self.notice, place.chat)
        self.programs.wire()

    # what is shown

    def enter(self, chat_id: str, chosen: list[str] | str | None) -> dict[Any, Any]:
        offered = choices.contestants(self._studio)
        known = {value for _, value in offered}
        kept = [name for name in chat_turns.names(chosen) if name in known or "#" in name]
        drafts = gr.Dropdown(choices=[*DRAFTS, *((f"by {name}, a smaller model", name) for _, name in choices.base_models(self._studio))])
        chosen_now = gr.Dropdown(choices=offered, value=kept or [offered[0][1]])
        return {self.contestant: chosen_now, self.settings.speculation: drafts, **self.look(chat_id)}

    def look(self, chat_id: str) -> dict[Any, Any]:
        """The conversation and the list of all, from rows."""
        conversations = self._studio.chat.conversations()
        shown = chat_id if any(conversation.id == chat_id for conversation in conversations) else ""
        messages = self._messages(shown)
        return {
            self._page.place.chat: shown,
            self.shown: shown,
            self.transcript: chat_shown.transcript(messages),
            self.compare: gr.Button(visible=bool(messages)),
            self.go_on: gr.Button(visible=chat_turns.can_go_on(messages)),
            self.resulting: gr.Column(visible=bool(chat_turns.open_calls(messages))),
            **self.keeping.look(conversations, shown),
        }

    def share(self) -> str:
        """While something trains: how both share the machine."""
        text = sharing.sentence(self._studio.system.strip())
        return text and pieces.piece("sentence", text=text)

    def turn_to(self, chat_id: str, shown: str) -> dict[Any, Any]:
        """Another conversation, with its system prompt and its tools."""
        if chat_id and chat_id == shown:  # a new conversation that is being answered right now
            return {self.system: gr.skip()}
        found = [conversation for conversation in self._studio.chat.conversations() if conversation.id == chat_id]
        kept = {self.system: found[0].system, self.settings.tools: found[0].tools} if found else {self.system: gr.skip()}
        return {**kept, **self.look(chat_id)}

    def begin(self) -> dict[Any, Any]:
        return {**self.look(""), self.notice: ""}

    def forget(self, chat_id: str) -> dict[Any, Any]:
        self._studio.chat.delete(chat_id)
        return self.look("")

    def exact(self, chat_id: str, text: str, chosen: list[str] | None, system: str, tools: str) -> dict[Any, Any]:
        """The prompt of what is typed now, else of the last answer."""
        who = self._who(chosen, "")[0]
        messages = self._messages(chat_id)
        if not text.strip():
            messages = chat_turns.asked(messages)
        heard = context(messages, system.strip(), who)
        if text.strip():
            heard.append(Message(role=Role.USER, content=text.strip()))
        if not heard:
            raise StudioError("There is nothing to show yet.", "Type a message first.")
        return {self.prompt: chat_shown.prompt(self._studio.chat.prompt(who, heard, tools=tools or ""))}

    # what is done with a message

    def act(self, chat_id: str, chosen: list[str] | None, event: gr.EventData) -> dict[Any, Any]:
        data = event._data
        act = data["act"]
        if act == "suggest":
            who = (chosen or [""])[0]
            return {self.message: choices.example_for(self._studio, who.partition(":")[2])}
        by_position = {message.position: message for message in self._studio.chat.messages(chat_id)}
        chosen_one = by_position.get(int(data["position"]))
        if chosen_one is None:
            raise StudioError("That message is gone.", "Reload the page.")
        position = chosen_one.position
        if act == "good":
            self._studio.chat.update(chat_id, position, mark="" if chosen_one.mark else "good")
            return self.look(chat_id)
        if act == "correct":
            return {self.position: position, self.corrected: chosen_one.content, self.correcting: gr.Column(visible=True)}
        self._free(chat_id)
        self._studio.chat.truncate(chat_id, position)  # edit: the question returns to the box, what followed it goes
        return {**self.look(chat_id), self.message: chosen_one.content}

    def correct(self, chat_id: str, position: int, text: str) -> dict[Any, Any]:
        self._studio.chat.correct(chat_id, int(position), text)
        return {**self.look(chat_id), self.correcting: gr.Column(visible=False)}

    def take_back(self, chat_id: str) -> dict[Any, Any]:
        """Remove the last question and its answers; the question returns to the box."""
        asked = chat_turns.asked(self._messages(chat_id))
        if not asked:
            raise StudioError("There is nothing to undo yet.", "Send a message first.")
        first = chat_turns.first_of_last_question(asked)
        self._studio.chat.truncate(chat_id, first.position)
        text = {} if first.role == "tool" else {self.message: first.content}
        return {**self.look(chat_id), **text}

    # asking

    def ask(self, chat_id: str, text: str, chosen: list[str] | None, system: str, *values: Any) -> Iterator[dict[Any, Any]]:
        if not text.strip():
            raise StudioError("The message is empty.", "Type one, then press Enter.")
        wanted, who = wishes(values), self._who(chosen, chat_id)
        if not chat_id:
            chat_id = self._studio.chat.create(title=chat_turns.title(text), system=system.strip(), tools=wanted.tools).id
        self._studio.chat.append(chat_id, role="user", content=text.strip())
        updates = self._answer(chat_id, [AnswerColumn(name) for name in who], wanted, system)
        yield {**next(updates), self.message: ""}
        yield from updates

    def give_results(self, chat_id: str, text: str, chosen: list[str] | None, system: str, *values: Any) -> Iterator[dict[Any, Any]]:
        """What a person says that the called tools answer; the model goes on from there."""
        *settings, typed = values
        wanted, who = wishes(settings), self._who(chosen, chat_id)
        for call, result in chat_turns.results(self._messages(chat_id), str(typed or "")):
            self._studio.chat.append(chat_id, role="tool", content=result, tool_call_id=call.id)
        updates = self._answer(chat_id, [AnswerColumn(name) for name in who], wanted, system)
        yield {**next(updates), self.result: ""}
        yield from updates

    def ask_again(self, chat_id: str, text: str, chosen: list[str] | None, system: str, *values: Any) -> Iterator[dict[Any, Any]]:
        """Replace the last answers by those of whoever is chosen now."""
        wanted, who = wishes(values), self._who(chosen, chat_id)
        asked = chat_turns.asked(self._messages(chat_id))
        if not asked:
            raise StudioError("There is nothing to retry yet.", "Send a message first.")
        self._studio.chat.truncate(chat_id, asked[-1].position + 1)
        yield from self._answer(chat_id, [AnswerColumn(name) for name in who], wanted, system)

    def continue_answer(self, chat_id: str, text: str, chosen: list[str] | None, system: str, *values: Any) -> Iterator[dict[Any, Any]]:
        """Have the last answer go on where it broke off, by whoever gave it."""
        self._free(chat_id)
        messages = self._messages(chat_id)
        if not chat_turns.can_go_on(messages):
            raise StudioError("There is no answer that could go on.", "Send a message first.")
        last = messages[-1]
        yield from self._answer(chat_id, [AnswerColumn(last.contestant, before=last.content)], wishes(values), system, last.position)

    def stop_answer(self, chat_id: str) -> None:
        if chat_id in self._answering:
            self._answering[chat_id].stop.set()

    def _who(self, chosen: list[str] | str | None, chat_id: str) -> list[str]:
        self._free(chat_id)
        names = list(dict.fromkeys(chat_turns.names(chosen)))
        if not names:
            raise StudioError("No model is chosen to answer.", "Choose one under Who answers.")
        return names

    def _messages(self, chat_id: str) -> list[ChatMessage]:
        """Of a conversation that may not have begun ("")."""
        return self._studio.chat.messages(chat_id) if chat_id else []

    def _free(self, chat_id: str) -> None:
        if chat_id in self._answering:
            raise StudioError("An answer is still being written.", "Wait for its end, or press Stop.")

    def _answer(
        self, chat_id: str, answers: list[AnswerColumn], wanted: Wishes, system: str, position: int | None = None
    ) -> Iterator[dict[Any, Any]]:
        """Stream `answers` to the page and keep them; with `position`, that message goes on."""
        rows = self._studio.chat.messages(chat_id)
        opens = self._opens(chat_id, chat_turns.asked(rows), answers, wanted, system.strip())
        running = self._answering[chat_id] = Answering(answers, opens)
        try:
            running.start()
            yield {
                self.shown: chat_id,
                self.transcript: chat_shown.transcript([row for row in rows if row.position != position]),
                **self._writing(True),
                self.notice: "",
                self.live: chat_shown.live(answers, "Waiting for the engine"),
            }
            for grown in running.updates():
                waiting = ""
                if not grown or len(answers) > 1:
                    waiting = self._loading()
                yield {self.live: chat_shown.live(answers, waiting)}
        finally:  # also when the page was closed: what was written so far is kept
            del self._answering[chat_id]
            running.stop.set()
            self._keep(chat_id, answers, position)
            self._studio.chat.instruct(chat_id, system.strip(), wanted.tools)
        notices = [message(self._dated(answer.error)) for answer in answers if answer.error]
        yield {**self.look(chat_id), **self._writing(False), self.live: "", self.notice: "".join(notices[:1])}

    def _opens(self, chat_id: str, rows: list[ChatMessage], answers: list[AnswerColumn], wanted: Wishes, system: str) -> Any:
        before = {answer.contestant: answer.before for answer in answers}
        # drafts pay for one answer alone; several share a batch instead
        speculation = wanted.speculation if len(answers) == 1 else ""
        conversation = chat_id if wanted.recalls else None

        def open_stream(contestant: str) -> Any:
            heard = context(rows, system, contestant)
            if before[contestant]:
                heard.append(Message(role=Role.ASSISTANT, content=before[contestant]))
            return self._studio.chat.stream(
                contestant,
                heard,
                wanted.params,
                grammar=wanted.grammar or None,
                json_schema=wanted.json_schema or None,
                quantization=wanted.quantization,
                speculation=speculation,
                goes_on=bool(before[contestant]),
                tools="" if before[contestant] else wanted.tools,
                conversation=conversation,
            )

        return open_stream

    def _keep(self, chat_id: str, answers: list[AnswerColumn], position: int | None) -> None:
        for answer in answers:
            if position is not None:
                self._studio.chat.update(chat_id, position, content=answer.before + answer.text, state=answer.state, usage=answer.usage)
            elif answer.text or answer.calls or answer.state == MessageState.DONE:
                self._studio.chat.append(
                    chat_id,
                    role="assistant",
                    content=answer.text,
                    contestant=answer.contestant,
                    state=answer.state,
                    usage=answer.usage,
                    tool_calls=answer.calls,
                )

    def _dated(self, error: StudioError) -> StudioError:
        """An engine that has given way to a job: with the time at which that job is expected to end."""
        job = error.details.get("job")
        running = self._studio.jobs.overview().running
        eta_s = next((row.progress.eta_s for row in running if row.name == job), None)
        if not eta_s:
            return error
        return StudioError(f"{error.message} {job} has {words.left(eta_s)}.", error.fix)

    def _loading(self) -> str:
        loading = self._studio.system.engine().loading
        if loading is None:
            return "Waiting for the engine"
        text = f"The engine is loading {loading.name}"
        if loading.expected_s:
            text += f", about {words.duration(loading.expected_s)}"
        return text

    def _writing(self, now: bool) -> dict[Any, Any]:
        return {self.send: gr.Button(visible=not now), self.stop: gr.Button(visible=now)}
