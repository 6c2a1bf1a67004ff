"""Chat: who may answer, answers whole or as they come, and conversations that are kept. Knows the engine as a client only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from studio.db.models import CachedAnswerRow, ChatMessageRow, ConversationRow
from studio.db.session import Database
from studio.engine import outgoing
from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant, Event, Usage
from studio.errors import NotFoundError, StudioError
from studio.records import (
    AnswerUsage,
    ChatAnswer,
    ChatLessons,
    ChatMessage,
    Conversation,
    Deleted,
    ExportedConversation,
    ExportedMessage,
    MadeCall,
    MessageState,
    PromptPreview,
)
from studio.services import chat_forms, recall
from studio.services.adapters import AdapterService
from studio.services.models import ModelService
from studio.services.paging import ALL, Listed, Page
from studio.settings import Settings
from studio.types import GenerationParams, Message

Messages = Sequence[Message | Mapping[str, Any]]


class ChatService:
    """What a person can do in chat. `stream` gives the engine's events."""

    def __init__(
        self, settings: Settings, db: Database, models: ModelService, adapters: AdapterService, engine: EngineClient | None = None
    ) -> None:
        self.settings = settings
        self.db = db
        self.models = models
        self.adapters = adapters
        self.engine = engine or EngineClient.from_settings(settings)

    def available(self) -> list[str]:
        """Names of what can answer here now: the starter, the added bases, then BASE:ADAPTER."""
        return self.adapters.available()

    def answer(
        self,
        contestants: Sequence[str],
        messages: Messages,
        params: GenerationParams,
        base_model: str | None = None,
        *,
        grammar: str | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        quantization: str = "",
    ) -> list[ChatAnswer]:
        """One answer per contestant, in their order; asked at once, so that the engine makes them in one batch.

        `grammar` is GBNF text, `json_schema` a schema or its text. Raises StudioError for the first contestant that can't answer.
        """
        form = chat_forms.form_of(grammar, json_schema)
        resolved = [replace(self.adapters.resolve(contestant, base_model), quantization=quantization) for contestant in contestants]

        def ask(contestant: Contestant) -> ChatAnswer:
            done = self.engine.chat(contestant, messages, params, grammar=form)
            return ChatAnswer(
                contestant=contestant.name,
                text=done.text,
                prompt_tokens=done.prompt_tokens,
                completion_tokens=done.completion_tokens,
                seconds=round(done.seconds, 3),
            )

        with ThreadPoolExecutor(max_workers=max(1, len(resolved))) as pool:
            return list(pool.map(ask, resolved))

    def stream(
        self,
        contestant: str,
        messages: Messages,
        params: GenerationParams,
        base_model: str | None = None,
        *,
        grammar: str | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        quantization: str = "",
        speculation: str = "",
        goes_on: bool = False,
        conversation: str | None = None,
        tools: str = "",
    ) -> Iterator[Event]:
        """The answer as it comes. Closing the iterator stops the generation. Raises StudioError, also midway.

        `tools`: that it may call, a JSON list in OpenAI's shape; told as plain text where the chat template has no place for them.
        `speculation`: "prompt_lookup", or the name of a smaller model that drafts. `goes_on`: the last message is an answer to be
        continued. With `conversation` an answer that was given before under exactly the same conditions is given again, and this
        one is kept for next time; it leaves with the conversation.
        """
        resolved = replace(self.adapters.resolve(contestant, base_model), quantization=quantization)
        form, more = chat_forms.form_of(grammar, json_schema), self._more(speculation, goes_on)
        if tools.strip():
            more |= {"tools": chat_forms.tools_of(tools), **({} if resolved.url else {"tools_as_instruction": True})}
        asked = outgoing.plain(messages)
        key = None
        if conversation is not None:
            key = recall.key_of(resolved, asked, params, {**more, "form": form and [form.kind, form.source]})
        if key is None or conversation is None:
            yield from self.engine.stream(resolved, asked, params, grammar=form, more=more)
            return
        with self.db.read() as session:
            known = recall.find(session, key)
        if known is not None:
            yield Event(text=known.text)
            usage = Usage(known.usage.get("prompt_tokens", 0), known.usage.get("completion_tokens", 0))
            yield Event(finish_reason=known.finish_reason, usage=usage, facts={"recalled": True})
            return
        yield from self._kept(key, conversation, self.engine.stream(resolved, asked, params, grammar=form, more=more))

    def _kept(self, key: str, conversation: str, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on, and keep the whole answer once it has ended well."""
        text = ""
        with closing(events):  # type: ignore[type-var]
            for event in events:
                text += event.text
                if event.finish_reason and event.finish_reason != "tool_calls":  # only texts are kept for recall
                    self._keep(key, conversation, text, event)
                yield event

    def _keep(self, key: str, conversation: str, text: str, end: Event) -> None:
        with self.db.write() as session:
            if session.get(ConversationRow, conversation) is not None:
                recall.keep(session, key, conversation, text, str(end.finish_reason), end.usage)

    def prompt(self, contestant: str, messages: Messages, base_model: str | None = None, tools: str = "") -> PromptPreview:
        """Exactly what the model would read. Raises StudioError."""
        resolved = self.adapters.resolve(contestant, base_model)
        if resolved.url:
            raise StudioError("Another server writes its prompt itself, so it can't be shown here.", "Choose a model of this studio.")
        return self.engine.prompt(resolved, messages, chat_forms.tools_of(tools) if tools.strip() else [])

    def _more(self, speculation: str, goes_on: bool) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if goes_on:
            more = {"continue_final_message": True, "add_generation_prompt": False}
        if speculation == "prompt_lookup":
            more["speculation"] = speculation
        elif speculation:
            assistant = self.models.resolve(speculation, loadable=True)
            more |= {"speculation": "assistant", "assistant": {"name": assistant.name, "path": str(assistant.path)}}
        return more

    # conversations

    def conversations(self, search: str = "", page: Page = ALL) -> Listed[Conversation]:
        """Latest first; with `search`, those whose title or messages hold this text."""
        query = _counted().order_by(ConversationRow.updated_at.desc())
        if search.strip():
            said = select(ChatMessageRow.conversation_id).where(ChatMessageRow.content.icontains(search.strip(), autoescape=True))
            query = query.where(ConversationRow.title.icontains(search.strip(), autoescape=True) | ConversationRow.id.in_(said))
        with self.db.read() as session:
            rows = page.read(session, query)
            return rows.as_are(_conversation(row, count) for row, count in rows)

    def export(self, conversation_id: str) -> ExportedConversation:
        """The whole conversation: title, system prompt, messages with who answered and how."""
        with self.db.read() as session:
            row = self.find(session, conversation_id)
        messages = [
            message.model_dump(include=set(ExportedMessage.model_fields), exclude_unset=True) for message in self.messages(conversation_id)
        ]
        return ExportedConversation(
            id=row.id,
            title=row.title,
            system=row.system,
            tools=row.tools,
            created_at=row.created_at,
            updated_at=row.updated_at,
            messages=[ExportedMessage(**{name: value for name, value in message.items() if value}) for message in messages],
        )

    def create(self, title: str = "", system: str = "", tools: str = "") -> Conversation:
        with self.db.write() as session:
            row = ConversationRow(title=title, system=system, tools=tools)
            session.add(row)
            session.flush()
            return _conversation(row, 0)

    def rename(self, conversation_id: str, title: str) -> Conversation:
        with self.db.write() as session:
            self.find(session, conversation_id).title = title
        return self.show(conversation_id)

    def instruct(self, conversation_id: str, system: str, tools: str | None = None) -> Conversation:
        """Change the system prompt, or the tools too: what is asked from now on, and the rows made of this conversation, have them."""
        with self.db.write() as session:
            row = self.find(session, conversation_id)
            row.system, row.tools = system, row.tools if tools is None else tools
        return self.show(conversation_id)

    def show(self, conversation_id: str) -> Conversation:
        with self.db.read() as session:
            self.find(session, conversation_id)
            row, count = session.execute(_counted().where(ConversationRow.id == conversation_id)).one()
            return _conversation(row, count)

    def delete(self, conversation_id: str) -> Deleted:
        """The conversation and its messages are gone for good."""
        with self.db.write() as session:
            row = self.find(session, conversation_id)
            session.execute(delete(CachedAnswerRow).where(CachedAnswerRow.conversation_id == row.id))
            session.execute(delete(ChatMessageRow).where(ChatMessageRow.conversation_id == row.id))
            session.delete(row)
            return Deleted(id=row.id, name=row.title)

    def messages(self, conversation_id: str) -> list[ChatMessage]:
        """In order."""
        query = select(ChatMessageRow).where(ChatMessageRow.conversation_id == conversation_id).order_by(ChatMessageRow.position)
        with self.db.read() as session:
            self.find(session, conversation_id)
            return [_message(row) for row in session.scalars(query)]

    def append(
        self,
        conversation_id: str,
        *,
        role: str,
        content: str,
        contestant: str = "",
        state: MessageState = MessageState.DONE,
        usage: AnswerUsage | None = None,
        tool_calls: Sequence[MadeCall] = (),
        tool_call_id: str = "",
    ) -> ChatMessage:
        """Add a message at the end."""
        with self.db.write() as session:
            conversation = self.find(session, conversation_id)
            last = session.scalar(select(func.max(ChatMessageRow.position)).where(ChatMessageRow.conversation_id == conversation.id))
            row = ChatMessageRow(
                conversation_id=conversation.id,
                position=0 if last is None else last + 1,
                role=role,
                content=content,
                contestant=contestant,
                state=state,
                usage=_stored(usage or AnswerUsage()),
                tool_calls=[call.model_dump() for call in tool_calls],
                tool_call_id=tool_call_id,
            )
            session.add(row)
            conversation.updated_at = time.time()
            session.flush()
            return _message(row)

    def update(
        self,
        conversation_id: str,
        position: int,
        *,
        content: str | None = None,
        state: MessageState | None = None,
        usage: AnswerUsage | None = None,
        mark: str | None = None,
    ) -> ChatMessage:
        """Change a message: an answer that grew, ended or was marked (`mark`: "good" or ""). What is None stays."""
        given = {"content": content, "state": state, "usage": usage and _stored(usage), "mark": mark}
        with self.db.write() as session:
            row = self.find_message(session, conversation_id, position)
            for column, value in given.items():
                if value is not None:
                    setattr(row, column, value)
            return _message(row)

    def lessons(self) -> ChatLessons:
        """How many answers were marked as good, and how many corrected, in all conversations."""
        answers, preferences = (func.count().filter(ChatMessageRow.mark == "good"), func.count().filter(ChatMessageRow.original != ""))
        with self.db.read() as session:
            good, corrected = session.execute(select(answers, preferences)).one()
        return ChatLessons(answers=good, preferences=corrected)

    def correct(self, conversation_id: str, position: int, content: str) -> ChatMessage:
        """Write an answer better than the model did; what the model had written is kept, and both become a preference pair."""
        if not content.strip():
            raise StudioError("The corrected answer is empty.", "Write what the model should have said.")
        with self.db.write() as session:
            row = self.find_message(session, conversation_id, position)
            if row.role != "assistant":
                raise NotFoundError(f"The conversation has no answer {position}.", "Reload the page.")
            if row.tool_calls:  # what the model had written is no text, so there would be no pair to learn from
                raise StudioError("An answer that calls tools can't be corrected.", "Retry it, and mark a good one.")
            original = row.original or row.content
            row.content, row.original = content, original
            if content == original:
                row.original = ""
            return _message(row)

    def truncate(self, conversation_id: str, position: int) -> None:
        """Remove the messages from `position` on."""
        with self.db.write() as session:
            conversation = self.find(session, conversation_id)
            later = (ChatMessageRow.conversation_id == conversation.id, ChatMessageRow.position >= position)
            session.execute(delete(ChatMessageRow).where(*later))
            conversation.updated_at = time.time()

    # rows

    def find(self, session: Session, conversation_id: str) -> ConversationRow:
        """By ID. Raises NotFoundError."""
        row = session.get(ConversationRow, conversation_id)
        if row is None:
            raise NotFoundError(f"There is no conversation {conversation_id!r}.", "It may have been deleted; choose another one.")
        return row

    def find_message(self, session: Session, conversation_id: str, position: int) -> ChatMessageRow:
        """A message that is about to change, so that its conversation becomes the latest. Raises NotFoundError."""
        conversation = self.find(session, conversation_id)
        wanted = (ChatMessageRow.conversation_id == conversation.id, ChatMessageRow.position == position)
        row = session.scalar(select(ChatMessageRow).where(*wanted))
        if row is None:
            raise NotFoundError(f"The conversation has no message {position}.", "Reload the page.")
        conversation.updated_at = time.time()
        return row


def _counted() -> Select[ConversationRow, int | None]:
    """Conversations, each with the number of its messages, null for none."""
    counts = select(ChatMessageRow.conversation_id, func.count().label("messages")).group_by(ChatMessageRow.conversation_id).subquery()
    return select(ConversationRow, counts.c.messages).outerjoin(counts, counts.c.conversation_id == ConversationRow.id)


def _conversation(row: ConversationRow, messages: int | None) -> Conversation:
    return Conversation(
        id=row.id,
        title=row.title,
        system=row.system,
        tools=row.tools,
        created_at=row.created_at,
        updated_at=row.updated_at,
        messages=messages or 0,
    )


def _stored(usage: AnswerUsage) -> dict[str, Any]:
    """What is known of it."""
    return usage.model_dump(exclude_unset=True)


def _message(row: ChatMessageRow) -> ChatMessage:
    return ChatMessage(
        id=row.id,
        position=row.position,
        role=row.role,
        content=row.content,
        contestant=row.contestant,
        state=MessageState(row.state),
        usage=AnswerUsage.model_validate(row.usage),
        tool_calls=[MadeCall.model_validate(call) for call in row.tool_calls],
        tool_call_id=row.tool_call_id,
        mark=row.mark,
        original=row.original,
        created_at=row.created_at,
    )
