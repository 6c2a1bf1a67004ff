"""Kinds of adapters in one engine: each says what peft's own generate says, and the base stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from studio.engine import intake, local
from studio.engine.answer import GeneratedAnswer
from studio.engine.decoding import Batch
from studio.engine.protocol import AdapterRef, GenerationRequest, ModelFolder
from studio.engine.speculation import Assistant, Gain, PromptLookup
from studio.types import GenerationParams
from tests.engines import make_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
    pytest.mark.filterwarnings("ignore:Position ids are not supported.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file.*:UserWarning"),
]
PROMPT = "Once upon a time, there was a little girl named Lily. She"
TOKENS = 16


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> ModelFolder:
    return ModelFolder("stories", shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> local.LocalModel:
    return local.load(folder)


def write(model: local.LocalModel, key: str | None, prompt: str = PROMPT, tokens: int = TOKENS, **more: Any) -> GeneratedAnswer:
    params = GenerationParams(temperature=0, max_new_tokens=tokens)
    answer = intake.prepare(GenerationRequest("m", model.folder, params, prompts=(prompt,)), lambda _: None)[0]
    answer.gain = Gain()
    for name, value in more.items():
        setattr(answer, name, value)
    batch = Batch(model)
    batch.join([answer], [key])
    while batch.answers:
        batch.step()
    return answer


def save(kind: str, folder: ModelFolder, target: Path) -> Any:
    """An adapter as peft saves it, random and strong, and peft's own model of it."""
    import peft
    from transformers import AutoModelForCausalLM

    configs: dict[str, Any] = {
        "IA3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "DoRA": peft.LoraConfig(task_type="CAUSAL_LM", r=4, use_dora=True, target_modules=["q_proj", "up_proj"]),
    }
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32), configs[kind])
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (weight for weight in made.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=random) * 0.3)
    made.save_pretrained(target)
    return made.eval()


@pytest.mark.parametrize("kind", ["IA3", "prompt tuning", "p-tuning", "prefix tuning", "DoRA"])
def test_a_kind_that_cannot_be_mixed_says_what_peft_says_and_leaves_the_base_alone(
    model: local.LocalModel, folder: ModelFolder, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(7)  # what an untrained adapter says is a matter of chance
    before = write(model, None).ids
    theirs = save(kind, folder, tmp_path / "adapter")
    attached = model.attach(AdapterRef("mine", tmp_path / "adapter"))
    answer = write(model, attached.key)
    ids = torch.tensor([list(answer.prompt_ids)])
    with torch.inference_mode():
        said = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None, pad_token_id=0
        )
    assert said[0].tolist()[-TOKENS:] == answer.ids != before
    assert attached.kind == kind and not attached.is_mixable and attached.effect > 0
    assert f"{kind} can't share a batch" in attached.notes[0]
    assert write(model, None).ids == before


def test_an_adapter_that_does_nothing_is_told_to_do_nothing(model: local.LocalModel, folder: ModelFolder, tmp_path: Path) -> None:
    attached = model.attach(AdapterRef("idle", make_adapter(folder.path, tmp_path / "idle", 1, strength=0)))
    assert attached.effect == 0 and "changes nothing" in attached.notes[0]


def test_drafts_never_change_the_answer(model: local.LocalModel, folder: ModelFolder, tmp_path: Path) -> None:
    key = model.attach(AdapterRef("a", make_adapter(folder.path, tmp_path / "a", 1, strength=0.05))).key
    for chosen in (None, key):
        plain = write(model, chosen, tokens=80)
        for drafter in (PromptLookup(), Assistant(model)):
            drafted = write(model, chosen, tokens=80, drafter=drafter)
            assert drafted.ids == plain.ids and drafted.gain.passes > 0
    assert write(model, None, tokens=80, drafter=Assistant(model)).gain.as_json()["tokens_per_pass"] > 3  # its own draft is right


def test_a_conversation_goes_on_without_being_read_again(folder: ModelFolder) -> None:
    model = local.load(folder)
    first = write(model, None)
    longer = PROMPT + " loved to play"
    known = write(model, None, longer)
    fresh = write(local.load(folder), None, longer)
    assert known.reused_tokens >= 16 and fresh.reused_tokens == first.reused_tokens == 0
    assert known.ids == fresh.ids


def test_prompts_that_begin_alike_are_read_once(folder: ModelFolder) -> None:
    model = local.load(folder)
    ends = [" went", " saw a big dog", " was"]
    params = GenerationParams(temperature=0, max_new_tokens=TOKENS)
    request = GenerationRequest("m", folder, params, prompts=tuple(PROMPT + end for end in ends), lane="batch")
    answers = intake.prepare(request, lambda _: None)
    batch = Batch(model)
    batch.join(answers, [None] * 3)
    while batch.answers:
        batch.step()
    assert min(answer.reused_tokens for answer in answers[1:]) >= 16
    assert [answer.ids for answer in answers] == [write(local.load(folder), None, PROMPT + end).ids for end in ends]


def scales_of(tree: Any) -> set[int]:
    """The objects that hold the scales of 4-bit weights."""
    return {id(module.quant_state) for module in tree.modules() if getattr(module, "quant_state", None) is not None}


@pytest.mark.parametrize(("quantization", "share", "most_off"), [("nf4", 1 / 3, 0.3), ("int8", 0.5, 0.08)])
def test_a_quantised_base_and_an_adapter_beside_it_say_nearly_what_they_say_in_full(
    model: local.LocalModel, folder: ModelFolder, tmp_path: Path, quantization: str, share: float, most_off: float
) -> None:
    ref = AdapterRef("a", make_adapter(folder.path, tmp_path / "a", 1, strength=0.05))
    small = local.load(ModelFolder("stories", folder.path, quantization))
    assert small.bytes < share * model.bytes
    ids = torch.tensor([list(write(model, None).prompt_ids)])
    mask = torch.ones_like(ids)

    def logits(of: local.LocalModel, key: str | None) -> torch.Tensor:
        return of.forward(ids, mask, mask.cumsum(1) - 1, DynamicCache(), [key], ids.shape[1])[0].float()

    keys = [of.attach(ref).key for of in (model, small)]  # before the first answer: 8-bit weights move on first use
    for exact, near in ((keys[0], keys[1]), (None, None)):
        expected = logits(model, exact).softmax(-1)
        off = (logits(small, near).softmax(-1) - expected).abs().sum(-1).mean() / 2  # total variation
        assert off < most_off
    assert write(small, None).ids != write(small, keys[1]).ids
    assert scales_of(small._peft) == scales_of(small._base) and len(scales_of(small._base)) == {"nf4": 35, "int8": 0}[quantization]
