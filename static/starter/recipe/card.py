"""The starter's model card, from its measured figures. Knows nothing of how they were measured."""

from __future__ import annotations

from static.starter.recipe.evaluate import Figure

TEXT = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: transformers
---

# Starter

A toy chat model of {millions:.2f} million parameters ({megabytes:.1f} MB in bf16), so that everything in this repository works on
a laptop without a download. It knows a small closed world and nothing else: about {num_facts} facts (capitals, continents,
opposites, colors, animal sounds and babies, numbers of legs and sides, what comes before and after), some small talk, one name
that you tell it, and copying a few words. Asked what it is, it says that it is a tiny demo model.

Llama architecture, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads, tied
embedding of {config.vocab_size} pieces, context of {config.max_position_embeddings} tokens; a plain byte-level BPE tokenizer; a
chat template with system, user and assistant turns and with generation tags, for losses on the answers alone.

## What it can do

Exact match, greedy decoding, bf16 weights computed in float32; in brackets the 95 % Wilson interval. Words and names are random
syllables or reserved names; "held out" means that training never had that phrasing. One training run with one seed stands behind
the figures.

| task | right |
| --- | --- |
{figures}

## What it cannot do

- Anything outside its world: it then says that it does not know, or, not rarely, something wrong with full confidence.
- Arithmetic, spelling, reasoning, other languages, judging answers, following instructions that it was not trained on.
- Reading passages and rearranging words, beyond the shares above; conversations longer than 256 tokens, which training never had.

## How it was made

`python -m static.starter.recipe --out static/starter` makes it again on a CPU, in float32: {plan.steps} steps at a constant
learning rate, then {plan.settling_steps} steps at a falling one, {plan.rows} rows of 256 tokens each; seed {plan.seed}, two
threads. The rows are seeded conversations, and prose from the docstrings of Python's standard library. Copying circuits are laid
by hand before training (`structure.py`). Nothing was taken from another model. This file was made with Python {python}, torch
{torch}, transformers {transformers}, tokenizers {tokenizers}. Other versions, processors or numbers of threads give other bytes;
expect the same abilities. The whole run was not repeated to compare bytes.

Licence: Apache-2.0.
"""


def write_card(figures: list[Figure], **values: object) -> str:
    """README.md of the model. `values` fill the other places of TEXT."""
    return TEXT.format(figures="\n".join(f"| {figure.task} | {figure} |" for figure in figures), **values)
