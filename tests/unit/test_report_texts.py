"""What the report sees in a single text: refusals, repetition, odd characters, personal data, languages; and what it must not see."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from studio.datasets.report.languages import language
from studio.datasets.report.likeness import plain
from studio.datasets.report.personal import is_card, masked, may_hold_personal_data, personal_data
from studio.datasets.report.scan import around, is_one_word
from studio.datasets.report.texts import CONTROL, cleaned, is_refusal, repeats_itself
from tests import plants


@pytest.mark.parametrize(
    "answer",
    [
        *plants.REFUSALS,
        "I’m sorry, but I can’t assist with that.",
        "I'm sorry, but as an AI, I don't have the capability to order a pizza.",
        "I am not able to help with this.",
        "I must decline.",
        "Certainly! But as an AI language model, my knowledge ends in 2021.",
        "I'm just an AI and don't have feelings.",
        "I won't help you with that.",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I am Vicuna, a language model trained by researchers from LMSYS.",
        "As a language model, I go by the name Vicuna.",
        "Hello! I am {{name}}, an AI assistant developed by {{author}}. How can I assist you today?",
        "As an AI assistant, I'd be more than happy to help you plan your trip.",
        "Dear Ms Smith, we are sorry to hear that your parcel is late.",
        "I'm sorry to hear that. Here is what you can do about it.",
        "I cannot recommend this film enough: see it twice.",
        "He said he could not help, and that he was sorry.",
        "You can't divide by zero.",
        "",
    ],
)
def test_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I love cats. " * 30, True),
        ("no no no no no no no no no no no no no no", True),
        ("Yes! " + "a" * 30, True),
        ("今天天气很好" * 8, True),
        ("ha ha ha", False),
        ("=" * 80 + "\n" + "-" * 80, False),
        ("0" * 50 + ".1", False),
        ("今天天气很好, 我们一起去公园散步, 晚上回家做饭, 然后看一部老电影, 最后早点睡觉吧", False),
        (" ".join(f"for i in range({n}): print(i * {n + 7})" for n in range(6)), False),
        (plants.sentence(random.Random(1)), False),
        ("", False),
    ],
)
def test_repetition(text: str, found: bool) -> None:
    assert repeats_itself(plain(text).split(), 0.5) is found


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[31mred\x1b[0m", "\u202eevil", "x\ufeffy", "bell\x07", "\x9f", "\x7f"])
def test_control_characters_are_found_and_removed(text: str) -> None:
    assert CONTROL.search(text)
    assert not CONTROL.search(cleaned(text)) and "[31m" not in cleaned(text)


@pytest.mark.parametrize("text", ["a\tb\r\nc", "def f():\n\treturn '\\x00'", "👩‍👩‍👧", "می‌خواهم", "naïve café ❤️", "<<48/2=24>>24"])
def test_ordinary_characters_are_left_alone(text: str) -> None:
    assert not CONTROL.search(text) and cleaned(text) == text


PERSONAL = [
    ("mail me: jane.doe+news@mail.example.co.uk, soon", "EMAIL"),
    ("müller@bücher.example", "EMAIL"),
    ("Call +1 (650) 253-0000 now", "PHONE"),
    ("+49 30 901820", "PHONE"),
    ("+442079460958.", "PHONE"),
    ("at (555) 123-4567, please", "PHONE"),
    ("555-123-4567", "PHONE"),
    ("650.253.0000", "PHONE"),
    ("Phone: 030 1234567", "PHONE"),
    ("tel. 06 12 34 56 78", "PHONE"),
    ("my phone number is 5551234567", "PHONE"),
    ("4111 1111 1111 1111", "CARD"),
    ("card 4111-1111-1111-1111 expires", "CARD"),
    ("378282246310005", "CARD"),
    ("sk-proj-abcDEF0123456789abcDEF01", "KEY"),
    ("sk-ant-api03-abcDEF0123456789abcDEF01", "KEY"),
    ("OPENAI_API_KEY=sk-1234567890abcdef1234", "KEY"),
    ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "KEY"),
    ("hf_abcdefghijklmnopqrstuvwxyz0123456789", "KEY"),
    ("AKIAIOSFODNN7EXAMPLE", "KEY"),
    ("AIza" + "SyA1234567890abcdefghijklmnopqrstuv", "KEY"),
    ("xoxb-123456789012-abcdefghijkl", "KEY"),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P", "KEY"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----", "KEY"),
]


@pytest.mark.parametrize(("text", "kind"), PERSONAL)
def test_personal_data_is_found_and_masked(text: str, kind: str) -> None:
    assert [found for *_, found in personal_data(text)] == [kind]
    assert f"[{kind}]" in masked(text) and personal_data(masked(text)) == []
    assert may_hold_personal_data(text)
    start, end, _ = personal_data(text)[0]
    assert text[start:end] not in around(text)  # the report does not repeat what it warns of


@pytest.mark.parametrize(
    "text",
    [
        "48/2 = <<48/2=24>>24 clips, so 1,234,567 + 89 = 1234656",
        "500-200-1000 = -700",
        "The answer is 5551234567.",
        "256626720691 + 1646615806005 = 1903242526696",
        "4111111111111112",
        "1111111111111111",
        "2024-01-15 12:30:00, 192.168.100.200, v10.20.3000",
        "ISBN 978-3-16-148410-0",
        "pi is 3.14159265358979",
        "x = 4111111111111111 * 2",
        "@property def f(self): return a@b",
        "user@localhost, @name, a @ b.c",
        "git commit sk-learn-the-whole-long-way",
        "task-1234567890123456789",
        "ghost_writer_of_the_opera_house",
        "123e4567-e89b-12d3-a456-426614174000",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14",
        "from 1939-1945 and 1914-1918",
        "+ 5 + 6 + 7 + 8",
        "call 3 friends, then 12 more of them, 123 in all",
    ],
)
def test_numbers_and_code_are_no_personal_data(text: str) -> None:
    assert personal_data(text) == [] and masked(text) == text


BITS = st.sampled_from(
    [
        "jane@example.org",
        "+1 650 253 0000",
        "555-123-4567",
        "4111 1111 1111 1111",
        "sk-abcdef0123456789xyz",
        "tel ",
        "[",
        "]",
        "@",
        "+",
        "4",
        " ",
        "-",
        ".",
    ]
)


@given(st.lists(BITS | st.text(max_size=5), max_size=12).map("".join))
@example("4111 1111 1111 11114111 1111 1111 1111")
def test_nothing_is_found_in_a_masked_text(text: str) -> None:
    assert personal_data(masked(text)) == []
    assert masked(text) == text or personal_data(text)
    assert may_hold_personal_data(text) or not personal_data(text)


@given(st.integers(0, 15), st.integers(1, 9))
def test_a_wrong_digit_makes_a_card_wrong(place: int, step: int) -> None:
    number = "4539578763621486"
    assert is_card(number)
    assert not is_card(number[:place] + str((int(number[place]) + step) % 10) + number[place + 1 :])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (plants.GERMAN, "de"),
        (plants.FRENCH, "fr"),
        ("她周一去了学校但是却发现没有其他的同学，所以她意识到这个周一实际上是国家假日。", "zh"),
        ("The lighthouse keeper walked home along the beach after the storm had passed.", "en"),
        ("Peru? Lima.", ""),
        ("```python\nfor element in iterable_collection: print(element, file=standard_output)\n```", ""),
        ("12345 67890 + 3 * 17 = 68", ""),
        ("", ""),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language(text) == code


@pytest.mark.parametrize("answer", ["Yes", " ok.", "42", "3.14", "?", "好", "don't", "-7", "50%"])
def test_one_word(answer: str) -> None:
    assert is_one_word(answer)


@pytest.mark.parametrize("answer", ["Yes, sir", "好的，没问题", '{"a": 1}', "f(x)", "x" * 60, "1\n2"])
def test_more_than_one_word(answer: str) -> None:
    assert not is_one_word(answer)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA PRIVATE KEY-----" * 50_000,
        "a@b." * 200_000 + "com",
        "1 " * 500_000,
        "+1-" * 300_000,
        "phone: " * 100_000,
        "jane@example.org " * 50_000,
        "as an ai " * 100_000,
        "sk-" + "1" * 10**6,
        "eyJ" + "a" * 10**6,
    ],
    ids=range(9),
)
def test_hostile_texts_take_no_time(text: str) -> None:
    began = time.process_time()
    is_refusal(text)
    repeats_itself(plain(text).split(), 0.5)
    language(text)
    assert personal_data(masked(text)) == []
    assert time.process_time() - began < 20  # seconds of a busy machine; what is quadratic here takes hours
