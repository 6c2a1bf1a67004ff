"""Chat: who may answer, answers whole or as they come, and conversations that are kept. Knows the engine as a client only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from studio.db.models import CachedAnswer, ChatMessageRow, ConversationRow
from studio.db.session import Database
from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant, Event, Grammar, Usage
from studio.errors import NotFoundError, StudioError
from studio.services import recall
from studio.services.adapters import AdapterService
from studio.services.models import ModelService
from studio.settings import Settings
from studio.types import GenerationParams, Message

Messages = Sequence[Message | Mapping[str, Any]]
STATES = ("done", "stopped", "failed")


class ChatService:
    """What a person can do in chat. Every method returns plain values; `stream` gives events."""

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
    ) -> list[dict[str, Any]]:
        """One answer per contestant, in their order; asked at once, so that the engine makes them in one batch.

        `grammar` is GBNF text, `json_schema` a schema or its text. Raises StudioError for the first contestant that can't answer.
        """
        form = _form(grammar, json_schema)
        resolved = [replace(self.adapters.resolve(contestant, base_model), quantization=quantization) for contestant in contestants]

        def ask(contestant: Contestant) -> dict[str, Any]:
            done = self.engine.chat(contestant, messages, params, grammar=form)
            return {
                "contestant": contestant.name,
                "text": done.text,
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "seconds": round(done.seconds, 3),
            }

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
    ) -> Iterator[Event]:
        """The answer as it comes. Closing the iterator stops the generation. Raises StudioError, also midway.

        `speculation`: "prompt_lookup", or the name of a smaller model that drafts. `goes_on`: the last message is an answer to be
        continued. With `conversation` an answer that was given before under exactly the same conditions is given again, and this
        one is kept for next time; it leaves with the conversation.
        """
        resolved = replace(self.adapters.resolve(contestant, base_model), quantization=quantization)
        form, more = _form(grammar, json_schema), self._more(speculation, goes_on)
        asked = [m.model_dump(exclude_none=True) if isinstance(m, Message) else dict(m) for m in messages]
        key = recall.key_of(resolved, asked, params, {**more, "form": form and [form.kind, form.source]}) if conversation else None
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
                if event.finish_reason:
                    self._keep(key, conversation, text, event)
                yield event

    def _keep(self, key: str, conversation: str, text: str, end: Event) -> None:
        with self.db.write() as session:
            if session.get(ConversationRow, conversation) is not None:
                usage = end.usage.as_json() if end.usage else {}
                recall.keep(session, key, conversation, text, str(end.finish_reason), usage)

    def prompt(self, contestant: str, messages: Messages, base_model: str | None = None) -> dict[str, Any]:
        """Exactly what the model would read: {"text", "ids", "tokens", "context", "template"}. Raises StudioError."""
        resolved = self.adapters.resolve(contestant, base_model)
        if resolved.url:
            raise StudioError("Another server writes its prompt itself, so it can't be shown here.", "Choose a model of this studio.")
        return self.engine.prompt(resolved, messages)

    def _more(self, speculation: str, goes_on: bool) -> dict[str, Any]:
        more: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False} if goes_on else {}
        if speculation == "prompt_lookup":
            more["speculation"] = speculation
        elif speculation:
            assistant = self.models.resolve(speculation, loadable=True)
            more |= {"speculation": "assistant", "assistant": {"name": assistant.name, "path": str(assistant.path)}}
        return more

    # conversations

    def conversations(self, search: str = "") -> list[dict[str, Any]]:
        """Latest first, each with its number of `messages`; with `search`, those whose title or messages hold this text."""
        counts = select(ChatMessageRow.conversation_id, func.count().label("messages")).group_by(ChatMessageRow.conversation_id).subquery()
        query = (
            select(ConversationRow, counts.c.messages)
            .outerjoin(counts, counts.c.conversation_id == ConversationRow.id)
            .order_by(ConversationRow.updated_at.desc())
        )
        if search.strip():
            said = select(ChatMessageRow.conversation_id).where(ChatMessageRow.content.icontains(search.strip(), autoescape=True))
            query = query.where(ConversationRow.title.icontains(search.strip(), autoescape=True) | ConversationRow.id.in_(said))
        with self.db.read() as session:
            return [{**_conversation(row), "messages": count or 0} for row, count in session.execute(query)]

    def export(self, conversation_id: str) -> dict[str, Any]:
        """The whole conversation as plain JSON: title, system prompt, messages with who answered and how."""
        chosen = next((row for row in self.conversations() if row["id"] == conversation_id), None)
        if chosen is None:
            raise NotFoundError(f"There is no conversation {conversation_id!r}.", "It may have been deleted; choose another one.")
        kept = ("role", "content", "contestant", "state", "usage", "mark", "original", "created_at")
        messages = [{name: row[name] for name in kept if row[name]} for row in self.messages(conversation_id)]
        return {**chosen, "messages": messages}

    def create(self, title: str = "", system: str = "") -> dict[str, Any]:
        with self.db.write() as session:
            row = ConversationRow(title=title, system=system)
            session.add(row)
            session.flush()
            return _conversation(row)

    def rename(self, conversation_id: str, title: str) -> dict[str, Any]:
        with self.db.write() as session:
            row = _find(session, conversation_id)
            row.title = title
            return _conversation(row)

    def instruct(self, conversation_id: str, system: str) -> dict[str, Any]:
        """Change the system prompt: what is asked from now on, and the rows made of this conversation, begin with it."""
        with self.db.write() as session:
            row = _find(session, conversation_id)
            row.system = system
            return _conversation(row)

    def delete(self, conversation_id: str) -> dict[str, Any]:
        """The conversation and its messages are gone for good."""
        with self.db.write() as session:
            row = _find(session, conversation_id)
            session.execute(delete(CachedAnswer).where(CachedAnswer.conversation_id == row.id))
            session.execute(delete(ChatMessageRow).where(ChatMessageRow.conversation_id == row.id))
            session.delete(row)
            return {"id": row.id, "deleted": True}

    def messages(self, conversation_id: str) -> list[dict[str, Any]]:
        """In order. `state` of an answer: done, stopped (by the user) or failed; its text is then what had come."""
        query = select(ChatMessageRow).where(ChatMessageRow.conversation_id == conversation_id).order_by(ChatMessageRow.position)
        with self.db.read() as session:
            _find(session, conversation_id)
            return [_message(row) for row in session.scalars(query)]

    def append(
        self,
        conversation_id: str,
        *,
        role: str,
        content: str,
        contestant: str = "",
        state: str = "done",
        usage: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Add a message at the end."""
        _check_state(state)
        with self.db.write() as session:
            conversation = _find(session, conversation_id)
            last = session.scalar(select(func.max(ChatMessageRow.position)).where(ChatMessageRow.conversation_id == conversation.id))
            row = ChatMessageRow(
                conversation_id=conversation.id,
                position=0 if last is None else last + 1,
                role=role,
                content=content,
                contestant=contestant,
                state=state,
                usage=dict(usage or {}),
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
        state: str | None = None,
        usage: Mapping[str, Any] | None = None,
        mark: str | None = None,
    ) -> dict[str, Any]:
        """Change a message: an answer that grew, ended or was marked (`mark`: "good" or "")."""
        _check_state(state or "done")
        with self.db.write() as session:
            conversation = _find(session, conversation_id)
            wanted = (ChatMessageRow.conversation_id == conversation.id, ChatMessageRow.position == position)
            row = session.scalar(select(ChatMessageRow).where(*wanted))
            if row is None:
                raise NotFoundError(f"The conversation has no message {position}.", "Reload the page.")
            row.content = row.content if content is None else content
            row.state = state or row.state
            row.usage = row.usage if usage is None else dict(usage)
            row.mark = row.mark if mark is None else mark
            conversation.updated_at = time.time()
            return _message(row)

    def lessons(self) -> dict[str, int]:
        """How many answers were marked as good, and how many corrected, in all conversations."""
        answers, preferences = (func.count().filter(ChatMessageRow.mark == "good"), func.count().filter(ChatMessageRow.original != ""))
        with self.db.read() as session:
            good, corrected = session.execute(select(answers, preferences)).one()
        return {"answers": good, "preferences": corrected}

    def correct(self, conversation_id: str, position: int, content: str) -> dict[str, Any]:
        """Write an answer better than the model did; what it had said is kept beside, and both become a preference pair."""
        if not content.strip():
            raise StudioError("The corrected answer is empty.", "Write what the model should have said.")
        with self.db.write() as session:
            conversation = _find(session, conversation_id)
            row = session.scalar(
                select(ChatMessageRow).where(ChatMessageRow.conversation_id == conversation.id, ChatMessageRow.position == position)
            )
            if row is None or row.role != "assistant":
                raise NotFoundError(f"The conversation has no answer {position}.", "Reload the page.")
            said = row.original or row.content
            row.content, row.original = content, said if content != said else ""
            conversation.updated_at = time.time()
            return _message(row)

    def truncate(self, conversation_id: str, position: int) -> None:
        """Remove the messages from `position` on."""
        with self.db.write() as session:
            conversation = _find(session, conversation_id)
            later = (ChatMessageRow.conversation_id == conversation.id, ChatMessageRow.position >= position)
            session.execute(delete(ChatMessageRow).where(*later))
            conversation.updated_at = time.time()


