"""How judges word a verdict or a rating: in brackets, behind a label, in a sentence; in English, Chinese and a few more languages.

A statement has a level: what a schema holds and what is said plainly outweighs what is said softly. Knows nothing of replies.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Level(IntEnum):
    """How plainly something is said."""

    PARTIAL = 1  # A is better in style
    WHOLE = 2  # A is better
    PLAIN = 3  # [[A]], Verdict: A, a line of its own
    SCHEMA = 4  # {"winner": "A"}


@dataclass(frozen=True)
class Statement:
    """One thing said. `value` is "" where it means to be a verdict and can't be read as one."""

    level: Level
    value: str


CLAUSE = 200  # characters that can deny what follows them
LETTERS = {"A": "a", "B": "b", "C": "tie"}
OTHER = {"a": "b", "b": "a"}
_LABELS = (
    r"verdict|winner|answer|choice|decision|judge?ment|conclusion|preference|result|selection|pick|vote|better|best|preferred"
    r"|urteil|antwort|gewinner|sieger|respuesta|ganador|veredicto|réponse|gagnant|verdetto|risposta|vencedor|resposta"
    r"|ответ|победитель|вердикт|答え|回答は|勝者|判定|정답|승자"
    r"|答案|结论|最终结论|判断|裁决|评判|评判结果|评价|判决|获胜者|胜者|赢家|优胜者|选择|结果|更好的|更优的|较好的|更佳的"
)
_NOUN = (
    r"(?i:(?:(?:the|an?)\s+)?(?:ai\s+)?"
    r"(?:assistant|response|answer|model|option|choice|candidate|reply|output|chatbot|助手|助理|回答|答案|回复|模型|选项|候选))"
)
_LINK = r"\s*(?:is|was|would be|goes to|[:=|→⇒]|->|=>|--?|–|—|是|为|は)\s*[:=]?\s*"
# a letter and not the article: "A" before a small word is one only where that word goes on about the answer
_GOES_ON = (
    "is|was|because|since|as|for|wins|won|has|had|gives|gave|provides|does|did|and|or|over|than|by|due|with|but|though|although|while"
    "|where|clearly|seems|appears|in|on|at|that|which|who|if|performs|outperforms|beats|edges|answers|offers|overall|here|weil|da|porque|car"
)
_LETTER = rf"([ABC])(?![A-Za-z0-9])(?!\s+(?!(?:{_GOES_ON})\b)(?-i:[a-z]))"
_MANY = r"(?:\s*(?:/|,|&|\bor\b|\band\b|和|或|与|或者)\s*(?:(?:assistant|response|answer|model|option)\s+)?[ABC]\b(?!['’]s))"
_TIES = (
    r"(?:an?\s+)?(?:tie|tied|draw|equal|equally\s+\w+|neither|no\s+(?:clear\s+)?(?:winner|preference|difference))"
    r"|平局|平手|打平|一样好?|相同|不分上下|不分伯仲|难分高下|两者相当|unentschieden|gleich\s*gut|empate|égalité|pareggio|ничья|引き分け|무승부"
)
_EVEN = r"both|none|even|the\s+same|same"  # a tie where a verdict is asked for, and a word elsewhere
_TIE_VALUE = re.compile(rf"{_TIES}|{_EVEN}", re.IGNORECASE)
_TIE_LINE = re.compile(
    rf"(?:(?:it|this)(?:'s|\s+is)\s+)?(?:{_TIES})"
    r"(?:\s+(?:is|are|answers?|responses?|assistants?|good|bad|equal|equally|better|between|of|them|a|b|and|的|好))*",
    re.IGNORECASE,
)
_ONE_LINE = re.compile(
    rf"(?:(?:verdict|winner)\s*:?\s*)?(?:{_NOUN}\s*[:#]?\s*)?([abc])"
    r"(?:\s+(?:wins|won|is\s+(?:much\s+|slightly\s+|clearly\s+)?better|is\s+the\s+winner))?",
    re.IGNORECASE,
)
_LEAD = re.compile(rf"(?:{_NOUN}\s*)?([ABC])(?![A-Za-z0-9])\s*(?:[,.;:–—-](?=\s)|\(|(?:because|since|as|due)\b)(?!\s*[ABC]\b)")
_COMPARED = re.compile(r"(?<![A-Za-z0-9])([AB])\s*([<>=≈~≫≪]{1,3})\s*([AB])(?![A-Za-z0-9])")
_BRACKETS = re.compile(r"\[\[\s*([^\[\]]{0,24}?)\s*\]\]")
_LABELLED = re.compile(
    rf"(?<![A-Za-z])(?:{_LABELS})(?:\s+(?:one|answer|response|assistant|model|option|choice|letter))?(?:回答|答案|助手|回复|一个)?{_LINK}"
    rf"[\s\[(<]*(?:(?:clearly|definitely|for|in favou?r of)\s+)?(?:(?:{_NOUN})\s*[:#]?\s*)?"
    rf"(?:(?P<tie>{_TIES}|{_EVEN})(?![A-Za-z])|{_LETTER}(?P<many>{_MANY})?|(?P<small>[abc])(?=\W*$)|(?P<odd>[D-Z0-9])(?=\W*$))",
    re.IGNORECASE,
)
_ADVERBS = (
    r"(?:\s+(?:clearly|much|far|slightly|somewhat|marginally|significantly|overall|also|still|therefore|definitely"
    r"|by\s+far|a\s+(?:bit|little)|the|generally|considerably|certainly|ultimately))*"
)
_NAMED = rf"(?:{_NOUN}\s*)?(?<![A-Za-z0-9])([AB])(?![A-Za-z0-9])(?:['’]s)?(?:\s+(?:answer|response|reply|one))?"
_BETTER = re.compile(
    rf"{_NAMED}\s+(?:is|was|seems|appears|looks|does|did|performs|performed)(?:\s+to\s+be)?{_ADVERBS}\s+"
    r"(?P<how>better|best|superior|stronger|preferable|preferred|winner|more\s+\w+|worse|worst|inferior|weaker|less\s+\w+)\b"
    r"(?P<partly>\s+(?:in|at|on|for|when|regarding|with\s+respect|structured|written|organi[sz]ed|formatted|explained)\b)?"
)
_WINS = re.compile(rf"{_NAMED}{_ADVERBS}\s+(?:wins|won|outperforms|beats|prevails|edges\s+out)\b")
_GIVES = re.compile(
    rf"{_NAMED}{_ADVERBS}\s+(?:provides|provided|gives|gave|offers|offered|has|had|is)"
    r"\s+(?:the|an?)\s+(?:\w+ly\s+)?(?:better|best|superior)\b"
)
_CHOSEN = re.compile(
    r"\b(?:choose|chose|choosing|pick|picked|prefer|select|selected|vote\s+for|go\s+with|going\s+with"
    r"|favou?r|in\s+favou?r\s+of|opt\s+for|recommend|rank|lean(?:ing)?(?:\s+towards?)?)"
    rf"\s+(?:{_NOUN}\s*)?{_LETTER}"
    r"|(?:\bsay|\b[Dd]efinitely|\b[Cc]learly)\s+([AB])(?=\W*$)|^\W*([AB])\s+it\s+is\W*$"
)
_CHINESE = re.compile(
    r"(?:助手|助理|回答|答案|回复|模型|选项)?\s*(?<![A-Za-z0-9])([AB])(?![A-Za-z0-9])\s*(?:的)?(?:回答|答案|回复|表现)?"
    r"(?:比\s*(?:助手|回答|答案|回复|模型)?\s*[AB]\s*)?(?:明显|显然|略微|稍微|总体|整体|要|是|则)*"
    r"(?P<how>更好|更优|更佳|较好|较优|更准确|更胜一筹|优于|好于|胜过|胜出|获胜|胜|更差|较差|不如)"
)
_CHINESE_CHOICE = re.compile(r"(?:选择?|认为是|支持|倾向于?)\s*(?:助手|回答|答案|回复|模型)?\s*([AB])(?![A-Za-z0-9])")
_TIE = re.compile(
    r"\ba\s+(?:clear\s+|perfect\s+)?(?:tie|draw)\b|\btied\b|\bit(?:'s|\s+is)\s+(?:tie|draw)\b"
    r"|\bequally\s+\w+|\bof\s+(?:equal|the\s+same)\s+(?:quality|merit)"
    r"|\bare\s+(?:\w+ly\s+)?(?:equal|identical|the\s+same|on\s+par)\b|\bneither\b[^.]{0,40}\bis\s+(?:\w+ly\s+)?better\b"
    r"|\bno\s+(?:clear\s+|meaningful\s+|significant\s+|real\s+)?(?:winner|difference|preference)\b"
    r"|平局|平手|打平|不分上下|不分伯仲|难分高下|(?:两|二|它们|都|均)[^。,]{0,8}(?:一样|相当|相同|同样)"
    r"|引き分け|unentschieden|empate|égalité|무승부",
    re.IGNORECASE,
)
_BREAKS = re.compile(r"[,;:.!?()—–]|\b(?:so|hence|thus|therefore|but|and|because|since|while|whereas|although)\b|所以|因此|但|而")
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|hardly|cannot|rather than|instead of|over|than)\b|n['’]t\b|不是|并非|没有|不认为|而非", re.IGNORECASE
)
_DENIED = re.compile(
    r"\s*(?:would\s+be|is|was|seems?|looks?)\s+(?:\w+\s+)?(?:wrong|incorrect|not|a\s+mistake|fuller|tempting|plausible)\b|\s*不",
    re.IGNORECASE,
)
_HEDGED = re.compile(
    r"\b(?:depends?|depending|perhaps|maybe|possibly|might|may|could|either|unclear|uncertain|unsure)\b"
    r"|\b(?:whether|unless|initially|nearly|almost)\b"
    r"|\bat\s+first\b|\bhard\s+to\b|\bdifficult\s+to\b|\bnot\s+(?:sure|certain|clear)\b|\b(?:can(?:not|['’]t)|unable\s+to)\b"
    r"|\bin\s+(?:some|certain|other)\b|\bon\s+(?:the\s+)?(?:one|other)\s+hand\b"
    r"|\bsome(?:one)?\s+(?:people\s+|users\s+)?(?:would|will|find|prefer)\b"
    r"|\bif\b(?!\s+(?:i\s+|we\s+|one\s+)?(?:am\s+)?(?:had|have|must|forced|pressed))|\?\s*$"
    r"|可能|也许|或许|难以|取决于|如果|不确定|一方面|无法|各有",
    re.IGNORECASE,
)
_CUT_OFF = re.compile(r"\b(?:because|but|although|though|and|or|since|as|while|however|if|unless|than|the|a)\W*$")
_CONCLUDES = re.compile(
    r"\W*(?:overall|therefore|thus|hence|so|in\s+(?:conclusion|summary|the\s+end)|to\s+sum\s+up|finally"
    r"|all\s+in\s+all|on\s+balance|总之|综上|因此|所以|总体|最终)",
    re.IGNORECASE,
)
_BUT = re.compile(r"\b(?:but|however|though|although|while|whereas|except|yet)\b|但|不过", re.IGNORECASE)
_TAGGED = re.compile(r"<\s*(answer|verdict|winner|choice|result|decision|rating|score)\s*>\s*(.{0,60}?)\s*<\s*/\s*\1\s*>", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{)?\s*([^{}]{0,24}?)\s*\}+")
_QUOTED = re.compile(r"(?<!\w)['‘]([^'‘’]{1,24})['’](?!\w)")


