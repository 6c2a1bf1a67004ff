"""Rows as tokens: the one renderer for training, chat, preview and export, so that all of them see the same ids.

A Renderer is a tokenizer and a chat template. It says for each token of a row whether training learns it.
Knows no torch, no files but the model folder's, no database.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from studio.datasets.sandbox import Span, compiled
from studio.datasets.tokenization import Vocabulary, load_vocabulary
from studio.errors import DatasetError
from studio.types import Example, Message

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE_NAMES = ("chatml", "alpaca", "plain")
MAX_TEMPLATE_BYTES = 1024**2

# stand in for contents when a template is asked how it would write them
PROBE_ANSWER = "\ue100answer\ue101"
PROBE_QUESTION = "\ue100question\ue101"

MARK = re.compile(r"<[^<>\s]{1,40}>")  # markup such as <|end|> that the tokenizer knows no token for

Turn = dict[str, Any]
Tools = list[dict[str, Any]] | None


@dataclass(frozen=True)
class Rendered:
    """One row as training sees it. `learned` and `offsets` have one entry per id; `length` counts tokens before cutting."""

    text: str
    ids: list[int]
    learned: list[bool]
    offsets: list[Span]
    truncated: bool
    length: int

    def tokens(self) -> list[str]:
        """The part of `text` that each id stands for; together they are the text, up to where it was cut."""
        pieces, last = [], 0
        for _, end in self.offsets:
            pieces.append(self.text[last:end])
            last = max(last, end)
        return pieces


@dataclass(frozen=True)
class Prompt:
    """A conversation as chat sends it: the model goes on from here."""

    text: str
    ids: list[int]


class Renderer:
    """A model folder's tokenizer with one chat template."""

    def __init__(self, vocabulary: Vocabulary, template: str, template_name: str) -> None:
        self._vocabulary = vocabulary
        self._template = compiled(template)
        self.tokenizer = vocabulary.tokenizer
        self.template = template
        self.template_name = template_name
        self.template_sha256 = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.pad_token_id = vocabulary.pad_token_id
        self.special_tokens = vocabulary.special_tokens
        self._tails: dict[str, str] = {}

    @classmethod
    def load(cls, model_folder: Path, chat_template: str | None = None) -> Renderer:
        """`chat_template`: None takes the model's own, else alpaca; a name of TEMPLATE_NAMES; a `.jinja` file; or Jinja text.

        Raises ModelError when the folder has no readable tokenizer, DatasetError when the template can't be used.
        """
        vocabulary = load_vocabulary(Path(model_folder))
        source, name = _template_source(chat_template, vocabulary)
        return cls(vocabulary, source, name)

    @cached_property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer: the template's end of turn, its next question's header, and what the model folder names."""
        eos = self.special_tokens.get("eos_token", "")
        found = [eos, *self._vocabulary.stop_strings, self._end_of_turn, self._next_header]
        return tuple(dict.fromkeys(text for text in found if text))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the model folder's, and the template's end of turn where that is one token."""
        ends = [self.tokenizer.token_to_id(text) for text in (self._end_of_turn, self._next_header) if text in self._added_texts]
        return tuple(dict.fromkeys([*self._vocabulary.stop_token_ids, *(i for i in ends if i is not None)]))

    def example(self, example: Example, max_length: int | None = None) -> Rendered:
        """One training row. Conversations learn the assistant's turns, prompt + completion the completion, text everything."""
        if example.text is not None:
            return self._document("", example.text, max_length)
        if isinstance(example.prompt, str) and isinstance(example.completion, str):
            return self._document(example.prompt, example.completion, max_length)
        answer = example.chosen if example.chosen is not None else example.completion
        before = example.messages if example.messages is not None else example.prompt
        if isinstance(before, str) or isinstance(answer, str) or not (before or answer):
            raise DatasetError("The row holds neither messages, nor prompt and completion, nor text.", "Map its columns first.")
        return self._conversation([*(before or []), *(answer or [])], example.tools, max_length)

    def prompt(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools = None) -> Prompt:
        """A conversation for the assistant to go on. Raises DatasetError when the template refuses it."""
        if not messages:
            raise DatasetError("There is no message to answer.", "Write one.")
        turns, tools = self._adapted(messages, tools)
        text = self._text(turns, tools, add_generation_prompt=True)
        return Prompt(text, self._encode(text, False).ids)

    def completion_prompt(self, text: str) -> list[int]:
        """Plain text for the model to go on, with the tokenizer's own special tokens; nothing starts from BOS."""
        ids: list[int] = self._encode(text, True).ids if text else []
        start = self.bos_token_id if self.bos_token_id is not None else self.eos_token_id
        return ids if ids or start is None else [start]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    # documents

    def _document(self, prompt: str, completion: str, max_length: int | None) -> Rendered:
        text = prompt + completion
        encoding = self._encode(text, True)
        ids, offsets = list(encoding.ids), list(encoding.offsets)
        own = _overlapping(offsets, [(len(prompt), len(text))])
        learned = [inside and not special for inside, special in zip(own, encoding.special_tokens_mask, strict=True)]
        if self.eos_token_id is not None:
            if not ids or ids[-1] != self.eos_token_id:
                end = text + self.special_tokens.get("eos_token", "")
                ids.append(self.eos_token_id)
                learned.append(True)
                offsets.append((len(text), len(end)))
                text = end
            learned[-1] = True
        return _cut(text, ids, learned, offsets, max_length)

    # conversations

    def _conversation(self, messages: Sequence[Message], tools: Tools, max_length: int | None) -> Rendered:
        turns, tools = self._adapted(messages, tools)
        text = self._text(turns, tools)
        encoding = self._encode(text, False)
        learned = _overlapping(encoding.offsets, self._learned_spans(turns, tools, text))
        return _cut(text, list(encoding.ids), learned, list(encoding.offsets), max_length)

    def _values(self, turns: list[Turn], tools: Tools, add_generation_prompt: bool = False) -> dict[str, Any]:
        return {**self.special_tokens, "messages": turns, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}

    def _text(self, turns: list[Turn], tools: Tools, add_generation_prompt: bool = False) -> str:
        return self._template.render(**self._values(turns, tools, add_generation_prompt))

    def _encode(self, text: str, add_special_tokens: bool) -> Any:
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            raise DatasetError("The text holds half of a surrogate pair, which is no character.", "Remove it.") from None

    def _learned_spans(self, turns: list[Turn], tools: Tools, text: str) -> list[Span]:
        """Where in `text` the assistant writes, its end of turn included; never a guess."""
        if not any(turn["role"] == "assistant" for turn in turns):
            return []
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
                before = self._text(turns[:i], tools, add_generation_prompt=True)
                end = self._end_of_answer(turns, tools, text, i)
            except DatasetError:
                return None
            if end is None or not text.startswith(before) or end < len(before):
                return None
            spans.append((len(before), len(before) + len(self._without_tail(text[len(before) : end]))))
        return spans

    def _end_of_answer(self, turns: list[Turn], tools: Tools, text: str, i: int) -> int | None:
        """Where the answer in turn `i` ends in `text`, its end of turn included."""
        if i + 1 == len(turns):
            return len(text)
        after = self._text(turns[: i + 1], tools)
        if text.startswith(after):
            return len(after)
        # templates that think write the last turn in another way: ask again with a question behind it
        role = turns[i + 1]["role"]
        until, found, _ = self._text([*turns[: i + 1], _turn(role, PROBE_QUESTION)], tools).partition(PROBE_QUESTION)
        tail = self._tail(role)
        if not (found and tail and text.startswith(until) and until.endswith(tail)):
            return None
        return len(until) - len(tail) + self._end_length(tail)

    def _without_tail(self, answer: str) -> str:
        # white space behind the end of turn belongs to the next turn: chat never asks the model for it
        bare = answer.rstrip()
        return bare if any(bare.endswith(end) for end in self._added_texts) else answer

    def _spans_by_content(self, turns: list[Turn], tools: Tools, text: str) -> list[Span] | None:
        """Render with stand-ins for the answers, then find the answers between the pieces; None unless all of `text` is accounted for."""
        if any(turn.get("tool_calls") for turn in turns):
            return None
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        marks = iter(f"{PROBE_ANSWER}{i}\ue102" for i in range(len(answers)))
        swapped = [{**turn, "content": next(marks)} if turn["role"] == "assistant" else turn for turn in turns]
        try:
            frame = self._text(swapped, tools)
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
        return spans if text[start:] == frame else None

    def _end_length(self, following: str) -> int:
        """How much of what follows an answer closes it."""
        bare = following.lstrip()
        ends = [end for end in (self._end_of_turn, *self._added_texts) if end and bare.startswith(end)]
        mark = MARK.match(bare)
        end = max(ends, key=len, default=mark.group() if mark and mark.group() != self._next_header else "")
        return len(following) - len(bare) + len(end) if end else 0

    # what the template does, found out by asking it

    @cached_property
    def _added_texts(self) -> frozenset[str]:
        texts = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        return frozenset(texts | {text for text in self.special_tokens.values() if text})

    def _tail(self, role: str = "user") -> str:
        """What stands between an answer and the next turn's content; "" where the template can't be asked."""
        if role not in self._tails:
            text = self._probe([_turn("user", "Hi"), _turn("assistant", PROBE_ANSWER), _turn(role, PROBE_QUESTION)])
            self._tails[role] = text.partition(PROBE_ANSWER)[2].partition(PROBE_QUESTION)[0]
        return self._tails[role]

    @cached_property
    def _end_of_turn(self) -> str:
        """What closes an answer: an added token, else the mark that stands behind the last answer, such as `<|im_end|>`."""
        closing = self._probe([_turn("user", "Hi"), _turn("assistant", PROBE_ANSWER)]).partition(PROBE_ANSWER)[2].strip()
        token = max((text for text in self._added_texts if closing.startswith(text)), key=len, default="")
        return token or closing.partition("\n")[0].rstrip()

    @cached_property
    def _next_header(self) -> str:
        """What opens the next question, such as `### Instruction:`; a base model writes it when it rambles on."""
        rest = self._tail().lstrip().removeprefix(self._end_of_turn) if self._end_of_turn else self._tail()
        for text in sorted(self._added_texts, key=len, reverse=True):
            rest = rest.removeprefix(text)
        line = rest.strip().partition("\n")[0].rstrip()
        newline = "\n" in rest[: len(rest) - len(rest.lstrip())]
        if not newline and line.isalnum():
            return ""  # a bare word would end honest answers
        return "\n" * newline + line if line else ""

    def _probe(self, turns: list[Turn], tools: Tools = None) -> str:
        try:
            return self._text(turns, tools)
        except DatasetError:
            return ""

    @cached_property
    def _shows_text(self) -> bool:
        text = self._probe([_turn("user", PROBE_QUESTION), _turn("assistant", PROBE_ANSWER)]).lower()
        return not text or (PROBE_QUESTION in text and PROBE_ANSWER in text)

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

    def _adapted(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools) -> tuple[list[Turn], Tools]:
        """Messages as the template gets them; tools and calls that it would silently drop become text."""
        if not self._shows_text:
            raise DatasetError(
                "The chat template leaves out what the messages say; it may be for images.", "Choose chatml, alpaca or plain."
            )
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


