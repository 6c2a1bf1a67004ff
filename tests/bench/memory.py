"""Predicted against measured peak memory, and against published figures: `make bench TOPICS=memory`.

Measured: trainings of a few steps on random weights of 100 M parameters and more, each in a fresh process on the processor; the
peak is what the process reached beyond its imported libraries. Promise: within 10 %, never more than 5 % under.
Published: rows of data/memory/published_finetune_memory.csv (STUDIO_TEST_DATA) whose settings the studio can express, on a GPU that
is not here; a sanity check, since nothing is fitted to them.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import config as job_config
from jobs import recipes
from jobs.rundir import RunDir, write_json
from studio import settings as studio_settings
from studio.catalogue import memory
from studio.settings import STATIC

GIB = 1024**3
MOST_OVER, MOST_UNDER = 0.10, 0.05
STEPS = 2
ROW = " ".join(["cat dog sun moon tree fish bird frog star ball"] * 40)


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    shared = {"num_attention_heads": heads, "num_key_value_heads": keys, "max_position_embeddings": 2048}
    return {"model_type": "llama", "tie_word_embeddings": False, **sizes, **shared, **more}


SMALL = _llama(768, 2048, 14, 12, 4, 32000)
DEEP = _llama(640, 1728, 28, 10, 10, 16000)
WIDE = _llama(1024, 2816, 10, 16, 4, 50000, tie_word_embeddings=True)
QWEN = {**_llama(896, 3584, 10, 14, 2, 60000, tie_word_embeddings=True), "model_type": "qwen2"}
GEMMA = {**_llama(768, 3072, 14, 6, 2, 40000, tie_word_embeddings=True, head_dim=128), "model_type": "gemma3_text"}
NEOX = {**_llama(768, 3072, 12, 12, 12, 30000), "model_type": "gpt_neox"}
PHI = {**_llama(768, 3072, 12, 12, 12, 32000), "model_type": "phi"}
CHECKPOINT = {"gradient_checkpointing": True}
# name, config, recipe, options
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Llama, 4-bit, batch 4 x 256", SMALL, "qlora-sft", {"per_device_train_batch_size": 4, "max_length": 256}),
    ("Llama, 4-bit, recomputed, batch 2 x 512", SMALL, "qlora-sft", {"per_device_train_batch_size": 2, "max_length": 512, **CHECKPOINT}),
    ("Llama, 16-bit, batch 2 x 256", SMALL, "lora-sft", {"per_device_train_batch_size": 2, "max_length": 256}),
    ("Llama, r 64 on q and v, batch 2 x 384", SMALL, "qlora-sft", {
        "per_device_train_batch_size": 2, "max_length": 384, "lora.r": 64, "lora.target_modules": ["q_proj", "v_proj"]}),
    ("deep Llama, 4-bit, batch 2 x 256", DEEP, "qlora-sft", {"per_device_train_batch_size": 2, "max_length": 256}),
    ("deep Llama, recomputed, batch 1 x 768", DEEP, "lora-sft", {"per_device_train_batch_size": 1, "max_length": 768, **CHECKPOINT}),
    ("wide Llama, 4-bit, batch 2 x 256", WIDE, "qlora-sft", {"per_device_train_batch_size": 2, "max_length": 256}),
    ("Qwen2, 4-bit, large vocabulary, batch 1 x 512", QWEN, "qlora-sft", {"per_device_train_batch_size": 1, "max_length": 512}),
    ("Qwen2, 16-bit, 8-bit Adam, batch 2 x 256", QWEN, "lora-sft", {
        "per_device_train_batch_size": 2, "max_length": 256, "optim": "adamw_8bit", "lora.r": 128}),
    ("Gemma 3, 4-bit, batch 2 x 256", GEMMA, "qlora-sft", {"per_device_train_batch_size": 2, "max_length": 256}),
    ("GPT-NeoX, 16-bit, batch 2 x 384", NEOX, "lora-sft", {"per_device_train_batch_size": 2, "max_length": 384}),
    ("Phi, 4-bit, recomputed, batch 4 x 256", PHI, "qlora-sft", {"per_device_train_batch_size": 4, "max_length": 256, **CHECKPOINT}),
    ("Llama, 4-bit, dropout, batch 2 x 256", SMALL, "qlora-sft", {
        "per_device_train_batch_size": 2, "max_length": 256, "lora.lora_dropout": 0.1}),
    ("Llama, 4-bit, DPO, batch 2 x 256", SMALL, "dpo", {"per_device_train_batch_size": 2, "max_length": 256}),
    ("Llama, all trained, batch 2 x 256", SMALL, "lora-sft", {"method": "full", "per_device_train_batch_size": 2, "max_length": 256}),
    ("Llama, 4-bit, packed, batch 4 x 256", SMALL, "qlora-sft", {
        "per_device_train_batch_size": 4, "max_length": 256, "packing": True}),
    ("Llama, 8-bit, batch 2 x 256", SMALL, "lora-sft", {
        "quantization.load_in_8bit": True, "per_device_train_batch_size": 2, "max_length": 256}),
]  # fmt: skip
# of the published rows: method column -> recipe; the rest of the settings stand in the row
EXPRESSED = {"QLoRA": "qlora-sft", "LoRA": "lora-sft"}
# row's model -> name in model_configs.json
PUBLISHED_MODELS = {
    "Llama-2-7b-hf": "Llama-2-7b-hf",
    "Llama-3.1-8B": "Llama-3.1-8B",
    "Llama-3.2-3B": "Llama-3.2-3B",
    "LLaMA-65B": "LLaMA-1-65B",
    "gpt-oss-20b": "gpt-oss-20b",
}


def _published_llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return _llama(hidden, inner, layers, heads, keys, vocabulary, **{"head_dim": 128, "max_position_embeddings": 32768, **more})


# rows whose models model_configs.json lacks: sizes as in each model's own config.json
OTHER_MODELS: dict[str, dict[str, Any]] = {
    "Hunyuan-0.5B-Instruct": _published_llama(1024, 3584, 24, 16, 8, 120818, model_type="hunyuan_v1_dense", tie_word_embeddings=True),
    "Apertus-8B-Instruct-2509": _published_llama(4096, 21504, 32, 32, 8, 131072, model_type="apertus"),
    "AFM-4.5B": _published_llama(2560, 18432, 36, 20, 4, 128004, model_type="arcee"),
    "Ministral-8B-Instruct-2410": _published_llama(4096, 12288, 36, 32, 8, 131072, model_type="mistral"),
    "Magistral-Small-2506 (24B)": _published_llama(5120, 32768, 40, 32, 8, 131072, model_type="mistral"),
    "Devstral-Small-2507 (24B)": _published_llama(5120, 32768, 40, 32, 8, 131072, model_type="mistral"),
    "Olmo-3-7B-Instruct-SFT": _published_llama(4096, 11008, 32, 32, 32, 100278, model_type="olmo3"),
}
SAME_SIZE = {"adamw_torch_8bit": "adamw_8bit"}  # torchao's, which is not offered: its states are as large


def run(names: list[str] | None = None) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    return [*measured(names), *published()]


def measured(names: list[str] | None = None) -> list[dict[str, Any]]:
    found, ratios = [], []
    for name, config, recipe, options in CASES:
        if names and not any(wanted in name for wanted in names):
            continue
        job = _job(recipe, options)
        predicted = memory.predict(config, job, device="cpu").total
        peak = _measure(config, job)
        ratios.append(predicted / peak)
        against = f"measured {peak / 1e6:,.0f} MB, {predicted / peak - 1:+.1%}"
        found.append({"measure": name, "value": round(predicted / 1e6), "unit": "MB", "against": against, "ratio": None})
    good = sum(1 - MOST_UNDER <= ratio <= 1 + MOST_OVER for ratio in ratios)
    against = f"of {len(ratios)} within -{MOST_UNDER:.0%} and +{MOST_OVER:.0%}; from {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}"
    return [*found, {"measure": "predictions that keep the promise", "value": good, "unit": "", "against": against, "ratio": None}]


def _job(recipe: str, options: dict[str, Any]) -> Any:
    fixed = {
        "device": "cpu", "max_steps": STEPS, "save_steps": STEPS, "test_size": 0.0, "load_best_model_at_end": False, "num_threads": 1,
        "sample_answers": 0, "measure_drift": False,
    }  # fmt: skip
    return job_config.build(recipes.get(recipe).options, fixed, options)


def _measure(config: dict[str, Any], job: Any) -> int:
    """Peak bytes of a real training in a child."""
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        write_json(folder / "model.json", config)
        _child("make", folder)
        run = RunDir(folder / "run")
        run.path.mkdir()
        frozen = {"base_model": "random", "model_name_or_path": str(folder / "model")}
        write_json(run.config, {**job.model_dump(mode="json"), **frozen})
        rows = [row(number, job) for number in range(STEPS * job.per_device_train_batch_size)]
        run.train.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return int(_child("train", folder)["peak_memory_bytes"])


def row(number: int, job: Any) -> str:
    """Every second row fills max_length, the others do not, so that batches are padded as real ones are; packed, two of them fill it."""
    length, letters = job.max_length, 1.3 if job.packing else 1.8  # per token of max_length
    text = (ROW * (length // 100 + 1))[: length * 6] if number % 2 == 0 else ROW[: int(length * letters)]
    asked, answered = {"role": "user", "content": "Go on."}, {"role": "assistant", "content": text}
    if job.objective == "dpo":
        return json.dumps({"prompt": [asked], "chosen": [answered], "rejected": [{"role": "assistant", "content": "No."}]})
    return json.dumps({"messages": [asked, answered]})


def _child(what: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}  # as jobs.train
    command = [sys.executable, "-m", "tests.bench.memory", what, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make(folder: Path) -> dict[str, Any]:
    """Random weights of folder/model.json in folder/model, with the starter's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()  # which the line before undoes
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    model.save_pretrained(folder / "model")
    for file in (STATIC / "starter").glob("*token*.json"):
        shutil.copy(file, folder / "model")
    shutil.copy(STATIC / "starter" / "chat_template.jinja", folder / "model")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def train(folder: Path) -> dict[str, Any]:
    """The figures of a training, its peak among them; imports come first, as a worker's ready trainer does them."""
    from jobs.config import JobConfig
    from jobs.trainers import sft
    from jobs.trainers.events import EventLog
    from jobs.trainers.stopping import StopWish

    sft.import_libraries()
    run = RunDir(folder / "run")
    attempt = run.attempt(1)
    attempt.path.mkdir(parents=True)
    config = JobConfig.model_validate_json(run.config.read_text(encoding="utf-8"))
    return sft.train(run, config, folder / "out", EventLog(attempt.events), StopWish())