def _form(grammar: str | None, json_schema: str | Mapping[str, Any] | None) -> Grammar | None:
    """The form an answer must have, from either argument."""
    if grammar and json_schema:
        raise StudioError("An answer can't follow both a grammar and a JSON schema.", "Give one of them.")
    if grammar:
        return Grammar("gbnf", grammar)
    if not json_schema:
        return None
    try:
        schema = json.loads(json_schema) if isinstance(json_schema, str) else dict(json_schema)
    except ValueError as exc:
        raise StudioError(f"The JSON schema is no JSON ({exc}).", "Correct it at that place.") from None
    if not isinstance(schema, dict):
        raise StudioError("The JSON schema must be a JSON object.", 'Start from {"type": "object", "properties": {…}}.')
    return Grammar("json_schema", json.dumps(schema))


def _check_state(state: str) -> None:
    if state not in STATES:
        raise ValueError(f"state is {state!r}, not one of {', '.join(STATES)}")


def _find(session: Session, conversation_id: str) -> ConversationRow:
    row = session.get(ConversationRow, conversation_id)
    if row is None:
        raise NotFoundError(f"There is no conversation {conversation_id!r}.", "It may have been deleted; choose another one.")
    return row


def _conversation(row: ConversationRow) -> dict[str, Any]:
    return {"id": row.id, "title": row.title, "system": row.system, "created_at": row.created_at, "updated_at": row.updated_at}


def _message(row: ChatMessageRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "position": row.position,
        "role": row.role,
        "content": row.content,
        "contestant": row.contestant,
        "state": row.state,
        "usage": row.usage,
        "mark": row.mark,
        "original": row.original,
        "created_at": row.created_at,
    }
