"""Models of several architectures: trained in 4 or in 16 bits, every target learned, and the same on a fresh base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving_stages import TOKENS

ROOT = Path(__file__).resolve().parents[2]
IN_BFLOAT16 = ("llama", "mamba")  # of those that answer together and of those that keep states
# dense layers in both precisions, one projection for all three, experts, a state space, a wrapper
CASES = [("llama", 4), ("llama", 16), ("gpt2", 16), ("mixtral", 4), ("mamba", 16), ("gemma3", 16)]


def spared(family: str) -> list[str]:
    """Stages that only `make chaos` asks of it, which tries every family in both precisions."""
    if family in IN_BFLOAT16:
        return []
    return ["answers_alike_in_16_bits"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """All of them in one process: one import of torch."""
    cases = json.dumps([{"family": family, "bits": bits, "without": spared(family)} for family, bits in CASES])
    command = [sys.executable, "-m", "tests.families", str(tmp_path_factory.mktemp("families"))]
    done = subprocess.run(command, input=cases, capture_output=True, text=True, cwd=ROOT, timeout=1700)
    assert done.returncode == 0, done.stderr[-2000:]
    return {(one["family"], one["bits"]): one for one in json.loads(done.stdout)}


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_a_family_trains_whole(outcomes: dict[tuple[str, int], dict[str, Any]], family: str, bits: int) -> None:
    # red when a class gets attention code that it lacks, experts or dense layers are lost, or an adapter loads as another
    found = outcomes[family, bits]
    assert (found["verdict"], found["faults"]) == ("whole", []), found


def test_answers_in_bfloat16_part_at_near_ties_only(outcomes: dict[tuple[str, int], dict[str, Any]]) -> None:
    # red when nothing is compared: two ways to answer, three prompts, with and without the adapter
    for family in IN_BFLOAT16:
        found = outcomes[family, 16]
        assert found["same_tokens"] + found["near_ties"] * TOKENS >= 12 * TOKENS, found


def test_what_stays_untrained_is_said(outcomes: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert outcomes["llama", 16]["share"] == 1
    assert any("routers" in notice for notice in outcomes["mixtral", 4]["notices"])
    assert any("state space" in notice for notice in outcomes["mamba", 16]["notices"])
    assert not any("left out from here on" in notice for one in outcomes.values() for notice in one["notices"])
