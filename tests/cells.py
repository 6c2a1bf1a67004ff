"""Train, save, reload, generate and export cells of the compatibility table in one process; prints what came out as JSON.

`python -m tests.cells FOLDER < CELLS`: a cell is `{"name", "options", "exports", "model"?}`. Each is trained for two steps on a few rows
by the trainer itself; then its folder is put on a freshly loaded base by peft alone and has to answer as the trained model did, and is
exported with its proof: `exports` is `all` for every form that this adapter can take, or a number that chooses one of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from jobs import bottleneck
from jobs.config import JobConfig
from jobs.exporters import kinds
from jobs.trainers import adapters, base, sft
from jobs.trainers.events import EventLog
from jobs.trainers.stopping import StopWish
from studio.errors import ModelError
from tests.exportings import export_one
from tests.runs import STARTER, make_run

# large steps, so that an adapter that is lost on the way to the disk shows
QUICK = {
    "num_train_epochs": 1,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0.02,
    "save_steps": 100,
    "warmup_steps": 0,
    "lora.lora_dropout": 0.0,
    "test_size": 0,
    "sample_answers": 0,
    "measure_drift": False,
    "max_length": 64,
}
# 8 bits round by more than two steps of training change: test_exports.py proves them on a longer one
FORMS = ({"format": "adapter"}, {"format": "merged"}, {"format": "gguf"}, {"format": "gguf-lora"})
STRONGER = {"ia3": 0.1}  # learning rates of methods that change little in two steps
PROMPT = [[1, 40, 50, 60, 70, 80, 90, 100]]


def logits(model: Any) -> Any:
    import torch

    ids = torch.tensor(PROMPT, device=model.device)
    was = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].float().cpu()
    model.train(was)
    return found


def run(folder: Path, cell: dict[str, Any]) -> dict[str, Any]:
    import torch
    from peft import PeftModel

    model = Path(cell.get("model") or STARTER)
    rate = STRONGER.get(str(cell["options"].get("method")), QUICK["learning_rate"])
    rate = 0.002 if cell["options"].get("lora.loraplus_lr_ratio") else rate  # its second matrix learns sixteen times as fast
    made = make_run(folder, rows=4, recipe="lora-sft", model=model, **{**QUICK, "learning_rate": rate, **cell["options"]})
    made.eval.write_text("", encoding="utf-8")
    config = JobConfig.model_validate_json(made.config.read_text(encoding="utf-8"))
    seen: dict[str, Any] = {}
    save = adapters.save

    def watch(target: Path, model: Any, *rest: Any) -> None:
        """What the trained model says, just before it is saved."""
        if target == folder / "out":
            seen["trained"] = logits(model)
        save(target, model, *rest)

    adapters.save = watch
    log = EventLog(made.attempt(1).events)
    try:
        sft.train(made, config, folder / "out", log, StopWish())
    finally:
        adapters.save = save
    fresh = base.load(config, base.choose_device(config, log))
    log.close()
    before = logits(fresh)
    bottleneck.register()
    loaded = PeftModel.from_pretrained(fresh, str(folder / "out"))
    after = logits(loaded)
    with torch.autocast(fresh.device.type, torch.bfloat16):
        ids = torch.tensor(PROMPT, device=fresh.device)
        told = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    return {
        "effect": float((seen["trained"] - before).abs().max()),
        "difference": float((seen["trained"] - after).abs().max()),
        "tokens": told.shape[1] - len(PROMPT[0]),
        "exports": [_exported(folder, model, form) for form in _forms(folder / "out", cell["exports"])],
    }


def _forms(adapter: Path, wanted: int | str) -> list[dict[str, str]]:
    values = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    possible = [form for form in FORMS if _is_possible(form["format"], values)]
    return possible if wanted == "all" else [possible[int(wanted) % len(possible)]]


def _is_possible(format: str, values: dict[str, Any]) -> bool:
    try:
        kinds.check(format, values)
    except ModelError:
        return False
    return True


def _exported(folder: Path, model: Path, form: dict[str, str]) -> dict[str, Any]:
    """{"form", "passed", "reason", "share"} of one export of the trained adapter."""
    found = export_one(folder, {"name": "cell", "model": str(model)}, folder / "out", form)
    proof = found.get("verified") or {"passed": False, "reason": found.get("failure"), "worst_share": None}
    return {"form": "-".join(form.values()), "passed": proof["passed"], "reason": proof["reason"], "share": proof["worst_share"]}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr
    root, found = Path(sys.argv[1]), {}
    for number, cell in enumerate(json.load(sys.stdin)):
        try:
            found[cell["name"]] = run(root / str(number), cell)
        except Exception as exc:  # noqa: BLE001 - the test names the cell
            traceback.print_exc()
            found[cell["name"]] = {"failure": f"{type(exc).__name__}: {str(exc)[:300]}"}
        shutil.rmtree(root / str(number), ignore_errors=True)
    json.dump(found, answers)


if __name__ == "__main__":
    main()
