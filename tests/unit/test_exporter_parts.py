"""What an export states beside its weights: keys of GGUF, positions, the room it takes, cards, and what its readers add up to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch

from jobs.exporters import cards, folders, gguf_file, gguf_keys, gguf_reader, gguf_rope, gguf_tensors, models, proof, rounding, verification
from jobs.exporters.config import ExportConfig
from studio.catalogue.gguf import FAMILIES
from studio.datasets.rendering import Renderer
from studio.errors import ModelError
from studio.records import ExportFormat, ExportProof, Outtype, RoundingProof
from tests.runs import STARTER

SHAPE = {
    "max_position_embeddings": 300, "hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 160, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 517, "rms_norm_eps": 1e-5, "rope_theta": 5000.0,
}  # fmt: skip


def stated(path: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The keys that a file of this model states, without the family's name before them."""
    family = FAMILIES[name]
    writer = gguf.GGUFWriter(path / "a.gguf", family.name)
    gguf_keys.add_shape(writer, family, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = gguf.GGUFReader(path / "a.gguf").fields
    return {key.removeprefix(f"{family.name}."): field.contents() for key, field in fields.items() if key.startswith(f"{family.name}.")}


def test_sizes_are_stated_in_llama_cpps_words(tmp_path: Path) -> None:
    found = stated(tmp_path, "LlamaForCausalLM", SHAPE)
    assert found.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert found == {
        "context_length": 300, "embedding_length": 96, "block_count": 3, "feed_forward_length": 160, "attention.head_count": 6,
        "attention.head_count_kv": 2, "vocab_size": 517, "attention.key_length": 16, "attention.value_length": 16,
        "rope.dimension_count": 16, "rope.freq_base": 5000.0,
    }  # fmt: skip
    alike = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
    assert stated(tmp_path, "LlamaForCausalLM", {**alike, "head_dim": 20})["attention.head_count_kv"] == 6
    assert stated(tmp_path, "LlamaForCausalLM", {**SHAPE, "head_dim": 20})["attention.key_length"] == 20


def test_a_family_states_what_it_computes_with(tmp_path: Path) -> None:
    moe = {**SHAPE, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
    found = stated(tmp_path, "Qwen3MoeForCausalLM", moe)
    assert (found["expert_count"], found["expert_used_count"], found["expert_feed_forward_length"]) == (8, 3, 48)
    assert "expert_shared_feed_forward_length" not in found and "expert_count" not in stated(tmp_path, "Qwen3ForCausalLM", SHAPE)
    mixtral = stated(tmp_path, "MixtralForCausalLM", {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2})
    assert (mixtral["expert_count"], mixtral["expert_used_count"]) == (4, 2)
    granite = {"attention_multiplier": 0.5, "embedding_multiplier": 12.0, "residual_multiplier": 0.25, "logits_scaling": 8.0}
    found = stated(tmp_path, "GraniteForCausalLM", {**SHAPE, **granite})
    scales = {key: value for key, value in found.items() if "scale" in key}
    assert scales == {"attention.scale": 0.5, "embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 8.0}
    capped = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 16}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    gemma = stated(tmp_path, "Gemma2ForCausalLM", {**SHAPE, **capped, "sliding_window": 64, "layer_types": kinds})
    assert (gemma["attn_logit_softcapping"], gemma["final_logit_softcapping"]) == (50.0, 30.0)
    assert gemma["attention.sliding_window"] == 64
    assert "attention.sliding_window" not in stated(tmp_path, "Qwen3ForCausalLM", {**SHAPE, "sliding_window": 64, "layer_types": kinds})
    olmo = {key: value for key, value in SHAPE.items() if key != "rms_norm_eps"}
    found = stated(tmp_path, "OlmoForCausalLM", {**olmo, "clip_qkv": 7.0})
    assert found["attention.layer_norm_epsilon"] == pytest.approx(1e-5) and found["attention.clamp_kqv"] == 7.0
    starcoder = stated(tmp_path, "Starcoder2ForCausalLM", {**olmo, "norm_epsilon": 1e-6})
    assert starcoder["attention.layer_norm_epsilon"] == pytest.approx(1e-6)


ORIGINAL = "original_max_position_embeddings"


@pytest.mark.parametrize(
    ("scaling", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"scaling.type": "linear", "scaling.factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 75},
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 75},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 75, "beta_fast": 16.0, "beta_slow": 1.0, "attention_factor": 1.0},
            {
                "scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 75, "scaling.yarn_beta_fast": 16.0,
                "scaling.attn_factor": pytest.approx(1 / (0.1 * math.log(4) + 1)),
            },
        ),
    ],
)  # fmt: skip
def test_scaled_positions_are_stated_and_read_back(tmp_path: Path, scaling: dict[str, Any], keys: dict[str, Any]) -> None:
    config = {**SHAPE, "rope_parameters": {"rope_theta": 5000.0, **scaling}}
    found = stated(tmp_path, "LlamaForCausalLM", config)
    assert {key.removeprefix("rope."): value for key, value in found.items() if key.startswith("rope.scaling")} == keys
    own = SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 1.0, "factor": 9.0})
    gguf_rope.read_back(gguf.GGUFReader(tmp_path / "a.gguf"), own)
    expected = {"attention_factor": 0.1 * math.log(4) + 1} if scaling["rope_type"] == "yarn" else {}  # Peng et al. 2023
    assert own.rope_parameters == {"rope_theta": 5000.0, **{k: pytest.approx(v) if k != "rope_type" else v for k, v in (expected | scaling).items()
        if (k, v) != ("beta_slow", 1.0)}}  # fmt: skip


