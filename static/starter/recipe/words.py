"""`python -m static.starter.recipe.words --out static/starter/words`: make the word-importance classifier that ships beside the starter.

A distilled heuristic, and called so: a small BERT learns to say how much a word matters from the starter's surprise at it, its
rarity, and rules (numbers, negations and names matter, function words and punctuation do not). It is not the model of the
LLMLingua-2 paper, which was distilled from GPT-4. Needs nothing but this repository and Python.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import Counter
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from static.starter.recipe.export import write_checksums
from static.starter.recipe.prose import paragraphs, sources

STARTER = Path("static/starter")
VOCABULARY, WIDTH, LAYERS, HEADS = 10_000, 128, 3, 4
STEPS, ROWS, LENGTH, PEAK = 500, 16, 192, 2e-3
DOCUMENTS, CODE, CHINESE = 3000, 300, 400
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?|\d+(?:[.,:]\d+)*|[\u3400-\u9fff]|[^\W\d_]+|[^\w\s]|_")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _set("no not never none nor nothing nobody neither without cannot n't 不 没 无 非 未 别 否 ")
FUNCTION = _set(
    "a an the this that these those it its i you he she we they them him her us me my your his our their is are was were be "
    "been being am do does did done have has had having of in on at by for with from to into onto as and or but so if then "
    "than there here very just also too really quite about which who whom whose what when where how will would can could "
    "shall should may might must up down out over such some any all each more most other own same only again once let okay "
    "yeah um uh well please 的 了 是 在 和 也 就 都 而 及 与 着 过 把 被 这 那 之 其 等 吗 呢 吧 啊 们 个 很 又 还 为 以 于 对 将 所 "
)
THINGS = (
    "apples",
    "hours",
    "meetings",
    "reports",
    "dollars",
    "parks",
    "streets",
    "members",
    "votes",
    "budget",
    "amendment",
    "district",
    "ordinance",
    "marbles",
    "books",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m static.starter.recipe.words", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    texts = corpus(random.Random(arguments.seed))
    tokenizer = train_tokenizer(texts)
    rows = [row for row in labelled(texts, tokenizer) if len(row[0]) > 8]
    held_out, rows = rows[:200], rows[200:]
    model = train(rows, arguments.seed)
    publish(model, tokenizer, arguments.out, agreement(model, held_out))


def corpus(rng: random.Random) -> list[str]:
    """Prose of docstrings, pieces of code, and random Chinese, mixed."""
    prose = paragraphs()
    rng.shuffle(prose)
    joined = [" ".join(prose[n : n + 2]) for n in range(0, min(len(prose), DOCUMENTS), 2)]
    texts = [*joined, *sources(CODE, rng), *(_chinese(rng) for _ in range(CHINESE)), *(_numbers(rng) for _ in range(CHINESE))]
    rng.shuffle(texts)
    return texts


def _chinese(rng: random.Random) -> str:
    """Common characters in no order: there is no Chinese text here to learn from, so only function words and marks are told apart."""
    common, function = _hanzi(), [word for word in sorted(FUNCTION) if not word.isascii()]
    marks = "，，，。！？、：；“”"
    letters = [rng.choice(function) if rng.random() < 0.22 else rng.choice(common) for _ in range(rng.randint(30, 150))]
    for _ in range(len(letters) // 10):
        letters.insert(rng.randrange(len(letters)), rng.choice([*marks, str(rng.randint(1, 2025))]))
    return "".join(letters)


def _hanzi() -> list[str]:
    """The 3,755 characters of GB 2312, level 1."""
    pairs = ((high, low) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    return [bytes(pair).decode("gb2312") for pair in pairs if pair[0] < 0xD7 or pair[1] < 0xFA]


def _numbers(rng: random.Random) -> str:
    """Talk with numbers, negations and names, of which docstrings have few."""
    names = [rng.choice("BCDFGHKLMNPRSTVW") + rng.choice(["ara", "olin", "erra", "una", "iden", "ova"]) for _ in range(4)]
    forms = (
        "{a} bought {n} {t} for ${d} each on day {n}.", "Item {n}: the {t} of {a} {b} was moved to {n}:{m}.", "Question: {a} has {n} {t}.",
        "{a}: I did not see the {t}, but {b} said that it costs {d}.", "We have {k} people and no {t}, so {n} + {n} = {k}.",
        "Thank you, {a}. The {t} isn't ready, {b}.", "Let's think step by step. How many {t} does {a} have left?",
    )  # fmt: skip

    def line() -> str:
        values = {"a": rng.choice(names), "b": rng.choice(names), "n": rng.randint(1, 99), "m": rng.randint(10, 59)}
        return rng.choice(forms).format(
            t=rng.choice(THINGS), d=f"{rng.randint(1, 99)}.{rng.randint(0, 9)}", k=f"{rng.randint(1, 99)},000", **values
        )

    return " ".join(line() for _ in range(rng.randint(3, 8)))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Cased word pieces; the alphabet holds Latin letters, kana and common Chinese characters, met in the texts or not."""
    trained = BertWordPieceTokenizer(lowercase=False, strip_accents=False, handle_chinese_chars=True)
    kana = [chr(code) for code in range(0x3041, 0x30FF)]
    latin = [chr(code) for code in range(0x21, 0x17F) if chr(code).isprintable()]
    alphabet = [*latin, *kana, *"，。！？、：；“”‘’（）《》—…–•€£", *_hanzi()]
    options = {"special_tokens": SPECIAL, "limit_alphabet": 20_000, "initial_alphabet": alphabet, "show_progress": False}
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, **options)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=512, clean_up_tokenization_spaces=False, **names)


