"""The bug report holds versions, checks, settings and the last errors, and no row, prompt or secret."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from studio.db.models import JobRow
from studio.services import Studio, bug_report
from studio.settings import Settings
from tests.servers import clean_environment

SECRETS = {
    "STUDIO_TOKEN": "token-of-the-studio",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOp",
    "OPENAI_API_KEY": "sk-abcdefghijklmnop",
    "STUDIO_ENGINE_KEY": "key-of-the-engine",
    "MY_PASSWORD": "open-sesame",
}
USERS, KEYS = "anna:annas-password,ben:bens-password", "https://host/v1=key-of-another-host"
ROW, PROMPT = "Grandmother's secret recipe", "Where did we bury the treasure"
LOG = f"""\
2026-11-29 10:00:00,123 INFO studio.web: {PROMPT}
2026-11-29 10:00:01,123 ERROR studio.web: The page could not be built.
Traceback (most recent call last):
  File "/somewhere/site-packages/studio/ui/page.py", line 12, in build
    use("{ROW}")
ValueError: bad text '{ROW}'
2026-11-29 10:00:02,456 jobs.worker ERROR The job failed: {PROMPT}
Traceback (most recent call last):
  File "/somewhere/site-packages/jobs/runner.py", line 7, in run
    import nowhere
ModuleNotFoundError: No module named 'nowhere'
{SECRETS["STUDIO_TOKEN"]} {SECRETS["HF_TOKEN"]}
2026-11-29 10:00:03,000 ERROR studio.api: {SECRETS["OPENAI_API_KEY"]} annas-password was refused
"""


def add_failed_job(settings: Settings) -> None:
    studio = Studio.open(settings)
    reasons = {
        "a": ("The memory of this machine is not enough for this job.", "out_of_memory"),
        "b": (f"Training ended with an error: ValueError: {ROW}.", ""),
        "c": (f"{PROMPT!r} has no answer.", "bad_row"),
    }
    with studio.db.write() as session:
        for number, (reason, cause) in reasons.items():
            session.add(
                JobRow(
                    id=number, kind="train", name=f"{ROW} {number}", status="FAILED", reason=reason, cause=cause, ended_at=1e9, notes=ROW
                )
            )
    studio.db.dispose()


def test_the_report_is_readable_and_holds_no_secret_and_no_row(settings: Settings, tmp_path: Path) -> None:
    add_failed_job(settings)
    (settings.logs / "web.log").write_text(LOG)
    file = tmp_path / "report.txt"
    environment = clean_environment(settings.home, **SECRETS, STUDIO_USERS=USERS, STUDIO_API_KEYS=KEYS)
    command = [sys.executable, "-m", "studio", "doctor", "--report", str(file), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert json.loads(done.stdout) == {"path": str(file), "bytes": len(text.encode())}
    for wanted in (
        "Adapter Studio 0.1.0",
        "transformers: ",
        "platform: Linux",
        "ok python: ",
        "ok page: ",
        "token: set",
        "users: 2 set",
        "api_keys: 1 set",
        "engine_key: set",
        "a (train, attempt 0)",
        "out_of_memory. The memory of this machine is not enough for this job.",
        "Training ended with an error (ValueError) …",
        "web.log: 2026-11-29 10:00:01 The page could not be built.",
        "web.log: ValueError at site-packages/studio/ui/page.py:12 in build",
        "web.log: ModuleNotFoundError: No module named 'nowhere' at somewhere/site-packages/jobs/runner.py:7 in run",
        "The job failed …",
    ):
        assert wanted in text, wanted
    for kept in (*SECRETS.values(), "annas-password", "bens-password", "key-of-another-host", ROW, PROMPT, "treasure", "recipe"):
        assert kept not in text, kept
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert again.returncode == 1 and "is there already" in again.stderr and file.read_text() == text


def test_every_setting_is_in_the_report(settings: Settings) -> None:
    assert set(bug_report.shown_settings(settings)) == {field.name for field in fields(Settings)}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://anna:pass@db.example:5432/studio?sslkey=x", "postgresql://db.example:5432"),
        ("http://key@10.0.0.1/v1?key=x", "http://10.0.0.1"),
        ("", "not set"),
    ],
)
def test_an_address_is_shown_without_what_it_may_hide(url: str, shown: str) -> None:
    assert bug_report._address(url) == shown


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("The disk is full.", "The disk is full."),
        ("Row 12: 'my text' is empty", "Row 12 …"),
        ("Training ended with an error: KeyError: 'my text'", "Training ended with an error (KeyError) …"),
        ("It answered {'a': 1}", "It answered …"),
    ],
)
def test_a_message_is_cut_where_it_could_quote(message: str, kept: str) -> None:
    assert bug_report.unquoted(message) == kept
