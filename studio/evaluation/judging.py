"""Judges as data: what a judge is asked about two answers. Templates stand in judges.toml; replies are read by studio.evaluation.replies.

Texts in, messages and verdicts out; knows no model and no table. What it puts between the markers is text to be judged: markers,
verdicts and hidden characters inside it are defanged, so that an answer can't speak as the frame around it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from studio.errors import NotFoundError
from studio.evaluation.metrics import exact_match, rouge
from studio.evaluation.replies import rating as rating
from studio.evaluation.replies import verdict as verdict
from studio.records import ComparisonPrompt, TemplateKind

GRAMMARS = {
    ("pairwise", "letter"): 'root ::= "A" | "B" | "C"',
    ("single", "number"): 'root ::= "10" | [1-9]',
    ("pairwise", "brackets"): 'root ::= [^\\[]* "[[" [ABC] "]]"',
    ("single", "brackets"): 'root ::= [^\\[]* "[[" ("10" | [1-9]) "]]"',
}
_PLACE = re.compile(r"\{(\w+)\}")
_MARKERS = re.compile(
    r"\[(?=\s*(?:the\s+(?:start|end)\s+of|user\s+question|question\s*\]|instruction\s*\]|\[))|<(?=\s*/?\s*\|)|#(?=##\s*(?:user|assistant|reference))",
    re.IGNORECASE,
)
# what an answer says only to whoever judges it: orders, verdicts, parts of frames and templates, floods of one word
_TO_THE_JUDGE = re.compile(
    r"(?i:\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:instructions?|above|previous|prompts?|rules))"
    r"|(?i:\b(?:dear|note to the|attention|you are the|of this) (?:judge|grader|evaluator|referee|reviewer)s?\b)"
    r"|(?i:\b(?:verdict|rating|winner|label|letter)\b[^.\n]{0,20}?[\s:\"'*\[]+)(?:[ABC]\b|10\b)"
    r"|(?i:\b(?:choose|pick|select|output|reply|say|answer|prefer|translate|antworte)\b(?:\s+(?:with|mit|only|other than))*)"
    r"\s+[\"'*\[]*(?:[ABC]\b(?!['’]s)|(?i:mine|this answer|this one))"
    r"|(?i:\b(?:this|the other) answer (?:has to|must|should|deserves|is known|was verified))|(?i:which (?:answer|assistant) is better\?)"
    r"|\[\[\s*(?:[ABC]|\d+)\s*\]\]|<\s*\|\s*\w|\[/?INST\]|\{+(?:answer|question|criteria|reference)\w*\}+"
)
ROOM_TO_REASON = 2048  # tokens of a reply of another server, whose model may think before it speaks
LOOKED_AT = 20_000  # characters of an answer
FLOOD = 12  # times that a text of one thing over and over shrinks when it is packed
Message = dict[str, str]


@dataclass(frozen=True)
class Judge:
    """A family of templates and the form of its replies."""

    name: str
    title: str
    kind: TemplateKind
    reply: Literal["letter", "number", "brackets"]
    max_new_tokens: int
    templates: Mapping[str, Mapping[str, str]]  # plain, reference, turns, turns_reference -> system, user

    @property
    def grammar(self) -> str:
        """GBNF of a reply, for engines that can hold a model to it."""
        return GRAMMARS[self.kind, self.reply]

    @property
    def schema(self) -> str:
        """The same as a JSON schema, for servers that know no grammars; "" where the reply holds an explanation."""
        if self.reply == "brackets":
            return ""
        fields: dict[str, Any] = {"winner": {"enum": ["A", "B", "C"]}}
        if self.kind == TemplateKind.SINGLE:
            fields = {"rating": {"enum": list(range(1, 11))}}
        shape = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        return orjson.dumps(shape).decode()

    def template(self, prompt: ComparisonPrompt) -> Mapping[str, str]:
        applies = {"turns": len(prompt["turns"]) > 1, "reference": bool(prompt.get("reference"))}
        return self.templates["_".join(name for name in applies if applies[name]) or "plain"]


@lru_cache(maxsize=1)
def judges() -> dict[str, Judge]:
    """All judges by name."""
    raw = tomllib.loads((Path(__file__).parent / "judges.toml").read_text(encoding="utf-8"))
    return {name: _judge(name, fields, raw["templates"]) for name, fields in raw["judges"].items()}


def _judge(name: str, fields: Mapping[str, Any], templates: Mapping[str, Any]) -> Judge:
    own = {role: templates[key] for role, key in fields["templates"].items()}
    return Judge(**{**fields, "name": name, "kind": TemplateKind(fields["kind"]), "templates": own})


def get(name: str) -> Judge:
    if name not in judges():
        raise NotFoundError(f"There is no judge template {name!r}.", f"Choose one of {', '.join(judges())}.")
    return judges()[name]


def question(judge: Judge, prompt: ComparisonPrompt, a: Sequence[str], b: Sequence[str], criteria: str = "") -> list[Message]:
    """What a pairwise judge is asked: `a` and `b` are the answers, turn by turn, `a` shown first."""
    texts = {**_asked(prompt, criteria), **_answered(prompt, a, "a"), **_answered(prompt, b, "b")}
    return _messages(judge.template(prompt), texts)


def rating_question(judge: Judge, prompt: ComparisonPrompt, answers: Sequence[str], criteria: str = "") -> list[Message]:
    """What a judge of single answers is asked."""
    own = _answered(prompt, answers, "a")
    single = {"answer": own["answer_a"], "conversation": own["conversation_a"]}
    turns = {f"answer_{n}": defanged(text) for n, text in enumerate(answers, 1)}
    return _messages(judge.template(prompt), {**_asked(prompt, criteria), **single, **turns})


def _asked(prompt: ComparisonPrompt, criteria: str) -> dict[str, str]:
    turns = [_text(turn) for turn in prompt["turns"]]
    references = prompt.get("references") or [prompt.get("reference") or ""]
    wanted = ""
    if criteria.strip():
        wanted = f" Judge by this: {defanged(criteria.strip()).rstrip('.')}."
    return {
        "question": "\n\n".join(turns),
        "reference": defanged(references[-1]),
        "criteria": wanted,
        **{f"question_{n}": text for n, text in enumerate(turns, 1)},
        **{f"ref_answer_{n}": defanged(text) for n, text in enumerate(references, 1)},
    }


def _answered(prompt: ComparisonPrompt, answers: Sequence[str], side: str) -> dict[str, str]:
    shown = [defanged(text) for text in answers]
    pairs = zip((_text(turn) for turn in prompt["turns"]), shown, strict=False)
    return {
        f"answer_{side}": "".join(shown[-1:]),
        f"conversation_{side}": "\n\n".join(f"User: {asked}\n\nAssistant: {text}" for asked, text in pairs),
        **{f"answer_{side}_{n}": text for n, text in enumerate(shown, 1)},
    }


def _text(turn: Sequence[Mapping[str, Any]]) -> str:
    """The messages of one turn; a lone question stands without its role."""
    if len(turn) == 1:
        return defanged(str(turn[0]["content"]))
    return "\n".join(f"{message['role']}: {defanged(str(message['content']))}" for message in turn)


def _messages(template: Mapping[str, str], texts: Mapping[str, str]) -> list[Message]:
    # one pass: a placeholder inside an answer stays what it is
    filled = {role: _PLACE.sub(lambda found: texts.get(found[1], ""), template.get(role, "")) for role in ("system", "user")}
    return [{"role": role, "content": text} for role, text in filled.items() if text]


def defanged(text: str) -> str:
    """`text` without hidden characters, and with the markers of our frames, of verdicts and of chat templates broken up."""
    seen = "".join(character for character in text if character in "\n\t" or not _is_hidden(character))
    return _MARKERS.sub(lambda found: {"[": "("}.get(found[0], found[0] + " "), seen)


def talks_to_the_judge(text: str) -> bool:
    """Whether an answer looks as if it were written for whoever judges it: a rule of thumb, for a reading and never for a verdict."""
    text = text[:LOOKED_AT]
    has_hidden = any(character not in "\n\t\r" and _is_hidden(character) for character in text)
    packed = len(zlib.compress(text.encode("utf-8", "replace")))
    return has_hidden or len(text) > FLOOD * packed or bool(_MARKERS.search(text) or _TO_THE_JUDGE.search(text))


def _is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    # joiners shape scripts and emoji, so they stay; the variation selectors of plane 14 carry nothing but messages
    return kind in ("Cc", "Co", "Cs") or (kind == "Cf" and character not in "‌‍") or "\U000e0100" <= character <= "\U000e01ef"


def by_reference(a: str, b: str, reference: str) -> str:
    """The rule of the reference judge: who equals the reference wins; where neither or both do, the higher ROUGE-L; else a tie."""
    equal = exact_match(a, [reference]), exact_match(b, [reference])
    if equal[0] != equal[1]:
        return _higher(*equal)
    if equal[0]:
        return "tie"
    one, other = (rouge(text, [reference], ("rougeL",))["rougeL"] for text in (a, b))
    return _higher(one, other)


def by_rating(a: float | None, b: float | None) -> str:
    """Who has the higher score."""
    if a is None or b is None:
        return "invalid"
    return _higher(a, b)


def _higher(a: float, b: float) -> str:
    if a == b:
        return "tie"
    return "a" if a > b else "b"
