"""Part `gains`: what a training uses where it can, beside the same training without it: what it gains, and that the losses stay.

Reduced, packed rows that attend each to itself in passes of their own stand beside one mask over all of them.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import RunDir
from tests.gpu import child, speed, training
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

MOST_APART = 0.01  # of a loss: in 16 bits another order of sums rounds otherwise
LEAST_GAIN = 1.0
STEPS, REDUCED_STEPS = 12, speed.WARM + 2
PACKED, FUSED = "packed rows in one pass", "fused kernels"
WORDS = (40, 11, 90, 23, 160, 7, 61, 30)  # of the rows, in turn: many to a sequence


@dataclass(frozen=True)
class Gain:
    """A training of `size`, with and without; `off`: options that leave it out, where it is one. `seconds`: of one run, about."""

    name: str
    size: str
    options: dict[str, Any]
    off: dict[str, Any] = field(default_factory=dict)
    needs: str = ""  # a package that may be missing
    seconds: int = 8


GAINS = (
    Gain(PACKED, "1B", {"packing": True, "per_device_train_batch_size": 4, "max_length": 1024}),
    Gain(
        FUSED,
        "1B",
        {"use_liger_kernel": True, "per_device_train_batch_size": 4, "max_length": 1024},
        off={"use_liger_kernel": False},
        needs="liger_kernel",
    ),
)
SHORT = {"per_device_train_batch_size": 2, "max_length": 64}


def measure(scale: Scale) -> Measured:
    figures: dict[str, Any] = {}
    missed: list[str] = []
    left_out: list[str] = []
    for gain in GAINS:
        if reason := _lacking(scale, gain):
            left_out.append(f"{gain.name}: {reason}")
            continue
        found = _compare(scale, gain)
        figures[gain.name] = found
        missed += broken(gain.name, found, is_reduced=scale.is_reduced)
    if scale.is_reduced:
        left_out.append("what is gained, which is asked of a card")
    said = ", ".join(f"{name} {one['ratio']:.2f} times as fast, losses {one['loss_difference']:.2%} apart" for name, one in figures.items())
    return Measured(figures, said, missed, left_out)


def broken(name: str, found: dict[str, Any], *, is_reduced: bool) -> list[str]:
    """What a comparison promises and does not keep."""
    missed = []
    if found["loss_difference"] > MOST_APART:
        missed.append(f"{name}: a loss is {found['loss_difference']:.2%} from that without, at most {MOST_APART:.0%} is promised")
    if found["used"] == found["used_without"] or not found["used"]:
        missed.append(f"{name}: both runs say {found['used'] or 'nothing'}")
    if not is_reduced and name == PACKED and found["ratio"] < LEAST_GAIN:
        missed.append(f"{name}: {found['ratio']:.2f} times as fast as without")
    return missed


def _lacking(scale: Scale, gain: Gain) -> str:
    if gain.needs and (scale.is_reduced or importlib.util.find_spec(gain.needs) is None):
        return f"{gain.needs} is not installed here, or there is no GPU"
    if not scale.has_time(2 * gain.seconds):
        return f"{scale.left_s:.0f} s are left"
    return training.lacks_room(scale, gain.size, _config(scale, gain, {}))


def _config(scale: Scale, gain: Gain, more: dict[str, Any]) -> JobConfig:
    steps = scale.of(STEPS, REDUCED_STEPS)
    cadence = {"max_steps": steps, "save_steps": steps, "logging_steps": 1}
    return training.job(scale, "lora-sft", cadence, gain.options, more, scale.of({}, SHORT))


def _compare(scale: Scale, gain: Gain) -> dict[str, Any]:
    done = {}
    for name, more in (("with", {}), ("without", gain.off)):
        made = training.run(scale, f"gain-{gain.options.get('packing', 'fused')}-{name}", gain.size, _config(scale, gain, more))
        if gain.name == PACKED:
            _write_short_rows(made)
        leaves_out = {("without", PACKED): scale.of("one pass", "apart")}.get((name, gain.name), "")
        done[name] = child.call(scale.folder, "tests.gpu.gains:train", scale.limit_s, folder=str(made.path), leaves_out=leaves_out)
        if reason := training.why(done[name]):
            raise RuntimeError(f"{gain.name}, {name}: {reason}")
    return compared(done["with"], done["without"], [gain.name, "plain layers"] if gain.off else [])


def compared(first: dict[str, Any], second: dict[str, Any], used: list[str]) -> dict[str, Any]:
    """Figures of a training and of the same one without. `used`: what either uses, where its notices do not say so."""
    if len(first["losses"]) != len(second["losses"]) or not first["losses"]:
        raise RuntimeError(f"one run reports {len(first['losses'])} losses, the other {len(second['losses'])}")
    seconds = [speed.middle_step_s([one["step_ends"]]) for one in (first, second)]
    tokens = first["result"]["metrics"]["tokens"] / len(first["losses"])
    said = used or [next((text for text in one["notices"] if text.startswith("Packed rows")), "") for one in (first, second)]
    return {
        "ratio": seconds[1] / seconds[0],
        "tokens_per_s": tokens / seconds[0],
        "loss_difference": max(abs(one - other) / other for one, other in zip(first["losses"], second["losses"], strict=True)),
        "peak_gib": [round((one["result"]["metrics"].get("peak_memory_bytes") or 0) / GIB, 2) for one in (first, second)],
        "used": said[0],
        "used_without": said[1],
    }


def _write_short_rows(made: RunDir) -> None:
    """As many as before, and more: each a fraction of a sequence."""
    count = 8 * len(made.train.read_text(encoding="utf-8").splitlines())
    rows = []
    for number in range(count):
        text = " ".join(str((number * 7 + word * 13) % 100) for word in range(WORDS[number % len(WORDS)]))
        rows.append(json.dumps({"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": text}]}))
    made.train.write_text("\n".join(rows) + "\n", encoding="utf-8")


def train(folder: str, leaves_out: str) -> dict[str, Any]:
    """In a child: a training in which packed rows are not computed as they could be."""
    from jobs.trainers import packed, varlen

    if leaves_out == "one pass":
        vars(varlen)["lacking"] = lambda _: "it is left out here"
    if leaves_out == "apart":
        vars(packed)["use"] = lambda model, tell, whole: tell(packed.MASKED.format(why="it is left out here"))
    return training.train(folder)
