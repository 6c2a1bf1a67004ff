"""Limits and counts of compression at their edges: budgets, requests, tags, rankings, masks, and what is read once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from studio.compress import budget, checks, importance, information, methods, models, ranking, request, sections, selection, spans
from studio.compress.checks import MustKeep
from studio.compress.importance import ClassifierReading, Importance
from studio.compress.information import Information, Word
from studio.compress.models import CAUSAL, CLASSIFIER, CompressorFacts
from studio.compress.selection import Selector
from studio.compress.tracing import Trace, sentence_mask, token_mask, word_mask, word_places
from studio.errors import ModelError, StudioError

# budgets


@pytest.mark.parametrize(("tokens", "size"), [(0, 10), (131, 10), (132, 11), (240, 20), (2399, 199), (2400, 200), (9999, 200)])
def test_the_window_is_a_twelfth_within_its_bounds(tokens: int, size: int) -> None:
    assert budget.iterative_size(tokens) == size


class Recorded:
    """An attempt that remembers the rates at which it was made."""

    def __init__(self, tokens: Any) -> None:
        self.tokens, self.rates = tokens, []  # type: ignore[var-annotated]

    def __call__(self, rate: float) -> tuple[int, float]:
        self.rates.append(rate)
        return self.tokens(rate), rate


@pytest.mark.parametrize(
    ("curve", "wanted", "options", "rates"),
    [
        # within 15 of 1000 tokens at once; 16 off: on along the straight line, at most nine tenths and at least a tenth of the way
        (lambda rate: 415, 400, {"first": 0.4}, [0.4]),
        (lambda rate: 416 if rate == 0.4 else 400, 400, {"first": 0.4}, [0.4, 0.36]),
        (lambda rate: 384 if rate == 0.4 else 400, 400, {"first": 0.4}, [0.4, 0.46]),
        (lambda rate: 415 if rate == 0.4 else 400, 400, {"first": 0.4, "at_most": True}, [0.4, 0.36]),
        # the first rate within its bounds
        (lambda rate: 400, 400, {"first": 7.0}, [1.0]),
        (lambda rate: 400, 400, {"first": 0.0}, [0.005]),
        # a step is at least a tenth and at most nine tenths of what is left, and every third one a half
        (lambda rate: 1000, 10, {"first": 0.5, "tries": 4}, [0.5, 0.05, 0.005, 0.005]),
        (lambda rate: 0, 990, {"first": 0.5, "tries": 4}, [0.5, 0.95, 0.995, 0.9975]),
        (
            lambda rate: 0,
            500,
            {"first": 0.0},
            [0.005, 0.005 + 0.995 * 0.5, 0.75125, 0.875625, 0.9378125, 0.96890625, 0.984453125, 0.9922265625],
        ),
    ],
)
def test_the_rates_of_a_search(curve: Any, wanted: int, options: dict[str, Any], rates: list[float]) -> None:
    attempt = Recorded(curve)
    budget.meet(attempt, wanted, 1000, **options)
    assert attempt.rates == pytest.approx(rates)


def test_more_tokens_than_there_are_cannot_be_met() -> None:
    assert budget.meet(lambda rate: (1000, rate), 1100, 1000, first=0.5)[0] == 1000


def test_a_search_ends_after_eight_tries_or_where_nothing_is_left_between() -> None:
    attempt = Recorded(lambda rate: 900 if rate > 0.7 else 100)
    tokens, _, inner = budget.meet(attempt, 450, 1000, first=0.4)
    assert len(attempt.rates) == budget.TRIES == 8 and tokens == 100 and inner == 0.4, "the first of several equally near"
    narrow = Recorded(lambda rate: 900 if rate > 0.4005 else 100)
    budget.meet(narrow, 450, 1000, first=0.4, tries=99)
    assert len(narrow.rates) < 20 and abs(narrow.rates[-1] - 0.4005) < 0.002


# requests

PLAIN = CompressorFacts(CAUSAL, "llama", 50_000)
LABELS = CompressorFacts(CLASSIFIER, "bert", 50_000, "bert-base-multilingual-cased")


def made(**values: Any) -> request.Request:
    given: dict[str, Any] = {"contexts": ["a text"], "method": methods.method("llmlingua"), "rate": 0.5, "target_token": None}
    given |= {"instruction": "", "question": "", "force_tokens": [], "force_digits": False, "drop_consecutive": False}
    return request.Request(**{**given, "must_keep": MustKeep(), "options": {}, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": None}, "either a rate or a target"),
        ({"target_token": 5}, "either a rate or a target"),
        ({"rate": 0.0}, "The rate 0 is not above 0"),
        ({"rate": 1.01}, "The rate 1.01 is not above 0"),
        ({"rate": None, "target_token": 0.5}, "The target of 0.5 tokens is below 1"),
        ({"rate": float("nan")}, "is not above 0"),
        ({"contexts": [" ", "\n"]}, "the prompt is empty"),
        ({"contexts": []}, "the prompt is empty"),
        ({"question": "\ud800"}, "half of a character"),
        ({"instruction": "\udfff"}, "half of a character"),
        ({"contexts": ["a\udabcb"]}, "half of a character"),
        ({"method": methods.method("longllmlingua"), "question": " "}, "longllmlingua needs a question"),
        ({"method": methods.method("llmlingua2")}, "llmlingua2 needs a token classifier, and folder is none"),
        ({"options": {"iterative_size": 0}}, "iterative_size 0 is no whole number of 1 to 1,000,000"),
        ({"options": {"iterative_size": 1_000_001}}, "iterative_size 1000001"),
        ({"options": {"iterative_size": 1.0}}, "iterative_size 1.0"),
        ({"options": {"context_budget": "100"}}, "context_budget '100' is not"),
        ({"options": {"context_budget": "+1.5x"}}, "context_budget"),
        ({"options": {"rank_method": "openai"}}, "rank_method 'openai' needs a service or a download"),
        ({"options": {"keep_split": None}}, "Option keep_split can't be None"),
        ({"options": {"keep_split": {}}}, "Option keep_split can't be {}"),
        ({"options": {"rate": 0.5}}, "llmlingua has no option 'rate'"),
        ({"options": {"keep_splits": True}}, "llmlingua has no option 'keep_splits'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(values: dict[str, Any], said: str) -> None:
    with pytest.raises(StudioError, match=said):
        made(**values).check(SimpleNamespace(facts=PLAIN, folder=Path("/models/folder")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"rate": 1}, PLAIN),
        ({"rate": None, "target_token": 1}, PLAIN),
        ({"rate": None, "calibrate": False}, PLAIN),
        ({"target_token": 9, "calibrate": False}, PLAIN),
        ({"contexts": ["", "x"]}, PLAIN),
        ({"instruction": "\ud7ff\ue000"}, PLAIN),
        ({"method": methods.method("longllmlingua"), "question": "Where?"}, PLAIN),
        ({"method": methods.method("llmlingua2")}, LABELS),
        ({"method": methods.method("structured")}, LABELS),
        ({"method": methods.method("structured")}, PLAIN),
        ({"options": {"iterative_size": 1, "context_budget": "*1.5", "rank_method": "gzip", "force_context_ids": None}}, PLAIN),
        ({"options": {"iterative_size": 1_000_000, "force_context_number": None, "keep_split": [1]}}, PLAIN),
    ],
)
def test_what_can_be_done_is_not_refused(values: dict[str, Any], facts: CompressorFacts) -> None:
    made(**values).check(SimpleNamespace(facts=facts, folder=Path("/models/folder")))  # type: ignore[arg-type]


def test_a_causal_model_does_no_classifiers_work_and_the_other_way_round() -> None:
    with pytest.raises(StudioError, match="llmlingua needs a causal language model, and folder is none"):
        request.check_kind(methods.method("llmlingua"), LABELS, "folder")
    assert made(instruction="Do.", question="Why?", contexts=["a", "", "b"]).original() == "Do.\n\na\n\nb\n\nWhy?"
    with pytest.raises(StudioError, match="There is no method 'x'") as caught:
        methods.method("x")
    assert "llmlingua2, llmlingua, longllmlingua" in caught.value.fix
    with pytest.raises(StudioError) as caught:
        methods.check_options(methods.method("llmlingua"), {"keep_splits": True})
    assert caught.value.fix.startswith("Did you mean keep_split")
    with pytest.raises(StudioError) as caught:
        methods.check_options(methods.method("llmlingua"), {"zzzzzz": True})
    assert caught.value.fix == "See /api/docs."
    with pytest.raises(StudioError) as caught:
        methods.check_options(methods.method("llmlingua"), {"use_level_filter": True})
    assert caught.value.fix.count("use_") == 3, "the three nearest"


# compressors


def folder_of(place: Path, **config: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (place / "tokenizer.json").write_text("{}")
    return place


@pytest.mark.parametrize(
    ("config", "facts", "cuts"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8191}, (CAUSAL, "llama", 8191, ""), True),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 8192}, (CAUSAL, "gpt2", 8192, ""), False),
        ({"architectures": ["LlamaForCausalLM"]}, (CAUSAL, "", 0, ""), False),
        (
            {"architectures": ["BertForTokenClassification"], "model_type": "bert", "vocab_size": 100},
            (CLASSIFIER, "bert", 100, "bert-base-multilingual-cased"),
            False,
        ),
    ],
)
def test_what_a_folder_can_compress_with(tmp_path: Path, config: dict[str, Any], facts: tuple[Any, ...], cuts: bool) -> None:
    found = models.inspect(folder_of(tmp_path / "m", **config))
    assert (found.kind, found.model_type, found.vocabulary, found.word_rule) == facts and found.cuts_words is cuts


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["DebertaForTokenClassification"], "model_type": "deberta"}, "a token classifier of type 'deberta'"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "is BertForMaskedLM, which can't compress"),
        ({"model_type": "bert"}, "is a model without named architecture, which can't compress"),
    ],
)
def test_what_a_folder_cannot_compress_with(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    place = folder_of(tmp_path / "m", **config)
    with pytest.raises(ModelError, match=said):
        models.inspect(place)
    (place / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        models.inspect(place)
    (place / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no model"):
        models.inspect(place)


# tags and JSON


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb</llmlingua>", "Line 2: </llmlingua> closes nothing"),
        ("<llmlingua>a<llmlingua>b</llmlingua></llmlingua>", "Line 1: <llmlingua> opens inside another section"),
        ("a<llmlingua, rate=0.5>b", "<llmlingua, rate=0.5> is never closed"),
        ("<llmlingua, rate=0>b</llmlingua>", "The rate of <llmlingua, rate=0> is not above 0"),
        ("<llmlingua, rate=1.1>b</llmlingua>", "is not above 0 and at most 1"),
        ("<llmlingua, rate=x>b</llmlingua>", "is not above 0 and at most 1"),
        ("<llmlingua, rates=1>b</llmlingua>", "can't be read"),
        ("<llmlingua, compress=no>b</llmlingua>", "can't be read"),
        ("<llmlingua rate>b</llmlingua>", "can't be read"),
    ],
)
def test_tags_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(StudioError, match=said):
        sections.tagged(text)


def test_tags_that_can_be_read() -> None:
    found = sections.tagged("<llmlingua, rate=1>a</llmlingua><llmlingua></llmlingua><llmlingua, compress=True>b</llmlingua>c")
    assert [(s.text, s.rate, s.compress) for s in found] == [("a", 1.0, True), ("b", None, True), ("c", None, True)]
    assert sections.tagged("") == [] and [s.text for s in sections.tagged("plain")] == ["plain"]


@pytest.mark.parametrize(
    ("text", "meant"), [(' {"a": 1}', True), ("[1]", True), ("{a}", False), ("1", False), ('"x"', False), ("[" * 9999, False)]
)
def test_which_texts_are_meant_as_json(text: str, meant: bool) -> None:
    assert sections.is_json(text) is meant


def test_strings_of_24_characters_with_a_space_are_prose() -> None:
    long, short, joined = "x " + "y" * 22, "x " + "y" * 21, "y" * 30
    document = sections.Document(json.dumps({long: long, "b": [short, joined, " " + joined], "c": "half \ud800 of a character here"}))
    assert document.strings == [long] and document.doubled == []
    assert json.loads(document.rebuilt(["é"]))[long] == "é" and "é" in document.rebuilt(["é"])
    far = sections.Document(f'{{"{long}"{" " * 99}: 1}}')  # the colon of a key may stand far behind it
    assert far.strings == []
    assert sections.Document('{"a": 1, "b": {"c": 1, "c": 2}, "a": 3, "a": 4}').doubled == ["c", "a"]


# what must stay


def test_a_caller_names_what_stays() -> None:
    with pytest.raises(StudioError, match="nothing to keep called 'dates'"):
        MustKeep(["numbers", "dates"])
    assert MustKeep(words=["né", "a-", "x"]).spans("né nét a-b xy x") == [(0, 2, "né"), (3, 5, "né"), (7, 9, "a-"), (14, 15, "x")]
    must = MustKeep(["numbers", "numbers"], ["cat", "", "cat", "+"], [r"[xy]+", "q*"])
    text = "the cat and cats 12 + xy"
    assert must.kinds == ("numbers",) and must.words == ("cat", "+")
    assert must.spans(text) == [(4, 7, "cat"), (17, 19, "numbers"), (20, 21, "+"), (22, 24, "/[xy]+/")]
    assert must.absent("cats + dogs") == ["cat"] and must.absent("a cat") == ["+"]
    assert MustKeep(patterns=["x" * checks.LONGEST_PATTERN]).spans("") == []
    with pytest.raises(StudioError, match="longer than 500 characters"):
        MustKeep(patterns=["x" * 501])
    with pytest.raises(StudioError, match="no regular expression"):
        MustKeep(patterns=["("])


def test_a_warning_shows_five_of_what_was_lost() -> None:
    gone = [f"word{n}" for n in range(7)]
    assert checks.warning("names", gone, 9).startswith("7 of 9 names lost: word0, word1, word2, word3, word4")
    assert "word5" not in checks.warning("names", gone, 9) and "word4" in checks.warning("names", gone[:5], 5)
    assert checks.warning("quotes", ["a \n b" + "c" * 50], 1) == f"1 of 1 quotes lost: a b{'c' * 37}."
    assert checks.count("2 and 3", "numbers") == 2
    assert checks.lost("`a b` x", "`a b", ["code"]) == {"code": ["`a b`"]} and checks.lost('"a" "a"', 'x"a"', ["quotes"]) == {}


# rankings


def test_the_share_of_rare_words_is_bm25() -> None:
    # passages of two and four words; "key" stands in one of them: ln(1 + 1.5 / 1.5), and "the" in both: ln(1 + 0.5 / 2.5)
    passages, rare, common = ["the key", "the the dog cat"], 0.6931471805599453, 0.1823215567939546
    first = (rare + common) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / 3))
    second = common * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 4 / 3))
    assert ranking.shared_words(passages, "the key?") == pytest.approx([1.0, second / first])
    assert (
        ranking.shared_words(["a", "b"], "z") == [0.0, 0.0]
        and ranking.shared_words([], "z") == []
        and ranking.shared_words([""], "z") == [0.0]
    )
    # 1, 1/2 and 1/3 of their places, and what they share
    assert ranking.fused([0, 1, 2], [0.0, 0.49, 0.0]) == [0, 1, 2] and ranking.fused([0, 1, 2], [0.0, 0.51, 0.0]) == [1, 0, 2]
    assert ranking.fused([0, 1, 2], [0.0, 0.0, 0.18]) == [0, 2, 1] and ranking.fused([0, 1, 2], [0.0, 0.0, 0.16]) == [0, 1, 2]


# masks


def test_half_of_a_word_is_enough_to_keep_it() -> None:
    mask = bytearray([1, 1, 0, 0, 0, 1, 0, 0, 0, 1])
    spans.settle_words(mask, [(0, 4), (5, 8), (9, 10)])
    assert list(mask) == [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert spans.share(1, 4) == 0.25 and spans.share(0, 0) == 1.0 and list(spans.full("abc")) == [1, 1, 1]
    assert spans.units("ab") == [] and spans.whole_words("a bc 好好") == [(2, 4)]


@pytest.mark.parametrize(
    ("text", "mask", "kept"),
    [
        ("a  b", "1001", "a  b"),  # nothing but white space between them
        ("a x\ny b", "1000001", "a\nb"),
        ("a x b", "10001", "a b"),
        ("axb", "101", "ab"),  # inside one word
        ("a-b", "101", "a b"),
        ("1x2", "101", "1 2"),
        ("好的吗", "101", "好吗"),
        ("a好b", "101", "a b"),
        ("a,,!", "1001", "a!"),
        (" a ", "111", "a"),
        ("abc", "000", ""),
    ],
)
def test_the_seam_of_a_cut(text: str, mask: str, kept: str) -> None:
    assert spans.assemble(text, [int(bit) for bit in mask]) == kept


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("ab\ncd", 9, ["ab\n", "cd"]),
        ("ab\n\n  cd\n", 9, ["ab\n\n  ", "cd\n"]),
        ("", 9, []),
        ("One. Two. Three.", 16, ["One. Two. Three."]),
        ("One. Two. Three.", 15, ["One. Two. ", "Three."]),
        ("One. Two. Three.", 5, ["One. ", "Two. ", "Thr", "ee."]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("abcdefghij. kl", 6, ["abcdef", "ghij. ", "kl"]),
        ("一。二。三。", 4, ["一。二。", "三。"]),
    ],
)
def test_passages_are_as_long_as_the_limit_allows(text: str, limit: int, cut: list[str]) -> None:
    assert [text[start:end] for start, end in spans.passages(text, limit, len)] == cut


def test_tokens_to_characters() -> None:
    assert list(token_mask("ab cd", [(0, 2), (3, 5)], {1})) == [0, 0, 1, 1, 1]  # the space goes with the token after it
    assert list(token_mask("ab-cd", [(0, 2), (3, 5)], {1})) == [0, 0, 0, 1, 1]
    assert list(token_mask("ab", [(0, 2), (0, 2)], {0})) == [0, 0] and list(token_mask("ab", [(0, 1), (1, 2)], {0})) == [1, 0]
    assert list(sentence_mask("A. B. A. ", "A. ", ["A.", "B.", "A."])) in ([1] * 3 + [0] * 6, [0] * 6 + [1] * 3)
    assert list(sentence_mask("A. B. C.", "A. C.", ["A.", "B.", "C."])) == [1, 1, 1, 0, 0, 0, 1, 1]
    assert list(sentence_mask("A. B.", "", ["A.", "B."])) == [0] * 5


def test_words_are_found_again_in_order_within_4000_characters() -> None:
    assert word_places("aXb AxB", ["axb", "", "zz", "AXB"]) == [(0, 3), None, None, (4, 7)]
    assert word_places("ﬁne ①", ["fine", "1"]) == [(0, 3), (4, 5)]
    gap = "\N{SNOWMAN}" * 3999
    assert word_places(gap + "a", ["a"]) == [(3999, 4000)] and word_places(gap + "\N{SNOWMAN}a", ["a"]) == [None]
    kept, known = word_mask("ab c", [("ab", 0), ("c", 1), ("c", 1)])
    assert list(kept) == [0, 0, 0, 1] and list(known) == [1, 1, 0, 1]


def test_a_trace_follows_the_library() -> None:
    def tokenizer(text: str, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": [(n, n + 1) for n in range(len(text))]}

    trace = Trace()
    trace.begin(["ab", "cd"])
    trace.end(tokenizer, 0, 6)  # nothing was taken away
    assert [list(mask) for mask in trace.masks(["ab", "cd"]) or []] == [[1, 1], [1, 1]]
    trace = Trace()
    trace.begin(["ab", "cd"])
    assert trace.follow(6) == list(range(6)) and trace.follow(5) == [1, 2, 3, 4, 5] and trace.follow(5) == [1, 2, 3, 4, 5]
    trace.places = [4]
    trace.end(tokenizer, 0, 6)
    assert [list(mask) for mask in trace.masks(["ab", "cd"]) or []] == [[1, 0], [1, 0]]  # what was set aside was kept
    trace.contexts = [1]
    trace._tokens = [bytearray([0, 1])]
    assert [list(mask) for mask in trace.masks(["ab", "cd"]) or []] == [[0, 0], [0, 1]]
    trace._tokens = [bytearray([0])]
    assert trace.masks(["ab", "cd"]) is None
    trace.is_lost = True
    assert trace.masks(["ab", "cd"]) is None
    asked = Trace()
    asked.begin(["q?", "cd"])
    asked.places = [0, 1, 2, 3, 5]
    asked.end(tokenizer, 2, 6)
    assert [list(mask) for mask in asked.masks(["cd"]) or []] == [[0, 1]]


def test_a_trace_knows_which_chunks_a_classifier_chose_and_which_sentences_stayed() -> None:
    trace, chunks = Trace(), [["a"], ["a"], ["b"]]
    trace.choose_chunks([chunks[1]])
    assert trace.contexts is None
    trace.chunks = chunks
    trace.choose_chunks([chunks[2], chunks[1]])
    assert trace.contexts == [2, 1]
    trace.words = [[("b", 1)], [("a", 0)]]
    assert [list(mask) for mask in trace.masks(["a", "a", "b"]) or []] == [[0], [0], [1]]
    kept = Trace()
    kept.keep_sentences(["A. B."], ["B."], lambda text: text.split(" "))
    assert [list(mask) for mask in kept.masks(["A. B."]) or []] == [[0, 0, 0, 1, 1]]
    kept._tokens = [bytearray([0, 1])]
    assert [list(mask) for mask in kept.masks(["A. B."]) or []] == [[0, 0, 0, 0, 1]]


# what is read once


class Counter:
    """Counts each text as one token, or its letters."""

    def __init__(self, count: Any = lambda text: 1) -> None:
        self.count = count


class Loaded:
    """A causal model over characters: the later a character stands in its window, the surer the model is of the last letters."""

    def __init__(self, window: int) -> None:
        self.max_position_embeddings, self.device, self.lock = window, "cpu", nullcontext()
        self.reads: list[int] = []

    def tokenizer(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [ord(c) - 97 if c != " " else 26 for c in text], "offset_mapping": [(n, n + 1) for n in range(len(text))]}

    def raw_model(self, ids: torch.Tensor) -> Any:
        self.reads.append(ids.shape[1])
        logits = torch.stack([torch.arange(27.0) * (1 + place) / 10 for place in range(ids.shape[1])])
        return SimpleNamespace(logits=logits[None])


def loss_of(letter: str, place: int) -> float:
    """Of a letter behind `place` others of its window."""
    logits = torch.arange(27.0) * place / 10
    return float(torch.logsumexp(logits, 0) - logits[26 if letter == " " else ord(letter) - 97])


def test_every_token_but_the_first_is_read_once_in_windows_that_overlap_by_a_quarter() -> None:
    backend = Loaded(8)
    text = "abc def ghij kl"
    found = Information(backend).words(text)
    assert [text[word.start : word.end] for word in found] == ["abc", "def", "ghij", "kl"]
    # windows begin at 0, 6 and 12; what two windows hold counts as the first one read it, with more in front of it
    places = [n if n < 8 else n - 6 if n < 14 else n - 12 for n in range(len(text))]
    losses = [loss_of(letter, place) for letter, place in zip(text, places, strict=True)]
    losses[0] = 0.0  # nothing is in front of the first letter; a space counts to the word behind it
    assert [word.score for word in found] == pytest.approx([sum(losses[a:b]) for a, b in ((0, 3), (3, 7), (7, 12), (12, 15))], abs=1e-3)
    assert backend.reads == [8, 8, 3]  # from 0, 6 and 12
    assert Loaded(10**9).max_position_embeddings > 1024
    long = Loaded(10**9)
    Information(long).words("a" * 1500)
    assert long.reads == [1024, 1500 - 768]
    one = Information(Loaded(8))
    assert [word.score for word in one.words("a")] == [0.0] and one.words("") == []


def test_what_was_read_is_remembered_up_to_a_number_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (information.REMEMBERED, importance.REMEMBERED) == (200_000, 200_000)
    monkeypatch.setattr(information, "REMEMBERED", 3)
    backend = Loaded(8)
    known = Information(backend)
    for text, reads in (("ab", 1), ("cd e", 2), ("ab", 2), ("f g", 3), ("ab", 3), ("cd e", 4), ("f g", 5), ("a b c d", 6), ("a b c d", 6)):
        known.words(text)
        assert len(backend.reads) == reads, text


def classifier(reads: list[list[str]]) -> Any:
    """Words of a text are as likely to stay as their length says; chunks of two words."""

    def run(call: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        texts = arguments["context"]
        reads.append(texts)
        words = [[(word, True) for word in text.split()] for text in texts]
        chunks = [[len(word) / 10 for word, _ in own[n : n + 2]] for own in words for n in range(0, len(own), 2)]
        assert call == "compress_prompt" and arguments["use_context_level_filter"] is False
        return {}, SimpleNamespace(words=words, probabilities=chunks)

    return SimpleNamespace(oai_tokenizer=Counter(), run=run, facts=LABELS)


def test_readings_are_remembered_by_text_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[list[str]] = []
    known = Importance(classifier(reads))
    known.read(["a bb", "a bb", "ccc"], {})
    known.read(["a bb"], {})
    known.read(["a bb"], {"token_to_word": "first"})
    assert reads == [["a bb", "ccc"], ["a bb"]]
    monkeypatch.setattr(importance, "REMEMBERED", 3)
    known = Importance(classifier(reads := []))
    # three words fit: "a b" is read again only after "d e" has come
    for text, count in (("a b", 1), ("c", 2), ("a b", 2), ("d e", 3), ("c", 4), ("d e", 4), ("a b", 5)):
        known.read([text], {})
        assert len(reads) == count, text


def test_a_share_of_the_tokens_of_each_chunk_stays() -> None:
    (reading,) = Importance(classifier([])).read(["aaaa bbb cc d"], {})
    assert reading.places == [(0, 4), (5, 8), (9, 11), (12, 13)] and [len(p) for p, _ in reading.chunks] == [2, 2]
    kept = {rate: spans.words("aaaa bbb cc d", reading.mask(rate)) for rate in (0.0, 0.5, 0.99, 1.0, 7.0)}
    assert {rate: [word for word, is_kept in words if is_kept] for rate, words in kept.items()} == {
        0.0: [],
        0.5: ["aaaa", "cc"],
        0.99: ["aaaa", "cc"],
        1.0: ["aaaa", "bbb", "cc", "d"],
        7.0: ["aaaa", "bbb", "cc", "d"],
    }
    import numpy

    empty = ClassifierReading(1, [(0, 1)], [(numpy.array([0.5]), numpy.array([0]))], [])
    assert list(empty.mask(0.5)) == [0]


def test_words_that_a_classifier_does_not_know_are_a_little_less_likely_than_those_beside_them() -> None:
    trace = SimpleNamespace(words=[[("one", True), ("four", True)]], probabilities=[[0.9, 0.5]])
    backend = SimpleNamespace(oai_tokenizer=Counter(), run=lambda call, arguments: ({}, trace))
    (reading,) = Importance(backend).read(["one भाषा ☃ four ☃"], {})
    ((probabilities, tokens),) = reading.chunks
    golden = 0.6180339887
    wanted = [0.9, 0.7 - 0.01 * golden, 0.7 - 0.01 * (2 * golden % 1), 0.5, 0.5 - 0.01 * (4 * golden % 1)]
    assert [float(one) for one in probabilities] == pytest.approx(wanted, abs=1e-9) and list(tokens) == [1] * 5
    assert reading.unknown == [4, 5, 6, 7, 9, 16]
    alone = SimpleNamespace(words=[[]], probabilities=[])
    backend.run = lambda call, arguments: ({}, alone)
    (reading,) = Importance(backend).read(["☃ ☃"], {})
    assert [float(one) for one in reading.chunks[0][0]] == pytest.approx([0.5, 0.5 - 0.01 * golden]) and reading.length == 3


# choosing


class Library:
    """llmlingua's place: remembers what it was asked, and keeps what the trace says."""

    def __init__(self, trace: Trace, refusals: int = 0) -> None:
        self.trace, self.refusals, self.asked = trace, refusals, []  # type: ignore[var-annotated]
        self.oai_tokenizer, self.facts = Counter(lambda text: len(text) * 12), CompressorFacts(CAUSAL, "llama", 50_000)

    def run(self, call: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Trace]:
        self.asked.append({"call": call, **arguments})
        if len(self.asked) <= self.refusals:
            raise StudioError("It can't cut this question.", "")
        return {}, self.trace


