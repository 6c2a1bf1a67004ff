"""What a model says of given texts: echoed prompts with their log-probabilities, and vectors; over real models, without a server."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from studio.engine import intake, reading, tokenizing
from studio.engine.bodies import parse_completion
from studio.engine.local import LocalModel
from studio.engine.protocol import Event
from studio.engine.reading_bodies import parse_embedding
from studio.engine.replies import Reply
from studio.engine.scheduler import Scheduler
from studio.errors import EngineError
from tests.engines import make_adapter, studio_field

TEXT = "Once upon a time, there was a little girl named Lily. She sold blue trucks in the park."


@pytest.fixture(scope="module")
def base(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapters") / "moved", 4)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler()
    made.start()
    yield made
    made.close()


def replied(scheduler: Scheduler, request: Any) -> dict[str, Any]:
    """The whole answer to a parsed request. Raises its error."""
    reply, ended, errors = Reply(request), threading.Event(), []

    def take(event: Event) -> None:
        if event.error:
            errors.append(event.error)
        else:
            reply.take(event)
        if errors or reply.is_complete:
            ended.set()

    scheduler.submit(intake.prepare(request, take))
    assert ended.wait(300)
    if errors:
        raise errors[0]
    return dict(reply.body())


def echoed(scheduler: Scheduler, base: Path, adapter: Path | None = None, **fields: Any) -> dict[str, Any]:
    asked = {"studio": studio_field(base, adapter), "temperature": 0, "logprobs": 1, "max_tokens": 1, "echo": True, **fields}
    return replied(scheduler, parse_completion(asked))


def ids_of(base: Path, text: str = TEXT) -> list[int]:
    return tokenizing.tokenize({"studio": studio_field(base), "prompt": text})["tokens"]


def expected_of(model: Any, ids: list[int]) -> list[list[float]]:
    """Per token from the second on: its log-probability and the largest one."""
    with torch.no_grad():
        values = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return [[float(values[place, token]), float(values[place].max())] for place, token in enumerate(ids[1:])]


@pytest.mark.parametrize("adapted", [False, True])
def test_an_echo_has_the_probabilities_that_transformers_gives(
    scheduler: Scheduler, base: Path, adapter: Path, adapted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # red when a piece begins a token late, when the adapter is left out, or when all scores are held at once
    monkeypatch.setattr(reading, "MOST", reading.LEAST)
    held: list[int] = []
    usual = LocalModel.forward

    def forward(self: LocalModel, *given: Any, **more: Any) -> Any:
        logits = usual(self, *given, **more)
        held.append(logits.shape[1])
        return logits

    monkeypatch.setattr(LocalModel, "forward", forward)
    ids = ids_of(base)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapted:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    (choice,) = echoed(scheduler, base, adapter if adapted else None, prompt=ids)["choices"]
    found = choice["logprobs"]
    assert max(held) <= reading.LEAST < len(ids)
    assert len(found["tokens"]) == len(ids) + 1 and (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    pairs = [[own, max(top.values())] for own, top in zip(found["token_logprobs"][1:-1], found["top_logprobs"][1:-1], strict=True)]
    assert pairs == pytest.approx(np.array(expected_of(model, ids)), abs=1e-4)
    # whether a token was the likeliest is told by equality, as lm-eval does
    assert any(own == most for own, most in pairs) and any(own < most for own, most in pairs)


def test_an_echo_alone_writes_nothing_and_one_with_an_answer_goes_on_from_what_was_read(scheduler: Scheduler, base: Path) -> None:
    alone = echoed(scheduler, base, prompt=TEXT, max_tokens=0)
    (choice,) = alone["choices"]
    assert (choice["text"], choice["finish_reason"], alone["usage"]["completion_tokens"]) == (TEXT, "length", 0)
    assert len(choice["logprobs"]["tokens"]) == alone["usage"]["prompt_tokens"] == len(ids_of(base))
    (longer,) = echoed(scheduler, base, prompt=TEXT, max_tokens=8)["choices"]
    (plain,) = echoed(scheduler, base, prompt=TEXT, max_tokens=8, echo=False)["choices"]
    assert longer["text"] == TEXT + plain["text"] and longer["studio"]["reused_tokens"] == len(ids_of(base)) - 1
    assert longer["logprobs"]["token_logprobs"][-8:] == pytest.approx(plain["logprobs"]["token_logprobs"], abs=1e-4)
    (silent,) = echoed(scheduler, base, prompt=TEXT, max_tokens=8, logprobs=None)["choices"]
    assert (silent["text"], silent["logprobs"]) == (longer["text"], None)
    with pytest.raises(EngineError, match="asks for nothing"):
        echoed(scheduler, base, prompt=TEXT, max_tokens=0, echo=False)


def test_the_token_that_ends_an_echo_is_counted(scheduler: Scheduler, base: Path) -> None:
    # red when lm-eval, which drops the last entry, would drop one of the continuation
    every = list(range(512))
    (choice,) = echoed(scheduler, base, prompt=TEXT, max_tokens=1, stop_token_ids=every)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "stop")
    assert len(choice["logprobs"]["tokens"]) == len(ids_of(base)) + 1


def test_prompts_of_one_request_are_echoed_each(scheduler: Scheduler, base: Path) -> None:
    done = echoed(scheduler, base, prompt=[TEXT, "A dog", ids_of(base, "A cat")[:3]][:2], n=2, max_tokens=2)
    assert [choice["text"].startswith(start) for choice, start in zip(done["choices"], [TEXT, TEXT, "A dog", "A dog"], strict=True)] == [
        True
    ] * 4


def embedded(scheduler: Scheduler, base: Path, adapter: Path | None = None, **fields: Any) -> dict[str, Any]:
    return replied(scheduler, parse_embedding({"studio": studio_field(base, adapter), **fields}))


def test_vectors_are_the_mean_of_the_last_hidden_states(
    scheduler: Scheduler, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # red when padding counts, when the order is that of the passes, or when the adapter is left out
    monkeypatch.setattr(reading, "PASS_TOKENS", 64)
    texts = ["A dog", TEXT, "The sun is warm today", "x"]
    for chosen in (None, adapter):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if chosen:
            model = peft.PeftModel.from_pretrained(model, chosen).eval().get_base_model()
        answer = embedded(scheduler, base, chosen, input=texts)
        assert answer["studio"]["pooling"] == "mean of the last hidden states" and answer["studio"]["normalized"]
        for number, text in enumerate(texts):
            with torch.no_grad():
                mean = model.model(torch.tensor([ids_of(base, text)])).last_hidden_state[0].mean(0)
            assert answer["data"][number]["index"] == number
            assert answer["data"][number]["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(len(ids_of(base, text)) for text in texts)


def test_vectors_come_as_numbers_or_as_base64_of_the_same(scheduler: Scheduler, base: Path) -> None:
    (plain,) = embedded(scheduler, base, input=TEXT)["data"]
    (packed,) = embedded(scheduler, base, input=[ids_of(base)], encoding_format="base64")["data"]
    assert np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").tolist() == pytest.approx(plain["embedding"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": TEXT, "dimensions": 8}, "dimensions"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1, 99999]]}, "input"),
        ({"input": "dog " * 1000}, "input"),
        ({"input": TEXT, "encoding_format": "hex"}, "encoding_format"),
        ({"input": TEXT, "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ],
)
def test_what_would_be_another_vector_is_refused_by_name(scheduler: Scheduler, base: Path, fields: Any, param: str) -> None:
    with pytest.raises(EngineError) as refused:
        embedded(scheduler, base, **fields)
    assert (refused.value.status, refused.value.details["param"]) == (400, param)


def test_tokens_of_texts_and_conversations_in_vllms_shape(base: Path) -> None:
    studio = studio_field(base)
    found = tokenizing.tokenize({"studio": studio, "prompt": "A dog", "return_token_strs": True})
    bare = tokenizing.tokenize({"studio": studio, "prompt": "A dog", "add_special_tokens": False})
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"] or ()) and found["max_model_len"] == 512
    assert found["tokens"][1:] == bare["tokens"] and bare["token_strs"] is None
    assert tokenizing.detokenize({"studio": studio, "tokens": bare["tokens"]})["prompt"].strip() == "A dog"
    talk = [{"role": "user", "content": "Hi"}]
    opened = tokenizing.tokenize({"studio": studio, "messages": talk})
    closed = tokenizing.tokenize({"studio": studio, "messages": talk, "add_generation_prompt": False})
    assert closed["count"] < opened["count"] and opened["tokens"][: closed["count"] - 1] == closed["tokens"][:-1]
    assert opened["tokens"] == tokenizing.preview({"studio": studio, "messages": talk})["ids"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, "chat_template"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages.0.role"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_what_has_no_tokens_is_refused_by_name(base: Path, fields: Any, param: str) -> None:
    with pytest.raises(EngineError) as refused:
        tokenizing.tokenize({"studio": studio_field(base), **fields})
    assert (refused.value.status, refused.value.details["param"]) == (400, param)
    with pytest.raises(EngineError, match="token id"):
        tokenizing.detokenize({"studio": studio_field(base), "tokens": [-1]})


@pytest.mark.parametrize("family", ["lfm2", "gpt2"])
def test_models_that_keep_states_or_other_caches_are_echoed_too(
    scheduler: Scheduler, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.catalogue import text_models
    from tests import families

    monkeypatch.setattr(reading, "MOST", reading.LEAST)
    folder = families.build(family, tmp_path / family)
    model = text_models.load(folder, dtype=torch.float32)[0].eval()
    ids = [number * 7 % 90 + 3 for number in range(40)]
    (choice,) = echoed(scheduler, folder, prompt=ids, max_tokens=0)["choices"]
    expected = [own for own, _ in expected_of(model, ids)]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    (vector,) = embedded(scheduler, folder, input=[ids])["data"]
    with torch.no_grad():
        mean = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert vector["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-4)