def test_llama_3s_positions_are_divisors_by_wave_length() -> None:
    """As Llama 3.1's code has it: short waves stay, long ones are stretched by the factor, those between by a part of it."""
    values = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 8192}
    config = {**SHAPE, "head_dim": 128, "rope_parameters": values}
    (found,) = gguf_rope.tensors(config).values()
    assert list(gguf_rope.tensors(config)) == ["rope_freqs.weight"] and found.dtype == np.float32 and found.shape == (64,)
    for number, divisor in enumerate(found):
        wave = 2 * math.pi * 500000.0 ** (2 * number / 128)
        if wave < 8192 / 4:
            expected = 1.0
        elif wave > 8192 / 1:
            expected = 8.0
        else:
            part = (8192 / wave - 1) / (4 - 1)
            expected = 1 / ((1 - part) / 8 + part)
        assert divisor == pytest.approx(expected, rel=1e-5)
    assert set(found.tolist()) >= {1.0, 8.0} and any(1.01 < one < 7.99 for one in found)
    assert gguf_rope.tensors(SHAPE) == {}


def test_longrope_scales_attention_as_its_paper_says() -> None:
    """Ding et al. 2024: the root of 1 + ln s / ln L."""
    values = {"factor": 4.0, ORIGINAL: 4096}
    assert gguf_rope._longrope_attention(values) == pytest.approx(math.sqrt(1 + math.log(4) / math.log(4096)))
    assert gguf_rope._longrope_attention({**values, "factor": 0.5}) == 1.0
    assert gguf_rope._longrope_attention({**values, "attention_factor": 1.7}) == 1.7


def test_types_of_tensors_follow_their_form() -> None:
    kinds = gguf.GGMLQuantizationType
    for outtype, kind in (("f16", kinds.F16), ("bf16", kinds.BF16), ("q8_0", kinds.Q8_0)):
        assert gguf_tensors.stored_kind("blk.0.attn_q.weight", (32, 64), outtype, set()) is kind
        for name, shape in (("blk.0.attn_q.bias", (32,)), ("blk.0.attn_norm.weight", (2, 32))):
            assert gguf_tensors.stored_kind(name, shape, outtype, set()) is kinds.F32
    largest = np.full((1, 32), 65504.0, np.float32)
    assert gguf_file._stored("w", largest, kinds.F16).dtype == np.float16
    with pytest.raises(ModelError, match="too large for float16"):
        gguf_file._stored("w", largest * 1.001, kinds.F16)
    assert gguf_file._stored("w", largest * 2, kinds.F32)[0, 0] == 131008.0
    assert gguf_file._stored("w", largest * 2, kinds.Q8_0).shape == (1, 34)  # 32 weights in a byte each, with a scale of two


def test_figures_that_differ_from_the_base_are_named() -> None:
    def config(**values: Any) -> Any:
        return SimpleNamespace(model_type="llama", **values)

    own = config(hidden_size=96, rms_norm_eps=1e-5, vocab_size=10, num_attention_heads=None, num_key_value_heads="2")
    assert list(gguf_reader._differences(config(hidden_size=96, rms_norm_eps=1.0000005e-5, vocab_size=12), own)) == []
    other = config(hidden_size=97, rms_norm_eps=1.00001e-5, vocab_size=10, num_attention_heads=4, num_key_value_heads=3)
    assert list(gguf_reader._differences(other, own)) == ["hidden_size 97 for 96", "rms_norm_eps 1.00001e-05 for 1e-05"]


