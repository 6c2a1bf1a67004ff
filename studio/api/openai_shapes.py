"""What /v1 answers, in OpenAI's shapes. The engine makes these answers; their schemas are for /api/openapi.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from studio.records import Record


class ModelEntry(Record):
    """A model that can answer here: a base model, or BASE:ADAPTER."""

    id: str
    object: Literal["model"] = "model"
    created: int  # when it was made here, in seconds since 1970
    owned_by: str = "adapter-studio"


class ModelList(Record):
    """The starter first, then added base models, then adapters."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class CompletionUsage(Record):
    """Tokens of a request. A prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ScoredToken(Record):
    """A token with its log probability."""

    token: str
    logprob: float
    bytes: list[int]  # in UTF-8; a token may end inside a character


class AnsweredToken(ScoredToken):
    """A token of an answer, and the most likely ones in its place."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(Record):
    """The tokens of a chat answer."""

    content: list[AnsweredToken]
    refusal: None


class TextLogprobs(Record):
    """The tokens of a text completion, in the older shape: one entry per token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]  # the first token of an echoed prompt has none
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # where each token starts in the text


class CalledFunction(Record):
    """A tool that the answer calls; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Record):
    """A call of an answer; the result goes into a message of the role `tool` with this `id` as `tool_call_id`."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Record):
    """What was answered: text, or calls of tools, or both."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=lambda calls: calls is None)


class ChatChoice(Record):
    """One answer to a conversation."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str  # stop, tool_calls, or length where it was cut
    studio: dict[str, JsonValue]  # how it was made: speed, reused tokens, drafts


class ChatCompletion(Record):
    """Answers to a conversation. With `stream` they come as server-sent events instead."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class TextChoice(Record):
    """One continuation of a text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str  # stop, or length where it was cut
    studio: dict[str, JsonValue]  # how it was made: speed, reused tokens, drafts


class TextCompletion(Record):
    """Continuations of one or several texts. With `stream` they come as server-sent events instead."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


class TextVector(Record):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # numbers, or base64 of little-endian float32


class EmbeddingUsage(Record):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Record):
    """Vectors of texts, in their order."""

    object: Literal["list"]
    model: str
    data: list[TextVector]
    usage: EmbeddingUsage
    studio: dict[str, JsonValue]  # how they were made: pooling, whether their length is 1, seconds, notes


class Tokenized(Record):
    """Tokens of a text or a conversation."""

    count: int
    max_model_len: int  # tokens that the model reads at once
    tokens: list[int]
    token_strs: list[str] | None  # as the vocabulary writes them, where asked for


class Detokenized(Record):
    """The text of tokens, special ones included."""

    prompt: str


class InputDetails(Record):
    cached_tokens: int  # of an earlier prompt that began alike
    cache_write_tokens: int


class OutputDetails(Record):
    reasoning_tokens: int


class ResponseUsage(Record):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Record):
    reason: str


class ResponseError(Record):
    code: str
    message: str


class ModelResponse(Record):
    """A response. With `stream` it comes as server-sent events instead, in OpenAI's order with sequence numbers."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, JsonValue]
    model: str
    output: list[dict[str, JsonValue]]  # messages and function calls
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    service_tier: str
    store: bool  # false: nothing is kept
    temperature: float
    text: dict[str, JsonValue]
    tool_choice: JsonValue
    tools: list[dict[str, JsonValue]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage
    user: str | None
    studio: dict[str, JsonValue]  # how it was made: speed, reused tokens, notes
