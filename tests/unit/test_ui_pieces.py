"""Text from outside stays text in every piece of the page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from studio.errors import ConfigError, DatasetError
from studio.ui import pieces

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)\' ${alert(4)} {{value}} `'
PROGRESS = {"step": 3, "max_steps": 10, "eta_s": 12.0}
JOB = {"id": HOSTILE, "name": HOSTILE, "status": "FAILED", "progress": PROGRESS, "reason": HOSTILE, "fix": HOSTILE, "facts": HOSTILE}
DATASET = {"id": HOSTILE, "name": HOSTILE, "rows": 2, "skipped": 1, "kind": "sft", "format": HOSTILE}
TURNS = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
ROWS = [
    {"messages": TURNS},
    {"prompt": HOSTILE, "completion": HOSTILE},
    {"text": HOSTILE},
    {"prompt": TURNS, "chosen": TURNS, "rejected": TURNS},
]
PROBLEM = {"line": 1, "problem": HOSTILE, "fix": HOSTILE}
READING = {"format": HOSTILE, "kind": HOSTILE, "notes": [HOSTILE], "total": 2, "problems": [PROBLEM], "problem_count": 1, "rows": ROWS}
RENDERED = {"p50": 1, "p95": 2, "p99": 3, "share_truncated": 0.5, "share_without_learned_tokens": 0.0}
TOKENS = [{"pieces": [[HOSTILE, True]], "truncated": True, "problem": ""}, {"pieces": [], "truncated": False, "problem": HOSTILE}]
ANSWER = {"contestant": HOSTILE, "toy": True, "text": HOSTILE, "error": "", "match": False, "seconds": 1.0}
COMPARISON = {
    "name": HOSTILE,
    "state": "RUNNING",
    "reason": HOSTILE,
    "fix": HOSTILE,
    "part": 0.5,
    "progress": HOSTILE,
    "scores": [{"contestant": HOSTILE, "text": HOSTILE}],
    "first": 1,
    "rows": [{"prompt": HOSTILE, "reference": HOSTILE, "answers": [ANSWER, {**ANSWER, "error": HOSTILE}]}],
}
MESSAGE = {"role": "assistant", "who": HOSTILE, "toy": True, "content": HOSTILE, "state": "failed", "note": HOSTILE}
PIECES: dict[str, dict[str, Any]] = {
    "notice": {"tone": "bad", "message": HOSTILE, "fix": HOSTILE, "items": []},
    "empty": {"sentence": HOSTILE, "button": HOSTILE, "act": HOSTILE, "data": {"id": HOSTILE}},
    "sentence": {"text": HOSTILE},
    "strip": {"chips": [{"icon": "run", "text": HOSTILE, "tone": HOSTILE, "tab": HOSTILE, "job": HOSTILE, "part": 0.5}]},
    "doctor": {"checks": [{"name": HOSTILE, "ok": False, "detail": HOSTILE, "fix": HOSTILE}], "troubles": 1},
    "reading": READING,
    "dataset": {"dataset": DATASET, "kind": HOSTILE, "rows": ROWS, "first": 1},
    "datasets": {"datasets": [DATASET], "kinds": {"sft": HOSTILE}, "selected": HOSTILE},
    "tokens": {"rendered": RENDERED, "rows": TOKENS, "warnings": [HOSTILE], "max_length": 8},
    "jobs": {"jobs": [JOB], "selected": HOSTILE},
    "job": {"job": JOB, "facts": HOSTILE, "part": 0.1, "progress": HOSTILE, "readings": [(HOSTILE, HOSTILE)], "events": [HOSTILE]},
    "log": {"text": HOSTILE},
    "transcript": {"messages": [MESSAGE]},
    "live": {"who": HOSTILE, "toy": True, "text": HOSTILE, "waiting": HOSTILE},
    "conversations": {"conversations": [{"id": HOSTILE, "title": HOSTILE, "updated_at": 1.0}], "selected": HOSTILE},
    "comparisons": {"comparisons": [{"id": HOSTILE, "name": HOSTILE, "facts": HOSTILE}], "selected": HOSTILE},
    "comparison": COMPARISON,
}


class Page(HTMLParser):
    """What a browser would make of it: tags, attribute names, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", PIECES)
def test_text_from_outside_stays_text(name: str) -> None:
    page = Page(pieces.piece(name, **PIECES[name]))

    assert not page.tags & {"script", "img", "iframe", "object", "style"}
    assert not [attribute for attribute in page.attributes if attribute.startswith("on")]
    assert HOSTILE in page.text


def test_a_form_with_several_problems_shows_all_of_them() -> None:
    error = ConfigError("two things.", problems=["lora.r=0: too small", "learning_rate=9: too big"])

    assert Page(pieces.notice(error)).text.count("too") == 2


def test_a_file_with_many_problems_is_told_in_one_line() -> None:
    error = DatasetError("bad.jsonl, line 2: not valid JSON (3 problems in all).", "Mend it.", problems=[PROBLEM] * 3)

    assert "<li>" not in pieces.notice(error)
    assert "3 problems in all" in pieces.notice(error)