def published() -> list[dict[str, Any]]:
    """Each published row that can be expressed; then one entry per reason why others are left out."""
    place = studio_settings.load().test_data / "data" / "memory"
    if not place.is_dir():
        return [{"measure": "published figures", "value": 0, "unit": "rows", "against": f"no {place}", "ratio": None}]
    table = json.loads((place / "model_configs.json").read_text(encoding="utf-8"))
    configs = {row: table[name] for row, name in PUBLISHED_MODELS.items()} | OTHER_MODELS
    found, left_out = [], dict[str, int]()
    with (place / "published_finetune_memory.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if reason := _why_left_out(row, configs):
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                found.append(_published(row, configs[row["model"]]))
    return [*found, *({"measure": "left out", "value": n, "unit": "rows", "against": why, "ratio": None} for why, n in left_out.items())]


def _why_left_out(row: dict[str, str], configs: dict[str, Any]) -> str:
    if "estimate" in row["notes"]:
        return "an estimate of its authors for a size class, without a model, a batch or a length"
    if row["method"] not in EXPRESSED:
        return "full training in pure bfloat16, in parts with offloading or a fused optimizer: the studio trains weights in 32 bits"
    if not row["lora_r"]:
        return "the last steps of a cumulative table: activations are moved to main memory, which the studio does not do; rank not stated"
    if row["model"] not in configs:
        return "the model's sizes are not known here"
    return ""


def _published(row: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    optimizer = row["optimizer"] or "adamw_torch_fused"
    options = {
        "per_device_train_batch_size": int(row["batch"]),
        "max_length": int(row["seq_len"]),
        "lora.r": int(row["lora_r"]),
        "gradient_checkpointing": row["grad_ckpt"] == "yes",
        "packing": "pack" in row["notes"],
        "attn_implementation": "flash_attention_2",  # theirs: flex or FlashAttention, neither of which keeps a mask
        "test_size": 0.0,
        "optim": "paged_adamw_32bit" if "paged" in optimizer.lower() else SAME_SIZE.get(optimizer, optimizer),
    }
    job = job_config.build(recipes.get(EXPRESSED[row["method"]]).options, options)
    predicted = memory.predict(config, job, device="cuda").total
    if "GiB peak" in row["notes"]:  # by torch's own count, which leaves the driver's context out
        predicted -= memory.CUDA_CONTEXT
    name = f"{row['model']} {row['method']}, {row['batch']} x {row['seq_len']}, {row['gpu'] or 'GPU not named'}"
    said = row["measured_GB"]
    number = float(said.lstrip("<"))
    difference = f"{predicted / GIB / number - 1:+.0%}" if "<" not in said else "kept" if predicted < number * 1e9 else "broken"
    against = f"published {said} GiB, {difference}"
    return {"measure": name, "value": round(predicted / GIB, 2), "unit": "GiB", "against": against, "ratio": None}


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({"make": make, "train": train}[sys.argv[1]](Path(sys.argv[2]))), file=answers)