# memory and precision


@pytest.mark.parametrize(
    ("free_gpu", "free_cpu", "place"),
    [
        (None, 481, ("cpu", torch.float32)),
        (None, 480, ("cpu", torch.float16)),  # 100 weights of 4 bytes, and a fifth more to compute with
        (None, 241, ("cpu", torch.float16)),
        (None, 240, None),
        (481, 481, ("cuda", torch.float32)),
        (480, 481, ("cpu", torch.float32)),
        (241, 480, ("cuda", torch.float16)),
    ],
)
def test_a_base_is_loaded_where_it_fits_in_32_bits_before_16(
    monkeypatch: pytest.MonkeyPatch, free_gpu: int | None, free_cpu: int, place: tuple[str, torch.dtype] | None
) -> None:
    monkeypatch.setattr(models, "count_parameters", lambda folder: 100)
    monkeypatch.setattr(models.hardware, "memory", lambda: SimpleNamespace(free_bytes=free_cpu))
    monkeypatch.setattr(models, "half", lambda folder: torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: free_gpu is not None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gpu, 10**12))
    if place is None:
        with pytest.raises(ModelError, match=r"needs 0\.0 GiB"):
            models._place(STARTER)
        return
    assert models._place(STARTER) == (torch.device(place[0]), place[1])


def test_a_base_that_fits_nowhere_is_told_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "count_parameters", lambda folder: 5 * 2**30)
    monkeypatch.setattr(models.hardware, "memory", lambda: SimpleNamespace(free_bytes=7 * 2**30))
    with pytest.raises(ModelError, match=r"needs 12\.0 GiB in 16 bit .* and 7\.0 GiB are free"):
        models._place(STARTER)


