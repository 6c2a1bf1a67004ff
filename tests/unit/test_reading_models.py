"""What small models read: summed log-probabilities and features of texts, batch by batch; and options of jobs as forms see them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from jobs import config
from studio.datasets.rendering import Rendered
from studio.engine import adapting
from studio.evaluation import features, likelihood, mauve
from studio.records import CompressionWinner, Winner
from studio.services import compression


class Tiny:
    """A causal model over ten tokens: the next token is as likely as its number says, the more so the later it comes."""

    device = "cpu"
    config = SimpleNamespace(max_position_embeddings=6)

    def __init__(self) -> None:
        self.rows: list[list[list[int]]] = []

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        assert use_cache is False and (attention_mask.cumsum(1)[:, -1] == attention_mask.sum(1)).all()
        self.rows.append([ids[:length].tolist() for ids, length in zip(input_ids, attention_mask.sum(1), strict=True)])
        places = torch.arange(input_ids.shape[1]).float() + 1
        logits = places[None, :, None] * torch.arange(10.0)[None, None, :] / 10 + 0 * input_ids[..., None]
        states = torch.stack([input_ids.float(), attention_mask.cumsum(1).float()], dim=-1)
        return SimpleNamespace(logits=logits, last_hidden_state=states)

    base_model = property(lambda self: self)


def rendered(ids: list[int], learned: list[bool]) -> Rendered:
    made = Rendered.__new__(Rendered)
    object.__setattr__(made, "ids", ids)
    object.__setattr__(made, "learned", learned)
    return made


def log_probability(token: int, place: int) -> float:
    scores = [place * n / 10 for n in range(10)]
    return scores[token] - math.log(sum(map(math.exp, scores)))


def test_log_probabilities_are_summed_over_what_is_learned() -> None:
    rows = [rendered([1, 2, 3, 4], [False, False, True, True]), rendered([5, 6], [False, True]), rendered([7, 8, 9], [True, False, False])]
    found = likelihood._score(Tiny(), rows)
    wanted = [log_probability(3, 2) + log_probability(4, 3), log_probability(6, 1), 0.0]
    assert [one["logprob"] for one in found] == pytest.approx(wanted, abs=1e-5)
    assert [(one["tokens"], one["prompt_tokens"]) for one in found] == [(2, 4), (1, 2), (1, 3)]
    assert len({one["seconds"] for one in found}) == 1 and found[0]["seconds"] >= 0


@pytest.mark.parametrize(
    ("learned", "last"),
    [("001101100", "000001100"), ("0110", "0110"), ("0000", "0000"), ("111", "111"), ("1", "1"), ("10", "10"), ("101", "001"), ("", "")],
)
def test_only_the_last_answer_counts(learned: str, last: str) -> None:
    row = Rendered(
        **{**dict.fromkeys(Rendered.__dataclass_fields__), "ids": [0] * len(learned), "learned": [bit == "1" for bit in learned]}
    )  # type: ignore[arg-type]
    assert "".join(str(int(bit)) for bit in likelihood._last_only(row).learned) == last


def test_batches_hold_4096_tokens_with_their_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert likelihood.batches([2048, 2048, 1]) == [[2], [0, 1]] or likelihood.batches([2048, 2048, 1]) == [[2, 0], [1]]
    assert (
        likelihood.batches([4096, 4096]) == [[0], [1]]
        and likelihood.batches([2048, 2048]) == [[0, 1]]
        and likelihood.batches([2049, 2049]) == [[0], [1]]
    )
    assert likelihood.batches([9999]) == [[0]] and likelihood.batches([]) == []
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 6)
    assert likelihood.batches([3, 1, 2, 9, 2]) == [[1, 2, 4], [0], [3]]


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_texts_are_read_with_the_adapter_in_place_and_without_dropout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: str | None
) -> None:
    base, adapted = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    monkeypatch.setattr(likelihood.text_models, "config_of", lambda folder, rope: None)
    monkeypatch.setattr(likelihood.text_models, "load", lambda folder, *, config, dtype: (base.to(dtype), None))
    monkeypatch.setattr(adapting, "attach", lambda reference, model, *_: ({("adapter", base): adapted}[reference.name, model], None))
    found = likelihood.load_model(tmp_path, adapter and tmp_path / adapter)
    assert found is {None: base, "adapter": adapted}[adapter] and not found.training


def test_perplexity_is_of_all_learned_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    examples = [rendered([1, 2, 3], [False, True, True]), rendered([4, 5], [False, True])]
    renderer = SimpleNamespace(example=lambda example: examples[int(example.messages[0].content)])
    loaded: list[Any] = []
    monkeypatch.setattr(likelihood, "read_folders", lambda studio: (SimpleNamespace(path=tmp_path), studio["adapter"], studio["template"]))
    monkeypatch.setattr(likelihood.Renderer, "load", lambda path, template: loaded.append(template) or renderer)
    monkeypatch.setattr(likelihood, "load_model", lambda base, adapter: loaded.append(adapter) or Tiny())
    steps: list[float] = []

    def scores(count: int, **studio: Any) -> dict[str, Any]:
        conversations = [[{"role": "user", "content": str(n)}] for n in range(count)]
        return likelihood.scores(
            {"studio": {"adapter": None, "template": "", **studio}, "conversations": conversations}, lambda what, part: steps.append(part)
        )

    found = scores(2)
    sums = [log_probability(2, 1) + log_probability(3, 2), log_probability(5, 1)]
    assert [one["logprob"] for one in found["scores"]] == pytest.approx(sums, abs=1e-5) and steps[-1] == 1.0
    assert found["perplexity"] == pytest.approx(math.exp(-sum(sums) / 3), abs=1e-5) and (found["tokens"], found["rows"]) == (3, 2)
    examples[1] = rendered([4, 5], [False, False])
    examples[0] = rendered([4, 5], [False, False])
    assert scores(2)["perplexity"] is None
    adapter = SimpleNamespace(path=tmp_path)
    scores(1, adapter=adapter)
    (tmp_path / "chat_template.jinja").write_text("x")
    scores(1, adapter=adapter)
    scores(1, adapter=adapter, template="named")
    assert loaded[-6:] == ["", tmp_path, str(tmp_path / "chat_template.jinja"), tmp_path, "named", tmp_path]


def test_a_feature_is_the_state_of_the_last_token() -> None:
    found = features._last_states(Tiny(), [[1, 2, 3], [4], [5, 6]])
    assert found.tolist() == [[3.0, 3.0], [4.0, 1.0], [6.0, 2.0]] and found.dtype == np.float64


@pytest.mark.parametrize(("answers", "is_measured"), [(100, True), (99, False)])
def test_features_are_read_where_there_are_enough_texts(monkeypatch: pytest.MonkeyPatch, answers: int, is_measured: bool) -> None:
    model, seen = Tiny(), []  # type: ignore[var-annotated]
    tokenizer = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[int(letter) for letter in text]))
    monkeypatch.setattr(features, "load_vocabulary", lambda base: SimpleNamespace(tokenizer=tokenizer))
    monkeypatch.setattr(features, "load_model", lambda base, adapter: model)
    monkeypatch.setattr(mauve, "of_features", lambda p, q: seen.append((p.shape, q.shape)) or 0.5)
    texts = [f"{n:03}" for n in range(answers - 1)] + ["1234567", ""]
    groups = {"x": {"texts": texts, "references": [f"9{n:03}" for n in range(100)]}, "few": {"texts": ["1"], "references": [""]}}
    found = features.work({"base": "/b", "groups": groups}, lambda *_: None)
    limit = 6 if is_measured else 1024
    assert {name: found["x"][name] for name in ("answers", "references", "empty", "cut", "max_tokens", "clusters")} == {
        "answers": answers, "references": 100, "empty": 1, "cut": int(is_measured), "max_tokens": limit, "clusters": round(answers / 10),
    }  # fmt: skip
    assert (found["x"]["mauve"], bool(found["x"]["reason"])) == ((0.5, False) if is_measured else (None, True))
    assert (found["few"]["mauve"], found["few"]["answers"], found["few"]["references"], found["few"]["empty"]) == (None, 1, 0, 1)
    assert seen == [((answers, 2), (100, 2))] * is_measured and max((len(ids) for batch in model.rows for ids in batch), default=6) == 6
    assert "needs 100 texts on either side; there are 1 answers and 0 references" in found["few"]["reason"]


# compressing


@pytest.mark.parametrize(
    ("score", "winner"), [(None, None), (0.0, "compressed"), (0.25, "compressed"), (0.5, "tie"), (0.75, "original"), (1.0, "original")]
)
def test_who_is_preferred(score: float | None, winner: str | None) -> None:
    assert compression._preferred(score) == (winner and CompressionWinner(winner))
    agreed = [
        compression._agree([Winner(one) for one in said])
        for said in ((), ("a", "b"), ("a", "a"), ("tie", "tie"), ("invalid", "a"), ("tie", "a"))
    ]
    assert agreed == [True, True, False, True, None, False]


# options


@pytest.mark.parametrize(
    ("steps", "options", "cadence"),
    [
        (100, {}, (10, 10)),
        (101, {}, (11, 11)),
        (1, {}, (1, 1)),
        (0, {}, (1, 1)),
        (100, {"save_steps": 7}, (7, 10)),
        (100, {"eval_steps": 3}, (10, 3)),
    ],
)
def test_about_ten_checkpoints_and_evaluations(steps: int, options: dict[str, Any], cadence: tuple[int, int]) -> None:
    assert config.build(options).cadence(steps) == cadence


def test_a_wrong_option_stays_at_its_default_unless_all_others_depend_on_it() -> None:
    built, problem = config.read({"lora.r": 0, "learning_rate": 1e-5, "lora": 3, "seed": 5})
    assert built is not None and (built.learning_rate, built.seed, built.lora.r) == (1e-5, 5, config.build().lora.r) and problem is not None
    for decisive in ({"objective": "magic"}, {"method": "magic"}):
        built, problem = config.read({**decisive, "seed": 5})
        assert built is None and problem is not None
    assert config.read({})[1] is None
    _, problem = config.read({"learning_rate": -1.0, "nothing_like_it_at_all": 1})
    said = problem.details["problems"] if problem else []
    assert any("is usual)" in one for one in said) and "nothing_like_it_at_all is no option" in said


def test_options_as_a_form_sees_them() -> None:
    known = {option.key: option for option in config.options()}
    rank, targets, losses, kept = known["lora.r"], known["lora.target_modules"], known["dpo.loss_type"], known["lora.modules_to_save"]
    assert (rank.type, rank.minimum, rank.nullable, rank.takes_list, rank.lists_only) == (int, 1, False, False, False) and rank.section
    assert (targets.takes_list, targets.lists_only, targets.type) == (True, False, str)
    assert losses.lists_only and "sigmoid" in losses.choices and (kept.nullable, kept.lists_only) == (True, True)
    assert known["learning_rate"].minimum == 0 and known["packing"].type is bool and config._words("lora.use_dora") == "Use dora"
    assert "objective" in known and known["seed"].section == ""
