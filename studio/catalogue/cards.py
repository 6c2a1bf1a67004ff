"""Which GPUs a studio computes on, and in one sentence why it does not use one that is here: the driver's view joined with torch's.

Pure: views in, devices and sentences out. studio.catalogue.hardware asks for the views.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from studio.catalogue.nvml import Card, Driver, DriverState
from studio.catalogue.torch_view import TorchDevice, TorchView, plain_uuid

GIB = 1024**3
INDEX = "https://download.pytorch.org/whl/"
ON_CPU = "or set device=cpu, which trains on the processor"
# the oldest driver of each CUDA, by "CUDA Compatibility" of NVIDIA's documentation (minor version compatibility)
DRIVERS = {11: "450", 12: "525", 13: "580"}
# the builds of torch 2.12 and later (RELEASE.md of pytorch): their CUDA, and the oldest and newest capability that each serves
BUILDS = (("cu130", 13, (7, 5), (99, 0)), ("cu126", 12, (5, 0), (9, 0)))


@dataclass(frozen=True)
class Device:
    """Where models run: a GPU, or the processor. Memory in bytes, as the whole machine sees it now.

    `selector`: what CUDA_VISIBLE_DEVICES calls it; empty for the only device of ROCm, which needs no name. `problem` and `fix`: why torch
    can't use it; empty where it can.
    """

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    used_bytes: int
    selector: str = ""
    use: float | None = None  # share of the time, 0-1
    temperature_c: int | None = None
    power_w: float | None = None
    is_shared: bool = False  # its memory is the processor's too
    is_measured: bool = True  # else nobody says how much is used now: it is what torch said when this process asked it
    problem: str = ""
    fix: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.problem

    @property
    def free_bytes(self) -> int:
        return max(0, self.memory_bytes - self.used_bytes)


@dataclass(frozen=True)
class GpuProblem:
    """Why a GPU that is here is not used, in a sentence, and what to do about it."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Gpus:
    """`devices`: GPUs that may be used here, those that torch can use first, the largest first. `refusal`: why torch can use none."""

    devices: tuple[Device, ...] = ()
    refusal: GpuProblem | None = None
    notes: tuple[str, ...] = ()


def join(driver: Driver, view: TorchView | None, visible: str | None, *, main_memory: tuple[int, int], has_card: bool = False) -> Gpus:
    """The GPUs of the two views. `visible`: CUDA_VISIBLE_DEVICES; `main_memory`: its bytes, all and used;
    `has_card`: whether anything else tells of an NVIDIA card."""
    if driver.state is not DriverState.OK or not driver.cards:
        return _without_cards(driver, view, main_memory, has_card)
    cards = _visible(driver, view, visible)
    if not cards:
        return Gpus(refusal=_hidden(driver, visible))
    found = _seen(cards, view)
    return _sorted([_device(card, found.get(card.uuid), _problem(card, found.get(card.uuid), driver, view), main_memory) for card in cards])


def _seen(cards: Sequence[Card], view: TorchView | None) -> dict[str, TorchDevice]:
    """What torch sees of each card, by the card's UUID."""
    if view is None:
        return {}
    by_uuid = {one.uuid: one for one in view.devices}
    found = {card.uuid: by_uuid[own] for card in cards if (own := plain_uuid(card.uuid)) in by_uuid}
    if not found and len(view.devices) == len(cards):  # a torch that knows no UUIDs, or calls a slice by that of its card
        found = {card.uuid: one for card, one in zip(cards, view.devices, strict=True)}
    return found


def _sorted(devices: Sequence[Device]) -> Gpus:
    devices = sorted(devices, key=lambda one: (not one.is_usable, -one.memory_bytes))
    refusal = None
    if devices and not devices[0].is_usable:
        refusal = GpuProblem(devices[0].problem, devices[0].fix)
    return Gpus(tuple(devices), refusal, tuple(_notes(devices)))


def _notes(devices: Sequence[Device]) -> list[str]:
    usable = [one for one in devices if one.is_usable]
    found = []
    if len({one.memory_bytes for one in usable}) > 1:
        small = usable[-1]
        found.append(
            f"The cards differ: a job that needs more than the {small.memory_bytes / GIB:.1f} GiB of {small.name} waits for {usable[0].name}"
        )
    for one in usable:
        if one.is_shared:
            found.append(f"{one.name} shares its memory with the processor: what programs take counts for both")
        if not one.is_measured:
            found.append(f"The driver of {one.name} does not say how much memory is free: what was free at the studio's start counts")
    if usable:
        found += [f"{one.problem} {one.fix}" for one in devices if not one.is_usable]
    return found


