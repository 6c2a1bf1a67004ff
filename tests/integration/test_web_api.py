"""The studio over real HTTP with a real engine: the command line's use cases under /api, OpenAI's protocol under /v1."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import psutil
import pytest
from safetensors.numpy import save

from studio.engine.body_fields import IGNORED_HEADER
from tests.engines import KEY, RunningEngine, engine
from tests.servers import Server, clean_environment, free_port, web

ROWS = b'{"prompt": "Say one", "completion": "one"}\n{"prompt": "Say two", "completion": "two"}\n'
MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "home"


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[RunningEngine]:
    with engine(home.parent / "engine") as started:
        yield started


@pytest.fixture(scope="module")
def server(home: Path, running: RunningEngine, shared_data: Path) -> Iterator[Server]:
    """A web process beside an engine, with stories260K added."""
    add = [sys.executable, "-m", "studio", "models", "add", str(shared_data / "models" / "stories260K")]
    subprocess.run(add, check=True, env=clean_environment(home), capture_output=True)
    with web(home, STUDIO_ENGINE_URL=running.url, STUDIO_ENGINE_KEY=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def adapter(client: httpx.Client) -> dict[str, Any]:
    """A LoRA of stories260K, brought over HTTP."""
    return dict(
        client.post("/api/adapters", files=adapter_files(), data={"name": "tuned", "base_model": "stories260K"}).raise_for_status().json()
    )


def adapter_files(width: int = 64) -> list[tuple[str, tuple[str, bytes]]]:
    random = numpy.random.default_rng(0)
    layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {layer.format(n, "A"): random.normal(size=(4, width)).astype(numpy.float32) for n in range(5)}
    tensors |= {layer.format(n, "B"): random.normal(size=(64, 4)).astype(numpy.float32) for n in range(5)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "x",
    }
    return [("files", ("adapter_config.json", json.dumps(config).encode())), ("files", ("adapter_model.safetensors", save(tensors)))]


def upload(client: httpx.Client, content: bytes, filename: str = "rows.jsonl", **form: str) -> httpx.Response:
    return client.post("/api/datasets", files={"file": (filename, content)}, data=form)


def unfinished(running: RunningEngine) -> int:
    """Answers that the engine makes or has queued."""
    status = httpx.get(f"{running.url}/engine/status", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=120).json()
    return int(status["active"]) + int(status["waiting"])


def until(condition: Callable[[], object], limit_s: float = 180.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_dataset_comes_is_read_and_goes(client: httpx.Client) -> None:
    added = upload(client, ROWS, name="numbers")
    assert added.status_code == 201 and (added.json()["rows"], added.json()["name"]) == (2, "numbers")
    assert [row["name"] for row in client.get("/api/datasets").json()] == ["numbers"]
    assert "Say two" in str(client.get("/api/datasets/numbers/rows", params={"offset": 1}).json()[0])
    assert client.get("/api/datasets/numbers/export").text.count("\n") == 2
    assert client.delete("/api/datasets/numbers").status_code == 200
    assert client.get("/api/datasets/numbers").status_code == 404


def test_a_file_with_bad_rows_is_refused_with_all_of_them(client: httpx.Client) -> None:
    answer = upload(client, ROWS + b"{\n" + b"[]\n")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["count"] == 2 and len(error["problems"]) == 2
    assert client.get("/api/datasets").json() == []


@pytest.mark.parametrize(
    "filename", ["../../../evil.jsonl", "/etc/evil.jsonl", "..\\..\\evil.jsonl", "\u0000.jsonl", "a" * 5000 + ".jsonl"]
)
def test_a_hostile_file_name_stays_a_name(client: httpx.Client, server: Server, filename: str) -> None:
    answer = upload(client, ROWS, filename)
    assert answer.status_code in (201, 400)
    assert not list(server.home.parent.rglob("evil*")) and not Path("/etc/evil.jsonl").exists()
    if answer.status_code == 201:
        assert "/" not in answer.json()["name"]
        client.delete(f"/api/datasets/{answer.json()['id']}")


@pytest.mark.parametrize("name", ["../x", "a b", "base", "", "x" * 65, "."])
def test_a_name_that_can_not_be_used_is_refused(client: httpx.Client, name: str) -> None:
    answer = client.post("/api/datasets/text", json={"text": ROWS.decode(), "name": name})
    assert answer.status_code == 400 and answer.json()["error"]["fix"]


def test_a_taken_name_and_an_unknown_one_are_told(client: httpx.Client) -> None:
    kept = client.post("/api/datasets/text", json={"text": ROWS.decode(), "name": "pasted-rows"}).raise_for_status().json()
    again = client.post("/api/datasets/text", json={"text": ROWS.decode(), "name": "pasted-rows"})
    assert again.status_code == 409
    missing = client.get("/api/datasets/pasted-row")
    assert missing.status_code == 404 and "pasted-rows" in missing.json()["error"]["fix"]
    client.delete(f"/api/datasets/{kept['id']}")


def test_rendering_shows_what_is_learned_without_torch(client: httpx.Client, server: Server) -> None:
    kept = upload(client, ROWS).json()
    rendered = client.get(f"/api/datasets/{kept['id']}/render", params={"base_model": "stories260K", "rows": 1}).raise_for_status().json()
    assert any(rendered["rows"][0]["learned"]) and len(rendered["rows"][0]["ids"]) == len(rendered["rows"][0]["learned"])
    assert not any("libtorch" in mapped.path for mapped in psutil.Process(server.process.pid).memory_maps())
    client.delete(f"/api/datasets/{kept['id']}")


def test_files_of_the_machine_can_not_be_named_over_http(client: httpx.Client, shared_data: Path) -> None:
    kept = upload(client, ROWS).json()
    folder = str(shared_data / "models" / "stories260K")
    template = str(Path(__file__).parents[2] / "static" / "starter" / "chat_template.jinja")
    key = client.post("/api/keys", json={"name": "through a proxy"}).json()["key"]
    assert client.post("/api/models", json={"source": folder}, headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401
    refused = [
        client.post("/api/models", json={"source": folder}, headers={"X-Forwarded-For": "192.0.2.1", "X-Api-Key": key}),
        client.post("/api/datasets/text", json={"source": "/etc/passwd"}),
        client.get(f"/api/datasets/{kept['id']}/render", params={"base_model": folder}),
        client.get(f"/api/datasets/{kept['id']}/render", params={"base_model": "stories260K", "chat_template": template}),
        client.post("/api/jobs", json={"data": kept["id"], "base_model": folder}),
        client.post("/api/jobs", json={"data": kept["id"], "base_model": "stories260K", "options": {"chat_template": template}}),
        client.post("/api/chat", json={"message": "hi", "base_model": folder}),
        client.post("/v1/chat/completions", json={"model": folder, "messages": MESSAGES}),
        client.post("/v1/chat/completions", json={"model": "http://127.0.0.1:1/v1#x", "messages": MESSAGES}),
    ]
    assert [answer.status_code for answer in refused] == [403, 400, 404, 400, 404, 400, 404, 404, 404]
    query = {"base_model": "stories260K"}
    for spelled in (
        template,
        f"{template}/",
        f"{template}/.",
        f"{template}//",
        f" {template}",
        "chat_template.jinja",
        "a\0.jinja",
        "nothing",
    ):
        chosen = {"chat_template": spelled}
        answers = [
            *(client.get(f"/api/datasets/{kept['id']}/{what}", params={**query, **chosen}) for what in ("render", "parity", "report")),
            client.post(f"/api/datasets/{kept['id']}/fix", json={"checks": ["all"], **query, **chosen}),
            client.post("/api/jobs", json={"data": kept["id"], **query, "options": chosen}),
            client.post("/api/sweeps", json={"data": kept["id"], **query, "grid": {"chat_template": [spelled]}}),
        ]
        assert [(answer.status_code, "a name or its own text" in answer.text) for answer in answers] == [(400, True)] * 6, spelled
        found = client.post("/api/jobs/check", json={"data": kept["id"], **query, "options": chosen}).json()
        assert ["a name or its own text" in one["message"] for one in found] == [True]
    assert client.get("/api/jobs").json() == []
    client.delete(f"/api/datasets/{kept['id']}")


def test_who_runs_the_studio_adds_a_folder_by_its_path(client: httpx.Client, shared_data: Path) -> None:
    folder = str(shared_data / "models" / "stories260K")
    added = client.post("/api/models", json={"source": folder, "name": "by-path"})
    assert added.status_code == 201 and added.json()["path"] == folder
    assert client.delete("/api/models/by-path").json() == {"name": "by-path", "removed": True, "kept": folder}
    assert client.get("/api/cached-models").json() == []


def test_a_job_is_queued_shown_and_cancelled(client: httpx.Client) -> None:
    kept = upload(client, ROWS, name="for-a-job").json()
    options = {"lora.r": 4, "max_steps": 2}
    made = client.post("/api/jobs", json={"data": "for-a-job", "base_model": "stories260K", "options": options, "name": "first"})
    assert made.status_code == 201 and made.json()["status"] == "QUEUED"
    assert made.json()["progress"] == {"step": None, "max_steps": None, "eta_s": None}
    assert [job["id"] for job in client.get("/api/jobs", params={"status": "QUEUED"}).json()] == [made.json()["id"]]
    assert client.get("/api/jobs/first/metrics").json() == []
    script, files = client.get("/api/jobs/first/script").json(), client.get("/api/jobs/first/script.zip")
    assert files.status_code == 200 and "first-script.zip" in files.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(files.content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".py")]
        assert archive.read(name).decode() == script["script"] and len(archive.namelist()) > 1
    assert client.post("/api/jobs/first/cancel", json={"keep": True}).json()["status"] == "CANCELLED"
    client.delete(f"/api/datasets/{kept['id']}")


def test_every_bad_option_of_a_job_is_told_at_once(client: httpx.Client) -> None:
    kept = upload(client, ROWS).json()
    answer = client.post("/api/jobs", json={"data": kept["id"], "base_model": "stories260K", "options": {"lora.rank": 4, "max_length": 1}})
    error = answer.json()["error"]
    assert answer.status_code == 400 and len(error["problems"]) == 2 and "lora.r" in str(error["problems"])
    client.delete(f"/api/datasets/{kept['id']}")


def test_a_body_that_can_not_be_read_is_told_in_our_shape(client: httpx.Client) -> None:
    for body in (b"{", b"[]", b'{"data": 1}', b'{"data": "x", "unknown": 1}', b'{"a":' * 2000):
        answer = client.post("/api/jobs", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500 and set(answer.json()["error"]) >= {"message", "fix"}


def test_an_adapter_that_does_not_fit_is_refused(client: httpx.Client) -> None:
    answer = client.post("/api/adapters", files=adapter_files(width=32), data={"base_model": "stories260K"})
    assert answer.status_code == 400 and "does not fit" in answer.json()["error"]["message"]
    assert client.post("/api/adapters", files=adapter_files()).status_code == 400  # nobody says whose it is
    pickled = [("files", ("adapter_model.bin", b"x")), adapter_files()[0]]
    assert "run code" in client.post("/api/adapters", files=pickled, data={"base_model": "stories260K"}).json()["error"]["message"]


def test_models_list_the_starter_first_then_bases_then_adapters(client: httpx.Client, sdk: openai.OpenAI, adapter: dict[str, Any]) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names == ["starter", "stories260K", "stories260K:tuned"]
    assert client.get("/v1/models/stories260K:tuned").json()["id"] == "stories260K:tuned"
    assert client.get("/v1/models/stories260K:tuneD").status_code == 404


def test_an_adapter_answers_otherwise_than_its_base(sdk: openai.OpenAI, adapter: dict[str, Any]) -> None:
    def told(model: str) -> str:
        return str(sdk.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0).choices[0].text)

    assert told("stories260K") != told("stories260K:tuned") and told("stories260K") == told("stories260K")


@pytest.mark.parametrize("more", [{}, {"speculation": "prompt_lookup"}, {"assistant_model": "stories260K"}])
def test_an_empty_prompt_gives_the_published_story(sdk: openai.OpenAI, shared_data: Path, more: dict[str, str]) -> None:
    published = (shared_data / "models" / "stories260K" / "published_greedy_output.txt").read_text().strip()
    done = sdk.completions.create(model="stories260K", prompt="", max_tokens=256, temperature=0, extra_body=more)
    assert not more or done.choices[0].studio["speculation"]["drafted_tokens"] > 0  # type: ignore[attr-defined]
    assert done.choices[0].text.strip() == published and done.usage is not None and done.usage.completion_tokens == 256


def test_fields_are_kept_to_named_or_refused(sdk: openai.OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return sdk.chat.completions.with_raw_response.create(
            model="starter", messages=[{"role": "user", "content": "Hello"}], max_tokens=48, temperature=0, extra_body=fields
        )

    plain, longer = ask(user="u", metadata={"a": "b"}), ask(ignore_eos=True, colour="red")
    assert plain.parse().choices[0].finish_reason == "stop" and IGNORED_HEADER not in plain.headers
    assert longer.parse().choices[0].finish_reason == "length" and longer.parse().usage.completion_tokens == 48
    assert longer.headers[IGNORED_HEADER] == "colour"
    assert ask(structured_outputs={"choice": ["north", "south"]}).parse().choices[0].message.content in ("north", "south")
    with pytest.raises(openai.BadRequestError) as refused:
        ask(bad_words=["moon"])
    assert refused.value.param == "bad_words"


def test_what_is_no_route_of_v1_is_answered_in_openais_shape(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        slash, models = client.get("/v1/models/"), client.get("/v1/models")
        assert slash.status_code == 200 and slash.json() == models.json()
        assert all(time.time() > model["created"] > 1e9 for model in models.json()["data"])
        head = client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")
        for method, path, status in (("GET", "/v1/files/", 404), ("POST", "/v1", 404), ("GET", "/v1/chat/completions", 405)):
            answer = client.request(method, path)
            error = answer.json()["error"]
            assert (answer.status_code, error["type"]) == (status, "invalid_request_error") and error["message"] and error["code"]
        assert answer.headers["allow"] == "POST" and "/v1/models" in client.get("/v1/files").json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        rb'{"model": "stories260K", "messages": [{"role": "user", "content": "\ud83d"}]}',
        rb'{"model": "\udc00", "messages": [{"role": "user", "content": "a"}]}',
        rb'{"model": "stories260K", "stop": ["\ud800a"], "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "stories260K", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "stories260K", "seed": 1e999, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "stories260K", "messages": [{"role": "user", "content": "\xff"}]}',
        b"[" * 100_000,
        b"{",
    ],
)
def test_what_is_no_text_and_no_number_is_the_clients_error(server: Server, body: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, trust_env=False, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body", [rb'{"text": "\ud800", "name": "a"}', b'{"text": NaN}', b"[" * 100_000, b'{"text": 1e999}', b'{"text": "\xff"}']
)
@pytest.mark.parametrize("path", ["comparisons", "datasets/text", "jobs", "fit"])
def test_routes_of_the_studio_refuse_the_same(server: Server, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/api/{path}", content=body, headers=headers, trust_env=False, timeout=120)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text


def test_a_stream_comes_in_pieces_and_ends_with_its_usage(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="stories260K", messages=MESSAGES, max_tokens=32, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    whole = sdk.chat.completions.create(model="stories260K", messages=MESSAGES, max_tokens=32, temperature=0)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert len(chunks) > 8 and chunks[-1].usage == whole.usage


def test_an_unknown_model_is_named_in_openais_shape(sdk: openai.OpenAI, adapter: dict[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="stories260k:tuned", messages=MESSAGES)
    error: Any = caught.value.body
    assert error["code"] == "model_not_found" and error["param"] == "model"
    assert "stories260k:tuned" in error["message"] and "stories260K:tuned" in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b"{}", "invalid_value"),
        (b'{"model": 3}', "invalid_value"),
        (b'{"model": "stories260K"}', "invalid_value"),
    ],
)
def test_a_bad_request_is_told_in_openais_shape(client: httpx.Client, body: bytes, code: str) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert (
        answer.status_code == 400
        and answer.json()["error"]["code"] == code
        and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    )


def test_too_long_a_prompt_names_both_counts(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="stories260K", prompt="story " * 2000, max_tokens=8)
    assert caught.value.code == "context_length_exceeded" and "512" in str(caught.value)


def test_the_studio_field_of_a_client_is_not_believed(client: httpx.Client, tmp_path: Path) -> None:
    body = {
        "model": "stories260K",
        "prompt": "",
        "max_tokens": 4,
        "studio": {"base": {"name": "x", "path": str(tmp_path)}, "adapter": None},
    }
    assert client.post("/v1/completions", json=body).status_code == 200


def test_a_closed_stream_ends_the_generation(server: Server, running: RunningEngine) -> None:
    # 64 answers of 480 tokens would take far longer than this test waits
    body = {"model": "stories260K", "prompt": "", "max_tokens": 480, "n": 64, "temperature": 1, "stream": True}
    with httpx.Client(trust_env=False, timeout=120) as leaving, leaving.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with its iterator
        assert answer.status_code == 200 and next(lines).startswith("data: {")
        assert unfinished(running) > 0
    assert until(lambda: unfinished(running) == 0) < 2


def test_who_leaves_before_a_whole_answer_ends_it_too(server: Server, running: RunningEngine) -> None:
    body = {"model": "stories260K", "prompt": "", "max_tokens": 480, "n": 64, "temperature": 1}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=httpx.Timeout(30, read=0.5), trust_env=False)
    assert until(lambda: unfinished(running) == 0) < 2


def test_chat_answers_once_per_contestant(client: httpx.Client, adapter: dict[str, Any]) -> None:
    body = {
        "message": "Hello",
        "base_model": "stories260K",
        "adapters": ["base", "tuned"],
        "params": {"max_new_tokens": 4, "temperature": 0},
    }
    answers = client.post("/api/chat", json=body).raise_for_status().json()["answers"]
    assert [answer["contestant"] for answer in answers] == ["base", "tuned"]
    assert all(answer["completion_tokens"] <= 4 for answer in answers)


def test_a_comparison_is_queued(client: httpx.Client, adapter: dict[str, Any]) -> None:
    body = {"prompts": [{"prompt": "Hello", "reference": "Hi"}], "base_model": "stories260K", "contestants": ["base", "tuned"]}
    made = client.post("/api/comparisons", json=body)
    assert made.status_code == 201 and made.json()["contestants"] == ["base", "tuned"] and made.json()["answers"] == []
    assert client.get(f"/api/comparisons/{made.json()['id']}").json()["status"] == "QUEUED"
    refused = client.delete(f"/api/adapters/{adapter['id']}")
    assert refused.status_code == 400 and "needed by" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "prompts", [[{"turns": []}], [{"turns": 5}], [{"turns": [[1]]}], [{}], [{"messages": [{"role": "x"}]}], [{"prompt": ["a"]}], []]
)
def test_prompts_that_can_not_be_read_are_refused(client: httpx.Client, prompts: Any) -> None:
    answer = client.post("/api/comparisons", json={"prompts": prompts, "base_model": "stories260K"})
    assert answer.status_code == 400 and answer.json()["error"]["fix"]


def test_texts_are_tokenised_scored_and_embedded_by_name(client: httpx.Client, sdk: openai.OpenAI, adapter: dict[str, Any]) -> None:
    # red when a route is not there, takes a path, or answers an error in another shape than OpenAI's
    body = {"model": "stories260K", "prompt": "Once upon a time", "return_token_strs": True, "colour": 1}
    answer = client.post("/tokenize", json=body)
    ids = answer.json()["tokens"]
    assert answer.json()["count"] == len(ids) == len(answer.json()["token_strs"]) and answer.headers["studio-ignored"] == "colour"
    assert "Once upon a time" in client.post("/detokenize", json={"model": "stories260K", "tokens": ids}).json()["prompt"]
    for name in ("stories260K", "stories260K:tuned"):  # as lm-eval asks for a likelihood
        asked = {"model": name, "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        (choice,) = client.post("/v1/completions", json=asked).json()["choices"]
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1 and choice["logprobs"]["token_logprobs"][0] is None
    vectors = sdk.embeddings.create(model="stories260K", input=["A dog", "A cat"])  # this client asks for base64
    assert len(vectors.data) == 2 and sum(number**2 for number in vectors.data[1].embedding) == pytest.approx(1, abs=1e-3)
    for path, sent in (("/tokenize", {"model": "nobody", "prompt": "a"}), ("/v1/embeddings", {"model": "nobody", "input": "a"})):
        refused = client.post(path, json=sent)
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    refused = client.post("/v1/embeddings", json={"model": "stories260K", "input": "a", "dimensions": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


def test_a_response_says_what_chat_says(sdk: openai.OpenAI) -> None:
    # red when the two differ, when a stream breaks off, or when a form is lost on the way
    chosen: Any = {"model": "stories260K", "temperature": 0}
    chat = sdk.chat.completions.create(messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=12, **chosen)
    whole = sdk.responses.create(input="Tell me a story.", max_output_tokens=12, store=False, **chosen)
    assert whole.output_text == chat.choices[0].message.content and whole.status == "incomplete"
    assert whole.usage and chat.usage and whole.usage.input_tokens == chat.usage.prompt_tokens
    with sdk.responses.stream(input=[{"role": "user", "content": "Tell me a story."}], max_output_tokens=12, **chosen) as events:
        seen = list(events)
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == whole.output_text
    kinds = [event.type for event in seen]
    assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete" and kinds.count("response.output_text.delta") > 3
    form: Any = {"format": {"type": "json_schema", "name": "side", "schema": {"enum": ["north", "south"]}, "strict": True}}
    assert json.loads(sdk.responses.create(input="Where?", text=form, **chosen).output_text) in ("north", "south")
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        sdk.responses.create(input="Hi", previous_response_id="resp_1", **chosen)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        sdk.responses.create(input="Hi", model="nobody")


def test_the_schema_and_its_page_are_our_own(client: httpx.Client) -> None:
    schema = client.get("/api/openapi.json").json()
    assert {"/api/datasets", "/api/jobs/{job}/cancel", "/v1/chat/completions"} <= set(schema["paths"])
    page = client.get("/api/docs")
    assert page.status_code == 200 and "/api/comparisons" in page.text and "http" not in page.text.replace("HTTP", "")


def test_health_and_status_say_what_the_engine_does(client: httpx.Client) -> None:
    assert client.get("/").status_code == 200  # waits until the page is built
    assert client.get("/health").json() == {"status": "ok", "version": "0.1.0", "engine": "ready", "page": "ready"}
    status = client.get("/api/status").json()
    assert status["engine"]["ok"] and status["queued"] >= 0 and status["device"] and " of " in status["memory"]


def test_doctor_tells_of_this_machine(client: httpx.Client) -> None:
    checks = {check["name"]: check for check in client.get("/api/doctor").json()["checks"]}
    assert checks["python"]["ok"] and checks["home"]["ok"] and all(check["ok"] or check["fix"] for check in checks.values())
    assert "hub" not in checks  # asking it would leave this machine


def test_a_request_waits_for_an_engine_that_starts_later(tmp_path: Path, shared_data: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    environment = {"STUDIO_ENGINE_URL": f"http://127.0.0.1:{port}", "STUDIO_ENGINE_KEY": KEY}
    with web(home, **environment) as started:
        assert httpx.get(f"{started.url}/health", trust_env=False, timeout=120).json()["engine"] == "starting"
        command = [sys.executable, "-c", f"import time; time.sleep(1); from studio.engine.server import main; main(['--port', '{port}'])"]
        with (tmp_path / "engine.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=clean_environment(home, **environment))
        try:
            answer = httpx.post(
                f"{started.url}/v1/completions", json={"model": "starter", "prompt": "a", "max_tokens": 2}, timeout=120, trust_env=False
            )
            assert answer.status_code == 200, answer.text
        finally:
            process.kill()
            process.wait()
            assert process.stdin
            process.stdin.close()
