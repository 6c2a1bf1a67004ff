"""The batch, the sampler and the model in memory, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.catalogue import hardware, text_models
from studio.catalogue.hardware import Memory
from studio.engine import adapting, intake, kinds, loading, local, prefixes
from studio.engine.answer import GeneratedAnswer
from studio.engine.budget import KeyValueBudget
from studio.engine.decoding import Batch, Passes
from studio.engine.leases import LoadTimes
from studio.engine.protocol import AdapterRef, Event, GenerationRequest, ModelFolder
from studio.errors import ModelError
from studio.types import GenerationParams
from tests.engines import change_json, copy_model, make_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks transformers by the old name

PROMPTS = ["", "Once upon a time, there was a very small bird", "Tom and Lily like", "The"]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> ModelFolder:
    return ModelFolder("stories", shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> local.LocalModel:
    return local.load(folder)


def answers(folder: ModelFolder, prompts: Sequence[str], tokens: int = 20, **params: float) -> tuple[list[GeneratedAnswer], list[Event]]:
    events: list[Event] = []
    request = GenerationRequest("m", folder, GenerationParams(temperature=0, max_new_tokens=tokens, **params), prompts=tuple(prompts))
    return intake.prepare(request, events.append), events


def alone(model: local.LocalModel, prompt: str, adapter: str | None = None, tokens: int = 20) -> list[int]:
    made, _ = answers(model.folder, [prompt], tokens)
    batch = Batch(model)
    batch.join(made, [adapter])
    while batch.answers:
        batch.step()
    return made[0].ids


def test_rows_that_join_and_leave_midway_say_what_they_say_alone(model: local.LocalModel, tmp_path: Path) -> None:
    attached = model.attach(AdapterRef("a.b", make_adapter(model.folder.path, tmp_path / "a", 1)))
    keys = [None, attached.key, None, attached.key]
    limits = [30, 8, 16, 24]
    made = [answers(model.folder, [prompt], limit)[0][0] for prompt, limit in zip(PROMPTS, limits, strict=True)]
    batch = Batch(model)
    for start in range(4):  # a short row first, then a longer and two shorter ones beside what runs
        batch.join([made[start]], [keys[start]])
        for _ in range(3):
            batch.step()
    while batch.answers:
        batch.step()
    expected = [alone(model, prompt, key, limit) for prompt, key, limit in zip(PROMPTS, keys, limits, strict=True)]
    assert [answer.ids for answer in made] == expected
    assert expected[0][:8] != alone(model, PROMPTS[0], attached.key, 8)  # the adapter does speak otherwise


def test_a_cancelled_row_leaves_and_the_others_go_on(model: local.LocalModel) -> None:
    made, events = answers(model.folder, PROMPTS[1:3])
    batch = Batch(model)
    batch.join(made, [None, None])
    made[0].cancel()
    while batch.answers:
        batch.step()
    assert len(made[0].ids) == 1
    assert made[1].ids == alone(model, PROMPTS[2])
    assert [event.index for event in events if event.finish_reason] == [1]


def test_weights_that_are_missing_are_not_made_up(folder: ModelFolder, tmp_path: Path) -> None:
    broken = copy_model(folder.path, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        local.load(ModelFolder("broken", broken))


def test_config_keys_that_choose_code_are_dropped(folder: ModelFolder, tmp_path: Path) -> None:
    hostile = copy_model(folder.path, tmp_path / "hostile")
    change_json(
        hostile / "config.json",
        auto_map={"AutoConfig": "evil.Config"},
        _attn_implementation_internal="evil/kernel",
        _attn_implementation="evil/kernel",
    )
    config = text_models.config_of(hostile)
    assert config._attn_implementation is None and not hasattr(config, "auto_map")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "own weights"),
        ({"bias": "lora_only"}, "own weights"),
        ({"peft_type": None}, "peft_type"),
    ],
)
def test_adapters_that_would_spoil_the_base_are_refused(
    model: local.LocalModel, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    adapter = make_adapter(model.folder.path, tmp_path / "adapter", 1)
    change_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=reason):
        model.attach(AdapterRef("adapter", adapter))


def test_only_plain_lora_shares_a_batch() -> None:
    assert kinds.is_mixable({"peft_type": "LORA", "use_dora": False, "modules_to_save": None})
    for config in ({"peft_type": "LORA", "use_dora": True}, {"peft_type": "LORA", "modules_to_save": ["lm_head"]}, {"peft_type": "IA3"}):
        assert not kinds.is_mixable(config)


def test_the_memory_for_adapters_is_counted_to_the_byte(folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a quarter becomes another share, the last byte is not used, or one adapter's bytes are not those of its weights
    refs = [AdapterRef(f"a{seed}", make_adapter(folder.path, tmp_path / f"a{seed}", seed)) for seed in range(2)]
    size = adapting.weight_bytes(refs[0])
    assert 0 < size <= (refs[0].path / "adapter_model.safetensors").stat().st_size
    monkeypatch.setattr(hardware, "memory", lambda: Memory(10**12 + 3, 0))
    assert local.load(folder).budget_bytes == 250 * 10**9
    model = local.load(folder, budget_bytes=2 * size)
    first = model.attach(refs[0])
    assert first.bytes == model.adapter_bytes == size
    assert model.has_room(refs[1], [first.key])
    model.budget_bytes -= 1
    assert not model.has_room(refs[1], [first.key]) and model.has_room(refs[1], []) and model.has_room(refs[0], [first.key])
    model.budget_bytes += 1
    model.attach(refs[1])
    assert model.adapter_bytes == 2 * size and model.adapter_names == ["a0", "a1"]


def test_what_was_read_is_kept_in_an_eighth_of_what_a_card_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 10**9, 24 * 10**9))
    assert local._prefixes(torch.device("cuda"))._budget_bytes == 10**9
    assert local._prefixes(torch.device("cpu"))._budget_bytes == prefixes.BUDGET_BYTES


def test_the_least_recently_used_adapter_leaves(folder: ModelFolder, tmp_path: Path) -> None:
    refs = [AdapterRef(f"a{seed}", make_adapter(folder.path, tmp_path / f"a{seed}", seed)) for seed in range(3)]
    model = local.load(folder, budget_bytes=2 * adapting.weight_bytes(refs[0]))
    first = model.attach(refs[0])
    second = model.attach(refs[1])
    spoken = alone(model, PROMPTS[1], first.key)
    model.attach(refs[0])
    model.attach(refs[2], in_use=[first.key])
    assert model.adapter_names == ["a0", "a2"] and second.key not in model._peft.peft_config
    assert alone(model, PROMPTS[1], first.key) == spoken


def test_precision_follows_the_device_and_the_size() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert loading.choose_dtype(torch.bfloat16, 10**9, cuda, "llama") == torch.float16  # no GPU here that computes in bfloat16
    assert loading.choose_dtype(torch.float16, 10**9, cuda, "gemma3_text") == torch.float32
    assert loading.choose_dtype(torch.bfloat16, 10**6, cpu) == torch.float32
    assert loading.choose_dtype(torch.float16, 10**12, cpu) == torch.bfloat16  # no machine has room for it in float32
    assert loading.choose_dtype(torch.float32, 10**12, cpu) == torch.float32


def test_load_times_are_remembered_and_a_broken_file_is_forgotten(folder: ModelFolder, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text("{")
    LoadTimes(path).record(folder, 1.26)
    assert LoadTimes(path).expected(folder) == 1.3
    assert LoadTimes(path).expected(ModelFolder("x", tmp_path)) is None


class CappedModel:
    """A real model on a device that is too small for more than `most` columns of keys and values, all rows counted."""

    def __init__(self, model: local.LocalModel, most: int) -> None:
        self._model, self.most = model, most
        self.refused, self.recovered, self.rows = 0, 0, [0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def recover(self) -> None:
        self.recovered += 1
        self._model.recover()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if mask.numel() > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.rows.append(len(ids))
        return self._model.forward(ids, mask, *rest, **more)


@pytest.mark.parametrize("use_budget", [False, True])
def test_where_memory_runs_out_the_batch_is_split_and_every_answer_stays_as_it_is(
    model: local.LocalModel, folder: ModelFolder, use_budget: bool
) -> None:
    # red when an out-of-memory fails what would fit alone, forgets what was written, or costs another draw
    prompts = [f"{PROMPTS[1]} number {number}" for number in range(6)]
    by_itself = drawn(folder, prompts)
    for one in by_itself:
        run(Passes(model), [one])
    expected = [one.ids for one in by_itself]
    columns = max(len(one.prompt_ids) for one in by_itself)
    # six rows until each has written four tokens: refused by the device, or before that by the budget
    capped = CappedModel(model, 10**9 if use_budget else 6 * (columns + 4))
    budget = KeyValueBudget(model.sizes, model.device, model.sizes.held(6, columns + 4)) if use_budget else None
    together = drawn(folder, prompts)
    run(Passes(capped, budget), together)
    assert [one.ids for one in together] == expected and all(one.error is None for one in together)
    assert capped.recovered == capped.refused == (0 if use_budget else 1) and {6, 3} <= set(capped.rows)
    hopeless, _ = answers(folder, [PROMPTS[1] * 3, "x"], tokens=4)
    run(Passes(CappedModel(model, columns)), hopeless)
    assert hopeless[0].error is not None and hopeless[0].error.code == "out_of_memory" and "Shorten" in hopeless[0].error.fix
    assert hopeless[1].error is None and hopeless[1].completion_tokens == 4


def drawn(folder: ModelFolder, prompts: Sequence[str]) -> list[GeneratedAnswer]:
    """Answers that are drawn, each with a seed of its own."""
    made, _ = answers(folder, prompts, tokens=24)
    for number, one in enumerate(made):
        one.params, one.seed = GenerationParams(temperature=1.0, max_new_tokens=24), number
    return made


def run(passes: Passes, asked: Sequence[GeneratedAnswer]) -> None:
    passes.join(asked, [None] * len(asked))
    while passes.answers:
        passes.step()
