"""Words of a text in any script, for the metrics that count words.

Two texts that Unicode holds equal (NFC and NFD, full-width and plain letters, ligatures) have the same words. Where no spaces divide
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and others) and in Korean, where particles are joined to a word, every
character with its marks is a word: KorQuAD and CMRC score answers so.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

import regex

_CHARACTERS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Bopomofo}\p{Hangul}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
# a character of such a script with its marks, else a run of letters, marks and digits
_WORD = regex.compile(rf"[[{_CHARACTERS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_CHARACTERS}]]+", regex.V1)
_PIECE = regex.compile(rf"[{_CHARACTERS}]\p{{M}}*|[^{_CHARACTERS}]+", regex.V1)
_IN_CHARACTERS = regex.compile(rf"[{_CHARACTERS}]", regex.V1)
_PUNCTUATION = regex.compile(r"\p{P}+")
_INVISIBLE = regex.compile(r"[\p{Cf}\N{ARABIC TATWEEL}]+")
# SQuAD deletes ASCII punctuation, inside words too; these stand for an apostrophe or a hyphen in other scripts
_JOINING = "\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}\N{HYPHEN}\N{MIDDLE DOT}\N{HEBREW PUNCTUATION GERESH}"
_DELETED = str.maketrans("", "", string.punctuation + _JOINING + "\N{HEBREW PUNCTUATION GERSHAYIM}")
ARTICLES = frozenset({"a", "an", "the"})
LONG_WORDS = 50  # a reference longer than this is not a text that an answer can be expected to equal


def composed(text: str) -> str:
    """NFC, white space at both ends aside: what stays of a text that is compared verbatim."""
    return unicodedata.normalize("NFC", text).strip()


def compatible(text: str) -> str:
    """NFKC: full-width forms, ligatures and the like as the letters they stand for."""
    return unicodedata.normalize("NFKC", text)


def folded(text: str) -> str:
    """NFKC without case and without characters that are not seen."""
    return compatible(_INVISIBLE.sub("", compatible(text)).casefold())


def words(text: str) -> list[str]:
    """The words of a text, folded: runs of letters and digits, or single characters by script. ROUGE's own words in ASCII."""
    return _WORD.findall(folded(text))


def normalized(text: str) -> list[str]:
    """SQuAD's words of a text (evaluate-v1.1) for all scripts: case, punctuation and a, an, the aside.

    An article stays where the text is nothing else: the answer "A" to a question with choices is an answer.
    """
    spaced = _PUNCTUATION.sub(" ", folded(text).translate(_DELETED)).split()
    kept = [word for word in spaced if word not in ARTICLES] or spaced
    return [piece for word in kept for piece in _PIECE.findall(word)]


def is_long(text: str) -> bool:
    """Whether a text is longer than LONG_WORDS words, two characters counting as one where characters are words."""
    found = words(text)
    characters = sum(_IN_CHARACTERS.match(word) is not None for word in found)
    return len(found) - characters + characters / 2 > LONG_WORDS


def holds(text: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the words `wanted` stand in `text`, one after the other; none of them in no text."""
    if not wanted:
        return False
    size, first = len(wanted), wanted[0]
    sought = list(wanted)
    return any(word == first and list(text[place : place + size]) == sought for place, word in enumerate(text))


class RougeTokenizer:
    """What rouge-score takes in place of its own tokenizer, which sees a-z and 0-9 only."""

    def __init__(self, *, stemmer: bool) -> None:
        self._stem = None
        if stemmer:
            from nltk.stem.porter import PorterStemmer  # what rouge-score stems with

            self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        if self._stem is None:
            return found
        return [self._stem(word) if word.isascii() and len(word) > 3 else word for word in found]
