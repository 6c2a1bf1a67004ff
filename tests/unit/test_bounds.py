"""Limits that a person or a program meets: what is just within is taken, one more is refused or cut. The figures are what people are told."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import outcome
from jobs.executor import Exit
from studio.catalogue import models, probing
from studio.catalogue.anatomy import _is_experts, _number
from studio.compress import budget, checks
from studio.db.models import JobRow
from studio.engine import client, failures, sampling
from studio.engine.leases import Lease
from studio.errors import EngineError, ModelError, StudioError
from studio.evaluation import numbers
from studio.evaluation.wording import VerdictWords
from studio.services import Studio, merging, naming
from tests.stores import add

WORDS = VerdictWords()


def test_a_number_of_too_many_digits_equals_none() -> None:
    assert not numbers.equal(Decimal("1E+10001"), Fraction(10**10_001))
    assert numbers.equal(Decimal("1E-10000"), Fraction(1, 10**10_000)) and not numbers.equal(Decimal("1E-10001"), Fraction(1, 10**10_001))
    assert not numbers.equal(None, Decimal(1)) and not numbers.equal(Fraction(1), None) and numbers.equal(Decimal("0.5"), Fraction(1, 2))


def test_a_value_of_more_than_200_characters_is_no_verdict() -> None:
    assert [WORDS.of_value("A".ljust(n)) for n in (200, 201)] == ["a", None]
    assert WORDS.of_value(1) is None


@pytest.mark.parametrize(("tokens", "size"), [(0, 10), (120, 10), (132, 11), (2399, 199), (2400, 200), (99_999, 200)])
def test_a_causal_method_reads_a_twelfth_at_once(tokens: int, size: int) -> None:
    assert budget.iterative_size(tokens) == size


@pytest.mark.parametrize(
    ("refused", "most", "say"),
    [
        (lambda studio, job, n: studio.keys.create("x" * n), 64, "1 to 64 characters"),
        (lambda studio, job, n: studio.jobs.note(job, "x" * n), 10_000, "has 10001 letters"),
        (lambda studio, job, n: studio.jobs.tag(job, ["x" * n]), 40, "can't be a tag"),
        (lambda studio, job, n: studio.jobs.tag(job, [str(number) for number in range(n)]), 20, "at most 20 tags"),
        (lambda studio, job, n: naming.claim("x" * n, lambda name: False), 64, "can't be used"),
        (lambda studio, job, n: checks._compiled("x" * n), 500, "longer than 500 characters"),
    ],
)
def test_what_a_person_gives_has_a_size(studio: Studio, refused: Any, most: int, say: str) -> None:
    [job] = add(studio, JobRow(kind="train", name="job"))
    refused(studio, job, most)
    with pytest.raises(StudioError, match=say):
        refused(studio, job, most + 1)


def test_nothing_is_no_name_and_no_tag(studio: Studio) -> None:
    [job] = add(studio, JobRow(kind="train", name="job"))
    with pytest.raises(StudioError, match="1 to 64"):
        studio.keys.create("  ")
    for tag in (" ", "a\x00"):
        with pytest.raises(StudioError, match="can't be a tag"):
            studio.jobs.tag(job, [tag])
    assert studio.jobs.tag(job, ["b", "a  c", "b"]).tags == ["b", "a c"]
    assert studio.jobs.tag(job, ["d"], remove=["b"]).tags == ["a c", "d"]
    assert studio.jobs.note(job, " x ").notes == "x" and studio.jobs.note(job, "").notes == ""


def test_names_stay_within_64_letters() -> None:
    taken = {"x" * 64, "x" * 62 + "-2"}
    assert naming.unique("x" * 64, taken.__contains__) == "x" * 62 + "-3"
    assert (naming.from_stem("x" * 99), naming.from_stem("a b/c."), naming.from_stem("base"), naming.from_stem("...")) == (
        "x" * 60,
        "a-b-c",
        "my-base",
        "unnamed",
    )
    assert merging._stem([SimpleNamespace(name="a" * 30), SimpleNamespace(name="b" * 30)]) == "a" * 30 + "-" + "b" * 19  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"a": ' + "1" * 40 + "}", True),
        ('{"a": ' + "1" * 41 + "}", False),
        ('{"a": ' + "[" * 49 + "]" * 49 + "}", True),
        ('{"a": ' + "[" * 50 + "]" * 50 + "}", False),
        ("[]", False),
    ],
)
def test_a_description_of_a_model_that_no_computation_takes(tmp_path: Path, text: str, is_taken: bool) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    if is_taken:
        assert models.read_json(file) == json.loads(text)
    else:
        with pytest.raises(ModelError, match=r"config\.json"):
            models.read_json(file)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_description_of_a_model_of_megabytes_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("{" + " " * 3_999_998 + "}")
    assert models.read_json(file) == {}
    file.write_text("{" + " " * 3_999_999 + "}")
    with pytest.raises(ModelError, match="larger than 4,000,000 bytes"):
        models.read_json(file)


def test_masks_and_buffers_are_no_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        ("h.0.attn.bias", "F32", [1, 1, 8, 8]), ("h.0.attn.bias", "F32", [7]), ("h.0.mlp.bias", "F32", [1, 1, 2, 2]),
        ("a.weight", "F32", [2, 3]), ("a.ids", "I64", [9]), ("lm_head.weight", "F32", [100]),
    ]  # fmt: skip
    monkeypatch.setattr(models, "weight_files", lambda folder: [tmp_path])
    monkeypatch.setattr(models, "tensors", lambda file: found)
    assert (models.count_parameters(tmp_path), models.count_parameters(tmp_path, tied=True)) == (117, 17)


def test_a_library_that_is_missing_is_named_in_200_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(values: Any, name: str) -> Any:
        raise ImportError("needs\n" + "y" * 300)

    monkeypatch.setattr(probing, "probe", missing)
    said = probing.asked({}, "one")["error"]["message"]
    assert said == f"one describes a model that needs a library which is not installed: needs {'y' * 194}."


@pytest.mark.parametrize(
    ("shapes", "is_experts", "count"),
    [
        ([(2, 2, 2)], True, 2),
        ([(3, 2, 4)], True, 3),
        ([(1, 2, 2)], False, 1),
        ([(2, 1, 2)], False, 2),
        ([(2, 2)], False, 0),
        ([(5,), (4, 3, 2)], True, 4),
    ],
)
def test_experts_in_one_tensor(shapes: list[tuple[int, ...]], is_experts: bool, count: int) -> None:
    module = torch.nn.Module()
    for number, shape in enumerate(shapes):
        module.register_parameter(f"p{number}", torch.nn.Parameter(torch.zeros(shape)))
    assert (_is_experts(module), _number(module)) == (is_experts, count)


def test_experts_of_two_dimensions_are_known_by_their_name() -> None:
    class TopExperts(torch.nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(shape))

    assert [_is_experts(TopExperts(*shape)) for shape in ((2, 2), (2,))] == [True, False]
    assert not _is_experts(torch.nn.Conv1d(2, 2, 2))


@pytest.mark.parametrize(
    ("top_k", "wanted", "kept"), [(4, 1.1, 4), (2, 1.1, 2), (4, 0.5, 1), (4, 0.51, 2), (4, 0.8, 2), (4, 0.0, 1), (0, 1.0, 1), (1, 1.0, 1)]
)
def test_the_fewest_tokens_that_reach_a_share(top_k: int, wanted: float, kept: int) -> None:
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    assert sampling.kept_tokens(weights, torch.tensor([[top_k]]), torch.tensor([[wanted]], dtype=torch.float64)).tolist() == [[kept]]


class OutOfMemoryError(Exception):
    """As torch's is called."""


