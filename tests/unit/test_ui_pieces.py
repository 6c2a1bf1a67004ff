"""Text from outside stays text in every piece of the page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from studio.errors import ConfigError, DatasetError
from studio.ui import histogram, lineage, pieces, tokens

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)\' ${alert(4)} {{value}} `'
PROGRESS = {"step": 3, "max_steps": 10, "eta_s": 12.0}
JOB = {"id": HOSTILE, "name": HOSTILE, "status": "FAILED", "progress": PROGRESS, "reason": HOSTILE, "fix": HOSTILE, "facts": HOSTILE}
QUEUED = {**JOB, "up": HOSTILE, "down": HOSTILE, "look": "run-1", "pickable": True, "tags": [HOSTILE]}
DATASET = {
    "id": HOSTILE,
    "name": HOSTILE,
    "rows": 2,
    "skipped": 1,
    "kind": "sft",
    "format": HOSTILE,
    "bytes": 9,
    "depth": 1,
    "made": HOSTILE,
}
TURNS = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
ROWS = [
    {"messages": [*TURNS, {"role": "assistant", "content": "", "tool_calls": [{"name": HOSTILE}]}], "tools": [{"name": HOSTILE}]},
    {"prompt": HOSTILE, "completion": HOSTILE},
    {"text": HOSTILE},
    {"prompt": TURNS, "chosen": TURNS, "rejected": TURNS},
]
PROBLEM = {"line": 1, "problem": HOSTILE, "fix": HOSTILE}
READING = {"format": HOSTILE, "kind": HOSTILE, "notes": [HOSTILE], "total": 2, "problems": [PROBLEM], "problem_count": 1, "rows": ROWS}
RENDERED = {"p50": 1, "p95": 2, "p99": 3, "share_truncated": 0.5, "share_without_learned_tokens": 0.0}
TOKENS = [
    {"row": 1, "pieces": [[HOSTILE, "learned"], [HOSTILE, "cut"]], "length": 9, "learned": 2, "truncated": True, "problem": ""},
    {"row": 2, "pieces": [], "length": 0, "learned": 0, "truncated": False, "problem": HOSTILE},
]
SEEN = {"rendered": RENDERED, "rows": TOKENS, "warnings": [HOSTILE], "max_length": 8}
LENGTHS = {"p50": 1, "p95": 2, "p99": 3, "max": 3, "histogram": [{"from": 1, "to": 4, "count": 2}]}
DRAWING = histogram.lengths(LENGTHS, HOSTILE, HOSTILE, 2)
FINDING = {"check": HOSTILE, "title": HOSTILE, "count": 2, "rows": [1], "more": 1, "examples": [{"row": 1, "text": HOSTILE}]}
FINDING |= {"explanation": HOSTILE, "fix": HOSTILE, "action": "drop", "severity": HOSTILE, "share": 0.5, "button": HOSTILE}
FOUND = {"total": 2, "check": None, "error": None, "report": {"rows": 2}, "findings": [FINDING], "fixable": 2, "told": HOSTILE}
DIFFERENCE = {"row": 1, "position": 3, "reason": HOSTILE, "shared": HOSTILE, "training_next": HOSTILE, "chat_next": HOSTILE}
PARITY = {"same": False, "rows": 2, "identical": 1, "skipped": 0, "first_difference": DIFFERENCE}
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
MESSAGE = {
    "role": "assistant",
    "who": HOSTILE,
    "toy": True,
    "content": HOSTILE,
    "state": "failed",
    "note": HOSTILE,
    "notes": [HOSTILE],
    "position": 1,
    "corrected": True,
    "good": True,
}
PIECES: dict[str, dict[str, Any]] = {
    "notice": {"tone": "bad", "message": HOSTILE, "fix": HOSTILE, "items": []},
    "empty": {"sentence": HOSTILE, "button": HOSTILE, "act": HOSTILE, "data": {"id": HOSTILE}},
    "sentence": {"text": HOSTILE},
    "strip": {"chips": [{"icon": "run", "text": HOSTILE, "tone": HOSTILE, "tab": HOSTILE, "job": HOSTILE, "part": 0.5}]},
    "doctor": {"checks": [{"name": HOSTILE, "ok": False, "detail": HOSTILE, "fix": HOSTILE}], "troubles": 1},
    "reading": READING,
    "dataset": {"dataset": DATASET, "kind": HOSTILE, "source": HOSTILE, "versions": [DATASET, DATASET]},
    "kept_rows": {"rows": ROWS, "first": 1, "total": 4, "marked": 2},
    "findings": FOUND,
    "histogram": {"drawing": DRAWING},
    "statistics": {"report": {"rows": 2}, "drawings": [DRAWING], "languages": [{"name": HOSTILE, "share": 0.5}], "told": HOSTILE},
    "learned": {"drawing": DRAWING, "offer": True, "p99": 3, **SEEN},
    "parity": {"found": PARITY},
    "template": {"title": HOSTILE, "about": HOSTILE, "pieces": [[HOSTILE, "learned"]], "problem": "", "stops": [HOSTILE]},
    "datasets": {"datasets": [DATASET], "kinds": {"sft": HOSTILE}, "selected": HOSTILE},
    "tokens": SEEN,
    "jobs": {"groups": [{"title": HOSTILE, "jobs": [QUEUED], "more": HOSTILE}], "selected": HOSTILE, "picking": True},
    "queue": {"sentence": HOSTILE, "paused": True, "busy": True, "picking": False, "comparable": True},
    "job_actions": {"id": HOSTILE, "actions": [("retry", HOSTILE, "")], "remedy": [(HOSTILE, HOSTILE, HOSTILE)]},
    "runs": {
        "jobs": [{**JOB, "look": "run-1"}],
        "overlay": None,
        "parts": [(HOSTILE, [(HOSTILE, [HOSTILE])])],
        "same": HOSTILE,
        "sentence": "",
    },
    "job": {"job": JOB, "facts": HOSTILE, "part": 0.1, "progress": HOSTILE, "readings": [(HOSTILE, HOSTILE)], "events": [HOSTILE]},
    "log": {"text": HOSTILE},
    "transcript": {"turns": [[{**MESSAGE, "role": "user", "state": ""}], [MESSAGE, MESSAGE]]},
    "live": {"answers": [{"who": HOSTILE, "toy": True, "text": HOSTILE, "waiting": HOSTILE}] * 2},
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


def test_what_training_cuts_off_is_shown_and_struck() -> None:
    row = {"row": 1, "tokens": ["a", "b", "c"], "learned": [False, True, True], "cut": ["d", "e"], "length": 5, "truncated": True}

    assert tokens.coloured(row)["pieces"] == [["a", "read"], ["bc", "learned"], ["de", "cut"]]


def test_a_long_row_is_shortened_on_the_page_alone() -> None:
    row = {"row": 1, "tokens": ["word "] * 9_000, "learned": [True] * 9_000, "cut": ["end"], "length": 9_001, "truncated": True}

    shown = tokens.coloured(row)["pieces"]

    assert [fate for _, fate in shown] == ["learned", "cut"] and len(shown[0][0]) < 2_100
    assert tokens.coloured(row)["learned"] == 9_000


def test_versions_stand_behind_what_they_were_made_of() -> None:
    def dataset(name: str, parent: str | None, created_at: float, **how: Any) -> dict[str, Any]:
        return {"id": name, "name": name, "parent": parent, "created_at": created_at, "provenance": how}

    rows = [
        dataset("old", None, 1),
        dataset("new", None, 2),
        dataset("old-fixed", "old", 3, made_by="fix", dropped=2),
        dataset("old-fixed-2", "old-fixed", 4, made_by="delete", dropped=1),
        dataset("orphan", "gone", 0),
    ]

    found = [(row["name"], row["depth"], row["made"]) for row in lineage.ordered(rows)]

    assert found == [
        ("old", 0, ""),
        ("old-fixed", 1, "fixed: 2 rows dropped"),
        ("old-fixed-2", 2, "1 row removed"),
        ("new", 0, ""),
        ("orphan", 0, ""),
    ]


@pytest.mark.parametrize(
    ("text", "ends"),
    [("\u202eevil", "\u202c"), ("\u2067a\u202db", "\u2069\u202c"), ("\u202ba\u202c", ""), ("<b>plain</b>", ""), ("übel", "")],
)
def test_a_text_that_turns_its_direction_does_not_turn_the_words_after_it(text: str, ends: str) -> None:
    shown = pieces.piece("sentence", text=text)

    assert shown == f"<p>{text.replace('<', '&lt;').replace('>', '&gt;')}{ends}</p>"