def test_the_16_bit_type_is_the_one_of_most_matrices(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    assert models.half(STARTER) in (torch.float16, torch.bfloat16)
    tensors = {"a": torch.zeros(2, 2, dtype=torch.bfloat16), "b": torch.zeros(2, 2, dtype=torch.bfloat16), "c": torch.zeros(2, 2)}
    norms = {f"n{number}": torch.zeros(2) for number in range(9)}
    save_file({**tensors, **norms}, tmp_path / "model.safetensors")
    assert models.half(tmp_path) == torch.bfloat16
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert models.half(tmp_path) == torch.float16


# what readers say


def config(format: str = "gguf", outtype: str = "f16") -> ExportConfig:
    return ExportConfig(
        adapter="mine", adapter_path="/none", base_model="base", base_path="/none", format=ExportFormat(format), outtype=Outtype(outtype),
        to="/none",
    )  # fmt: skip


def said(passed: bool | None, reason: str = "", **values: Any) -> ExportProof:
    figures = {"identical": 7, "worst_share": 0.01, "same_template_ids": True, **values}
    return ExportProof(prompts=8, passed=passed, reason=reason, reader="llama.cpp", **figures)


ROUNDED = RoundingProof(tensors={"Q4_K": 9}, worst_error=0.1, worst_tensor="a", importance=9, passed=True, reason="")
WRONG = ROUNDED.model_copy(update={"passed": False, "reason": "a is off."})


@pytest.mark.parametrize(
    ("sixteen", "rounding", "own", "passed", "reason"),
    [
        (said(True), ROUNDED, said(True), True, ""),
        (said(True), ROUNDED, said(False, "Tokens differ."), True, ""),  # so few bits may
        (said(False, "Off."), ROUNDED, said(True), False, "Before rounding: Off."),
        (said(True), WRONG, said(True), False, "Rounding: a is off."),
        (said(True), ROUNDED, said(False, "Cut otherwise.", same_template_ids=False), False, "Cut otherwise."),
        (said(True), ROUNDED, said(False, "It does not load.", identical=None), False, "It does not load."),
        (said(False, "Off."), WRONG, said(True), False, "Before rounding: Off. Rounding: a is off."),
    ],
)
def test_a_rounded_file_passes_with_its_16_bit_file_its_tensors_and_an_answer(
    monkeypatch: pytest.MonkeyPatch, sixteen: ExportProof, rounding: RoundingProof, own: ExportProof, passed: bool, reason: str
) -> None:
    asked: list[float] = []

    def read(*arguments: Any) -> ExportProof:
        asked.append(arguments[-1])
        return own

    monkeypatch.setattr(verification, "by_llama_cpp", read)
    nothing: Any = None
    found = verification.prove_rounded(config(outtype="q4_k_m"), Path(), nothing, nothing, [], sixteen, rounding)
    assert (found.passed, found.reason, found.rounding, asked) == (passed, reason, rounding, [math.inf])
    assert found.readers is not None and list(found.readers) == ["llama.cpp, f16"] and found.worst_share == own.worst_share


def test_one_token_in_four_may_be_left_out_near_a_tie() -> None:
    def counted(off: int, of: int) -> int:
        flags = torch.tensor([True] * off + [False] * (of - off))
        known = proof.Reference([], proof.Behaviour([], []), torch.ones(of), flags, torch.zeros(of, dtype=torch.bool))
        return int(proof._counted(known, flags.float(), 0.05).sum())

    assert counted(2, 8) == 6
    assert counted(3, 8) == 8, "too many: all of them count"


def test_a_merge_that_rounding_alone_has_changed_is_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    reference: Any = SimpleNamespace(prompts=[], behaviour=SimpleNamespace(answers=[]))

    def explained(
        verified: ExportProof,
        moved: int = 3,
        served: float = 0.0,
        *,
        state: bool = False,
        off: float = 0.0,
        places: int = 11,
        right: bool = True,
    ) -> ExportProof:
        monkeypatch.setattr(rounding.proof, "places_off", lambda *_: (places, 40))
        source: Any = SimpleNamespace(merged=lambda: torch.nn.Linear(1, 1), served=lambda: None, dtype=torch.bfloat16)
        written = torch.nn.Linear(1, 1)
        halves = {name: tensor.to(torch.bfloat16) for name, tensor in written.state_dict().items()}
        written.load_state_dict({name: half.float() * (1 + off) for name, half in halves.items()})
        sent = {True: torch.zeros(10, 1), False: torch.tensor([[float(number < moved)] for number in range(10)])}
        monkeypatch.setattr(rounding, "rounding_of", lambda *_: halves)
        monkeypatch.setattr(rounding, "choices", lambda model, _: sent[model is written])
        monkeypatch.setattr(rounding, "choosers", lambda *_: [written] * state)
        monkeypatch.setattr(
            rounding,
            "_judged",
            lambda model, _: said(right and model is not None, worst_share={True: 0.004, False: served}[model is not None]),
        )
        return rounding.explained(verified, source, lambda: written, reference)

    failed = said(False, "Off by 9%.", worst_share=0.09)
    found = explained(failed)
    assert found.passed is None and "sends 3 of 10 tokens to other experts" in found.reason and "(off by 0.40%)" in found.reason
    assert explained(failed, off=0.02) is failed and explained(failed, right=False) is failed
    assert "its state space carries" in explained(failed, moved=0, state=True).reason
    assert "moves 10 of 40 places of the answers" in explained(failed, moved=0, places=10).reason
    found = explained(failed, moved=0, served=0.045)
    assert found.passed is None and "nothing merged, is off by 4.5% itself where it computes in 16 bits. Before" in found.reason
    for served in (0.0, 0.0449, 1.0):
        assert explained(failed, moved=0, served=served) is failed
    for other in (said(True), said(False, same_template_ids=False), said(None)):
        assert explained(other) is other


class Shared(torch.nn.Module):
    """Two layers that are one weight, as in Zamba's blocks of attention."""

    def __init__(self, *, is_shared: bool) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        if is_shared:
            self.second.weight = self.first.weight

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.first(vectors))
        return found


def test_layers_that_share_a_weight_are_not_merged_with_updates_of_their_own() -> None:
    def adapted(is_shared: bool, *layers: str) -> Any:
        made = peft.get_peft_model(Shared(is_shared=is_shared), peft.LoraConfig(r=2, target_modules=list(layers), init_lora_weights=False))
        return made.eval()

    with pytest.raises(ModelError) as refused:
        models.merge(adapted(True, "first", "second"))
    assert str(refused.value) == (
        "The adapter can't be merged: first and second are one weight in the base, and the adapter changes them apart. "
        "Export the adapter instead (format adapter)."
    )
    models._check_shared(adapted(False, "first", "second"))


# cards


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.load(STARTER)


