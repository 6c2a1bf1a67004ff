"""What a studio says on this machine: `python -m tests.gpu_readings`, in a process whose GPUs tests.gpus has made up. Prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from studio import settings as studio_settings
from studio.catalogue.demos import DEMOS
from studio.errors import StudioError
from studio.services import Studio

FEW = {"max_steps": 2, "max_length": 128}


def submitted(studio: Studio, data: str, **options: Any) -> str:
    """Why a launch is refused; "" where it is queued."""
    try:
        studio.jobs.submit(data=data, base_model="starter", recipe="qlora-sft", options={**FEW, **options})
    except StudioError as refusal:
        return str(refusal)
    return ""


def placed(device: str) -> dict[str, Any]:
    """Where a trainer of this machine computes, or why it refuses; its notices."""
    from jobs import config, recipes
    from jobs.trainers import placing
    from jobs.trainers.events import EventLog

    events = Path(sys.argv[1]) / f"{device}.jsonl"
    log = EventLog(events)
    wanted = config.build(recipes.get("qlora-sft").options, {"base_model": "starter", "device": device})
    try:
        where = placing.device_of(wanted, log)
    except StudioError as refusal:
        return {"refused": str(refusal), "remedy": refusal.details.get("remedy")}
    log.close()
    return {"where": where, "notices": [json.loads(line).get("text") for line in events.read_text("utf-8").splitlines()]}


def main() -> None:
    studio = Studio.open(studio_settings.load(), at_terminal=True)
    data = studio.datasets.add(DEMOS["router"].train_path, filename="rows.jsonl").id
    strip, fit = studio.system.strip(), studio.fit.fit(base_model="starter")
    device = next(check for check in studio.system.doctor().checks if check.name == "device")
    said = {
        "doctor": device.model_dump(),
        "strip": strip.model_dump(include={"device", "memory_bytes", "devices", "problem", "fix"}),
        "fit": {"device": fit.device, "room": fit.room_bytes, "warnings": fit.warnings},
        "auto": submitted(studio, data),
        "cpu": submitted(studio, data, device="cpu"),
        "free_of_torch": "torch" not in sys.modules,
    }
    if "--placed" in sys.argv:
        said["placed"] = {device: placed(device) for device in ("auto", "cuda", "cpu")}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
