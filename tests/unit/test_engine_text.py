"""Text of a growing answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from studio.engine.text import REPLACEMENT, AnswerText


def decode(ids: Sequence[int]) -> str:
    """A byte per token, as byte-level vocabularies fall back to."""
    return bytes(ids).decode("utf-8", "replace")


def pieces(text: str, prompt: str = "", stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    answer = AnswerText(decode, list(prompt.encode()), stop)
    shown = []
    for token in text.encode():
        shown.append(answer.push(token))
        if answer.is_stopped:
            break
    return [piece for piece in [*shown, answer.finish()] if piece], answer.is_stopped


@pytest.mark.parametrize("text", ["plain", "Grüße 👩‍🚀 aus Köln", "日本語", "\u2028 line", " leading", ""])
def test_characters_of_several_bytes_come_whole(text: str) -> None:
    shown, _ = pieces(text, prompt="Ünï")
    assert "".join(shown) == text
    assert all(REPLACEMENT not in piece for piece in shown)


def test_a_character_cut_by_the_limit_is_left_out() -> None:
    answer = AnswerText(decode, [])
    shown = [answer.push(byte) for byte in "ok€".encode()[:-1]]
    assert "".join(shown) + answer.finish() == "ok"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "is_stopped"),
    [
        ("one STOP two", ["STOP"], "one ", True),
        ("one STO", ["STOP"], "one STO", False),
        ("one STOX STOP", ["STOP"], "one STOX ", True),
        ("aab", ["ab"], "a", True),
        ("first second", ["second", "first"], "", True),
        ("x\n\n\n", ["\n\n"], "x", True),
        ("grüß€ end", ["€"], "grüß", True),
        ("text", ["", "never"], "text", False),
    ],
)
def test_stop_texts_are_cut_off_and_what_only_starts_like_one_is_shown(text: str, stop: list[str], expected: str, is_stopped: bool) -> None:
    shown, stopped = pieces(text, stop=stop)
    assert ("".join(shown), stopped) == (expected, is_stopped)


def test_the_start_of_a_stop_text_is_held_back() -> None:
    answer = AnswerText(decode, [], ["STOP"])
    shown = [answer.push(byte) for byte in b"a STO"]
    assert "".join(shown) == "a "


def test_the_space_between_prompt_and_answer_stays() -> None:
    words = {1: "▁Once", 2: "▁upon", 3: "▁a"}

    def decode_words(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    answer = AnswerText(decode_words, [1])
    assert [answer.push(2), answer.push(3)] == [" upon", " a"]
    assert AnswerText(decode_words, []).push(1) == "Once"
