"""OpenAI's shapes of answers and errors, as JSON objects, with a field `studio` that says how an answer was made."""

from __future__ import annotations

from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic makes schemas of these on every Python that we support
)

from typing_extensions import TypedDict


class UsageBody(TypedDict):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenBody(TypedDict):
    """A token with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenBody(TokenBody):
    """A token of the answer, with the likeliest ones at its place."""

    top_logprobs: list[TokenBody]


class ChatLogprobsBody(TypedDict):
    content: list[ChosenTokenBody]
    refusal: None


class CompletionLogprobsBody(TypedDict):
    """The older shape: one entry per token in each list. The first token of an echoed prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # where each token starts in the answer's text


class CalledBody(TypedDict):
    """A function, and its arguments as JSON text; of a chunk, what it adds to them."""

    name: NotRequired[str]
    arguments: str


class CallBody(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledBody


class CallDeltaBody(TypedDict):
    """What a chunk adds to call number `index`; the first one has its `id` and `type`."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledBody


class MessageBody(TypedDict):
    role: Literal["assistant"]
    content: str | None  # none where there are calls alone
    refusal: None
    tool_calls: NotRequired[list[CallBody]]


class DeltaBody(TypedDict):
    """What a chunk adds to a message; empty at its end."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[CallDeltaBody]]


class ChatChoiceBody(TypedDict):
    index: int
    message: MessageBody
    logprobs: ChatLogprobsBody | None
    finish_reason: str | None
    studio: dict[str, Any]  # how it was made: seconds, tokens per second, notes


class CompletionChoiceBody(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobsBody | None
    finish_reason: str | None
    studio: dict[str, Any]


class ChatChunkChoiceBody(TypedDict):
    index: int
    delta: DeltaBody
    logprobs: ChatLogprobsBody | None
    finish_reason: str | None
    studio: NotRequired[dict[str, Any]]  # at the end of an answer


class CompletionChunkChoiceBody(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobsBody | None
    finish_reason: str | None
    studio: NotRequired[dict[str, Any]]


class ReplyHead(TypedDict):
    id: str
    object: str
    created: int  # seconds since the epoch
    model: str


class ChatCompletionBody(ReplyHead):
    """A whole answer of /v1/chat/completions."""

    choices: list[ChatChoiceBody]
    usage: UsageBody


class CompletionBody(ReplyHead):
    """A whole answer of /v1/completions."""

    choices: list[CompletionChoiceBody]
    usage: UsageBody


class ChunkBody(ReplyHead):
    """A piece of a streamed answer; the last one has no choice where usage was asked for."""

    choices: list[ChatChunkChoiceBody | CompletionChunkChoiceBody]
    usage: NotRequired[UsageBody | None]


class TokenizedBody(TypedDict):
    """An answer of /tokenize, as vLLM shapes it."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedBody(TypedDict):
    """An answer of /detokenize."""

    prompt: str


class EmbeddingUsageBody(TypedDict):
    prompt_tokens: int
    total_tokens: int


class VectorBody(TypedDict):
    """The vector of one text; as base64 it is of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsBody(TypedDict):
    """A whole answer of /v1/embeddings."""

    object: Literal["list"]
    model: str
    data: list[VectorBody]
    usage: EmbeddingUsageBody
    studio: dict[str, Any]  # how the vectors were made: pooling, whether they have length 1, seconds, notes


class ErrorDetailBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str
    fix: NotRequired[str]  # also the end of the message
    job: NotRequired[str]  # the training that the engine has left its memory to


class ErrorBody(TypedDict):
    """An error of any /v1 route."""

    error: ErrorDetailBody


class FolderBody(TypedDict):
    """A base model by its folder, between the studio's own processes."""

    name: str
    path: str
    quantization: NotRequired[str]


class AdapterBody(TypedDict):
    """An adapter by its folder."""

    name: str
    path: str
    sha256: str


class StudioField(TypedDict):
    """The `studio` field of a request to the engine: what its names stand for."""

    base: FolderBody
    adapter: AdapterBody | None
    chat_template: str | None
    lane: NotRequired[str]
    assistant: NotRequired[FolderBody]


class ContestantBody(TypedDict):
    """A contestant as a job keeps it."""

    name: str
    url: str
    model: str
    studio: StudioField | None
