"""What strangers write is shown at a terminal and not obeyed; elsewhere, and as JSON, it stays the same value."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from studio import terminals
from tests.runs import STARTER
from tests.servers import clean_environment

HOSTILE = "\x1b]0;renamed\x07\x9b2J\u202eevil\u2066\ufeff\U000e0041\x7f\r\x08\u2028"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminals.guard()
    terminals.guard()
    print("é東🙂\u200d\t|", HOSTILE)
    print(HOSTILE, file=sys.stderr)
    assert out.getvalue() == ("é東🙂\u200d\t| \\x1b]0;renamed\\x07\\x9b2J\\u202eevil\\u2066\\ufeff\\U000e0041\\x7f\\x0d\\x08\\u2028\n")
    assert err.getvalue() == HOSTILE + "\n", "a file gets what there is"
    monkeypatch.setattr(sys, "stderr", Terminal())
    terminals.guard()
    terminals.redraw(f"half {HOSTILE[0]}", is_last=True)
    assert sys.stderr.getvalue() == "\rhalf \\x1b\x1b[K\n"  # type: ignore[attr-defined]


def test_json_stays_the_same_value() -> None:
    text = terminals.escaped(json.dumps({"a": HOSTILE}, ensure_ascii=False))
    assert json.loads(text) == {"a": HOSTILE} and not terminals.CONTROLS.search(text)


def test_a_command_at_a_terminal(tmp_path: Path) -> None:
    """The whole program, at a terminal of its own: a folder and an error with hostile names."""
    folder = tmp_path / "m\x1b[2J\u202e"
    folder.mkdir()
    (folder / "config.json").write_bytes((STARTER / "config.json").read_bytes())
    for options in ([], ["--json"]):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "studio", "models", "add", str(folder), *options]
        done = subprocess.run(command, stdout=theirs, stderr=theirs, env=clean_environment(tmp_path / "home"), timeout=120)
        os.close(theirs)
        printed = os.read(ours, 65536).decode()
        os.close(ours)
        assert (done.returncode == 1 and "\\x1b[2J\\u202e" in printed) or "\\u001b[2J\\u202e" in printed
        assert not terminals.CONTROLS.search(printed.replace("\r\n", "\n")), repr(printed)
