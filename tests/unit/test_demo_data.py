"""The shipped demo datasets: shape, no leakage into the held-out rows, and that the seeded script makes them again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import build
from static.starter.recipe.demos import HELD_OUT_PLACES, MESSAGES, QUEUES, make, write
from static.starter.recipe.world import HELD_OUT_NAMES
from studio.catalogue.demos import DEMOS

ROOT = Path(__file__).parents[2]
NAMES = list(DEMOS)


def rows(path: Path) -> list[tuple[str, str]]:
    """(question, answer) of each row of a shipped file."""
    loaded = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
    assert all([message["role"] for message in messages] == ["user", "assistant"] for messages in loaded)
    return [(messages[0]["content"], messages[1]["content"]) for messages in loaded]


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    assert 60 <= len(rows(DEMOS[name].train_path)) <= 300
    assert len(rows(DEMOS[name].eval_path)) >= 60


@pytest.mark.parametrize("name", NAMES)
def test_no_row_twice_and_no_question_in_both_files(name: str) -> None:
    trained = [question for question, _ in rows(DEMOS[name].train_path)]
    held_out = [question for question, _ in rows(DEMOS[name].eval_path)]
    assert len(set(trained)) == len(trained)
    assert len(set(held_out)) == len(held_out)
    assert not set(trained) & set(held_out)


def test_router_trains_every_word_and_form_but_not_the_held_out_pairs() -> None:
    trained, held_out = rows(DEMOS["router"].train_path), rows(DEMOS["router"].eval_path)
    queue_of = {word: queue for queue, words in QUEUES.items() for word in words.split()}
    pairs_of = [
        {(word, form) for word in queue_of for form in MESSAGES for question, _ in part if form.format(w=word) == question}
        for part in (trained, held_out)
    ]
    assert not pairs_of[0] & pairs_of[1]
    assert {word for word, _ in pairs_of[0]} == set(queue_of)
    assert {form for _, form in pairs_of[0]} == set(MESSAGES)
    assert {answer for _, answer in trained} == {answer for _, answer in held_out} == set(QUEUES)


def test_voice_holds_out_whole_facts() -> None:
    trained = {answer for _, answer in rows(DEMOS["voice"].train_path)}
    assert not trained & {answer for _, answer in rows(DEMOS["voice"].eval_path)}


def test_extract_holds_out_names_and_places() -> None:
    trained = [json.loads(answer) for _, answer in rows(DEMOS["extract"].train_path)]
    held_out = [json.loads(answer) for _, answer in rows(DEMOS["extract"].eval_path)]
    assert {row["name"] for row in held_out} <= set(HELD_OUT_NAMES) and {row["place"] for row in held_out} <= set(HELD_OUT_PLACES)
    assert not {row["name"] for row in trained} & {row["name"] for row in held_out}
    assert not {row["place"] for row in trained} & {row["place"] for row in held_out}


@pytest.mark.parametrize("name", NAMES)
def test_script_makes_the_shipped_files_byte_for_byte(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    for path in (DEMOS[name].train_path, DEMOS[name].eval_path):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_recommended_options_are_options_of_a_job(name: str) -> None:
    config = build(DEMOS[name].options)
    assert config.quantization.load_in_4bit
    assert config.lora.r == DEMOS[name].options["lora.r"]


def test_demo_is_the_same_every_time() -> None:
    assert make("router") == make("router")


def test_the_list_of_demos_needs_no_torch() -> None:
    code = "import sys, studio.catalogue.demos; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