def _template_source(choice: str | None, vocabulary: Vocabulary) -> tuple[str, str]:
    """Template text and a name for people."""
    if choice is None or not choice.strip():
        return (vocabulary.chat_template, "model") if vocabulary.chat_template else (_read_template(TEMPLATES / "alpaca.jinja"), "alpaca")
    if choice in TEMPLATE_NAMES:
        return _read_template(TEMPLATES / f"{choice}.jinja"), choice
    if "{{" in choice or "{%" in choice:
        return choice, "custom"
    path = Path(choice)
    if path.suffix != ".jinja" or "\0" in choice or not path.is_file():
        raise DatasetError(f"There is no chat template {choice[:200]!r}.", f"Choose one of {', '.join(TEMPLATE_NAMES)}, or a .jinja file.")
    return _read_template(path), path.name


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise DatasetError(f"The chat template {path} has more than {MAX_TEMPLATE_BYTES:,} bytes.", "Choose another file.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise DatasetError(f"The chat template {path} can't be read as UTF-8 text.", "Choose another file.") from None


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}}


def _calling(name: str) -> Turn:
    return {**_turn("assistant", ""), "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}}]}


def _as_turn(message: Message | Mapping[str, Any]) -> Turn:
    """A plain dict without empty keys; arguments of calls as objects, which is what templates expect."""
    raw = message.model_dump() if isinstance(message, Message) else dict(message)
    turn = {key: value for key, value in raw.items() if value is not None}
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


def _variants(answer: str) -> list[str]:
    """An answer as templates are known to write it: as it is, trimmed, or without its reasoning."""
    spoken = answer.split("</think>")[-1]
    return list(dict.fromkeys([answer, answer.strip(), answer.rstrip(), answer.lstrip(), spoken, spoken.lstrip("\n"), spoken.strip()]))


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token whether it shares a character with a span; a token without characters goes with the one it precedes."""
    starts = [start for start, _ in offsets]
    ends = [end if end > start else start + 1 for start, end in offsets]
    inside = [False] * len(starts)
    for start, end in spans:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        inside[first:last] = [True] * (last - first)
    return inside


def _cut(text: str, ids: list[int], learned: list[bool], offsets: list[Span], max_length: int | None) -> Rendered:
    length = len(ids)
    truncated = max_length is not None and length > max_length
    return Rendered(text, ids[:max_length], learned[:max_length], offsets[:max_length], truncated, length)
