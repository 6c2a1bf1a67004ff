"""One pass over some rows of a dataset: everything about a row that can be seen without looking at the others.

Runs in several processes at once, a part of the file each. Knows nothing of files.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from studio.datasets.report import likeness, texts
from studio.datasets.report.control_tokens import ControlTokens, of_model
from studio.datasets.report.languages import language
from studio.datasets.report.personal import masked, may_hold_personal_data, personal_data
from studio.datasets.report.placeholders import placeholders
from studio.datasets.report.rows import (
    Row,
    Turn,
    answers_of,
    is_identical,
    messages_of,
    question_of,
    spoken_by_people,
    strings_of,
    turns_of,
    wanted_answers_of,
)

if TYPE_CHECKING:
    from studio.datasets.report.tokens import Counted

EXAMPLES = 5
EXCERPT = 200
ONE_WORD = re.compile(r"[^\w\s]*[\w'’.,%$€£+-]*[^\w\s]*")
ONE_WORD_CHARS = 40
LABEL_CHARS = 64  # a longer answer is no label
# a line that holds neither such a character nor an escape that could stand for one
ODD = re.compile(rf"\\[ubf]|{texts.REPLACEMENT}|{texts.CONTROL.pattern}")
REPEATED, REPEATED_IN_QUESTION = 0.5, 0.75
MARKS = re.compile(r"[{\[<%]|###")  # without one of them there is neither a placeholder nor a control token
MAX_LABELS = 1000  # more different short answers in one part are no set of labels

Excerpt = tuple[int, str]


@dataclass(frozen=True)
class ScanOptions:
    """How rows are to be read. `languages_every`: of how many rows one is asked for its language."""

    kind: str
    model_folder: str | None = None
    chat_template: str | None = None
    max_length: int = 1024
    languages_every: int = 1
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A row under the lens: its number, its line, itself and its parts; `plain` is what it says without case and punctuation."""

    number: int
    line: str
    row: Row
    turns: list[Turn]
    answers: list[str]
    messages: list[str]
    plain: list[str]


