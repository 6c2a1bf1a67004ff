"""Train small adapters and export them in one process; prints what came of it as JSON.

`python -m tests.exportings FOLDER < CASES`: one import of torch for all. A case is `{"name", "model", "options", "exports"}`, with
`questions` where the proof asks others than usual; an export is `{"format", "outtype"?, "doubled"?, "packed"?, "unscaled"?}`, where
`doubled` is the place among the adapter's layers whose scale is doubled just before merging, `packed` merges into a 4-bit base that has
answered before (true), or has not (false), and `unscaled` leaves the scaling of positions out of a GGUF file.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from jobs import export
from jobs.config import JobConfig
from jobs.exporters import gguf_rope, models
from jobs.exporters.config import PROMPTS, ExportConfig
from jobs.rundir import RunDir, write_json
from jobs.trainers import sft
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import StopWish
from tests.runs import WORDS, make_run

QUESTIONS = [{"messages": [{"role": "user", "content": f"Who saw the {word}? {number}"}]} for number, word in enumerate(WORDS[:6])]


def train(folder: Path, case: dict[str, Any]) -> Path:
    run = make_run(folder / case["name"], model=Path(case["model"]), **case.get("options", {}))
    log = EventLog(run.attempt(1).events)
    config = JobConfig.model_validate_json(run.config.read_text(encoding="utf-8"))
    sft.train(run, config, run.adapter, log, StopWish())
    log.close()
    return run.adapter


def export_one(folder: Path, case: dict[str, Any], adapter: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The export's result, or {"failure"}."""
    questions = case.get("questions", QUESTIONS)
    run = RunDir(folder / f"{case['name']}-{len(list(folder.iterdir()))}")
    config = ExportConfig(
        adapter=case["name"],
        adapter_path=str(adapter),
        base_model=case["name"] + "-base",
        base_path=case["model"],
        format=wanted["format"],
        outtype=wanted.get("outtype", "f16"),
        to=str(folder / "out" / run.path.name),
        verify=len(questions),
    )
    write_json(run.config, config.model_dump(mode="json"))
    (run.path / PROMPTS).write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    merge, add_keys, log = models.merge, gguf_rope.add_keys, EventLog(run.attempt(1).events)
    if "doubled" in wanted:
        models.merge = lambda model: merge(_doubled(model, wanted["doubled"]))
    if "packed" in wanted:
        models.merge = lambda model: merge(_four_bits(Path(case["model"]), adapter, wanted["packed"])).dequantize()
    if "unscaled" in wanted:
        plain = {"rope_type": "default", "rope_theta": 1e6}
        gguf_rope.add_keys = lambda writer, config: add_keys(writer, {**config, "rope_parameters": plain})
    try:
        return export.export(run, config, log).model_dump(mode="json", exclude_none=True)
    except Exception as exc:  # noqa: BLE001 - a case may be made to fail
        traceback.print_exc()
        return {"failure": explain(exc).reason}
    finally:
        models.merge, gguf_rope.add_keys = merge, add_keys
        log.close()


def _doubled(model: Any, place: int) -> Any:
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers[place].scaling[models.ATTACHED] *= 2
    return model


def _four_bits(base: Path, adapter: Path, answers_first: bool) -> Any:
    """The adapter on an NF4 base, as a training that is not on its guard would hold it; a forward in eval mode repacks its weights."""
    import torch
    from transformers import BitsAndBytesConfig

    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = models.attach(models.load(base, torch.bfloat16, quantization_config=kind), adapter)
    if answers_first:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            model(input_ids=torch.tensor([[1, 2, 3, 4]]))
    return model


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers = sys.stdout
    sys.stdout = sys.stderr
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {}
    for case in json.load(sys.stdin):
        try:
            adapter = train(folder, case)
        except Exception as exc:  # noqa: BLE001 - a case may be made to fail
            traceback.print_exc()
            found[case["name"]] = [{"failure": explain(exc).reason}]
            continue
        found[case["name"]] = [export_one(folder, case, adapter, wanted) for wanted in case["exports"]]
    json.dump(found, answers)


if __name__ == "__main__":
    main()
