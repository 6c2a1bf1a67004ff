"""What a K-quant costs: the starter, tuned to turn sentences into JSON, as GGUF of 16, 8, 6, 5 and 4 bits, read by llama.cpp.

K-quants are made with and without an importance matrix from the training rows. Shown are perplexity and exact matches on the demo's
held-out rows, whose names and places training never saw. Needs llama-cpp-python (`make chaos` builds it).
`python -m tests.bench.gguf`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import config, recipes
from jobs.exporters.config import CALIBRATION, CALIBRATION_ROWS, PROMPTS, ExportConfig
from jobs.rundir import RunDir, write_json
from studio.catalogue.gguf import has_quantizer
from studio.records import K_QUANTS, ExportFormat, Outtype
from studio.settings import PACKAGE_ROOT, STATIC

DEMO = STATIC / "demo"
OPTIONS = {
    "learning_rate": 3e-3,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_length": 128,
    "lora.r": 16,
    "lora.lora_alpha": 32,
    "test_size": 0,
    "sample_answers": 0,
    "measure_drift": False,
}
LONGEST = 48  # tokens of an answer
FILES = [("f16", False), ("bf16", False), ("q8_0", False), *((str(kind), weighed) for kind in K_QUANTS for weighed in (False, True))]


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against."""
    if not has_quantizer():
        return [{"measure": "llama-cpp-python is not installed: left out", "value": 0, "unit": ""}]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gguf", "--child"], capture_output=True, text=True, cwd=PACKAGE_ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    first, entries = found[0], []
    for one in found:
        name = f"{one['outtype']}{' + importance' if one['importance'] else ''}"
        more = f"f16 {first['perplexity']:.4f}; {one['bytes'] / 1e6:.2f} MB, proof {one['passed']}"
        entries.append({"measure": f"{name}: perplexity, held out", "value": round(one["perplexity"], 4), "unit": "", "against": more})
        score = f"f16 {first['exact']}; {one['identical']} answers as f16's"
        entries.append(
            {"measure": f"{name}: exact matches, held out", "value": one["exact"], "unit": f"of {one['rows']}", "against": score}
        )
    return entries


def measure(folder: Path) -> list[dict[str, Any]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from studio.datasets.rendering import Renderer

    adapter = _trained(folder / "run")
    renderer = Renderer.load(STATIC / "starter", str(adapter / "chat_template.jinja"))
    found: list[dict[str, Any]] = []
    for outtype, weighed in FILES:
        made = _exported(folder, adapter, outtype, weighed)
        read = _read(folder / made["path"], renderer)
        found.append({"outtype": outtype, "importance": weighed, **made, **read})
        one = found[-1]
        one["identical"] = sum(a == b for a, b in zip(one["answers"], found[0]["answers"], strict=True))
    return [{key: value for key, value in one.items() if key not in ("answers", "path")} for one in found]


def _rows(name: str) -> list[str]:
    return (DEMO / f"extract.{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def _trained(place: Path) -> Path:
    from jobs.config import JobConfig
    from jobs.trainers import sft
    from jobs.trainers.events import EventLog
    from jobs.trainers.stopping import StopWish

    made = RunDir(place)
    made.path.mkdir(parents=True)
    values = {"base_model": "starter", "model_name_or_path": str(STATIC / "starter")}
    write_json(made.config, config.build(recipes.get("qlora-sft").options, OPTIONS, values).model_dump(mode="json"))
    made.train.write_text("".join(_rows("train")), encoding="utf-8")
    made.eval.write_text("", encoding="utf-8")
    log = EventLog(made.attempt(1).events)
    sft.train(made, JobConfig.model_validate_json(made.config.read_text(encoding="utf-8")), made.adapter, log, StopWish())
    log.close()
    return made.adapter


def _exported(folder: Path, adapter: Path, outtype: str, weighed: bool) -> dict[str, Any]:
    from jobs import export
    from jobs.trainers.events import EventLog

    place = RunDir(folder / f"export-{outtype}-{weighed}")
    made = ExportConfig(
        adapter="extract",
        adapter_path=str(adapter),
        base_model="starter",
        base_path=str(STATIC / "starter"),
        format=ExportFormat.GGUF,
        outtype=Outtype(outtype),
        to=str(folder / f"{outtype}-{weighed}"),
        importance=weighed,
    )
    write_json(place.config, made.model_dump(mode="json"))
    asked = [json.loads(line)["messages"][:1] for line in _rows("eval")[:8]]
    (place.path / PROMPTS).write_text("".join(json.dumps({"messages": one}) + "\n" for one in asked), encoding="utf-8")
    (place.path / CALIBRATION).write_text("".join(_rows("train")[:CALIBRATION_ROWS]), encoding="utf-8")
    log = EventLog(place.attempt(1).events)
    written = export.export(place, made, log)
    log.close()
    file = Path(written.path) / made.file_name
    return {"path": str(file.relative_to(folder)), "bytes": file.stat().st_size, "passed": written.verified.passed}


def _read(file: Path, renderer: Any) -> dict[str, Any]:
    """Perplexity of the answers and how many come out word for word."""
    import llama_cpp
    import torch

    from studio.types import Example

    model = llama_cpp.Llama(model_path=str(file), n_ctx=256, n_batch=256, logits_all=True, verbose=False)
    loss, tokens, answers, exact = 0.0, 0, [], 0
    for line in _rows("eval"):
        row = renderer.example(Example.model_validate_json(line))
        model.reset()
        model.eval(list(row.ids))
        scores = torch.from_numpy(model.scores[: len(row.ids)].copy()).log_softmax(-1)
        for place in range(1, len(row.ids)):
            if row.learned[place]:
                loss -= float(scores[place - 1, row.ids[place]])
                tokens += 1
        messages = json.loads(line)["messages"]
        answers.append(_answer(model, renderer.prompt(messages[:1]).ids, renderer))
        exact += answers[-1] == messages[1]["content"]
    model.close()
    return {"perplexity": math.exp(loss / tokens), "exact": exact, "rows": len(answers), "answers": answers}


def _answer(model: Any, prompt: list[int], renderer: Any) -> str:
    model.reset()
    model.eval(prompt)
    ids: list[int] = []
    while len(ids) < LONGEST:
        ids.append(int(model.scores[model.n_tokens - 1].argmax()))
        if ids[-1] in renderer.stop_token_ids:
            break
        model.eval(ids[-1:])
    return str(renderer.decode(ids)).strip()


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        answers, sys.stdout = sys.stdout, sys.stderr
        with tempfile.TemporaryDirectory() as place:
            found = measure(Path(place))
        print(json.dumps(found), file=answers)
    else:
        print(json.dumps(run(), indent=1))
