"""No process gets a secret that it does not work with, whatever the secret is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest

from jobs import executor
from studio import processes, supervisor
from studio import settings as studio_settings
from studio.children import ChildProcess
from studio.settings import Settings

CANARY = "canary-0123456789"
FORMS = (CANARY, f"https://host.example/v1={CANARY}", f"somebody:{CANARY}", f"postgresql://somebody:{CANARY}@host/db")
# of other programs, which a person may keep in the same environment; their names say what they are
OTHERS = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "OAUTH_CLIENT_SECRET", "GITHUB_TOKEN", "DB_PASSWORD", "ACME_APIKEY", "SMTP_PASS")
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HTTPS_PROXY": "http://me:word@proxy:1",
    "KEYBOARD": "us",
    "PWD": "/",
}


class Watched(dict[str, str]):
    """An environment that notes what is asked of it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


@pytest.fixture
def of_settings() -> dict[str, str]:
    """Variable -> a value with a canary, for every setting that may hold a secret: found by reading them, not listed here."""
    watched = Watched()
    studio_settings.load(watched)
    found = {}
    for name in sorted(watched.asked):
        for form in FORMS:
            try:
                loaded = studio_settings.load({name: form})
            except ValueError:
                continue
            if CANARY in str(vars(loaded)):
                if CANARY not in repr(loaded):
                    found[name] = form
                break
    return found


@pytest.fixture
def secrets(of_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    every = {**of_settings, **dict.fromkeys((*OTHERS, *processes.HUB_TOKENS[:3], "WANDB_API_KEY"), CANARY)}
    for name, value in {**every, **HARMLESS}.items():
        monkeypatch.setenv(name, value)
    return every


def told(environment: dict[str, str]) -> set[str]:
    return {name for name, value in environment.items() if CANARY in value}


@contextmanager
def started(settings: Settings, name: str) -> Iterator[psutil.Process]:
    """A child of the supervisor, as it would start one; what runs in it waits for a command."""
    child = ChildProcess(name, ["pdb"], supervisor.environment(settings, name), settings.logs)
    child.start()
    try:
        yield psutil.Process(child.pid)
    finally:
        assert child._process is not None
        child._process.kill()
        child.close()


def test_the_settings_that_hold_secrets_are_found(of_settings: dict[str, str]) -> None:
    assert {"STUDIO_TOKEN", "STUDIO_USERS", "STUDIO_API_KEYS", "STUDIO_ENGINE_KEY", "STUDIO_DB_URL"} <= set(of_settings)
    assert not {"STUDIO_HOME", "STUDIO_HOST", "STUDIO_PORT"} & set(of_settings)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("engine", {"STUDIO_ENGINE_KEY"}),
        ("worker-gpu", {"STUDIO_ENGINE_KEY", "STUDIO_API_KEYS", "STUDIO_DB_URL", "WANDB_API_KEY"}),
        ("worker-light", {"STUDIO_ENGINE_KEY", "STUDIO_API_KEYS", "STUDIO_DB_URL"}),
        ("web", None),
    ],
)
def test_a_child_gets_what_it_works_with(settings: Settings, secrets: dict[str, str], name: str, needed: set[str] | None) -> None:
    given = {key: value for key, value in os.environ.items() if key in secrets and key.startswith("STUDIO_")}
    loaded = replace(studio_settings.load({**given, "STUDIO_HOME": str(settings.home)}), engine_key=CANARY, token=CANARY)
    with started(loaded, name) as process:
        seen = process.environ()  # as /proc shows it to whoever may look
    if needed is None:  # the page: everything of the studio and of the hub, and nothing of other programs
        needed = set(secrets) - set(OTHERS) - {"WANDB_API_KEY"}
    assert told(seen) == needed and set(HARMLESS) - {"PWD"} <= set(seen)


def test_a_training_gets_the_keys_of_its_loggers_and_an_export_none(secrets: dict[str, str]) -> None:
    assert told(executor.trainer_environment(1)) == {"WANDB_API_KEY"}
    assert told(executor.trainer_environment(1, for_loggers=False)) == set() == told(processes.child_environment())
    assert told(processes.child_environment(for_hub=True)) == set(processes.HUB_TOKENS[:3])


def test_what_is_no_secret_reaches_every_child(secrets: dict[str, str]) -> None:
    assert set(HARMLESS) <= set(processes.child_environment())
