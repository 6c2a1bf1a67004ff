"""What a launch changes so that its training fits the memory that there is, and what it says of it. Starts nothing; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs import config as job_config
from jobs.config import JobConfig
from studio.catalogue import memory
from studio.catalogue.models import ModelRef
from studio.db.session import Database
from studio.errors import ConfigError
from studio.records import AvailableMemory, MemoryPlan
from studio.services import planning
from studio.services.chosen_options import ChosenOptions
from studio.services.measured_memory import correction
from studio.services.planning import GIB, FitQuestion, sentence
from studio.services.room import Room


def sized(
    room: Room, db: Database, config: JobConfig, model: ModelRef, given: Sequence[Mapping[str, Any]], fit_memory: bool
) -> ChosenOptions:
    """`config` as it is launched. With `fit_memory` a plan may change what was chosen; else only what nobody has set (`given`).

    Raises ConfigError where a plan was asked for and none fits.
    """
    device = memory.device_of(config)
    here = room.available(device)
    if here is None:
        return ChosenOptions(config)
    shape = memory.model_config(model.path)
    factor, _ = correction(db, shape, config, device)
    asked = FitQuestion(shape, config, device, here.available_bytes, factor)
    if asked.fits():
        return ChosenOptions(config)
    whole = planning.plan(asked)
    assert whole is not None
    if fit_memory:
        if not whole.fits:
            raise ConfigError(f"With every saving this training needs {_short(whole.needed_bytes, here)}.", _remedy(here))
        return _with(asked, whole)
    unset = planning.FREE - {key for layer in given for key in layer}
    found = planning.plan(asked, unset)
    assert found is not None
    chosen = _with(asked, found)
    if found.fits:
        return chosen
    if whole.fits:
        changes = ", ".join(f"{key}={planning.text(value)}" for key, value in whole.options.items())
        help_ = f"Launched with --fit-memory it would train with {changes}."
    else:
        help_ = _remedy(here)
    return ChosenOptions(
        chosen.config, (*chosen.notices, f"It may run out of memory: it needs {_short(found.needed_bytes, here)}. {help_}")
    )


def _with(asked: FitQuestion, found: MemoryPlan) -> ChosenOptions:
    config = job_config.build(asked.job.model_dump(mode="json"), found.options)
    notices = [*map(sentence, found.changes), *filter(None, [found.beside])]
    return ChosenOptions(config, tuple(notices))


def _short(needed: int, here: AvailableMemory) -> str:
    return f"{needed / GIB:.2f} GiB, and {here.available_bytes / GIB:.2f} GiB are available{_who(here)}"


def _who(here: AvailableMemory) -> str:
    """Who holds most of what nobody gives back."""
    others = [one for one in here.holders if not one.is_given_back and one.bytes]
    if not others:
        return ""
    most = max(others, key=lambda one: one.bytes)
    return f" ({most.name} hold {most.bytes / GIB:.2f} GiB)"


def _remedy(here: AvailableMemory) -> str:
    return "Choose a smaller base model or keep it in 4 bits, or end what else holds memory."
