"""GGUF of tiny models of the families that people run, each read back: by transformers where it knows the family, by llama.cpp where
that is installed. What neither reads is written and says that it is not proved. STUDIO_ALL_FAMILIES=1 (make chaos) takes all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from studio.catalogue import gguf
from tests.tiny_families import FAMILIES

# transformers 5.23 has no reader for these; that it learns one must show here
UNREAD = {"mixtral", "gemma", "smollm3", "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe", "seed_oss"}
IS_ALL = os.environ.get("STUDIO_ALL_FAMILIES") == "1"
# by what is particular: norms of a head, offset norms with windows, fused projections, layer norms with biases, fused experts, no reader
CHOSEN = ("qwen3", "gemma3_wrapper", "phi3", "starcoder2", "qwen3_moe", "smollm3")
F16, BF16, Q8, LORA = (
    {"format": "gguf"},
    {"format": "gguf", "outtype": "bf16"},
    {"format": "gguf", "outtype": "q8_0"},
    {"format": "gguf-lora"},
)
K_QUANTS = [{"format": "gguf", "outtype": kind} for kind in ("q4_k_m", "q5_k_m", "q6_k")]
BORDER = 0.08  # 8 bits round random weights by about the 5 % that the proof allows
DOUBLED = {"format": "gguf", "doubled": 5}
Found = dict[str, dict[str, dict[str, Any]]]


def wanted() -> list[dict[str, Any]]:
    if not IS_ALL:
        more = {"gemma3_wrapper": [Q8, DOUBLED], "qwen3_moe": [DOUBLED], "phi3": [LORA]}
        return [{"family": family, "exports": [F16, *more.get(family, [])]} for family in CHOSEN]
    every = [F16, BF16, Q8, DOUBLED, *(K_QUANTS if gguf.has_quantizer() else [])]
    return [{"family": family, "exports": every if "moe" in family or family == "mixtral" else [*every, LORA]} for family in FAMILIES]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of every export: family -> name of the export -> its result."""
    cases = wanted()
    command = [sys.executable, "-m", "tests.tiny_families", str(tmp_path_factory.mktemp("families"))]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    return {case["family"]: dict(zip(map(name, case["exports"]), answers[case["family"]], strict=True)) for case in cases}


def name(export: dict[str, Any]) -> str:
    return "-".join(map(str, export.values()))


@pytest.mark.long
def test_every_family_is_written_and_proved_or_says_that_it_is_not(found: Found) -> None:
    """A wrong order of rotary rows, a norm without its offset, a swapped gate would each show as other logits."""
    outcomes: Counter[str] = Counter()
    wrong = {}
    for family, exports in found.items():
        for export, result in exports.items():
            verified = result.get("verified") or {"passed": "nothing written", "reason": result.get("failure")}
            can_be_read = export == "gguf-lora" or family not in UNREAD or gguf.has_quantizer()
            expected = None
            if can_be_read:
                expected = export != name(DOUBLED)
            outcomes[{True: "proved", None: "not proved", False: "failed"}.get(verified.get("passed"), "nothing written")] += 1
            if verified.get("passed") is not expected:
                wrong[family, export] = verified
    print(dict(outcomes))
    assert wrong == {}


@pytest.mark.long
def test_the_part_that_sees_is_left_out_by_name(found: Found) -> None:
    notes = found["gemma3_wrapper"]["gguf"]["verified"]["notes"]
    assert len(notes) == 1 and "Only the part of the model that reads text" in notes[0]
    assert "model.multi_modal_projector" in notes[0] and "model.vision_tower" in notes[0]


@pytest.mark.long
def test_what_no_reader_knows_says_why(found: Found) -> None:
    verified = found["smollm3"]["gguf"]["verified"]
    if gguf.has_quantizer():
        assert verified["passed"] and verified["reader"] == "llama.cpp"
        return
    assert verified.get("passed") is None and "identical" not in verified and verified["prompts"] == 6
    assert "smollm3 is not supported" in verified["reason"] and "adapter-studio[llama-cpp]" in verified["reason"]
    card = (Path(found["smollm3"]["gguf"]["path"]) / "README.md").read_text(encoding="utf-8")
    assert "Not proved: " in card and "adapter-studio[llama-cpp]" in card


@pytest.mark.long
def test_readers_are_named_and_limits_are_said(found: Found) -> None:
    verified = found["starcoder2"]["gguf"]["verified"]
    assert verified["reader"].startswith("transformers 5.") and verified["effect"] > 0.5
    (note,) = verified["notes"]
    assert "looks back 256 tokens" in note and "starcoder2" in note
    card = (Path(found["starcoder2"]["gguf"]["path"]) / "README.md").read_text(encoding="utf-8")
    assert f"## Limits\n\n- {note}" in card
    if gguf.has_quantizer():
        assert verified["readers"]["llama.cpp"]["passed"]


@pytest.mark.long
@pytest.mark.skipif(not (IS_ALL and gguf.has_quantizer()), reason="make chaos builds llama.cpp's quantizer")
def test_k_quants_are_their_16_bit_files_rounded(found: Found) -> None:
    for family, exports in found.items():
        errors = []
        for kind in ("q4_k_m", "q5_k_m", "q6_k"):
            verified = exports[f"gguf-{kind}"]["verified"]
            rounding = verified["rounding"]
            assert rounding["passed"] and rounding["tensors"][f"Q{kind[1]}_K"] >= 3, (family, kind, verified)
            assert "without an importance matrix" in " ".join(verified["notes"])
            errors.append(rounding["worst_error"])
        assert errors == sorted(errors, reverse=True) and 0.05 < errors[0] < 0.12, (family, errors)
