"""What compressing a prompt saves on this machine: answers before and after, speeds measured just now, the length from which it pays."""

from __future__ import annotations

import secrets

from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant
from studio.errors import EngineError
from studio.records import CompressionSaving, PromptAnswer
from studio.types import GenerationParams, Message, Role

GREEDY = GenerationParams(temperature=0.0, max_new_tokens=64)
FIXED_S = 0.01  # of a compression, whatever its length


def reading(engine: EngineClient, who: Contestant, text: str) -> tuple[int, float]:
    """(tokens, seconds) of reading a prompt: an answer of one token. A number in front keeps the engine from knowing the beginning."""
    try:
        one = GREEDY.model_copy(update={"max_new_tokens": 1})
        done = engine.chat(who, [Message(role=Role.USER, content=f"{secrets.randbelow(10**6):06d} {text}")], one)
    except EngineError as exc:
        if exc.status >= 500 or exc.status in (401, 404, 429):
            raise
        return 0, 0.0
    return done.prompt_tokens, done.seconds


def answered(engine: EngineClient, who: Contestant, text: str, params: GenerationParams) -> PromptAnswer:
    """The answer to a prompt; what this prompt itself can't have (too long, say) is the answer's error."""
    try:
        done = engine.chat(who, [Message(role=Role.USER, content=text)], params)
    except EngineError as exc:
        if exc.status >= 500 or exc.status in (401, 404, 429):
            raise
        return PromptAnswer(error=str(exc), text="", prompt_tokens=0, completion_tokens=0, seconds=0.0)
    return PromptAnswer(
        text=done.text,
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        seconds=round(done.seconds, 3),
    )


def predict(before: tuple[int, float], after: tuple[int, float], compress_seconds: float) -> CompressionSaving:
    """Seconds saved by reading fewer tokens, against those of compressing, from speeds measured just now.

    before, after: (tokens, seconds) of reading. Both costs are taken as lines through what was measured; `break_even_tokens` is
    the length from which compressing pays, None where reading is so fast that it never does.
    """
    fewer = before[0] - after[0]
    if fewer <= 0 or not after[0]:
        return CompressionSaving(saved_s=None, read_s_per_token=None, break_even_tokens=None)
    per_token = max(0.0, (before[1] - after[1]) / fewer)
    saved_per_token = per_token * fewer / before[0]  # of the original's tokens
    variable = max(0.0, compress_seconds - FIXED_S) / before[0]
    gain = saved_per_token - variable
    even = None
    if gain > 0:
        even = round(min(compress_seconds, FIXED_S) / gain)
    return CompressionSaving(
        saved_s=round(per_token * fewer - compress_seconds, 3),
        read_s_per_token=round(per_token, 7),
        compress_s=round(compress_seconds, 3),
        break_even_tokens=even,
    )
