"""The file for a bug report: what it says of errors, and that it holds nothing that a message may quote, nor a secret."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studio.db.models import JobRow
from studio.errors import StudioError
from studio.records import DoctorCheck
from studio.services import Studio, bug_report
from studio.settings import PACKAGE_ROOT, Settings
from tests.stores import add


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("The disk is full", "The disk is full"),
        ("two\n  lines", "two lines"),
        ("x" * 400, "x" * 300),
        ("Row 3: She said so", "Row 3 …"),
        ('The name "mine" is taken', "The name …"),
        ("It can't: ValueError: my row", "It can …"),
        ("The probe failed: ValueError: my row", "The probe failed (ValueError) …"),
        (": my row", "…"),
    ],
)
def test_a_message_is_cut_where_it_could_quote_a_row(message: str, kept: str) -> None:
    assert bug_report.unquoted(message) == kept


def test_tracebacks_become_the_error_and_its_place() -> None:
    lines = f"""
2026-01-02 03:04:05,678 ERROR studio.web: could not answer: my row
2026-01-02 03:04:06 12 ERROR it is broken
2026-01-02 03:04:07,678 WARNING studio.web: nothing of it
KeyError: before any place
Traceback (most recent call last):
  File "{PACKAGE_ROOT}/studio/web.py", line 7, in outer
  File "{PACKAGE_ROOT}/studio/db/session.py", line 40, in write
sqlite3.OperationalError: my row
ValueError: without a place
  File "/usr/lib/python3/site-packages/a/b/c/d.py", line 1, in f
ModuleNotFoundError: No module named 'x'
""".splitlines()
    assert list(bug_report._errors(lines)) == [
        "2026-01-02 03:04:05 could not answer …",
        "2026-01-02 03:04:06 it is broken",
        "OperationalError at studio/db/session.py:40 in write",
        "ModuleNotFoundError: No module named 'x' at a/b/c/d.py:1 in f",
    ]


def test_the_last_five_errors_of_each_log_are_shown(tmp_path: Path) -> None:
    line = "2026-01-02 03:04:05 ERROR a.b: number {} of them\n"
    (tmp_path / "b.log").write_text("".join(line.format(n) for n in range(7)))
    (tmp_path / "a.log").write_text("".join(line.format(n) for n in range(5)))
    (tmp_path / "other.txt").write_text(line)
    found = list(bug_report._log_errors(tmp_path))
    assert found[:5] == [f"a.log: 2026-01-02 03:04:05 number {n} of them" for n in range(5)]
    assert found[5:] == [*(f"b.log: 2026-01-02 03:04:05 number {n} of them" for n in range(2, 7)), "b.log: 2 earlier ones are left out"]
    (tmp_path / "long.log").write_text("x" * (bug_report.LOG_BYTES + 10))
    assert bug_report.LOG_BYTES == 262_144 and len(bug_report._end_of(tmp_path / "long.log")) == 262_144
    assert bug_report._end_of(tmp_path / "gone.log") == "" and bug_report._end_of(tmp_path / "other.txt") == line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", "not set"),
        ("sqlite:////home/x/studio.db", "sqlite:////home/x/studio.db"),
        ("https://me:secret@host:8443/v1?key=k", "https://host:8443"),
        ("https://host/v1", "https://host"),
    ],
)
def test_of_an_address_its_place_alone_is_shown(url: str, shown: str) -> None:
    assert bug_report._address(url) == shown


def test_secrets_are_blotted_out_wherever_they_stand(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "opensesame")
    monkeypatch.setenv("MY_KEY", "abc")
    held = replace(
        settings, token="tokentoken", engine_key="enginekey", users=(("me", "mypass"),), api_keys=(("n", "apikey99"),),
        engine_url="https://user77:pass77@host",
    )  # fmt: skip
    text = "tokentoken enginekey mypass apikey99 user77 pass77 opensesame hf_abcdefgh sk-12345678 postgres://u:p@host abc sk-1 "
    assert bug_report._without_secrets(text + str(Path.home()), held) == (
        "[secret] [secret] [secret] [secret] [secret] [secret] [secret] [secret] [secret] postgres://[secret]@host abc sk-1 ~"
    )
    shown = bug_report.shown_settings(held)
    assert {name: shown[name] for name in ("token", "users", "api_keys", "engine_url")} == {
        "token": "set", "users": "1 set", "api_keys": "1 set", "engine_url": "https://host",
    }  # fmt: skip
    assert bug_report.shown_settings(settings)["token"] == "not set"


def test_a_report_is_written_once_with_checks_versions_and_the_last_ten_failures(studio: Studio, tmp_path: Path) -> None:
    rows = [
        JobRow(kind="train", name=f"my name {n}", status="FAILED", ended_at=1000.0 + n, attempt=n, reason='Row 3: "mine"', cause="bad_row")
        for n in range(12)
    ]
    rows[11].cause = ""
    rows.append(JobRow(kind="train", name="well", status="SUCCEEDED", ended_at=9000.0))
    ids = add(studio, *rows)
    checks = [DoctorCheck(name="disk", ok=True, detail="9 GiB", fix=""), DoctorCheck(name="gpu", ok=False, detail="none", fix="Buy one.")]
    to = tmp_path / "report.txt"
    written = bug_report.write(studio.settings, studio.db, checks, to)
    text = to.read_text()
    assert written.bytes == len(text.encode()) and written.path == str(to)
    assert "\nok disk: 9 GiB\nNO gpu: none. Buy one.\n" in text and "\npython: 3." in text and "\ntorch: " in text
    assert "## Errors in the logs, the last 5 of each\n\nnone\n" in text
    assert [line.split()[0] for line in text.splitlines() if "(train, attempt" in line] == ids[11:1:-1], "the last ten, the latest first"
    assert f"{ids[11]} (train, attempt 11) 1970-01-01 00:16:51 UTC: no known cause. Row 3 …\n" in text and "mine" not in text
    assert f"{ids[10]} (train, attempt 10) 1970-01-01 00:16:50 UTC: bad_row. Row 3 …\n" in text and "my name" not in text
    with pytest.raises(StudioError, match="is there already"):
        bug_report.write(studio.settings, studio.db, checks, to)
    assert to.read_text() == text
