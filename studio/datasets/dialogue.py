"""A chat template with its special tokens: conversations to text, and which part of a text the assistant writes.

What a template supports (system, tools, ...) and how it ends a turn is found out by asking it, never by its name.
Knows no tokens' ids: that is rendering.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from studio.datasets.sandbox import Span, compiled
from studio.errors import DatasetError
from studio.types import Message

# stand in for contents when a template is asked how it would write them
PROBE_ANSWER = "\ue100answer\ue101"
PROBE_QUESTION = "\ue100question\ue101"

MARK = re.compile(r"<[^<>\s]{1,40}>")  # markup such as <|end|> that the tokenizer knows no token for

Turn = dict[str, Any]
Tools = list[dict[str, Any]] | None


class Dialogue:
    """`added_texts`: texts that the tokenizer has tokens of their own for, such as <|im_end|>."""

    def __init__(self, template: str, special_tokens: dict[str, str], added_texts: frozenset[str]) -> None:
        self._template = compiled(template)
        self._special_tokens = special_tokens
        self._added_texts = added_texts
        self._tails: dict[str, str] = {}

    def _values(self, turns: list[Turn], tools: Tools, add_generation_prompt: bool = False) -> dict[str, Any]:
        asked = {"messages": turns, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        return {**self._special_tokens, **asked}

    def text(self, turns: list[Turn], tools: Tools = None, add_generation_prompt: bool = False) -> str:
        """Raises DatasetError with the template's own complaint."""
        return self._template.render(**self._values(turns, tools, add_generation_prompt))

    def adapted(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools) -> tuple[list[Turn], Tools]:
        """Messages as the template gets them; tools and calls that it would silently drop become text."""
        self._refuse_unless_shown(PROBE_QUESTION)
        turns = [_as_turn(message) for message in messages]
        if any(turn.get("tool_calls") for turn in turns) and not self._shows_calls:
            turns = [_calls_as_text(turn) for turn in turns]
        if any(turn["role"] == "tool" for turn in turns) and not self._shows_results:
            turns = [{"role": "user", "content": turn["content"]} if turn["role"] == "tool" else turn for turn in turns]
        if tools and not self._shows_tools:
            turns, tools = self._tools_as_text(turns, tools), None
        return turns, tools or None

    def _tools_as_text(self, turns: list[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
        note = 'Tools you may call, by answering {"name": …, "arguments": {…}}:\n' + json.dumps(tools, ensure_ascii=False)
        first, rest = turns[0], turns[1:]
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{note}"}, *rest]
        if self._shows_system:
            return [_turn("system", note), *turns]
        return [{**first, "content": f"{note}\n\n{first['content']}"}, *rest]

    def learned_spans(self, turns: list[Turn], tools: Tools, text: str) -> list[Span]:
        """Where in `text` the assistant writes, its end of turn included; never a guess."""
        if not any(turn["role"] == "assistant" for turn in turns):
            return []
        self._refuse_unless_shown(PROBE_ANSWER)
        if self._template.marks_generation:
            marked, spans = self._template.render_marked(**self._values(turns, tools))
            if marked == text and spans:
                return spans
        found = self._spans_by_prefix(turns, tools, text)
        if found is None:
            found = self._spans_by_content(turns, tools, text)
        if found is None:
            raise DatasetError(
                "The chat template rewrites earlier turns, so the assistant's words can't be told apart.",
                "Choose chatml, alpaca or plain, or put {% generation %} tags into the template.",
            )
        return found

    def _spans_by_prefix(self, turns: list[Turn], tools: Tools, text: str) -> list[Span] | None:
        """Each answer is what the text gains over the prompt that chat would send; None where the one does not begin with the other."""
        spans = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            try:
                start = self._start_of_answer(turns, tools, text, i)
                end = self._end_of_answer(turns, tools, text, i)
            except DatasetError:
                return None
            if start is None or end is None or end < start:
                return None
            spans.append((start, start + len(self._without_tail(text[start:end]))))
        return spans

    def _start_of_answer(self, turns: list[Turn], tools: Tools, text: str, i: int) -> int | None:
        """Where the answer in turn `i` begins in `text`: behind the prompt that chat would send."""
        prompt = self.text(turns[:i], tools, add_generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        # a prompt that opens a thought, which the template leaves out of the written turn: as far as they agree
        shared = _agreement(prompt, text)
        if shared > _agreement(self.text(turns[:i], tools), prompt):
            return shared
        return None

    def _end_of_answer(self, turns: list[Turn], tools: Tools, text: str, i: int) -> int | None:
        """Where the answer in turn `i` ends in `text`, its end of turn included."""
        if i + 1 == len(turns):
            return len(text)
        after = self.text(turns[: i + 1], tools)
        if text.startswith(after):
            return len(after)
        # templates that think write the last turn in another way: ask again with a question behind it
        role = turns[i + 1]["role"]
        until, found, _ = self.text([*turns[: i + 1], _turn(role, PROBE_QUESTION)], tools).partition(PROBE_QUESTION)
        tail = self._tail(role)
        if not (found and tail and text.startswith(until) and until.endswith(tail)):
            return None
        return len(until) - len(tail) + self._end_length(tail)

    def _without_tail(self, answer: str) -> str:
        # white space behind the end of turn belongs to the next turn: chat never asks the model for it
        bare = answer.rstrip()
        if any(bare.endswith(end) for end in self._added_texts):
            return bare
        return answer

    def _spans_by_content(self, turns: list[Turn], tools: Tools, text: str) -> list[Span] | None:
        """Render with stand-ins for the answers, then find the answers between the pieces; None unless all of `text` is accounted for."""
        if any(turn.get("tool_calls") for turn in turns):
            return None
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        marks = iter(f"{PROBE_ANSWER}{i}\ue102" for i in range(len(answers)))
        swapped = [{**turn, "content": next(marks)} if turn["role"] == "assistant" else turn for turn in turns]
        try:
            frame = self.text(swapped, tools)
        except DatasetError:
            return None
        spans: list[Span] = []
        start = 0
        for i, answer in enumerate(answers):
            piece, found, frame = frame.partition(f"{PROBE_ANSWER}{i}\ue102")
            following = frame.partition(PROBE_ANSWER)[0]
            if not found or not text.startswith(piece, start):
                return None
            start += len(piece)
            variant = next((v for v in _variants(answer) if text.startswith(v + following, start)), None)
            if variant is None:
                return None
            spans.append((start, start + len(variant) + self._end_length(following)))
            start += len(variant)
        if text[start:] != frame:
            return None
        return spans

    def _end_length(self, following: str) -> int:
        """How much of what follows an answer closes it."""
        bare = following.lstrip()
        ends = [end for end in (self.end_of_turn, *self._added_texts) if end and bare.startswith(end)]
        mark = MARK.match(bare)
        end = max(ends, key=len, default=mark.group() if mark and mark.group() != self.next_header else "")
        if end and end not in self._added_texts:  # a written end may be followed by a token that ends it again
            end += max((token for token in self._added_texts if bare.startswith(token, len(end))), key=len, default="")
        if not end:
            return 0
        return len(following) - len(bare) + len(end)

    # what the template does, found out by asking it

    def _tail(self, role: str = "user") -> str:
        """What stands between an answer and the next turn's content; "" where the template can't be asked."""
        if role not in self._tails:
            text = self._probe([_turn("user", "Hi"), _turn("assistant", PROBE_ANSWER), _turn(role, PROBE_QUESTION)])
            self._tails[role] = text.partition(PROBE_ANSWER)[2].partition(PROBE_QUESTION)[0]
        return self._tails[role]

    @cached_property
    def end_of_turn(self) -> str:
        """What closes an answer: an added token, else the mark that stands behind the last answer, such as `<|im_end|>`."""
        closing = self._closing.strip()
        token = max((text for text in self._added_texts if closing.startswith(text)), key=len, default="")
        return token or self._before_tokens(closing.partition("\n")[0]).rstrip()

    @cached_property
    def closings(self) -> tuple[str, ...]:
        """Texts by which a chat knows that the answer is over: the end of turn; a written one also with the white space before it."""
        end = self.end_of_turn
        space = self._closing[: len(self._closing) - len(self._closing.lstrip())]
        if end and space and end not in self._added_texts:
            return space + end, end
        return (end,)

    @cached_property
    def _closing(self) -> str:
        return self._probe([_turn("user", "Hi"), _turn("assistant", PROBE_ANSWER)]).partition(PROBE_ANSWER)[2]

    def _before_tokens(self, text: str) -> str:
        """`text` up to the first added token in it, as in `### End</s>`."""
        return text[: min((text.find(token) for token in self._added_texts if token in text), default=len(text))]

    @cached_property
    def next_header(self) -> str:
        """What opens the next question, such as `### Instruction:`; a base model writes it when it rambles on."""
        rest = self._tail()
        if self.end_of_turn:
            rest = rest.lstrip().removeprefix(self.end_of_turn)
        for text in sorted(self._added_texts, key=len, reverse=True):
            rest = rest.removeprefix(text)
        line = rest.strip().partition("\n")[0].rstrip()
        newline = "\n" in rest[: len(rest) - len(rest.lstrip())]
        if not newline and line.isalnum():
            return ""  # a bare word would end honest answers
        if not line:
            return ""
        return "\n" * newline + line

    def _probe(self, turns: list[Turn], tools: Tools = None) -> str:
        try:
            return self.text(turns, tools)
        except DatasetError:
            return ""

    @cached_property
    def _exchange(self) -> str:
        return self._probe([_turn("user", PROBE_QUESTION), _turn("assistant", PROBE_ANSWER)]).lower()

    def _refuse_unless_shown(self, content: str) -> None:
        """Templates for images want contents in parts and leave out plain text without a word."""
        if self._exchange and content not in self._exchange:
            raise DatasetError("The chat template leaves out what messages say; it may be for images.", "Choose chatml, alpaca or plain.")

    @cached_property
    def _shows_system(self) -> bool:
        return PROBE_QUESTION in self._probe([_turn("system", PROBE_QUESTION), _turn("user", "Hi")])

    @cached_property
    def _shows_tools(self) -> bool:
        return "probe_tool" in self._probe([_turn("user", "Hi")], [_tool("probe_tool")])

    @cached_property
    def _shows_calls(self) -> bool:
        return "probe_tool" in self._probe([_turn("user", "Hi"), _calling("probe_tool")])

    @cached_property
    def _shows_results(self) -> bool:
        turns = [_turn("user", "Hi"), _calling("probe_tool"), _turn("tool", PROBE_QUESTION), _turn("assistant", "Yes")]
        return PROBE_QUESTION in self._probe(turns)


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}}


def _calling(name: str) -> Turn:
    return {**_turn("assistant", ""), "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}}]}


def _as_turn(message: Message | Mapping[str, Any]) -> Turn:
    """A plain dict without empty keys; arguments of calls as objects, which is what templates expect."""
    if isinstance(message, Message):
        message = message.model_dump()
    turn = {key: value for key, value in message.items() if value is not None}
    if not isinstance(turn.get("role"), str):
        raise DatasetError("A message has no role.", "Use system, user, assistant or tool.")
    turn.pop("train", None)  # decides the loss, and is no template's business
    turn["role"] = str(turn["role"])  # a template gets plain values only
    turn.setdefault("content", "")
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_as_call(call) for call in turn["tool_calls"]]
    return turn


def _as_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        except (ValueError, RecursionError):
            return call
    return call


def _calls_as_text(turn: Turn) -> Turn:
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    lines = [json.dumps(call.get("function", call), ensure_ascii=False) for call in calls]
    rest = {key: value for key, value in turn.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(([turn["content"]] if turn["content"] else []) + lines)}


def _agreement(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _variants(answer: str) -> list[str]:
    """An answer as templates are known to write it: as it is, trimmed, or without its reasoning."""
    spoken = answer.split("</think>")[-1]
    return list(dict.fromkeys([answer, answer.strip(), answer.rstrip(), answer.lstrip(), spoken, spoken.lstrip("\n"), spoken.strip()]))
