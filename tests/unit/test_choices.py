"""What a person may choose together: grids of a sweep, weights of a merge, loggers, checks of data, and what a launch changes for memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from jobs.config import build
from studio.engine.buckets import Arena, Shape, shape_for
from studio.errors import ConfigError, StudioError
from studio.records import AvailableMemory, MemoryHolder, MemoryPlan
from studio.services import curation, launch_memory, launching, loggers, merging
from studio.services.versions import VersionShelf, derived

GIB = 1024**3


@pytest.mark.parametrize(
    ("grid", "fixed", "said"),
    [
        ({}, {}, "a sweep varies at least one option."),
        ({"seed": [1]}, {"seed": 2}, "seed is set and varied at once."),
        ({"base_model": ["a"]}, {}, "base_model can't be varied."),
        ({"nothing": [1]}, {}, "nothing is no option."),
        ({"seed": [], "lora.r": 4}, {}, "seed has no list of values; lora.r has no list of values."),
        ({"seed": [1, 1]}, {}, "The grid names a value twice."),
        ({"seed": list(range(65))}, {}, "This grid has 65 combinations; a sweep holds at most 64."),
    ],
)
def test_a_grid_that_is_none(grid: dict[str, Any], fixed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launching.combinations(grid, fixed)
    assert refused.value.message == said


def test_the_last_option_of_a_grid_changes_fastest() -> None:
    found = launching.combinations({"seed": [1, 2], "lora.r": (4, 8)}, {"learning_rate": 1})
    assert [tuple(one.values()) for one in found] == [(1, 4), (1, 8), (2, 4), (2, 8)] and list(found[0]) == ["seed", "lora.r"]
    assert len(launching.combinations({"seed": list(range(64))}, {})) == 64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=0.7,B=0.3", {"A": 0.7, "B": 0.3}),
        (" a=b=1 ", {"a=b": 1.0}),
        ("A=-1e1", {"A": -10.0}),
        ("A", "names no adapter"),
        ("=1", "names no adapter"),
        ("A=x", "names no adapter"),
        ("A=nan", "names no adapter"),
        ("", "names no adapter"),
        ("A=1,A=2", "named twice"),
    ],
)
def test_weights_as_they_are_written(text: str, found: Any) -> None:
    if isinstance(found, dict):
        assert merging.parse(text) == found
        return
    with pytest.raises(StudioError, match=found):
        merging.parse(text)


@pytest.mark.parametrize(
    ("weights", "method", "density", "said"),
    [
        ({"a": 1.0}, "linear", 0.5, ""),
        ({"a": 100.0, "b": -100.0}, "linear", 1.0, ""),
        ({"a": 101.0}, "linear", 0.5, "beyond"),
        ({"a": float("inf")}, "linear", 0.5, "beyond"),
        ({"a": 0.0, "b": 0.0}, "linear", 0.5, "Every weight is zero"),
        ({"a": 1.0}, "linear", 0.0, "no share"),
        ({"a": 1.0}, "linear", 1.01, "no share"),
        ({"a": 1.0}, "other", 0.5, "is not known"),
    ],
)
def test_what_can_be_added_up(weights: dict[str, float], method: str, density: float, said: str) -> None:
    if not said:
        merging._check(weights, method, density)
        return
    with pytest.raises(StudioError, match=said):
        merging._check(weights, method, density)


@pytest.mark.parametrize(
    ("wanted", "installed", "said"),
    [
        ("none", (), ""),
        (["all"], (), ""),
        ([], (), ""),
        ("wandb", ("wandb",), ""),
        ("tensorboard", ("tensorboardX",), ""),
        ("wandb", (), "wandb is not installed here"),
        (["none", "mlflow"], ("wandb",), "mlflow is not installed here"),
        (["other"], ("other",), "there is no such logger"),
    ],
)
def test_a_logger_is_known_and_installed(monkeypatch: pytest.MonkeyPatch, wanted: Any, installed: tuple[str, ...], said: str) -> None:
    def find(package: str) -> Any:
        if package == "tensorboard":
            raise ValueError("without a spec")
        return package in installed or None

    monkeypatch.setattr(loggers.importlib.util, "find_spec", find)
    config = build({}).model_copy(update={"report_to": wanted})
    if not said:
        loggers.check(config)
        return
    with pytest.raises(ConfigError, match=said):
        loggers.check(config)


@pytest.mark.parametrize(
    ("checks", "found"),
    [
        (["exact_duplicates"], 1),
        (["all"], None),
        (["exact_duplicates", "all"], None),
        ([], "No check is named"),
        (["duplicate"], "There is no check"),
    ],
)
def test_checks_by_name(checks: list[str], found: Any) -> None:
    if isinstance(found, str):
        with pytest.raises(StudioError, match=found):
            curation.known_checks(checks)
    else:
        assert len(curation.known_checks(checks)) == (found or len(curation.CHECKS))


@pytest.mark.parametrize(
    ("given", "checks", "found"),
    [
        ({}, [], {}),
        ({"NAME": "Ann"}, ["placeholders"], {"NAME": "Ann"}),
        ({"OTHER": "x"}, ["placeholders"], "There is no placeholder"),
        ({"NAME": "Ann"}, ["duplicates"], "the check placeholders is not named"),
        ({"NAME": " "}, ["placeholders"], "No value is given"),
    ],
)
def test_values_of_placeholders(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], checks: list[str], found: Any) -> None:
    monkeypatch.setattr(curation.placeholders, "key", lambda name: name)
    report: Any = SimpleNamespace(
        findings=[SimpleNamespace(check="other", names={}), SimpleNamespace(check="placeholders", names={"NAME": [1]})]
    )
    if isinstance(found, dict):
        assert curation._values(report, given, checks) == found
        return
    with pytest.raises(StudioError, match=found):
        curation._values(report, given, checks)


def test_rows_count_from_one() -> None:
    record: Any = SimpleNamespace(name="d", rows=3)
    curation._check_rows(record, [1, 3])
    for rows, said in (([], "No row is named"), ([0], "has no row 0"), ([2, 4], "has no row 4")):
        with pytest.raises(StudioError, match=said):
            curation._check_rows(record, rows)
    assert curation._shown_options({"against": ["a"], "max_length": 5}) == {"against": ["a"]}
    assert curation._shown_options({"against": [], "base_model": "b", "max_length": 5}) == {"base_model": "b", "max_length": 5}


@pytest.mark.parametrize(
    ("name", "taken", "following"),
    [("d", [], "d-v2"), ("d", ["d-v2", "d-v3"], "d-v4"), ("d-v4", [], "d-v5"), ("d-v4", ["d-v5"], "d-v6"), ("d-x", ["d-v2"], "d-x-v2")],
)
def test_the_name_of_the_next_version(name: str, taken: list[str], following: str) -> None:
    shelf: Any = SimpleNamespace(everyone=lambda: [SimpleNamespace(name=one) for one in taken])
    assert VersionShelf.next_name(shelf, name) == following
    assert derived("x" * 99, "v2") == "x" * 57 + "-v2"


def test_the_other_side_of_a_split_is_its_newest_version() -> None:
    def made(key: str, by: str, parent: str | None = None, sibling: str = "") -> Any:
        return SimpleNamespace(id=key, parent=parent, provenance={"made_by": by, "sibling": sibling})

    everyone = [
        made("train", "split", "all", "test"), made("test", "split", "all", "train"), made("all", "add"), made("test2", "edit", "test"),
        made("test3", "delete", "test2"), made("other", "fix?", "test3"), made("train2", "edit", "train"), made("alone", "split", "all", "gone"),
    ]  # fmt: skip
    shelf: Any = SimpleNamespace(everyone=lambda: everyone)
    assert [VersionShelf.sibling(shelf, key) for key in ("train", "train2", "all", "alone", "unknown")] == [
        {"test3"},
        {"test3"},
        set(),
        set(),
        set(),
    ]


def available(*holders: MemoryHolder) -> AvailableMemory:
    return AvailableMemory(free_bytes=3 * GIB, returned_bytes=0, reserve_bytes=0, available_bytes=2 * GIB, holders=list(holders))


def plan(fits: bool, **options: Any) -> MemoryPlan:
    return MemoryPlan(changes=[], options=options, needed_bytes=5 * GIB, fits=fits, beside="")


@pytest.mark.parametrize(
    ("is_here", "fits", "fit_memory", "whole", "found", "batch", "said"),
    [
        (False, False, False, None, None, 2, ""),
        (True, True, True, None, None, 2, ""),
        (True, False, True, plan(True, per_device_train_batch_size=1), None, 1, ""),
        (True, False, True, plan(False), None, 0, "With every saving this training needs 5.00 GiB, and 2.00 GiB are available."),
        (True, False, False, plan(True), plan(True, per_device_train_batch_size=1), 1, ""),
        (
            True,
            False,
            False,
            plan(True, per_device_train_batch_size=1),
            plan(False),
            2,
            "it would train with per_device_train_batch_size=1",
        ),
        (
            True,
            False,
            False,
            plan(False),
            plan(False),
            2,
            "It may run out of memory: it needs 5.00 GiB, and 2.00 GiB are available. Choose",
        ),
    ],
)
def test_what_a_launch_changes_for_memory(
    monkeypatch: pytest.MonkeyPatch, is_here: bool, fits: bool, fit_memory: bool, whole: Any, found: Any, batch: int, said: str
) -> None:
    among: list[Any] = []

    def planned(asked: Any, unset: Any = None) -> Any:
        among.append(unset)
        return whole if unset is None else found

    monkeypatch.setattr(launch_memory.memory, "device_of", lambda config: "cpu")
    monkeypatch.setattr(launch_memory.memory, "model_config", lambda path: {})
    monkeypatch.setattr(launch_memory, "correction", lambda *_: (1.0, 0))
    monkeypatch.setattr(launch_memory.FitQuestion, "fits", lambda self: fits)
    monkeypatch.setattr(launch_memory.planning, "plan", planned)
    room: Any = SimpleNamespace(available=lambda device: available() if is_here else None)
    config = build({"per_device_train_batch_size": 2})
    key = "per_device_train_batch_size"

    def sized() -> Any:
        return launch_memory.sized(room, None, config, SimpleNamespace(path=""), [{"optim": "x"}, {"max_length": 1}], fit_memory)  # type: ignore[arg-type]

    if not batch:
        with pytest.raises(ConfigError) as refused:
            sized()
        assert refused.value.message == said
        return
    chosen = sized()
    assert getattr(chosen.config, key) == batch and said in " ".join(chosen.notices) and bool(chosen.notices) is bool(said)
    if not fit_memory and whole:
        assert among[1] == launch_memory.planning.FREE - {"optim", "max_length"}


def test_who_holds_most_of_what_nobody_gives_back() -> None:
    held = [
        MemoryHolder(name=name, bytes=size, is_given_back=back)
        for name, size, back in (("a", 9 * GIB, True), ("b", GIB, False), ("c", 2 * GIB, False))
    ]
    assert launch_memory._who(available(*held)) == " (c hold 2.00 GiB)" and launch_memory._who(available(held[0])) == ""
    assert launch_memory._who(available(MemoryHolder(name="d", bytes=0, is_given_back=False))) == ""


@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (1, 1, (1, 128)),
        (1, 128, (1, 128)),
        (2, 129, (2, 192)),
        (3, 192, (4, 192)),
        (4, 193, (4, 256)),
        (5, 385, (8, 512)),
        (16, 384, (16, 384)),
    ],
)
def test_the_smallest_block(rows: int, columns: int, shape: tuple[int, int]) -> None:
    assert shape_for(rows, columns) == shape and Shape(*shape).cells == shape[0] * shape[1]


def test_memory_of_blocks_is_as_large_as_the_largest_and_kept() -> None:
    full, bare = DynamicLayer(), DynamicLayer()
    full.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 3))
    arena = Arena([full, bare], torch.device("cpu"))
    assert (len(arena), arena.bytes, arena.bytes_of(10), arena.holds(Shape(1, 1))) == (2, 0, 10 * 2 * 7 * 4, False)
    arena.grow(32)
    arena.grow(8)
    assert arena.holds(Shape(4, 8)) and not arena.holds(Shape(4, 9)) and arena.bytes == 32 * 56
    keys, values = arena.layer(0, Shape(4, 8))
    assert keys is not None and values is not None and (keys.shape, values.shape) == ((4, 2, 8, 4), (4, 2, 8, 3))
    again, _ = arena.layer(0, Shape(2, 8))
    assert again is not None and again.data_ptr() == keys.data_ptr() and arena.layer(1, Shape(4, 8)) == (None, None)
    arena.grow(64)
    larger, _ = arena.layer(0, Shape(8, 8))
    assert larger is not None and larger.shape == (8, 2, 8, 4)
