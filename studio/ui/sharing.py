"""How a training and the engine share the machine now, in one sentence under "Who answers". Knows the strip's readings only."""

from __future__ import annotations

from typing import Any

from studio.ui import words


def sentence(strip: dict[str, Any]) -> str:
    """ "" while nothing trains; else who holds what, until when, and what that means for answers."""
    engine, lease = strip["engine"], strip["engine"].get("yielded")
    if not lease:
        return ""
    job = next((row for row in strip["running"] if row["name"] == lease["job"]), None)
    until = words.left(job["progress"]["eta_s"]) if job else ""
    until = f" ({until})" if until else ""
    both = f"{words.size(lease['keep_bytes'])} are set aside for it, {words.size(lease['room_bytes'])} are left for the engine"
    loaded = engine.get("loaded")
    if loaded and strip["device_kind"] != "cpu" and loaded["device"] == "cpu":
        return f"{lease['job']} trains on the GPU{until}, and what is left there is too little: answers come from the CPU, slower."
    if loaded or not lease["gave_way"]:
        cost = "Both use the same processor, so each is slower." if strip["device_kind"] == "cpu" else "Both use the same GPU."
        return f"{lease['job']} trains{until}, and both fit: {both}. {cost}"
    return f"{lease['job']} trains{until}, and the engine gave way: {both}. A model that fits there answers; others wait for the end."
