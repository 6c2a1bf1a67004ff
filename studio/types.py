"""Plain values that cross rooms: messages, examples, sampling. No behaviour beyond checking themselves."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from studio.row_options import LearnedTurns as LearnedTurns
from studio.row_options import Reasoning as Reasoning
from studio.row_options import RowOptions as RowOptions
from studio.row_options import SystemMessage as SystemMessage


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"  # sets the task; at most one, and first
    USER = "user"  # asks
    ASSISTANT = "assistant"  # answers; what the model learns to write
    TOOL = "tool"  # the result of a tool call


class Value(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Value):
    """One turn of a conversation, as in the OpenAI protocol.

    `train` decides the loss where a job's `learned_turns` is `marked`: False keeps a turn of the assistant from being learned, True
    makes a turn of anybody learned, None leaves it to the role. `reasoning` is what the assistant thought before `content`.
    """

    role: Role
    content: str
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    train: bool | None = None
    reasoning: str | None = None


class Example(Value):
    """One training row in the studio's own form.

    Exactly one family of fields is set: `messages` (a conversation), `prompt` + `completion` (plain strings),
    `text` (learn everything), `prompt` + `chosen` + `rejected` (preference), or `prompt` + `completion` + `label`
    (unpaired preference). For preferences `prompt`, `chosen` and `rejected` are message lists.
    """

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | list[Message] | None = None
    completion: str | list[Message] | None = None
    text: str | None = None
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    label: bool | None = None

    def parts(self) -> tuple[str | list[Message] | None, str | list[Message] | None]:
        """What is said, and the answer to it that is to be imitated where that stands apart."""
        said, answer = self.messages, self.chosen
        return (self.prompt if said is None else said), (self.completion if answer is None else answer)

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class GenerationParams(Value):
    """Sampling of one answer; names as in transformers.GenerationConfig."""

    max_new_tokens: int = Field(default=256, ge=1, le=32768, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.7, ge=0, le=5, description="0 always takes the likeliest token; higher is more varied.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample only from the likeliest tokens that together reach this probability.")
    top_k: int = Field(default=0, ge=0, description="Sample only from this many likeliest tokens; 0 means all.")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Sample only from tokens of at least this share of the likeliest one's probability."
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=5, description="Above 1 makes repeating less likely.")
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, description="Above 0 makes a token that the answer has used less likely.")
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, description="Above 0 makes a token less likely each time it was used.")
    seed: int | None = Field(default=None, description="The same seed gives the same sampled answer.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end the answer.")


class DroppedPart(StrEnum):
    """What a template does not write of a row."""

    SYSTEM = "system"  # a system message
    REASONING = "reasoning"  # all reasoning of the row
    EARLIER_REASONING = "earlier_reasoning"  # the reasoning of some answers, usually of all but the last
