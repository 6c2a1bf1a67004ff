"""`python -m studio.catalogue.starter --out FOLDER`: make the starter model, tokenizer and card from nothing but this folder and Python."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from studio.catalogue.starter.export import publish
from studio.catalogue.starter.prose import paragraphs
from studio.catalogue.starter.tokenizer import train_tokenizer
from studio.catalogue.starter.train import Plan, learn, settle
from studio.catalogue.starter.world import World

TOKENIZER_CONVERSATIONS = 15_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.catalogue.starter", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, such as static/starter")
    parser.add_argument("--settle", type=Path, metavar="FOLDER", help="only the second part, from the model that the first part left here")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number gives slightly other weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prose = paragraphs()
    world = World(arguments.seed + 7)
    tokenizer = train_tokenizer([message["content"] for _ in range(TOKENIZER_CONVERSATIONS) for message in world.conversation()] + prose)
    plan = Plan(seed=arguments.seed)
    learned: Path = arguments.settle or arguments.out
    if not arguments.settle:
        publish(learn(tokenizer, prose, plan), tokenizer, "# Starter\n\nHalf made.\n", learned)
    model = settle(tokenizer, prose, plan, LlamaForCausalLM.from_pretrained(learned))
    publish(model, tokenizer, "# Starter\n\nNot measured yet.\n", arguments.out)


if __name__ == "__main__":
    main()
