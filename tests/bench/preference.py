"""Teach the starter by DPO to answer in a word instead of a sentence, and count what that costs: `python -m tests.bench.preference`.

Facts that training never saw are asked in phrasings it never saw. Shown are the share of short answers and, beside it, the share
that is short and right, each with its 95 % interval: an empty answer is short too. `--develop` asks other facts, to choose options by.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import config, recipes
from jobs.rundir import RunDir, write_json
from static.starter.recipe.facts import QUESTIONS, Fact, facts
from studio.settings import PACKAGE_ROOT, STATIC

HELD_OUT = 120
PHRASINGS = 3  # in which each fact is asked for in training
# a tiny model takes a far higher rate than a large one
OPTIONS = {
    "learning_rate": 5e-4,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "max_length": 64,
    "lora.r": 16,
    "lora.lora_alpha": 32,
    "test_size": 0,
    "sample_answers": 0,
    "measure_drift": False,
}
MOST_BEFORE, LEAST_AFTER, AIM_RIGHT = 0.3, 0.8, 0.6


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    found = child([])
    entries = []
    for when, against in (("before", f"<= {MOST_BEFORE}"), ("after", f">= {LEAST_AFTER}")):
        for what, bound in (("short", against), ("short and right", f"aim >= {AIM_RIGHT}" if when == "after" else ""), ("right", "")):
            count, low, high = found[when][what]
            measure = f"held-out answers {what}, {when} DPO"
            share = round(count / HELD_OUT, 3)
            entries.append({"measure": measure, "value": share, "unit": f"[{low:.2f}-{high:.2f}]", "against": bound, "ratio": None})
    return entries


def child(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.preference", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE_ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(folder: Path, develop: bool, options: dict[str, Any]) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.trainers import sft
    from jobs.trainers.events import EventLog
    from jobs.trainers.stopping import StopWish

    learned, asked = _divide(develop)
    made = RunDir(folder)
    made.path.mkdir(parents=True, exist_ok=True)
    job = config.build(
        recipes.get("dpo").options, OPTIONS, options, {"base_model": "starter", "model_name_or_path": str(STATIC / "starter")}
    )
    write_json(made.config, job.model_dump(mode="json"))
    source = random.Random(7)
    made.train.write_text("".join(row for fact in learned for row in _pairs(fact, source)), encoding="utf-8")
    made.eval.write_text("", encoding="utf-8")
    log = EventLog(made.attempt(1).events)
    figures = sft.train(made, job, folder / "adapter", log, StopWish())
    log.close()

    tokenizer = AutoTokenizer.from_pretrained(STATIC / "starter")
    base = AutoModelForCausalLM.from_pretrained(STATIC / "starter", dtype="float32").eval()
    before = _counts(base, tokenizer, asked)
    after = _counts(PeftModel.from_pretrained(base, str(folder / "adapter")).eval(), tokenizer, asked)
    return {"before": before, "after": after, "seconds": figures["seconds"], "steps": figures["steps"]}


def _divide(develop: bool) -> tuple[list[Fact], list[Fact]]:
    """Facts to learn from, and facts to be asked; subjects and values of a kind never cross."""
    every = facts()
    random.Random(5).shuffle(every)
    tested, developed, rest = every[:HELD_OUT], every[HELD_OUT : 2 * HELD_OUT], every[2 * HELD_OUT :]
    return rest, developed if develop else tested


def _pairs(fact: Fact, source: random.Random) -> list[str]:
    questions = [question.format(s=fact.subject) for question in source.sample(QUESTIONS[fact.kind][0], PHRASINGS)]
    answers = {
        "chosen": [{"role": "assistant", "content": _word(fact)}],
        "rejected": [{"role": "assistant", "content": fact.answer}],
    }
    return [json.dumps({"prompt": [{"role": "user", "content": question}], **answers}) + "\n" for question in questions]


def _word(fact: Fact) -> str:
    return fact.value[0].upper() + fact.value[1:] + "."


def _counts(model: Any, tokenizer: Any, asked: list[Fact]) -> dict[str, tuple[int, float, float]]:
    """{what: (how many, interval)} of the answers."""
    from static.starter.recipe.answers import answer_all
    from static.starter.recipe.evaluate import wilson

    source = random.Random(9)
    chats = [[{"role": "user", "content": source.choice(QUESTIONS[fact.kind][1]).format(s=fact.subject)}] for fact in asked]
    said = answer_all(model, tokenizer, chats, max_new_tokens=16)
    short = [len(answer.split()) <= 2 for answer in said]
    exact = [answer.rstrip(".").lower() == fact.value.lower() for answer, fact in zip(said, asked, strict=True)]
    right = [fact.value.lower() in answer.lower() for answer, fact in zip(said, asked, strict=True)]
    for answer, fact in list(zip(said, asked, strict=True))[:12]:
        print(fact.subject, "->", fact.value, ":", answer, file=sys.stderr)
    counts = {"short": sum(short), "short and right": sum(exact), "right": sum(right)}
    return {what: (count, *wilson(count, len(asked))) for what, count in counts.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--develop", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()
    if chosen.child:
        answers, sys.stdout = sys.stdout, sys.stderr
        with tempfile.TemporaryDirectory() as name:
            found = measure(Path(name) / "run", chosen.develop, config.parse_assignments(chosen.set))
        print(json.dumps(found), file=answers)
    else:
        for entry in run():
            print(f"{entry['measure']:<48} {entry['value']} {entry['unit']} {entry['against']}")
