"""Does the passage that answers come through? LongLLMLingua with the starter at a quarter of the tokens, the needle kept word for word.

`python -m tests.bench.compress_needles [CASES]` prints, for each kind of haystack, how many of CASES seeded needles were kept.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from studio import settings
from studio.settings import STATIC
from tests.bench import compress_rates

CASES = 100  # of all kinds together
RATE = 0.25
SIZE = 19  # passages beside the needle


@dataclass(frozen=True)
class Case:
    """`passages` hold `needle` once, and nothing else that answers `question`."""

    passages: list[str]
    needle: str
    question: str


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    each = CASES // len(KINDS)
    found = {kind: kept(kind, each) for kind in KINDS}
    entries = [{"measure": f"needles kept at 4x: {kind}", "value": n, "unit": f"of {each}", "against": ""} for kind, n in found.items()]
    total = {"measure": "needles kept at 4x: all", "value": sum(found.values()), "unit": f"of {each * len(KINDS)}"}
    return [*entries, {**total, "against": "at least 95 of 100"}]


def kept(kind: str, cases: int) -> int:
    """How many of the first `cases` seeds of a kind keep their needle."""
    return sum(_is_kept(KINDS[kind](random.Random(seed))) for seed in range(cases))


def _is_kept(case: Case) -> bool:
    made = _compressor().compress(case.passages, method="longllmlingua", question=case.question, rate=RATE)
    return case.needle in made.text


@lru_cache(maxsize=1)
def _compressor() -> Any:
    from studio.compress import load

    return load(STATIC / "starter")


def _planted(rng: random.Random, passages: list[str], needle: str, question: str) -> Case:
    at = rng.randrange(len(passages) + 1)
    return Case([*passages[:at], needle, *passages[at:]], needle, question)


def same_shape(rng: random.Random) -> Case:
    """Passages of one shape with the needle's, about other things, some of them with numbers and names too."""
    name, code = _name(rng), rng.randint(1000, 9999)
    needle = f"The access code of {name} is {code}. It was changed last week."
    return _planted(rng, [_filler(rng) for _ in range(SIZE)], needle, f"What is the access code of {name}?")


def same_words(rng: random.Random) -> Case:
    """Only a name tells the needle from the others."""
    names = [_name(rng) for _ in range(SIZE + 1)]
    passages = [f"The badge number of {name} is {rng.randint(1000, 9999)}." for name in names]
    wanted = rng.randrange(len(names))
    return Case(passages, passages[wanted], f"What is the badge number of {names[wanted]}?")


def code_among_sums(rng: random.Random) -> Case:
    name, code = _name(rng), rng.randint(1000, 9999)
    return _planted(rng, rng.sample(_sums(), SIZE), f"The secret code of {name} is {code}.", f"What is the secret code of {name}?")


def key_among_sums(rng: random.Random) -> Case:
    """Nothing rare in the question."""
    code = rng.randint(10_000, 99_999)
    needle = f"The pass key is {code}. Remember it. {code} is the pass key."
    return _planted(rng, rng.sample(_sums(), SIZE), needle, "What is the pass key?")


def thing_in_a_meeting(rng: random.Random) -> Case:
    """Passages of the MeetingBank transcript."""
    who, what, where = rng.choice(PEOPLE), rng.choice(OBJECTS), rng.choice(SPOTS)
    said = re.split(r"(?<=[.!?])\s+", compress_rates.prompts(settings.load().test_data)["meeting"][0])
    passages = [" ".join(said[n : n + 4]) for n in range(0, len(said), 4)]
    rng.shuffle(passages)
    return _planted(rng, passages[:SIZE], f"{who} keeps the {what} {where}.", f"Where does {who} keep the {what}?")


def one_running_text(rng: random.Random) -> Case:
    """No paragraphs, no documents."""
    case = code_among_sums(rng)
    return Case([" ".join(case.passages)], case.needle, case.question)


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "passages of the same shape": same_shape,
    "passages of the same words": same_words,
    "a code among GSM8K questions": code_among_sums,
    "a pass key among GSM8K questions": key_among_sums,
    "a thing in a meeting": thing_in_a_meeting,
    "one running text": one_running_text,
}
PLACES = ("harbour", "library", "station", "market", "garden", "museum", "bridge", "school")
THINGS = ("opening hours", "new roof", "old clock", "north wall", "parking rules", "visitor count", "summer plan", "main door")
PEOPLE = ("Maria", "Thomas", "Svetlana", "Omar", "Ingrid", "Pablo", "Chen", "Fatima", "Louis", "Grace", "Henrik", "Yuki")
OBJECTS = ("red bicycle", "silver watch", "old piano", "blue umbrella", "wooden boat")
SPOTS = ("in the cellar", "at the station", "behind the church", "near the lake")


@lru_cache(maxsize=1)
def _sums() -> list[str]:
    file = settings.load().test_data / "data/instructions/gsm8k_test.jsonl"
    return [json.loads(line)["question"] for line in file.read_text("utf-8").splitlines()]


def _name(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)).capitalize()


def _filler(rng: random.Random) -> str:
    place, thing, name = rng.choice(PLACES), rng.choice(THINGS), _name(rng)
    return rng.choice(
        (
            f"The {thing} of the {place} was discussed by {name}. Nobody had more to say about it.",
            f"The budget of the {place} is {rng.randint(1000, 9999)}. It was agreed in spring.",
            f"{name} visited the {place} and asked about the {thing}. There was no answer yet.",
            f"In the {place} the {thing} will stay as it is for {rng.randint(2, 9)} years.",
        )
    )


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else CASES
    total = 0
    for kind in KINDS:
        count = kept(kind, cases)
        total += count
        print(f"{kind:<36}{count:>5} of {cases}", flush=True)
    print(f"{'all':<36}{total:>5} of {cases * len(KINDS)}")


if __name__ == "__main__":
    main()
