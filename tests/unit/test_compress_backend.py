"""The seam to llmlingua: its own defaults, sentences, counting, what is remembered, and likelihoods as they are defined."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llmlingua import prompt_compressor as library
from tokenizers import Tokenizer

from studio.compress import llmlingua
from studio.compress import models as kinds
from studio.compress.llmlingua import Backend, CachedCausal, Counter, RememberingClassifier, sentences
from tests.runs import STARTER


@pytest.fixture(scope="module")
def causal() -> Backend:
    return Backend(STARTER, STARTER, device="cpu")


@pytest.fixture(scope="module")
def classifier() -> Backend:
    return Backend(kinds.WORDS_FOLDER, STARTER, device="cpu")


def test_what_the_library_sets_is_set_as_it_does(classifier: Backend) -> None:
    own, theirs = (inspect.signature(kind.init_llmlingua2).parameters for kind in (Backend, library.PromptCompressor))
    for name in ("max_batch_size", "max_force_token"):
        assert own[name].default == theirs[name].default == getattr(classifier, name)
    made = inspect.getsource(library.PromptCompressor)
    for name in ("cache_bos_num", "prefix_bos_num", "max_seq_len"):
        found = re.search(rf"self\.{name} = (\d+)", made)
        assert found is not None and getattr(classifier, name) == int(found[1])
    assert classifier.added_tokens == [f"[NEW{n}]" for n in range(100)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n", [" \n"]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("  One. Two", ["  One.", "Two"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_are_exact_pieces_in_their_order(text: str, pieces: list[str]) -> None:
    assert sentences(text) == pieces


def test_tokens_are_counted_without_special_ones_and_uncut() -> None:
    counter, plain = Counter(STARTER), Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    for text in ("", "cat", "x" * 31, "y" * 32, "many words " * 3000):
        assert counter.count(text) == len(plain.encode(text, add_special_tokens=False).ids) == len(counter.encode(text))


class Sums(torch.nn.Module):
    """Answers each token with its number and that of its row's length; counts what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        self.seen.append(tuple(input_ids.shape))
        lengths = attention_mask.sum(1, keepdim=True).expand_as(input_ids)
        return SimpleNamespace(logits=torch.stack([input_ids, lengths], dim=2))


def padded(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 2
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def test_a_classifier_reads_no_padding_and_no_text_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sums()
    remembering = RememberingClassifier(model)
    ids, mask = padded([5, 6, 7], [8], [5, 6, 7])
    found = remembering(ids, mask).logits
    assert model.seen == [(2, 3)] and found.shape == (3, 5, 2)
    assert found[0].tolist() == found[2].tolist() == [[5, 3], [6, 3], [7, 3], [0, 0], [0, 0]]
    assert found[1].tolist() == [[8, 1], [0, 0], [0, 0], [0, 0], [0, 0]]
    remembering(*padded([8], [9, 9]))
    assert model.seen[1:] == [(1, 2)]
    model.seen.clear()
    remembering(*padded(*([n] * (n % 3 + 1) for n in range(100, 133))))
    assert [rows for rows, _ in model.seen] == [16, 16, 1], "short texts first, sixteen at a time"
    assert [width for _, width in model.seen] == sorted(width for _, width in model.seen)
    monkeypatch.setattr(llmlingua, "REMEMBERED_CHUNKS", 2)
    remembering(*padded([1], [2], [3]))
    assert len(remembering._known) == 2
    model.seen.clear()
    remembering(*padded([2], [3]))
    assert model.seen == [], "the latest are known"


def nats(backend: Backend, ids: list[int], first: int) -> list[float]:
    """The negative log-likelihood of each token from `first` on, given all before."""
    with torch.inference_mode():
        logits = backend.raw_model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [-float(logits[place - 1, ids[place]]) for place in range(first, len(ids))]


def test_the_likelihood_of_a_text_is_the_mean_of_its_tokens(causal: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The cat saw the dog, and the dog saw the moon."
    ids = causal.tokenizer(text)["input_ids"]
    with torch.inference_mode():
        whole, behind = causal.get_ppl(text), causal.get_ppl(text, condition_mode="after", condition_pos_id=4)
        assert float(whole) == pytest.approx(sum(nats(causal, ids, 1)) / (len(ids) - 1), rel=1e-4)
        assert float(behind) == pytest.approx(sum(nats(causal, ids, 5)) / (len(ids) - 5), rel=1e-4)
        assert causal.get_ppl(text) is whole, "every rate ranks the same texts"
        assert math.isnan(causal.get_ppl(text, condition_mode="after", condition_pos_id=len(ids) - 1))
        last = causal.get_ppl(text, condition_mode="after", condition_pos_id=len(ids) - 2)
        assert float(last) == pytest.approx(nats(causal, ids, len(ids) - 1)[0], rel=1e-4)
        monkeypatch.setattr(llmlingua, "REMEMBERED_RANKS", len(causal._ranks))
        causal.get_ppl("another text here")
        assert len(causal._ranks) == llmlingua.REMEMBERED_RANKS


def test_a_window_goes_on_from_the_cache_of_those_before(causal: Backend) -> None:
    ids = causal.tokenizer("The cat saw the dog, and the dog saw the moon in the tree.")["input_ids"]
    given, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    with torch.inference_mode():
        first, cache = causal._window(given, mask, end=6)
        second, cache = causal._window(given, mask, past_key_values=cache)
    assert cache[0][0].shape[2] == len(ids)
    expected = nats(causal, ids, 1)
    assert first.tolist() == pytest.approx(expected[:5], rel=1e-3)
    assert second.tolist() == pytest.approx(expected[6:], rel=1e-3), "the first of a window is what the window before it ends with"


def test_a_model_without_a_cache_that_can_be_cut_reads_again(causal: Backend) -> None:
    again = CachedCausal(causal.raw_model)
    again._has_columns = False
    ids = torch.tensor([causal.tokenizer("The cat saw the dog and the moon.")["input_ids"]])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        whole = causal.raw_model(ids).logits[0].float()
        first = again(ids[:, :4], mask[:, :4])
        second = again(ids[:, 4:], mask, first.past_key_values)
    assert torch.allclose(torch.cat([first.logits[0], second.logits[0]]), whole, atol=1e-3)
    assert second.past_key_values[0][0].shape == (1, 1, ids.shape[1], 1)


def test_force_tokens_are_the_mean_of_all_words_and_nothing_is_reseeded() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    backend = Backend(kinds.WORDS_FOLDER, Path(STARTER), device="cpu")
    assert torch.equal(torch.rand(1), expected)
    rows = backend.raw_model.get_input_embeddings().weight
    known = len(backend.tokenizer) - 100
    assert rows.shape[0] >= known + 100 and torch.allclose(rows[known : known + 100], rows[:known].mean(0), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in backend.raw_model.parameters())


@pytest.mark.parametrize("can_keep", [True, False])
def test_a_model_is_asked_for_its_last_logits_alone_where_it_can_be(can_keep: bool) -> None:
    asked: list[dict[str, Any]] = []
    reader = llmlingua.CachedCausal.__new__(llmlingua.CachedCausal)
    reader.model = lambda **given: asked.append(given) or SimpleNamespace(logits=torch.arange(10).view(1, 5, 2))
    reader._can_keep, reader._uncached = can_keep, {}
    assert reader.last_logits(torch.zeros(1, 5), 2).tolist() == [[6.0, 7.0], [8.0, 9.0]]
    assert asked[0].keys() - {"input_ids"} == {True: {"logits_to_keep"}, False: set()}[can_keep]
    assert not can_keep or asked[0]["logits_to_keep"] == 2
