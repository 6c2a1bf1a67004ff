"""The starter's tokenizer and chat template. Knows nothing of models.

A plain byte-level BPE (GPT-2's pre-tokenizer, no normaliser) in which a word is cut the same way with and without a leading space:
merges are learned inside words only, and the merges that glue a space to a first piece come last. `Zorblin` and ` Zorblin` then differ
in one bit of their first piece, which is what makes copying a word to the start of an answer or into quotes learnable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN = "<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN)
SPACE = "Ġ"  # how byte-level BPE spells a space
NUM_MERGES = 1870  # twice this, 256 bytes, 94 printable characters after a space and 6 special tokens make 4096
CONTEXT_LENGTH = 512

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] | trim + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- '<|system|>' + message['content'] | trim + '<|im_end|>' -}}"
    "{%- else -%}"
    "{{- '<|user|>' + message['content'] | trim + '<|im_end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts`, then add the ones that take a leading space."""
    inside_words = Tokenizer(models.BPE())
    inside_words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL_TOKENS) + 256 + NUM_MERGES,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inside_words.train_from_iterator(texts, trainer)
    learned = json.loads(inside_words.to_str())["model"]
    return _wrap(_with_spaces(learned["vocab"], [tuple(pair) for pair in learned["merges"]]))


def _with_spaces(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    printable = [chr(code) for code in range(33, 127)]
    takes_space = printable + [one + other for one, other in merges]
    vocab = dict(vocab)
    for piece in takes_space:
        vocab[SPACE + piece] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges + [(SPACE, piece) for piece in takes_space]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        additional_special_tokens=[END_OF_TEXT, SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def unspaced(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """For each id, the id of the same piece without its leading space (itself where there is none)."""
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)
    return [vocab[piece[1:]] if piece.startswith(SPACE) and len(piece) > 1 else vocab[piece] for piece in pieces]
