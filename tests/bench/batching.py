"""Rows of real lengths, padded, grouped by length and packed, on the starter: `make bench TOPICS=batching`.

Useful tokens (no padding) per processor second of the steps, against padded batches of random rows. The most that can be gained is
1 / (1 - share of padding); promised are nine tenths of that, at the same loss on held-out rows after as many steps of like size: the
mean over seeds, beside how far padded trainings alone differ from seed to seed.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs import config as job_config
from jobs import recipes
from jobs.rundir import RunDir, write_json
from studio import settings as studio_settings
from studio.settings import PACKAGE_ROOT, STATIC

ROWS, HELD_OUT, LONGEST = 436, 64, 512
TOKENS = 4096  # of a step, about: short rows make larger batches, so that the fixed cost of a step counts alike
FILLED = 0.97  # of packed sequences, about
ACCUMULATED = 8  # batches of a step, as is usual on one device
STEPS = 28  # at least: with fewer, chance decides the loss
SEEDS = (1, 2, 3)  # each way once with each, the order turned round in between
FIXED = {
    "device": "cpu", "num_threads": 1, "max_length": LONGEST, "learning_rate": 2e-3, "gradient_accumulation_steps": ACCUMULATED,
    "test_size": 0.1, "eval_steps": 10**6, "save_steps": 10**6, "load_best_model_at_end": False, "early_stopping_patience": None,
    "logging_steps": 10**6, "sample_answers": 0, "measure_drift": False,
}  # fmt: skip


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio (of the limit)."""
    place = studio_settings.load().test_data / "data" / "instructions"
    if not place.is_dir():
        return [{"measure": "rows of real lengths", "value": 0, "unit": "rows", "against": f"no {place}", "ratio": None}]
    sources = (("gsm8k", gsm8k(place / "gsm8k_train.jsonl.gz")), ("ShareGPT sample", sharegpt(place / "fastchat_dummy_conversation.json")))
    return [entry for name, rows in sources for entry in compare(name, list(rows)[: ROWS + HELD_OUT])]


def gsm8k(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield {"prompt": row["question"] + "\n", "completion": row["answer"]}


def sharegpt(file: Path) -> Iterator[dict[str, Any]]:
    roles = {"human": "user", "gpt": "assistant"}
    for row in json.loads(file.read_text(encoding="utf-8")):
        yield {"messages": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]}


def compare(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {"padded": [], "grouped by length": [], "packed": []}
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        for seed in SEEDS:
            for way in list(found)[:: 1 if seed % 2 else -1]:
                found[way].append(_child(Path(folder) / f"{way.replace(' ', '-')}-{seed}", way, seed, rows))
    share = found["padded"][0]["padding_share"]
    limit = 1 / (1 - share)
    speeds = {way: statistics.median(one["tokens"] / one["seconds"] for one in runs) for way, runs in found.items()}
    losses = {way: [one["eval_loss"] for one in runs] for way, runs in found.items()}
    padded = statistics.mean(losses["padded"])
    entries = []
    for way, speed in speeds.items():
        gain, loss = speed / speeds["padded"], statistics.mean(losses[way])
        said = f"loss {loss:.3f}, {loss / padded - 1:+.1%}, from {min(losses[way]):.3f} to {max(losses[way]):.3f}"
        against = f"{gain:.2f} x padded of at most {limit:.2f} (padding {share:.0%}); {said}"
        ratio = None if way == "padded" else round(gain / limit, 3)  # to be at least 0.9
        entries.append({"measure": f"{name}, {way}", "value": round(speed), "unit": "tok/s", "against": against, "ratio": ratio})
    return entries


def _child(folder: Path, way: str, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.bench.batching", str(folder), way, str(seed)]
    done = subprocess.run(command, env=environment, input=json.dumps(rows), capture_output=True, text=True, cwd=PACKAGE_ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(folder: Path, way: str, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One training: {"seconds", "tokens", "eval_loss", "padding_share"}; processor seconds from the first step to the end of the last."""
    from transformers import TrainerCallback

    from jobs.trainers import objectives, sft
    from jobs.trainers.events import EventLog
    from jobs.trainers.rows import tokenize
    from jobs.trainers.stopping import StopWish
    from jobs.trainers.watch import Watch
    from studio.datasets.rendering import Renderer

    class Clock(TrainerCallback):
        begun = ended = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun = self.begun or time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended = time.process_time()

    made = RunDir(folder)
    made.path.mkdir(parents=True)
    for file, part in ((made.train, rows[HELD_OUT:]), (made.eval, rows[:HELD_OUT])):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    lengths = _lengths(tokenize(made.train, Renderer.load(STATIC / "starter"), job_config.build({"max_length": LONGEST})).dataset)
    job = job_config.build(recipes.get("lora-sft").options, FIXED, _options(way, lengths), {
        "seed": seed, "max_steps": _steps(lengths), "base_model": "starter", "model_name_or_path": str(STATIC / "starter"),
    })  # fmt: skip
    write_json(made.config, job.model_dump(mode="json"))
    clock, attach = Clock(), Watch.attach

    def attach_with_clock(watch: Watch, trainer: Any) -> None:
        attach(watch, trainer)
        trainer.add_callback(clock)

    Watch.attach = attach_with_clock  # type: ignore[assignment, method-assign]
    log = EventLog(made.attempt(1).events)
    figures = sft.train(made, job, folder / "adapter", log, StopWish())
    log.close()
    share = objectives.padding_share(lengths, _batch(lengths))
    return {
        "seconds": clock.ended - clock.begun,
        "tokens": figures["tokens"],
        "eval_loss": figures["eval_loss"],
        "padding_share": share,
    }


def _lengths(dataset: Any) -> list[int]:
    return [len(ids) for ids in dataset["input_ids"]]


def _options(way: str, lengths: list[int]) -> dict[str, Any]:
    """The options of each way; packed sequences are accumulated so that there are as many steps as of the others' batches."""
    if way == "packed":
        sequences = sum(lengths) / LONGEST / FILLED
        accumulated = math.ceil(sequences / _steps_per_epoch(lengths))
        return {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulated}
    order = "batch_rebalance" if way == "grouped by length" else "random"
    return {"per_device_train_batch_size": _batch(lengths), "train_sampling_strategy": order}


def _batch(lengths: list[int]) -> int:
    return max(round(TOKENS / ACCUMULATED / statistics.mean(lengths)), 1)


def _steps_per_epoch(lengths: list[int]) -> int:
    return math.ceil(len(lengths) / (_batch(lengths) * ACCUMULATED))


def _steps(lengths: list[int]) -> int:
    """STEPS or more: whole passes of padded batches."""
    each = _steps_per_epoch(lengths)
    return math.ceil(STEPS / each) * each


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.load(sys.stdin))), file=answers)
