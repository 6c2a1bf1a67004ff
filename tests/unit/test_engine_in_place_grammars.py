"""Grammars are held by rows that are decoded in place: in buckets, in steps that were recorded, and where places change hands."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from studio.engine import local
from studio.engine.answer import GeneratedAnswer
from studio.engine.decoding import Passes
from studio.engine.grammar import GrammarVocabulary
from studio.engine.in_place import BucketRows
from studio.engine.protocol import Grammar
from studio.engine.speculation import Gain, PromptLookup
from studio.errors import EngineError
from tests.engines import answer
from tests.recorders import FakeRecorder
from tests.unit.test_engine_in_place import hold, place_of, record_all, recorder
from tests.unit.test_engine_slots import build

__all__ = ["recorder"]
END = 0
SIGNS = ["</s>", *string.ascii_lowercase, *string.digits, *'{}[]",:.-_+*/!?=<>()|&%$#@;~', *string.ascii_uppercase[:20]]
SCHEMA = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"], "additionalProperties": False,
}  # fmt: skip
JSON, DATE, WORD = (
    Grammar("json_schema", json.dumps(SCHEMA)),
    Grammar("regex", r"20[0-9]{2}-[01][0-9]-[0-3][0-9]"),
    Grammar("gbnf", 'root ::= "yes" | "no"'),
)
PROMPTS = [(5, 6, 7, 8, 9), (40, 41), tuple(range(20, 60)), (3,), (1, 9, 17, 25, 33, 41), (60, 61, 62)]
Asked = tuple[Sequence[int], Grammar | None, dict[str, Any]]


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    made = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(SIGNS)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return GrammarVocabulary(made, [END])


@pytest.fixture
def pair(tmp_path: Path, recorder: FakeRecorder) -> tuple[local.LocalModel, local.LocalModel]:
    """One model twice: with rows in place, and with rows in a cache that grows."""
    return hold(build("llama"), tmp_path), hold(build("llama"), tmp_path, use_place=False)


def made(vocabulary: GrammarVocabulary, asked: Sequence[Asked], drafts: bool = False) -> list[GeneratedAnswer]:
    found = []
    for seed, (ids, grammar, params) in enumerate(asked):
        matcher = vocabulary.matcher(grammar) if grammar else None
        one = answer(prompt_ids=list(ids), seed=seed, params=params, matcher=matcher, stop_ids=frozenset([END]))
        one.limit, one.gain = 60, Gain()
        if drafts:
            one.drafter = PromptLookup()
        found.append(one)
    return found


def written(model: local.LocalModel, answers: Sequence[GeneratedAnswer], at_once: int, in_place: bool) -> list[list[int]]:
    """`at_once` rows are there at a time: who comes takes the place of one that has ended."""
    passes, waiting, seen = Passes(model), list(answers), set()
    while waiting or passes.answers:
        if coming := waiting[: at_once - len(passes.answers)]:
            del waiting[: len(coming)]
            passes.join(coming, [None] * len(coming))
        seen |= {isinstance(batch._rows, BucketRows) for batch in passes._batches}
        passes.step()
    assert seen == {in_place}
    assert all(one.error is None for one in answers)
    return [one.ids for one in answers]


def text_of(vocabulary: GrammarVocabulary, ids: Sequence[int]) -> str:
    return b"".join(vocabulary.token_bytes(token) for token in ids).decode()


def check(vocabulary: GrammarVocabulary, asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> None:
    for (_, grammar, _), ids in zip(asked, said, strict=True):
        text = text_of(vocabulary, ids)
        if grammar is JSON:
            value = json.loads(text)
            assert value.keys() == {"name", "n"} and len(value["name"]) <= 6 and 0 <= value["n"] <= 99, text
        elif grammar is DATE:
            assert re.fullmatch(DATE.source, text), text
        elif grammar is WORD:
            assert text in ("yes", "no")


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_grammars_are_held_in_place_as_in_a_cache_that_grows(
    pair: tuple[local.LocalModel, local.LocalModel],
    vocabulary: GrammarVocabulary,
    params: dict[str, Any],
    drafts: bool,
    recorder: FakeRecorder,
) -> None:
    # red when the mask of a row goes to another's place, or a recorded step chooses without it
    mine, usual = pair
    kinds = (JSON, None, DATE, WORD, JSON, DATE, WORD, None, JSON)
    asked: list[Asked] = [(PROMPTS[number % len(PROMPTS)], grammar, params) for number, grammar in enumerate(kinds)]
    expected = written(usual, made(vocabulary, asked, drafts), 4, in_place=False)
    check(vocabulary, asked, expected)
    assert written(mine, made(vocabulary, asked, drafts), 4, in_place=True) == expected
    assert record_all(mine) and not place_of(mine).steps.refusal
    before = recorder.replays
    assert written(mine, made(vocabulary, asked, drafts), 4, in_place=True) == expected and recorder.replays > before


def test_a_grammar_that_can_not_go_on_ends_its_own_row_alone(
    pair: tuple[local.LocalModel, local.LocalModel], vocabulary: GrammarVocabulary
) -> None:
    mine, usual = pair
    asked: list[Asked] = [(PROMPTS[0], JSON, {}), (PROMPTS[1], DATE, {}), (PROMPTS[2], None, {})]
    expected = written(usual, made(vocabulary, asked), 3, in_place=False)
    answers, passes = made(vocabulary, asked), Passes(mine)
    passes.join(answers, [None] * 3)
    for _ in range(3):
        passes.step()
    departed = answers[1].matcher
    assert departed is not None
    with pytest.raises(EngineError):
        departed.take(SIGNS.index("z"))  # no date goes on so
    while passes.answers:
        passes.step()
    assert answers[1].error is not None and [answers[0].ids, answers[2].ids] == [expected[0], expected[2]]
