"""Masks from grammars, on a real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from studio.engine.grammar import GrammarVocabulary, Matcher
from studio.engine.protocol import Grammar
from studio.errors import EngineError


@pytest.fixture(scope="module")
def vocabulary(shared_data: Path) -> GrammarVocabulary:
    return GrammarVocabulary(Tokenizer.from_file(str(shared_data / "models" / "stories260K" / "tokenizer.json")), [2])


def allowed(matcher: Matcher, size: int) -> Any:
    return np.unpackbits(matcher.bits(size), bitorder="little")[:size]


def write(vocabulary: GrammarVocabulary, grammar: Grammar, seed: int) -> str:
    """What a model without any idea writes under `grammar`."""
    random, matcher, text = np.random.default_rng(seed), vocabulary.matcher(grammar), b""
    for _ in range(300):
        token = int(random.choice(np.nonzero(allowed(matcher, vocabulary.size))[0]))
        if token == 2:
            break
        matcher.take(token)
        text += vocabulary.token_bytes(token)
        if matcher.is_complete:
            break
    return text.decode()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_chosen_fits_the_schema(vocabulary: GrammarVocabulary, seed: int) -> None:
    properties: dict[str, Any] = {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": -5, "maximum": 5}}
    schema = {"type": "object", "properties": properties, "required": ["name", "n"], "additionalProperties": False}
    value = json.loads(write(vocabulary, Grammar("json_schema", json.dumps(schema)), seed))
    assert len(value["name"]) <= 6 and -5 <= value["n"] <= 5


def test_ids_beyond_the_vocabulary_are_never_allowed(vocabulary: GrammarVocabulary) -> None:
    matcher = vocabulary.matcher(Grammar("gbnf", 'root ::= "a" [a-z]+'))
    for more in (0, 3, 100):
        mask = allowed(matcher, vocabulary.size + more)
        assert mask.any() and not mask[vocabulary.size :].any()
    whole = vocabulary.size // 8
    bits = matcher.bits(8 * whole - 3)
    assert len(bits) == whole and not bits[-1] & 0b11100000  # none of the last byte beyond the fifth
    assert vocabulary.token_bytes(vocabulary.size + 5) == b""


def test_a_copy_goes_its_own_way(vocabulary: GrammarVocabulary) -> None:
    matcher = vocabulary.matcher(Grammar("gbnf", 'root ::= "a" | "b"'))
    copy = matcher.copy()
    first, second = np.nonzero(allowed(matcher, vocabulary.size))[0][:2]
    matcher.take(int(first))
    copy.take(int(second))
    assert matcher.is_complete and copy.is_complete
    with pytest.raises(EngineError):
        matcher.take(int(second))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("gbnf", 'root ::= "a"\nfoo := "b"'), r"Expected ::= at line 2"),
        (Grammar("gbnf", 'root ::= "a"\n\nbar ::= foo-x'), r"line 3: Rule 'foo-x' not found"),
        (Grammar("gbnf", 'bar ::= "x"'), r"No 'root' rule"),
        (Grammar("gbnf", 'root ::= root "a"'), r"nothing can fit it"),
        (Grammar("gbnf", 'start: "a" foo'), r"line 1, column 8: unknown name"),
        (Grammar("json_schema", '{"type": "objekt"}'), r"Invalid type: objekt"),
        (Grammar("json_schema", '{"$ref": "#/nowhere"}'), r"nowhere"),
        (Grammar("json_schema", '{"type": "object", "required": 5}'), r"required"),
        (Grammar("json_schema", '{"const": "\\ud800"}'), r"schema can't be used"),
        (Grammar("json_schema", '{"type": "integer", "maximum": 1000000000000000000000000}'), r"more than 63 bits"),
        (Grammar("json_schema", '{"not": ' * 100 + "{}" + "}" * 100), r"more than 100 levels"),
        (Grammar("json_schema", json.dumps({"anyOf": [{}] * 4000})), r"more than 4,000 objects"),
        (Grammar("json_schema", json.dumps({"enum": [0] * 50_000})), r"more than 50,000 values"),
        (Grammar("json_schema", json.dumps({"const": "a" * 1_000_000})), r"1,000,013 bytes, and 1,000,000 is the limit"),
        (Grammar("gbnf", 'root ::= "a"' + "#" * 200_000), r"and 200,000 is the limit"),
        (Grammar("regex", "a" * 200_001), r"and 200,000 is the limit"),
    ],
)
def test_a_bad_grammar_gets_its_reason_in_one_line(vocabulary: GrammarVocabulary, grammar: Grammar, reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as refused:
        vocabulary.matcher(grammar)
    assert (refused.value.status, refused.value.code) == (400, "invalid_grammar")
    assert "\n" not in str(refused.value) and "<state>" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "source", "missing"),
    [
        ("json_schema", '{"type": "object", "properties": {}}', "no {, }"),
        ("json_schema", '{"type": "array", "minItems": 1, "items": {"type": "object"}}', "no {"),
        ("json_schema", '{"type": "object", "properties": {"x": {}}, "required": ["ключ"]}', "no {, }, к, л, ю, ч"),
        ("gbnf", 'root ::= "{" "a"', "no {"),
        ("regex", "a[{}]", "no {, }"),
    ],
)
def test_a_character_that_the_model_can_not_write_is_named(shared_data: Path, kind: str, source: str, missing: str) -> None:
    vocabulary = GrammarVocabulary(Tokenizer.from_file(str(shared_data / "models" / "babyllama105" / "tokenizer.json")), [2])
    with pytest.raises(EngineError, match="its vocabulary has") as caught:
        write(vocabulary, Grammar(kind, source), 1)
    assert caught.value.status == 400 and f"{missing}, so it can't" in caught.value.message and caught.value.fix


def test_what_the_model_can_write_is_not_blamed_on_its_vocabulary(vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(EngineError) as caught:
        vocabulary.matcher(Grammar("gbnf", 'root ::= "a" missing'))
    assert "vocabulary" not in caught.value.message and "missing" in caught.value.message
