"""A thousand answers under random JSON schemas with bounded strings, through /v1: `make bench TOPICS=schemas`.

Asked of the starter, and of stories260K (STUDIO_TEST_DATA), which has never seen JSON; hot, so that only the grammar holds them.
Every answer has to end by itself, parse, and be valid.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from studio import settings as studio_settings
from tests.servers import clean_environment, studio

ANSWERS, AT_ONCE = 1000, 12
PROMPT = "Tell me about a day by the sea, as JSON."


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    stories = studio_settings.load().test_data / "models" / "stories260K"
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        home = Path(name) / "home"
        home.mkdir()
        names = ["starter"]
        if stories.is_dir():
            command = [sys.executable, "-m", "studio", "models", "add", str(stories), "--name", "stories"]
            subprocess.run(command, env=clean_environment(home), check=True, stdout=subprocess.DEVNULL)
            names.append("stories")
        with studio(home) as running, httpx.Client(base_url=running.url, timeout=600, trust_env=False) as client:
            return [_asked(client, model) for model in names]


def _asked(client: httpx.Client, model: str) -> dict[str, Any]:
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [why for why in pool.map(lambda number: _wrong(client, model, number), range(ANSWERS)) if why]
    against = f"{time.monotonic() - begun:.0f} s" + (f"; {len(wrong)} are not, such as {wrong[0]}" if wrong else "")
    return {
        "measure": f"{model}: answers that are as their schema says",
        "value": ANSWERS - len(wrong),
        "unit": f"of {ANSWERS}",
        "against": against,
    }


def _wrong(client: httpx.Client, model: str, number: int) -> str:
    """What is wrong with one answer; nothing where all is well."""
    schema = make_schema(random.Random(number))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "temperature": 1.5, "seed": number, "response_format": form}
    while (response := client.post("/v1/chat/completions", json=body)).status_code == 429:
        time.sleep(float(response.headers["retry-after"]))
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text[:200]}"
    choice = response.json()["choices"][0]
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    except (ValueError, jsonschema.ValidationError) as exc:
        return f"schema {number}: {str(exc)[:200]}"
    return "" if choice["finish_reason"] == "stop" else f"schema {number}: ended by {choice['finish_reason']}"


def make_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """An object with one to four fields, some of them lists and objects again; everything in it is bounded."""
    names = source.sample(["name", "city", "why", "score", "tags", "is_open", "point", "note"], source.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(source, depth) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _value(source: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["text", "choice", "integer", "number", "flag", "nothing", *(["list", "object"] if depth < 2 else [])]
    kind = source.choice(kinds)
    lowest = source.randint(-50, 50)
    plain: dict[str, dict[str, Any]] = {
        "text": {"type": "string", "maxLength": source.randint(1, 24)},
        "choice": {"enum": source.sample(["yes", "no", "red", "größer", "", 'a "b"', 7, None], source.randint(1, 4))},
        "integer": {"type": "integer", "minimum": lowest, "maximum": lowest + source.randint(0, 1000)},
        "number": {"enum": [0.5, -1.25, 3]},
        "flag": {"type": "boolean"},
        "nothing": {"type": ["string", "null"], "maxLength": 6},
    }
    if kind == "list":
        return {"type": "array", "items": _value(source, depth + 1), "minItems": source.randint(0, 1), "maxItems": source.randint(1, 3)}
    return make_schema(source, depth + 1) if kind == "object" else plain[kind]
