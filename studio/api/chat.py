"""Chat over HTTP: questions, and conversations that are listed, searched, exported, deleted and made into datasets.

Answers as they come are at /v1/chat/completions.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here
from studio.records import ChatAnswers, Conversation, Dataset, Deleted, ExportedConversation, LessonKind
from studio.types import GenerationParams

router = APIRouter(route_class=JsonRoute, prefix="/api")


class ChatTurn(BaseModel):
    """A message in OpenAI's shape; what else it holds is passed on."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: JsonValue = None


class ChatRequest(Body):
    message: str | None = None
    messages: list[ChatTurn] | None = None
    system: str | None = None
    base_model: str = "starter"
    adapters: list[str] = Field(
        default_factory=list, description="Who answers; base stands for the base model, which answers when none is named."
    )
    grammar: str | None = None
    json_schema: dict[str, JsonValue] | None = None
    params: GenerationParams = Field(default_factory=GenerationParams)


class NewLessons(Body):
    """Which answers become rows: those marked as good, or those that were corrected."""

    kind: LessonKind
    name: str | None = None


@router.post("/chat")
def chat(studio: Here, body: ChatRequest) -> ChatAnswers:
    """One answer per contestant. Streams are at /v1/chat/completions."""
    messages = [turn.model_dump(exclude_unset=True) for turn in body.messages or ()]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    if body.message is not None:
        messages.append({"role": "user", "content": body.message})
    answers = studio.chat.answer(
        body.adapters or ["base"],
        messages,
        body.params,
        base_model=body.base_model,
        grammar=body.grammar,
        json_schema=body.json_schema,
    )
    return ChatAnswers(answers=answers)


@router.get("/conversations")
def list_conversations(studio: Here, part: AskedPart, search: str = "") -> list[Conversation]:
    """Latest first; with `search`, those that hold this text."""
    return part.told(studio.chat.conversations(search, part.page))


@router.get("/conversations/{conversation}/export", response_model_exclude_unset=True)
def export_conversation(studio: Here, conversation: str, response: Response) -> ExportedConversation:
    """The whole conversation as a file."""
    found = studio.chat.export(conversation)
    response.headers["Content-Disposition"] = f'attachment; filename="conversation-{found.id}.json"'
    return found


@router.delete("/conversations/{conversation}")
def delete_conversation(studio: Here, conversation: str) -> Deleted:
    """The conversation, its messages and the answers kept for recall are gone for good."""
    return studio.chat.delete(conversation)


@router.post("/conversations/lessons")
def make_lessons(studio: Here, body: NewLessons) -> Dataset:
    """A dataset of what was marked or corrected in chat."""
    return studio.harvest.make(body.kind, body.name)