def by_library(name: str, options: dict[str, Any], trace: Trace, refusals: int = 0) -> tuple[Library, Selector]:
    library = Library(trace, refusals)
    return library, Selector(library, None, None, methods.method(name), ["ab", "cdefghijkl"], "q?", options)  # type: ignore[arg-type]


def test_the_library_is_asked_with_what_makes_the_method() -> None:
    trace = Trace()
    trace.contexts = [1]
    library, chosen = by_library("llmlingua", {"keep_split": True}, trace)
    found = chosen.select(0.3)
    assert library.asked == [
        {
            "call": "compress_prompt", "context": ["ab", "cdefghijkl"], "rate": 0.3, "iterative_size": 12, "keep_split": True,
            "question": "q?", "concate_question": False,
        }
    ]  # fmt: skip
    assert (found.order, list(found.masks[0]), list(found.masks[1])) == ([1], [0, 0], [1] * 10)
    library, chosen = by_library("longllmlingua", {"concate_question": True, "iterative_size": 50}, Trace())
    assert chosen.select(0.5).order == [0, 1]
    (asked,) = library.asked
    wanted = {"rank_method": "longllmlingua", "concate_question": True, "iterative_size": 50, "question": "q?"}
    assert {name: asked[name] for name in wanted} == wanted
    assert (asked["condition_in_question"], asked["dynamic_context_compression_ratio"]) == ("after_condition", 0.3)
    library, chosen = by_library("selective_context", {}, Trace())
    chosen.select(0.5)
    assert (
        library.asked[0]["use_token_level_filter"],
        library.asked[0]["use_sentence_level_filter"],
        library.asked[0]["use_context_level_filter"],
    ) == (False, True, False)
    library, chosen = by_library("llmlingua2", {"keep_split": True}, Trace())
    chosen.select(0.5)
    assert not {"question", "concate_question", "iterative_size"} & set(library.asked[0])
    lost = Trace()
    lost.is_lost = True
    with pytest.raises(StudioError, match="can't be told which words were kept"):
        by_library("llmlingua", {}, lost)[1].select(0.5)


