"""Rows as tokens: the one renderer for training, chat, preview and export, so that all of them see the same ids.

A Renderer is a tokenizer and a chat template. It says for each token of a row whether training learns it.
Knows no torch, no files but the model folder's, no database.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from studio.datasets.dialogue import Dialogue
from studio.datasets.folding import folding
from studio.datasets.masks import mask
from studio.datasets.reasoning import EMPTY, split_reasoning
from studio.datasets.sandbox import Span
from studio.datasets.tokenization import ModelTokens, load_vocabulary
from studio.datasets.turns import Tools, Turn, as_turn, calls_as_text
from studio.errors import DatasetError
from studio.types import DroppedPart, Example, Message, Reasoning, RowOptions, SystemMessage

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE_NAMES = ("chatml", "alpaca", "alpaca-end", "plain")
MAX_TEMPLATE_BYTES = 1024**2
# in the card (studio.json) of an adapter whose rows name tools: how they are told of
TOOLS_KEY, TOLD_BY_TEMPLATE, TOLD_AS_TEXT = "tools", "template", "text"


@dataclass(frozen=True)
class Rendered:
    """One row as training sees it. `learned`, `barred` and `offsets` have one entry per id; `length` counts tokens before cutting.

    `barred`: tokens of turns that are marked not to be learned. `left_out`: what the template does not write of the row.
    """

    text: str
    ids: list[int]
    learned: list[bool]
    offsets: list[Span]
    truncated: bool
    length: int
    barred: Sequence[bool] = ()
    left_out: tuple[DroppedPart, ...] = ()

    @property
    def teaches_empty_reasoning(self) -> bool:
        """Whether an empty block of reasoning is learned, which teaches not to think."""
        blocks = [found.span() for found in EMPTY.finditer(self.text)]
        if not blocks:
            return False
        inside = _overlapping(self.offsets, blocks)
        return any(own and learned for own, learned in zip(inside, self.learned, strict=True))

    def tokens(self) -> list[str]:
        """The part of `text` that each id stands for; together they are the text, up to where it was cut."""
        pieces, last = [], 0
        for _, end in self.offsets:
            pieces.append(self.text[last:end])
            last = max(last, end)
        return pieces


@dataclass(frozen=True)
class RenderedPrompt:
    """A conversation as chat sends it: the model goes on from here."""

    text: str
    ids: list[int]


class Renderer:
    """A model folder's tokenizer with one chat template."""

    def __init__(self, vocabulary: ModelTokens, template: str, template_name: str, options: RowOptions | None = None) -> None:
        self._vocabulary = vocabulary
        self.options = options or RowOptions()
        if self.options.system_message is SystemMessage.FOLD:
            template = folding(template)
        self.tokenizer = vocabulary.tokenizer
        self.template = template
        self.template_name = template_name  # of TEMPLATE_NAMES, `model` for the model's own, `custom`, or a file's
        self.template_sha256 = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.pad_token_id = vocabulary.pad_token_id
        self.special_tokens = vocabulary.special_tokens
        texts = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        self._added_texts = frozenset(texts | {text for text in self.special_tokens.values() if text})
        self.dialogue = Dialogue(template, self.special_tokens, self._added_texts, self.options.date)

    @classmethod
    def load(cls, model_folder: Path, chat_template: str | None = None, options: RowOptions | None = None) -> Renderer:
        """`chat_template`: None takes the model's own, else alpaca; a name of TEMPLATE_NAMES; a `.jinja` file; or Jinja text.

        Raises ModelError when the folder has no readable tokenizer, DatasetError when the template can't be used.
        """
        vocabulary = load_vocabulary(Path(model_folder))
        source, name = _template_source(chat_template, vocabulary)
        return cls(vocabulary, source, name, options)

    def with_options(self, options: RowOptions) -> Renderer:
        """The same tokenizer and template for rows that are read in another way."""
        return Renderer(self._vocabulary, self.template, self.template_name, options)

    @cached_property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer: the template's end of turn, its next question's header, and what the model folder names."""
        eos = self.special_tokens.get("eos_token", "")
        found = [eos, *self._vocabulary.stop_strings, *self.dialogue.closings, self.dialogue.next_header]
        return tuple(dict.fromkeys(text for text in found if text))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the model folder's, and the template's end of turn where that is one token."""
        texts = (self.dialogue.end_of_turn, self.dialogue.next_header)
        ends = [self.tokenizer.token_to_id(text) for text in texts if text in self._added_texts]
        return tuple(dict.fromkeys([*self._vocabulary.stop_token_ids, *(i for i in ends if i is not None)]))

    def card(self) -> dict[str, Any]:
        """What is kept of the template with a run and an adapter, beside its text."""
        return {
            "name": self.template_name,
            "sha256": self.template_sha256,
            "special_tokens": {name: text for name, text in self.special_tokens.items() if text},
            "stop_strings": list(self.stop_strings),
        }

    @property
    def tells_tools_as_text(self) -> bool:
        """The template has no place for tools: they stand in a message, as text."""
        return not self.dialogue.shows_tools

    def spoken(self, message: Message) -> str:
        """What a message says, for people: its calls as text behind it."""
        return str(calls_as_text(as_turn(message))["content"])

    def example(self, example: Example, max_length: int | None = None) -> Rendered:
        """One training row. Conversations learn the turns that `options` choose, prompt + completion the completion, text everything."""
        if example.text is not None:
            return self._document("", example.text, max_length)
        if isinstance(example.prompt, str) and isinstance(example.completion, str):
            return self._document(example.prompt, example.completion, max_length)
        before, answer = example.parts()
        if isinstance(before, str) or isinstance(answer, str) or not (before or answer):
            raise DatasetError("The row holds neither messages, nor prompt and completion, nor text.", "Map its columns first.")
        if example.messages is None and example.completion is not None and example.label is None:
            before = [_unlearned(message) for message in before or []]
        return self._conversation([*(before or []), *(answer or [])], example.tools, max_length)

    def prompt(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools = None) -> RenderedPrompt:
        """A conversation for the assistant to go on. Raises DatasetError when the template refuses it."""
        if not messages:
            raise DatasetError("There is no message to answer.", "Write one.")
        turns, tools = self.turns(messages, tools)
        text = self.dialogue.text(turns, tools, add_generation_prompt=True)
        return RenderedPrompt(text, self._encode(text, False).ids)

    def turns(self, messages: Sequence[Message | Mapping[str, Any]], tools: Tools) -> tuple[list[Turn], Tools]:
        """Messages as the template gets them, with their reasoning as `options` say."""
        turns, tools = self.dialogue.adapted(messages, tools)
        return [self._thinking(turn) for turn in turns], tools

    def _thinking(self, turn: Turn) -> Turn:
        wish = self.options.reasoning
        if wish is Reasoning.LEARN or turn["role"] != "assistant":
            return turn
        thought, answer = split_reasoning(turn["content"])
        found = {"reasoning": thought, **turn, "content": answer}
        if wish is Reasoning.DROP or found["reasoning"] is None:
            found.pop("reasoning")
        return found

    def completion_prompt(self, text: str) -> list[int]:
        """Plain text for the model to go on, with the tokenizer's own special tokens; nothing starts from BOS."""
        ids: list[int] = []
        if text:
            encoding = self._encode(text, True)
            ids = encoding.ids[_doubled(encoding) :]
        starts = [start for start in (self.bos_token_id, self.eos_token_id) if start is not None]
        return ids or starts[:1]

    def encoded(self, text: str, with_special: bool = False) -> list[int]:
        """The ids of a text as it stands, `with_special` with what the tokenizer puts around it. Raises DatasetError."""
        return list(self._encode(text, with_special).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    # documents

    def _document(self, prompt: str, completion: str, max_length: int | None) -> Rendered:
        text = prompt + completion
        encoding = self._encode(text, True)
        begin = _doubled(encoding)
        ids, offsets = list(encoding.ids[begin:]), list(encoding.offsets[begin:])
        own = _overlapping(offsets, [(len(prompt), len(text))])
        learned = [inside and not special for inside, special in zip(own, encoding.special_tokens_mask[begin:], strict=True)]
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
        turns, tools = self.turns(messages, tools)
        text = self.dialogue.text(turns, tools)
        encoding = self._encode(text, False)
        # adapting may put a system turn in front, which nobody has marked
        marks = [*[None] * (len(turns) - len(messages)), *(message.train for message in messages)]
        found = mask(self.dialogue, turns, tools, text, marks, self.options)
        barred = _overlapping(encoding.offsets, found.barred)
        learned = _overlapping(encoding.offsets, found.learned)
        learned = [inside and not never for inside, never in zip(learned, barred, strict=True)]
        row = _cut(text, list(encoding.ids), learned, list(encoding.offsets), max_length, barred)
        return replace(row, left_out=tuple(self.dialogue.left_out(turns, tools, text, found.turns)))

    def _encode(self, text: str, add_special_tokens: bool) -> Any:
        try:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            raise DatasetError("The text holds half of a surrogate pair, which is no character.", "Remove it.") from None


def names_file(choice: str | None) -> bool:
    """Whether a chat template is chosen by the path of a file: it is none of our names and no template's own text."""
    if choice is None or not choice.strip() or choice in TEMPLATE_NAMES:
        return False
    return "{{" not in choice and "{%" not in choice


def _template_source(choice: str | None, vocabulary: ModelTokens) -> tuple[str, str]:
    """Template text and a name for people."""
    if choice is None or not choice.strip():
        if vocabulary.chat_template:
            return vocabulary.chat_template, "model"
        return _read_template(TEMPLATES / "alpaca.jinja"), "alpaca"
    if choice in TEMPLATE_NAMES:
        return _read_template(TEMPLATES / f"{choice}.jinja"), choice
    if not names_file(choice):
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


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token whether it shares a character with a span; a token without characters goes with the one it precedes."""
    starts = [start for start, _ in offsets]
    ends = [max(end, start + 1) for start, end in offsets]
    inside = [False] * len(starts)
    for start, end in spans:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        inside[first:last] = [True] * (last - first)
    return inside


def _unlearned(message: Message) -> Message:
    """A turn of the prompt to a completion: the completion alone is learned."""
    if message.role != "assistant":
        return message
    return message.model_copy(update={"train": False})


def _doubled(encoding: Any) -> int:
    """1 where the tokenizer has put its first token before a text that begins with that token already."""
    ids, special = encoding.ids, encoding.special_tokens_mask
    return int(len(ids) > 1 and ids[0] == ids[1] and bool(special[0]) and encoding.offsets[0] == (0, 0))


def _cut(
    text: str,
    ids: list[int],
    learned: list[bool],
    offsets: list[Span],
    max_length: int | None,
    barred: list[bool] | None = None,
) -> Rendered:
    length = len(ids)
    barred = (barred or [False] * length)[:max_length]
    truncated = max_length is not None and length > max_length
    return Rendered(text, ids[:max_length], learned[:max_length], offsets[:max_length], truncated, length, barred)
