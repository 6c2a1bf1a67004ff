"""Personal data and secrets in a text: found and masked. Knows shapes only; nobody is looked up.

A number is a phone number by how it is written or announced, so that results of arithmetic stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

Span = tuple[int, int, str]  # start, end, what it is

NOT_BEFORE = r"(?<![\w.,$€£+*/=-])(?<![+*] )"  # no part of a longer number, of an amount or of a sum
NOT_AFTER = r"(?![\w/-]|[.,]\d|\s*[=+*])"
DIGITS = r"\(?\d(?:[ ()./-]{0,2}\d){6,13}"

EMAIL = re.compile(r"(?<![\w.+-])\w[\w.%+-]{0,63}@(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
KEY = re.compile(
    r"(?<![A-Za-z0-9_])(?:sk-(?:proj-|ant-|svcacct-|or-)?(?=[\w-]*\d[\w-]*\d)[\w-]{16,200}|[spr]k_(?:live|test)_\w{16,200}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255}|glpat-[\w-]{20,100}|hf_[A-Za-z0-9]{20,100}|npm_[A-Za-z0-9]{36}"
    r"|pypi-[\w-]{50,300}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,200}|SG\.[\w-]{16,64}\.[\w-]{16,64}"
    r"|eyJ[\w-]{8,8000}\.eyJ[\w-]{4,8000}\.[\w-]{8,8000})(?![A-Za-z0-9_])",
    re.ASCII,
)
KEY_SIGNS = ("sk-", "k_live_", "k_test_", "gh", "glpat-", "hf_", "npm_", "pypi-", "AKIA", "ASIA", "AIza", "xox", "SG.", "eyJ")
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----)){0,20000}-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?"
)
CARD = re.compile(NOT_BEFORE + r"\d(?:[ -]?\d){13,15}" + NOT_AFTER)
INTERNATIONAL = re.compile(r"(?<![\w.=*/+)])(?<!\d )\+[1-9](?:[ ().-]{0,2}\d){6,14}" + NOT_AFTER)
AMERICAN = re.compile(
    NOT_BEFORE + r"(?:1[ .-])?(?:\([2-9]\d\d\) ?\d{3}[ .-]|[2-9]\d\d-\d{3}-|[2-9]\d\d\.\d{3}\.)\d{4}" + NOT_AFTER, re.ASCII
)
ANNOUNCED = re.compile(
    r"\b(?:(?:phone|telephone|tel|mobile|cell|fax|whatsapp|telefon|handy|t[ée]l[ée]phone|tel[ée]fono)(?: ?(?:number|no|nummer))?"
    r"(?:\.|\b)(?: is| at| ist)?|(?:call|text|dial|phone|reach)(?: me| us| him| her| them)?(?: at| on| under)?)"
    r"[\s:\"']{1,3}(" + DIGITS + ")" + NOT_AFTER,
    re.IGNORECASE,
)
# where there are none, there is no phone or card number; the first is quick and sees too many
DIGITS_IN_A_ROW = re.compile(r"[0-9][0-9 ()./-]{6}")
SEVEN_DIGITS = re.compile(r"[0-9](?:[ ()./-]{0,3}[0-9]){6}")


def may_hold_personal_data(text: str) -> bool:
    """Quickly: False where `personal_data` finds nothing for certain."""
    return "@" in text or any(sign in text for sign in (*KEY_SIGNS, "PRIVATE KEY")) or DIGITS_IN_A_ROW.search(text) is not None


def personal_data(text: str) -> list[Span]:
    """Where personal data stands in a text, in order and without overlap; kinds EMAIL, KEY, CARD, PHONE."""
    found: list[Span] = []
    if "@" in text:
        found += [(*match.span(), "EMAIL") for match in EMAIL.finditer(text)]
    if any(sign in text for sign in KEY_SIGNS):
        found += [(*match.span(), "KEY") for match in KEY.finditer(text)]
    if "PRIVATE KEY" in text:
        found += [(*match.span(), "KEY") for match in PRIVATE_KEY.finditer(text)]
    if DIGITS_IN_A_ROW.search(text) and SEVEN_DIGITS.search(text):
        found += [(*match.span(), "CARD") for match in CARD.finditer(text) if is_card(match.group())]
        found += _phones(text)
    return _apart(found)


def masked(text: str) -> str:
    """The text with [EMAIL], [PHONE], [CARD] and [KEY] in place of what was found; nothing is found in it again."""
    while found := personal_data(text):
        ends = [0, *(end for _, end, _ in found)]
        pieces = [f"{text[before:start]}[{kind}]" for before, (start, _, kind) in zip(ends, found, strict=False)]
        text = "".join([*pieces, text[ends[-1] :]])
    return text


def is_card(digits: str) -> bool:
    """A length and a beginning that a card company uses, and a right checksum (Luhn)."""
    number = re.sub(r"\D", "", digits)
    if not _is_issued(number):
        return False
    doubled = [int(digit) * 2 for digit in number[-2::-2]]
    return (sum(int(digit) for digit in number[::-2]) + sum(digit - 9 if digit > 9 else digit for digit in doubled)) % 10 == 0


def _is_issued(number: str) -> bool:
    first, length = int(number[:4]), len(number)
    if 4000 <= first <= 4999:  # Visa
        return length == 16
    if 5100 <= first <= 5599 or 2221 <= first <= 2720:  # Mastercard
        return length == 16
    if 3400 <= first <= 3499 or 3700 <= first <= 3799:  # American Express
        return length == 15
    if 3000 <= first <= 3059 or 3600 <= first <= 3699 or 3800 <= first <= 3999:  # Diners Club
        return length == 14
    return length == 16 and (first == 6011 or 6440 <= first <= 6599 or 3528 <= first <= 3589 or 6200 <= first <= 6299)


def _phones(text: str) -> Iterator[Span]:
    for match in INTERNATIONAL.finditer(text):
        if _is_possible(match.group()):
            yield *match.span(), "PHONE"
    for match in AMERICAN.finditer(text):
        yield *match.span(), "PHONE"
    for match in ANNOUNCED.finditer(text):
        yield *match.span(1), "PHONE"


def _is_possible(number: str) -> bool:
    """Whether the country of the code has numbers of that length."""
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(number, None))
    except phonenumbers.NumberParseException:
        return False


def _apart(found: list[Span]) -> list[Span]:
    """In order; of two that overlap the one that begins first, or is longer."""
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: (span[0], -span[1])):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept
