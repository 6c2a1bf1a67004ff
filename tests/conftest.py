"""Fixtures for every test: a fresh STUDIO_HOME, and the data made elsewhere (STUDIO_TEST_DATA)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# before anything imports torch or gradio: no network, no analytics, and one thread each for processes that run side by side
# (pytest -n): two of them with two threads each on two cores wait for each other at every step and take several times as long
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "adapter-studio-tests-hf")  # not the cache of who runs the tests
os.environ.pop("HF_HUB_CACHE", None)

import pytest

from studio import settings as studio_settings

TESTS = Path(__file__).parent
# the tests that a new release of transformers, trl, peft, bitsandbytes, gradio, llmlingua, datasets or gguf could break
CONTRACTS = (
    "unit/test_balanced.py",
    "unit/test_engine_decoding.py",
    "unit/test_engine_grammar.py",
    "unit/test_engine_kinds.py",
    "unit/test_gguf_carries.py",
    "unit/test_memory.py",
    "unit/test_packed.py",
    "unit/test_parity.py",
    "unit/test_rendering.py",
    "unit/test_ui_blocks.py",
    "integration/test_compress.py",
    "integration/test_data_hub.py",
    "integration/test_engine_server.py",
    "integration/test_exports.py",
    "integration/test_jobs_training.py",
    "integration/test_methods.py",
    "integration/test_web_files.py",
    "integration/test_web_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).as_posix() in CONTRACTS:
            item.add_marker(pytest.mark.contract)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> studio_settings.Settings:
    """Settings of a fresh studio; also what child processes of the test will read."""
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    for name in (
        "STUDIO_DB_URL",
        "STUDIO_HOST",
        "STUDIO_PORT",
        "STUDIO_TOKEN",
        "STUDIO_USERS",
        "STUDIO_ENGINE_URL",
        "STUDIO_ENGINE_KEY",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    loaded = studio_settings.load()
    loaded.make_folders()
    return loaded


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with `data/` and `models/` made elsewhere; tests that need it skip where it is absent."""
    path = studio_settings.load().test_data
    if not (path / "data").is_dir():
        message = f"No test data in {path}; set STUDIO_TEST_DATA to the folder that holds data/ and models/."
        if os.environ.get("STUDIO_REQUIRE_DATA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"
