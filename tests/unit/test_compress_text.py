"""The parts of compression that need no model: searching a rate, whole units, tags and JSON, what was lost, what the page shows."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from jobs.compress import recommend, shorten
from jobs.panel import ReferenceJudge, judge_both_orders, score_of_first
from studio.compress import budget, checks, methods, ranking, sections, spans
from studio.compress.importance import Importance
from studio.compress.models import CAUSAL, CompressorFacts
from studio.compress.tracing import sentence_mask, token_mask, word_mask
from studio.errors import StudioError
from studio.records import (
    ComparisonPrompt,
    CompressedTexts,
    Compression,
    CompressionAnswers,
    CompressionSaving,
    CompressionVerdict,
    CompressionWinner,
    PromptAnswer,
    Verdict,
    Winner,
)
from studio.services.savings import predict
from studio.types import Example, Message, Role
from studio.ui import compress_shown
from studio.ui.compress_shown import AskedBoth


@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_the_search_meets_a_budget_on_curves_that_bend(power: float) -> None:
    tokens, _, _ = budget.meet(lambda inner: (round(1000 * inner**power), None), 400, 1000, first=0.4)
    assert abs(tokens - 400) <= 20


def test_a_target_is_not_exceeded_where_something_below_it_was_met() -> None:
    tokens, _, _ = budget.meet(lambda inner: (round(inner * 10) * 100, None), 450, 1000, first=0.45, at_most=True)
    assert tokens == 400


def test_a_number_is_whole_or_gone_and_spaces_stay_between_neighbours() -> None:
    text = "pay  80,000 dollars, today"
    mask = bytearray(len(text))
    spans.keep(mask, 0, 3)
    spans.keep(mask, 5, 6)  # the 8 alone
    spans.close_units(mask, spans.units(text))
    assert spans.assemble(text, mask) == "pay  80,000"


def test_a_letter_goes_with_its_marks_and_a_family_stays_together() -> None:
    text = "e\u0301a 👩\u200d👩\u200d👧 🇫🇷"
    mask = bytearray(len(text))
    for place in (0, text.index("👧"), text.index("🇷")):
        spans.keep(mask, place, place + 1)
    spans.close_units(mask, spans.units(text))
    assert spans.assemble(text, mask) == "e\u0301 👩\u200d👩\u200d👧 🇫🇷"
    assert [match.group() for match in spans.WORD.finditer("हिन्दी भाषा")] == ["हिन्दी", "भाषा"]


def test_half_a_word_is_no_word_and_numbers_stay_apart() -> None:
    text = "café résumé 4月3日に204"
    mask = bytearray(b"\1\1\1\0 \1\0\0\0\0\0 \1\0\1\0\0\1\1\1".replace(b" ", b"\0"))
    assert spans.assemble(text, mask) == "caf r 4 3 204"
    spans.settle_words(mask, spans.whole_words(text))
    assert spans.assemble(text, mask) == "café 4 3 204"
    spans.close_units(mask, spans.units(text))
    assert spans.assemble(text, mask) == "café 4月3日204"


def test_a_cut_leaves_a_space_between_words_and_none_in_chinese() -> None:
    text = "one, two 今天很好"
    mask = bytearray(b"\1" * len(text))
    for dropped in (",", "天"):
        spans.drop(mask, text.index(dropped), text.index(dropped) + 1)
    assert spans.assemble(text, mask) == "one two 今很好"


def test_long_paragraphs_are_cut_behind_sentences_and_nothing_is_lost() -> None:
    text = "One two. Three four five.\n\nSix. " + "x" * 50 + " Seven eight."
    found = spans.passages(text, 20, len)
    assert "".join(text[start:end] for start, end in found) == text
    assert [text[start:end] for start, end in found[:3]] == ["One two. ", "Three four five.\n\n", "Six. "]


def test_a_passage_that_shares_rare_words_comes_early_wherever_a_model_puts_it() -> None:
    passages = ["the cat sat", "the key is 7", "the dog ran"]
    shared = ranking.shared_words(passages, "Where is the key?")
    assert shared[1] == 1 and shared[0] == shared[2] < 0.2
    assert ranking.fused([2, 0, 1], shared) == [1, 2, 0]


def test_words_of_the_original_carry_their_fate() -> None:
    assert spans.words("ab cd", bytearray([1, 0, 0, 1, 1])) == [("a", True), ("b", False), ("cd", True)]


def test_a_character_of_several_pieces_is_kept_only_whole() -> None:
    offsets = [(0, 1), (1, 2), (1, 2), (3, 4)]  # the second character is two byte pieces
    assert list(token_mask("a好 b", offsets, {0, 1, 3})) == [1, 0, 1, 1]


def test_sentences_that_begin_alike_are_told_apart() -> None:
    pieces = ["Yes. ", "Yes. And more."]
    text = "".join(pieces)
    mask = sentence_mask(text, "Yes. And more.", ["Yes.", "Yes. And more."])
    assert bytes(mask) == b"\0" * 5 + b"\1" * 14


def test_labelled_words_are_found_again_past_letters_without_a_word() -> None:
    kept, known = word_mask("aé ☃☃ b", [("a", 1), ("b", 0)])
    assert list(kept) == [1, 0, 0, 0, 0, 0, 0] and known[6] == 1


@pytest.mark.parametrize(
    ("vocabulary", "options", "expected"),
    [
        (500, {}, True),
        (500, {"use_token_level_filter": True}, False),
        (500, {"use_token_level_filter": False}, False),
        (50_000, {}, False),
        (50_000, {"use_token_level_filter": True}, False),
    ],
)
def test_passages_stay_whole_with_a_small_vocabulary_and_only_by_default(vocabulary: int, options: dict[str, bool], expected: bool) -> None:
    assert methods.keeps_passages(CompressorFacts(CAUSAL, "llama", vocabulary), options) == expected


def test_a_word_without_a_token_stands_where_it_is_and_is_as_important_as_its_neighbours() -> None:
    # a classifier that has read "one", "two" and "three" in two chunks, and knows neither the other word nor the snowman
    trace = SimpleNamespace(words=[[("one", True), ("two", True), ("three", False)]], probabilities=[[0.9, 0.5], [0.1]])
    backend = SimpleNamespace(oai_tokenizer=Mock(count=len), run=lambda call, arguments: ({}, trace))
    text = "one भाषा two three ☃"
    (reading,) = Importance(backend).read([text], {})
    assert [text[slice(*place)] for place in reading.places if place] == ["one", "भाषा", "two", "three", "☃"]
    assert [len(probabilities) for probabilities, _ in reading.chunks] == [3, 2]
    found = [float(value) for probabilities, _ in reading.chunks for value in probabilities]
    assert found == pytest.approx([0.9, 0.7, 0.5, 0.1, 0.1], abs=0.011)


def test_what_is_lost_is_counted_not_only_missed() -> None:
    assert checks.lost("2 and 2 and not 80,000", "2 and 80", ("numbers", "negations")) == {"numbers": ["2", "80,000"], "negations": ["not"]}


def test_a_pattern_that_would_take_for_ever_is_stopped() -> None:
    with pytest.raises(StudioError, match="too long"):
        checks.PATIENCE_S, before = 0.2, checks.PATIENCE_S
        try:
            checks.MustKeep(patterns=[r"(a|a)*b|(a+)+$|(.*a){30}x"]).spans("a" * 60 + "!")
        finally:
            checks.PATIENCE_S = before


def test_json_keeps_its_layout_and_replaces_only_long_strings() -> None:
    text = '{"short": "a b",  "long": "it is a \\"quoted\\" and long text", "long": 1}'
    document = sections.Document(text)
    assert document.strings == ['it is a "quoted" and long text'] and document.doubled == ["long"]
    rebuilt = document.rebuilt(['a "quoted" text'])
    assert rebuilt == '{"short": "a b",  "long": "a \\"quoted\\" text", "long": 1}' and json.loads(rebuilt)


def test_tags_become_sections_and_text_outside_is_one_too() -> None:
    found = sections.tagged("x<llmlingua, rate=0.3>y < z</llmlingua><llmlingua, compress=False>w</llmlingua>")
    assert [(s.text, s.rate, s.compress) for s in found] == [("x", None, True), ("y < z", 0.3, True), ("w", None, False)]


def test_the_lowest_good_rate_is_recommended_and_none_where_nothing_is_right() -> None:
    points = [{"rate": r, "exact_match": s} for r, s in ((1.0, 0.8), (0.6, 0.78), (0.4, 0.5), (0.25, 0.8))]
    assert recommend(points, "exact_match", 0.05)["recommended"] == 0.6
    assert recommend([{"rate": 1.0, "exact_match": 0.0}], "exact_match", 0.05)["recommended"] is None


def test_a_pair_is_judged_in_both_orders_and_equal_answers_are_not_asked_about() -> None:
    prompt: ComparisonPrompt = {"id": "1", "turns": [[{"role": "user", "content": "2+2?"}]], "reference": "4"}
    told: list[int] = []
    said = judge_both_orders(ReferenceJudge(), [(prompt, "5", "4"), (prompt, "4", "4"), (prompt, "4", "5")], told.append)
    assert [[one.winner for one in pair] for pair in said] == [["b", "a"], [], ["a", "b"]] and told == [1, 1, 3, 3]
    assert [score_of_first(pair) for pair in said] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("winners", "expected"), [(("a", "a"), 0.5), (("a", "tie"), 0.75), (("invalid", "b"), 1.0), (("invalid", "invalid"), None)]
)
def test_a_judge_that_goes_by_position_finds_a_tie(winners: tuple[str, ...], expected: float | None) -> None:
    verdicts = [Verdict(prompt_id="1", a="one", b="other", winner=Winner(winner)) for winner in winners]
    assert score_of_first(verdicts) == expected


def test_what_the_judge_says_names_nobody_before_the_vote() -> None:
    verdict = CompressionVerdict(judge="J", winner=CompressionWinner.ORIGINAL, consistent=True, replies=[])
    asked = AskedBoth(answers=answers("Lima.", "Paris."), contestant="starter", is_swapped=True, judged=verdict)
    assert compress_shown.answers(asked, None, True)["judged"] == "J prefers Answer B, asked in both orders."
    voted = dataclasses.replace(asked, voted=True)
    assert "the whole prompt" in compress_shown.answers(voted, None, True)["judged"]


def test_beside_a_prompt_that_does_not_fit_there_is_no_vote() -> None:
    asked = AskedBoth(answers=answers("", "Lima.", error="too long"), contestant="m", is_swapped=False)
    shown = compress_shown.answers(asked, None, False)
    assert shown["voted"] and shown["saving"] == compress_shown.FITS and shown["answers"][0]["title"] == "The whole prompt"


def answers(before: str, after: str, error: str = "") -> CompressionAnswers:
    saving = CompressionSaving(saved_s=None, read_s_per_token=None, break_even_tokens=None)
    one, other = (PromptAnswer(text=text, prompt_tokens=1, completion_tokens=1, seconds=1.0) for text in (before, after))
    return CompressionAnswers(before=one.model_copy(update={"error": error}), after=other, saving=saving)


def test_break_even_needs_reading_to_cost_more_than_compressing() -> None:
    slow = predict((4000, 4.0), (2000, 2.0), 0.5)
    assert slow.saved_s == pytest.approx(1.5) and 0 < slow.break_even_tokens < 4000
    assert predict((4000, 0.04), (2000, 0.02), 0.5).break_even_tokens is None


def test_the_page_shows_the_original_with_its_spaces() -> None:
    original = "pay  80,000\n\nnow, John"
    segments = compress_shown.segments(original, [("pay", False), ("80,000", True), ("now", True), (",", False), ("John", True)])
    assert "".join(text for text, _ in segments) == original
    assert [is_kept for _, is_kept in segments] == [False, True, False, True]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"a": "She went with Anna.", "b": "The end, She said"}', ["Anna"]),
        ('{"author": "Anna Berg", "note": "Quickly he met Karl."}', ["Anna Berg", "Karl"]),
        ("it was She who saw The Hague", ["Hague"]),
        ('He said "Nobody knows" to Lena', ["Lena"]),
    ],
)
def test_a_word_that_begins_a_sentence_is_no_name(text: str, names: list[str]) -> None:
    assert checks.lost(text, "", ["names"]).get("names", []) == names


def conversation(*contents: str) -> Example:
    roles = itertools.cycle((Role.USER, Role.ASSISTANT))
    return Example(messages=[Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)])


def halved(text: str, rate: float, question: str = "") -> Compression:
    short = text[: len(text) // 2]
    return Compression(
        text=short, tokens_before=len(text), tokens_after=len(short), requested=rate, achieved=0.5, counter="", method="", seconds=0.0
    )


def test_the_texts_of_a_row_that_are_chosen_become_shorter() -> None:
    row = conversation("u" * 300, "a" * 300, "v" * 200, "short")
    lengths = {}
    for texts in CompressedTexts:
        made, figures = shorten(row, halved, 0.5, texts)
        lengths[texts.value] = ([len(message.content) for message in made.messages or []], figures)
    whole = [300, 300, 200, 5]
    assert lengths == {
        "longest": ([150, 300, 200, 5], (300, 150)),
        "user": ([150, 300, 100, 5], (500, 250)),
        "assistant": ([300, 150, 200, 5], (300, 150)),
        **dict.fromkeys(("system", "tool", "text"), (whole, (0, 0))),
    }
    pair = Example(prompt="p" * 300, completion="c" * 300)
    assert len(str(shorten(pair, halved, 0.5, CompressedTexts.ASSISTANT)[0].completion)) == 150
    assert len(str(shorten(pair, halved, 0.5, CompressedTexts.LONGEST)[0].prompt)) == 150
    assert len(str(shorten(Example(text="t" * 300), halved, 0.5, CompressedTexts.TEXT)[0].text)) == 150
