"""Which GPUs a studio takes, and what it says of one that it can't: tables of what driver and torch say."""

from __future__ import annotations

from typing import Any

import pytest

from studio.catalogue import cards
from studio.catalogue.cards import Gpus
from studio.catalogue.nvml import Card, Driver, DriverState
from studio.catalogue.torch_view import TorchDevice, TorchView

GIB = 1024**3
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def card(number: int = 0, name: str = "RTX 3090", gib: int | None = 24, **more: Any) -> Card:
    memory = {"total_bytes": gib and gib * GIB, "used_bytes": gib and GIB}
    return Card(**{"uuid": f"GPU-{number:08x}-aa", "name": name, "capability": (8, 6), **memory, **more})


def driver(*found: Card, version: str = "580.95", cuda: tuple[int, int] = (13, 0)) -> Driver:
    return Driver(DriverState.OK, version, cuda, found)


def seen(*found: Card, cuda: str = "13.0", architectures: list[str] = CU130, said: str = "", hip: str = "", **more: Any) -> TorchView:
    devices = [
        TorchDevice(name=one.name, uuid=one.uuid[4:], capability=one.capability or (0, 0), total_bytes=one.total_bytes or 32 * GIB, **more)
        for one in found
    ]
    version = "2.13.0+" + (f"cu{cuda.replace('.', '')}" if cuda else "cpu")
    is_available = bool(cuda or hip) and not said
    return TorchView(
        version=version, cuda=cuda, hip=hip, is_available=is_available, said=said, architectures=architectures, devices=devices
    )


def join(driver: Driver, view: TorchView | None, visible: str | None = None, has_card: bool = True) -> Gpus:
    return cards.join(driver, view, visible, main_memory=(64 * GIB, 10 * GIB), has_card=has_card)


ONE, TWO, SMALL = card(), card(1), card(2, "RTX 4060", 8, capability=(8, 9))
PASCAL, BLACKWELL = card(0, "GTX 1080", 8, capability=(6, 1)), card(0, "RTX 5090", 32, capability=(12, 0))
OLD = {"version": "550.54", "cuda": (12, 4)}
WHL = "https://download.pytorch.org/whl"
TOO_OLD = "Driver 550.54 of RTX 3090 serves CUDA 12.4; PyTorch 2.13.0+cu130 needs CUDA 13.0, that is driver 580 or later."
BROKEN = Driver(DriverState.BROKEN, said="Driver/library version mismatch.")
NO_TORCH = "python -c 'import torch'"


