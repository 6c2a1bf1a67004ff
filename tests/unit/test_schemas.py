"""Every JSON answer has a schema, and what the interface documents is in it under the same names and types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter

from studio import api
from studio.api.openai_shapes import ChatCompletion, TextCompletion
from studio.commands import demo
from studio.engine import bodies
from studio.engine.protocol import Event, TokenLogprob, Usage
from studio.engine.replies import Reply
from studio.evaluation import metrics
from studio.records import Agreement, ChatAnswers, Leaderboard
from studio.services import backups
from studio.services.adapters import AdapterService
from studio.services.comparisons import ComparisonService
from studio.services.compression import CompressionService
from studio.services.curation import CurationService
from studio.services.datasets import DatasetService
from studio.services.exports import ExportService
from studio.services.fit import FitService
from studio.services.jobs import JobService
from studio.services.judging import JudgingService
from studio.services.merging import MergeService
from studio.services.models import ModelService
from studio.services.preferences import PreferenceService
from studio.services.ratings import RatingService
from studio.services.system import SystemService

Schema = dict[str, Any]
Documented = dict[str, Any]  # key -> types as JSON names them, or what is inside
STR, INT, FLOAT, BOOL, NULL = "string", "integer", "number", "boolean", "null"

# as the interface documents them: the keys that people's scripts read. `|null` where a sentence says that there may be nothing,
# `?` behind a key that only some of the commands print, `*` for every key of a mapping
PROGRESS = {"step": "integer|null", "max_steps": "integer|null", "eta_s": "number|null"}
JOB: Documented = {
    "id": STR,
    "kind": STR,
    "name": STR,
    "status": STR,
    "attempt": INT,
    "progress": PROGRESS,
    "reason": STR,
    "fix": STR,
    "run_dir": STR,
    "adapter": "string|null",
    "created_at": FLOAT,
    "started_at": "number|null",
    "ended_at": "number|null",
}
PROBLEM = {"line": INT, "problem": STR, "fix": STR}
DATASET: Documented = {
    "id": STR,
    "name": STR,
    "kind": STR,
    "format": STR,
    "rows": INT,
    "skipped": INT,
    "mapping": {"*": STR},
    "problems?": [PROBLEM],  # of what was just added
}
MODEL: Documented = {
    "name": STR,
    "path": STR,
    "architecture": STR,
    "parameters": INT,
    "context": INT,
    "loadable": BOOL,
    "reason": STR,
    "warnings?": [STR],  # only where it is added
}
ADAPTER: Documented = {
    "id": STR,
    "name": STR,
    "base_model": STR,
    "method": STR,
    "job": "string|null",
    "path": STR,
    "bytes": INT,
}
BREAKDOWN = (
    "base_weights",
    "full_precision_weights",
    "adapter",
    "optimizer",
    "activations",
    "logits",
    "overhead",
)
FIT: Documented = {
    "predicted_bytes": INT,
    "breakdown": dict.fromkeys(BREAKDOWN, INT),
    "margin_bytes": "integer|null",
    "fits": "boolean|null",
    "advice": [{"change": STR, "saves_bytes": INT}],
    "warnings": [STR],
}
RENDERED: Documented = {
    "rows": [{"text": STR, "ids": [INT], "learned": [BOOL], "truncated": BOOL}],
    "share_truncated": FLOAT,
    "share_without_learned_tokens": FLOAT,
    "p50": INT,
    "p95": INT,
    "p99": INT,
}
REPORT: Documented = {
    "findings": [{"check": STR, "count": INT, "rows": [INT], "fix": STR}],
    "lengths": {"p50": INT},
}
PROOF = {"prompts": INT, "identical": "integer|null", "max_logit_diff": "number|null", "passed": "boolean|null", "reason": STR}
EXPORT: Documented = {"path": STR, "bytes": INT, "verified": PROOF}
ANSWERS: Documented = {"answers": [{"contestant": STR, "text": STR, "prompt_tokens": INT, "completion_tokens": INT, "seconds": FLOAT}]}
COMPRESSION: Documented = {
    "text": STR,
    "tokens_before": INT,
    "tokens_after": INT,
    "requested": FLOAT,
    "achieved": FLOAT,
    "counter": STR,
    "method": STR,
    "seconds": FLOAT,
    "warnings": [STR],
    "kept": [["string", "boolean"]],
}
COMPARISON: Documented = {
    "id": STR,
    "name": STR,
    "contestants": [STR],
    "prompts": [{}],
    "answers": [{"prompt_id": STR, "contestant": STR, "text": STR, "seconds": FLOAT}],
}
JUDGEMENT: Documented = {
    "pairs": "integer|null",  # all are null before the end
    "win_rate": {"*": "number|null"},
    "ci95": {"*": [FLOAT]},
    "swap_consistency": "number|null",
    "first_win_rate": "number|null",
    "longer_win_rate": "number|null",
    "invalid": "integer|null",
    "enough": "boolean|null",
    "more_needed": "integer|null",
}
STANDING = {
    "name": STR,
    "bradley_terry": FLOAT,
    "bradley_terry_ci95": [FLOAT],
    "elo": FLOAT,
    "win_rate": FLOAT,
    "ci95": [FLOAT],
    "games": INT,
}
LEADERBOARD: Documented = {
    "contestants": [STANDING],
    "position": {"first_win_rate": "number|null", "swap_consistency": "number|null"},
}
AGREEMENT: Documented = {
    "pairs": [{"a": STR, "b": STR, "kappa": "number|null", "agreement": "number|null", "n": INT}],
    "majority": {"*": {**dict.fromkeys(("accuracy", "precision", "recall", "f1"), "number|null"), "n": INT}},
}
SCORES = ("exact_match", "number_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf")
DEMO: Documented = {
    "job": STR,
    "adapter": STR,
    "before": {"exact_match": FLOAT, "n": INT},
    "after": {"exact_match": FLOAT, "n": INT},
    "judge": {"win_rate": "number|null", "ci95": [FLOAT], "swap_consistency": "number|null"},
    "seconds": FLOAT,
}
DOCTOR: Documented = {"checks": [{"name": STR, "ok": BOOL, "detail": STR, "fix": STR}]}

# command -> what it prints with --json: what this returns, or a record
COMMANDS: dict[str, tuple[Callable[..., Any], Any]] = {
    "data add": (DatasetService.add, DATASET),
    "data list": (DatasetService.list, [DATASET]),
    "data show": (DatasetService.show, DATASET),
    "data report": (CurationService.report, REPORT),
    "data fix": (CurationService.fix, {**DATASET, "parent": "string|null"}),
    "data merge": (CurationService.merge, DATASET),
    "data pick": (CurationService.pick, DATASET),
    "data render": (DatasetService.render, RENDERED),
    "models list": (ModelService.list, [MODEL]),
    "models add": (ModelService.add, MODEL),
    "models show": (ModelService.show, MODEL),
    "fit": (FitService.fit, FIT),
    "train": (JobService.submit, JOB),
    "sweep": (JobService.sweep, JOB),
    "jobs list": (JobService.list, [JOB]),
    "jobs show": (JobService.show, JOB),
    "jobs cancel": (JobService.cancel, JOB),
    "jobs pause": (JobService.pause, JOB),
    "jobs resume": (JobService.resume, JOB),
    "jobs retry": (JobService.retry, JOB),
    "jobs clone": (JobService.clone, JOB),
    "jobs move": (JobService.move, JOB),
    "jobs metrics": (JobService.metrics, [{}]),
    "adapters list": (AdapterService.list, [ADAPTER]),
    "adapters show": (AdapterService.show, ADAPTER),
    "adapters add": (AdapterService.add, ADAPTER),
    "adapters merge": (MergeService.merge, ADAPTER),
    "export": (ExportService.show, EXPORT),
    "chat": (ChatAnswers, ANSWERS),
    "compress": (CompressionService.compress, COMPRESSION),
    "compare": (ComparisonService.show, COMPARISON),
    "judge": (JudgingService.show, JUDGEMENT),
    "leaderboard": (RatingService.leaderboard, LEADERBOARD),
    "leaderboard --verdicts": (Leaderboard, LEADERBOARD),
    "agreement": (Agreement, AGREEMENT),
    "preferences": (PreferenceService.make, DATASET),
    "data split": (CurationService.split, {"train": DATASET, "eval": DATASET}),
    "data export": (DatasetService.export, {"path": STR, "rows": INT}),
    "demo": (demo.run, DEMO),
    "backup": (backups.backup, {"path": STR, "bytes": INT, "files": INT, "models": [{"name": STR, "path": STR}]}),
    "restore": (backups.restore, {"home": STR, "files": INT, "models": [STR], "before": "string|null"}),
    "doctor": (SystemService.doctor, DOCTOR),
}
# what the trainer measures at a step is up to the trainer
OPEN = {"get /api/jobs/{job}/metrics"}
# route -> the same shape over HTTP
ROUTES: dict[str, Any] = {
    "post /api/datasets": DATASET,
    "get /api/datasets": [DATASET],
    "get /api/datasets/{dataset}": DATASET,
    "get /api/datasets/{dataset}/report": REPORT,
    "get /api/datasets/{dataset}/render": RENDERED,
    "get /api/models": [MODEL],
    "post /api/models": MODEL,
    "get /api/models/{model}": MODEL,
    "post /api/fit": FIT,
    "post /api/jobs": JOB,
    "get /api/jobs": [JOB],
    "get /api/jobs/{job}": JOB,
    "get /api/jobs/{job}/metrics": [{}],
    "get /api/adapters": [ADAPTER],
    "get /api/adapters/{adapter}": ADAPTER,
    "post /api/exports": EXPORT,
    "get /api/exports/{export}": EXPORT,
    "post /api/chat": ANSWERS,
    "post /api/compress": COMPRESSION,
    "post /api/comparisons": COMPARISON,
    "get /api/comparisons/{comparison}": COMPARISON,
    "get /api/judgements/{judgement}": JUDGEMENT,
    "get /api/leaderboard": LEADERBOARD,
    "get /api/comparisons/{comparison}/agreement": AGREEMENT,
    "post /api/preferences": DATASET,
    "get /api/doctor": DOCTOR,
}


@pytest.fixture(scope="module")
def openapi() -> Schema:
    app = FastAPI()
    api.add_routes(app)
    return app.openapi()


def answers(openapi: Schema) -> Iterator[tuple[str, Schema]]:
    """(method and path, schema of the JSON that it answers with) for every route."""
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if status.startswith("2") and "application/json" in response.get("content", {}):
                    yield f"{method} {path}", response["content"]["application/json"].get("schema", {})


def forms(schema: Schema, whole: Schema) -> list[Schema]:
    """The schemas that a value may follow, without references and alternatives."""
    if "$ref" in schema:
        target = whole
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return forms(target, whole)
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if alternatives in schema:
            return [form for one in schema[alternatives] for form in forms(one, whole)]
    return [schema]


def says_nothing(schema: Schema, whole: Schema) -> bool:
    """Whether a schema leaves open what an answer is: anything at all, or an object with any keys and values."""
    for form in forms(schema, whole):
        inside = form.get("additionalProperties", form.get("items") if form.get("type") == "array" else None)
        if form.get("type") == "array" or isinstance(inside, dict):
            if not isinstance(inside, dict) or says_nothing(inside, whole):
                return True
        elif (
            form == {}
            or (form.get("type") == "object" and not form.get("properties") and inside is not False)
            or not {"type", "enum", "const"} & form.keys()
        ):
            return True
    return False


def differences(schema: Schema, expected: Any, whole: Schema, place: str = "") -> list[str]:
    """What of the documented shape `expected` a schema does not promise."""
    found = forms(schema, whole)
    if isinstance(expected, str):
        types = {kind for form in found for kind in _types(form)}
        wanted = set(expected.split("|"))
        is_same = types == wanted or (FLOAT in wanted and types - {INT} == wanted - {INT})
        return [] if is_same else [f"{place} is {sorted(types)}, documented as {expected}"]
    if isinstance(expected, list):
        return _differences_of_a_list(found, expected, whole, place)
    objects = [form for form in found if form.get("type") == "object"]
    if not objects:
        return [f"{place} is no object"]
    problems = []
    for form in objects:
        for name, inside in expected.items():
            key = name.removesuffix("?")
            if key == "*":
                problems += differences(form.get("additionalProperties", {}), inside, whole, f"{place}.*")
            elif key not in form.get("properties", {}):
                problems.append(f"{place}.{key} is missing")
            elif key == name and key not in form.get("required", []):
                problems.append(f"{place}.{key} may be left out")
            else:
                problems += differences(form["properties"][key], inside, whole, f"{place}.{key}")
    return problems


def _differences_of_a_list(found: list[Schema], expected: list[Any], whole: Schema, place: str) -> list[str]:
    lists = [form for form in found if form.get("type") == "array"]
    if not lists:
        return [f"{place} is no list"]
    if len(expected) == 1:
        return [problem for form in lists for problem in differences(form.get("items", {}), expected[0], whole, f"{place}[]")]
    parts = [form.get("prefixItems", []) for form in lists]
    if any(len(part) != len(expected) for part in parts):
        return [f"{place} has not {len(expected)} parts"]
    pairs = [(part[n], kind, n) for part in parts for n, kind in enumerate(expected)]
    return [problem for schema, kind, n in pairs for problem in differences(schema, kind, whole, f"{place}[{n}]")]


def _types(form: Schema) -> list[str]:
    if "type" not in form and "const" in form:
        return [STR]
    kind = form.get("type", "anything")
    return kind if isinstance(kind, list) else [kind]


def test_every_json_route_says_what_it_answers(openapi: Schema) -> None:
    found = list(answers(openapi))

    assert len(found) > 100
    assert {route for route, schema in found if says_nothing(schema, openapi)} == OPEN


@pytest.mark.parametrize("route", ROUTES)
def test_a_documented_shape_is_what_its_route_promises(openapi: Schema, route: str) -> None:
    schema = dict(answers(openapi))[route]

    assert differences(schema, ROUTES[route], openapi, route) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_shape_is_what_its_command_prints(command: str) -> None:
    source, expected = COMMANDS[command]
    printed = source if isinstance(source, type) else get_type_hints(source)["return"]
    schema = TypeAdapter(printed).json_schema(mode="serialization")

    assert differences(schema, expected, schema, command) == []


def test_metrics_have_the_documented_names() -> None:
    found = metrics.measure([("It is 4.", ("It is 4.",)), ("It is 5.", ("It is 4.",))])

    assert [type(found.get(name)) for name in SCORES] == [float for _ in SCORES]
    assert found["n"] == 2


@pytest.mark.parametrize("is_chat", [True, False])
def test_what_the_engine_answers_is_what_v1_promises(is_chat: bool) -> None:
    asked = {"model": "starter", "n": 2, "studio": {"base": {"name": "starter", "path": "/models/starter"}}}
    if is_chat:
        request = bodies.parse_chat({**asked, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 1})
    else:
        request = bodies.parse_completion({**asked, "prompt": "Hi", "logprobs": 1})
    token = TokenLogprob(b"yes", -0.1, ((b"yes", -0.1),))
    reply = Reply(request)
    for index in range(2):
        reply.take(Event(index, "yes", (token,), finish_reason="stop", usage=Usage(3, 1), facts={"tokens_per_s": 9.5}))
    shape = ChatCompletion if is_chat else TextCompletion

    found = shape.model_validate(reply.body())

    assert [choice.finish_reason for choice in found.choices] == ["stop", "stop"]
    assert found.model_dump(mode="json") == json.loads(json.dumps(reply.body()))


@pytest.mark.parametrize("is_chat", [True, False])
def test_the_engine_answers_with_log_probabilities_only_where_they_were_asked_for(is_chat: bool) -> None:
    asked = {"model": "starter", "studio": {"base": {"name": "starter", "path": "/models/starter"}}}
    if is_chat:
        request = bodies.parse_chat({**asked, "messages": [{"role": "user", "content": "Hi"}]})
    else:
        request = bodies.parse_completion({**asked, "prompt": "Hi"})
    event = Event(0, "yes", (TokenLogprob(b"yes", -0.1, ()),), finish_reason="stop", usage=Usage(3, 1))
    reply = Reply(request)

    chunks = list(reply.chunks(event))

    assert [choice["logprobs"] for chunk in chunks for choice in chunk["choices"]] == [None, None]
    assert [choice["logprobs"] for choice in reply.body()["choices"]] == [None]


def test_a_status_is_one_of_six() -> None:
    schema = TypeAdapter(get_type_hints(JobService.show)["return"]).json_schema(mode="serialization")
    (status,) = forms(schema["properties"]["status"], schema)

    assert set(status["enum"]) == {"QUEUED", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED"}


@pytest.mark.parametrize(
    "untyped",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": True},
        {"type": "array", "items": {}},
    ],
)
def test_an_answer_without_a_schema_is_found(untyped: Schema) -> None:
    assert says_nothing(untyped, {})
    assert not says_nothing({"type": "array", "items": {"type": "object", "properties": {"id": {"type": "string"}}}}, {})


def test_a_shape_that_has_changed_is_found() -> None:
    schema = {
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
    }

    assert differences(schema, {"id": STR, "name": STR, "rows": [STR]}, schema) == [
        ".id is ['integer'], documented as string",
        ".name may be left out",
        ".rows is missing",
    ]
