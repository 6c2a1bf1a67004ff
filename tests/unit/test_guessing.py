"""What the columns of a file are guessed to be, and what a choice on the page makes of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.datasets import guessing
from studio.datasets.column_names import meaning
from studio.datasets.detecting import detect
from studio.datasets.first_rows import MAX_CELL_CHARS, MAX_COLUMNS_SHOWN, first_rows
from studio.datasets.ingest import open_ingest
from studio.datasets.shapes import columns_of
from studio.errors import DatasetError
from studio.records import FirstRows


def table(tmp_path: Path, text: str, name: str = "rows.csv") -> FirstRows:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return first_rows(path, None, tmp_path, 5)


@pytest.mark.parametrize(
    ("names", "language"),
    [
        ("Frage;Antwort", "German"),
        ("Kunden-Frage;Antwort (kurz)", "German"),
        ("Réponse;Consigne", "French"),
        ("Pregunta;Respuesta", "Spanish"),
        ("вопрос;ответ", "Russian"),
        ("用户问题;标准答案", "Chinese"),
        ("質問;応答", "Japanese"),
        ("질문;답변", "Korean"),
        ("سؤال;جواب", "Arabic"),
        ("customerQuestion;agent_reply", "English"),
    ],
)
def test_a_question_and_its_answer_are_known_in_many_languages(tmp_path: Path, names: str, language: str) -> None:
    found = table(tmp_path, f"{names}\nx;y\n")

    first, second = names.split(";")
    columns = {first: "prompt", second: "completion"}
    if language == "French":
        columns = {second: "prompt", first: "completion"}
    assert found.mapping == {role: name for name, role in columns.items()} and found.is_certain
    assert all(language in column.reason or language == "English" for column in found.columns)


@pytest.mark.parametrize("name", ["question_id", "Antwort-Datum", "answer_score", "Notiz", "x", "", "1", "𝓑𝓮𝓻𝓰"])
def test_names_that_only_hold_such_a_word_say_nothing(name: str) -> None:
    assert meaning(name) is None


def test_an_answer_under_a_foreign_name_does_not_leave_prompts_alone(tmp_path: Path) -> None:
    found = table(tmp_path, "prompt;Antwort;id\nx;y;1\n")

    assert (found.format, found.mapping) == ("prompt-completion", {"prompt": "prompt", "completion": "Antwort"})


def test_a_label_and_a_worse_answer_change_what_rows_are(tmp_path: Path) -> None:
    labelled = table(tmp_path, "Frage;Antwort;Bewertung\nx;y;1\nz;w;0\n")
    paired = table(tmp_path, "prompt;chosen;worse\nx;y;z\n")

    assert labelled.format == "kto" and labelled.mapping["label"] == "Bewertung"
    assert paired.format == "preference" and paired.mapping["rejected"] == "worse"


def test_contents_are_a_guess_and_said_to_be_one(tmp_path: Path) -> None:
    found = table(tmp_path, "wort;art;sinn\nHaus;n;house\nBaum;n;tree\nBach;n;brook\n")

    assert found.mapping == {"prompt": "wort", "completion": "sinn"}
    assert not found.is_certain and found.refusal is not None and "wort, art, sinn" in found.refusal
    assert [column.reason.split(":")[0] for column in found.columns] == ["A guess", "Not used", "A guess"]


def test_a_conversation_under_a_foreign_name_is_read_with_its_answers(tmp_path: Path) -> None:
    turns = '[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]'
    found = table(tmp_path, f'{{"gesprek": {turns}, "bron": "z"}}\n', "rows.jsonl")

    assert (found.format, list(found.mapping.values())) == ("sharegpt", ["gesprek"])


def test_a_column_that_says_how_rows_are_meant_says_so_where_its_values_do(tmp_path: Path) -> None:
    marked = table(tmp_path, "prompt;completion;weight\nx;y;0\n")
    plain = table(tmp_path, "prompt;completion;weight\nx;y;1\n")

    assert [column.says for column in marked.columns] == ["holds what is asked", "holds answers", "says what is to be learned of a row"]
    assert plain.columns[2].says is None


def test_a_refusal_names_the_mapping_that_the_names_suggest_and_it_works(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Kunden Frage;Antwort;Notiz\nx;y;z\n")
    with pytest.raises(DatasetError) as refused, open_ingest(path):
        pass
    assert "--format prompt-completion --map prompt='Kunden Frage' --map completion=Antwort" in refused.value.fix

    with open_ingest(path, format="prompt-completion", mapping={"prompt": "Kunden Frage", "completion": "Antwort"}) as ingest:
        assert len(list(ingest)) == 1


def test_three_texts_without_a_name_are_left_to_the_person(tmp_path: Path) -> None:
    found = table(tmp_path, "a;b;c\nu;v;w\nx;y;z\n")

    assert found.mapping == {} and [row.cells for row in found.rows] == [["u", "v", "w"], ["x", "y", "z"]]


def test_the_table_is_bounded_and_keeps_the_columns_that_count(tmp_path: Path) -> None:
    names = [f"n{n}" for n in range(MAX_COLUMNS_SHOWN + 20)] + ["prompt", "completion"]
    found = table(tmp_path, ";".join(names) + "\n" + ";".join(["x" * 1000] * len(names)) + "\n")

    shown = [column.name for column in found.columns]
    assert len(shown) == MAX_COLUMNS_SHOWN and shown[-2:] == ["prompt", "completion"]
    assert sorted([*shown, *found.more_columns]) == sorted(names)
    assert {len(cell) for cell in found.rows[0].cells} == {MAX_CELL_CHARS + 1}


def test_a_row_that_cannot_be_read_stands_in_the_table_with_its_line(tmp_path: Path) -> None:
    found = table(tmp_path, '{"q": "x"}\nnope\n{"q": ["y"]}\n', "rows.jsonl")

    assert [(row.line, row.cells, bool(row.problem)) for row in found.rows] == [(1, ["x"], False), (2, [], True), (3, ['["y"]'], False)]


@pytest.mark.parametrize(
    ("format", "mapping", "column", "role", "expected"),
    [
        ("prompts", {"prompt": "A"}, "B", "completion", ("prompt-completion", {"prompt": "A", "completion": "B"})),
        ("alpaca", {"instruction": "A", "output": "B"}, "C", "label", ("kto", {"prompt": "A", "completion": "B", "label": "C"})),
        ("alpaca", {"instruction": "A", "output": "B"}, "C", "context", ("alpaca", {"instruction": "A", "output": "B", "input": "C"})),
        ("prompt-completion", {"prompt": "A", "completion": "B"}, "B", "", ("prompt-completion", {"prompt": "A"})),
        (
            "prompt-completion",
            {"prompt": "A", "completion": "B"},
            "A",
            "completion",
            ("prompt-completion", {"prompt": "B", "completion": "A"}),
        ),
        ("prompt-completion", {"prompt": "A", "completion": "B"}, "B", "rejected", ("preference", {"prompt": "A", "rejected": "B"})),
    ],
)
def test_the_format_follows_a_choice(
    format: str, mapping: dict[str, str], column: str, role: str, expected: tuple[str, dict[str, str]]
) -> None:
    assert guessing.reassign(format, mapping, column, role) == expected


def test_a_role_that_is_mapped_to_nothing_stays_empty_whatever_the_names_say() -> None:
    columns = columns_of([{"prompt": "x", "completion": "y", "system": "z"}])

    assert detect(columns, None, {"system": ""}).mapping == {"prompt": "prompt", "completion": "completion"}
    with pytest.raises(DatasetError, match="prompt, completion, system"):
        detect(columns, "prompt-completion", {"completion": ""})
