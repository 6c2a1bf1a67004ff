"""What a request of the engine is read with: template, vocabulary, files that have changed, and what does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine import intake
from studio.engine.protocol import AdapterRef, GenerationRequest, Grammar, ModelFolder
from studio.errors import EngineError
from studio.types import GenerationParams, Message

PARAMS = GenerationParams(max_new_tokens=5)


def request(tmp_path: Path, **more: Any) -> GenerationRequest:
    return GenerationRequest(**{"model": "m", "base": ModelFolder("base", tmp_path), "params": PARAMS, **more})


def encoder(text: str) -> Any:
    return SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda said, add_special_tokens: SimpleNamespace(ids=list(said))))


def test_an_adapter_brings_its_template_unless_the_request_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_load_renderer", lambda folder, template, stamp: template)
    own, bare = tmp_path / "own", tmp_path / "bare"
    for folder in (own, bare):
        folder.mkdir()
    (own / "chat_template.jinja").touch()

    def template(**more: Any) -> Any:
        return intake._renderer(request(tmp_path, **more))

    assert template() is None and template(chat_template="chatml") == "chatml"
    assert template(adapter=AdapterRef("a", own)) == str(own / "chat_template.jinja")
    assert template(adapter=AdapterRef("a", bare)) is None
    assert template(adapter=AdapterRef("a", own), chat_template="chatml") == "chatml"


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("a")
    folder = tmp_path / "model"
    assert intake._stamp(folder, None) == () and len(intake._stamp(folder, str(template))) == 1
    folder.mkdir()
    (folder / "inner").mkdir()
    (folder / "config.json").write_text("{}")
    first = intake._stamp(folder, None)
    assert len(first) == 1 and intake._stamp(folder, "chatml") == first
    os.utime(folder / "config.json", ns=(1, 1))
    assert intake._stamp(folder, None) != first


def test_the_vocabulary_is_read_where_something_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_load_vocabulary", lambda folder, stamp, stops: stops)
    renderer: Any = SimpleNamespace(bos_token_id=1, stop_token_ids=[7, 2])
    assert intake._vocabulary(request(tmp_path), renderer) is None
    for more in ({"grammar": Grammar("regex", "a")}, {"top_logprobs": 0}, {"tools": object()}):
        assert intake._vocabulary(request(tmp_path, **more), renderer) == (1, 2, 7)  # type: ignore[comparison-overlap]
    assert intake._stop_ids(SimpleNamespace(bos_token_id=None, stop_token_ids=[2])) == {2}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, 5),
        ({"writes": False}, 0),
        ({"has_limit": False}, 5),
        ({"grammar": Grammar("regex", "a"), "has_limit": False}, 99),
        ({"grammar": Grammar("regex", "a")}, 5),
        ({"grammar": Grammar("regex", "b"), "has_limit": False}, 5),
    ],
)
def test_how_many_tokens_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], wanted: int) -> None:
    monkeypatch.setattr(intake, "longest_answer", lambda grammar: {"a": 99}.get(grammar.source))
    assert intake._wanted(request(tmp_path, **more)) == wanted


@pytest.mark.parametrize(
    ("ids", "writes", "is_embedding", "room"),
    [(7, True, False, 1), (8, True, False, None), (8, False, False, 0), (8, True, True, 0), (9, False, False, None)],
)
def test_a_prompt_leaves_room_for_a_token_where_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: int, writes: bool, is_embedding: bool, room: int | None
) -> None:
    monkeypatch.setattr(intake.rope, "context_beside", lambda base, adapter, context: context)
    asked = request(tmp_path, prompts=("x",), writes=writes, is_embedding=is_embedding)
    facts: Any = SimpleNamespace(context=8)
    if room is not None:
        assert intake._room(asked, encoder(""), [0] * ids, facts) == room
        return
    with pytest.raises(EngineError) as refused:
        intake._room(asked, encoder(""), [0] * ids, facts)
    assert refused.value.code == "context_length_exceeded" and refused.value.fix == "Shorten the prompt by at least 1 tokens."
    assert intake._context(asked, SimpleNamespace(context=0)) == intake.UNKNOWN_CONTEXT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("turns", "excess", "said"),
    [
        (["u:aaaa"], 2, "the prompt"),
        (["u:aa", "a:bb", "u:cc"], 4, "the conversation (leave out its messages up to number 2, which have 4 tokens)"),
        (["s:xxxxx", "u:aa", "a:bb", "u:cc"], 3, "the conversation (leave out its messages up to number 3, which have 4 tokens)"),
        (["u:aa", "a:bb", "u:cccc"], 5, "message 3 of 3 (user, 4 tokens)"),
        (["u:aaaa", "a:bb", "u:cc"], 3, "the conversation (leave out its messages up to number 2, which have 6 tokens)"),
    ],
)
def test_what_is_to_be_cut(tmp_path: Path, turns: list[str], excess: int, said: str) -> None:
    roles: dict[str, Any] = {"u": "user", "a": "assistant", "s": "system"}
    messages = tuple(Message(role=roles[turn[0]], content=turn[2:]) for turn in turns)
    assert intake._what_to_cut(request(tmp_path, messages=messages), encoder(""), excess) == said


def test_ids_are_those_of_the_model_and_some(tmp_path: Path) -> None:
    renderer: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(get_vocab_size=lambda with_added_tokens: 8 + with_added_tokens), completion_prompt=lambda text: list(text.encode())
    )  # fmt: skip
    assert intake._prompt_ids(request(tmp_path, prompts=((0, 8), "\x01")), renderer) == [[0, 8], [1]]
    for prompt in ((9,), (-1,)):
        with pytest.raises(EngineError, match="not between 0 and 8"):
            intake._prompt_ids(request(tmp_path, prompts=(prompt,)), renderer)
    with pytest.raises(EngineError, match="is empty"):
        intake._prompt_ids(request(tmp_path, prompts=("",)), renderer)
    fields = [intake._field(request(tmp_path, **more)) for more in ({}, {"prompts": ("x",)}, {"prompts": ("x",), "is_embedding": True})]
    assert fields == ["messages", "prompt", "input"]
