"""Adapters that plain peft made on models which are loaded under other names than they are stored: accepted, served and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.exporters import models, proof
from jobs.exporters.rounding import MergeSource, choices, explained, is_same, rounding_of
from studio.catalogue import adapter_trial, text_models
from studio.engine import local
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.errors import ModelError
from tests import families
from tests.foreign_adapters import MADE, adapter
from tests.serving_stages import PROMPTS, generated, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
    pytest.mark.filterwarnings("ignore:Could not find a config file.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match any targeted module.*:RuntimeWarning"),  # peft's own patterns
    pytest.mark.filterwarnings("ignore:Targeting the parameter.*:UserWarning"),
]
WEIGHTS = "adapter_model.safetensors"


class Coarse(MergeSource):
    """Rounded so that some token goes elsewhere."""

    dtype = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: families.build(name, root / name) for name in (*MADE, "llama")}


@pytest.mark.parametrize("name", MADE)
def test_an_adapter_of_plain_peft_is_accepted_and_says_what_peft_says(bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    theirs = adapter(bases[name], tmp_path / "a", **MADE[name])
    assert adapter_trial.misfit(bases[name], tmp_path / "a") == ""
    assert adapter_trial.misfit(bases["llama"], tmp_path / "a") != ""
    model = local.load(ModelFolder(name, bases[name]))
    attached = model.attach(AdapterRef("a", tmp_path / "a"))
    assert attached.idle == 0
    asked = [(ids, key) for ids in PROMPTS for key in (None, attached.key)]
    plain = text_models.load(bases[name], dtype=torch.float32)[0].eval()
    expected = [generated(of, ids) for ids in PROMPTS for of in (plain, theirs)]
    assert write(model, asked)[0] == expected and expected[0] != expected[1]


def test_a_child_is_asked_only_where_headers_do_not_tell(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(bases["llama"], tmp_path / "plain", target_modules=["q_proj", "down_proj"])
    adapter(bases["mixtral"], tmp_path / "experts", **MADE["mixtral"])
    assert adapter_trial.check(tmp_path / "experts" / WEIGHTS, bases["mixtral"]) == ""  # through the child
    said = adapter_trial.check(tmp_path / "experts" / WEIGHTS, bases["llama"])
    assert said.startswith("this base has no layer")
    monkeypatch.setattr(adapter_trial, "_ask_child", lambda *_: pytest.fail("asked"))
    assert adapter_trial.check(tmp_path / "plain" / WEIGHTS, bases["llama"]) == ""
    state = load_file(tmp_path / "plain" / WEIGHTS)
    save_file({name: tensor[:, :-1].contiguous() if "lora_A" in name else tensor for name, tensor in state.items()}, tmp_path / WEIGHTS)
    assert adapter_trial.check(tmp_path / WEIGHTS, bases["llama"]).endswith("has another size there")
    save_file({"x.lora_B.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="no low-rank factors"):
        adapter_trial.check(tmp_path / WEIGHTS, bases["llama"])


def test_a_merge_of_experts_that_rounding_sends_elsewhere_is_not_proved_and_says_why(bases: dict[str, Path], tmp_path: Path) -> None:
    # red when such a merge counts as failed or passed, or when a merge that is wrong hides behind rounding
    adapter(bases["mixtral"], tmp_path / "a", strength=0.4, **MADE["mixtral"])
    source = Coarse(bases["mixtral"], tmp_path / "a")
    model = models.load_adapted(source.base, source.adapter)
    reference = proof.refer(model, models.detached(model), PROMPTS, [])
    rounded = source.merged()
    sent, halves = choices(rounded, reference), rounding_of(rounded, source.dtype)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            weight.copy_(halves[name])
    assert is_same(rounded, halves)
    verdict = proof.judge(reference, proof.observe(rounded, PROMPTS, [], reference.behaviour.answers), same_ids=True)
    moved = (choices(rounded, reference) != sent).any(dim=1)
    assert verdict.passed is False and moved.any()
    assert len(moved) == sum(len(ids) for ids in PROMPTS) + len(PROMPTS) * (proof.NEW_TOKENS - 1)
    found = explained(verdict, source, lambda: rounded, reference)
    assert found.passed is None and f"sends {moved.sum()} of {len(moved)} tokens to other experts" in found.reason
    wrong = models.load_base(bases["mixtral"])  # without the adapter: not what was rounded
    assert explained(verdict, source, lambda: wrong, reference).passed is False


def test_a_file_holds_a_rounding_but_for_few_numbers_that_lie_between_two(bases: dict[str, Path]) -> None:
    model = models.load_base(bases["llama"])
    assert choices(model, proof.Reference([[1]], proof.Behaviour([[1]], []), torch.ones(1))).numel() == 0
    halves = rounding_of(model, torch.bfloat16)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight").data
    total = sum(half.numel() for half in halves.values())
    assert is_same(model, halves) and not is_same(model, {**halves, "more": torch.ones(1)})
    few = int(total * 0.001)
    weight.view(-1)[:few] *= 1 + 2**-8
    assert is_same(model, halves)
    weight.view(-1)[few : few + 1] *= 1 + 2**-8
    assert not is_same(model, halves), "one too many"
    weight.view(-1)[: few + 1] = halves["model.layers.0.mlp.up_proj.weight"].view(-1)[: few + 1].float()
    weight[0, 0] *= 1.02
    assert not is_same(model, halves), "too far"


@pytest.mark.parametrize("strength, passed", [(0.002, None), (0.0001, False)])
def test_a_dense_merge_is_not_proved_where_16_bits_are_as_far_off_by_themselves(
    bases: dict[str, Path], tmp_path: Path, strength: float, passed: bool | None
) -> None:
    # red when it counts as failed, or when an adapter that rounding has lost counts as anything else
    adapter(bases["llama"], tmp_path / "a", strength=strength, target_modules="all-linear")
    source = MergeSource(bases["llama"], tmp_path / "a")
    model = models.load_adapted(source.base, source.adapter)
    reference = proof.refer(model, models.detached(model), PROMPTS, [])
    source.merged().to(source.dtype).save_pretrained(tmp_path / "merged")
    read = models.load(tmp_path / "merged", torch.float32)
    verdict = proof.judge(reference, proof.observe(read, PROMPTS, [], reference.behaviour.answers), same_ids=True)
    found = explained(verdict, source, lambda: read, reference)
    assert (verdict.passed, found.passed) == (False, passed)
    assert ("nothing merged, is off by" in found.reason) == (passed is None)


def test_a_configuration_with_infinity_loads(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = families.build("mamba2", tmp_path / "mamba2")
    assert '"__float__": "Infinity"' in (folder / "config.json").read_text()
    assert text_models.config_of(folder).time_step_limit[1] == float("inf")
    assert not local.load(ModelFolder("m", folder)).has_columns