@pytest.mark.parametrize(
    ("raised", "status", "code", "said"),
    [
        (ModelError("No.", "Fix."), 400, "model_not_loadable", "No."),
        (MemoryError(), 503, "out_of_memory", "it: there is not enough memory."),
        (MemoryError("for 3 rows"), 503, "out_of_memory", "it: for 3 rows."),
        (OutOfMemoryError("x"), 503, "out_of_memory", "it: there is not enough memory."),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 503, "out_of_memory", "it: there is not enough memory."),
        (RuntimeError("No CUDA GPUs are available"), 500, "gpu_error", "it: "),
        (ValueError("a\n" + "b" * 400), 500, "engine_error", f"it: ValueError: a {'b' * 298}."),
    ],
)
def test_a_failure_of_the_engine_as_its_clients_see_it(raised: Exception, status: int, code: str, said: str) -> None:
    found = failures.as_engine_error(raised, "it")
    assert (found.status, found.code) == (status, code) and found.message.startswith(said) and found.fix
    assert failures.as_engine_error(found, "again") is found


def test_ends_of_an_engine_as_its_clients_see_them() -> None:
    lease = Lease("job", 1, 2, 3.0)
    found = [failures.stopping(), failures.unloaded(), failures.ended(1), failures.ended(-9), failures.yielded(lease, "why")]
    assert [(one.status, one.code) for one in found] == [
        (503, "engine_stopping"), (503, "engine_unloaded"), (502, "engine_gone"), (502, "engine_gone"), (503, "engine_yielded"),
    ]  # fmt: skip
    assert "(exit 1)" in found[2].message and "(signal 9)" in found[3].message and "(exit None)" in failures.ended(None).message
    assert found[4].details["job"] == "job" and found[4].details["retry_after"] == 60
    assert (client._unreachable("u", ValueError()).status, client._gone("u").status) == (503, 502)


@pytest.mark.parametrize(
    ("status", "word"),
    [(301, "address"), (302, "address"), (400, "Change the request"), (422, "Change the request"), (401, "key"), (403, "may do"),
     (404, "name"), (429, "little"), (500, "log"), (503, "log")],
)  # fmt: skip
def test_what_helps_where_a_server_says_no_more_than_its_status(status: int, word: str) -> None:
    found = client._from_body(None, status)
    assert word in found.fix and found.message == f"The server answered with status {status}." and found.code == "engine_error"


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ({"error": {"message": "a", "code": 7}}, "a", "7"),
        ({"error": "a"}, "a", "engine_error"),
        ({"detail": "a"}, "a", "engine_error"),
        ({"message": "a", "code": "c"}, "a", "c"),
        ({"error": {"message": "a Do.", "fix": "Do.", "job": "j"}}, "a", "engine_error"),
        ([], "The server answered with status 500.", "engine_error"),
    ],
)
def test_errors_of_other_servers(body: Any, message: str, code: str) -> None:
    found = client._from_body(body, 500)
    assert (found.message, found.code) == (message, code)
    assert ("job" in found.details) is ("fix" in str(body))


@pytest.mark.parametrize(
    ("status", "text", "is_loading"), [(503, "Loading model", True), (500, "Loading model", False), (503, "Full", False)]
)
def test_a_server_that_still_loads_its_model(status: int, text: str, is_loading: bool) -> None:
    assert client._is_loading(EngineError(text, "", status=status, code="")) is is_loading


def test_the_last_words_of_a_trainer_are_cut(tmp_path: Path) -> None:
    attempt: Any = SimpleNamespace(log=tmp_path / "log", result=tmp_path / "result.json")
    attempt.log.write_text("first\n" + "z" * 400 + "\n")
    assert outcome.judge(Exit(3), attempt, False).reason == f"The trainer ended with exit code 3: {'z' * 300}"
