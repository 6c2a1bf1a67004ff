"""What a prompt or a conversation becomes as tokens, and what tokens say: answers that need a tokenizer alone. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from studio.engine import intake
from studio.engine.bodies import parse_chat, parse_completion, validated
from studio.engine.protocol import bad_request
from studio.engine.reading_bodies import TOKENIZE_REFUSED, DetokenizeBody, TokenizeBody, refuse
from studio.engine.shapes import DetokenizedBody, TokenizedBody

CHAT_FIELDS = ("model", "messages", "tools", "continue_final_message", "studio")  # that decide a conversation's text


def tokenize(body: Any) -> TokenizedBody:
    """Count, ids and, where asked, strings of a text or a conversation. Raises EngineError 400 naming the field."""
    asked = validated(TokenizeBody, body)
    refuse(body, TOKENIZE_REFUSED)
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("Either prompt or messages can be tokenised.", "Send one of the two.", param="prompt")
    opens = asked.add_generation_prompt is not False
    if asked.prompt is not None:
        found = intake.tokens_of_text(parse_completion(_bare(body, prompt=asked.prompt)), asked.add_special_tokens is not False)
    elif asked.continue_final_message and opens and asked.add_generation_prompt is not None:
        said = "add_generation_prompt and continue_final_message exclude each other."
        raise bad_request(said, "Give only one of them.", param="add_generation_prompt")
    else:
        request = parse_chat({name: body[name] for name in CHAT_FIELDS if name in body})
        found = intake.tokens_of_chat(request, opens_answer=opens, with_special=bool(asked.add_special_tokens))
    strings = None
    if asked.return_token_strs:
        strings = found.strings
    return {"count": len(found.ids), "max_model_len": found.context, "tokens": found.ids, "token_strs": strings}


def detokenize(body: Any) -> DetokenizedBody:
    """The text of token ids, special tokens included. Raises EngineError 400."""
    asked = validated(DetokenizeBody, body)
    return {"prompt": intake.text_of(parse_completion(_bare(body, prompt="")), asked.tokens)}


def preview(body: Any) -> Any:
    """What a chat request would be read as, for the page."""
    return intake.preview(parse_chat(body)).model_dump(mode="json")


def _bare(body: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    return {"model": body.get("model", ""), "studio": body.get("studio"), "prompt": prompt}


READINGS: dict[str, Callable[[Any], Any]] = {"preview": preview, "tokenize": tokenize, "detokenize": detokenize}
