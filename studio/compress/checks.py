"""What must not get lost: numbers, negations, quoted text, code, URLs, names, and what the caller names. Finds it, and says what is gone.

Knows text only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import regex

from studio.errors import StudioError, listed

NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*%?")
# capital at the beginning of a sentence only, wherever that begins
PLAIN_WORDS = (
    "A An The This That These Those I He She It We You They His Her Hers Its Our Ours Your Yours Their Theirs My Mine Him Them Us Me "
    "Who Whom Whose Which What When Where Why How And But Or Nor So Yet If Then Else Because Since While Although Though Unless Until "
    "After Before During In On At By For From To Of With Without Within About Above Below Under Over Between Through As Is Are Was "
    "Were Be Been Am Do Does Did Has Have Had Can Could Will Would Shall Should May Might Must Not No Yes There Here Now Also Both "
    "Each Every Either Neither Some Any All Many Most Much Few More Less One However Therefore Thus Please Let"
)
NAME = rf"(?!(?:{'|'.join(PLAIN_WORDS.split())})\b)[A-Z][a-z]+(?:\s[A-Z][a-z]+)*"
KINDS: dict[str, re.Pattern[str]] = {
    "numbers": NUMBER,
    "negations": re.compile(r"\b(?:no|not|never|none|nor|nothing|nobody|neither|without|cannot|\w+n['’]t)\b|[不没無无非未別别勿]", re.I),
    "quotes": re.compile(r"“[^”\n]{1,300}”|\"[^\"\n]{1,300}\"|「[^」\n]{1,300}」"),
    "code": re.compile(r"```.*?```|`[^`\n]+`", re.S),
    "urls": re.compile(r"https?://\S+|www\.\S+|[\w.+-]+@[\w-]+(?:\.\w+)+"),
    "names": re.compile(
        rf"(?<![.!?:\n]\s)(?<![.!?:\n\"“])(?<!^)\b{NAME}\b"
        rf"|(?<=[\"“]){NAME}(?=[\"”,])"  # a text of its own, such as a value in JSON; else a quote begins a sentence
    ),
}
SHOWN = 5  # of what was lost, in one warning
LONGEST_PATTERN = 500
PATIENCE_S = 5.0


class MustKeep:
    """What the caller wants kept: kinds of KINDS, words, and regular expressions. Raises StudioError for what can't be used."""

    def __init__(self, kinds: Iterable[str] = (), words: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        self.kinds = tuple(dict.fromkeys(kinds))
        self.words = tuple(dict.fromkeys(word for word in words if word))
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise StudioError(f"There is nothing to keep called {unknown[0]!r}.", f"Choose of {', '.join(KINDS)}.")
        self._patterns = [(f"/{pattern}/", _compiled(pattern)) for pattern in patterns]
        self._words = [(word, _word(word)) for word in self.words]

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, what) of everything in `text` that must stay."""
        rules = [(kind, KINDS[kind]) for kind in self.kinds] + self._patterns + self._words
        return sorted((m.start(), m.end(), what) for what, pattern in rules for m in _matches(pattern, text) if m.end() > m.start())

    def absent(self, text: str) -> list[str]:
        """Words that were asked to stay and were never there."""
        return [word for word, pattern in self._words if not pattern.search(text)]


def lost(original: str, short: str, kinds: Sequence[str]) -> dict[str, list[str]]:
    """What of each kind `original` holds more often than `short`, in order of appearance."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        before = Counter(match.group() for match in KINDS[kind].finditer(original))
        gone = before - Counter(match.group() for match in KINDS[kind].finditer(short))
        if kind in ("quotes", "code", "names"):  # where they begin and end depends on what stands around them
            gone = Counter({text: count for text, count in gone.items() if text not in short})
        if gone:
            found[kind] = list(gone.elements())
    return found


def warning(kind: str, gone: Sequence[str], total: int) -> str:
    shown = listed(dict.fromkeys(" ".join(text.split())[:40] for text in gone), SHOWN)
    return f"{len(gone)} of {total} {kind} lost: {shown}."


def count(text: str, kind: str) -> int:
    return sum(1 for _ in KINDS[kind].finditer(text))


def _compiled(pattern: str) -> Any:
    if len(pattern) > LONGEST_PATTERN:
        raise StudioError(f"The pattern {pattern[:40]!r}… is longer than {LONGEST_PATTERN} characters.", "Shorten it.")
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError) as exc:
        raise StudioError(f"The pattern {pattern!r} is no regular expression ({exc}).", "Correct it at that place.") from None


def _matches(pattern: Any, text: str) -> Iterator[Any]:
    """A pattern of the caller may take for ever; ours can't."""
    if isinstance(pattern, re.Pattern):
        yield from pattern.finditer(text)
        return
    try:
        yield from pattern.finditer(text, timeout=PATIENCE_S)
    except TimeoutError:
        raise StudioError(f"The pattern {pattern.pattern!r} takes too long on this text.", "Avoid repeats inside repeats.") from None


def _word(word: str) -> re.Pattern[str]:
    left = r"(?<!\w)" if word[0].isalnum() and word[0].isascii() else ""
    right = r"(?!\w)" if word[-1].isalnum() and word[-1].isascii() else ""
    return re.compile(left + re.escape(word) + right)
