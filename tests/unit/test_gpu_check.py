"""`make gpu` without a card: how parts are run and judged, what a machine lacks, and the wheels that are carried to one."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import config as job_config
from studio.catalogue import hardware
from studio.catalogue.cards import Device, GpuProblem, Gpus
from studio.records import MemoryPlan
from tests.gpu import child, doctor, engine, exact, gains, hand_over, memory, needs, registry, running, small_card, wheels
from tests.gpu.outcome import Verdict
from tests.gpu.registry import Part
from tests.gpu.running import Runner, summary
from tests.gpu.scale import Scale

ROOT = Path(__file__).resolve().parents[2]
WHOLE = Scale("/nowhere", False, 0.0)


class StandIn:
    """Instead of a process: `answer` is what it says, an exception what it raises."""

    answer: Any = None

    def __init__(self, work: Path, function: str, **arguments: Any) -> None:
        self.module = arguments["module"]

    def wait(self, limit_s: float) -> Any:
        found = type(self).answer[self.module]
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self) -> None:
        """Nothing runs."""


def measured(**values: Any) -> dict[str, Any]:
    return {"figures": {"n": 1}, "said": "1 of 1", "missed": [], "left_out": [], **values}


def outcomes(monkeypatch: pytest.MonkeyPatch, left_s: float, **answers: Any) -> list[running.Outcome]:
    monkeypatch.setattr(running, "Child", StandIn)
    monkeypatch.setattr(StandIn, "answer", answers)
    parts = [Part(name, name, 20, "a promise") for name in answers]
    return list(Runner(Path("/nowhere"), False, 100.0 + left_s, {"torch": "2"}, now=lambda: 100.0).run(parts))


def test_a_missed_promise_and_a_part_that_fails_are_bad_and_what_has_no_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(monkeypatch, 100, good=measured(), bad=measured(missed=["too slow"]), broken=child.ChildFailed("no words"))
    assert [one.verdict for one in found] == [Verdict.KEPT, Verdict.MISSED, Verdict.FAILED]
    assert [one.is_bad for one in found] == [False, True, True]
    assert "too slow" in found[1].line() and "no words" in found[2].line()
    assert json.loads(found[0].json_line())["hardware"] == {"torch": "2"} and found[0].date
    assert summary(found) == "1 of 3 parts kept their promise; missed: bad; failed: broken"
    (late,) = outcomes(monkeypatch, 19, good=measured())
    assert late.verdict is Verdict.LEFT_OUT and not late.is_bad and "19 s are left, and it takes 20" in late.line()


def test_the_parts_are_there_and_fit_into_eight_minutes() -> None:
    assert registry.NAMES == (
        "machine", "models", "memory", "8 GiB", "speed", "gains", "engine", "hand-over", "exact", "float16", "doctor", "proof",
    )  # fmt: skip
    assert all((ROOT / "tests" / "gpu" / f"{part.module}.py").is_file() for part in registry.PARTS)
    assert sum(part.seconds for part in registry.PARTS) + registry.BETWEEN_S <= registry.WITHIN_S <= 480


def test_every_part_has_its_time_within_the_default_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when the parts take more than the command gives them, so that the last ones could never run
    clock = [0.0]

    class OnTime(StandIn):
        def wait(self, limit_s: float) -> Any:
            clock[0] += next(part.seconds for part in registry.PARTS if part.module == self.module)
            return measured()

    monkeypatch.setattr(running, "Child", OnTime)
    recipe = (ROOT / "Makefile").read_text("utf-8").partition("\ngpu: ")[2].partition("\n\n")[0]
    assert "python -m tests.gpu " in recipe and not any(sign.isdigit() for sign in recipe.partition("--within")[2])
    found = list(Runner(Path("/nowhere"), False, registry.WITHIN_S - registry.BETWEEN_S, {}, now=lambda: clock[0]).run(registry.PARTS))
    assert [one.verdict for one in found] == [Verdict.KEPT] * len(registry.PARTS)


def test_a_process_answers_or_says_why_it_does_not(tmp_path: Path) -> None:
    assert child.call(tmp_path, "tests.gpu.wheels:normalised", 60, name="Typing_Extensions") == "typing-extensions"
    with pytest.raises(child.ChildFailed, match=r"no_such.*exit code 1"):
        child.call(tmp_path, "tests.gpu.wheels:no_such", 60)
    with pytest.raises(child.ChildFailed, match=child.KILLED):
        child.call(tmp_path, "signal:pause", 0.5)


# promises


def test_predictions_hold_within_their_limits() -> None:
    assert memory.is_kept(95, 100) and memory.is_kept(110, 100)
    assert not memory.is_kept(94, 100) and not memory.is_kept(111, 100)
    assert len(memory.CASES) == 12 and len({case.name for case in memory.CASES}) == 12
    for case in memory.CASES:
        job_config.build(case.options)


def test_a_card_of_8_gib_keeps_its_rows() -> None:
    config = job_config.build({"max_length": 1535})
    plan = MemoryPlan(changes=[], options={}, needed_bytes=1, fits=True, beside="")
    assert small_card.broken(WHOLE, small_card.LITTLE, config, plan) == ["with 7.2 GiB free a launch takes rows of 1535 tokens, not 1536"]
    longer = config.model_copy(update={"max_length": 2047})
    assert small_card.broken(WHOLE, small_card.LITTLE, longer, plan) == []
    assert small_card.broken(WHOLE, small_card.ENOUGH, longer, plan) and small_card.broken(
        replace(WHOLE, is_reduced=True), small_card.ENOUGH, longer, plan.model_copy(update={"fits": False})
    )


SPEEDS = {"base": 100.0, "LoRA": 90.0, "temperature 0.7": 97.0}
FOUND = {
    "operations_ratio": 1.5,
    "same": 8,
    "distinct": 8,
    "tokens_per_s": SPEEDS,
    "roofline_per_s": 150.0,
    "together_ratio": 5.5,
    "switch_ms": 0.5,
}


@pytest.mark.parametrize(
    ("name", "changed", "missed"),
    [
        (engine.FIGURED, {}, 0),
        (engine.FIGURED, {"roofline_per_s": 170.0}, 1),
        (engine.FIGURED, {"tokens_per_s": {**SPEEDS, "LoRA": 84.0}}, 1),
        (engine.FIGURED, {"tokens_per_s": {**SPEEDS, "temperature 0.7": 94.0}}, 1),
        (engine.FIGURED, {"together_ratio": 4.9, "switch_ms": 1.1}, 2),
        (engine.FIGURED, {"operations_ratio": 1.7}, 1),
        (engine.EXACT, {"same": 7}, 1),
        (engine.EXACT, {"distinct": 1}, 1),  # adapters that change nothing are equal in any batch
        (engine.FIGURED, {"same": 7}, 0),  # in 16 bits a near tie may fall the other way
    ],
)
def test_the_engines_promises(name: str, changed: dict[str, Any], missed: int) -> None:
    assert len(engine.broken(name, {**FOUND, **changed}, is_reduced=False)) == missed


def ran(step_s: float, *losses: float, notice: str = "") -> dict[str, Any]:
    ends = [step_s * number for number in range(8)]
    return {"losses": [*losses], "step_ends": ends, "notices": [notice], "result": {"metrics": {"tokens": 800, "peak_memory_bytes": 2**30}}}


def test_what_gains_is_faster_and_its_losses_stay() -> None:
    one, other = "Packed rows in one pass", "Packed rows apart"
    found = gains.compared(ran(0.5, 2.0, 1.0, notice=one), ran(1.0, 2.0, 1.009, notice=other), "Packed")
    assert found["ratio"] == 2 and found["tokens_per_s"] == 800 and gains.broken(gains.PACKED, found, is_reduced=False) == []
    slower = gains.compared(ran(1.0, 2.0, notice=one), ran(0.5, 2.0, notice=other), "Packed")
    apart = gains.compared(ran(0.5, 2.0, notice=one), ran(1.0, 2.03, notice=other), "Packed")
    the_same = gains.compared(ran(0.5, 2.0, notice=other), ran(1.0, 2.0, notice=other), "Packed")
    other_bits = {**found, "first_losses_equal": False}
    for wrong in (other_bits, slower, apart, the_same):
        assert len(gains.broken(gains.PACKED, wrong, is_reduced=False)) == 1
    with pytest.raises(RuntimeError, match="losses"):
        gains.compared(ran(1.0, 2.0), ran(1.0))


def test_what_is_left_of_an_engine_is_missed() -> None:
    left = {"mib": 0.0, "holders": 0}
    found = {"answered": 200, "refused": {"status": 503}, "failed": 500, "trained": "ended well", "after_yield": left, "after_error": left}
    assert list(hand_over._broken(found)) == []
    for changed in (
        {"after_yield": {"mib": 17.0, "holders": 0}}, {"after_error": {"mib": 0.0, "holders": 1}}, {"refused": {"status": 200}},
        {"failed": 200}, {"answered": 503}, {"trained": "out of memory"},
    ):  # fmt: skip
        assert len(list(hand_over._broken({**found, **changed}))) == 1


def test_the_checkpoint_is_older_than_the_kill() -> None:
    assert 1 < exact.KILLED_AT <= exact.STEPS and doctor.TOO_LARGE["per_device_train_batch_size"] > 1


# what a machine lacks


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (Gpus(), "driver 580 or later"),
        (
            Gpus(refusal=GpuProblem("The driver is too old.", "Run `make install TORCH_INDEX=x`.")),
            "The driver is too old. Run `make install",
        ),
        (Gpus(devices=(Device("cuda", "NVIDIA H200", 10**11, 0, "GPU-1"),)), ""),
    ],
)
def test_what_it_needs_of_a_card(gpus: Gpus, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_gpus", (float("inf"), gpus))
    found = needs.card()
    assert said in found and "\n" not in found and bool(found) == bool(said)
    assert "TORCH_INDEX" in found or not said


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "NEEDED", ("json", "no_such_package"))
    assert "needs no_such_package" in needs.packages(with_card=False)


# wheels


def test_every_wheel_has_a_version() -> None:
    known = wheels.versions((ROOT / "constraints.txt").read_text("utf-8"))
    assert [name for name in (*wheels.WHEELS, *wheels.PURE) if wheels.normalised(name) not in known] == []


def test_bitsandbytes_keeps_one_library(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    libraries = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda126", "cuda130")]
    record = "".join(f"{name},sha256=x,9\n" for name in [*libraries, "bitsandbytes/__init__.py"])
    with zipfile.ZipFile(wheel, "w") as made:
        for name in libraries:
            made.writestr(name, "x" * 1000)
        made.writestr("bitsandbytes/__init__.py", "")
        made.writestr("bitsandbytes-1.dist-info/RECORD", record)
    with pytest.raises(ValueError, match="it has cpu, cuda126, cuda130"):
        wheels.repack(wheel, "cuda999")
    assert wheels.repack(wheel, "cuda130") == wheel.stat().st_size
    with zipfile.ZipFile(wheel) as made:
        assert [name for name in made.namelist() if name.endswith(".so")] == ["bitsandbytes/libbitsandbytes_cuda130.so"]
        assert made.read("bitsandbytes-1.dist-info/RECORD").decode().count(".so") == 1