def cleaned(line: str) -> str:
    """A line without the marks of Markdown, LaTeX and quotation that may stand around a verdict."""
    line = _TAGGED.sub(r"\1: \2", line)
    line = _BOXED.sub(r"[[\1]]", line)
    line = _QUOTED.sub(r"\1", line)
    line = re.sub(r"[*`\"“”«»「」『』$#]|(?<!\w)_+|_+(?!\w)", "", line).replace("_", " ").replace("【", " ").replace("】", ": ")
    return " ".join(line.split())


def is_heading(line: str) -> bool:
    """Whether something is to follow under it."""
    return line.endswith(":")


class VerdictWords:
    """Who is better: a, b or tie."""

    keys = frozenset(
        re.findall(
            r"\w+",
            "winner verdict finalverdict choice better best answer finalanswer preference preferred decision judgment judgement result "
            "conclusion selection label vote betteranswer betterresponse betterassistant 答案 结论 最终结论 胜者 获胜者 选择 结果 判断",
        )
    )

    def of_value(self, value: Any) -> str | None:
        if not isinstance(value, str) or len(value) > 200:
            return None
        text = cleaned(value)
        if found := self.of_line(text):
            return found
        if _TIE_VALUE.fullmatch(text):
            return "tie"
        said = {statement.value for statement in self.of_sentence(text)}
        if len(said) == 1:
            return said.pop()
        return None

    def of_line(self, line: str) -> str | None:
        """Of a line that is nothing but a verdict."""
        if is_heading(line) or "<" in line.split(">")[0]:
            compared = _COMPARED.fullmatch(line.strip(" ."))
            return (compared and _of_signs(compared)) or None
        text = re.sub(r"^[\W_]+|[\W_]+$", "", line)
        if len(text) > 80 or line.rstrip().endswith("?"):
            return None
        if compared := _COMPARED.fullmatch(text):
            return _of_signs(compared) or None
        if found := _ONE_LINE.fullmatch(text):
            return LETTERS[found[1].upper()]
        if _TIE_LINE.fullmatch(text):
            return "tie"
        if re.fullmatch("[D-Z]", text):
            return ""
        return None

    def of_lead(self, line: str) -> str | None:
        """Of a line that begins with a verdict and goes on with its reasons; None for the first heading of several."""
        found = _LEAD.match(line)
        if found is None or re.search(r"(?<![A-Za-z0-9])[ABC]\s*[:.)](?:\s|$)|^\W*[ABC]\s*,\s*[ABC]\b", line[found.end() - 1 :]):
            return None
        return LETTERS[found[1]]

    def of_sentence(self, sentence: str) -> list[Statement]:
        said = list(self._plain(sentence))
        soft = []
        if not (self.is_hedged(sentence) or _CUT_OFF.search(sentence)):
            soft = list(self._soft(sentence))
        if _CONCLUDES.match(sentence):
            soft = [Statement(Level(statement.level + 1), statement.value) for statement in soft]
        return [*said, *soft]

    def is_hedged(self, sentence: str) -> bool:
        return bool(_HEDGED.search(sentence))

    def _plain(self, sentence: str) -> list[Statement]:
        found = []
        for match in _BRACKETS.finditer(sentence):
            if not _is_denied(sentence, match):
                found.append(Statement(Level.PLAIN, self.of_line(match[1]) or ""))
        for match in _LABELLED.finditer(sentence):
            if not _is_denied(sentence, match):
                found += _of_label(match)
        return found

    def _soft(self, sentence: str) -> list[Statement]:
        found = []
        for pattern in (_BETTER, _GIVES, _WINS, _CHOSEN, _CHINESE, _CHINESE_CHOICE):
            for match in pattern.finditer(sentence):
                if not _is_negated(sentence[: match.start()]):
                    found.append(_of_prose(match))
        for match in _COMPARED.finditer(sentence):
            if not _is_negated(sentence[: match.start()]) and (value := _of_signs(match)):
                found.append(Statement(Level.WHOLE, value))
        for match in _TIE.finditer(sentence):
            rest = sentence[match.end() :]
            is_partial = bool(_BUT.search(sentence) or re.match(r"\s+(?:in|at|on|regarding)\b", rest))
            if not is_partial and not _is_negated(sentence[: match.start()]):
                found.append(Statement(Level.WHOLE, "tie"))
        return found