@dataclass
class ScannedPart:
    """What was seen in some rows. Row numbers count from 1 and are those of the whole dataset."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    excerpts: dict[str, list[Excerpt]] = field(default_factory=dict)
    sizes: array[int] = field(default_factory=lambda: array("q"))  # characters
    lengths: array[int] = field(default_factory=lambda: array("q"))  # in tokens where there is a model, else in words
    answer_lengths: array[int] = field(default_factory=lambda: array("q"))
    languages: dict[int, str] = field(default_factory=dict)
    one_word: list[int] = field(default_factory=list)  # rows whose answer is one word that the question does not offer
    rows_of_one_word: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    marks: Counter[bool] = field(default_factory=Counter)  # answers that are marked good, and bad
    names: dict[str, Counter[str]] = field(default_factory=dict)  # check -> what was found by name -> rows
    rows_with_answers: int = 0
    matrix: Any = None  # signatures, and the hashes of the rows' numbers
    numbers: Any = None

    def add(self, check: str, row: int, excerpt: str) -> None:
        self.rows.setdefault(check, []).append(row)
        shown = self.excerpts.setdefault(check, [])
        if len(shown) < EXAMPLES:
            shown.append((row, shortened(excerpt)))

    def add_named(self, check: str, row: int, excerpt: str, names: Iterable[str]) -> None:
        """As `add`, and what was found, each once a row."""
        self.add(check, row, excerpt)
        self.names.setdefault(check, Counter()).update(dict.fromkeys(names, 1))


def shortened(text: str, limit: int = EXCERPT) -> str:
    text = " ".join(text[: 20 * limit].split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def scan(lines: Sequence[bytes], first: int, reading: ScanOptions, common: likeness.Hashes) -> ScannedPart:
    """`lines` are rows `first`, `first` + 1, …; `common`: shingles that many rows of the dataset share."""
    part, said = ScannedPart(), []
    measure = _measure(reading)
    for number, line in enumerate(lines, start=first):
        row = orjson.loads(line)
        messages = messages_of(row)
        plain = [likeness.plain(message) for message in messages]
        item = Item(number, line.decode(), row, turns_of(row), answers_of(row), messages, plain)
        part.sizes.append(sum(map(len, messages)))
        said.append(" ".join(item.plain))
        measure(part, item)
        for look in LOOKS:
            look(part, item, reading)
    part.matrix, part.numbers = likeness.signatures(said, common)
    return part


# lengths


def _measure(reading: ScanOptions) -> Callable[[ScannedPart, Item], None]:
    if not reading.model_folder:
        return _words
    from studio.datasets.report import tokens  # a report without a model needs no tokenizer

    renderer = tokens.renderer(reading.model_folder, reading.chat_template, reading.date)
    learns = reading.kind != "prompts"
    return lambda part, item: _tokens(part, item, tokens.counted(renderer, item.row, reading.max_length), learns)


def _words(part: ScannedPart, item: Item) -> None:
    part.lengths.append(sum(len(message.split()) for message in item.messages))
    part.answer_lengths.append(sum(len(answer.split()) for answer in item.answers))


def _tokens(part: ScannedPart, item: Item, counted: Counted, learns: bool) -> None:
    part.lengths.append(counted.length)
    part.answer_lengths.append(counted.learned)
    if learns and not counted.learns:
        part.add("no_learned_tokens", item.number, counted.text)
    if counted.left_out:
        part.add("left_out", item.number, f"{', '.join(counted.left_out).replace('_', ' ')}: {counted.text}")
    if learns and counted.empty_reasoning:
        part.add("empty_reasoning", item.number, counted.text)
    if learns and counted.is_cut:
        part.add("truncation", item.number, f"{counted.length:,} tokens: {counted.text}")


# one look per kind of fault


def _look_at_answers(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    if reading.kind == "prompts":
        return
    if reading.kind == "text":
        if not item.row["text"].strip():
            part.add("empty_answers", item.number, "")
        return
    if any(not answer.strip() for answer in item.answers):
        part.add("empty_answers", item.number, question_of(item.row))
        return
    if not item.answers:
        return
    part.rows_with_answers += 1
    if len(part.labels) < MAX_LABELS:
        part.labels[item.answers[0].strip().lower()[:LABEL_CHARS]] += 1
    if all(is_one_word(answer) for answer in item.answers):
        part.rows_of_one_word += 1
        if not _is_offered(item.answers[0], question_of(item.row)):
            part.one_word.append(item.number)


def is_one_word(answer: str) -> bool:
    """One word, number or sign; a sentence of a script without spaces is none."""
    answer = answer.strip()
    if len(answer) > ONE_WORD_CHARS or (len(answer) > 1 and texts.UNSPACED.search(answer)):
        return False
    return ONE_WORD.fullmatch(answer) is not None


def _is_offered(answer: str, question: str) -> bool:
    """Whether the question names the answer, as one of those to choose from."""
    word = texts.WORD.search(answer.lower())
    return word is not None and word.group() in texts.WORD.findall(question.lower())


def _look_for_refusals(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    for answer in item.answers if "messages" in item.row else wanted_answers_of(item.row):
        if texts.is_refusal(answer):
            part.add("refusals", item.number, answer)
            return


def _look_at_roles(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    if item.turns and reading.kind != "prompts" and (problem := disorder([_role(turn) for turn in item.turns])):
        part.add("role_order", item.number, f"{problem}: {' '.join(turn['role'] for turn in item.turns)}")


def _role(turn: dict[str, Any]) -> str:
    return "call" if turn["role"] == "assistant" and turn.get("tool_calls") else str(turn["role"])


# what may stand before each role; "" is the beginning
MAY_FOLLOW = {
    "system": ("",),
    "user": ("", "system", "assistant", "call"),
    "assistant": ("user", "tool"),
    "call": ("user", "tool", "assistant"),
    "tool": ("call", "tool"),
}


def disorder(roles: list[str]) -> str:
    """What is wrong with an order of roles ("call" is an assistant that calls a tool); "" where nothing is."""
    before = ""
    for place, role in enumerate(roles, start=1):
        if before not in MAY_FOLLOW[role]:
            return f"message {place} ({'assistant' if role == 'call' else role}) follows {before or 'nothing'}"
        before = role
    return "" if before in ("assistant", "call") else f"ends with {before}"


def _look_at_texts(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    if not (may_hold_personal_data(item.line) or ODD.search(item.line)):
        return
    strings = list(strings_of(item.row))
    whole = "\n".join(strings)
    if may_hold_personal_data(whole) and (found := next((text for text in strings if personal_data(text)), None)):
        part.add("pii", item.number, around(found))
    if control := texts.CONTROL.search(whole):
        shown = near(whole, control.start())
        part.add("control_characters", item.number, texts.CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", shown))
    if texts.REPLACEMENT in whole:
        part.add("replacement_characters", item.number, near(whole, whole.index(texts.REPLACEMENT)))


def near(text: str, place: int) -> str:
    """The text around a place."""
    begin = max(0, place - EXCERPT // 2)
    return ("…" if begin else "") + text[begin : place + EXCERPT // 2]


def _look_for_repetition(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    """What is learned may repeat itself less than a question, which may offer sentences to choose from."""
    answers = set(item.answers)
    for message, plain in zip(item.messages, item.plain, strict=True):
        share = REPEATED if message in answers or "text" in item.row else REPEATED_IN_QUESTION
        if texts.repeats_itself(plain.split(), share):
            part.add("repeated_text", item.number, message)
            return


def around(text: str) -> str:
    """The place of the first personal data, which itself is not shown in full."""
    start, end, kind = personal_data(text)[0]
    begin = max(0, start - EXCERPT // 3)
    return f"{masked(text[begin:start])}{text[start : start + 3]}… [{kind}]{masked(text[end : end + EXCERPT // 3])}"


def _look_at_language(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    if (item.number - 1) % reading.languages_every:
        return
    answer = "\n".join(wanted_answers_of(item.row))
    found = language(answer) or language("\n".join(spoken_by_people(item.row)))
    if found:
        part.languages[item.number] = found


def _look_at_preference(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    """Two equal answers; and how an answer is marked."""
    if item.row.get("rejected") is not None and is_identical(item.row):
        part.add("identical_pairs", item.number, answers_of(item.row)[0] if item.answers else "")
    if item.row.get("label") is not None:
        part.marks[bool(item.row["label"])] += 1


def _look_for_marks(part: ScannedPart, item: Item, reading: ScanOptions) -> None:
    """What was to be filled in, and what is read as a control token; a plain text to read on from may be written in a template."""
    if reading.kind == "text" or not MARKS.search(item.line):
        return
    said = {key: value for key, value in item.row.items() if key != "tools"}  # braces in a schema are no placeholders
    open_places = [(text, place) for text in strings_of(said) for place in placeholders(text)]
    if open_places:
        text, first = open_places[0]
        names = [place.text for _, place in open_places]
        part.add_named("placeholders", item.number, near(text, first.start), names)
    control = _control_tokens(reading)
    if found := [(text, mark) for text in strings_of(item.row) for mark in control.found(text)]:
        text, mark = found[0]
        part.add_named("control_tokens", item.number, near(text, text.index(mark)), [mark for _, mark in found])


def _control_tokens(reading: ScanOptions) -> ControlTokens:
    if not reading.model_folder:
        return of_model(None)
    from studio.datasets.report import tokens  # a report without a model needs no tokenizer

    return of_model(tokens.renderer(reading.model_folder, reading.chat_template, reading.date))


LOOKS = (
    _look_at_answers,
    _look_at_preference,
    _look_for_refusals,
    _look_at_roles,
    _look_at_texts,
    _look_for_marks,
    _look_for_repetition,
    _look_at_language,
)


def joined(parts: Sequence[ScannedPart]) -> ScannedPart:
    """Parts in the order of their rows, as one; without signatures."""
    whole = ScannedPart()
    for part in parts:
        for check, rows in part.rows.items():
            whole.rows.setdefault(check, []).extend(rows)
        for check, shown in part.excerpts.items():
            whole.excerpts[check] = [*whole.excerpts.get(check, []), *shown][:EXAMPLES]
        whole.sizes += part.sizes
        whole.lengths += part.lengths
        whole.answer_lengths += part.answer_lengths
        whole.languages.update(part.languages)
        whole.one_word += part.one_word
        whole.rows_of_one_word += part.rows_of_one_word
        whole.labels.update(part.labels)
        whole.marks.update(part.marks)
        for check, names in part.names.items():
            whole.names.setdefault(check, Counter()).update(names)
        whole.rows_with_answers += part.rows_with_answers
    return whole
