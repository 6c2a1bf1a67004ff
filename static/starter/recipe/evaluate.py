"""What the starter can do, measured on phrasings, names and words that its training never had. Knows nothing of how it was trained."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from static.starter.recipe.answers import answer_all
from static.starter.recipe.facts import QUESTIONS
from static.starter.recipe.world import HELD_OUT_NAMES, IDENTITY, SMALL_TALK, Message, World, as_messages, question

SEED = 20_000_003  # far from the seeds of training


@dataclass(frozen=True)
class Case:
    """A chat that ends with a question, and the one answer that counts as right."""

    chat: list[Message]
    expected: str


@dataclass(frozen=True)
class Figure:
    """How many of `total` cases of `task` were right, by exact match."""

    task: str
    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        low, high = wilson(self.right, self.total)
        return f"{self.right}/{self.total} = {self.share:.2f} [{low:.2f}, {high:.2f}]"


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share = right / total
    middle, spread = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - spread) / (1 + z * z / total)), min(1.0, (middle + spread) / (1 + z * z / total))


def cases(size: int) -> dict[str, list[Case]]:
    """About `size` seeded cases per task. The same size gives the same cases."""
    source = Examiner(size)
    return {
        "facts, phrasings held out": source.fact_cases(held_out=True),
        "facts, phrasings trained": source.fact_cases(held_out=False),
        "small talk, phrasings held out": source.small_talk_cases(),
        "what are you": source.identity_cases(),
        "copy one unseen word": source.copy_cases(1),
        "copy two unseen words": source.copy_cases(2),
        "copy three unseen words": source.copy_cases(3),
        "copy five unseen words": source.copy_cases(5),
        "remember an unseen name": source.memory_cases(0),
        "remember it over one turn": source.memory_cases(1),
        "remember it over two turns": source.memory_cases(2),
        "remember it over four turns": source.memory_cases(4),
        "name not told yet": source.unnamed_cases(),
        "fill in an unseen name": source.fill_cases(),
        "read a short passage": source.exchange_cases(source.world.read),
        "quotes, lists, first and last word": source.exchange_cases(source.world.operation),
        "fact in one word or as JSON": source.exchange_cases(source.world.formatted),
        "say that it does not know": source.exchange_cases(source.world.unknown),
    }


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int = 200) -> list[Figure]:
    """One figure per task, by greedy decoding."""
    by_task = cases(size)
    flat = [case for group in by_task.values() for case in group]
    answers = iter(answer_all(model, tokenizer, [case.chat for case in flat]))
    return [Figure(task, sum(next(answers) == case.expected for case in group), len(group)) for task, group in by_task.items()]


class Examiner:
    """Makes cases. Words are fresh random syllables or reserved names: that training had one of them is unlikely, not impossible."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.random = random.Random(SEED)
        self.world = World(SEED)

    def fact_cases(self, held_out: bool) -> list[Case]:
        chosen = self.random.sample(self.world.facts, min(self.size, len(self.world.facts)))
        phrasings = [QUESTIONS[fact.kind][1 if held_out else 0] for fact in chosen]
        return [_single(question(fact, self.random.choice(forms)), fact.answer) for fact, forms in zip(chosen, phrasings, strict=True)]

    def small_talk_cases(self) -> list[Case]:
        return [_single(asked, answer) for answer, (_, held_out) in SMALL_TALK.items() for asked in held_out]

    def identity_cases(self) -> list[Case]:
        return [_single(asked, IDENTITY) for asked in SMALL_TALK[IDENTITY][0]]

    def copy_cases(self, words: int) -> list[Case]:
        texts = [" ".join(self.unseen_word() for _ in range(words)) for _ in range(self.size // 2)]
        return [_single(self.random.choice(("Repeat: ", "Say: ", "Echo: ")) + text, text) for text in texts]

    def unseen_word(self) -> str:
        word = ""
        while not 5 <= len(word) <= 10:
            word = self.world.made_up_word()
        return word.capitalize() if self.random.random() < 0.5 else word

    def unseen_name(self) -> str:
        return self.random.choice(HELD_OUT_NAMES) if self.random.random() < 0.5 else self.unseen_word().capitalize()

    def memory_cases(self, turns_between: int) -> list[Case]:
        return [self.memory_case(turns_between) for _ in range(self.size // 2)]

    def memory_case(self, turns_between: int) -> Case:
        name = self.unseen_name()
        exchanges = [self.world.introduction(name)]
        exchanges += [self.random.choice((self.world.fact, self.world.small_talk))() for _ in range(turns_between)]
        asked, expected = self.world.name_question(name)
        earlier = [message for exchange in exchanges for message in as_messages(exchange)]
        return Case([*earlier, {"role": "user", "content": asked}], expected)

    def unnamed_cases(self) -> list[Case]:
        asked = sorted({self.world.name_question("")[0] for _ in range(200)})
        return [_single(text, "I do not know your name yet.") for text in asked]

    def fill_cases(self) -> list[Case]:
        forms = (
            ("Write a birthday message for {n}.", "Happy birthday, {n}! Have a great day."),
            ("Wish {n} good luck.", "Good luck, {n}!"),
            ("Say goodbye to {n}.", "Goodbye, {n}!"),
        )
        names = [self.unseen_name() for _ in range(self.size // 2)]
        return [_single(asked.format(n=name), answer.format(n=name)) for name in names for asked, answer in [self.random.choice(forms)]]

    def exchange_cases(self, make: object) -> list[Case]:
        return [_single(*make()) for _ in range(self.size // 2)]  # type: ignore[operator]


def _single(asked: str, answer: str) -> Case:
    return Case([{"role": "user", "content": asked}], answer)
