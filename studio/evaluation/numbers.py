r"""The number, or the letter, that a text gives as its answer.

Marks of an answer, from strongest to weakest: `\boxed{}`, `####`, `Answer:` (`A:`, and "the answer is" right before a number). Of the
strongest kind present the last one counts; a mark without a number is no answer; without a mark the last number counts. What is no
single number, such as 2\sqrt{3}, \frac{\pi}{4} or a pair in a box, is none: a part of it would make wrong answers right.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import regex

from studio.evaluation.tokens import compatible

Number = Decimal | Fraction

# as people write one number; an apostrophe, a space or a point divides thousands only in groups of three
_PLAIN = r"(?:\d+(?:\.\d+)?|\.\d+)"
_DIGITS = "|".join((
    r"\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?",  # 1,234,567.8
    r"\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?",  # 12,34,567
    r"\d{1,3}(?:[ ]\d{3})+(?!\d)(?:[.,]\d+)?",  # 1 234 567,8
    r"\d{1,3}(?:'\d{3})+(?!\d)(?:[.,]\d+)?",  # 1'234'567.8
    r"\d{1,3}(?:\.\d{3}){2,}(?!\d)(?:,\d+)?",  # 1.234.567,8
    r"\d{1,3}\.\d{3},\d+(?!,?\d)",  # 1.234,5
    r"(?<![\d,(\[])(?:\d+,(?:\d{1,2}|\d{4,})|0,\d+)(?![\d]|,\s?\d)",  # 3,14
    _PLAIN,
))  # fmt: skip
_ARGUMENT = r"\s{0,3}(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)"
_CURRENCY = r"(?:[A-Z]{0,3}\p{Sc}\s?)"
_TOKEN = regex.compile(
    rf"""
    (?:(?<![\w.)\]}}%])(?P<before>[-+])(?P<gap>\s?))?  # not of a range or a difference
    (?:{_CURRENCY}(?P<inside>[-+])?)?
    (?:
      (?P<irrational>(?:{_PLAIN}\s?)?(?:(?:\\sqrt|√)\s?(?:\[[^\][]*\])?(?:{_ARGUMENT})?|\\pi(?![A-Za-z])|π))
    | (?P<latex_whole>\d+)?\s?\\(?:[dtcs]?frac|nicefrac)(?P<top>{_ARGUMENT})(?P<bottom>{_ARGUMENT})
    | (?<!\d\s?/\s?)(?:(?P<whole>\d+)\s{{1,3}})?(?P<over>{_PLAIN})\s?(?:/|\\over(?![a-z]))\s?(?P<under>{_PLAIN})(?!\s?/\s?\d|,?\d)
    | (?P<digits>{_DIGITS})
      (?:[eE](?P<exponent>[-+]?\d+)(?!\w)
       |\s?(?:[×x*·]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?\s?(?P<ten>[-+]?\d+)\s?\}}?
       |\s?(?:\^|\*\*)\s?\{{?\s?(?P<power>[-+]?\d+)\s?\}}?)?
    | (?P<skipped>[\^_]\s?\{{?[-+]?\d+\}}?)  # of a unit or a variable: m^2, x_1
    )""",
    regex.VERBOSE,
)
_BOX = regex.compile(r"\\(?:boxed|fbox)\s{0,3}")
_HASHES = regex.compile(r"(?<!#)####(?!#)")
_ANSWER = regex.compile(
    r"(?i:\banswers?)\s{0,3}(?:\([^()\n]{0,40}\)\s{0,3})?[:=]|(?<![A-Za-z])A\s?:"
    r"|(?i:\banswer\s{1,3}is(?:\s(?:about|approximately|exactly|therefore|thus|then))?)(?=[^\w\n\\]{0,6}(?:\d|\\[dtc]?frac))"
)
_LABEL = regex.compile(r"(?i)\b(?:step|part|case|section|question|problem|example|method|option|figure|table|eq(?:uation)?)\.?\s{0,3}\(?$")
_OPERATOR = regex.compile(r"\s{0,3}\)?\s{0,3}(?:[-+*/×÷·x=≈]|\\(?:times|div|cdot|approx))\s{0,3}\(?\s{0,3}")
_EQUALS = regex.compile(r"(?:=|≈|\\approx)\s{0,3}$")
_VARIABLE = regex.compile(r"\s?[*·]?\s?(?:[xyznk](?![A-Za-z])|\()")
_FRAMED = regex.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|bm|operatorname)\s?\{([^{}]*)\}")
_SPACES = regex.compile(r"\\[,;: ]|~|\p{Zs}|\t")
_BOLD = regex.compile(r"\*\*(?!\d)|(?<!\d)\*\*")
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = regex.compile(r"(?<=(\d)?)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SIGNS = str.maketrans({
    "−": "-", "‐": "-", "‑": "-", "–": "-", "﹣": "-", "⁄": "/", "∕": "/", "٫": ".", "٬": ",", "’": "'", "ʼ": "'", "：": ":",
})  # fmt: skip
MOST_DIGITS = 10_000  # of a number that is compared as a fraction, and of its exponent
MOST_POWER = 1_000


@dataclass(frozen=True)
class _Found:
    """A number in a text, or an expression that is none (`value` is None)."""

    start: int
    end: int
    value: Number | None


def number(text: str) -> Number | None:
    """The number that `text` gives as its answer; None without one. Signs of currencies and of per cent are dropped."""
    if _BOX.search(text):
        return _only(_cleaned(_last_box(text)))
    text = _cleaned(text)
    for mark in (_HASHES, _ANSWER):
        ends = [found.end() for found in mark.finditer(text)]
        if ends:
            return _after_mark(_line(text[ends[-1] :]))
    found = _numbers(text)
    if not found:
        return None
    return found[-1].value


def equal(one: Number | None, other: Number | None) -> bool:
    """Equal as numbers: 0.5, 1/2 and 50 of 100 cut down are one; a missing number equals none."""
    if one is None or other is None:
        return False
    if isinstance(one, Decimal) and isinstance(other, Decimal):
        return one == other
    a, b = _fraction(one), _fraction(other)
    return a is not None and a == b


def _fraction(value: Number) -> Fraction | None:
    """None for a number too long to be written out."""
    if isinstance(value, Decimal) and (abs(value.adjusted()) > MOST_DIGITS or len(value.as_tuple().digits) > MOST_DIGITS):
        return None
    return Fraction(value)


def _cleaned(text: str) -> str:
    """ASCII digits and signs in place of those of other scripts, and no LaTeX or Markdown around numbers."""
    plain = "".join(map(_plain, text)).translate(_SIGNS)
    plain = _RAISED.sub(lambda found: (found[1] and f"^{{{found[0].translate(_POWERS)}}}") or "", plain)
    plain = plain.replace("{,}", ",").replace("\\!", "").replace("\\left", "").replace("\\right", "")
    plain = plain.replace("\\%", "%").replace("\\$", "$").replace("\\(", " ").replace("\\)", " ").replace("{,\\,}", ",")
    return _BOLD.sub("", _SPACES.sub(" ", _FRAMED.sub(r" \1 ", plain)))


def _plain(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if "！" <= character <= "～":
        return chr(ord(character) - 0xFEE0)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {compatible(character).replace('⁄', '/')}"
    if unicodedata.category(character) == "Cf":
        return ""
    return character


def _last_box(text: str) -> str:
    r"""What stands in the last \boxed{}; "" where it is not closed: a number that is cut off is none."""
    start = [found.end() for found in _BOX.finditer(text)][-1]
    if text[start : start + 1] != "{":
        bare = regex.match(r"[-+]?[\d.,]*\d", text[start:])
        return (bare and bare[0]) or ""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place]
    return ""


def _line(text: str) -> str:
    """The line that a mark begins, or the next one that says something."""
    return next((line for line in text.split("\n") if any(map(str.isalnum, line))), "")


def _numbers(text: str) -> list[_Found]:
    found = []
    for token in _TOKEN.finditer(text):
        if not token["skipped"]:
            start = token.start()
            if token["gap"] and not _is_sign(token, text):
                start = token.end("gap")  # the hyphen is an operator or begins a line of a list
            found.append(_Found(start, token.end(), _signed(token, text)))
    return found


def _only(text: str) -> Number | None:
    """The number of a text that says one number, with a unit or a name; None of an expression or of several numbers."""
    found = _numbers(text)
    if len(found) > 1 and _EQUALS.search(text[: found[-1].start]):
        found = found[-1:]  # x = 5, 2 + 3 = 5
    if len(found) != 1:
        return None
    one = found[0]
    before, behind = text[: one.start].rstrip(), text[one.end :].lstrip()
    is_joined = before.endswith(tuple("+-*/^")) or behind.startswith(tuple("+-*/"))
    if is_joined or _VARIABLE.match(text, one.end):
        return None
    return one.value


def _after_mark(text: str) -> Number | None:
    """The first number after a mark, or what a calculation there comes to."""
    found = [one for one in _numbers(text) if not _LABEL.search(text[: one.start])]
    if not found:
        return None
    is_sentence = any(map(str.isalpha, text[: found[0].start]))
    results = [one for one in found if _EQUALS.search(text[: one.start])]
    if is_sentence and results:
        return results[-1].value
    last = found[0]
    for one in found[1:]:
        if not _OPERATOR.fullmatch(text[last.end : one.start]):
            break
        last = one
    if last is not found[0] and last not in results:
        return None  # 3 + 4 is no number
    return last.value


def _signed(token: regex.Match[str], text: str) -> Number | None:
    value = _value(token)
    if value is None:
        return None
    is_negative = token["inside"] == "-" or (token["before"] == "-" and _is_sign(token, text))
    return -value if is_negative else value


def _is_sign(token: regex.Match[str], text: str) -> bool:
    """A hyphen with a space behind it is a sign only where nothing is in front that it could belong to."""
    return not token["gap"] or text[: token.start()].rstrip(" ")[-1:] in {"", *"=:({[<>≈"}


def _value(token: regex.Match[str]) -> Number | None:
    if token["irrational"]:
        return None
    if token["top"]:
        return _over(token["latex_whole"], _argument(token["top"]), _argument(token["bottom"]))
    if token["over"]:
        return _over(token["whole"], _decimal(token["over"]), _decimal(token["under"]))
    value = _decimal(_without_groups(token["digits"]), token["exponent"] or token["ten"] or "")
    if token["power"] is None or value is None:
        return value
    return _power(value, token["power"])


def _over(whole: str | None, top: Number | None, bottom: Number | None) -> Number | None:
    """`top` / `bottom`, and `whole` more; None where that is no number."""
    parts = [part and _fraction(part) for part in (top, bottom)]
    if top is None or not parts[1] or parts[0] is None:
        return None
    return Fraction(_fraction(_decimal(whole or "0") or Decimal(0)) or 0) + Fraction(parts[0]) / parts[1]


def _argument(text: str) -> Number | None:
    return _only(text.strip().removeprefix("{").removesuffix("}"))


def _without_groups(digits: str) -> str:
    """Digits with a point for the decimals and nothing between the thousands."""
    digits = digits.replace(" ", "").replace("'", "")
    points, commas = digits.count("."), digits.count(",")
    if points and commas:
        thousands = min(",.", key=digits.rindex)  # the decimals come last
        return digits.replace(thousands, "").replace(",", ".")
    if points > 1:
        return digits.replace(".", "")
    first, _, last = digits.partition(",")
    if commas == 1 and (len(last) != 3 or first == "0"):
        return f"{first}.{last}"
    return digits.replace(",", "")


def _decimal(digits: str, exponent: str = "") -> Decimal | None:
    text = digits
    if exponent:
        text += f"e{exponent}"
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None


def _power(base: Decimal, exponent: str) -> Number | None:
    value = _fraction(base)
    if value is None or len(exponent) > 5 or abs(int(exponent)) > MOST_POWER or len(str(base)) > 20:
        return None
    if value == 0 and int(exponent) < 0:
        return None
    return Fraction(value ** int(exponent))


# choices

_LETTER = r"(?:\(\s?(?P<round>[A-Ja-j])\s?\)|\[\s?(?P<square>[A-Ja-j])\s?\]|(?P<bare>[A-J]))(?![\w'])"
_CHOICE = regex.compile(rf"\W{{0,4}}(?:(?i:option|choice|answer)\s)?\W{{0,3}}{_LETTER}\W{{0,4}}")
_LISTED = regex.compile(r"\s*(?:\((?P<round>[A-Ja-j])\)|(?P<bare>[A-J])\s?[).]|(?P<named>[B-J]):)\s*(?=\S)|\s*(?P<line>[A-J])[.,]?\s*\n")
_MARKED_CHOICE = regex.compile(
    rf"(?i:\banswers?)\s{{0,3}}(?:[:=]|(?i:is)\b:?)\s{{0,3}}(?:(?i:option|choice)\s)?[^\w\n(]{{0,4}}{_LETTER}"
    rf"|(?<![A-Za-z])A\s?:\s{{0,3}}[^\w\n(]{{0,4}}(?P<short>[B-J]|A)(?![\w'])"
)
_ANY_MARK = regex.compile(r"(?i:\banswers?)\s{0,3}[:=]")


def choice(text: str) -> str | None:
    """The letter A-J that `text` chooses, in upper case; None where it names none. The marks are those of `number`."""
    if _BOX.search(text):
        inside = _cleaned(_last_box(text)).replace("\\", " ").strip()
        return _letter(_CHOICE.fullmatch(inside) or _LISTED.match(inside))
    text = _cleaned(compatible(text)).strip()
    ends = [found.end() for found in _HASHES.finditer(text)]
    if ends:
        line = _line(text[ends[-1] :]).strip()
        return _letter(_CHOICE.fullmatch(line) or _LISTED.match(line))
    marked = list(_MARKED_CHOICE.finditer(text))
    if marked or _ANY_MARK.search(text):
        return _letter(marked[-1] if marked else None)
    if len(text) == 1:
        text = text.upper()
    return _letter(_CHOICE.fullmatch(text) or _LISTED.match(text))


def _letter(found: regex.Match[str] | None) -> str | None:
    if found is None:
        return None
    return next((value.upper() for value in found.groupdict().values() if value), None)


def is_choice(reference: str) -> bool:
    """Whether a reference is the letter of a choice: alone, in brackets, marked, or before the text of the choice, as in `(B) Lima`."""
    text = compatible(reference).strip()
    if len(text) > 12 and not (_BOX.search(text) or _HASHES.search(text) or _ANY_MARK.search(text)):
        return regex.match(r"\([A-J]\)\s|[A-J]\)\s", text) is not None
    return choice(text) is not None
