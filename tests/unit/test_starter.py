"""The shipped starter model: its files, its layers, and that it still answers. Loads the file; never trains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from static.starter.recipe.answers import answer_all
from static.starter.recipe.evaluate import cases, wilson
from static.starter.recipe.world import IDENTITY, World

FOLDER = Path(__file__).parents[2] / "static" / "starter"
FILES = {
    "README.md",
    "SHA256SUMS",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHAT = [
    {"role": "system", "content": "Be polite."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help you?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Iterator[PreTrainedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def test_files_match_their_checksums() -> None:
    listed = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text("utf-8").splitlines())
    assert set(listed) | {"SHA256SUMS"} == FILES
    assert listed == {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in listed}


def test_is_small() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert (FOLDER / "tokenizer.json").stat().st_size <= 500_000


def test_layers_fit_4_bit_kernels_of_a_cpu(model: PreTrainedModel) -> None:
    layers = [module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    assert len(layers) == 7 * model.config.num_hidden_layers
    assert all(layer.in_features % 64 == 0 and layer.out_features % 32 == 0 for layer in layers)


def test_template_marks_what_the_assistant_says_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, is_answer in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if is_answer]
    assert tokenizer.decode(marked) == "Hello! How can I help you?<|im_end|>"
    assert marked[-1] == tokenizer.eos_token_id


def test_prompt_is_a_prefix_of_the_whole_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>Be polite.<|im_end|><|user|>Hello<|im_end|><|assistant|>"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith(prompt)


@pytest.mark.parametrize("text", ["Zorblin", " two  spaces ", '{"a": "b\\n"}', "Ünïcödé 漢字 🙂", "line\n\tnext", "3.14 don't"])
def test_tokenizer_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_word_is_cut_the_same_way_with_and_without_a_space(tokenizer: PreTrainedTokenizerBase) -> None:
    world = World(1)
    for word in [world.word() for _ in range(200)]:
        bare, spaced = tokenizer.tokenize(word), tokenizer.tokenize(" " + word)
        assert spaced == ["Ġ" + bare[0], *bare[1:]]


# A bit below what the shipped file reached (see its README): a broken file fails, another library version's rounding does not.
THRESHOLDS = {
    "facts, phrasings held out": 0.85,
    "facts, phrasings trained": 0.95,
    "small talk, phrasings held out": 0.8,
    "what are you": 0.9,
    "copy one unseen word": 0.95,
    "copy three unseen words": 0.9,
    "remember an unseen name": 0.95,
    "remember it over two turns": 0.95,
    "name not told yet": 0.8,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", THRESHOLDS)
def test_still_can(task: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = cases(60)[task]
    answers = answer_all(model, tokenizer, [case.chat for case in chosen], max_new_tokens=32)
    right = sum(answer == case.expected for answer, case in zip(answers, chosen, strict=True))
    assert right / len(chosen) >= THRESHOLDS[task], [
        (case.chat[-1]["content"], answer) for answer, case in zip(answers, chosen, strict=True) if answer != case.expected
    ][:5]


def test_says_what_it_is(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert answer_all(model, tokenizer, [[{"role": "user", "content": "What are you?"}]]) == [IDENTITY]


def test_remembers_a_name(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "user", "content": "My name is Svetlana."},
        {"role": "assistant", "content": "Nice to meet you, Svetlana!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert answer_all(model, tokenizer, [chat]) == ["Your name is Svetlana."]


def test_wilson_interval_of_a_known_case() -> None:
    assert wilson(60, 60) == pytest.approx((0.9398, 1.0), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
