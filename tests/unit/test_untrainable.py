"""Every method on every architecture of the catalogue, by the stored probes: what would train nothing is refused, with a way out that works."""

from __future__ import annotations

import pytest

from jobs.config import JobConfig, build
from studio.catalogue import suitability
from studio.catalogue.compatibility import VARIANTS
from studio.records import Probe, WeightForm
from tests.probes import stored

# layers behind which bottleneck adapters go, as they are called in the blocks of transformers' decoders
BEHIND = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "mlp.c_proj")
BEHIND_ATTENTION = ("o_proj", "out_proj", "attention.dense", "attn.c_proj")


def trains(config: JobConfig, probe: Probe) -> bool:
    """Whether this method has anything to train, by the weights that the probe lists."""
    weights = [weight for block in probe.blocks for weight in block.weights]
    if config.method == "lora":
        return probe.targets.accepted and any(weight.target for weight in weights)
    if config.method == "ia3":
        return probe.methods["ia3"].accepted and any(weight.ia3 for weight in weights)
    if config.method == "bottleneck":
        ends = BEHIND + BEHIND_ATTENTION * config.bottleneck.mh_adapter
        return any(weight.form == WeightForm.LINEAR and weight.name.endswith(ends) for weight in weights)
    return probe.methods[config.method].accepted


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_would_train_nothing_is_refused_and_the_named_change_mends_it(variant: str) -> None:
    # red when a launch is accepted that peft refuses or that has nothing to learn, or when a refusal names what is refused too
    assert len(stored()) > 40
    for name, probe in stored().items():
        config, _ = suitability.without_what_experts_refuse(build({"lora.r": 4}, VARIANTS[variant]), probe)
        found = suitability.conflicts(config, probe)
        assert bool(found) != trains(config, probe), (name, found)
        for conflict in found:
            assert "\n" not in str(conflict) and conflict.fix, name
            if conflict.change:
                mended, _ = suitability.without_what_experts_refuse(build(config.model_dump(), conflict.change), probe)
                assert suitability.conflicts(mended, probe) == [], (name, str(conflict))
                assert trains(mended, probe), name


def test_ia3_without_layers_of_its_own_is_refused_in_one_line() -> None:
    refused = {name: suitability.conflicts(build({"method": "ia3"}), probe) for name, probe in stored().items()}
    said = str(refused["SmolLM3ForCausalLM"][0])
    assert said == "Method ia3 does not work on SmolLM3ForCausalLM: peft knows no layers of smollm3 models for IA3. Set method=lora."
    assert refused["LlamaForCausalLM"] == [] and len([one for one in refused.values() if one]) > 10
