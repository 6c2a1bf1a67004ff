"""Compression through its Python interface: llmlingua's own results bit for bit, rates that are met, and texts that break tools."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import regex

from studio.compress import Compressor, load
from studio.errors import ModelError, StudioError
from studio.settings import STATIC

WORDS, STARTER = STATIC / "starter" / "words", STATIC / "starter"
PROMPT = (
    "Item 28: Report from Development Services. Recommendation to declare an ordinance amending the Land Use District Map, 1.5 acres "
    "for $80,000. We haven't decided; John Smith did not agree.\n\nQuestion: How many apples, and why? See https://example.com/a?b=1."
)
DOCUMENTS = [f"The {animal} sat near the river and looked at the moon for a long time." for animal in ("cat", "dog", "cow", "fox", "hen")]


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> Path:
    return shared_data / "data" / "compression" / "golden"


@pytest.fixture(scope="session")
def compressors(golden: Path) -> dict[str, Compressor]:
    return {folder.name: load(folder, golden / "models" / "gpt2-tiny", device="cpu") for folder in (golden / "models").iterdir()}


@pytest.fixture(scope="session")
def words() -> Compressor:
    return load(WORDS, STARTER, device="cpu")


@pytest.fixture(scope="session")
def starter() -> Compressor:
    return load(STARTER, device="cpu")


def test_importing_compress_loads_no_torch() -> None:
    code = "import studio.compress, sys; assert not {'torch', 'transformers', 'llmlingua'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shipped_classifier_is_whole_and_small() -> None:
    listed = dict(reversed(line.split("  ")) for line in (WORDS / "SHA256SUMS").read_text("utf-8").splitlines())
    assert listed == {name: hashlib.sha256((WORDS / name).read_bytes()).hexdigest() for name in listed}
    assert sum(path.stat().st_size for path in WORDS.iterdir()) <= 6_000_000


def test_every_golden_case_is_reproduced(golden: Path, compressors: dict[str, Compressor]) -> None:
    cases = [json.loads(line) for line in (golden / "cases.jsonl").read_text("utf-8").splitlines()]
    assert len(cases) == 78
    wrong = [case["id"] for case in cases if not _is_same(case, compressors[case["model"]])]
    assert not wrong


def _is_same(case: dict[str, Any], compressor: Compressor) -> bool:
    given = dict(case["arguments"])
    method = case["method"].partition("_force")[0].partition("_contexts")[0]
    contexts, digits = given.pop("context"), given.pop("force_reserve_digit", False)
    made = compressor.compress(contexts, method=method, force_digits=digits, calibrate=False, **given)
    expected = case["expected"]
    same = made.text == expected["compressed_prompt"] and made.tokens_after == expected["compressed_tokens"]
    return same and made.tokens_before == expected["origin_tokens"]


def test_without_calibration_the_defaults_are_the_librarys(compressors: dict[str, Compressor]) -> None:
    tiny = compressors["tiny-bert-base-multilingual-cased-clf"]
    half = tiny.compress(PROMPT, calibrate=False)
    assert half.text == tiny.compress(PROMPT, rate=0.5, calibrate=False).text and half.requested == 0.5
    both = tiny.compress(PROMPT, rate=0.9, target_token=20, calibrate=False)
    assert both.text == tiny.compress(PROMPT, target_token=20, calibrate=False).text
    labelled = tiny.compress(PROMPT, rate=0.5, calibrate=False, return_word_label=True, word_sep="|", label_sep="=")
    pairs = [pair.rpartition("=") for pair in (labelled.fn_labeled_original_prompt or "").split("|")]
    assert {label for _, _, label in pairs} == {"0", "1"} and pairs[0][0] == "Item"


def test_the_librarys_own_numbers_are_ours(starter: Compressor, words: Compressor, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmlingua import PromptCompressor

    monkeypatch.setattr(PromptCompressor, "load_model", lambda *_: None)
    monkeypatch.setattr("llmlingua.prompt_compressor.tiktoken.encoding_for_model", lambda _: None)
    given = {name: value for name, value in vars(PromptCompressor()).items() if type(value) is int}
    assert given and {name: getattr(starter.backend, name) for name in given} == given
    initial = inspect.signature(PromptCompressor.init_llmlingua2).parameters
    defaults = {name: one.default for name, one in initial.items() if type(one.default) is int}
    assert defaults and {name: getattr(words.backend, name) for name in defaults} == defaults


def test_a_brain_float_model_gives_the_library_numbers(golden: Path) -> None:
    folder = golden / "models" / "gpt2-tiny"
    made = load(folder, device="cpu", dtype="bfloat16").compress(
        DOCUMENTS, method="longllmlingua", rate=0.5, question="Where did the cat sit?", use_sentence_level_filter=True, calibrate=False
    )
    assert made.text and made.tokens_after < made.tokens_before


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("method", ["llmlingua", "longllmlingua"])
def test_causal_methods_meet_the_rate_on_a_short_prompt(compressors: dict[str, Compressor], method: str, rate: float) -> None:
    made = compressors["gpt2-tiny"].compress(PROMPT, method=method, rate=rate, question="How many apples?")
    assert abs(made.achieved - rate) <= 0.05  # the library alone leaves prompts below 200 tokens as they are
    assert _is_subsequence(made.text, made.original)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.7])
def test_the_shipped_classifier_meets_the_rate_and_keeps_numbers_whole(words: Compressor, rate: float) -> None:
    made = words.compress(PROMPT, rate=rate)
    assert abs(made.achieved - rate) <= 0.05
    assert "1.5" in made.text and "80,000" in made.text
    assert [word for word, _ in made.kept] and _is_subsequence(made.text, PROMPT)


def test_chinese_becomes_shorter_without_spaces_or_broken_characters(words: Compressor) -> None:
    text = "今天天气很好，我们去公园散步，然后在那里吃了午饭。他说这个计划不行。" * 4
    made = words.compress(text, rate=0.5)
    assert abs(made.achieved - 0.5) <= 0.05
    assert "\ufffd" not in made.text and " " not in made.text


def test_letters_without_a_word_do_not_starve_the_numbers(words: Compressor) -> None:
    made = words.compress("हिन्दी भाषा में 80,000 और ไทย ภาษา 1.5 as the price of it, which nobody had foreseen at all. " * 3, rate=0.5)
    assert made.text.count("80,000") == 3 and made.text.count("1.5") == 3 and "हिन्दी" in made.text
    assert any("no word" in warning for warning in made.warnings)


ACCENTS = "The café on the corner serves a résumé of naïve façade stories to Zoë and her fiancé, who are déjà vu in São Paulo and Kraków. "
DATES = "会議は4月3日に204号室で行われます。参加者は15名で、予算は3万円です。資料は前日までに送ってください。"


@pytest.mark.parametrize("name", ["words", "starter"])
@pytest.mark.parametrize("times", [1, 3])
def test_accented_words_are_whole_or_gone_at_the_rate_that_was_asked_for(request: pytest.FixtureRequest, name: str, times: int) -> None:
    made = request.getfixturevalue(name).compress(ACCENTS * times, rate=0.5)
    assert abs(made.achieved - 0.5) <= 0.08
    known = set(re.findall(r"\w+", ACCENTS))
    assert set(re.findall(r"\w+", made.text)) <= known  # no "caf", no "r" of "résumé"
    kept, before = (sum(not word.isascii() for word in re.findall(r"\w+", text)) for text in (made.text, ACCENTS * times))
    assert 0 < kept < before  # they are chosen like other words


@pytest.mark.parametrize("name", ["words", "starter"])
def test_digits_between_ideographs_are_not_joined_and_stay_with_what_they_count(request: pytest.FixtureRequest, name: str) -> None:
    made = request.getfixturevalue(name).compress(DATES, rate=0.5)
    assert abs(made.achieved - 0.5) <= 0.05
    assert set(re.findall(r"\d+.?", made.text)) <= {"4月", "3日", "204号", "15名", "3万"}
    assert "204号" in made.text


@pytest.mark.parametrize("name", ["words", "starter"])
def test_emoji_of_several_parts_are_whole_or_gone(request: pytest.FixtureRequest, name: str) -> None:
    text = "I love pizza 🍕 and sushi 🍣 with my family 👨‍👩‍👧‍👦 at the beach 🏖️ on a sunny day ☀️ while flags 🇩🇪 wave. " * 3
    made = request.getfixturevalue(name).compress(text, rate=0.5)
    assert abs(made.achieved - 0.5) <= 0.08
    whole = {"🍕", "🍣", "👨‍👩‍👧‍👦", "🏖️", "☀️", "🇩🇪"}
    assert {found for found in regex.findall(r"\X", made.text) if not found.isascii()} <= whole


def test_what_must_stay_stays_and_what_was_never_there_is_told(words: Compressor) -> None:
    made = words.compress(PROMPT, rate=0.3, must_keep=["urls", "negations"], keep_patterns=["Land Use"], force_tokens=["apples", "zebra"])
    assert all(text in made.text for text in ("https://example.com/a?b=1", "haven't", "not", "Land Use", "apples"))
    assert any("zebra" in warning for warning in made.warnings)


def test_a_lost_number_is_named(starter: Compressor) -> None:
    made = starter.compress(PROMPT, method="selective_context", rate=0.3)
    assert made.lost["numbers"] and any("numbers lost" in warning for warning in made.warnings)


def test_the_rate_one_is_the_identity_and_a_target_above_the_original_too(words: Compressor) -> None:
    assert words.compress(["a  b", " c"], rate=1).text == "a  b\n\n c"
    made = words.compress(PROMPT, target_token=9999)
    assert made.text == PROMPT and made.achieved == 1 and made.warnings


def test_a_target_in_tokens_is_not_exceeded(words: Compressor) -> None:
    assert words.compress(PROMPT, target_token=40).tokens_after <= 40


def test_instruction_and_question_stay_and_count(words: Compressor) -> None:
    made = words.compress(PROMPT, rate=0.5, instruction="Answer briefly.", question="How many?")
    assert made.text.startswith("Answer briefly.\n\n") and made.text.endswith("\n\nHow many?")
    assert abs(made.achieved - 0.5) <= 0.05


def test_the_passage_that_answers_the_question_is_kept_whole(starter: Compressor) -> None:
    documents = [*DOCUMENTS, "The secret code of Zorblin is 7261, they say.", *DOCUMENTS]
    made = starter.compress(documents, method="longllmlingua", question="What is the secret code of Zorblin?", rate=0.25)
    assert "The secret code of Zorblin is 7261, they say." in made.text
    assert abs(made.achieved - 0.25) <= 0.05


def test_a_running_text_is_ranked_by_its_sentences(starter: Compressor) -> None:
    needle = "The pass key is 71432, and nobody should tell it."
    text = " ".join([*DOCUMENTS, *DOCUMENTS, needle, *DOCUMENTS])
    made = starter.compress(text, method="longllmlingua", question="What is the pass key?", rate=0.25)
    assert needle in made.text and abs(made.achieved - 0.25) <= 0.05


def test_another_rate_is_made_of_what_was_read(words: Compressor) -> None:
    first = words.compress(PROMPT * 3, rate=0.5)
    reads = []
    hook = words.backend.raw_model.register_forward_hook(lambda *_: reads.append(1))
    second = words.compress(PROMPT * 3, rate=0.3)
    hook.remove()
    assert second.tokens_after < first.tokens_after and not reads


def test_tags_and_json_keep_their_form(starter: Compressor, words: Compressor) -> None:
    head = "<llmlingua, compress=False>Head: 1 < 2\n</llmlingua>"
    text = f"{head}<llmlingua, rate=0.4>{DOCUMENTS[0]}</llmlingua>\n<llmlingua>{PROMPT}</llmlingua>"
    made = starter.compress(text, method="structured", rate=0.5)
    assert made.text.startswith("Head: 1 < 2\n") and "llmlingua" not in made.text
    source = {"id": 7, "text": PROMPT, "tags": ["a", True, None], "nested": {"more": DOCUMENTS[0]}}
    short = json.loads(words.compress(json.dumps(source), method="structured", rate=0.5).text)
    assert list(short) == list(source) and short["tags"] == source["tags"] and 0 < len(short["text"]) < len(PROMPT)


def test_doubled_keys_of_json_are_told(words: Compressor) -> None:
    made = words.compress(f'{{"a": {json.dumps(PROMPT)}, "b": 1, "b": 2}}', method="structured", rate=0.5)
    assert any("twice" in warning for warning in made.warnings) and '"b": 1, "b": 2' in made.text


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا بالعالم هذا نص عربي طويل للاختبار ولا شيء غيره",
        "🎉🎊 party 🎈🎈 time 🎉 👩‍👩‍👧 now",
        "12345 67890 11 22 33",
        "abcdefghijklmnopqrstuvwxyz" * 40,
        "def f(x):\n    return {'a': x[0]}  # ok\n",
        "日本語 and العربية and code: `x = 1` 🎉 12.5%",
        ".",
        "   \n\n  a",
    ],
)
def test_odd_texts_give_an_honest_result(words: Compressor, starter: Compressor, compressors: dict[str, Compressor], text: str) -> None:
    tiny = compressors["tiny-xlm-roberta-large-clf"]
    for compressor, method in ((words, "llmlingua2"), (tiny, "llmlingua2"), (starter, "llmlingua"), (starter, "self_information")):
        made = compressor.compress(text, method=method, rate=0.5)
        assert made.text and "\ufffd" not in made.text
        assert made.tokens_after <= made.tokens_before
        assert abs(made.achieved - 0.5) < 0.051 or made.warnings


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {"rate": 0.5}, "empty"),
        ("a b", {"rate": 0.0}, "rate 0"),
        ("a b", {"rate": 2.0}, "rate 2"),
        ("a b", {"rate": float("nan")}, "rate nan"),
        ("a b", {}, "either a rate or a target"),
        ("a b", {"rate": 0.5, "target_token": 5}, "either a rate or a target"),
        ("a b", {"target_token": 0}, "target of 0"),
        ("a b", {"rate": 0.5, "method": "zip"}, "no method"),
        ("a b", {"rate": 0.5, "method": "llmlingua2"}, "needs a token classifier"),
        ("a b", {"rate": 0.5, "method": "longllmlingua"}, "needs a question"),
        ("a b", {"rate": 0.5, "itertive_size": 5}, "iterative_size"),
        ("a b", {"rate": 0.5, "iterative_size": 0}, "iterative_size 0"),
        ("a b", {"rate": 0.5, "rank_method": "openai"}, "service or a download"),
        ("a \ud800 b", {"rate": 0.5}, "half of a character"),
        ("<llmlingua>a", {"rate": 0.5, "method": "structured"}, "never closed"),
        ("a</llmlingua>", {"rate": 0.5, "method": "structured"}, "closes nothing"),
        ("<llmlingua, rate=7>a</llmlingua>", {"rate": 0.5, "method": "structured"}, "rate"),
        ("a b", {"rate": 0.5, "keep_patterns": ["("]}, "regular expression"),
        ("a b", {"rate": 0.5, "must_keep": ["mood"]}, "mood"),
    ],
)
def test_what_cannot_be_done_is_said(starter: Compressor, text: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StudioError, match=said):
        starter.compress(text, **options)


def test_options_that_the_library_evaluates_are_refused(compressors: dict[str, Compressor]) -> None:
    for calibrate in (True, False):
        with pytest.raises(StudioError, match="context_budget"):
            compressors["gpt2-tiny"].compress(
                DOCUMENTS, method="llmlingua", rate=0.5, calibrate=calibrate, context_budget="+__import__('os').getpid()"
            )


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="can't compress"):
        load(tmp_path)
    with pytest.raises(ModelError, match="no model"):
        load(tmp_path / "absent")


def test_random_state_is_left_alone(golden: Path) -> None:
    import torch

    before = torch.get_rng_state()
    load(golden / "models" / "tiny-bert-base-multilingual-cased-clf", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def _is_subsequence(short: str, long: str) -> bool:
    letters = iter(character for character in long if not character.isspace())
    return all(character in letters for character in short if not character.isspace())
