"""Part `gains`: what a training uses where it can, beside the same training without it: what it gains, and that the losses stay.

Reduced, packed rows that attend each to itself in passes of their own stand beside one mask over all of them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import time
from dataclasses import dataclass, field
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import RunDir
from tests.gpu import child, speed, training
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

MOST_APART = 0.01  # of a loss: in 16 bits another order of sums rounds otherwise
LEAST_GAIN = 1.0
USED = "used"
STEPS, REDUCED_STEPS = 12, speed.WARM + 2
PACKED, FUSED, COPY = "packed rows in one pass", "fused kernels", "a copy in 4 bits, loaded"
WORDS = (40, 11, 90, 23, 160, 7, 61, 30)  # of the rows, in turn: many to a sequence


@dataclass(frozen=True)
class Gain:
    """A training of `size`, with and without; `off`: options that leave it out, where it is one. `seconds`: of one run, about.

    `says`: what begins the notice of either run that says what it uses; "" where `name` says it.
    """

    name: str
    size: str
    recipe: str
    options: dict[str, Any]
    off: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    needs: str = ""  # a package that may be missing
    seconds: int = 8


GAINS = (
    Gain(PACKED, "1B", "lora-sft", {"packing": True, "per_device_train_batch_size": 4, "max_length": 1024}, says="Packed rows"),
    Gain(
        COPY,
        "1B",
        "qlora-sft",
        {"per_device_train_batch_size": 4, "max_length": 512},
        says=r"(A copy of )?1B (is read from|in 4 bits is kept)",
    ),
    Gain(
        FUSED,
        "1B",
        "lora-sft",
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
    if not found.get("first_losses_equal", True):
        missed.append(f"{name}: the first loss is another than the base's own")
    if not is_reduced and name != FUSED and found["ratio"] < LEAST_GAIN:
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
    return training.job(scale, gain.recipe, cadence, gain.options, more, scale.of({}, SHORT))


def _compare(scale: Scale, gain: Gain) -> dict[str, Any]:
    done = {}
    made = {}
    for name, more in (("without", gain.off), ("with", {})):  # in this order: the first loading makes the copy
        made[name] = training.run(scale, f"gain-{GAINS.index(gain)}-{name}", gain.size, _config(scale, gain, more))
        if gain.name == PACKED:
            _write_short_rows(made[name])
        copies = made[name].copies
        if gain.name == COPY:
            copies.mkdir(exist_ok=True)
        leaves_out = {("without", PACKED): scale.of("one pass", "apart")}.get((name, gain.name), "")
        done[name] = child.call(
            scale.folder, "tests.gpu.gains:train", scale.limit_s, folder=str(made[name].path), leaves_out=leaves_out, small=scale.is_reduced
        )
        if reason := training.why(done[name]):
            raise RuntimeError(f"{gain.name}, {name}: {reason}")
    shutil.rmtree(made["with"].copies, ignore_errors=True)  # other parts measure without
    found = compared(done["with"], done["without"], gain.says)
    if gain.name == COPY:
        found["ratio"] = done["without"]["load_s"] / done["with"]["load_s"]
        found["made_in_s"] = done["without"]["copy_s"]
        found["first_losses_equal"] = done["with"]["losses"][0] == done["without"]["losses"][0]
    return found


def compared(first: dict[str, Any], second: dict[str, Any], says: str = "") -> dict[str, Any]:
    """Figures of a training and of the same one without. `says`: as a Gain has it."""
    if len(first["losses"]) != len(second["losses"]) or not first["losses"]:
        raise RuntimeError(f"one run reports {len(first['losses'])} losses, the other {len(second['losses'])}")
    seconds = [speed.middle_step_s([one["step_ends"]]) for one in (first, second)]
    tokens = first["result"]["metrics"]["tokens"] / len(first["losses"])
    said = [USED, ""]
    if says:
        said = [next((text for text in one["notices"] if re.match(says, text)), "") for one in (first, second)]
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


def train(folder: str, leaves_out: str, small: bool) -> dict[str, Any]:
    """In a child: a training that leaves something out, and how long it took to load the base and, beside that, to make its copy.

    `small`: the base is, and is copied all the same.
    """
    from jobs.trainers import base, packed, varlen
    from studio.catalogue import ready_copy

    seconds = {"load": 0.0, "copy": 0.0}

    def timed(name: str, owner: Any, function: str) -> None:
        call = getattr(owner, function)

        def run(*arguments: Any) -> Any:
            begun = time.monotonic()
            answer = call(*arguments)
            seconds[name] += time.monotonic() - begun
            return answer

        setattr(owner, function, run)

    timed("load", base, "load")
    timed("copy", ready_copy.ReadyCopy, "keep")
    if small:
        vars(ready_copy).update(LEAST_BASE_BYTES=0, LEAST_FREE_BYTES=0)

    if leaves_out == "one pass":
        vars(varlen)["lacking"] = lambda _: "it is left out here"
    if leaves_out == "apart":
        vars(packed)["use"] = lambda model, tell, whole: tell(packed.MASKED.format(why="it is left out here"))
    done = training.train(folder)
    return {**done, "load_s": seconds["load"] - seconds["copy"], "copy_s": seconds["copy"]}