def test_a_question_that_cannot_be_cut_is_put_behind_unless_a_caller_says_where() -> None:
    library, chosen = by_library("longllmlingua", {}, Trace(), refusals=1)
    chosen.select(0.5)
    assert [asked["condition_in_question"] for asked in library.asked] == ["after_condition", "after"]
    for name, options, refusals in (
        ("longllmlingua", {"condition_in_question": "after_condition"}, 1),
        ("llmlingua", {}, 1),
        ("longllmlingua", {}, 2),
    ):
        library, chosen = by_library(name, options, Trace(), refusals)
        with pytest.raises(StudioError, match="can't cut"):
            chosen.select(0.5)
        assert len(library.asked) == refusals


def test_letters_without_a_word_stay_and_are_counted() -> None:
    trace = Trace()
    trace.contexts, trace.words = [1], [[("cd", 0), ("gh", 1)]]
    _, chosen = by_library("llmlingua2", {"keep_split": True}, trace)
    found = chosen.select(0.5)
    assert list(found.masks[1]) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1] and (chosen.unknown, chosen.keeps_unknown) == (6, True)
    trace.words = [[("cdefghijkl", 1)]]
    chosen.select(0.5)
    assert (chosen.unknown, chosen.keeps_unknown) == (0, False)


class Known:
    """Words and their scores."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def words(self, text: str) -> list[Word]:
        found, place = [], 0
        for word in text.split(" "):
            found.append(Word(place, place + len(word), self.scores[word]))
            place += len(word) + 1
        return found


def selector(name: str, texts: Sequence[str], options: dict[str, Any], vocabulary: int = 100, question: str = "") -> Selector:
    backend = SimpleNamespace(
        oai_tokenizer=SimpleNamespace(count=lambda text: len(text.split())), facts=CompressorFacts(CAUSAL, "llama", vocabulary)
    )
    scores = {"aa": 4.0, "bb": 1.0, "cc": 3.0, "dd": 2.0, "ee": 0.5, "ff": 0.1}
    return Selector(backend, Known(scores), None, methods.method(name), texts, question, options)  # type: ignore[arg-type]


def shown(texts: Sequence[str], found: selection.Selection) -> list[str]:
    return [spans.assemble(texts[index], found.masks[index]) for index in found.order]


@pytest.mark.parametrize(
    ("rate", "left"),
    [(0.0, ["", ""]), (0.25, ["aa", ""]), (0.5, ["aa", "cc"]), (0.74, ["aa", "cc"]), (0.75, ["aa", "cc dd"]), (1.0, ["aa bb", "cc dd"])],
)
def test_the_words_of_greatest_information_make_up_the_rate(rate: float, left: list[str]) -> None:
    texts = ["aa bb", "cc dd"]
    assert shown(texts, selector("self_information", texts, {}).select(rate)) == left


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The library's order: backwards."""
    calls: list[tuple[Any, ...]] = []

    def rank(_: Any, texts: list[str], question: str, method: str) -> list[int]:
        calls.append((texts, question, method))
        return list(range(len(texts)))[::-1]

    monkeypatch.setattr(selection.llmlingua, "rank", rank)
    yield calls


