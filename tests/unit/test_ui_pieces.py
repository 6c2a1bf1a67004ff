"""What the functions that fill templates make of their data. tests/unit/test_ui_templates.py tries the templates themselves."""

from __future__ import annotations

from typing import Any

import pytest

from studio.errors import ConfigError, DatasetError
from studio.records import Dataset, DatasetKind, RenderedRow
from studio.ui import lineage, pieces, tokens

PROBLEM = {"line": 1, "problem": "not valid JSON", "fix": "Correct it."}


def test_a_form_with_several_problems_shows_all_of_them() -> None:
    error = ConfigError("two things.", problems=["lora.r=0: too small", "learning_rate=9: too big"])

    assert pieces.notice(error).count("<li>") == 2 and pieces.notice(error).count("too") == 2


def test_a_file_with_many_problems_is_told_in_one_line() -> None:
    error = DatasetError("bad.jsonl, line 2: not valid JSON (3 problems in all).", "Mend it.", problems=[PROBLEM] * 3)

    assert "<li>" not in pieces.notice(error)
    assert "3 problems in all" in pieces.notice(error)


def rendered(tokens: list[str], learned: list[bool], cut: list[str], length: int) -> RenderedRow:
    return RenderedRow(row=1, text="", tokens=tokens, ids=[], learned=learned, cut=cut, cut_learned=[], truncated=True, length=length)


def test_what_training_cuts_off_is_shown_and_struck() -> None:
    row = rendered(tokens=["a", "b", "c"], learned=[False, True, True], cut=["d", "e"], length=5)

    assert tokens.coloured(row)["pieces"] == [["a", "read"], ["bc", "learned"], ["de", "cut"]]


def test_a_long_row_is_shortened_on_the_page_alone() -> None:
    row = rendered(tokens=["word "] * 9_000, learned=[True] * 9_000, cut=["end"], length=9_001)

    shown = tokens.coloured(row)["pieces"]

    assert [fate for _, fate in shown] == ["learned", "cut"] and len(shown[0][0]) < 2_100
    assert tokens.coloured(row)["learned"] == 9_000


def test_versions_stand_behind_what_they_were_made_of() -> None:
    def dataset(name: str, parent: str | None, created_at: float, **how: Any) -> Dataset:
        return Dataset(
            id=name, name=name, kind=DatasetKind.SFT, format="alpaca", rows=1, skipped=0, mapping={}, source="a", bytes=1, sha256="",
            parent=parent, provenance=how, created_at=created_at,
        )  # fmt: skip

    rows = [
        dataset("old", None, 1),
        dataset("new", None, 2),
        dataset("old-fixed", "old", 3, made_by="fix", dropped=2),
        dataset("old-fixed-2", "old-fixed", 4, made_by="delete", dropped=1),
        dataset("orphan", "gone", 0),
    ]

    found = [(row.name, depth, made) for row, depth, made in lineage.ordered(rows)]

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
