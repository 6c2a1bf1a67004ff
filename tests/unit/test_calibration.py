"""Rates that are met, what stays in any case, and what the caller is told: over a compressor whose tokens are words."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio import compress
from studio.compress import calibration, compressor, methods
from studio.compress.calibration import Calibration, TextPart
from studio.compress.checks import MustKeep
from studio.compress.compressor import Compressor
from studio.compress.information import Word
from studio.compress.models import CAUSAL, CLASSIFIER, CompressorFacts
from studio.compress.request import Request
from studio.compress.tracing import Trace
from studio.errors import StudioError

SMALL = CompressorFacts(CAUSAL, "llama", 500)
LARGE = CompressorFacts(CAUSAL, "llama", 50_000)
LABELS = CompressorFacts(CLASSIFIER, "bert", 50_000, "bert-base-multilingual-cased")


class Words:
    """A backend whose tokens are words."""

    def __init__(self, facts: CompressorFacts = SMALL, window: int = 1000) -> None:
        self.facts, self.folder, self.max_position_embeddings = facts, Path("/models/small"), window
        self.use_llmlingua2 = facts.kind == CLASSIFIER
        self.oai_tokenizer = SimpleNamespace(count=self.get_token_length)
        self.asked: dict[str, Any] = {}

    def get_token_length(self, text: str) -> int:
        return len(text.split())

    def run(self, call: str, arguments: dict[str, Any], as_published: bool = False) -> tuple[dict[str, Any], Trace]:
        self.asked = {"call": call, "as_published": as_published, **arguments}
        return {"compressed_prompt": "short", "origin_tokens": "8", "compressed_tokens": 2}, Trace()


class Longest:
    """The longer a word, the more it says."""

    def words(self, text: str) -> list[Word]:
        return [Word(found.start(), found.end(), len(found.group())) for found in re.finditer(r"\S+", text)]


def loaded(backend: Words | None = None) -> Compressor:
    made = Compressor(backend or Words(), Path("/models/counter"))  # type: ignore[arg-type]
    made.information = Longest()  # type: ignore[assignment]
    return made


TEXT = "a bbb cccccc dd eeee fffff g hh"


def short(contexts: Any, made: Compressor | None = None, **options: Any) -> tuple[str, list[str]]:
    """The shorter text and what the caller is told."""
    found = (made or loaded()).compress(contexts, **{"method": "self_information", **options})
    return found.text, found.warnings


# the whole


def test_the_compressor_is_known_by_the_name_of_its_package() -> None:
    assert compress.Compressor is Compressor
    with pytest.raises(AttributeError, match="nothing"):
        compress.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_rate_is_of_all_tokens_and_met_with_the_words_that_say_most() -> None:
    found = loaded().compress(TEXT, method="self_information", rate=0.5)
    assert found.text == "bbb cccccc eeee fffff" and found.warnings == [] and found.lost == {} and found.original == TEXT
    assert (found.tokens_before, found.tokens_after, found.requested, found.achieved, found.achieved_compressible) == (8, 4, 0.5, 0.5, 0.5)
    assert (found.method, found.compressor, found.counter) == ("self_information", "/models/small", "/models/counter")
    assert [word for word, is_kept in found.kept if is_kept] == found.text.split() and len(found.kept) == 8
    assert found.inner_rate == 0.7333 and 0 <= found.seconds < 60
    around = loaded().compress(TEXT, method="self_information", rate=0.5, instruction="Do it now.", question="What is it?")
    assert around.text == "Do it now.\n\ncccccc\n\nWhat is it?" and (around.tokens_before, around.tokens_after) == (14, 7)
    assert around.achieved == 0.5 and around.achieved_compressible == 1 / 8, "one word of the eight that may go"
    assert [word for word, is_kept in around.kept if is_kept] == around.text.split() and len(around.kept) == 14
    assert loaded().compress(["", TEXT], method="self_information", rate=0.5).text == found.text


def test_a_target_is_met_from_below_and_one_that_is_met_already_says_so() -> None:
    assert short(TEXT, target_token=3) == ("cccccc eeee fffff", [])
    assert loaded().compress(TEXT, method="self_information", target_token=3).requested == 0.375
    assert loaded().compress("a bbb cc", method="self_information", target_token=2).requested == 0.6667, "to four digits"
    same = loaded().compress(TEXT, method="self_information", target_token=8)
    assert same.text == TEXT and same.warnings == ["The prompt has 8 tokens already, no more than the 8 allowed."]
    assert (same.requested, same.achieved, same.inner_rate) == (1.0, 1.0, None)
    assert short(TEXT, target_token=9)[1] == ["The prompt has 8 tokens already, no more than the 9 allowed."]
    assert short(TEXT, rate=1) == (TEXT, [])
    assert short(TEXT, rate=0.5, target_token=-1)[0] == "bbb cccccc eeee fffff", "the library's word for none"


def test_where_nothing_or_everything_would_be_left_the_original_comes_back() -> None:
    text, told = short("aaaa bb", rate=0.1)
    assert text == "aaaa bb" and told[-1] == "Nothing could be saved, so the original is returned."
    assert short("12  34", rate=0.5, force_digits=True)[0] == "12  34"
    assert [word for word, is_kept in loaded().compress("aaaa bb", method="self_information", rate=0.1).kept if is_kept] == ["aaaa", "bb"]


def test_a_miss_of_more_than_a_twentieth_is_told_with_its_reason() -> None:
    numbers = " ".join(str(n) for n in range(10, 21))  # eleven that must stay
    words = " ".join("a" * n for n in range(1, 10))
    assert short(f"{numbers} {words}", rate=0.5, force_digits=True)[1] == [], "one of twenty is no miss"
    more = short(f"{numbers} 21 {words.removeprefix('a ')}", rate=0.5, force_digits=True)[1]
    assert more == ["Asked for 50% of the tokens, 60% came out: too much is kept, because what must stay leaves no more room."]
    above = "too much is kept, because words and numbers are not cut into pieces"
    assert short(TEXT, target_token=7.9)[1] == [f"Asked for 99% of the tokens, 100% came out: {above}."]
    below = "too little is kept, because the next word or number to keep, which stays whole, is larger than what is missing"
    assert short(TEXT, rate=0.31)[1] == [f"Asked for 31% of the tokens, 25% came out: {below}."]


# what stays


def test_numbers_and_named_words_stay_and_what_was_never_there_is_told() -> None:
    assert short("a 12 bbbb 34 cc dddd", rate=0.5, force_digits=True) == ("12 bbbb 34", [])
    assert short("a 12 bbbb 34 cc dddd", rate=0.5, force_reserve_digit=True)[1] == ["1 of 2 numbers lost: 34."]
    assert short("a 12 bbbb 34 cc dddd", rate=0.5, must_keep=["numbers"]) == ("12 bbbb 34", [])
    assert short("ab ac bbbb cccc", rate=0.5, keep_patterns=["a[bc]"]) == ("ab ac", [])
    text, told = short("aaa ! b ! cccc ddd ! eeeeee", rate=0.5, force_tokens=["!", "zz"])
    assert text == "! ! ! eeeeee" and told == ["'zz' is not in the prompt, so it can't be kept."]


def test_of_forced_marks_with_nothing_kept_between_the_first_stays_where_that_is_asked_for() -> None:
    text = "aaa ! b ! cccc ddd ! eeeeee ? !"
    assert short(text, rate=0.6, force_tokens=["!", "?"], drop_consecutive=True)[0] == "! cccc ! eeeeee ? !"
    assert short(text, rate=0.6, force_tokens=["!", "?"])[0] == "! ! ! eeeeee ? !"


# sections


WORDS4 = "aaaa bbb cc d"


def test_sections_have_their_own_rates_and_white_space() -> None:
    text = f"<llmlingua, compress=False>keep all of it</llmlingua>  {WORDS4} {WORDS4}\n<llmlingua, rate=0.25> {WORDS4}  </llmlingua>"
    assert short(text, method="structured", rate=0.5) == ("keep all of it  aaaa bbb aaaa\n aaaa  ", [])
    alone = f"<llmlingua, compress=False>keep all of it </llmlingua>{WORDS4}\n"
    for wish in ({"rate": 0.5}, {"target_token": 6}):  # the rate is of what may go
        assert short(alone, method="structured", **wish) == ("keep all of it aaaa bbb\n", [])
    assert short(alone, method="structured", target_token=3)[1] == [
        "Asked for 38% of the tokens, 50% came out: too much is kept, because words and numbers are not cut into pieces."
    ]
    both = f"<llmlingua, rate=0.25> {WORDS4}  </llmlingua>\n<llmlingua, rate=0.5>{WORDS4}</llmlingua>"
    named = f"<llmlingua, rate=0.25> {WORDS4}  </llmlingua><llmlingua, rate=0.5>{WORDS4}</llmlingua>"
    told = ["Every section names its own rate, so the requested rate changes nothing."]
    for tagged in (both, named):
        assert short(tagged, method="structured", rate=0.9)[1] == told
    assert loaded().compress(named, method="structured", rate=0.9).inner_rate is None
    with pytest.raises(StudioError, match="No section may be compressed"):
        short("<llmlingua, compress=False>keep all of it</llmlingua>", method="structured", rate=0.5)


def test_of_json_the_long_strings_become_shorter() -> None:
    text = '{"k": "aaaa bbb cc d eeeee ffffff", "n": 12, "k": "gggg hh iiiiiii jj kkkkk l m"}'
    told = ["The JSON has a key twice (k); both stay."]
    assert short(text, method="structured", rate=0.5) == ('{"k": "aaaa eeeee ffffff", "n": 12, "k": "gggg iiiiiii kkkkk"}', told)
    plain, _ = short([WORDS4, text], method="structured", rate=0.5)
    assert plain == 'aaaa bbb\n\n{"k": "aaaa eeeee ffffff", "n": 12, "k": "gggg iiiiiii kkkkk"}'
    many = ", ".join(f'"{key}": 1' for key in "aabbccdd")
    assert "(a, b, c)" in short(f'{{{many}, "t": "aaaa bbb cc d eeeee ffffff"}}', method="structured", rate=0.5)[1][0]
    with pytest.raises(StudioError, match="The JSON holds no longer text"):
        short('{"a": "b"}', method="structured", rate=0.5)


@pytest.mark.parametrize(("facts", "by"), [(SMALL, "self_information"), (LARGE, "llmlingua"), (LABELS, "llmlingua2")])
def test_sections_are_shortened_as_the_compressor_can(facts: CompressorFacts, by: str) -> None:
    ((selector, parts),) = job(Words(facts), [WORDS4], "structured").selectors.values()
    assert (selector.method.name, selector.options, parts) == (by, {"use_context_level_filter": False}, [TextPart(0, 0, len(WORDS4))])


# documents


def job(backend: Words, contexts: list[str], name: str, question: str = "", rate: float = 0.5, **options: Any) -> Calibration:
    asked = Request(contexts, methods.method(name), rate, None, "", question, [], False, False, MustKeep(), options)
    return Calibration(backend, Longest(), None, asked)  # type: ignore[arg-type]


def sentences(count: int) -> str:
    return " ".join(["It is so."] * count)


@pytest.mark.parametrize(
    ("facts", "window", "contexts", "tokens"),
    [
        # alone: passages of 24 tokens, or of a sixteenth
        (LARGE, 1000, [sentences(20)], [24, 24, 12]),
        (LARGE, 1000, [sentences(20), " "], [24, 24, 12, 0]),
        (LARGE, 1000, [sentences(160)], [30] * 16),
        # several: whole where they fit the window, less the question and 40 tokens
        (LARGE, 1000, [sentences(30), sentences(1)], [90, 3]),
        (LARGE, 100, [sentences(19), sentences(1)], [57, 3]),
        (LARGE, 99, [sentences(19), sentences(1)], [24, 24, 9, 3]),
        (LARGE, 10, [sentences(10), "a " * 32, "a " * 33], [30, 32, 17, 16]),
        # where passages stay whole, documents of more than an eighth are cut too
        (SMALL, 1000, [sentences(9)] * 8, [27] * 8),
        (SMALL, 1000, [sentences(9)] * 7, [24, 3] * 7),
        (SMALL, 1000, [sentences(8)] * 2, [24] * 2),
    ],
)  # fmt: skip
def test_documents_are_ranked_whole_or_by_their_passages(facts: Any, window: int, contexts: list[str], tokens: list[int]) -> None:
    made = job(Words(facts, window), contexts, "longllmlingua", question="Is it so?")
    assert [len(made.contexts[part.context][part.start : part.end].split()) for part in made.parts] == tokens
    whole = {n: "".join(text[part.start : part.end] for part in made.parts if part.context == n) for n, text in enumerate(contexts)}
    assert whole == dict(enumerate(contexts)), "nothing is left out"


def test_what_must_stay_goes_with_its_document_and_documents_come_in_their_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.Selector, "_rank", lambda self: [2, 0, 1])
    documents = ["aaaa 12 bb cc", "dddd 34 ee ff", "gggg 56 hh ii"]
    made = loaded()
    options: dict[str, Any] = {"method": "longllmlingua", "question": "gggg?", "force_digits": True}
    kept = "Whole passages and whole words were kept"
    text, told = short(documents, made, rate=0.7, reorder_context="sort", **options)
    assert text == "gggg 56 hh ii\n\naaaa 12 bb cc\n\ngggg?" and told[0].startswith(kept)
    assert told[1:] == ["1 of 3 numbers lost: 34."]
    same, told = short(documents, made, rate=0.99, reorder_context="sort", **options)
    assert same == "\n\n".join([*documents, "gggg?"]) and told[-1] == "Nothing could be saved, so the original is returned."
    assert short(documents, made, rate=0.4, **options)[0] == "gggg 56 hh ii\n\ngggg?"


def test_a_compressor_of_few_pieces_is_told_to_cut_words() -> None:
    text, told = short(TEXT, loaded(), method="llmlingua", rate=0.5)
    assert text == TEXT and told[0].startswith("This compressor has only 500 pieces") and len(told) == 2
    assert len(short(TEXT, loaded(Words(LARGE)), method="llmlingua", rate=0.5)[1]) == 1


def test_words_beside_letters_that_must_stay_get_half_of_their_share() -> None:
    made = job(Words(), [TEXT], "llmlingua", rate=0.5)

    def fed(wanted: int, unknown: int) -> int:
        return made._fed(wanted, 100, SimpleNamespace(unknown=unknown), lambda inner: ({0.005: 20}[inner], None))  # type: ignore[arg-type]

    assert (fed(30, 0), fed(30, 9), fed(50, 9)) == (30, 40, 50)


def test_letters_without_a_word_are_told() -> None:
    made = job(Words(), [TEXT], "llmlingua2")
    ((selector, _),) = made.selectors.values()
    selector.unknown = 1200
    assert made._selector_notes(selector) == [
        "The compressor has no word for 1,200 characters; their words were kept or dropped whole, as the words beside them. "
        "self_information weighs them."
    ]
    selector.keeps_unknown = True
    assert made._selector_notes(selector)[0].endswith("they were kept. self_information can cut them.")
    assert made._why_missed(5, 4) == "too much is kept, because letters that the compressor has no word for stay"


# the library as it is


def test_without_calibration_the_library_is_asked_as_the_caller_does() -> None:
    backend = Words(LARGE)
    found = loaded(backend).compress([TEXT, "b"], rate=0.3, instruction="Do.", calibrate=False, force_digits=True, keep_split=True)
    assert backend.asked == {
        "call": "compress_prompt", "as_published": True, "context": [TEXT, "b"], "rate": 0.3, "instruction": "Do.", "keep_split": True,
    }  # fmt: skip
    assert (found.text, found.tokens_before, found.tokens_after, found.requested, found.achieved) == ("short", 8, 2, 0.3, 0.25)
    assert found.kept == [(word, True) for word in [*TEXT.split(), "b"]] and found.warnings == [] and found.method == "llmlingua"
    assert loaded(backend).compress(TEXT, calibrate=False).requested == 0.5 and backend.asked.keys() == {"call", "as_published", "context"}
    labels = Words(LABELS)
    given = {"force_tokens": ["!"], "force_digits": True, "drop_consecutive": True, "target_token": 4, "question": "Why?"}
    found = loaded(labels).compress(TEXT, calibrate=False, **given)
    assert labels.asked == {
        "call": "compress_prompt", "as_published": True, "context": [TEXT], "target_token": 4, "question": "Why?", "force_tokens": ["!"],
        "force_reserve_digit": True, "drop_consecutive": True,
    }  # fmt: skip
    assert (found.method, found.requested) == ("llmlingua2", 0.5)
    tagged = loaded(backend).compress(TEXT, method="structured", rate=0.5, calibrate=False)
    assert tagged.kept == [] and tagged.warnings == ["Which words were kept can't be told for this call of the library."]
    assert backend.asked["call"] == "structured_compress_prompt"


def test_causal_methods_take_a_million_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compressor.MOST_CAUSAL == 1_000_000
    monkeypatch.setattr(compressor, "MOST_CAUSAL", len(TEXT) + 2)
    assert short([TEXT, "aa"], rate=0.5)[0]
    with pytest.raises(StudioError, match="self_information takes at most 33 characters"):
        short([TEXT, "aaa"], rate=0.5)