def _visible(driver: Driver, view: TorchView | None, visible: str | None) -> list[Card]:
    """Cards and slices that CUDA_VISIBLE_DEVICES leaves, in its order; torch's word counts where it has any."""
    is_split = any(card.slices for card in driver.cards)
    if view and view.is_available and not view.hip and not is_split:
        by_uuid = {plain_uuid(card.uuid): card for card in driver.cards}
        if all(one.uuid in by_uuid for one in view.devices):
            return [by_uuid[one.uuid] for one in view.devices]
    return chosen(driver.cards, visible)


def chosen(cards: Sequence[Card], visible: str | None) -> list[Card]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: numbers, UUIDs or their beginnings, MIG UUIDs; what follows a wrong one does not count.

    A card that is split stands for its slices. Numbers count in the order of the PCI bus.
    """
    if visible is None:
        return [part for card in cards for part in card.slices or (card,)]
    found: list[Card] = []
    for word in (part.strip() for part in visible.split(",")):
        named = _named(cards, word)
        if not named:
            break
        if any(one in found for one in named):
            return []  # CUDA takes none where one is named twice
        found += named
    return found


def _named(cards: Sequence[Card], word: str) -> list[Card]:
    if re.fullmatch(r"\d{1,4}", word):
        picked = list(cards[int(word) : int(word) + 1])
    elif word.startswith("GPU-"):
        picked = [card for card in cards if card.uuid.lower().startswith(word.lower())]
    elif word.startswith("MIG-"):
        picked = [part for card in cards for part in card.slices if part.uuid.lower().startswith(word.lower())]
    else:
        return []
    if len(picked) != 1:
        return []  # no card, or a beginning that several share
    return list(picked[0].slices or picked)


def _hidden(driver: Driver, visible: str | None) -> GpuProblem:
    here = ", ".join(f"{index}: {card.name}" for index, card in enumerate(driver.cards))
    fix = f"Unset it, or name a card ({here}); {ON_CPU}."
    if not (visible or "").strip():
        return GpuProblem(f"CUDA_VISIBLE_DEVICES is empty, which hides {_names(driver)} from this studio.", fix)
    return GpuProblem(f"CUDA_VISIBLE_DEVICES={visible} names no card of this machine.", fix)


def _names(driver: Driver) -> str:
    return " and ".join(dict.fromkeys(card.name for card in driver.cards))


def _problem(card: Card, seen: TorchDevice | None, driver: Driver, view: TorchView | None) -> GpuProblem | None:
    """Why torch can't use this card."""
    if view is None:
        problem = f"PyTorch could not be asked about {card.name}: its process was killed or did not end."
        return GpuProblem(problem, f"Look whether `python -c 'import torch'` works, {ON_CPU}.")
    capability = card.capability or (seen.capability if seen else (0, 0))
    if view.is_available:
        if (seen is not None or card.uuid.startswith("MIG-")) and (not any(capability) or covers(view.architectures, capability)):
            return None
        if seen is not None:
            return _not_built_for(card, capability, driver, view)
    serves = ".".join(map(str, driver.cuda or ("of an unknown version",)))
    if not view.cuda:
        kind = "is built for processors only"
        if view.hip:
            kind = f"is built for ROCm {view.hip}"
        problem = f"PyTorch {view.version} {kind}, so it can't use {card.name}, whose driver {driver.version} serves CUDA {serves}."
        return GpuProblem(problem, _remedy(driver, capability, view))
    needed = int(view.cuda.split(".")[0])
    if driver.cuda and driver.cuda[0] < needed:
        problem = (
            f"Driver {driver.version} of {card.name} serves CUDA {serves}; PyTorch {view.version} needs CUDA {view.cuda}, "
            f"that is driver {DRIVERS.get(needed, 'of a newer series')} or later."
        )
        return GpuProblem(problem, _remedy(driver, capability, view))
    said = view.said.rstrip(".") or "it gives no reason"
    problem = f"PyTorch {view.version} can't use {card.name}, although its driver {driver.version} answers: {said}."
    fix = f"Restart the machine, which an updated driver needs, or install the driver again; {ON_CPU}."
    return GpuProblem(problem, fix)


def _not_built_for(card: Card, capability: tuple[int, int], driver: Driver, view: TorchView) -> GpuProblem:
    built = ", ".join(view.architectures)
    problem = f"{card.name} has compute capability {capability[0]}.{capability[1]}, and PyTorch {view.version} is built for {built}."
    return GpuProblem(problem, _remedy(driver, capability, view))