def labelled(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[float]]]:
    """(token ids, importance of each token's word between 0 and 1) per text."""
    starter, pieces = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(STARTER)
    documents = [[match for match in WORD.finditer(text)] for text in texts]
    spread = Counter(word for words in documents for word in {match.group().lower() for match in words})
    rows = []
    for text, words in zip(texts, documents, strict=True):
        if not words:
            continue
        surprise = _surprise(starter, pieces, text, words)
        rarity = [math.log(len(texts) / spread[match.group().lower()]) for match in words]
        marks = importance(text, words, surprise, rarity)
        ids, targets, place = [tokenizer.cls_token_id], [0.0], 0
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (begin, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            while place + 1 < len(words) and words[place].end() <= begin:
                place += 1
            ids.append(token)
            targets.append(marks[place])
        rows.append(([*ids[: LENGTH - 1], tokenizer.sep_token_id], [*targets[: LENGTH - 1], 0.0]))
    return rows


@torch.no_grad()
def _surprise(model: AutoModelForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, words: list[re.Match[str]]) -> list[float]:
    """Nats per word: the starter's loss on its pieces, summed."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][:500], encoded["offset_mapping"][:500]
    logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = [0.0, *cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()]
    sums, place = [0.0] * len(words), 0
    for loss, (_, end) in zip(losses, offsets, strict=True):
        while place + 1 < len(words) and words[place].end() < end:
            place += 1
        sums[place] += loss
    return sums


def importance(text: str, words: list[re.Match[str]], surprise: list[float], rarity: list[float]) -> list[float]:
    """Percentile of surprise and rarity inside the text, moved by the rules."""
    mixed = [a + b for a, b in zip(_standard(surprise), _standard(rarity), strict=True)]
    order = sorted(range(len(words)), key=mixed.__getitem__)
    rank = {place: n / max(1, len(words) - 1) for n, place in enumerate(order)}
    return [_ruled(text, match, 0.15 + 0.7 * rank[n]) for n, match in enumerate(words)]


def _ruled(text: str, match: re.Match[str], value: float) -> float:
    word = match.group()
    lower = word.lower()
    if word[0].isdigit() or lower in NEGATIONS or lower.endswith(("n't", "n’t")):
        return 1.0
    if not (word[0].isalpha() or word == "_"):
        return 0.12 if word in ".?!。？！\n" else 0.04
    if lower in FUNCTION:
        return 0.02
    if not word.isascii():
        return 0.6
    starts_sentence = re.search(r"(^|[.!?:\n])\s*$", text[max(0, match.start() - 3) : match.start()]) is not None
    return min(0.95, value + 0.25) if word[0].isupper() and not starts_sentence else value


def _standard(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) or 1.0
    return [(value - mean) / spread for value in values]


def train(rows: list[tuple[list[int], list[float]]], seed: int) -> BertForTokenClassification:
    """Binary cross-entropy against the soft importance; label 1 is "keep"."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=2, num_labels=2,
    )  # fmt: skip
    model = BertForTokenClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, pct_start=0.1)
    rng = random.Random(seed)
    for step in range(STEPS):
        ids, targets, mask = _batch(rng.sample(rows, ROWS))
        loss = _loss(model(input_ids=ids, attention_mask=mask).logits, targets, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: {loss.item():.4f}", flush=True)
    return model.eval()


def _batch(rows: list[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids, targets, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for n, (tokens, values) in enumerate(rows):
        ids[n, : len(tokens)], targets[n, : len(values)], mask[n, : len(tokens)] = torch.tensor(tokens), torch.tensor(values), 1
    return ids, targets, mask


def _loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    soft = torch.stack([1 - targets, targets], dim=-1)
    each: Tensor = -(soft * logits.log_softmax(dim=-1)).sum(dim=-1)
    return (each * mask).sum() / mask.sum()


@torch.no_grad()
def agreement(model: BertForTokenClassification, rows: list[tuple[list[int], list[float]]]) -> float:
    """Share of held-out tokens on which model and heuristic are on the same side of one half."""
    right = total = 0
    for ids, targets in rows:
        kept = model(input_ids=torch.tensor([ids])).logits[0].softmax(dim=-1)[:, 1] > 0.5
        right += int((kept == (torch.tensor(targets) > 0.5)).sum())
        total += len(ids)
    return right / total


CARD = """---
license: apache-2.0
language: en
pipeline_tag: token-classification
library_name: transformers
---

# Word importance, a distilled heuristic

A BERT of {millions:.2f} million parameters that says which words of a prompt matter, so that LLMLingua-2's way of compressing works
without a download. It learned a heuristic (the starter's surprise, rarity, rules for numbers, negations, names and function words),
not what a large model would keep: it is not the model of the LLMLingua-2 paper, and no answer quality was measured with it.
For real work use `microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank` or its XLM-RoBERTa sibling.

It agrees with its heuristic on {agreement:.3f} of held-out tokens. It reads English, and tells Chinese function words from the
rest; characters that it has never seen are kept. Made by `python -m static.starter.recipe.words --out static/starter/words`,
seed 0, from docstrings and sources of Python's standard library and seeded sentences. Licence: Apache-2.0.
"""


def publish(model: BertForTokenClassification, tokenizer: PreTrainedTokenizerFast, folder: Path, share: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(millions=millions, agreement=share), "utf-8")
    write_checksums(folder)
    print(f"{share:.3f} of held-out tokens agree; {millions:.2f} M parameters in {folder}")


if __name__ == "__main__":
    main()
