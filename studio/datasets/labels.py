"""Labels of answers, good or bad, in the spellings that tables, forms and tools write. Knows no formats."""

from __future__ import annotations

import math
import unicodedata
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GOOD = _words(
    "true t yes y 1 + +1 good great positive pos accept accepted approve approved chosen preferred correct right pass passed ok okay"
    " desirable desired like liked up upvote upvoted win won helpful useful thumbs_up thumbsup thumb_up 👍 ✓ ✔ ✅ ☑ 😀 🙂 😊"
)
BAD = _words(
    "false f no n 0 -1 - bad poor negative neg refuse refused reject rejected disapprove disapproved dispreferred non_preferred"
    " nonpreferred unpreferred incorrect wrong fail failed undesirable undesired dislike disliked down downvote downvoted lose lost"
    " unhelpful useless thumbs_down thumbsdown thumb_down not_ok not_good 👎 ✗ ✘ ❌ ✕ ✖ 🙁 😞 ☹"
)
MARKS = str.maketrans({"−": "-", "–": "-", "＋": "+"})
UNSEEN = "\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"  # variation and skin tone of a sign
ALTERNATIVES = (frozenset({"0", "-1"}),)  # each is bad beside 1; a file with both has three classes
MAX_SHOWN = 50


def spelling(value: Any) -> str | None:
    """A label as it is compared; None for a value that is no label at all."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return f"{value:g}"
    if not isinstance(value, str) or len(value) > 200:
        return None
    word = unicodedata.normalize("NFKC", value).translate(MARKS).strip().strip("\"'“”.!").strip().casefold()
    word = "".join(letter for letter in word if letter not in UNSEEN).strip(":")
    word = "_".join(word.replace("-", " ").split()) if word[:1].isalpha() else word
    if word.replace(".", "", 1).lstrip("+-").isdigit() and word.isascii():
        return f"{float(word):g}"
    return word


def read_label(value: Any) -> bool | None:
    """Whether an answer is good; None where the value says neither."""
    word = spelling(value)
    if word in GOOD:
        return True
    if word in BAD:
        return False
    return None


def shown(value: Any) -> str:
    return repr(str(value)[:MAX_SHOWN])