@pytest.mark.parametrize(
    ("driver", "view", "problem", "fix"),
    [
        (driver(ONE), seen(cuda="", architectures=[]), "built for processors only, so it can't use RTX 3090", "whl/cu130`"),
        (driver(ONE, **OLD), seen(cuda=""), "whose driver 550.54 serves CUDA 12.4", f"Run `make install TORCH_INDEX={WHL}/cu126`"),
        (driver(PASCAL), seen(cuda=""), "processors only", "whl/cu126`"),
        (driver(BLACKWELL, **OLD), seen(cuda=""), "processors only", f"Update the driver to 580 or later and run `make install TORCH_INDEX={WHL}/cu130`"),
        (driver(ONE, **OLD), seen(said="too old"), TOO_OLD, f"Update the driver to 580 or later, run `make install TORCH_INDEX={WHL}/cu126`, or"),
        (driver(ONE, version="470.1", cuda=(11, 4)), seen(said="too old"), "serves CUDA 11.4", "Update the driver to 580 or later, or set device=cpu"),
        (driver(PASCAL, **OLD), seen(said="too old"), "needs CUDA 13.0", f"Run `make install TORCH_INDEX={WHL}/cu126`"),
        (driver(PASCAL), seen(PASCAL), "GTX 1080 has compute capability 6.1, and PyTorch 2.13.0+cu130 is built for sm_75", "whl/cu126`"),
        (driver(BLACKWELL), seen(BLACKWELL, cuda="12.6", architectures=CU126), "has compute capability 12.0", "whl/cu130`"),
        (driver(card(0, "K80", capability=(3, 7))), seen(cuda=""), "K80", "Use another card: no current PyTorch is built for this one"),
        (driver(ONE), seen(said="CUDA unknown error"), "although its driver 580.95 answers: CUDA unknown error.", "Restart the machine"),
        (driver(ONE, SMALL), seen(TWO), "although its driver", "Restart the machine"),
        (driver(ONE), None, "could not be asked about RTX 3090", NO_TORCH),
        (driver(ONE), seen(cuda="", hip="7.2", said="no"), "is built for ROCm 7.2", "whl/cu130`"),
        (BROKEN, seen(said="x"), "does not work: Driver/library version mismatch.", "Restart the machine"),
        (Driver(DriverState.NOT_LOADED, said="Driver Not Loaded"), seen(said="x"), "does not work: Driver Not Loaded", "`nvidia-smi` answers"),
        (Driver(DriverState.NO_PACKAGE), seen(said="x"), "nvidia-ml-py is not installed", "Run `make install`"),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_rejects_is_named_with_the_remedy(driver: Driver, view: TorchView | None, problem: str, fix: str) -> None:
    found = join(driver, view)
    assert found.refusal and problem in found.refusal.problem and fix in found.refusal.fix
    assert found.refusal.problem.endswith(".") and "set device=cpu" in found.refusal.fix and "  " not in found.refusal.problem
    assert [one.is_usable for one in found.devices] == [False] * len(found.devices)


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2, 0", [2, 0]),
        ("GPU-00000001-aa", [1]),
        ("GPU-00000002,0", [2, 0]),
        ("gpu-00000002", []),
        ("GPU-0000000", []),  # three begin so
        ("0,9,1", [0]),  # what follows a wrong one does not count
        ("0,-1,1", [0]),
        ("1,1", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("9999999999", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str | None, uuids: list[int]) -> None:
    found = cards.chosen([ONE, TWO, SMALL], visible)
    assert [one.uuid for one in found] == [f"GPU-{number:08x}-aa" for number in uuids]


def test_a_split_card_stands_for_its_slices() -> None:
    parts = tuple(card(number, "A100 MIG 3g.20gb", 20, uuid=f"MIG-{number}", capability=(8, 0)) for number in (7, 8))
    split = card(0, "A100", None, slices=parts, capability=(8, 0))
    assert [one.uuid for one in cards.chosen([split, ONE], None)] == ["MIG-7", "MIG-8", ONE.uuid]
    assert [one.uuid for one in cards.chosen([split], "MIG-8")] == ["MIG-8"]
    # CUDA shows one slice at a time, and calls it by its own UUID or by its card's: both are slots
    found = join(driver(split), seen(parts[0]))
    assert [(one.selector, one.is_usable, one.memory_bytes) for one in found.devices] == [(f"MIG-{n}", True, 20 * GIB) for n in (7, 8)]


def test_hidden_cards_are_no_reason_for_the_processor() -> None:
    found = join(driver(ONE, SMALL), seen(said="No CUDA GPUs are available"), visible="")
    assert not found.devices and found.refusal
    assert found.refusal.problem == "CUDA_VISIBLE_DEVICES is empty, which hides RTX 3090 and RTX 4060 from this studio."
    assert found.refusal.fix.startswith("Unset it, or name a card (0: RTX 3090, 1: RTX 4060); or set device=cpu")
    refusal = join(driver(ONE), seen(said="no"), visible="3").refusal
    assert refusal and refusal.problem == "CUDA_VISIBLE_DEVICES=3 names no card of this machine."


def test_torch_counts_the_fastest_first_and_its_word_counts() -> None:
    # red when "1" means the second card of the bus: CUDA counts otherwise
    found = join(driver(ONE, SMALL), seen(ONE), visible="1")
    assert [one.name for one in found.devices] == ["RTX 3090"]


def test_two_cards_that_differ_are_both_taken_the_larger_first() -> None:
    found = join(driver(SMALL, ONE), seen(SMALL, ONE))
    assert [one.name for one in found.devices] == ["RTX 3090", "RTX 4060"] and found.refusal is None
    assert found.notes == ("The cards differ: a job that needs more than the 8.0 GiB of RTX 4060 waits for RTX 3090",)


def test_a_card_that_can_not_be_used_stands_behind_one_that_can() -> None:
    old = card(3, "GTX 1080", 8, capability=(6, 1))
    found = join(driver(old, ONE), seen(old, ONE))
    assert [(one.name, one.is_usable) for one in found.devices] == [("RTX 3090", True), ("GTX 1080", False)]
    assert found.refusal is None and "GTX 1080 has compute capability 6.1" in found.notes[0]


def test_memory_that_the_driver_does_not_tell_is_torchs() -> None:
    spark = card(0, "NVIDIA GB10", None, capability=(12, 1))
    shared = join(driver(spark), seen(spark, is_integrated=True))
    assert [(one.memory_bytes, one.used_bytes) for one in shared.devices] == [(32 * GIB, 10 * GIB)]
    assert shared.notes == ("NVIDIA GB10 shares its memory with the processor: what programs take counts for both",)
    own = join(driver(spark), seen(spark, free_bytes=20 * GIB))
    assert [(one.memory_bytes, one.used_bytes, one.is_shared) for one in own.devices] == [(32 * GIB, 12 * GIB, False)]
    assert own.notes == ("The driver of NVIDIA GB10 does not say how much memory is free: what was free at the studio's start counts",)


@pytest.mark.parametrize(
    ("view", "names"),
    [
        (seen(ONE, cuda="", hip="7.2"), [("RTX 3090 (ROCm 7.2)", "")]),
        (seen(ONE, TWO, cuda="", hip="7.2"), [("RTX 3090 (ROCm 7.2)", "0"), ("RTX 3090 (ROCm 7.2)", "1")]),
        (seen(ONE), [("RTX 3090", "GPU-00000000-aa")]),
        (seen(PASCAL), [("GTX 1080", "GPU-00000000-aa")]),
    ],
)
def test_torch_alone_knows_a_gpu_without_nvml(view: TorchView, names: list[tuple[str, str]]) -> None:
    found = join(Driver(DriverState.ABSENT), view, has_card=False)
    assert [(one.name, one.selector) for one in found.devices] == names
    assert (found.refusal is not None) == ("GTX" in names[0][0])


def test_without_a_gpu_there_is_nothing_to_refuse() -> None:
    for state in (DriverState.ABSENT, DriverState.NO_PACKAGE, DriverState.NOT_LOADED):
        assert join(Driver(state), None, has_card=False) == Gpus()
    assert join(Driver(DriverState.OK, "580", (13, 0)), None, has_card=False) == Gpus()
    note = join(Driver(DriverState.ABSENT), seen(cuda="")).notes
    assert len(note) == 1 and "no driver" in note[0] and "--gpus all" in note[0]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (CU130, (8, 9), True),
        (CU130, (7, 0), False),
        (CU130, (12, 1), True),
        (CU130, (11, 0), False),
        (["sm_90a"], (9, 0), True),
        (["compute_90"], (12, 0), True),
        (["compute_90"], (8, 9), False),
        ([], (8, 0), True),  # nobody knows
        (["gfx942"], (9, 4), False),
    ],
)
def test_code_runs_within_its_major_version_and_ptx_on_what_is_newer(
    architectures: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert cards.covers(architectures, capability) is runs
