"""Children that talk to a hub: how long their rows are waited for and kept, and what an upload says of a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from studio.catalogue import upload
from studio.errors import DatasetError, ModelError
from studio.services import hub_rows
from studio.services.hub_rows import KEPT_S, SILENCE_S, HubRows


class Child:
    """Writes a byte at some of its waits, and ends after the last."""

    def __init__(self, path: Path, clock: list[float], writes: list[bool], step_s: float) -> None:
        self.path, self.clock, self.writes, self.step_s = path, clock, list(writes), step_s
        self.code: int | None = None
        self.is_killed = False

    def wait(self, timeout: float | None = None) -> int:
        if self.is_killed or not self.writes:
            self.code = -9 * self.is_killed
            return self.code
        if self.writes.pop(0):
            with self.path.open("ab") as file:
                file.write(b"x")
        self.clock[0] += self.step_s
        raise subprocess.TimeoutExpired("", 0)

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.is_killed = True


@pytest.mark.parametrize(
    ("writes", "step_s", "code"),
    [
        ([True, True, False, True], SILENCE_S, 0),  # never silent for longer
        ([True, False, False, True], SILENCE_S, None),
        ([False, False], SILENCE_S + 1, None),
        ([], 1.0, 0),
    ],
)
def test_a_hub_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: list[bool], step_s: float, code: int | None
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    child: Any = Child(tmp_path / "rows", now, writes, step_s)
    assert hub_rows._watch(child, tmp_path / "rows") == code
    assert child.is_killed is (code is None)


@pytest.mark.parametrize(
    ("source", "is_hub", "name"),
    [("hub:a/b:c:d", True, "b.jsonl"), ("hub:a", True, "a.jsonl"), ("a.csv", False, ""), (b"hub:a", False, ""), (None, False, "")],
)
def test_what_names_a_dataset_of_the_hub(source: Any, is_hub: bool, name: str) -> None:
    assert hub_rows.is_hub(source) is is_hub
    if is_hub:
        assert hub_rows.file_name(source) == name


def test_rows_are_fetched_once_for_a_look_and_for_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def start(command: list[str], cwd: Path, stderr: Any, **_: Any) -> Any:
        asked.append(command[-4:-1])
        if command[-4] == "gone":
            stderr.write(b"first\n" + b"z" * 400 + b"\n")
        else:
            Path(command[-1]).write_text("row")
        return SimpleNamespace(wait=lambda timeout=None: int(command[-4] == "gone"), poll=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", start)
    rows = HubRows(tmp_path)
    for _ in range(2):
        with rows.to_look_at("hub:a/b:c") as path:
            assert path.read_text() == "row"
    assert asked == [["a/b", "c", ""]]
    with rows.to_keep("hub:a/b:c") as path:
        assert path.read_text() == "row"
    assert len(asked) == 1 and list(tmp_path.iterdir()) == []
    with rows.to_keep("hub:a:b:c") as path:
        assert path.read_text() == "row"
    assert asked[1:] == [["a", "b", "c"]] and list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError) as refused, rows.to_look_at("hub:gone"):
        pass
    assert refused.value.message == f"hub:gone could not be read: {'z' * 300}."
    with pytest.raises(DatasetError, match="names no hub dataset"), rows.to_keep("hub:../etc"):
        pass


def test_rows_that_were_looked_at_are_kept_for_an_hour(tmp_path: Path, clock: Any) -> None:
    for name, age_s in (("hub-new", KEPT_S), ("hub-old", KEPT_S + 1), ("other", KEPT_S + 1)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (clock.now - age_s, clock.now - age_s))
    HubRows(tmp_path)._forget_old()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["hub-new", "other"]


def refusal(status: int | None) -> HfHubHTTPError:
    found = HfHubHTTPError.__new__(HfHubHTTPError)
    found.response = status and SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (refusal(401), "The hub does not let this token write to me/one."),
        (refusal(403), "The hub does not let this token write to me/one."),
        (refusal(500), "The hub can't be reached, so me/one was not written (HfHubHTTPError)."),
        (refusal(None), "The hub can't be reached, so me/one was not written (HfHubHTTPError)."),
        (OfflineModeIsEnabled(), "The hub can't be reached, so me/one was not written (OfflineModeIsEnabled)."),
        (HFValidationError(), "'me/one' is no name for the hub."),
    ],
)
def test_a_refused_upload_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str) -> None:
    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> str:
            raise raised

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(ModelError) as refused:
        upload.upload(tmp_path, "me/one", True)
    assert refused.value.message == said and "\n" not in refused.value.fix


@pytest.mark.parametrize(("token", "visibility", "is_private"), [("t", "private", True), ("t", "public", False), ("", "public", None)])
def test_nothing_is_sent_without_a_token(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
    visibility: str,
    is_private: bool | None,
) -> None:
    asked: list[Any] = []

    def send(folder: Path, repository: str, private: bool) -> str:
        asked.append((folder, repository, private))
        return "https://hub/me/one"

    monkeypatch.setattr(upload, "upload", send)
    monkeypatch.setattr(upload.lifeline, "end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["upload", str(tmp_path), "me/one", visibility])
    monkeypatch.setenv("HF_TOKEN", token)
    upload.main()
    answer = json.loads(capsys.readouterr().out)
    if token:
        assert answer == {"error": None, "url": "https://hub/me/one"} and asked == [(tmp_path, "me/one", is_private)]
    else:
        assert answer["error"]["message"] == "There is no token for the hub." and not asked
