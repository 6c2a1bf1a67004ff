"""Rows without a fault, as many as wanted, and faults to plant among them: each kind, with the rows it must be found in.

Sentences are put together from small word lists: distinct, English by their letters, and unlike each other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def words(text: str, between: str = " ") -> list[str]:
    return text.split(between)


NOUNS = words(
    "river teacher garden engine winter letter captain market bridge violin doctor forest kitchen planet window farmer "
    "castle mountain sailor painter library candle station valley baker island lantern village gardener musician harbor "
    "orchard mirror basket shepherd lighthouse merchant clock weaver tower meadow blacksmith notebook chimney fountain "
    "tailor wagon pebble cottage telescope",
)
ADJECTIVES = words(
    "quiet ancient bright careful distant early famous gentle hidden honest hollow patient broken curious dusty fragile "
    "golden heavy lively narrow polite proud rusty silent simple steady stubborn tired warm wooden",
)
VERBS = words(
    "follows repairs remembers watches carries describes builds forgets admires questions protects visits measures paints "
    "discovers avoids explains collects borrows crosses greets lifts mentions notices orders prefers reaches searches "
    "teaches understands",
)
PLACES = words(
    "near the old mill|behind the school|under a heavy sky|beside the railway|before the first snow|after a long supper|"
    "along the coast|without any hurry|in spite of the rain|during the summer fair|across the square|with great care|"
    "for the third time|at the end of the lane",
    "|",
)
ASKED = words(
    "Explain why|Describe how|Write a short note on the day when|Summarize what happens while|Tell a child why|Argue that|"
    "Give an example where|Compare two reasons why|List what changes once|Imagine that",
    "|",
)

Row = dict[str, Any]


def sentence(chance: random.Random) -> str:
    one, two, three = (f"{chance.choice(ADJECTIVES)} {chance.choice(NOUNS)}" for _ in range(3))
    first = f"the {one} {chance.choice(VERBS)} the {two} {chance.choice(PLACES)}"
    return f"{first} while a {three} {chance.choice(VERBS)} another {chance.choice(NOUNS)}"


def row(chance: random.Random, sentences: int = 3) -> Row:
    """A question and an answer of some sentences."""
    said = [sentence(chance) for _ in range(sentences)]
    answer = " ".join(f"{each[0].upper()}{each[1:]}." for each in said)
    return chat(f"{chance.choice(ASKED)} {sentence(chance)}.", answer)


def chat(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows(count: int, seed: int = 1) -> list[Row]:
    chance = random.Random(seed)
    return [row(chance, chance.randint(2, 5)) for _ in range(count)]


def write(path: Path, found: list[Row]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    return path


# faults: each makes a row of a good one


def answered(made: Row, answer: str) -> Row:
    return chat(made["messages"][0]["content"], answer)


def with_answer(*answers: str) -> Callable[[Row, int], Row]:
    return lambda made, n: answered(made, answers[n % len(answers)])


def with_words(*words: str) -> Callable[[Row, int], Row]:
    """Put into the middle of the answer."""

    def change(made: Row, n: int) -> Row:
        answer = made["messages"][1]["content"]
        half = answer.index(" ", len(answer) // 2)
        return answered(made, f"{answer[:half]} {words[n % len(words)]}{answer[half:]}")

    return change


def out_of_order(made: Row, n: int) -> Row:
    user, assistant = made["messages"]
    orders = (
        [assistant, user, assistant],
        [user, user, assistant],
        [user, assistant, user],
        [user, {"role": "system", "content": "Be brief."}, assistant],
    )
    return {"messages": orders[n % len(orders)]}


def long(made: Row, n: int) -> Row:
    chance = random.Random(f"long {n}")
    return answered(made, " ".join(f"{sentence(chance)}." for _ in range(120)))


def repeated(made: Row, n: int) -> Row:
    answer = made["messages"][1]["content"]
    return answered(made, (f"{answer.partition('.')[0]}. " * 6) if n % 2 else f"{answer} {'a' * 40}")


REFUSALS = (
    "I'm sorry, but I can't help with that request.",
    "As an AI language model, I do not have personal opinions about the matter you describe.",
    "I cannot assist with this, because it goes against my guidelines.",
    "Sorry, I am unable to provide an answer to this question.",
    "I apologize, but I can't write this text for you.",
    "Unfortunately, I cannot comply with what you ask for here.",
)
GERMAN = (
    "Der alte Lehrer geht am Abend langsam durch den stillen Garten und denkt an die vielen Briefe, die er noch schreiben muss. Nummer {}"
)
FRENCH = (
    "Le vieux professeur traverse lentement le jardin silencieux et pense aux lettres qu'il doit encore écrire avant la nuit. Numéro {}"
)
PERSONAL = (
    "(write to jane.doe@example.org)",
    "(call +44 20 7946 0958)",
    "(call (555) 123-4567)",
    "(phone: 030 1234567)",
    "(card 4111 1111 1111 1111)",
    "(card 5500005555555559)",
    "(key sk-proj-abcDEF0123456789abcDEF01)",
    "(token ghp_0123456789abcdefghijABCDEFGHIJ012345)",
    "(token hf_abcdefghijklmnopqrstuvwxyz0123456789)",
    "(key AKIAIOSFODNN7EXAMPLE)",
    "(token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P)",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq\n-----END RSA PRIVATE KEY-----",
)

PLANTS: dict[str, tuple[int, Callable[[Row, int], Row]]] = {
    "empty_answers": (4, with_answer("", "  \n")),
    "one_token_answers": (5, with_answer("Yes", "ok", "42", "Nothing.", "?")),
    "refusals": (6, with_answer(*REFUSALS)),
    "role_order": (4, out_of_order),
    "language_mix": (4, lambda made, n: chat("Schreibe weiter." if n % 2 else "Continuez.", (GERMAN if n % 2 else FRENCH).format(n))),
    "very_long": (3, long),
    "repeated_text": (4, repeated),
    "pii": (len(PERSONAL), with_words(*PERSONAL)),
    "control_characters": (5, with_words("\x00", "\x1b[31m", "\u202e", "\x07", "\ufeff")),
    "control_tokens": (4, with_words("<|im_end|>", "[INST]", "<|start_header_id|>", "<end_of_turn>")),
    "placeholders": (6, with_words("{{name}}", "{order_id}", "[YOUR NAME]", "<COMPANY NAME>", "${city}", "%s")),
    "replacement_characters": (3, with_words("caf\ufffd", "\ufffd\ufffd", "na\ufffdve")),
}


def planted(good: int, seed: int = 7) -> tuple[list[Row], dict[str, list[int]]]:
    """Rows with every fault that needs no other dataset and no model, and where it stands: check -> rows, counted from 1."""
    chance = random.Random(seed)
    pool = iter(rows(good + 200, seed))
    marked: list[tuple[str, Row]] = [("", next(pool)) for _ in range(good)]
    for check, (count, change) in PLANTS.items():
        marked += [(check, change(next(pool), n)) for n in range(count)]
    chance.shuffle(marked)
    originals = [made for check, made in marked if not check]
    marked += [("exact_duplicates", made) for made in originals[:5]]
    marked += [("near_duplicates", nearly(made, n)) for n, made in enumerate(originals[5:11])]
    found: dict[str, list[int]] = {}
    for number, (check, _) in enumerate(marked, start=1):
        if check:
            found.setdefault(check, []).append(number)
    return [made for _, made in marked], found


def pair(made: Row, rejected: str) -> Row:
    return {"prompt": made["messages"][:1], "chosen": made["messages"][1:], "rejected": [{"role": "assistant", "content": rejected}]}


def nearly(made: Row, n: int) -> Row:
    """Another case, other punctuation, one word more, one word changed, a space: still the same row."""
    question, answer = (message["content"] for message in made["messages"])
    changes = (
        lambda: chat(question.upper(), answer),
        lambda: chat(question.replace(".", "?"), answer.replace(".", ";")),
        lambda: chat(f"Please, {question}", answer),
        lambda: chat(question, f"{answer} Indeed."),
        lambda: chat(f"{question} ", answer.replace(" the ", " that ", 1)),
        lambda: chat(question, answer.replace(" ", "  ")),
    )
    return changes[n % len(changes)]()


def lines(found: list[Row]) -> Iterator[bytes]:
    return (json.dumps(each).encode() + b"\n" for each in found)
