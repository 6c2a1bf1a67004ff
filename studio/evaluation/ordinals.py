"""Verdicts that name answers by their order instead of their letters: "the first answer", "Answer 2", "second", a bare 1.

Text in, text out: what names an answer is put as studio.evaluation.wording reads it. A number counts only where nothing but an answer
can be meant: behind a word for an answer, behind a word for a verdict, or as a line of its own. Knows nothing of replies.
"""

from __future__ import annotations

import re

MOST = 40_000  # characters that are looked at, from the end
LETTERS = {"1": "A", "one": "A", "first": "A", "1st": "A", "2": "B", "two": "B", "second": "B", "2nd": "B"}
_CASELESS = re.IGNORECASE | re.MULTILINE
_NOUN = r"(?:(?:ai\s+)?(?:assistant|response|answer|model|option|choice|candidate|reply|output|chatbot|completion))"
_VERDICT = r"(?:verdict|winner|choice|decision|judge?ment|vote|selection|pick|better|best|preferred|preference|conclusion)"
_ORDER = r"(?:first|second|1st|2nd)"
_ANY = rf"(?:{_ORDER}|one|two|[12])"
_HASH = r"(?:\#|no\.?|nr\.?|number)"
_NO_FIGURE = r"(?!\w|[.,]\d|\s*[%/+*=<>-]\s*\d)"  # 1 mistake is one word too many, 1.5 and 1/2 are other numbers
_ENDS = r"(?=\W*(?:$|because\b|since\b|as\b|over\b)|[,.;]\s)"
_GOES_ON = r"(?=\s+(?:is|was|seems|wins|won|has|does|gives|provides|performs|outperforms|beats)\b)"
_OTHERWISE = "".join(rf"(?<!{word} )" for word in ("correct", "right", "final", "true", "expected", "reference"))
_ANSWERS = (
    re.compile(rf"(?:\bthe\s+)?(?<!\w)(?P<said>{_ORDER})\s+(?:{_NOUN}|one)(?:['’]s)?(?!\w)", _CASELESS),
    re.compile(rf"{_OTHERWISE}(?<!\w){_NOUN}\s*(?:{_HASH}\s*|\s)(?P<said>[12]){_NO_FIGURE}", _CASELESS),
    re.compile(rf"(?<!\w){_NOUN}\s+(?P<said>one|two)(?:(?=\W*$)|{_GOES_ON})", _CASELESS),
)
_BARE = rf"(?:the\s+)?(?:{_ORDER}(?:\s+(?:{_NOUN}|one))?|{_NOUN}\s*(?:{_HASH}\s*|\s)(?:[12]|one|two)|[12])(?!\w)"
_TOGETHER = re.compile(rf"(?<!\w){_BARE}\s*(?P<link>,|/|&|\band\b|\bor\b|\bnor\b|\bvs\.?|\bversus\b)\s*{_BARE}", _CASELESS)
_BOTH = {"and": "both answers", "&": "both answers", ",": "both answers", "or": "either answer", "/": "either answer"}
_LABELLED = re.compile(
    rf"(?<![A-Za-z])(?P<before>{_VERDICT}(?:\s+(?:one|{_NOUN}))?\s*(?:is|was|goes\s+to|:|=|->|→)\s*[\[(\"'*]*)"
    rf"(?:the\s+)?(?:{_HASH}\s*)?(?P<said>{_ANY}){_NO_FIGURE}{_ENDS}",
    _CASELESS,
)
_CHOSEN = re.compile(
    r"\b(?P<before>(?:choose|chose|pick|picked|prefer|select|selected|vote\s+for|go\s+with|going\s+with|favou?r|opt\s+for)\s+)"
    rf"(?:the\s+)?(?:{_HASH}\s*)?(?P<said>{_ORDER}|[12]){_NO_FIGURE}{_ENDS}",
    _CASELESS,
)
_SUBJECT = re.compile(
    r"(?P<before>^\W*|(?:[.!?:;,]|\b(?:and|but|so|while|whereas|although|therefore|overall|thus),?)\s+)"
    rf"(?:the\s+)?(?:{_HASH}\s*)?(?P<said>{_ORDER}|[12]){_GOES_ON}",
    _CASELESS,
)
_BRACKETED = re.compile(rf"\[\[\s*(?:{_NOUN}\s*)?(?P<said>{_ANY})\s*\]\]", _CASELESS)
_FIELD = re.compile(
    rf"(?P<before>[\"'](?:final_?)?{_VERDICT}(?:_?{_NOUN})?[\"']\s*:\s*)[\"']?(?P<said>{_ANY})[\"']?(?=\s*[,}}])", _CASELESS
)
_LINE = re.compile(rf"[\W_]*(?:the\s+)?(?:{_HASH}\s*)?(?P<said>{_ANY})[\W_]*", _CASELESS)
_ALONE = re.compile(rf"[\W_]*(?:(?:my|the)\s+)?(?:final\s+)?(?:answer|{_VERDICT})\W*[:=]\W*(?P<said>{_ANY})[\W_]*", _CASELESS)
_ASKED = re.compile(rf"(?<![A-Za-z])(?:{_VERDICT}|answer)[\W_]*\Z", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^[\W_]*Answer ([AB])[\W_]*$", re.MULTILINE)
_LETTERED = re.compile(
    rf"(?<!\w)(?i:{_NOUN})\s*[:#]?\s*[AB](?!\w)|\[\[\s*[ABab]\b|(?<![A-Za-z0-9'’])B(?![A-Za-z0-9'’])|[\"']A[\"']|(?<!\w)A\s*[<>=]"
)


def in_letters(text: str) -> str:
    """`text` with answers named A and B where their order names them; as it is where it names answers by letters too."""
    given = text = text[-MOST:]
    if _LETTERED.search(text):
        return given
    text = _TOGETHER.sub(lambda match: _BOTH.get(match["link"].lower(), "answers"), text)
    text = _FIELD.sub(lambda match: f'{match["before"]}"{_letter(match)}"', text)
    if text.count("[[") == 1:  # two may be ratings
        text = _BRACKETED.sub(lambda match: f"[[{_letter(match)}]]", text)
    for pattern in _ANSWERS:
        text = pattern.sub(lambda match: f"Answer {_letter(match)}", text)
    for pattern in (_LABELLED, _CHOSEN):
        text = pattern.sub(lambda match: match["before"] + _letter(match), text)
    text = _SUBJECT.sub(lambda match: f"{match['before']}Answer {_letter(match)}", text)
    if len(set(_LIST_ITEM.findall(text))) > 1:  # a list of both is no choice of the last
        return given
    return _with_bare_line(text)


def _letter(match: re.Match[str]) -> str:
    return LETTERS[match["said"].lower()]


def _with_bare_line(text: str) -> str:
    """Of the one line that is nothing but a number or an ordinal: alone, under a heading, or a digit above its reasons."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if any(map(str.isalnum, line))]
    if len(filled) == 1 and (said := _ALONE.fullmatch(lines[filled[0]])):
        return _letter(said)
    bare = {number: said for number in filled if (said := _LINE.fullmatch(lines[number]))}
    if len(bare) != 1:
        return text
    ((place, said),) = bare.items()
    above, below = "\n".join(lines[:place]), "\n".join(lines[place + 1 :])
    is_alone = filled == [place]
    is_asked = place == filled[-1] and bool(_ASKED.search(above))
    is_head = place == filled[0] and said["said"].isdigit() and not below.partition("\n")[0].strip()
    if is_alone or is_asked or is_head:
        lines[place] = _letter(said)
    return "\n".join(lines)