def test_whole_passages_stay_in_the_order_of_the_ranking_while_they_fit(ranked: list[tuple[Any, ...]]) -> None:
    texts = ["aa bb", "", "cc dd", "ee ff"]
    chosen = selector("longllmlingua", texts, {}, question="bb?")
    assert shown(texts, chosen.select(1.0)) == ["aa bb", "cc dd", "ee ff"]
    # "bb" is the question's: 1/3 + 1 is more than the others' 1 and 1/2
    assert shown(texts, chosen.select(2 / 6)) == ["aa bb"]
    assert shown(texts, chosen.select(4 / 6)) == ["aa bb", "ee ff"]
    assert shown(texts, chosen.select(3 / 6)) == ["aa bb", "ee"]
    assert shown(texts, chosen.select(0.0)) == []
    assert ranked == [(["aa bb", "cc dd", "ee ff"], "bb?", "longllmlingua")], "ranked once"
    named = selector("longllmlingua", texts, {"rank_method": "gzip", "reorder_context": "sort"}, question="bb?")
    assert shown(texts, named.select(1.0)) == ["ee ff", "cc dd", "aa bb"] and ranked[-1][-1] == "gzip"
    staged = selector("longllmlingua", ["aa", "bb", "cc", "dd", "ee"], {"rank_method": "gzip", "reorder_context": "two_stage"})
    assert staged.select(1.0).order == [4, 2, 0, 1, 3]
    alone = selector("longllmlingua", ["", "aa bb"], {}, question="x")
    assert shown(["", "aa bb"], alone.select(1.0)) == ["aa bb"] and len(ranked) == 3, "one text is not ranked"


def test_a_classifiers_thresholds_are_set_here_unless_other_options_ask_for_the_library() -> None:
    backend = classifier(reads := [])

    def way(options: dict[str, Any]) -> str:
        backend.oai_tokenizer = Counter(len)
        made = Selector(backend, None, Importance(backend), methods.method("llmlingua2"), ["aaaa bbb"], "", options)  # type: ignore[arg-type]
        return made.select.__name__

    assert [way({}), way({"token_to_word": "mean"}), way({"keep_split": True})] == ["_importances", "_importances", "_library"]
    made = Selector(backend, None, Importance(backend), methods.method("llmlingua2"), ["aaaa bbb ☃x"], "", {})  # type: ignore[arg-type]
    assert shown(["aaaa bbb ☃x"], made.select(1.0)) == ["aaaa bbb ☃x"] and made.unknown == 0 and reads[-1] == ["aaaa bbb ☃x"]