def _of_signs(match: re.Match[str]) -> str:
    first, signs, second = match.groups()
    if first == second:
        return ""
    kinds = {{"≫": ">", "≪": "<", "≈": "=", "~": "="}.get(sign, sign) for sign in signs}
    if len(kinds) > 1:
        return ""
    return {">": LETTERS[first], "<": LETTERS[second], "=": "tie"}[kinds.pop()]


def _of_label(match: re.Match[str]) -> list[Statement]:
    if match["tie"]:
        return [Statement(Level.PLAIN, "tie")]
    if match["many"] or match["odd"]:
        return [Statement(Level.PLAIN, "")]
    letter = match["small"] or match[2]
    if match["small"] is None and not letter.isupper():
        return []  # the article, which a pattern without case takes for a letter
    return [Statement(Level.PLAIN, LETTERS[letter.upper()])]


def _of_prose(match: re.Match[str]) -> Statement:
    value = LETTERS[next(letter for letter in match.groups() if letter in LETTERS)]
    fields = match.groupdict()
    how = fields.get("how") or ""
    if how.startswith(("worse", "worst", "inferior", "weaker", "less", "更差", "较差", "不如")):
        value = OTHER[value]
    level = Level.WHOLE
    if fields.get("partly") or how.startswith(("more", "less", "更准确")):
        level = Level.PARTIAL
    return Statement(level, value)


