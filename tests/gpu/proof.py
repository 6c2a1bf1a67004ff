"""Part `proof`: exports of a base with an adapter, each read back and proved, and where the readers computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.gpu import child, models
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

FORMATS = ("merged", "adapter", "gguf")
QUESTIONS = ("Who saw the cat?", "What is the capital of France?", "Say something kind.", "Count to five.", "Why is the sky blue?")


def measure(scale: Scale) -> Measured:
    found: dict[str, Any] = child.call(
        scale.folder, "tests.gpu.proof:export_all", scale.limit_s, scale=scale.as_json()
    )  # fmt: skip
    missed = [f"{name}: {one['failed'] or one['reason']}" for name, one in found.items() if not one.get("passed")]
    told = ", ".join(f"{name} {'passed' if one.get('passed') else 'failed'}, read on {one['read_on']}" for name, one in found.items())
    return Measured(found, f"{sum(bool(one.get('passed')) for one in found.values())} of {len(FORMATS)}: {told}", missed)


def export_all(scale: Mapping[str, Any]) -> dict[str, Any]:
    """In a child: the exporter's own code, once for each format."""
    from jobs.exporters import reading

    here = Scale(**scale)
    read_on: list[str] = []
    read = reading.model

    def read_and_note(*arguments: Any) -> Any:
        model = read(*arguments)
        weight = next(model.parameters())
        read_on.append(f"{weight.device.type} in {str(weight.dtype).removeprefix('torch.')}")
        return model

    vars(reading)["model"] = read_and_note
    found = {}
    for name in FORMATS:
        read_on.clear()
        one = _export(here, name)
        found[name] = {"passed": None, "reason": "", "failed": "", **one, "read_on": " and ".join(read_on) or "nothing"}
    return found


def _export(here: Scale, name: str) -> dict[str, Any]:
    """The proof of one export, or why it failed."""
    from jobs import export
    from jobs.exporters.config import PROMPTS, ExportConfig
    from jobs.rundir import RunDir, write_json
    from jobs.trainers.events import EventLog
    from jobs.trainers.failures import explain
    from studio.records import ExportFormat

    questions = QUESTIONS[: here.of(len(QUESTIONS), 2)]
    run = RunDir(here.folder / "runs" / f"export-{name}")
    config = ExportConfig(
        adapter="check", adapter_path=str(models.adapters(here, "1B")[0]), base_model="random", base_path=str(models.base(here, "1B")),
        format=ExportFormat(name), to=str(here.folder / "exports" / name), verify=len(questions),
    )  # fmt: skip
    Path(config.to).parent.mkdir(parents=True, exist_ok=True)
    write_json(run.config, config.model_dump(mode="json"))
    lines = [json.dumps({"messages": [{"role": "user", "content": question}]}) + "\n" for question in questions]
    (run.path / PROMPTS).write_text("".join(lines), encoding="utf-8")
    log = EventLog(run.attempt(1).events)
    try:
        return dict(export.export(run, config, log).verified.model_dump(mode="json", exclude_none=True))
    except Exception as exc:  # noqa: BLE001 - another format may pass
        return {"failed": explain(exc).reason}
    finally:
        log.close()
