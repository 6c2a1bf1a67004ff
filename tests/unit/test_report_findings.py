"""The report of a whole file: planted faults are found, all of them and nothing else, and a fixed file has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.datasets.ingest import open_ingest
from studio.datasets.records import Problem
from studio.datasets.report import making, summary
from studio.datasets.report.checks import BY_NAME, CHECKS
from studio.datasets.report.fixing import Means, write_fixed
from studio.datasets.report.making import make
from studio.datasets.report.scan import disorder
from studio.datasets.report.table import RowTable
from studio.datasets.report.wanted import Wanted
from studio.settings import STATIC
from tests import plants
from tests.plants import chat

Rows = dict[str, list[int]]


def report(path: Path, kind: str = "sft", **options: Any) -> dict[str, Any]:
    return make(Wanted(str(path), kind, **options), lambda stage, share: None)


def found_in(path: Path, kind: str = "sft", **options: Any) -> Rows:
    return {check: rows for check, rows in report(path, kind, **options)["all_rows"].items() if rows}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    rows, where = plants.planted(120)
    return plants.write(tmp_path_factory.mktemp("faulty") / "rows.jsonl", rows), where


def test_every_planted_fault_is_found_and_nothing_else(faulty: tuple[Path, Rows]) -> None:
    path, where = faulty
    made = report(path)
    assert {finding["check"]: finding["rows"] for finding in made["findings"]} == where
    for finding in made["findings"]:
        check = BY_NAME[finding["check"]]
        assert finding.keys() == {"check", "title", "count", "rows", "examples", "explanation", "fix", "action", "severity", "names"}
        assert (finding["count"], finding["action"], finding["fix"]) == (len(where[check.name]), check.action, check.fix)
        shown = finding["examples"]
        assert [each["row"] for each in shown] == finding["rows"][:5] and all(len(each["text"]) <= 200 for each in shown)
    assert (made["rows"], made["checked"]) == (len(path.read_bytes().splitlines()), made["rows"])
    assert made["lengths"]["unit"] == "words" and made["languages"][0]["language"] == "en"


@pytest.mark.parametrize("check", [*plants.PLANTS, "exact_duplicates", "near_duplicates"])
def test_one_fix_mends_one_kind_and_touches_no_other_row(faulty: tuple[Path, Rows], tmp_path: Path, check: str) -> None:
    path, where = faulty
    fixed = write_fixed(path, tmp_path / "fixed.jsonl", {check: where[check]})
    before, after = path.read_bytes().splitlines(), (tmp_path / "fixed.jsonl").read_bytes().splitlines()
    others = [line for number, line in enumerate(before, start=1) if number not in where[check]]
    if BY_NAME[check].changes_rows:
        assert (fixed.changed, fixed.dropped, len(after)) == (len(where[check]), 0, len(before))
        assert [line for number, line in enumerate(after, start=1) if number not in where[check]] == others
    else:
        assert (fixed.changed, fixed.dropped) == (0, len(where[check])) and after == others
    left = {name: len(rows) for name, rows in found_in(tmp_path / "fixed.jsonl").items()}
    assert left == {name: len(rows) for name, rows in where.items() if name != check}


def test_all_fixes_together_leave_a_clean_file(faulty: tuple[Path, Rows], tmp_path: Path) -> None:
    path, where = faulty
    write_fixed(path, tmp_path / "fixed.jsonl", where)
    assert found_in(tmp_path / "fixed.jsonl") == {}


def test_several_processes_find_what_one_finds(faulty: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = faulty
    alone = report(path)
    for name, value in {"SMALL_ROWS": 0, "PART_ROWS": 50}.items():
        monkeypatch.setattr(making, name, value)
    monkeypatch.setattr(making, "available_cores", lambda: 2)
    several = report(path)
    assert several["all_rows"] == alone["all_rows"]
    assert several["findings"] == alone["findings"] and several["lengths"] == alone["lengths"]


def test_rows_of_another_dataset_are_leakage(tmp_path: Path) -> None:
    rows = plants.rows(60)
    other = plants.write(tmp_path / "other.jsonl", [*plants.rows(40, seed=9), rows[4], plants.nearly(rows[9], 2), rows[4]])
    mine = plants.write(tmp_path / "mine.jsonl", rows)
    assert found_in(mine, against=[str(other)]) == {"leakage": [5, 10]}
    asked = chat(rows[20]["messages"][0]["content"].upper(), plants.rows(1, seed=11)[0]["messages"][1]["content"])  # another answer to it
    again = plants.write(tmp_path / "again.jsonl", [*plants.rows(40, seed=9), asked])
    assert found_in(mine, against=[str(again)]) == {"leakage": [21]}
    write_fixed(mine, tmp_path / "moved.jsonl", {"leakage": [5, 10]})
    assert found_in(tmp_path / "moved.jsonl", against=[str(other)]) == {}


def test_tokens_that_are_cut_off(tmp_path: Path) -> None:
    rows = plants.rows(20)
    rows[3] = plants.answered(rows[3], rows[3]["messages"][1]["content"] * 2 + " And so it went on for a while." * 1)
    long_question = chat(" ".join(plants.row(plants.random.Random(n))["messages"][1]["content"] for n in range(8)), "That is a long story.")
    path = plants.write(tmp_path / "rows.jsonl", [*rows, long_question])
    lengths = report(path, model_folder=str(STATIC / "starter"), max_length=100_000)
    assert not lengths["findings"] and lengths["lengths"]["unit"] == "tokens"
    longest_but_one = int(np.sort(token_lengths(path))[-2])
    found = found_in(path, model_folder=str(STATIC / "starter"), max_length=longest_but_one)
    assert found == {"truncation": [21], "no_learned_tokens": [21]}


def token_lengths(path: Path) -> list[int]:
    from studio.datasets.report import tokens

    renderer = tokens.renderer(str(STATIC / "starter"), None)
    return [tokens.counted(renderer, json.loads(line), 100_000).length for line in path.read_bytes().splitlines()]


# what is no fault


@pytest.mark.parametrize("name", ["router.train", "router.eval", "extract.train", "extract.eval", "voice.train", "voice.eval"])
def test_the_demos_have_no_finding(name: str) -> None:
    assert found_in(STATIC / "demo" / f"{name}.jsonl") == {}


# published data: what is found there was looked at, row by row
PUBLISHED = {
    "gsm8k_test.jsonl": {},
    "identity.json": {"near_duplicates": 1, "language_mix": 16, "placeholders": 85},
    "alpaca_seed_tasks.jsonl": {"one_token_answers": 4, "language_mix": 2, "very_long": 1, "pii": 2, "placeholders": 3},
    "selfinstruct_user_oriented.jsonl": {"one_token_answers": 10, "language_mix": 1, "pii": 2, "placeholders": 10},
    "fastchat_dummy_conversation.json": {"near_duplicates": 269},
    "dpo_en_demo.json.gz": {"exact_duplicates": 5, "refusals": 2, "language_mix": 5, "pii": 1, "control_characters": 3, "placeholders": 3},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data(shared_data: Path, tmp_path: Path, name: str) -> None:
    with open_ingest(shared_data / "data" / "instructions" / name) as ingest:
        lines = [result for _, result in ingest if not isinstance(result, Problem)]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        kind = ingest.layout.format.kind
    assert {check: len(rows) for check, rows in found_in(tmp_path / "rows.jsonl", kind).items()} == PUBLISHED[name]


def test_two_equal_answers_are_no_pair(tmp_path: Path) -> None:
    rows = plants.rows(12)
    pairs = [plants.pair(row, plants.rows(1, seed=90 + n)[0]["messages"][1]["content"]) for n, row in enumerate(rows)]
    for number in (2, 7):
        pairs[number] = plants.pair(rows[number], f" {rows[number]['messages'][1]['content']}\n")
    path = plants.write(tmp_path / "pairs.jsonl", pairs)
    assert found_in(path, "preference") == {"identical_pairs": [3, 8]}
    write_fixed(path, tmp_path / "fixed.jsonl", {"identical_pairs": [3, 8]})
    assert found_in(tmp_path / "fixed.jsonl", "preference") == {} and len((tmp_path / "fixed.jsonl").read_bytes().splitlines()) == 10


@pytest.mark.parametrize("mark", [True, False])
def test_one_class_only_is_found_and_the_good_answers_become_rows_to_imitate(tmp_path: Path, mark: bool) -> None:
    rows = plants.rows(8)
    marked = [{"prompt": row["messages"][:1], "completion": row["messages"][1:], "label": mark} for row in rows]
    path = plants.write(tmp_path / "marked.jsonl", marked)
    assert found_in(path, "unpaired-preference") == {"single_class": [*range(1, 9)]}
    assert report(path, "unpaired-preference")["findings"][0]["examples"][0]["text"].startswith("marked good" if mark else "marked bad")
    fixed = write_fixed(path, tmp_path / "fixed.jsonl", {"single_class": [*range(1, 9)]})
    if not mark:
        assert fixed.rows == 0
        return
    assert [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_bytes().splitlines()] == rows
    mixed = plants.write(
        tmp_path / "mixed.jsonl", [*marked, {**marked[0], "completion": plants.rows(1, seed=5)[0]["messages"][1:], "label": not mark}]
    )
    assert found_in(mixed, "unpaired-preference") == {}


def test_control_tokens_are_the_chosen_models_and_named(tmp_path: Path) -> None:
    rows = plants.rows(12)
    rows[3] = plants.with_words("<|im_end|>")(rows[3], 0)
    rows[5] = plants.with_words("[INST] and <|user|> and <|user|>")(rows[5], 0)
    path = plants.write(tmp_path / "rows.jsonl", rows)
    (finding,) = report(path, model_folder=str(STATIC / "starter"))["findings"]
    assert (finding["rows"], finding["names"]) == ([4, 6], {"<|im_end|>": 1, "<|user|>": 1})
    assert report(path)["findings"][0]["names"] == {"<|im_end|>": 1, "<|user|>": 1, "[INST]": 1}


def test_placeholders_are_filled_with_the_values_given(tmp_path: Path) -> None:
    rows = plants.rows(10)
    rows[1] = plants.with_words("I am {{name}}, made by {{ author }}")(rows[1], 0)
    path = plants.write(tmp_path / "rows.jsonl", rows)
    (finding,) = report(path)["findings"]
    assert (finding["check"], finding["rows"], finding["names"]) == ("placeholders", [2], {"{{name}}": 1, "{{ author }}": 1})
    fixed = write_fixed(path, tmp_path / "fixed.jsonl", {"placeholders": [2]}, Means(values={"name": "Ada", "author": "us"}))
    assert (fixed.rows, fixed.changed, fixed.dropped) == (10, 1, 0) and found_in(tmp_path / "fixed.jsonl") == {}
    assert "I am Ada, made by us" in (tmp_path / "fixed.jsonl").read_text()


def test_labels_are_no_answers_of_one_word(tmp_path: Path) -> None:
    labels = ["positive", "negative", "neutral"]
    classifier = [plants.answered(row, labels[n % 3]) for n, row in enumerate(plants.rows(40))]
    assert found_in(plants.write(tmp_path / "labels.jsonl", classifier)) == {}
    trivia = [plants.answered(row, f"{plants.NOUNS[n].title()}.") for n, row in enumerate(plants.rows(40))]
    assert found_in(plants.write(tmp_path / "trivia.jsonl", trivia)) == {}
    offered = [*plants.rows(40), chat("Is the river or the mountain older? Answer with one of them, please.", "Mountain")]
    assert found_in(plants.write(tmp_path / "offered.jsonl", offered)) == {}


def test_prompts_texts_and_preferences(tmp_path: Path) -> None:
    prompts = [{"messages": [row["messages"][0], {"role": "user", "content": "Now shorter."}]} for row in plants.rows(10)]
    assert found_in(plants.write(tmp_path / "prompts.jsonl", prompts), "prompts", model_folder=str(STATIC / "starter"), max_length=8) == {}
    texts = [{"text": row["messages"][1]["content"]} for row in plants.rows(10)]
    assert found_in(plants.write(tmp_path / "texts.jsonl", [*texts, {"text": " "}]), "text") == {"empty_answers": [11]}
    pairs = [
        {
            "prompt": row["messages"][:1],
            "chosen": row["messages"][1:],
            "rejected": [{"role": "assistant", "content": "I can't help with that."}],
        }
        for row in plants.rows(10)
    ]
    pairs[2] = {**pairs[2], "chosen": pairs[2]["rejected"], "rejected": [{"role": "assistant", "content": ""}]}
    found = found_in(plants.write(tmp_path / "pairs.jsonl", pairs), "preference")
    assert found == {"refusals": [3], "empty_answers": [3]}


CALL, USER, ANSWER, TOOL, SYSTEM = "call", "user", "assistant", "tool", "system"


@pytest.mark.parametrize(
    "roles",
    [[USER, ANSWER], [SYSTEM, USER, ANSWER, USER, ANSWER], [USER, CALL, TOOL, TOOL, ANSWER], [USER, CALL], [USER, CALL, TOOL, CALL]],
)
def test_roles_in_order(roles: list[str]) -> None:
    assert disorder(roles) == ""


@pytest.mark.parametrize(
    "roles",
    [
        [ANSWER],
        [USER],
        [USER, USER, ANSWER],
        [USER, ANSWER, ANSWER],
        [USER, SYSTEM, ANSWER],
        [SYSTEM, SYSTEM, USER, ANSWER],
        [USER, ANSWER, USER],
        [USER, TOOL, ANSWER],
        [SYSTEM, ANSWER],
        [USER, CALL, TOOL],
    ],
)
def test_roles_out_of_order(roles: list[str]) -> None:
    assert disorder(roles)


# numbers


@given(st.lists(st.integers(1, 1000) | st.integers(5000, 10**6), max_size=60))
def test_no_row_is_very_long_once_those_are_gone(sizes: list[int]) -> None:
    long = summary.very_long(sizes)
    rest = [size for number, size in enumerate(sizes, start=1) if number not in long]
    assert summary.very_long(rest) == []
    assert all(sizes[number - 1] >= 6000 for number in long)


@given(st.lists(st.sampled_from([b'{"text":"a"}', b'{"text":"b"}', b'{"text":"c"}']), max_size=20))
def test_repeats_of_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with RowTable(path) as table:
        assert table.repeats().tolist() == [lines.index(line) for line in lines]
        assert [line for start, stop in table.chunks(3, 30) for line in table.lines(start, stop)] == lines


def test_checks_say_what_they_are() -> None:
    assert len(BY_NAME) == len(CHECKS) == 21
    for check in CHECKS:
        assert check.title and check.explanation.endswith(".") and check.fix.endswith(".")