def _remedy(driver: Driver, capability: tuple[int, int], view: TorchView) -> str:
    """What to install: a build of torch for this driver and card, or a newer driver, or both."""
    serves = driver.cuda or (99, 0)
    now = after = both = ""
    for name, cuda, oldest, latest in BUILDS:
        if any(capability) and not oldest <= capability <= latest:
            continue
        install = f"run `make install TORCH_INDEX={INDEX}{name}`"
        if cuda <= serves[0]:
            now = now or install
            continue
        update = f"update the driver to {DRIVERS[cuda]} or later"
        if view.cuda.startswith(f"{cuda}.") and covers(view.architectures, capability):
            after = after or update
        both = both or f"{update} and {install}"
    ways = [after, now] if after or now else [both or "use another card: no current PyTorch is built for this one"]
    text = ", ".join([*filter(None, ways), ON_CPU])
    return f"{text[0].upper()}{text[1:]}."


def covers(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for these runs there: binaries within a major version upwards, PTX (compute_…) on everything newer."""
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if found is None:
            continue
        built = (int(found[2]), int(found[3]))
        if built <= capability and (found[1] == "compute" or built[0] == capability[0]):
            return True
    return not architectures


def _device(card: Card, seen: TorchDevice | None, refusal: GpuProblem | None, main_memory: tuple[int, int]) -> Device:
    total, used = card.total_bytes, card.used_bytes
    is_shared, is_measured = False, True
    if total is None or used is None:
        total, used, is_shared = _of_torch(seen, main_memory)
        is_measured = is_shared
    return Device(
        kind="cuda",
        name=card.name,
        memory_bytes=total,
        used_bytes=used,
        selector=card.uuid,
        use=card.use,
        temperature_c=card.temperature_c,
        power_w=card.power_w,
        is_shared=is_shared,
        is_measured=is_measured,
        problem=refusal.problem if refusal else "",
        fix=refusal.fix if refusal else "",
    )


def _of_torch(seen: TorchDevice | None, main_memory: tuple[int, int]) -> tuple[int, int, bool]:
    """Memory of a device whose driver says [N/A], all and used, and whether it is main memory, which can be read at any time."""
    if seen is None:
        return 0, 0, False
    if seen.is_integrated:
        total = min(seen.total_bytes, main_memory[0])
        return total, min(total, main_memory[1]), True
    free = seen.total_bytes if seen.free_bytes is None else seen.free_bytes
    return seen.total_bytes, seen.total_bytes - free, False


def _without_cards(driver: Driver, view: TorchView | None, main_memory: tuple[int, int], has_card: bool) -> Gpus:
    """The driver names no card: torch may see one all the same, on ROCm and where NVML is missing."""
    if view and view.is_available:
        return _sorted([_torch_alone(one, index, view, main_memory) for index, one in enumerate(view.devices)])
    repair = f"Restart the machine, which an updated driver needs, or install the driver again, until `nvidia-smi` answers; {ON_CPU}."
    if driver.state is DriverState.BROKEN or (driver.state is DriverState.NOT_LOADED and has_card):
        return Gpus(refusal=GpuProblem(f"The NVIDIA driver is here and does not work: {driver.said.rstrip('.')}.", repair))
    if driver.state is DriverState.NO_PACKAGE and has_card:
        return Gpus(
            refusal=GpuProblem("nvidia-ml-py is not installed, so the NVIDIA driver can't be asked.", f"Run `make install`, {ON_CPU}.")
        )
    if has_card:
        note = "There is an NVIDIA card on the PCI bus and no driver for it: install one (in a container: `docker run --gpus all`)"
        return Gpus(notes=(note,))
    return Gpus()


def _torch_alone(seen: TorchDevice, index: int, view: TorchView, main_memory: tuple[int, int]) -> Device:
    total, used, is_shared = _of_torch(seen, main_memory)
    name, selector = seen.name, str(index)
    if view.hip:
        name += f" (ROCm {view.hip})"
        selector = selector if len(view.devices) > 1 else ""
    elif seen.uuid:
        selector = f"GPU-{seen.uuid}"
    problem = fix = ""
    if not view.hip and not covers(view.architectures, seen.capability):
        card = Card(uuid=selector, name=seen.name)
        refusal = _not_built_for(card, seen.capability, Driver(DriverState.ABSENT), view)
        problem, fix = refusal.problem, refusal.fix
    return Device("cuda", name, total, used, selector, is_shared=is_shared, is_measured=is_shared, problem=problem, fix=fix)
