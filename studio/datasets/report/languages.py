"""Which language a text is in, where that is sure: py3langid, which is offline and small. Knows no rows."""

from __future__ import annotations

import re
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

SURE = 0.95
FEWEST_LETTERS = 30
FEWEST_SIGNS = 12  # where words have no spaces, one sign says more
READ_CHARS = 200

# what is left out is mostly mistaken for a neighbour
WIDELY_WRITTEN = (
    "af am ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko ku la lo lt lv "
    "mk ml mn mr ms mt nb ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr ug uk ur vi xh zh zu"
)
# written so much alike that a short text does not tell them apart
KIN = {"nb": "no", "nn": "no", "da": "no", "bs": "hr", "sr": "hr", "sl": "hr", "ms": "id", "gl": "pt", "sk": "cs"}

NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{1,200}`|https?://\S+|\S+@\S+|<[^<>]{1,200}>|\{\{.*?\}\}|[\d_|#*=+<>{}\[\]/\\$^~-]+", re.DOTALL
)
LETTER = re.compile(r"[^\W\d_]")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in WIDELY_WRITTEN.split() if code in identifier.labels])
    return identifier


def language(text: str) -> str:
    """A language's two letters; "" where the text is too short, or it can't be told surely."""
    text = " ".join(NO_LANGUAGE.sub(" ", text[: 4 * READ_CHARS]).split())[:READ_CHARS]
    letters = len(LETTER.findall(text))
    if letters < FEWEST_LETTERS and not (letters >= FEWEST_SIGNS and 2 * len(UNSPACED.findall(text)) > letters):
        return ""
    code, probability = _identifier().classify(text)
    return KIN.get(code, code) if probability >= SURE else ""
