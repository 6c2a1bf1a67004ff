"""Choosing tokens for a whole batch: what is drawn, how often, and that neighbours play no part in it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RepetitionPenaltyLogitsProcessor

from studio.engine import sampling
from studio.engine.protocol import Ending, bad_request
from studio.engine.sampling import Sampler
from tests.engines import answer

LOGITS = torch.tensor([2.0, 3.0, -1.0, 2.5])
SURE = 1e-4  # a right sampler fails a chi-square test this seldom; the seeds are fixed


def choose(logits: torch.Tensor, ids: Sequence[int] = (), **values: Any) -> tuple[int, Any]:
    found = sampling.choose([Sampler(answer(ids, **values))], logits[None])[0][0]
    assert found.error is None
    return found.token_id, found.logprobs


def drawn(logits: torch.Tensor, count: int, seed: int = 0, **params: Any) -> np.ndarray:
    """`count` draws at as many places of one answer, in batches."""
    params = {"temperature": 1.0, **params}
    samplers = [Sampler(answer([0] * place, seed=seed, params=params)) for place in range(count)]
    found = [sampling.choose(samplers[at : at + 500], logits.expand(len(samplers[at : at + 500]), -1))[0] for at in range(0, count, 500)]
    return np.array([choice.token_id for batch in found for choice in batch])


def kept(logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """The probabilities that are meant, in float64: of equally likely tokens the first ones stay."""
    wide = logits.double().numpy() / temperature
    weights = np.exp(wide - wide.max())
    order = np.lexsort((np.arange(len(weights)), -logits.numpy()))[: top_k or len(weights)]
    some = weights[order]
    before = some.cumsum() - some
    order = order[before < top_p * some.sum()]
    order = order[weights[order] >= min_p]
    found = np.zeros_like(weights)
    found[order] = weights[order] / weights[order].sum()
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_would_end_the_answer_too_early_is_not_chosen(temperature: float) -> None:
    # red when the end is only ignored: the answer would hold it
    def chosen(written: int, ending: Ending, stop_ids: frozenset[int] = frozenset({1, 3})) -> int:
        sure = torch.tensor([0.0, 300.0, 100.0, 200.0])
        return choose(sure, [0] * written, params={"temperature": temperature}, ending=ending, stop_ids=stop_ids)[0]

    early, whole = Ending(min_tokens=2), Ending(ignore_eos=True, stop_token_ids=frozenset({3}))
    assert (chosen(1, early), chosen(2, early)) == (2, 1)
    assert (chosen(9, whole), chosen(9, whole, frozenset({1}))) == (3, 3)
    assert chosen(0, Ending(min_tokens=1), frozenset({1, 99})) == 3  # of another vocabulary's size


# what is drawn


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"top_k": 12, "top_p": 0.7, "temperature": 1.4},
        {"min_p": 0.05},
        {"min_p": 0.1, "top_p": 0.9, "temperature": 1.4},
    ],
)
def test_draws_follow_the_distribution_and_none_is_outside_the_nucleus(params: dict[str, Any]) -> None:
    logits = 2 * torch.randn(700, generator=torch.Generator().manual_seed(3))
    found = np.bincount(drawn(logits, 2000, **params), minlength=len(logits))
    expected = 2000 * kept(logits, **params)
    assert not found[expected == 0].any()
    likely = expected >= 5
    counts = np.append(found[likely], found[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum())
    counts, wanted = counts[wanted > 0], wanted[wanted > 0]
    assert stats.chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue > SURE


@pytest.mark.parametrize("size", [5, 256, 257, 5000])
@pytest.mark.parametrize("params", [{"top_p": 0.99}, {"top_k": 300, "top_p": 0.95}, {"top_k": 299}, {"top_k": 9999}, {"top_p": 1e-6}])
def test_nearly_equal_and_equal_tokens_are_cut_as_a_full_sort_would(size: int, params: dict[str, Any]) -> None:
    # flat, so that the likeliest 256 do not tell; rounded, so that many are equal
    logits = (torch.randn(size, generator=torch.Generator().manual_seed(4)) * 4).round() / 4
    expected = kept(logits, **params)
    found = drawn(logits, 240, **params)
    assert expected[found].all()
    assert len(set(found.tolist())) > min(int((expected > 0).sum()), 80) / 3


@pytest.mark.parametrize(("size", "top_p", "count"), [(4, 0.5, 2), (4, 0.51, 3), (4, 0.25, 1), (1024, 0.5, 512), (8192, 0.25, 2048)])
def test_equally_likely_tokens_reach_top_p_exactly_and_the_first_of_them_stay(size: int, top_p: float, count: int) -> None:
    found = drawn(torch.zeros(size), 200, top_p=top_p)
    assert found.max() < count and len(set(found.tolist())) >= min(count, 80)


@pytest.mark.parametrize(
    ("top_k", "top_p", "count"),
    [(0, 1.0, 4), (1, 1.0, 1), (2, 1.0, 2), (9, 1.0, 4), (0, 0.5, 1), (0, 0.51, 2), (0, 0.0001, 1), (0, 0.81, 3), (2, 0.6, 1), (2, 0.7, 2),
     (0, 0.99, 4)],
)  # fmt: skip
def test_how_many_tokens_a_nucleus_keeps(top_k: int, top_p: float, count: int) -> None:
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    among = torch.tensor([[top_k or 4]])
    assert int(sampling.kept_tokens(weights, among, top_p * weights[:, : top_k or 4].sum(-1, keepdim=True))) == count


def test_the_edges_of_temperature_and_of_the_vocabulary() -> None:
    likeliest = int(LOGITS.argmax())
    for params in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}, {"temperature": 1e-300}, {"temperature": 1e-300, "top_k": 3}):
        assert set(drawn(LOGITS, 50, **params)) == {likeliest}
    assert set(drawn(LOGITS, 300, temperature=5.0, top_k=10**6)) == {0, 1, 2, 3}
    alone = torch.full((3000,), float("-inf"))
    alone[2999] = -7.0
    for params in ({}, {"top_p": 0.5}, {"top_k": 2999}, {"top_k": 2, "top_p": 0.9}):
        assert set(drawn(alone, 30, **params)) == {2999}


def test_the_largest_and_the_smallest_number_draw_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(1000)
    logits[-1] = logits[0] = float("-inf")
    for params in ({}, {"top_p": 0.999}, {"top_k": 998}):
        for number, place in ((0.0, 1), (1.0, 998)):
            monkeypatch.setattr(Sampler, "uniform", number)
            assert drawn(logits, 1, **params)[0] in (place, 997)  # the cut leaves one of the equals out


# what it depends on


def test_seed_and_place_decide_and_neighbours_do_not() -> None:
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(16, 3000, generator=random) * 3
    logits[::2] += 12 * (torch.rand(8, 3000, generator=random) > 0.999)
    wishes: list[dict[str, Any]] = [
        {"temperature": 0.9}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "top_k": 40}, {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.3}, {"temperature": 0.8, "frequency_penalty": 0.5},
        {"temperature": 0.0, "presence_penalty": 1.0}, {"temperature": 3.0, "top_p": 0.99},
    ]  # fmt: skip
    samplers = [Sampler(answer([5, 5, 7][: row % 4], seed=row, params=wishes[row % 8], prompt_ids=[1, 5, 9])) for row in range(16)]
    together = [choice.token_id for choice in sampling.choose(samplers, logits)[0]]
    assert together == [sampling.choose([samplers[row]], logits[row : row + 1])[0][0].token_id for row in range(16)]
    some = [14, 3, 5, 0, 9]
    assert [choice.token_id for choice in sampling.choose([samplers[row] for row in some], logits[some])[0]] == [together[r] for r in some]
    assert drawn(LOGITS, 99, seed=5).tolist() == drawn(LOGITS, 99, seed=5 + 2**63).tolist() != drawn(LOGITS, 99, seed=6).tolist()


def test_a_step_copies_nothing_but_the_tokens() -> None:
    class Watch(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.reads += func._overloadpacket is torch.ops.aten._local_scalar_dense or func is torch.ops.aten.nonzero.default
            return func(*args, **(kwargs or {}))

    logits = torch.randn(4, 3000, generator=torch.Generator().manual_seed(1)) * 9
    wishes: list[dict[str, Any]] = [{"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0}, {"repetition_penalty": 1.2}, {}]
    with Watch() as watch:
        choices, tokens = sampling.choose([Sampler(answer([3], params=params)) for params in wishes], logits)
    assert watch.reads == 0 and tokens.tolist() == [choice.token_id for choice in choices]


# penalties, grammars, log-probabilities


@pytest.mark.parametrize(
    ("params", "ids", "chosen"),
    [
        ({}, [], 1),
        ({"repetition_penalty": 1.5}, [], 3),  # 3 / 1.5: of the prompt's own token 1
        ({"repetition_penalty": 1.1}, [], 1),
        ({"presence_penalty": 0.6}, [1], 3),
        ({"presence_penalty": 0.6}, [1, 1, 3], 1),  # once, however often
        ({"frequency_penalty": 0.3}, [1], 1),
        ({"frequency_penalty": 0.3}, [1, 1], 3),
        ({"frequency_penalty": -1.0}, [0, 0], 0),
    ],
)
def test_penalties_lower_what_was_said(params: dict[str, Any], ids: list[int], chosen: int) -> None:
    assert choose(LOGITS, ids, params=params) == (chosen, ())
    assert Sampler(answer(ids, params=params)).takes_likeliest is (not params)


def test_the_repetition_penalty_is_transformers_own_and_the_models_logits_stay() -> None:
    logits = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    rows = [[5, 9, 9], [7], [2, 300]]
    before = logits.clone()
    samplers = [
        Sampler(answer([int(logits[n].argmax())], prompt_ids=ids, params={"repetition_penalty": 1.7})) for n, ids in enumerate(rows)
    ]
    found = sampling._changed(samplers, [0, 1, 2], logits.clone(), {})
    expected = [
        RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*ids, *sampler.answer.ids]]), logits[n : n + 1].clone())[0]
        for n, (ids, sampler) in enumerate(zip(rows, samplers, strict=True))
    ]
    assert torch.equal(found, torch.stack(expected))
    sampling.choose(samplers, logits)
    assert torch.equal(logits, before)


def test_a_whole_batch_is_decided_by_the_largest_only_where_nothing_else_is_wanted() -> None:
    for values in ({"params": {"temperature": 0.1}}, {"top_logprobs": 0}, {"params": {"presence_penalty": 0.1}}, {"matcher": object()}):
        assert not Sampler(answer(**values)).takes_likeliest


def grammar(*allowed: int, error: bool = False) -> Any:
    """Stands for a matcher that lets these tokens come next."""

    def bits(size: int) -> np.ndarray:
        if error:
            raise bad_request("It can't go on.", "Change it.")
        return np.packbits([number in allowed for number in range(size)], bitorder="little")

    return SimpleNamespace(bits=bits)


def test_a_grammar_binds_its_own_row_only_and_one_that_cannot_go_on_ends_its_own_answer() -> None:
    logits = torch.tensor([0.0, 9.0, 1.0, 8.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 5.5]).repeat(4, 1)
    wishes = [grammar(2, 9), None, grammar(error=True), grammar(10, 0)]
    for temperature in (0.0, 1e-3):
        samplers = [Sampler(answer(matcher=matcher, params={"temperature": temperature})) for matcher in wishes]
        choices, _ = sampling.choose(samplers, logits)
        assert [choice.token_id for choice in choices if not choice.error] == [9, 1, 10]
        assert "can't go on" in str(choices[2].error)


def test_numbers_that_are_none_end_their_own_answer() -> None:
    logits = LOGITS.repeat(6, 1)
    logits[1, 2], logits[3, 0] = float("nan"), float("inf")
    logits[4] = float("-inf")
    for params in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "frequency_penalty": 1.0}):
        choices, tokens = sampling.choose([Sampler(answer([1], params=params)) for _ in range(6)], logits)
        assert [bool(choice.error) for choice in choices] == [False, True, False, True, True, False]
        assert ((tokens >= 0) & (tokens < 4)).all()


def test_log_probabilities_are_those_of_the_model_with_the_chosen_token_first() -> None:
    wanted = torch.log_softmax(LOGITS, -1).tolist()
    chosen, told = choose(LOGITS, top_logprobs=2, params={"repetition_penalty": 1.5})
    assert chosen == 3 and [number for number, _ in told] == [3, 1, 3]
    assert [value for _, value in told] == pytest.approx([wanted[3], wanted[1], wanted[3]])
    assert [number for number, _ in choose(LOGITS, top_logprobs=9)[1]] == [1, 1, 3, 0, 2]
    assert choose(LOGITS, top_logprobs=0)[1] == [(1, pytest.approx(wanted[1]))]
    mixed = [Sampler(answer(top_logprobs=count)) for count in (None, 1, 3)]
    assert [len(choice.logprobs) for choice in sampling.choose(mixed, LOGITS.repeat(3, 1))[0]] == [0, 2, 4]
