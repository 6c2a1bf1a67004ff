"""`make next` takes each pinned library to the end of its major version, and knows its contract tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import newest
from tests.conftest import CONTRACTS, TESTS


@pytest.mark.parametrize(
    ("requirement", "next_release"),
    [
        ("trl>=1.16,<1.17", "trl>=1.16,<2"),
        ("peft>=0.21,<0.22", "peft>=0.21,<1"),
        ("llmlingua==0.2.2", "llmlingua>=0.2.2,<1"),
        ("numpy>=2.0", "numpy>=2.0"),
        ("types-psutil", "types-psutil"),
    ],
)
def test_an_upper_bound_moves_to_the_next_major_version(requirement: str, next_release: str) -> None:
    assert newest.relaxed([requirement]) == [next_release]


def test_the_libraries_that_we_lean_on_are_pinned() -> None:
    names = {library.name for library in filter(None, map(newest.pinned, newest.requirements()))}
    assert {"transformers", "trl", "peft", "gradio", "bitsandbytes", "llmlingua", "torch"} <= names


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract_tests_are_there(name: str) -> None:
    assert (TESTS / Path(name)).is_file()