def _is_negated(before: str) -> bool:
    """Whether the clause up to here denies what follows."""
    return bool(_NEGATED.search(_BREAKS.split(before[-CLAUSE:])[-1]))


def _is_denied(sentence: str, match: re.Match[str]) -> bool:
    return _is_negated(sentence[: match.start()]) or bool(_DENIED.match(sentence[match.end() :]))


# ratings

LOWEST, HIGHEST = 1.0, 10.0
_SCALE = re.compile(r"\(?(?:on\s+)?(?:a\s+)?(?:scale\s+)?(?:of|from)?\s*\b1\s*(?:to|-|–|~)\s*10\b\)?", re.IGNORECASE)
_NUMBER = (
    r"(?<![\d.,A-Za-z])(?P<sign>[-−–+]?)(?P<number>\d+(?:[.,]\d{1,2})?)(?![.,]?\d|[A-Za-z%])"
    r"(?:\s*(?:/|\b(?:out\s+)?of\b|\bvon\b|\bsur\b)\s*(?P<of>\d+))?(?P<more>\s*(?:-|–|~|\bto\b|\bor\b|到|或)\s*\d+)?"
)
_NUMBER_LINE = re.compile(rf"(?:(?:rating|score|评分|分数)\s*:?\s*)?{_NUMBER}\s*(?:分|points?|stars?)?", re.IGNORECASE)
_NUMBER_LABEL = re.compile(
    r"(?<![A-Za-z])(?:rating|score|grade|mark|points|overall|total|bewertung|note|puntuación|оценка|評価|点数|점수|评分|分数|得分|总分|打分)"
    rf"(?:\s+(?:rating|score))?\s*(?:is|was|of|would be|[:=|]|->|=>|是|为|は)?\s*[\[(]*\s*{_NUMBER}",
    re.IGNORECASE,
)
_NUMBER_SAID = (
    re.compile(rf"\b(?:rate|rated|give|gave|score|award|deserves|earns|assign|merits)\b[^.\d]{{0,60}}?{_NUMBER}", re.IGNORECASE),
    re.compile(rf"(?:给|打|得)\s*{_NUMBER}\s*分"),
)
_NUMBER_LEAD = re.compile(rf"{_NUMBER}\s*(?:[,.;:–—-](?=\s)|\(|(?:because|since|as)\b)")
_NUMBER_OF_TEN = re.compile(_NUMBER, re.IGNORECASE)


