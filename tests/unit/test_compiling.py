"""Whether Triton would find a C compiler."""

from __future__ import annotations

import pytest

from jobs.trainers.compiling import has_compiler


def test_a_compiler_is_one_on_the_path_or_named_by_cc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert not has_compiler()
    monkeypatch.setenv("CC", "/usr/bin/tcc")
    assert has_compiler()
