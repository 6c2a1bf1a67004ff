"""`python -m static.starter.recipe --out FOLDER`: make the starter model, tokenizer and card from nothing but this folder and Python."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from static.starter.recipe.card import write_card
from static.starter.recipe.evaluate import evaluate
from static.starter.recipe.export import publish, write_checksums
from static.starter.recipe.facts import facts
from static.starter.recipe.prose import paragraphs
from static.starter.recipe.tokenizer import train_tokenizer
from static.starter.recipe.train import Plan, learn, settle
from static.starter.recipe.world import World

TOKENIZER_CONVERSATIONS = 15_000


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if not arguments.measure:
        make(arguments.out, arguments.settle, Plan(seed=arguments.seed))
    measure(arguments.out, Plan(seed=arguments.seed))


def make(out: Path, learned: Path | None, plan: Plan) -> None:
    """Train and publish into `out`. With `learned`, the folder that the first part left, only the second part runs."""
    prose = paragraphs()
    tokenizer = _tokenizer(prose, plan.seed)
    if learned is None:
        learned = out
        publish(learn(tokenizer, prose, plan), tokenizer, "# Starter\n\nHalf made.\n", learned)
    model = settle(tokenizer, prose, plan, LlamaForCausalLM.from_pretrained(learned))
    publish(model, tokenizer, "# Starter\n\nNot measured yet.\n", out)


def measure(folder: Path, plan: Plan) -> None:
    """Put what the published model can do into its card."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = folder / "model.safetensors"
    card = write_card(
        evaluate(model, tokenizer),
        config=model.config,
        plan=plan,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        num_facts=len(facts()),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
    )
    (folder / "README.md").write_text(card, "utf-8")
    write_checksums(folder)


def _tokenizer(prose: list[str], seed: int) -> PreTrainedTokenizerFast:
    world = World(seed + 7)
    return train_tokenizer([message["content"] for _ in range(TOKENIZER_CONVERSATIONS) for message in world.conversation()] + prose)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m static.starter.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model, such as static/starter")
    parser.add_argument("--settle", type=Path, metavar="FOLDER", help="only the second part, from the model that the first part left here")
    parser.add_argument("--measure", action="store_true", help="only measure the model in --out and write its card")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number gives slightly other weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
