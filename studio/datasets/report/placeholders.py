"""Places in a text that were to be filled in and were not, such as {{name}}, [YOUR NAME] or ${city}. Knows no rows.

What code and JSON write in braces is none: they are left out, as are lines that look like code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# what forms and letters leave open; in brackets anything else may be an ordinary remark
BLANK = (
    r"(?:(?:first|last|full|middle|sur|nick|user|product|company|brand|city|street|country|file|project|team|pet|child|client|customer|"
    r"recipient|sender|author|school|event|restaurant|hotel|bot|assistant|model|person|employee|manager|candidate)[ _-]?)?names?"
    r"|(?:start|end|due|birth|current|today'?s|event|order)?[ _-]?dates?|(?:start|end|current)?[ _-]?time|company|organi[sz]ation|employer"
    r"|(?:street|e-?mail|home|shipping|billing|company|delivery)?[ _-]?address|city|state|country|town|location|place|zip(?:[ _-]?code)?"
    r"|(?:phone|telephone|mobile|order|account|invoice|tracking|reference|customer|flight|room)[ _-]?(?:number|id|no)|phone|telephone"
    r"|e-?mail|website|url|link|(?:job|book|movie|film|song)?[ _-]?title|position|role|job|department|recipient|sender|author|developer"
    r"|user|customer|client|product|brand|service|amount|price|school|university|topic|subject|age|gender|signature|salutation"
)
ASKED = r"(?:(?:please )?(?:insert|enter|add|fill[ _-]in|specify|replace|type)|your|their|recipient'?s|company'?s|name of)[ _-][^\[\]<>{}\n]{1,40}"
INSIDE = rf"(?:{BLANK})(?:[ _-]?\d{{1,3}})?|{ASKED}"
WORD = r"[A-Za-z][A-Za-z0-9]*(?:[_.-][A-Za-z0-9]+)*"

FORMS = (
    # {{name}}, {{ user.name }}, {{First Name}}
    re.compile(rf"\{{\{{\s*(?P<name>{WORD}(?: {WORD}){{0,3}})\s*\}}\}}"),
    # ${name}
    re.compile(rf"(?<![\\$])\$\{{(?P<name>{WORD})\}}"),
    # {name}; neither LaTeX's \frac{abc} and x_{abc} nor a path's /users/{id}
    re.compile(rf"(?<![\w\\$}}^_/{{\"'=:&#@])\{{(?P<name>[A-Za-z][A-Za-z_]+\d{{0,3}}|{INSIDE})\}}(?![\w}}{{(/])"),
    # [NAME], [Your name]; neither a link nor an index
    re.compile(rf"(?<![\w\]!\\])\[(?P<name>{INSIDE})\](?![(\[:\w])", re.IGNORECASE),
    # <NAME>, <your name>; a tag of markup is closed somewhere
    re.compile(rf"(?<![\w\\<])<(?P<name>(?-i:(?=[A-Z0-9 _-]+>)){INSIDE}|(?-i:[A-Z]+(?:[ _-][A-Z0-9]+)+)|{ASKED})>(?!\w)", re.IGNORECASE),
    # %s, %d, %(name)s, %1$s
    re.compile(r"(?<![\w%\"'`(\\])%(?:\((?P<name>\w{1,40})\)|\d\$)?[sd](?![\w\"'`%)])"),
)
MASKS = frozenset({"[EMAIL]", "[PHONE]", "[CARD]", "[KEY]"})  # what `pii` puts in the place of personal data
SIGNS = re.compile(r"[{\[<%]")
BLOCK = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)
CODE = re.compile(
    r"^(?:\t| {4,})|^\s*(?:echo|export|cd|sudo|ls|mkdir|rm|cp|mv|curl|wget|docker|git|npm|pip|python3?)\s"
    r"|[;{]\s*$|^\s*[}\])]|^\s*(?:def|class|import|from \w+ import|return|if|for|while|function|const|let|var|public|private"
    r"|static|void|int|print|echo|export|SELECT|INSERT|UPDATE|<\?|#include|[$>]) *[\w(\"'].*[(){}=;]|\w\(.*\)\s*[;{]?\s*$|=>|->|::|&&"
    r"|\|\||\bf[\"']|\.format\(|[\"')]\s*%\s*[(\w]|</\w|/>|\{%|\w+\s*[:+*/-]?=\s*[\"'\[{(\w$]|\\(?:frac|begin|text|mathbb?|sum|int|left|in)\b"
)
# a question or an answer about such marks themselves
ABOUT = re.compile(
    r"\b(?:jinja2?|handlebars|mustache|liquid tags?|f-strings?|printf|sprintf|strftime|format string|format specifier|placeholders?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Placeholder:
    """One of them: where it stands, how it is written, and what it asks for, as a key."""

    start: int
    end: int
    text: str
    name: str


def placeholders(text: str) -> list[Placeholder]:
    """All of them in order, none inside another. A text about placeholders has none, nor has one that is JSON."""
    if not SIGNS.search(text) or ABOUT.search(text) or _is_json(text):
        return []
    prose = _prose(text)
    found: list[Placeholder] = []
    for form in FORMS:
        for match in form.finditer(prose):
            whole = match.group()
            if whole in MASKS or (whole[0] == "<" and _is_markup(whole, text)):
                continue
            if all(match.end() <= other.start or match.start() >= other.end for other in found):
                found.append(Placeholder(*match.span(), whole, key(match["name"] or whole)))
    return sorted(found, key=lambda each: each.start)


def key(name: str) -> str:
    """What a placeholder asks for, however it is written: `Your Name` and `YOUR_NAME` are `your_name`."""
    bare = name.strip().strip("{}[]<>$").strip()
    return "_".join(re.split(r"[\s_-]+", bare.lower()))


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with every placeholder whose key has a value replaced by it."""
    pieces, last = [], 0
    for each in placeholders(text):
        if each.name in values:
            pieces += [text[last : each.start], values[each.name]]
            last = each.end
    return "".join([*pieces, text[last:]])


def _prose(text: str) -> str:
    """The text with code blanked out: the same length, so that places stay."""
    blanked = BLOCK.sub(lambda found: " " * len(found.group()), text)
    return "".join(_without_code(blanked))


def _without_code(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        yield " " * len(line) if CODE.search(line) else line


def _is_markup(tag: str, text: str) -> bool:
    name = tag.strip("<>").split()[0]
    return f"</{name}".lower() in text.lower()


def _is_json(text: str) -> bool:
    bare = text.strip()
    return bare[:1] + bare[-1:] in ("{}", "[]") and '"' in bare and ":" in bare
