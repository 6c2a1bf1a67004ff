"""The engine as programs meet it: the real `openai` client against a real process, on a small model."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import trl

from studio.settings import STATIC
from tests.engines import KEY, RunningEngine, copy_model, engine, make_adapter, studio_field

PROMPT = "Once upon a time, there was a"
MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"enum": ["a", "b", "tie"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 10},
        "why": {"type": "string", "maxLength": 12},
    },
    "required": ["winner", "score", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(base, folder / f"plain.{seed}", seed) for seed in (1, 2)] + [make_adapter(base, folder / "dora", 3, use_dora=True)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with engine(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def client(running: RunningEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0, timeout=120) as made:
        yield made


def complete(client: openai.OpenAI, base: Path, adapter: Path | None = None, prompt: str = PROMPT, **options: Any) -> Any:
    chosen = {"temperature": 0, "max_tokens": 24, **options}
    return client.completions.create(model="m", prompt=prompt, extra_body={"studio": studio_field(base, adapter)}, **chosen)


def text_of(client: openai.OpenAI, base: Path, adapter: Path | None = None, **options: Any) -> str:
    return str(complete(client, base, adapter, **options).choices[0].text)


def status(running: RunningEngine) -> dict[str, Any]:
    return dict(httpx.get(running.url + "/engine/status", headers={"Authorization": f"Bearer {KEY}"}, timeout=120).json())


def until_idle(running: RunningEngine, limit_s: float) -> float:
    started = time.monotonic()
    while (now := status(running))["active"] or now["waiting"]:
        assert time.monotonic() - started < limit_s, now
        time.sleep(0.02)
    return time.monotonic() - started


def test_an_idle_engine_holds_no_torch(running: RunningEngine) -> None:
    assert status(running) == {"loaded": None, "loading": None, "active": 0, "waiting": 0, "yielded": None}
    assert not any("libtorch" in mapped.path for mapped in psutil.Process(running.process.pid).memory_maps())


def test_an_empty_prompt_gives_the_published_story(client: openai.OpenAI, base: Path) -> None:
    published = (base / "published_greedy_output.txt").read_text().rstrip("\n")
    done = complete(client, base, prompt="", max_tokens=256)
    assert done.choices[0].text == published
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.choices[0].finish_reason) == (1, 256, "length")
    assert text_of(client, base, prompt="", max_tokens=255) == published[:-1]  # its last token is the full stop


@pytest.mark.parametrize("adapted", [False, True])
def test_drafts_give_the_very_same_story(client: openai.OpenAI, base: Path, adapters: list[Path], adapted: bool) -> None:
    published = (base / "published_greedy_output.txt").read_text().rstrip("\n")
    adapter, tokens = (adapters[0], 80) if adapted else (None, 256)
    expected = text_of(client, base, adapter, prompt="", max_tokens=tokens)
    field = {**studio_field(base, adapter), "assistant": {"name": "itself", "path": str(base)}}
    for draft in ("prompt_lookup", "assistant"):
        body = {"speculation": draft, "studio": field}
        done = client.completions.create(model="m", prompt="", temperature=0, max_tokens=tokens, extra_body=body)
        assert done.choices[0].text == expected and (adapted or expected == published)
        assert done.choices[0].studio["speculation"]["tokens_per_pass"] >= 1  # type: ignore[attr-defined]


def test_an_assistant_of_another_vocabulary_is_refused(client: openai.OpenAI, base: Path) -> None:
    field = {**studio_field(base), "assistant": {"name": "starter", "path": str(STATIC / "starter")}}
    with pytest.raises(openai.BadRequestError, match="another vocabulary"):
        client.completions.create(model="m", prompt="x", temperature=0, extra_body={"speculation": "assistant", "studio": field})


def test_a_regular_expression_and_penalties_shape_the_answer(client: openai.OpenAI, base: Path) -> None:
    body = {"studio": studio_field(base), "regex": "[a-c]{3}-[0-9]"}
    assert re.fullmatch("[a-c]{3}-[0-9]", client.completions.create(model="m", prompt=PROMPT, extra_body=body).choices[0].text)
    plain = complete(client, base, max_tokens=60).choices[0].text
    bent = complete(client, base, max_tokens=60, presence_penalty=2, frequency_penalty=2).choices[0].text
    assert len(set(bent.split())) / len(bent.split()) > len(set(plain.split())) / len(plain.split())


def test_a_bounded_schema_needs_no_limit_of_its_own(client: openai.OpenAI, base: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True}}
    more: Any = {"n": 8, "temperature": 2, "response_format": form, "extra_body": {"studio": studio_field(base)}}
    answer = client.chat.completions.create(model="m", messages=MESSAGES, **more)
    assert all(json.loads(choice.message.content)["winner"] in ("a", "b", "tie") for choice in answer.choices)


def test_the_engine_leaves_a_training_what_it_was_promised(client: openai.OpenAI, running: RunningEngine, base: Path) -> None:
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as engine_client:
        engine_client.post("/engine/unload", json={"job": "night", "keep_bytes": 10**15}).raise_for_status()
        with pytest.raises(openai.InternalServerError, match="night until that job ends") as refused:
            complete(client, base)
        assert refused.value.code == "engine_yielded" and status(running)["yielded"]["job"] == "night"
        engine_client.post("/engine/resume", json={"job": "night"}).raise_for_status()
    assert text_of(client, base)


def test_streaming_gives_the_same_text_and_its_usage(client: openai.OpenAI, base: Path) -> None:
    whole = client.chat.completions.create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=24, extra_body={"studio": studio_field(base)}
    )
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"studio": studio_field(base)},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 10  # not in one piece at the end
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_base_and_adapters_answer_together_as_they_do_alone(client: openai.OpenAI, base: Path, adapters: list[Path]) -> None:
    contestants = [None, *adapters, None, adapters[0]]
    alone = [text_of(client, base, adapter) for adapter in contestants]
    with ThreadPoolExecutor(len(contestants)) as pool:
        together = list(pool.map(lambda adapter: text_of(client, base, adapter), contestants))
    assert together == alone
    assert len(set(alone)) == 4  # base, two LoRA and a DoRA: each speaks its own way, the base as if there were none


@pytest.mark.parametrize(
    ("family", "targets", "is_mixed"),
    [("opt", ["fc1", "q_proj"], True), ("mixtral", "all-linear", False), ("lfm2", ["q_proj"], False)],
)
@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match any targeted module.*:RuntimeWarning")
def test_one_message_to_base_and_adapters_of_models_whose_rows_are_hard_to_mix(
    client: openai.OpenAI, tmp_path: Path, family: str, targets: Any, is_mixed: bool
) -> None:
    # red when a model that flattens its batch, has wrapped experts or keeps states answers wrong, fails, or does not say how it answered
    import peft
    import torch

    from studio.catalogue import text_models
    from tests import families

    folder = families.build(family, tmp_path / family)
    for seed in (1, 2):
        model = text_models.load(folder, dtype=torch.float32)[0]
        made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (weight for weight in made.parameters() if weight.requires_grad):
                weight.add_(torch.randn(weight.shape, generator=random) * 0.2)
        made.save_pretrained(tmp_path / f"a{seed}")
    contestants = [None, tmp_path / "a1", tmp_path / "a2"]
    alone = [text_of(client, folder, adapter) for adapter in contestants]
    with ThreadPoolExecutor(len(contestants)) as pool:
        together = list(pool.map(lambda adapter: complete(client, folder, adapter), contestants))
    assert [answer.choices[0].text for answer in together] == alone and len(set(alone)) == 3
    notes = [answer.choices[0].model_extra["studio"]["notes"] for answer in together]
    assert [any("in a pass of its own" in note for note in said) for said in notes[1:]] == [not is_mixed] * 2


def test_an_adapter_made_anew_is_loaded_anew(client: openai.OpenAI, base: Path, adapters: list[Path], tmp_path: Path) -> None:
    adapter = shutil.copytree(adapters[0], tmp_path / "changing")
    before = text_of(client, base, adapter)
    shutil.copytree(adapters[1], adapter, dirs_exist_ok=True)
    assert (before, text_of(client, base, adapter)) == (text_of(client, base, adapters[0]), text_of(client, base, adapters[1]))


def test_an_adapter_brings_its_own_chat_template(client: openai.OpenAI, base: Path, adapters: list[Path], tmp_path: Path) -> None:
    adapter = shutil.copytree(adapters[0], tmp_path / "templated")
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    def tokens(chosen: Path) -> int:
        answer = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=1, extra_body={"studio": studio_field(base, chosen)}
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert tokens(adapter) < tokens(adapters[0])


def test_stop_texts_end_the_answer_and_are_left_out(client: openai.OpenAI, base: Path) -> None:
    whole = text_of(client, base)
    stopped = complete(client, base, stop=["named Li", "never"]).choices[0]
    assert " named Li" in whole
    assert stopped.text == whole[: whole.index("named Li")]
    assert stopped.finish_reason == "stop"


def test_a_seed_gives_the_same_sample_alone_and_in_company(client: openai.OpenAI, base: Path) -> None:
    first = text_of(client, base, temperature=1, seed=7)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(text_of, client, base, temperature=1, seed=seed) for seed in (1, 2, 3)]
        again = text_of(client, base, temperature=1, seed=7)
    assert again == first
    assert len({first, *(other.result() for other in others)}) == 4


def test_several_answers_and_their_logprobs(client: openai.OpenAI, base: Path) -> None:
    done = complete(client, base, n=3, logprobs=2, max_tokens=5, temperature=1, seed=1)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens == 15
    assert all("".join(choice.logprobs.tokens) == choice.text for choice in done.choices)
    chat = client.chat.completions.create(
        model="m", messages=MESSAGES, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2, extra_body={"studio": studio_field(base)}
    )
    entries = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert entries and len(entries) == 5
    for entry in entries:  # greedy: the chosen token is the likeliest, and log-probabilities are none above 0
        assert entry.top_logprobs[0].token == entry.token and 0 >= entry.logprob >= entry.top_logprobs[1].logprob


def test_a_model_that_never_saw_json_keeps_to_the_schema(client: openai.OpenAI, base: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        answer = client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            seed=seed,
            max_tokens=120,
            response_format=form,
            extra_body={"studio": studio_field(base)},  # type: ignore[call-overload]
        )
        verdict = json.loads(answer.choices[0].message.content)
        assert verdict["winner"] in ("a", "b", "tie") and 1 <= verdict["score"] <= 10 and len(verdict["why"]) <= 12
        assert answer.choices[0].finish_reason == "stop"


def test_a_gbnf_grammar_is_kept_and_a_bad_one_is_refused_with_its_line(client: openai.OpenAI, base: Path) -> None:
    def ask(grammar: str) -> Any:
        body = {"studio": studio_field(base), "grammar": grammar}
        return client.completions.create(model="m", prompt=PROMPT, max_tokens=20, extra_body=body)

    assert ask('root ::= "yes" | "no"').choices[0].text in ("yes", "no")
    with pytest.raises(openai.BadRequestError, match=r"line 2.*foo") as refused:
        ask('root ::= "a" bar\nbar ::= foo')
    assert refused.value.code == "invalid_grammar"


def test_where_an_answer_may_end_is_kept_to(client: openai.OpenAI, base: Path) -> None:
    # red when one of these fields is read and not obeyed
    def ask(**fields: Any) -> Any:
        body = {"studio": studio_field(base), **fields}
        return client.completions.create(model="m", prompt=PROMPT, max_tokens=24, temperature=0, logprobs=0, extra_body=body).choices[0]

    plain = ask()
    first = plain.logprobs.tokens[3]
    stopped = ask(stop=[first])
    assert stopped.finish_reason == "stop" and len(stopped.logprobs.tokens) <= 4
    held = ask(stop=[first], min_tokens=8)
    assert len(held.logprobs.tokens) >= 8 and held.text.startswith(plain.text[: len(stopped.text) + 1])
    vocabulary = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    every = [number for _, number in vocabulary] if isinstance(vocabulary, list) else list(vocabulary.values())
    ended = ask(stop_token_ids=list(range(min(len(every), 1024))))
    assert (ended.text, ended.finish_reason) == ("", "stop")
    assert ask(guided_choice=["north", "south"]).text in ("north", "south")


def test_a_prompt_too_long_is_refused_with_both_counts(client: openai.OpenAI, base: Path) -> None:
    with pytest.raises(openai.BadRequestError, match=r"512 tokens.* 1\d\d\d tokens") as refused:
        complete(client, base, prompt="dog " * 1000)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((200, 10, 60, 10, 40), r"leave out its messages up to number 2, which have \d+ tokens"),
        ((10, 10, 600), r"message 3 of 3 \(user, \d+ tokens\)"),
        ((600,), "the prompt by at least"),
    ],
)
def test_a_conversation_too_long_says_what_to_cut(client: openai.OpenAI, base: Path, sizes: tuple[int, ...], told: str) -> None:
    talk: Any = [{"role": "assistant" if n % 2 else "user", "content": "dog " * size} for n, size in enumerate(sizes)]
    with pytest.raises(openai.BadRequestError, match=told) as refused:
        client.chat.completions.create(model="m", messages=talk, extra_body={"studio": studio_field(base)})
    assert refused.value.code == "context_length_exceeded"


def test_an_answer_ends_where_the_context_does(client: openai.OpenAI, base: Path) -> None:
    done = complete(client, base, prompt="dog " * 250, max_tokens=400)
    assert done.usage.total_tokens <= 512


def test_refusals_have_openais_shape(
    client: openai.OpenAI, running: RunningEngine, base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(openai.AuthenticationError):
        httpx_free = openai.OpenAI(base_url=running.url + "/v1", api_key="wrong", max_retries=0)
        with httpx_free:
            complete(httpx_free, base)
    with pytest.raises(openai.NotFoundError, match="nowhere"):
        complete(client, tmp_path / "nowhere")
    broken = copy_model(base, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:9999])
    with pytest.raises(openai.BadRequestError, match=r"damaged.*Download"):
        complete(client, broken)
    foreign = shutil.copytree(adapters[0], tmp_path / "foreign")
    other = base.parent / "babyllama105"
    with pytest.raises(openai.BadRequestError, match=r"foreign was made for another base model"):
        complete(client, other, foreign)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        complete(client, base, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        complete(client, base, logit_bias={"1": 5})
    assert text_of(client, base)  # alive after all of it


@pytest.mark.parametrize(
    "template", ["{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}", "{{ ''.__class__ }}{{ x.y.z }}"]
)
def test_a_hostile_template_is_refused_and_costs_nobody_else_an_answer(
    client: openai.OpenAI, base: Path, adapters: list[Path], tmp_path: Path, template: str
) -> None:
    hostile = shutil.copytree(adapters[0], tmp_path / "hostile")
    (hostile / "chat_template.jinja").write_text(template)
    with pytest.raises(openai.BadRequestError, match="template"):
        client.chat.completions.create(model="m", messages=MESSAGES, extra_body={"studio": studio_field(base, hostile)})
    assert text_of(client, base)


def test_an_adapter_of_broken_numbers_fails_alone(client: openai.OpenAI, base: Path, tmp_path: Path) -> None:
    broken = make_adapter(base, tmp_path / "exploded", 5, strength=float("nan"))
    expected = text_of(client, base)
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(text_of, client, base)
        with pytest.raises(openai.InternalServerError, match="learning_rate") as failed:
            complete(client, base, broken)
        assert beside.result() == expected
    assert failed.value.code == "broken_logits"


def test_the_starter_ends_its_answer_by_itself(client: openai.OpenAI) -> None:
    starter = STATIC / "starter"
    if not (starter / "model.safetensors").is_file():
        pytest.skip("The starter model is not made yet.")
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="m", messages=question, temperature=0, extra_body={"studio": studio_field(starter)})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content and "<|" not in answer.choices[0].message.content


WEATHER = {"city": {"type": "string"}, "days": {"type": "integer"}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": WEATHER, "required": ["city"]}}},
    {"type": "function", "function": {"name": "news", "parameters": {"type": "object", "properties": {}}}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("template", ["qwen2_5", None])
def test_a_model_that_never_saw_a_tool_calls_one_when_it_must(client: openai.OpenAI, template: str | None) -> None:
    source = template and (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
    extra = {"studio": {**studio_field(STATIC / "starter"), "chat_template": source}}
    asked: Any = {"model": "starter", "messages": MESSAGES, "tools": TOOLS, "extra_body": extra}
    for seed in range(3):
        choice = client.chat.completions.create(**asked, tool_choice="required", seed=seed, max_tokens=120).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
        for call in choice.message.tool_calls:
            arguments = json.loads(call.function.arguments)
            assert call.function.name in ("weather", "news") and set(arguments) <= set(WEATHER)
        told = "".join(choice.model_extra["studio"]["notes"])
        assert ("no place for tools" in told) is (template is None)
    parts, ends = [], []
    for chunk in client.chat.completions.create(**asked, tool_choice=NAMED, seed=1, max_tokens=80, stream=True):
        parts += chunk.choices[0].delta.tool_calls or []
        ends.append(chunk.choices[0].finish_reason)
    assert [(part.index, part.function.name) for part in parts if part.id] == [(0, "weather")] and ends[-1] == "tool_calls"
    assert isinstance(json.loads("".join(part.function.arguments for part in parts))["city"], str)
    call = {"id": parts[0].id, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
    later = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "9"},
    ]
    if template is None:
        with pytest.raises(openai.BadRequestError, match="has no place for tools"):
            client.chat.completions.create(**asked, max_tokens=8)
        extra["tools_as_instruction"] = True
    answer = client.chat.completions.create(**{**asked, "messages": later}, max_tokens=8).choices[0]
    assert answer.finish_reason in ("stop", "length") and answer.message.content


def test_a_closed_stream_stops_the_generation(client: openai.OpenAI, running: RunningEngine, base: Path) -> None:
    stream = complete(client, base, n=64, max_tokens=480, stream=True, temperature=1)
    next(iter(stream))
    assert status(running)["active"] == 16
    stream.close()
    assert until_idle(running, 120) < 5  # all of it takes ten and more


def test_a_client_that_leaves_stops_its_whole_answer_too(running: RunningEngine, base: Path) -> None:
    body = {"prompt": PROMPT, "n": 64, "max_tokens": 480, "studio": studio_field(base)}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(running.url + "/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.6)
    assert until_idle(running, 120) < 5  # all of it takes ten and more


def test_a_full_queue_is_refused_with_a_time_to_come_back(client: openai.OpenAI, running: RunningEngine, base: Path) -> None:
    with complete(client, base, n=64, max_tokens=480, stream=True, temperature=1) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            complete(client, base, n=32)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    until_idle(running, 120)


def test_unloading_gives_memory_back_and_the_next_request_loads_anew(client: openai.OpenAI, running: RunningEngine, base: Path) -> None:
    before = text_of(client, base)
    loaded = status(running)["loaded"]
    assert loaded["base"] == "stories260K" and loaded["bytes"] >= 260_032 * 4
    done = httpx.post(running.url + "/engine/unload", headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
    assert done.json() == {"unloaded_bytes": loaded["bytes"]}
    assert status(running)["loaded"] is None
    assert text_of(client, base) == before


def test_the_engine_ends_at_once_in_the_middle_of_an_answer(client: openai.OpenAI, running: RunningEngine, base: Path) -> None:
    """Last: it ends the engine that the tests above share."""
    stream = complete(client, base, n=64, max_tokens=480, stream=True, temperature=1)
    next(iter(stream))
    started = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="stopping"):
        for _ in stream:
            pass
    running.process.wait(timeout=120)
    assert time.monotonic() - started < 10  # all of it takes longer
