"""Conversations and answers."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict

from studio.records.base import Record


class MessageState(StrEnum):
    """How a message ended."""

    DONE = "done"  # it is whole
    STOPPED = "stopped"  # a person stopped it; its text is what had come
    FAILED = "failed"  # an error ended it; its text is what had come


class LessonKind(StrEnum):
    """What chat teaches."""

    ANSWERS = "answers"  # answers that were marked as good, to imitate
    PREFERENCES = "preferences"  # answers that were corrected: a person's is better than the model's


class SpeculationGain(Record):
    """What drafts brought, measured in the same answer."""

    model_config = ConfigDict(extra="ignore")  # as AnswerUsage

    drafted_tokens: int
    accepted_tokens: int
    tokens_per_pass: float | None = None  # null where no draft was checked
    speedup: float | None = None  # against steps without drafts; null where none was measured
    stopped: bool = False  # drafting ended early, since it did not pay


class AnswerUsage(Record):
    """What an answer took, and how it was made. Only what is known is set; another server tells less."""

    model_config = ConfigDict(extra="ignore")  # kept with messages, which another version may have written

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    finish_reason: str | None = None  # stop, or length where it was cut
    first_token_s: float | None = None  # from the request to the first token
    tokens_per_s: float | None = None  # after the first token
    reused_tokens: int | None = None  # of the prompt, whose keys and values were cached
    recalled: bool | None = None  # it was given before under the same conditions
    notes: list[str] | None = None  # what the reader should know of how it was made
    speculation: SpeculationGain | None = None


class MadeCall(Record):
    """A call of a tool that an answer makes; `arguments` is JSON text as the model wrote it."""

    model_config = ConfigDict(extra="ignore")  # as AnswerUsage

    id: str
    name: str
    arguments: str


class ChatMessage(Record):
    """One message of a conversation that is kept."""

    id: int
    position: int  # from 0
    role: str  # user, assistant, or tool: the result of a call
    content: str
    tool_calls: list[MadeCall] = []  # of an answer
    tool_call_id: str = ""  # of a result: the call that it answers
    contestant: str  # who answered; "" for a person
    state: MessageState
    usage: AnswerUsage
    mark: str  # "good": an answer to learn from; else ""
    original: str  # what the model had written, where a person corrected it; else ""
    created_at: float


class Conversation(Record):
    """A conversation that is kept."""

    id: str
    title: str
    system: str  # the system prompt; "" for none
    tools: str = ""  # that may be called: a JSON list in OpenAI's shape; "" for none
    created_at: float
    updated_at: float
    messages: int  # how many


class ExportedMessage(Record):
    """One message of an exported conversation; what is empty is left out."""

    role: str
    content: str = ""
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    contestant: str | None = None
    state: MessageState
    usage: AnswerUsage | None = None
    mark: str | None = None
    original: str | None = None
    created_at: float


class ExportedConversation(Record):
    """A whole conversation as plain JSON."""

    id: str
    title: str
    system: str
    tools: str = ""
    created_at: float
    updated_at: float
    messages: list[ExportedMessage]


class ChatLessons(Record):
    """How many answers of all conversations teach something."""

    answers: int  # marked as good
    preferences: int  # corrected


class ChatAnswer(Record):
    """One contestant's answer. Token counts are 0 where its server does not tell them."""

    contestant: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ChatAnswers(Record):
    """One answer per contestant, in the order they were named."""

    answers: list[ChatAnswer]


class PromptPreview(Record):
    """Exactly what the model reads for a conversation."""

    text: str  # as the chat template writes it
    ids: list[int]
    tokens: list[str]  # the text of each id
    context: int  # tokens that the model can read and write together
    template: str  # the name of the chat template


class LoadedModel(Record):
    """The base model that the engine holds in memory."""

    base: str
    quantization: str  # nf4, int8, or "" where it is as stored
    device: str  # cpu or cuda
    adapters: list[str]  # names of those in memory, the longest unused first
    bytes: int  # of the base model and its adapters
    adapter_bytes: int
    adapter_budget_bytes: int  # adapters leave when they would take more
    recorded_steps: int = 0  # kinds of steps that a GPU runs as a whole
    unrecorded: str = ""  # why a GPU launches steps one operation at a time; "" on a processor and where nothing has failed


class LoadingModel(Record):
    """What the engine is loading: a base model or an adapter."""

    name: str
    since: float
    expected_s: float | None  # as long as it took last time; null where that is not known


class MemoryLease(Record):
    """Memory that the engine has left to a training job."""

    job: str  # its name
    room_bytes: int  # what the engine may use of what was free then
    keep_bytes: int  # what the job may take
    gave_way: bool  # the engine unloaded its model for the job


class EngineStatus(Record):
    """What the engine holds and does."""

    ok: bool = True  # it answers
    loaded: LoadedModel | None = None
    loading: LoadingModel | None = None
    active: int = 0  # answers that are being made
    waiting: int = 0  # answers that are queued
    yielded: MemoryLease | None = None
