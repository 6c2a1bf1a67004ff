"""A chat template with its special tokens: conversations to text, and which part of a text the assistant writes.

What a template supports (system, tools, ...) and how it ends a turn is found out by asking it, never by its name.
Knows no tokens' ids: that is rendering.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from studio.datasets.reasoning import Writer, writers
from studio.datasets.sandbox import Span, compiled
from studio.datasets.turns import Tools, Turn, as_turn, calling, calls_as_text, probe_tool, turn_of
from studio.errors import DatasetError
from studio.types import DroppedPart, Message

# stand in for contents when a template is asked how it would write them
PROBE_ANSWER = "\ue100answer\ue101"
PROBE_QUESTION = "\ue100question\ue101"
PROBE_THOUGHT = "\ue100thought\ue101"

LONGEST_MARK = 60  # between reasoning and the answer
OPENING = re.compile(r"(?:<[^<>\s/]{1,40}>|\[[A-Z_]{1,40}\])\s*\Z")
MARK = re.compile(r"<[^<>\s]{1,40}>")  # markup such as <|end|> that the tokenizer knows no token for


class Dialogue:
    """`added_texts`: texts that the tokenizer has tokens of their own for, such as <|im_end|>. `date`: what templates print; None: today."""

    def __init__(self, template: str, special_tokens: dict[str, str], added_texts: frozenset[str], date: str | None = None) -> None:
        self._template = compiled(template)
        self._date = date
        self._special_tokens = special_tokens
        self._added_texts = added_texts
        self._tails: dict[str, str] = {}

    def _values(self, turns: list[Turn], tools: Tools, add_generation_prompt: bool = False) -> dict[str, Any]:
        messages = [self._written(turn) for turn in turns]
        asked = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
        return {**self._special_tokens, **self._day(), **asked}

    def _day(self) -> dict[str, Any]:
        """What a template that prints a date is given, in the way that it asks for it."""
        if not self._template.prints_date:
            return {}
        day = datetime.fromisoformat(self._date) if self._date else datetime.now()
        found: dict[str, Any] = {"strftime_now": day.strftime}
        if self._template.wants_date_string:
            found["date_string"] = day.strftime("%d %b %Y")
        return found

    @property
    def prints_date(self) -> bool:
        return self._template.prints_date

    def _written(self, turn: Turn) -> Turn:
        """A message with its reasoning where this template reads it; what it does not write at all is left out, see `left_out`."""
        if "reasoning" not in turn:
            return turn
        rest = {key: value for key, value in turn.items() if key != "reasoning"}
        if self._writer is None:
            return rest
        return {**rest, **self._writer(turn["reasoning"], turn["content"])}

    @cached_property
    def _writer(self) -> Writer | None:
        """How this template wants reasoning, found out by asking; None where it writes none."""
        for writer in writers(self._template.names):
            turns = [turn_of("user", "Hi"), {"role": "assistant", **writer(PROBE_THOUGHT, PROBE_ANSWER)}]
            before, found, after = self._probe(turns).partition(PROBE_THOUGHT)
            if found and PROBE_ANSWER in after and PROBE_ANSWER not in before:
                return writer
        return None

    def left_out(self, turns: list[Turn], tools: Tools, text: str, learned: Collection[int]) -> list[DroppedPart]:
        """What `text` does not say of system messages, and of the reasoning of the turns `learned`: chat leaves out that of others too."""
        found = []
        systems = [i for i, turn in enumerate(turns) if turn["role"] == "system" and turn["content"].strip()]
        if any(not self._is_said(turns, tools, text, i, "content") for i in systems):
            found.append(DroppedPart.SYSTEM)
        thoughts = [i for i in learned if turns[i].get("reasoning")]
        silent = [i for i in thoughts if not self._is_said(turns, tools, text, i, "reasoning")]
        if silent:
            found.append(DroppedPart.REASONING if silent == thoughts else DroppedPart.EARLIER_REASONING)
        return found

    def _is_said(self, turns: list[Turn], tools: Tools, text: str, i: int, key: str) -> bool:
        return turns[i][key].strip() in text or self.shows(turns, tools, i, key)

    def shows(self, turns: list[Turn], tools: Tools, i: int, key: str) -> bool:
        """Whether the template writes this part of turn `i`, in whatever form."""
        probe = PROBE_ANSWER if key == "content" else PROBE_THOUGHT
        return probe in self._probe([*turns[:i], {**turns[i], key: probe}, *turns[i + 1 :]], tools)

    def content_span(self, turns: list[Turn], tools: Tools, text: str, i: int, key: str = "content") -> Span | None:
        """Where in `text` this part of turn `i` stands; None where the template does not show it, or writes what is around it anew."""
        swapped = self._probe([*turns[:i], {**turns[i], key: PROBE_ANSWER}, *turns[i + 1 :]], tools)
        before, found, after = swapped.partition(PROBE_ANSWER)
        if not found or len(before) + len(after) > len(text) or not (text.startswith(before) and text.endswith(after)):
            return None
        return len(before), len(text) - len(after)

    def text(self, turns: list[Turn], tools: Tools = None, add_generation_prompt: bool = False) -> str:
        """Raises DatasetError with the template's own complaint."""
        return self._template.render(**self._values(turns, tools, add_generation_prompt))

    def adapted(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools) -> tuple[list[Turn], Tools]:
        """Messages as the template gets them; tools and calls that it would silently drop become text."""
        self._refuse_unless_shown(PROBE_QUESTION)
        turns = [as_turn(message) for message in messages]
        if any(turn.get("tool_calls") for turn in turns) and not self._shows_calls:
            turns = [calls_as_text(turn) for turn in turns]
        if any(turn["role"] == "tool" for turn in turns) and not self._shows_results:
            turns = [{"role": "user", "content": turn["content"]} if turn["role"] == "tool" else turn for turn in turns]
        if tools and not self.shows_tools:
            turns, tools = self._tools_as_text(turns, tools), None
        return turns, tools or None

    def _tools_as_text(self, turns: list[Turn], tools: list[dict[str, Any]]) -> list[Turn]:
        note = 'Tools you may call, by answering {"name": …, "arguments": {…}}:\n' + json.dumps(tools, ensure_ascii=False)
        first, rest = turns[0], turns[1:]
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{note}"}, *rest]
        if self._shows_system:
            return [turn_of("system", note), *turns]
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
        return self._unmarked_spans(turns, tools, text)

    def answer_spans(self, turns: list[Turn], tools: Tools, text: str) -> dict[int, list[Span]]:
        """The same, for each turn of the assistant by its place."""
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        spans = self.learned_spans(turns, tools, text)
        if len(spans) == len(answers):
            return {i: [span] for i, span in zip(answers, spans, strict=True)}
        # a template that marks several parts of an answer, or leaves some answers unmarked: by where the answers' words stand
        found: dict[int, list[Span]] = {i: [] for i in answers}
        bounds = [span[0] for span in self._unmarked_spans(turns, tools, text)]
        for span in spans:
            owner = max((n for n, bound in enumerate(bounds) if bound <= max(span[0], span[1] - 1)), default=0)
            found[answers[owner]].append(span)
        return found

    def _unmarked_spans(self, turns: list[Turn], tools: Tools, text: str) -> list[Span]:
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
        until, found, _ = self.text([*turns[: i + 1], turn_of(role, PROBE_QUESTION)], tools).partition(PROBE_QUESTION)
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
        places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        answers = [turns[i]["content"] for i in places]
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
            begin = start - self._length_of_reasoning(turns[places[i]], text[:start])
            spans.append((begin, start + len(variant) + self._end_length(following)))
            start += len(variant)
        if text[start:] != frame:
            return None
        return spans

    def _length_of_reasoning(self, turn: Turn, before: str) -> int:
        """How much of the end of `before`, which leads to an answer, is its reasoning with the marks around it."""
        reasoning = turn.get("reasoning", "").strip()
        start = before.rfind(reasoning) if reasoning else -1
        if start < 0 or len(before) - start - len(reasoning) > LONGEST_MARK:
            return 0
        opening = OPENING.search(before[:start])
        return len(before) - (opening.start() if opening else start)

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
            text = self._probe([turn_of("user", "Hi"), turn_of("assistant", PROBE_ANSWER), turn_of(role, PROBE_QUESTION)])
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
        return self._probe([turn_of("user", "Hi"), turn_of("assistant", PROBE_ANSWER)]).partition(PROBE_ANSWER)[2]

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
        return self._probe([turn_of("user", PROBE_QUESTION), turn_of("assistant", PROBE_ANSWER)]).lower()

    def _refuse_unless_shown(self, content: str) -> None:
        """Templates for images want contents in parts and leave out plain text without a word."""
        if self._exchange and content not in self._exchange:
            raise DatasetError("The chat template leaves out what messages say; it may be for images.", "Choose chatml, alpaca or plain.")

    @cached_property
    def _shows_system(self) -> bool:
        return PROBE_QUESTION in self._probe([turn_of("system", PROBE_QUESTION), turn_of("user", "Hi")])

    @cached_property
    def shows_tools(self) -> bool:
        return "probe_tool" in self._probe([turn_of("user", "Hi")], [probe_tool("probe_tool")])

    @cached_property
    def _shows_calls(self) -> bool:
        return "probe_tool" in self._probe([turn_of("user", "Hi"), calling("probe_tool")])

    @cached_property
    def _shows_results(self) -> bool:
        turns = [turn_of("user", "Hi"), calling("probe_tool"), turn_of("tool", PROBE_QUESTION), turn_of("assistant", "Yes")]
        return PROBE_QUESTION in self._probe(turns)


def _agreement(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _variants(answer: str) -> list[str]:
    """An answer as templates are known to write it: as it is, trimmed, or without its reasoning."""
    spoken = answer.split("</think>")[-1]
    return list(dict.fromkeys([answer, answer.strip(), answer.rstrip(), answer.lstrip(), spoken, spoken.lstrip("\n"), spoken.strip()]))
