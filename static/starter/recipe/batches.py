"""Rows of training tokens: conversations, prose and repeated random pieces, packed. Knows nothing of the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from static.starter.recipe.tokenizer import ASSISTANT, END_OF_TEXT, END_OF_TURN
from static.starter.recipe.world import Message, World

ROW = 256  # tokens
ANSWER_WEIGHT, PROSE_WEIGHT, REPEAT_WEIGHT, PROMPT_WEIGHT = 1.0, 0.5, 0.6, 0.5
PROMPT_SHARE = 0.15  # of the prompt's tokens are learned at all: enough for the language, cheap

Piece = tuple[list[int], list[float]]  # ids, and the weight of each in the loss


@dataclass(frozen=True)
class Batch:
    """`ids`, `weights` and `documents` are (rows, ROW); `documents` numbers what may attend to each other, 0 is padding."""

    ids: torch.Tensor
    weights: torch.Tensor
    documents: torch.Tensor


class Batches:
    """An endless seeded source. `share` of tokens: repeats and prose; the rest is conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prose: list[str], seed: int) -> None:
        self.tokenizer = tokenizer
        self.world = World(seed)
        self.random = random.Random(seed + 1)
        self.prose = [ids[: ROW - 2] for ids in tokenizer(prose, add_special_tokens=False)["input_ids"]]
        self.end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self.num_special = len(tokenizer.all_special_ids)
        self.waiting: list[Piece] = []

    def next(self, rows: int, repeats: float, prose: float) -> Batch:
        ids = torch.zeros(rows, ROW, dtype=torch.long)
        weights, documents = torch.zeros(rows, ROW), torch.zeros(rows, ROW, dtype=torch.long)
        for row in range(rows):
            roll = self.random.random()
            if roll < repeats:
                pieces: Iterator[Piece] = iter([self.repeated_pieces()])
            elif roll < repeats + prose:
                pieces = self.prose_pieces()
            else:
                pieces = self.chat_pieces()
            start = 0
            for number, (tokens, token_weights) in enumerate(pieces, start=1):
                stop = start + len(tokens)
                ids[row, start:stop] = torch.tensor(tokens)
                weights[row, start:stop] = torch.tensor(token_weights)
                weights[row, start] = 0  # nothing comes before it to predict it from
                documents[row, start:stop] = number
                start = stop
        return Batch(ids, weights, documents)

    def repeated_pieces(self) -> Piece:
        """Random pieces, said again and again: only what was seen in the row can tell what comes next."""
        length = self.random.randint(8, 80)
        once = [self.random.randrange(self.num_special, len(self.tokenizer)) for _ in range(length)]
        ids = (once * (ROW // length + 1))[:ROW]
        return ids, [0.0] * length + [REPEAT_WEIGHT] * (ROW - length)

    def prose_pieces(self) -> Iterator[Piece]:
        room = ROW
        while room > 0:
            ids = [self.end_of_text, *self.random.choice(self.prose), self.end_of_text][:room]
            room -= len(ids)
            yield ids, [PROSE_WEIGHT] * len(ids)

    def chat_pieces(self) -> Iterator[Piece]:
        room = ROW
        while True:
            if not self.waiting:
                self.waiting = self.encode([self.world.conversation() for _ in range(64)])
            if len(self.waiting[-1][0]) > room:
                if len(self.waiting[-1][0]) > ROW:
                    self.waiting.pop()
                    continue
                return
            room -= len(self.waiting[-1][0])
            yield self.waiting.pop()

    def encode(self, chats: list[list[Message]]) -> list[Piece]:
        """What the chat template makes of `chats`, cut into its parts so that each token knows who says it."""
        parts = [part for chat in chats for message in chat for part in (f"<|{message['role']}|>", message["content"] + END_OF_TURN)]
        encoded = iter(self.tokenizer(parts, add_special_tokens=False)["input_ids"])
        pieces = []
        for chat in chats:
            ids: list[int] = []
            weights: list[float] = []
            for message in chat:
                role, content = next(encoded), next(encoded)
                is_answer = f"<|{message['role']}|>" == ASSISTANT
                ids += role + content
                weights += [0.0] + [ANSWER_WEIGHT if is_answer else PROMPT_WEIGHT * (self.random.random() < PROMPT_SHARE) for _ in content]
            pieces.append((ids, weights))
        return pieces
