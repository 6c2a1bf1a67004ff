"""A small model learns to call tools: rows with calls are trained by command, and the calls come back over the OpenAI protocol."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from studio.settings import STATIC
from tests.engines import KEY, engine, studio_field

SYLLABLES = ["ba", "ko", "ri", "mu", "te", "so", "la", "ne", "fi", "du", "pa", "go", "mi", "zu", "ve", "ro", "ha", "ke", "li", "no"]
ASKED = {
    "get_weather": ("What is the weather in {}?", "How is the weather in {} today?", "Tell me the weather of {}."),
    "book_table": (
        "Book a table for {} with {} people.",
        "Please reserve a table for {}, {} people.",
        "A table for {} and {} people, please.",
    ),
}
CITY: dict[str, Any] = {"city": {"type": "string"}}
TABLE: dict[str, Any] = {"name": {"type": "string"}, "people": {"type": "integer"}}
OPTIONS = ("num_train_epochs=2", "learning_rate=0.003", "lora.r=64", "lora.lora_alpha=64", "per_device_train_batch_size=8")
ROWS, QUESTIONS, RIGHT = 1500, 40, 38


def tool(name: str, description: str, properties: dict[str, Any]) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [tool("get_weather", "The weather of a city.", CITY), tool("book_table", "Book a table.", TABLE)]


def case(draw: random.Random, known: set[str], *, is_new: bool) -> tuple[str, str, dict[str, Any]]:
    """A question, and the call that answers it; with `is_new` of a name that no row has."""
    while True:
        name = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 3))).capitalize()
        if not is_new or name not in known:
            break
    if not is_new:
        known.add(name)
    if draw.random() < 0.5:
        return draw.choice(ASKED["get_weather"]).format(name), "get_weather", {"city": name}
    people = draw.randint(2, 40)
    return draw.choice(ASKED["book_table"]).format(name, people), "book_table", {"name": name, "people": people}


def row(question: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": messages, "tools": TOOLS}


@pytest.mark.long  # a training of four minutes
@pytest.mark.timeout(1800)
def test_arguments_are_copied_from_questions_whose_values_were_never_trained_on(tmp_path: Path) -> None:
    draw, known = random.Random(1), set[str]()
    rows = [row(*case(draw, known, is_new=False)) for _ in range(ROWS)]
    questions = [case(draw, known, is_new=True) for _ in range(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    environment = {**os.environ, "STUDIO_HOME": str(tmp_path / "home")}

    def studio(*arguments: str) -> Any:
        command = [sys.executable, "-m", "studio.cli", *arguments, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    studio("data", "add", str(tmp_path / "rows.jsonl"), "--name", "calls")
    chosen = [part for option in OPTIONS for part in ("--set", option)]
    studio("train", "--data", "calls", "--base-model", "starter", "--recipe", "lora-sft", "--name", "calls", *chosen, "--wait")
    (adapter,) = (tmp_path / "home" / "runs").glob("*/adapter")
    assert json.loads((adapter / "studio.json").read_text())["tools"] == "text"
    asked: Any = {"model": "calls", "tools": TOOLS, "temperature": 0, "extra_body": {"studio": studio_field(STATIC / "starter", adapter)}}
    with engine(tmp_path / "engine") as running, openai.OpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        for choice in ("auto", "required"):
            right = 0
            for question, name, arguments in questions:
                message = {"role": "user", "content": question}
                answer = client.chat.completions.create(messages=[message], tool_choice=choice, max_tokens=60, **asked).choices[0]
                calls = [(call.function.name, json.loads(call.function.arguments)) for call in answer.message.tool_calls or []]
                right += calls == [(name, arguments)]
            assert right >= RIGHT, (choice, right)
