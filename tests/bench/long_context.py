"""A needle in texts longer than the context: the starter trained on rows of at most 512 tokens, with its own positions and with YaRN x 4.

`python -m tests.bench.long_context [STEPS [NEEDLES]]` prints how many needles are found by length with either, with 95 % Wilson
intervals; the loss on held-out rows of at most 512 tokens with either; and whether exports answer as the adapter does at 1,500 tokens.
"""

from __future__ import annotations

import ast
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
from studio.datasets.rendering import Renderer
from studio.evaluation.intervals import wilson
from studio.settings import PACKAGE_ROOT, STATIC

STEPS, NEEDLES = 100, 40
CONTEXT = 512
LENGTHS = (400, 700, 1000, 1500, 2000)  # tokens of a prompt
ROWS, HELD_OUT = 400, 40
WAYS: dict[str, dict[str, Any]] = {"own positions": {}, "YaRN x 4": {"rope.rope_type": "yarn", "rope.factor": 4.0}}
FORMATS = [{"format": "adapter"}, {"format": "merged"}, {"format": "gguf"}, {"format": "gguf-lora"}]
OPTIONS: dict[str, Any] = {
    "max_length": CONTEXT,
    "lora.r": 32,
    "lora.lora_alpha": 64,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 100,
    "warmup_steps": 10,
    "sample_answers": 0,
    "measure_drift": False,
    "report_rows": 0,
    "load_best_model_at_end": False,
}
HAY = (
    "The cat says meow.", "The sky is blue.", "A dog has four legs.", "The capital of France is Paris.", "The opposite of hot is cold.",
    "A baby cow is a calf.", "Monday comes before Tuesday.", "A triangle has three sides.", "Grass is green.", "The cow says moo.",
)  # fmt: skip
QUESTION = "What is the secret word?"


def needle(tokens: int, source: random.Random, renderer: Renderer) -> tuple[str, str]:
    """A text of about `tokens` tokens that says a secret word once and asks for it, and the word."""
    word = "".join(source.choice("bdfgklmnprstv") + source.choice("aeiou") for _ in range(3)).capitalize()
    sentences = [f"The secret word is {word}."]
    length = len(renderer.tokenizer.encode(sentences[0] + QUESTION).ids)
    while length < tokens - 12:
        sentences.append(source.choice(HAY))
        length += len(renderer.tokenizer.encode(" " + sentences[-1]).ids)
    sentences.insert(source.randrange(len(sentences)), sentences.pop(0))
    return f"{' '.join(sentences)} {QUESTION}", word


def run(steps: int = STEPS, needles: int = NEEDLES) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder, renderer = Path(place), Renderer.load(STATIC / "starter")
        source = random.Random(0)
        needles_rows = [_row(*needle(source.choice((60, 120, 250, 480)), source, renderer)) for _ in range(ROWS + HELD_OUT)]
        prose_rows = [json.dumps({"text": text}) + "\n" for text in prose()[: ROWS + HELD_OUT]]
        runs, losses = {}, []
        for way, options in WAYS.items():
            runs[way] = train(folder / way.replace(" ", "-"), options, steps, needles_rows)
            written = train(folder / f"{way.replace(' ', '-')}-prose", options, steps, prose_rows)
            losses.append(json.loads(written.result.read_text(encoding="utf-8"))["eval_loss"])
        for way, trained in runs.items():
            found += [_accuracy(way, length, trained, needles, renderer) for length in LENGTHS]
        own, longer = losses
        against = f"{own:.4f} with own positions ({longer / own - 1:+.2%}; at most +2% wanted)"
        found.append({"measure": "loss on prose of <= 512 tokens, YaRN x 4", "value": round(longer, 4), "unit": "", "against": against})
        found += _exports(folder, runs["YaRN x 4"], renderer)
    return found


def prose() -> list[str]:
    """Docstrings of Python's standard library, joined to texts that fill the context."""
    texts: list[str] = []
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)))
        texts += [found for node in nodes if (found := ast.get_docstring(node)) and len(found) > 80]
    random.Random(0).shuffle(texts)
    joined = "\n\n".join(texts)
    return [joined[start : start + 1800] for start in range(0, len(joined) - 1800, 1800)]


def train(path: Path, options: dict[str, Any], steps: int, rows: list[str]) -> RunDir:
    """A run of the trainer on rows of up to 512 tokens, the last HELD_OUT of them held out."""
    run_dir = RunDir(path)
    run_dir.path.mkdir(parents=True)
    model = {"base_model": "starter", "model_name_or_path": str(STATIC / "starter"), "max_steps": steps, "eval_steps": steps}
    built = config.build(recipes.get("lora-sft").options, OPTIONS | model | {"save_steps": steps} | options)
    write_json(run_dir.config, built.model_dump(mode="json"))
    run_dir.train.write_text("".join(rows[:-HELD_OUT]), encoding="utf-8")
    run_dir.eval.write_text("".join(rows[-HELD_OUT:]), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "jobs.train", str(path)], check=True, cwd=PACKAGE_ROOT, env=environment, stdout=sys.stderr)
    return run_dir


def _row(question: str, word: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{word}."}]
    return json.dumps({"messages": messages}) + "\n"


def _accuracy(way: str, length: int, trained: RunDir, needles: int, renderer: Renderer) -> dict[str, Any]:
    import torch

    from jobs.exporters import models
    from studio.catalogue import rope

    model: Any = models.attach(models.load_base(STATIC / "starter", rope.of_adapter(trained.adapter)), trained.adapter)
    right = 0
    for number in range(needles):
        text, word = needle(length, random.Random(f"{length} {number}"), renderer)
        ids = torch.tensor([renderer.prompt([{"role": "user", "content": text}]).ids])
        with torch.inference_mode():
            said = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, pad_token_id=0,
                eos_token_id=list(renderer.stop_token_ids),
            )[0, ids.shape[1] :]  # fmt: skip
        right += word in renderer.tokenizer.decode(said.tolist())
    low, high = wilson(right / needles, needles)
    measure = f"needles found at {length} tokens, {way}"
    return {"measure": measure, "value": right, "unit": f"of {needles}", "against": f"{right / needles:.2f} [{low:.2f}, {high:.2f}]"}


def _exports(folder: Path, trained: RunDir, renderer: Renderer) -> list[dict[str, Any]]:
    """Each proved on needles of 1,500 tokens."""
    from tests.exportings import export_one

    texts = [needle(1500, random.Random(f"export {number}"), renderer)[0] for number in range(4)]
    case = {
        "name": "long",
        "model": str(STATIC / "starter"),
        "questions": [{"messages": [{"role": "user", "content": text}]} for text in texts],
    }
    entries = []
    for wanted in FORMATS:
        verified = export_one(folder, case, trained.adapter, wanted)["verified"]
        said = f"passed: {verified['passed']}; logits off by {verified['worst_share']:.2%} of what the adapter changes"
        measure = f"answers at 1,500 tokens equal the adapter's, {wanted['format']}"
        entries.append({"measure": measure, "value": verified["identical"], "unit": f"of {len(texts)}", "against": said})
    return entries


if __name__ == "__main__":
    for entry in run(*map(int, sys.argv[1:3])):
        print(f"{entry['measure']:<58} {entry['value']:>8} {entry['unit']:<6} {entry['against']}", flush=True)
