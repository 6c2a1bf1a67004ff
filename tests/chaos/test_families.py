"""Every family that transformers knows: whole, refused in one line before anything runs, or a fault. `make chaos` prints the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 3600
MERGES = ("proved", "not proved", "refused")


@pytest.mark.skipif(os.environ.get("STUDIO_ALL_FAMILIES") != "1", reason="an hour: `make chaos` runs it")
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("bits", [4, 16])
def test_every_family_is_whole_or_refused(bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.families import names

    cases = json.dumps([{"family": family, "bits": bits} for family in names()])
    command = [sys.executable, "-m", "tests.families", str(tmp_path)]
    done = subprocess.run(command, input=cases, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    counts = Counter(one["verdict"] for one in found)
    faults = {one["family"]: one["faults"] for one in found if one["verdict"] == "fault"}
    with capsys.disabled():
        print(f"\n{bits} bits: whole {counts['whole']}, refused {counts['refused']}, anything else {counts['fault']}", end="")
        print(f" (of {counts['unbuilt']} more no small model can be made)")
        if bits == 16:
            same, ties = (sum(one[name] for one in found) for name in ("same_tokens", "near_ties"))
            print(f"  in bfloat16 {same} tokens as generate says them, and {ties} answers that part at a near-tie")
        merges = Counter(one["merge"].partition(":")[0] for one in found if one["verdict"] == "whole")
        print("  merged: " + ", ".join(f"{outcome} {merges[outcome]}" for outcome in MERGES))
        for one in found:
            if one["verdict"] == "whole" and one["merge"] != "proved":
                print(f"  merge of {one['family']}: {one['merge']}")
            if one["verdict"] != "whole":
                print(f"  {one['verdict']} {one['family']}: {one['refused'] or one['unbuilt'] or one['faults']}")
            elif one["without_tokens"]:
                print(f"  whole {one['family']}, but for experts without tokens: {', '.join(one['without_tokens'])}")
    assert not faults
    assert merges.keys() <= set(MERGES), merges
    assert counts["whole"] >= 120, counts
