"""What can be wrong with a text by itself: characters nobody meant, repetition, refusals. Knows no rows."""

from __future__ import annotations

import re

# C0 and C1 but for tab and line ends; marks that turn the reading direction; a byte order mark inside a text
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
# a whole sequence for a terminal goes, not only its escape character
ESCAPE_SEQUENCE = re.compile("\x1b\\[[0-9;?]{0,32}[A-Za-z]")
REPLACEMENT = "\ufffd"

REPEATED_WORDS, FEWEST_SEQUENCES = 4, 10
READ_WORDS = 20_000
LONG_WORD = 20
SAME_LETTER = re.compile(r"([^\W\d_])\1{19}")
WORD = re.compile(r"\w+")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")

LACK = (
    r"(?:can(?:'t|not| not)|(?:do|does|did|am|was|will|would|is) not|don't|doesn't|won't|isn't|unable"
    r"|no (?:personal|feelings|opinions?|ability|access))"
)
BOILERPLATE = re.compile(
    r"\bas an? (?:artificial intelligence|ai|a\.i\.)(?: powered)? (?:large )?language model\b"
    r"|\bas an? (?:artificial intelligence|ai|large language model|language model)\b[^.!?\n]{0,80}\b" + LACK + r"\b"
    r"|\bi(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{0,60}\b" + LACK + r"\b"
)
REFUSAL = re.compile(
    r"(?:(?:i(?:'m| am)|we(?:'re| are)) )?(?:(?:very|so|truly|really) )?(?:sorry|afraid|i apologi[sz]e|apologies|unfortunately)[,.!;:]?"
    r"(?: (?:but|however|for (?:the|any) [\w ]{1,40}|that))?,? ?(?:as an? [\w ]{2,40}, ?)?"
    r"(?:i|we)(?:'m| am|'re| are)? ?(?:really |currently |just |simply )?"
    r"(?:can(?:'t|not| not)|(?:not )?(?:un)?able to|won't|will not|do not have|don't have (?:the )?(?:ability|capability|access))\b"
    r"|i (?:can(?:'t|not| not)|won't|will not|am unable to|am not able to|must decline to|decline to|refuse to)"
    r" (?:\w+ ){0,2}?(?:assist|help|provide|fulfill?|comply|create|generate|write|answer|engage|support|do that|do this|discuss|share)\b"
    r"|i(?:'m| am) (?:unable|not able) to (?:assist|help|provide|fulfill?|comply|answer)\b"
    r"|i must (?:respectfully )?(?:decline|refuse)\b|my apologies, (?:but )?i (?:can't|cannot)\b"
)
SELF = (" ai", " a.i", " artificial", " language model", " large language")  # without one of these there is no boilerplate
REFUSAL_WITHIN = 120  # characters of the answer's beginning


def cleaned(text: str) -> str:
    """Without control characters."""
    return CONTROL.sub("", ESCAPE_SEQUENCE.sub("", text))


def is_refusal(answer: str) -> bool:
    """Whether an answer begins by refusing, or speaks of itself as a language model that can't."""
    plain = answer.lstrip(" \n\t\"'*").replace("’", "'").lower()
    if REFUSAL.match(plain[:REFUSAL_WITHIN]):
        return True
    return any(sign in plain for sign in SELF) and BOILERPLATE.search(plain) is not None


def repeats_itself(words: list[str], share: float) -> bool:
    """Whether at least this share of its sequences of four words (eight signs, where words have no spaces) stood in it before."""
    words, length = words[:READ_WORDS], REPEATED_WORDS
    longest = max(words, key=len, default="")
    if len(longest) >= LONG_WORD // 2:
        if any(SAME_LETTER.search(word) for word in words if len(word) >= LONG_WORD):
            return True
        if UNSPACED.search(longest):
            words, length = list("".join(words))[:READ_WORDS], 2 * REPEATED_WORDS
    total = len(words) - length + 1
    if total < FEWEST_SEQUENCES:
        return False
    if len(set(words)) - length >= (1 - share) * total:  # every different word begins a different sequence: nothing to count
        return False
    return len(set(zip(*(words[i:] for i in range(length)), strict=False))) <= (1 - share) * total
