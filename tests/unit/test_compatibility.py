"""What goes together: the rules are sound, a refusal names the change that mends it, and the change does."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from jobs import config
from studio.catalogue.compatibility import Cell, Conflict, conflicts, table
from studio.services.script_text import Script, text

CELLS = list(table("cpu"))
SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 172,
    "max_position_embeddings": 512, "num_hidden_layers": 5, "vocab_size": 512,
}  # fmt: skip
OLD = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 512}
BAD = {
    "learning_rate=0.5": {"learning_rate": 0.5},
    "max_length beyond the context": {"max_length": 4096},
    "rank above the layer": {"max_length": 64, "lora.r": 128},
    "virtual tokens beyond the context": {"max_length": 64, "method": "prompt-tuning", "prompt.num_virtual_tokens": 400},
    "two precisions": {"max_length": 64, "quantization.load_in_4bit": True, "quantization.load_in_8bit": True},
    "weights of the losses": {"max_length": 64, "objective": "dpo", "dpo.loss_type": ["sigmoid", "sft"], "dpo.loss_weights": [1.0]},
    "no liger here": {"max_length": 64, "use_liger_kernel": True},
    "flash attention on a CPU": {"max_length": 64, "attn_implementation": "flash_attention_2"},
    "packed pairs": {"max_length": 64, "objective": "dpo", "packing": True},
    "KTO in batches of one": {"max_length": 64, "objective": "kto", "per_device_train_batch_size": 1},
}


def mended(options: dict[str, object], device: str = "cpu") -> list[str]:
    """What is left once every named change has been made."""
    for _ in range(4):
        found = conflicts(config.build(options), device, SMALL)
        if not found:
            return []
        for one in found:
            assert one.change, one.because
            options = {**options, **one.change}
    return [str(one) for one in found]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused_and_the_named_change_mends_it(name: str) -> None:
    found = conflicts(config.build(BAD[name]), "cpu", SMALL)
    assert found and all("\n" not in str(one) and str(one).endswith(".") for one in found)
    assert mended(BAD[name]) == []


def test_other_families_have_limits_under_names_of_their_own() -> None:
    said = " ".join(str(one) for one in conflicts(config.build({"max_length": 1024, "lora.r": 128}), "cpu", OLD))
    assert "Set max_length=256." in said and "Set lora.r=64." in said


@pytest.mark.parametrize(
    ("because", "sentence"),
    [
        ("lora.r 128 is above the layer", "lora.r 128 is above the layer."),
        ("max_length=4096 is too much", "max_length=4096 is too much."),
        ("max_length is too much", "max_length is too much."),
        ("pairs can't be packed, see lora.r", "Pairs can't be packed, see lora.r."),
    ],
)
def test_a_reason_begins_with_a_capital_but_an_option_keeps_its_name(because: str, sentence: str) -> None:
    assert Conflict(because, {}).sentence == sentence


def test_every_reason_is_told_at_once() -> None:
    options = {"learning_rate": 0.5, "max_length": 4096, "lora.r": 128, "objective": "dpo", "packing": True}
    assert len(conflicts(config.build(options), "cpu", SMALL)) == 4


@pytest.mark.parametrize(
    ("precision", "options", "because"),
    [
        ("4", {"method": "full"}, "weights of 4 bits can't be trained, only adapters beside them"),
        ("8", {"method": "full"}, "weights of 8 bits can't be trained, only adapters beside them"),
        ("4", {"lora.init_lora_weights": "pissa"}, "PiSSA starts by splitting the base's weights, which 4-bit weights don't allow"),
        ("8", {"lora.init_lora_weights": "pissa"}, "PiSSA starts by splitting the base's weights, which 8-bit weights don't allow"),
        ("4", {"lora.use_dora": True}, ""),
        ("8", {"lora.use_dora": True}, "DoRA reads the length of each row of weights, which peft can't read from 8-bit weights"),
        ("4", {}, ""),
        ("8", {}, ""),
    ],
)
def test_methods_that_need_the_bases_own_weights_refuse_a_quantised_base(precision: str, options: dict[str, object], because: str) -> None:
    found = conflicts(config.build({**options, f"quantization.load_in_{precision}bit": True}), "cuda")
    assert [one.because for one in found] == [because][: bool(because)]
    assert not conflicts(config.build(options), "cuda")


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.verdict != "ok"], ids=str)
def test_every_cell_that_is_not_ok_says_why_and_can_be_mended(cell: Cell) -> None:
    assert cell.because and cell.fix
    assert mended({**cell.options, "max_length": 64}) == []


def test_the_table_offers_most_and_refuses_what_is_known_to_fail_silently() -> None:
    verdicts = {(c.method, c.precision, c.gradient_checkpointing, c.objective): c.verdict for c in CELLS}
    assert Counter(verdicts.values())["ok"] > 200
    assert verdicts["PiSSA", "4-bit", False, "sft"] == "refused"
    assert verdicts["PiSSA", "16-bit", False, "dpo"] == "refused"  # its reference would not be the base
    assert verdicts["prefix tuning", "16-bit", True, "sft"] == "needs"
    assert verdicts["full", "4-bit", False, "sft"] == "refused"
    assert verdicts["LoRA", "4-bit", True, "dpo"] == "ok"


def test_a_bare_script_is_python_for_every_cell() -> None:
    for cell in CELLS:
        ast.parse(text(Script("first", "first", config.build(dict(cell.options)), "<pad>")))