class RatingWords:
    """A number from 1 to 10, as text."""

    keys = frozenset(
        re.findall(r"\w+", "rating score overall overallrating overallscore finalscore finalrating grade points 评分 分数 总分 得分")
    )

    def of_value(self, value: Any) -> str | None:
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return _on_scale(float(value))
        return self.of_line(cleaned(str(value)))

    def of_line(self, line: str) -> str | None:
        if is_heading(line):
            return None
        found = _NUMBER_LINE.fullmatch(line.strip(" .!()[]"))
        if found is None or line.startswith("[["):
            return None
        return _number(found) or ""

    def of_lead(self, line: str) -> str | None:
        """Of a line that begins with a rating and goes on with its reasons."""
        found = _NUMBER_LEAD.match(line)
        return found and _number(found)

    def of_sentence(self, sentence: str) -> list[Statement]:
        sentence = _SCALE.sub("", sentence)
        said = [Statement(Level.PLAIN, self.of_line(match[1]) or "") for match in _BRACKETS.finditer(sentence)]
        said += [Statement(Level.PLAIN, _number(match)) for match in _NUMBER_LABEL.finditer(sentence)]
        if self.is_hedged(sentence):
            return said
        for pattern in _NUMBER_SAID:
            said += [Statement(Level.WHOLE, _number(match)) for match in pattern.finditer(sentence)]
        said += [Statement(Level.WHOLE, _number(match)) for match in _NUMBER_OF_TEN.finditer(sentence) if match["of"]]
        return said

    def is_hedged(self, sentence: str) -> bool:
        return bool(_HEDGED.search(sentence))


def _number(match: re.Match[str]) -> str:
    """The number of a match, "" where it leaves the scale or is a range."""
    if match["more"] or (match["of"] or "10") != "10" or (match["sign"] or "+") != "+":
        return ""
    return _on_scale(float(match["number"].replace(",", ".")))


def _on_scale(value: float) -> str:
    if not math.isfinite(value) or not LOWEST <= value <= HIGHEST:
        return ""
    return repr(value)
