"""Bodies of requests that write nothing: /tokenize and /detokenize as vLLM shapes them, /v1/embeddings as OpenAI does.

Knows no tokenizer and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from studio.engine import body_fields
from studio.engine.bodies import LenientBody, prompts_of, settled_body
from studio.engine.protocol import GenerationRequest, bad_request, read_folders
from studio.types import GenerationParams

MAX_TOKENS = 4_194_304  # of one call of /detokenize
MAX_TEXTS = 2048  # of one call of /v1/embeddings, as OpenAI has it
# fields of other servers that change an answer -> the values with which they say what happens here anyway
TOKENIZE_REFUSED: dict[str, tuple[Any, ...]] = {
    "chat_template": (), "chat_template_kwargs": (), "mm_processor_kwargs": (), "media_io_kwargs": (), "truncate_prompt_tokens": (),
}  # fmt: skip
EMBEDDING_REFUSED: dict[str, tuple[Any, ...]] = {
    "dimensions": (), "normalize": (True,), "embed_dtype": ("float32",), "embedding_types": (["float"],), "messages": (), "image": (),
    "input_type": (), "instruction": (), "query": (),
}  # fmt: skip


class TokenizeBody(LenientBody):
    """Of a prompt or of messages; None stands for the form's own default."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(LenientBody):
    tokens: list[int] = Field(max_length=MAX_TOKENS)


class EmbeddingRequestBody(LenientBody):
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None


def parse_embedding(body: Any) -> GenerationRequest:
    """Check a body of /v1/embeddings. Raises EngineError 400 naming the field."""
    if isinstance(body, Mapping):
        refuse(body, EMBEDDING_REFUSED)
    checked = settled_body(EmbeddingRequestBody, body)
    texts = prompts_of(checked.input)
    if not all(texts):
        raise bad_request("input holds an empty text.", "Leave it out.", param="input")
    if len(texts) > MAX_TEXTS:
        raise bad_request(f"input holds {len(texts)} texts, more than {MAX_TEXTS}.", "Send them in parts.", param="input")
    base, adapter, _ = read_folders(checked.studio)
    return GenerationRequest(
        model=checked.model or base.name,
        base=base,
        adapter=adapter,
        params=GenerationParams(),
        prompts=texts,
        lane="batch" if (checked.studio or {}).get("lane") == "batch" else "chat",
        is_embedding=True,
        in_base64=checked.encoding_format == "base64",
    )


def refuse(body: Mapping[str, Any], names: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises EngineError 400 for a field of `names` that has another value than its harmless ones."""
    for name, harmless in names.items():
        if body.get(name) not in (*body_fields.NOTHING, *harmless):
            raise bad_request(f"{name} is not supported here.", "Leave it out.", param=name, code="unsupported_parameter")


EMBEDDING_FIELDS = frozenset(EmbeddingRequestBody.model_fields) | EMBEDDING_REFUSED.keys()
TOKENIZE_FIELDS = frozenset(TokenizeBody.model_fields) | TOKENIZE_REFUSED.keys()
DETOKENIZE_FIELDS = frozenset(DetokenizeBody.model_fields)
