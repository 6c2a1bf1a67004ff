"""Greedy answers of a chat model, many chats at once. Knows nothing of what the answers should be."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32


@torch.no_grad()
def answer_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], max_new_tokens: int = 48
) -> list[str]:
    """What the model answers to each of `chats`, in their order; each chat ends with a user's message."""
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # similar lengths together: less padding
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        inputs = tokenizer(
            [prompts[index] for index in indices], add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        generated = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=max_new_tokens
        )
        texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text.strip()
    return answers
