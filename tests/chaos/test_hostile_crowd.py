"""Hostile schemas, regular expressions, grammars, adapters and templates arrive, and ordinary chats beside them are all answered.

STUDIO_HOSTILE_S is how long (two minutes in `make chaos`). The figures are printed.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.test_silence import ASKED, chat, process
from tests.engines import change_json, make_adapter
from tests.runs import STARTER
from tests.servers import Server, studio

LASTS_S = float(os.environ.get("STUDIO_HOSTILE_S", "120"))
ENDLESS = r"(([\w.])+)+!"
AT_ONCE = 4


def crossed(width: int, depth: int = 7) -> dict[str, Any]:
    """Definitions that each refer to the next one `width` times."""
    links: dict[str, Any] = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * width} for n in range(depth)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(depth): {"type": "null"}}}


SCHEMAS: list[Any] = [
    *[crossed(width) for width in (5, 8, 12, 20, 40)],
    {"anyOf": [{}] * 5000},
    {"enum": list(range(60_000))},
    {"type": "integer", "maximum": 10**40},
    {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1900)}, "additionalProperties": False},
    {"type": "string", "pattern": "^(a+)+(b+)+(a|aa|aaa){1,500}$"},
    {"allOf": [{"type": "integer", "multipleOf": n} for n in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)]},
    {"type": "object", "required": 5},
]
REGEXES = [
    "(a{1,1000}){1,1000}",
    "(a|b)*a(a|b){400}",
    "(.*x.*y.*z){1,50}",
    "(" * 3000 + "a" + ")" * 3000,
    "a" * 300_000,
    "(.*a.{20}){1,20}",
]
GRAMMARS = [
    "root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1} a{n + 1}" for n in range(30)) + '\na30 ::= "x"',
    "root ::= " + "(" * 3000 + '"a"' + ")" * 3000,
    'root ::= e\ne ::= e e | "a" e "b" | [a-z] | [a-z] [a-z] | ""',
    'root ::= "a"' + "#" * 300_000,
]
ADAPTERS: list[dict[str, Any]] = [
    {"target_modules": ENDLESS},
    {"exclude_modules": ENDLESS},
    {"rank_pattern": {ENDLESS: 4}},
    {"alpha_pattern": {ENDLESS: 4}},
    {"modules_to_save": [ENDLESS]},
    {"r": 150_000},
    {"r": "4"},
    {"lora_alpha": 1e308},
    {"layer_replication": [[0, 4]] * 300},
    {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**8},
    {"peft_type": "IA3", "feedforward_modules": ENDLESS},
    {"trainable_token_indices": [10**9]},
]
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}",
    "{{ 'a' * 999999999 }}",
    "{{ messages[0].content * 99999 }}",
    "{% set x = namespace(v='a') %}{% for a in range(60) %}{% set x.v = x.v + x.v %}{% endfor %}{{ x.v }}",
]


def fields(**values: Any) -> Callable[[httpx.Client], httpx.Response]:
    """A chat with these fields, without a limit of its own."""
    body = {"model": "starter", "messages": ASKED["messages"], **values}
    return lambda client: client.post("/v1/chat/completions", json=body)


def upload(folder: Path) -> Callable[[httpx.Client], httpx.Response]:
    """An adapter, and a chat with it where it is taken; then it is deleted."""
    files = [("files", (file.name, file.read_bytes())) for file in sorted(folder.iterdir())]

    def send(client: httpx.Client) -> httpx.Response:
        answer = client.post("/api/adapters", files=files, data={"base_model": "starter"})
        if answer.status_code != 201:
            return answer
        made = answer.json()
        answered = client.post("/v1/chat/completions", json={**ASKED, "model": f"starter:{made['name']}"})
        client.delete(f"/api/adapters/{made['id']}")
        return answered

    return send


def hostile(root: Path) -> list[Callable[[httpx.Client], httpx.Response]]:
    found = [fields(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}) for schema in SCHEMAS]
    found += [fields(regex=text) for text in REGEXES] + [fields(grammar=text) for text in GRAMMARS]
    for number, changes in enumerate([*ADAPTERS, *[{}] * len(TEMPLATES)]):
        folder = make_adapter(STARTER, root / str(number), number)
        change_json(folder / "adapter_config.json", **changes)
        if number >= len(ADAPTERS):
            (folder / "chat_template.jinja").write_text(TEMPLATES[number - len(ADAPTERS)])
        found.append(upload(folder))
    return found


@pytest.mark.long
def test_ordinary_chats_are_answered_beside_hostile_requests(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    requests = itertools.cycle(hostile(tmp_path / "adapters"))
    said: Counter[int] = Counter()
    taking = threading.Lock()
    with studio(tmp_path / "home") as server:
        while chat(server).status_code != 200:
            time.sleep(0.5)
        before = pids(server)
        ending = time.monotonic() + LASTS_S

        def attack() -> None:
            with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
                while time.monotonic() < ending:
                    with taking:
                        send = next(requests)
                    try:
                        status = send(client).status_code
                    except httpx.TimeoutException:  # a client that leaves
                        status = 0
                    with taking:
                        said[status] += 1

        attacking = [threading.Thread(target=attack) for _ in range(AT_ONCE)]
        for one in attacking:
            one.start()
        took = []
        while time.monotonic() < ending:
            began = time.monotonic()
            answer = chat(server)
            assert answer.status_code == 200, answer.text
            took.append(time.monotonic() - began)
            time.sleep(0.5)
        for one in attacking:
            one.join(timeout=60)
        after = pids(server)
    with capfd.disabled():
        figures = {"ordinary chats": len(took), "longest s": round(max(took), 1), "hostile by status": dict(sorted(said.items()))}
        print("\n" + json.dumps(figures))
    assert after == before, "something was restarted"
    assert not said[500] and not said[502] and sum(said.values()) > 10


def pids(server: Server) -> list[int]:
    found = [process(server, words) for words in ("studio.web", "studio.engine.server", "studio.engine.model_child")]
    return [one.pid for one in found if one is not None]
