"""Metrics in every script: right ranks above wrong, equal texts score all or give null with a reason, equal Unicode is equal."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from sacrebleu.metrics import BLEU

from studio.evaluation import judging, metrics, tokens
from studio.evaluation.bleu import tokenizer_of
from studio.evaluation.metrics import METRICS, MeasureOptions
from studio.evaluation.scores import CantSay

# script: a short reference, a right answer in a sentence, a wrong one, "I don't know", and a whole sentence as reference with two
# answers, the first nearer; then sacrebleu's tokenizer without mecab
SCRIPTS: dict[str, tuple[str, str, str, str, str, str, str, str]] = {
    "latin": (
        "Łódź",
        "Miasto nazywa się Łódź.",
        "Miasto nazywa się Kraków.",
        "Nie wiem.",
        "Stolicą Polski od dawna jest Warszawa.",
        "Stolicą Polski od dawna jest, oczywiście, Warszawa.",
        "Nie mam dziś zielonego pojęcia o tym.",
        "13a",
    ),
    "greek": (
        "Αθήνα",
        "Η πρωτεύουσα είναι η Αθήνα.",
        "Η πρωτεύουσα είναι η Πάτρα.",
        "Δεν ξέρω.",
        "Η πρωτεύουσα της Ελλάδας είναι η Αθήνα.",
        "Η πρωτεύουσα της Ελλάδας είναι η όμορφη Αθήνα.",
        "Δεν ξέρω τίποτα απολύτως για αυτό το θέμα.",
        "intl",
    ),
    "cyrillic": (
        "Москва",
        "Столица — Москва.",
        "Столица — Казань.",
        "Не знаю.",
        "Столицей России давно является город Москва.",
        "Столицей России давно является большой город Москва.",
        "Я совсем ничего об этом не знаю.",
        "intl",
    ),
    "arabic": (
        "القاهرة",
        "عاصمة مصر هي القاهرة.",
        "عاصمة مصر هي الإسكندرية.",
        "لا أعرف.",
        "عاصمة جمهورية مصر العربية هي مدينة القاهرة.",
        "عاصمة جمهورية مصر العربية هي القاهرة.",
        "لا أعرف شيئا عن هذا الموضوع أبدا.",
        "intl",
    ),
    "hebrew": (
        "ירושלים",
        "הבירה היא ירושלים.",
        "הבירה היא חיפה.",
        "אני לא יודע.",
        "עיר הבירה של מדינת ישראל היא ירושלים.",
        "עיר הבירה של מדינת ישראל היא כמובן ירושלים.",
        "אין לי שום מושג בנושא הזה היום.",
        "intl",
    ),
    "devanagari": (
        "दिल्ली",
        "राजधानी दिल्ली है।",
        "राजधानी मुंबई है।",
        "मुझे नहीं पता।",
        "भारत देश की राजधानी नई दिल्ली है।",
        "भारत देश की राजधानी तो नई दिल्ली है।",
        "मुझे इसके बारे में कुछ नहीं पता।",
        "intl",
    ),
    "chinese": (
        "北京",
        "首都是北京。",
        "首都是上海。",
        "我不知道。",
        "中华人民共和国的首都是北京市。",
        "中华人民共和国的首都就是北京。",
        "对不起，这个问题我回答不了。",
        "zh",
    ),
    "japanese": (
        "東京",
        "首都は東京です。",
        "首都は大阪です。",
        "わかりません。",
        "日本の首都は東京という都市です。",
        "日本の首都は東京と呼ばれる都市です。",
        "申し訳ありませんが、存じません。",
        "char",
    ),
    "thai": (
        "กรุงเทพ",
        "เมืองหลวงคือกรุงเทพ",
        "เมืองหลวงคือเชียงใหม่",
        "ฉันไม่รู้",
        "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร",
        "เมืองหลวงของประเทศไทยก็คือกรุงเทพ",
        "ฉันไม่รู้เรื่องนี้เลย",
        "char",
    ),
    "korean": (
        "서울",
        "수도는 서울입니다.",
        "수도는 부산입니다.",
        "모릅니다.",
        "대한민국의 오래된 수도는 바로 서울이라고 합니다.",
        "대한민국의 오래된 수도는 바로 서울이라고 알려져 있습니다.",
        "저는 그것에 대해 아무것도 모르겠습니다.",
        "intl",
    ),
}
WORDS = ("contains", "token_f1", "rouge1", "rougeL", "chrf")  # what speaks of a sentence against a short reference
WHOLE = (*WORDS[1:], "rouge2", "bleu")


@pytest.fixture(params=SCRIPTS)
def case(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SCRIPTS[request.param]


def figures(prediction: str, reference: str) -> dict[str, Any]:
    return metrics.measure([(prediction, [reference])])


def test_every_metric_ranks_right_above_wrong(case: tuple[str, ...]) -> None:
    short, right, wrong, unknown, whole, near, far, _ = case
    for worse in (wrong, unknown):
        better, other = figures(right, short), figures(worse, short)
        assert [name for name in WORDS if not better[name] > other[name]] == []
    better, other = figures(near, whole), figures(far, whole)
    assert [name for name in WHOLE if not better[name] > other[name]] == []
    for name in ("exact_match", "exact_match_ignoring_case", "exact_match_normalized"):
        assert figures(short, short)[name] == 1 and figures(unknown, short)[name] == 0
    assert figures(f"«{short}»!", short)["exact_match_normalized"] == 1


def test_the_reference_judge_prefers_the_right_answer(case: tuple[str, ...]) -> None:
    short, right, wrong, unknown, whole, near, far, _ = case
    for worse in (wrong, unknown):
        assert judging.by_reference(right, worse, short) == "a" and judging.by_reference(worse, right, short) == "b"
    assert judging.by_reference(near, far, whole) == "a" and judging.by_reference(far, near, whole) == "b"
    assert judging.by_reference(short, right, short) == "a" and judging.by_reference(right, right, whole) == "tie"


def test_equal_texts_score_all_or_give_a_reason(case: tuple[str, ...]) -> None:
    for text in (case[0], case[4], "", " ", "...", "👍", "42", "a", "B", " ".join(["word"] * 80)):
        found = figures(text, text)
        for metric in METRICS:
            if metric.row or metric.corpus:
                value, reason = found[metric.name], found["reasons"].get(metric.name, "")
                assert (value == pytest.approx(metric.scale) and not reason) or (value is None and reason), (metric.name, text, value)


def test_equal_unicode_is_equal(case: tuple[str, ...]) -> None:
    for text in (case[0], case[4]):
        one, other = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert figures(one, text) == figures(other, text) == figures(text, other)
        assert judging.by_reference(other, "?", text) == "a"


def test_bleu_uses_the_tokenizer_of_the_script_and_says_which(case: tuple[str, ...]) -> None:
    whole, near, name = case[4], case[5], case[7]
    assert tokenizer_of([whole]) in (name, "ja-mecab", "ko-mecab")
    if tokenizer_of([whole]) == name:
        found = figures(near, whole)
        near, whole = (unicodedata.normalize("NFKC", text) for text in (near, whole))
        assert found["bleu"] == pytest.approx(BLEU(tokenize=name).corpus_score([near], [[whole]]).score)
        assert found["tokenizers"] == {"bleu": name}


def test_rows_of_several_scripts_each_have_their_tokenizer() -> None:
    rows = [SCRIPTS[name] for name in ("latin", "latin", "chinese", "thai")]
    found = metrics.measure([(row[4], [row[4]]) for row in rows])
    assert found["bleu"] == pytest.approx(100)
    assert found["tokenizers"]["bleu"] == "13a (2 rows), zh (1 rows), char (1 rows)"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The capital of China is 北京.", "13a"),
        ("首都是 Beijing 北京", "zh"),
        ("ປະເທດລາວ", "char"),
        ("ភ្នំពេញ", "char"),
        ("ရန်ကုန်", "char"),
        ("བོད་སྐད", "char"),
        ("12 + 3", "13a"),
        ("", "13a"),
    ],
)
def test_the_tokenizer_of_a_text(text: str, name: str) -> None:
    assert tokenizer_of([text]) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, café!", ["don", "t", "stop", "café"]),
        ("ＡＢＣ １２", ["abc", "12"]),
        ("東京2024年", ["東", "京", "2024", "年"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국", ["한", "국"]),
        ("می\N{ZERO WIDTH NON-JOINER}خواهم", ["میخواهم"]),
        ("👍 …", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert tokens.words(text) == words


def test_what_a_metric_cannot_say_is_null_with_the_reason() -> None:
    essay = " ".join(["word"] * 51)
    rows = metrics.measure([("x", [essay]), ("no idea", [""])])
    assert rows["exact_match"] == 0 and rows["counted"]["exact_match"] == 1, "of the empty reference alone"
    alone = metrics.measure([("x", [essay])])
    for name in ("exact_match", "exact_match_ignoring_case", "exact_match_normalized"):
        assert alone[name] is None and "50 words" in alone["reasons"][name]
    assert alone["token_f1"] == 0.0 and "number_match" in alone["reasons"] and "ci95" not in alone
    empty = metrics.measure([("something", [""])], with_intervals=True)
    unsaid = {
        "contains",
        "token_f1",
        "rouge1",
        "rouge2",
        "rougeL",
        "bleu",
        "chrf",
        "number_match",
        "choice_match",
        "tool_call_match",
        "tool_name_match",
        "exact_match_normalized",
    }
    assert set(empty["reasons"]) == unsaid and set(empty["ci95"]) == {"exact_match", "exact_match_ignoring_case"}
    copied = metrics.measure([("x", [essay]), (essay, [essay])])
    assert copied["exact_match"] == 0.5, "where an answer equals an essay, others could"
    long_json = "[" + ", ".join(["1"] * 60) + "]"
    assert metrics.measure([(long_json, [long_json])])["exact_match"] == 1.0


def test_articles_and_single_letters() -> None:
    assert metrics.exact_match_normalized("The", ["the"]) and not metrics.exact_match_normalized("the", ["a"])
    contained = next(metric for metric in METRICS if metric.name == "contains")
    assert contained.row is not None
    assert isinstance(contained.row("It is a dog", ["A"], MeasureOptions()), CantSay)
    assert contained.row("答えは猫です", ["猫"], MeasureOptions()) == 1.0
