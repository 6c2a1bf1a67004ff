"""Rows that are alike: exact by their definition, found by banding as if every pair were compared."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets.report import likeness
from studio.datasets.report.likeness import (
    Contents,
    Neighbours,
    are_alike,
    common_shingles,
    content,
    families,
    repetitions,
    said,
    signatures,
)
from tests import plants
from tests.plants import chat, nearly, rows

Row = dict[str, Any]


def neighbours_of(found: list[Row]) -> tuple[Neighbours, Contents]:
    texts = [said(row) for row in found]
    common = common_shingles(texts)
    matrix, numbers = signatures(texts, common)
    return Neighbours(matrix, numbers, np.arange(len(found))), Contents(found.__getitem__, common)


def by_comparing_all(found: list[Row]) -> dict[int, int]:
    common = common_shingles([said(row) for row in found])
    contents = [content(row, common) for row in found]
    kept: list[int] = []
    repeated = {}
    for n, mine in enumerate(contents):
        first = next((k for k in kept if are_alike(mine, contents[k])), None)
        if first is None:
            kept.append(n)
        else:
            repeated[n] = first
    return repeated


def mixed(seed: int, count: int = 60) -> list[Row]:
    """Rows, rows nearly the same, and rows nearly the same as those."""
    chance = random.Random(seed)
    found = rows(count, seed)
    for _ in range(count):
        found.append(nearly(chance.choice(found), chance.randrange(6)))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_banding_finds_what_comparing_all_pairs_finds(seed: int) -> None:
    found = mixed(seed)
    repeated = repetitions(*neighbours_of(found))
    assert repeated == by_comparing_all(found)
    assert len(repeated) > 40


TEXTS = st.lists(st.text(st.sampled_from("ab c,.Ä好"), max_size=12), min_size=1, max_size=5)


@given(TEXTS)
def test_shingles_are_those_of_each_text_alone(texts: list[str]) -> None:
    hashes, offsets = likeness.shingles(texts)
    for n, text in enumerate(texts):
        alone, _ = likeness.shingles([text])
        assert hashes[offsets[n] : offsets[n + 1]].tolist() == alone.tolist()


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=60)
def test_similarity_is_that_of_sets_of_five_characters(one: str, other: str) -> None:
    def pieces(text: str) -> set[str]:
        padded = f" {likeness.plain(text)} ".ljust(5)
        return {padded[i : i + 5] for i in range(len(padded) - 4)}

    a, b = (content({"text": text}, likeness.NOTHING).shingles for text in (one, other))
    if likeness.plain(one) and likeness.plain(other):
        assert likeness.jaccard(a, b) == pytest.approx(len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other)))


@given(st.text())
def test_both_ways_to_plain_text_agree(text: str) -> None:
    ascii_text = text.encode("ascii", "ignore").decode()
    slow = likeness.SEPARATORS.sub(" ", ascii_text.casefold()).strip() or ascii_text.strip()
    assert likeness.plain(ascii_text) == slow
    assert (likeness.numbers(ascii_text) == 0) == (not any(sign.isdecimal() for sign in ascii_text))


def test_numbers_are_compared_as_a_whole_and_in_any_order() -> None:
    assert likeness.numbers("12 and 3 eggs") == likeness.numbers("3 eggs and 12 é") != likeness.numbers("1 and 23")


LONG = "Explain to a curious child why the moon seems to change its shape in the course of a month."
ANSWER = "The sun always lights one half of the moon, and we see more or less of that half as the moon goes around us."


def alike(one: Row, other: Row) -> bool:
    return are_alike(content(one, likeness.NOTHING), content(other, likeness.NOTHING))


def test_what_is_alike() -> None:
    base = chat(LONG, ANSWER)
    for n in range(6):
        assert alike(base, nearly(base, n))
    assert alike(chat("Hello there!", "Hi."), chat("hello there", "hi"))
    assert alike({"text": "今天天气很好，我们一起去公园散步吧。"}, {"text": "今天天气很好 我们一起去公园散步吧"})


def test_what_is_not_alike() -> None:
    base = chat(LONG, ANSWER)
    assert not alike(base, chat(LONG, "Because the earth's shadow falls on it, which is what people thought for long."))  # another answer
    assert not alike(chat(f"{LONG} In 1969 words.", ANSWER), chat(f"{LONG} In 1970 words.", ANSWER))  # another number
    assert not alike(chat("What is the capital of Peru?", "Lima."), chat("What is the capital of Chile?", "Santiago."))
    assert not alike(chat("Hi", "Hello"), chat("Ho", "Hello"))
    assert not alike(chat(LONG, "yes"), chat(LONG, "no"))


def test_a_shared_instruction_makes_no_duplicates() -> None:
    instruction = "Classify the sentiment of the following review as positive, negative or neutral, and answer with one word only. Review: "
    chosen = plants.words("good bad slow fast warm cold loud calm rude kind poor rich late soon dull neat")
    reviews = [f"{a} {b} {c}" for a in chosen[:6] for b in chosen[6:11] for c in chosen[11:]]
    found = [chat(instruction + review, "positive") for review in reviews]
    assert repetitions(*neighbours_of(found)) == {}
    twice = [*found, chat(instruction + reviews[3] + "!", "positive")]
    assert repetitions(*neighbours_of(twice)) == {len(found): 3}


def test_one_added_word_leaves_rows_of_a_template_alike() -> None:
    topics = plants.words("gravity tides chess poetry enzymes coral bridges glaciers vaccines insulin")
    found = [
        chat(
            f"Explain topic {n} about {topics[n % 10]} in simple terms.",
            f"Topic {n} is about {topics[n % 10]}. It matters because item {7 * n} depends on {topics[n % 7]}, and people have studied it.",
        )
        for n in range(60)
    ]
    assert repetitions(*neighbours_of(found)) == {}
    question, answer = (turn["content"] for turn in found[5]["messages"])
    assert repetitions(*neighbours_of([*found, chat(f"{question}!!", f"{answer} Really.")])) == {60: 5}


def test_system_and_tools_are_not_compared() -> None:
    system = {"role": "system", "content": "You are a helpful assistant who always answers briefly, politely and in the user's language."}
    found = [{"messages": [system, *row["messages"]]} for row in rows(10)]
    assert repetitions(*neighbours_of(found)) == {}


def test_families_are_connected() -> None:
    found = rows(20)
    found += [nearly(found[3], 0), nearly(nearly(found[3], 3), 1), nearly(found[7], 2)]
    heads = families(*neighbours_of(found))
    assert heads == {20: 3, 21: 3, 22: 7}


def test_a_crowd_of_equals_takes_no_quadratic_time() -> None:
    found = [chat(LONG, f"{ANSWER} {'!' * (n % 50)}") for n in range(3000)]
    repeated = repetitions(*neighbours_of(found))
    assert len(repeated) == 2999 and set(repeated.values()) == {0}