def test_ollamas_template_says_what_the_chat_template_says(renderer: Renderer) -> None:
    template = cards.go_template(renderer)
    assert template.startswith("{{ if .System }}") and template.count("{{ .Response }}") == 1

    def written(system: str, asked: str, answer: str) -> str:
        guided, _, rest = template.removeprefix("{{ if .System }}").partition("{{ end }}")
        question, _, closing = rest.removeprefix("{{ if .Prompt }}").partition("{{ end }}{{ .Response }}")
        begun = guided.replace("{{ .System }}", system) if system else ""
        return begun + question.replace("{{ .Prompt }}", asked) + answer + closing

    start = renderer.special_tokens.get("bos_token") or ""
    for system in ("", "Be kind."):
        before = [{"role": "system", "content": system}] if system else []
        asked = [{"role": "user", "content": "Well?"}]
        prompt = renderer.prompt([*before, *asked]).text
        assert (start + written(system, "Well?", "")).startswith(prompt) or written(system, "Well?", "").startswith(prompt)


def test_a_card_tells_what_is_known_and_no_more(tmp_path: Path) -> None:
    run = {
        "method": "lora", "objective": "sft", "metrics": {"train_loss": 1.23456789, "note": "x"},
        "config": {
            "learning_rate": 0.0002, "num_train_epochs": 3, "max_steps": None, "seed": 0, "quantization": {"load_in_4bit": True},
            "lora": {"r": 8, "use_dora": True, "lora_dropout": 0.05, "target_modules": ["a"]},
        },
    }  # fmt: skip
    assert list(cards._training(run)) == [
        ("method", "lora"), ("objective", "sft"), ("base while training", "4 bits (nf4)"), ("r", 8), ("lora_dropout", 0.05),
        ("learning_rate", 0.0002), ("num_train_epochs", 3), ("seed", 0),
    ]  # fmt: skip
    assert list(cards._training({})) == [] and list(cards._training({"config": "x", "method": "lora"})) == [("method", "lora")]
    assert list(cards._numbers(run["metrics"])) == [("train_loss", 1.23456789)] and list(cards._numbers(None)) == []
    assert cards._list([("a", 1.23456789), ("b", 7)]) == "- a: 1.23457\n- b: 7"
    (tmp_path / "studio.json").write_text(json.dumps(run))
    cards.write(tmp_path, config("merged").model_copy(update={"adapter_path": str(tmp_path), "about": {"data": "letters"}}), said(True))
    card = (tmp_path / "README.md").read_text()
    for text in (
        "base_model: base",
        "library_name: transformers",
        "# mine",
        "- data: letters",
        "- r: 8",
        "- train_loss: 1.23457",
        "Passed: on 8",
    ):
        assert text in card
    assert "## Limits" not in card and json.loads((tmp_path / "proof.json").read_text())["passed"] is True


def test_a_proof_is_one_sentence() -> None:
    assert cards.proof_sentence(said(None, "No reader.")) == "Not proved: No reader."
    assert cards.proof_sentence(said(False, "Off.")) == "Failed: Off."
    passed = cards.proof_sentence(said(True, router_ties=2))
    assert "7 greedy answers are identical" in passed and "at most 1.00%" in passed and "2 tokens are not counted" in passed
    assert "not counted" not in cards.proof_sentence(said(True, router_ties=0))
    both = proof.together([said(True), said(True, worst_share=0.02).model_copy(update={"reader": "other"})])
    assert cards.proof_sentence(both).endswith(" other reads it too: off by at most 2.00%.")
    rounded = both.model_copy(update={"rounding": ROUNDED, "worst_share": 0.3})
    sentence = cards.proof_sentence(rounded)
    assert (
        "(off by at most 2.00% of what" in sentence
        and "(9 Q4_K; 9 of them weighed" in sentence
        and "at most 10.0% of its size (a)" in sentence
    )
    assert "up to 30% of" in sentence and "7 of 8 greedy answers" in sentence
    bare = rounded.model_copy(update={"rounding": ROUNDED.model_copy(update={"importance": 0})})
    assert "without an importance matrix" in cards.proof_sentence(bare)


def test_an_adapter_is_handed_on_under_the_name_of_its_base(tmp_path: Path, renderer: Renderer) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    (source / "adapter_config.json").write_text(json.dumps({"r": 8, "auto_mapping": {"x": 1}, "base_model_name_or_path": "/home/me/base"}))
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    (source / "training_args.bin").write_bytes(b"pickle")
    folders.write_adapter(target, source, renderer, "base")
    assert sorted(path.name for path in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
    assert json.loads((target / "adapter_config.json").read_text()) == {"r": 8, "base_model_name_or_path": "base"}
    assert (target / "chat_template.jinja").read_text() == renderer.template
