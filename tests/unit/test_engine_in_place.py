"""Rows that are decoded in place say what they say in a cache that grows, step by step and in steps that were recorded."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from studio.engine import graphs, in_place, local, recordings
from studio.engine.answer import GeneratedAnswer
from studio.engine.buckets import Shape, shape_for
from studio.engine.budget import KeyValueBudget
from studio.engine.decoding import Batch, Passes
from studio.engine.in_place import MOST_CELLS, BucketRows, InPlace
from studio.engine.prefixes import Prefixes
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.engine.recordings import Kind
from studio.engine.rows import GrowingRows
from studio.engine.speculation import Gain, PromptLookup
from tests.engines import answer
from tests.recorders import FakeRecorder
from tests.unit.test_engine_slots import EVERY, LLAMA, SMALL, adapter, build

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
    pytest.mark.filterwarnings("ignore:Could not find a config file.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),  # of biases that can't be merged
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted.*:UserWarning"),
]
ROUNDS = int(os.environ.get("STUDIO_BATCHES", "60")) // 20  # `make chaos`: fifty
PROMPTS = [(5, 6, 7, 8, 9), (40, 41), tuple(range(20, 60)), (3,), (1, 9, 17, 25, 33, 41), (60, 61, 62)]
SLIDING = {**LLAMA, "head_dim": 8, "sliding_window": 12}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", SLIDING),  # every other layer slides, and logits are capped
    "gemma3": ("Gemma3TextConfig", {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("MistralConfig", SLIDING),  # every layer slides
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),  # learned positions
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**LLAMA, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
}


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    """As on a GPU, whose recordings are stood in for."""
    made = FakeRecorder()
    monkeypatch.setattr(in_place, "ON_CPU", True)
    monkeypatch.setattr(graphs, "recorder_for", lambda device: made)
    monkeypatch.setattr(recordings, "WORTH", 1)
    return made


def hold(inner: Any, folder: Path, use_place: bool = True) -> local.LocalModel:
    inner.config.save_pretrained(folder)
    model = local.LocalModel(ModelFolder("m", folder), inner, (), 10**9)
    if not use_place:
        model.in_place = None
    return model


def place_of(model: local.LocalModel) -> InPlace:
    assert model.in_place is not None
    return model.in_place


def record_all(model: local.LocalModel) -> int:
    while place_of(model).record_next():
        pass
    return model.recorded_steps


class Pair:
    """One model twice: with rows in place, and with rows in a cache that grows; with the same adapters."""

    def __init__(self, folder: Path, options: Sequence[dict[str, Any]]) -> None:
        self.mine, self.usual = hold(build("llama"), folder), hold(build("llama"), folder, use_place=False)
        self.keys: list[str | None] = [None]
        for number, each in enumerate(options):
            adapter("llama", folder / f"a{number}", number, **each)
            found = [model.attach(AdapterRef(f"a{number}", folder / f"a{number}")).key for model in (self.mine, self.usual)]
            assert found[0] == found[1]
            self.keys.append(found[0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    patch = pytest.MonkeyPatch()
    patch.setattr(in_place, "ON_CPU", True)
    patch.setattr(graphs, "recorder_for", lambda device: FakeRecorder())
    options: list[dict[str, Any]] = [
        {"r": 4, "target_modules": EVERY, "lora_bias": True},
        {"r": 16, "target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"r": 2, "target_modules": ["embed_tokens", "v_proj"]},
        {"r": 3, "target_modules": EVERY, "use_dora": True},  # in passes of its own
    ]
    made = Pair(tmp_path_factory.mktemp("pair"), options)
    patch.undo()
    return made


def asked(rows: Sequence[tuple[Sequence[int], str | None]], tokens: int, **params: Any) -> list[GeneratedAnswer]:
    made = [answer(prompt_ids=list(ids), seed=number, params=params) for number, (ids, _) in enumerate(rows)]
    for one in made:
        one.limit, one.gain = tokens, Gain()
    return made


def spoken(model: local.LocalModel, rows: Sequence[tuple[Sequence[int], str | None]], tokens: int = 20, **params: Any) -> list[list[int]]:
    passes, made = Passes(model), asked(rows, tokens, **params)
    passes.join(made, [key for _, key in rows])
    while passes.answers:
        passes.step()
    assert all(one.error is None for one in made)
    return [one.ids for one in made]


def test_the_smallest_bucket_that_holds_the_rows() -> None:
    found = [shape_for(rows, columns) for rows, columns in ((1, 1), (2, 128), (3, 129), (5, 192), (16, 193), (9, 257), (17, 1025))]
    assert found == [(1, 128), (2, 128), (4, 192), (8, 192), (16, 256), (16, 384), (32, 1536)]


@pytest.mark.parametrize("which", [(0, 0, 0), (1, 1, 1), (0, 1, 2), (3, 0, 2), (3, 3, 0), (1, 4, 0)])
def test_adapters_side_by_side_say_in_place_what_they_say_elsewhere(pair: Pair, which: Sequence[int], recorder: FakeRecorder) -> None:
    rows = [(ids, pair.keys[number]) for ids, number in zip(PROMPTS, which, strict=False)]
    steps = place_of(pair.mine).steps
    steps._recorder = recorder
    expected = spoken(pair.usual, rows)
    assert spoken(pair.mine, rows) == expected
    assert record_all(pair.mine) and not steps.refusal
    before = recorder.replays
    assert spoken(pair.mine, rows) == expected and recorder.replays > before
    steps.give_back()


def test_rows_that_come_and_go_change_hands_in_steps_that_were_recorded(pair: Pair, recorder: FakeRecorder) -> None:
    # red when a place that changes hands keeps what it held, or a recorded step computes the adapter of who was there before
    place_of(pair.mine).steps._recorder = recorder
    chance = random.Random(3)
    plain = pair.keys[:4]
    alone: dict[Any, list[int]] = {}
    for _ in range(ROUNDS):
        rows = [(chance.choice(PROMPTS[:4]), chance.choice(plain), chance.choice((3, 12, 20))) for _ in range(7)]
        passes, waiting = Passes(pair.mine), list(range(len(rows)))
        made = [asked([row[:2]], row[2])[0] for row in rows]
        while waiting or passes.answers:
            some = [waiting.pop(0) for _ in range(min(len(waiting), chance.choice((0, 0, 1, 3))))]
            if some:
                passes.join([made[row] for row in some], [rows[row][1] for row in some])
            passes.step()
        for row, said in zip(rows, made, strict=True):
            if row not in alone:
                alone[row] = spoken(pair.usual, [row[:2]], row[2])[0]
            assert said.ids == alone[row], row
        record_all(pair.mine)
    assert recorder.replays > 10 and not place_of(pair.mine).is_lent


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_look_at_columns_in_their_own_way(family: str, tmp_path: Path, recorder: FakeRecorder) -> None:
    name, values = FAMILIES[family]
    torch.manual_seed(7)
    config = getattr(transformers, name)(**values, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    inner = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in inner.parameters():
        if weight.dim() > 1:
            weight.mul_(3)
    model, usual = hold(inner, tmp_path), hold(inner, tmp_path, use_place=False)
    rows = [(ids, None) for ids in PROMPTS[:3]]
    expected = spoken(usual, rows)
    assert spoken(model, rows) == expected and place_of(model).bytes > 0
    assert record_all(model) and not model.unrecorded
    assert spoken(model, rows) == expected and recorder.replays


def test_draws_and_prompts_that_begin_alike_and_drafts_stay_as_they_are(pair: Pair, recorder: FakeRecorder) -> None:
    place_of(pair.mine).steps._recorder = recorder
    start = tuple(range(30, 60))
    rows = [((*start, 1), None), ((*start, 5, 6), None), ((7, 8), None)]
    for params in ({"temperature": 0.9}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}):
        assert spoken(pair.mine, rows, **params) == spoken(pair.usual, rows, **params)
    found = []
    for model in (pair.usual, pair.mine):
        model.prefixes = Prefixes()
        said = []
        for ids in ([*start, 1], [*start, 1, 2, 3], [*range(40, 60), 9]):
            (one,) = asked([(ids, None)], 16)
            one.drafter = PromptLookup()
            Passes(model).join([one], [None])
            passes = Passes(model)
            again = asked([(ids, None), ([*ids, *one.ids, 4], None)], 24)
            again[0].drafter = PromptLookup()
            passes.join(again, [None, None])
            while passes.answers:
                passes.step()
            said += [(each.ids, each.reused_tokens) for each in again]
        found.append(said)
    assert found[0] == found[1] and any(reused for _, reused in found[0])


def shapes_of(
    model: local.LocalModel, rows: Sequence[tuple[Sequence[int], str | None]], *limits: int
) -> tuple[list[list[int]], list[Shape]]:
    """What these rows say, and the buckets in which they were decoded; (0, 0) for a cache that grows."""
    batch, made, seen = Batch(model), asked(rows, 0), []
    for one, limit in zip(made, limits, strict=True):
        one.limit = limit
    batch.join(made, [key for _, key in rows])
    while batch.answers:
        seen.append(batch._rows._held.shape if isinstance(batch._rows, BucketRows) else Shape(0, 0))
        batch.step()
    return [one.ids for one in made], list(dict.fromkeys(seen))


def test_a_text_moves_to_longer_buckets_and_back_to_a_growing_cache_where_memory_ends(pair: Pair) -> None:
    rows, where = [(PROMPTS[0], None), (PROMPTS[1], None)], place_of(pair.mine)
    where.give_back()
    column = pair.mine.sizes.column
    expected = [spoken(pair.usual, [row], limit)[0] for row, limit in zip(rows, (150, 10), strict=True)]
    assert shapes_of(pair.mine, rows, 150, 10) == (expected, [(2, 128), (1, 128), (1, 192)])
    assert where.bytes == 256 * column and not where.is_lent
    shorter = [said[:12] for said in expected]
    for most, seen in ((256, [(2, 128), (1, 128)]), (255, [(0, 0)]), (0, [(0, 0)])):
        where.bound(lambda most=most: most * column)  # type: ignore[misc]
        assert shapes_of(pair.mine, rows, 12, 10) == (shorter, seen), most
        assert where.bytes == (256 * column if most == 256 else 0)
    where.bound(lambda: 130 * column)
    assert shapes_of(pair.mine, rows[:1], 150) == (expected[:1], [(1, 128), (0, 0)]) and where.bytes == 0
    where.bound(lambda: 10**9 * column)
    shapes_of(pair.mine, rows[:1], 5)
    assert where.bytes == MOST_CELLS * column, "an eighth of what there is, so that it need not grow soon"
    where.give_back()
    where.bound(lambda: 2**62)


def test_a_larger_batch_takes_more_memory_and_what_was_recorded_is_recorded_anew(pair: Pair, recorder: FakeRecorder) -> None:
    where = place_of(pair.mine)
    where.give_back()
    where._limit, where.steps._recorder = None, recorder
    spoken(pair.mine, [(PROMPTS[0], None)], 8)
    assert record_all(pair.mine) == 1 and where.bytes == 128 * pair.mine.sizes.column
    spoken(pair.mine, [(ids, None) for ids in PROMPTS[:3]], 8)
    assert where.bytes == 4 * 128 * pair.mine.sizes.column and pair.mine.recorded_steps == 0
    assert record_all(pair.mine) >= 1
    made = len(recorder.made)
    spoken(pair.mine, [(PROMPTS[1], None)], 8)
    assert len(recorder.made) == made, "nothing is recorded while somebody waits"
    pair.mine.recover()
    assert where.bytes == pair.mine.recorded_steps == pair.mine.kept_bytes == 0
    assert spoken(pair.mine, [(PROMPTS[1], None)], 8) == spoken(pair.usual, [(PROMPTS[1], None)], 8)
    where._most = None


def test_an_adapter_that_leaves_takes_its_steps_along(tmp_path: Path, recorder: FakeRecorder) -> None:
    model, usual = hold(build("llama"), tmp_path), hold(build("llama"), tmp_path, use_place=False)
    for number in range(3):
        adapter("llama", tmp_path / f"a{number}", number, r=4, target_modules=EVERY)
    refs = [AdapterRef(f"a{number}", tmp_path / f"a{number}") for number in range(3)]
    keys = [model.attach(ref).key for ref in refs[:2]]
    for which in ([*keys, None], [None], keys[:1], keys[1:] * 3):
        spoken(model, list(zip(PROMPTS, which, strict=False)), 6)
        record_all(model)
    kinds = {wanted.kind for wanted in place_of(model).steps._recorded}
    assert kinds == {Kind((), False), Kind(tuple(keys[:1]), False), Kind(tuple(keys), True)}, "the last is computed as the first"
    gone = model.attached.pop(next(iter(model.attached)))
    model._forget(gone)
    assert {wanted.kind for wanted in place_of(model).steps._recorded} == {Kind((), False)}
    third = model.attach(refs[2]).key
    rows = [(PROMPTS[0], third), (PROMPTS[1], keys[1]), (PROMPTS[2], None)]
    theirs = {keys[1]: usual.attach(refs[1]).key, third: usual.attach(refs[2]).key, None: None}
    expected = spoken(usual, [(ids, theirs[key]) for ids, key in rows])
    assert spoken(model, rows) == expected
    record_all(model)
    assert spoken(model, rows) == expected and recorder.replays


def test_a_recording_that_fails_is_told_once_and_changes_no_answer(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    steps = place_of(pair.mine).steps
    steps.give_back()
    failing = FakeRecorder(fails="operation not permitted when stream is capturing")
    steps._recorder = failing
    rows = [(PROMPTS[0], None), (PROMPTS[1], pair.keys[1])]
    expected = spoken(pair.usual, rows)
    for _ in range(2):
        assert spoken(pair.mine, rows) == expected
        record_all(pair.mine)
    assert len([record for record in caplog.records if "could not be recorded" in record.message]) == 1
    assert "stream is capturing" in pair.mine.unrecorded and pair.mine.recorded_steps == 0
    steps.refusal = ""


def test_a_model_whose_logits_are_others_in_place_keeps_its_own_cache(tmp_path: Path) -> None:
    inner = build("llama")
    usual = inner.forward
    inner.forward = wrapped(usual)
    model = hold(inner, tmp_path)
    assert model.in_place is None and "its logits are others" in model.unrecorded
    rows = [(ids, None) for ids in PROMPTS[:2]]
    assert spoken(model, rows) == spoken(hold(build("llama"), tmp_path, use_place=False), rows)


def wrapped(usual: Callable[..., Any]) -> Callable[..., Any]:
    """A model that counts the columns of its mask, also those that nobody has written."""
    import functools

    @functools.wraps(usual)
    def counting(*args: Any, attention_mask: Any = None, **more: Any) -> Any:
        found = usual(*args, attention_mask=attention_mask, **more)
        if attention_mask is not None and attention_mask.shape[1] > 100:
            found.logits[..., 3] += 50
        return found

    return counting


def test_memory_that_is_taken_counts_as_room_for_answers_and_goes_where_a_training_needs_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.engine import budget

    model, where = pair.mine, place_of(pair.mine)
    where.give_back()
    model.prefixes, where._limit = Prefixes(), None
    spoken(model, [(ids, None) for ids in PROMPTS], 4)
    model.prefixes = Prefixes()
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)
    counted = KeyValueBudget(model.sizes, model.device, taken=lambda: model.taken_bytes)
    assert counted.limit == 800 + where.bytes and where.bytes == 8 * 128 * model.sizes.column
    model.prefixes.keep(None, range(20), [(torch.zeros(1, 1, 20, 8), torch.zeros(1, 1, 20, 8))])
    model.make_do(where.bytes)
    assert where.bytes and len(model.prefixes) == 1
    model.make_do(100)
    assert where.bytes == model.kept_bytes == 0
    model.make_do(None)
    model.prefixes.keep(None, range(20), [(torch.zeros(1, 1, 20, 8), torch.zeros(1, 1, 20, 8))])
    assert len(model.prefixes) == 1
    rows = GrowingRows(model)
    assert rows.ready(1) is rows, "elsewhere nothing moves"


def test_the_engine_records_when_nobody_waits_and_heeds_a_promise(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: FakeRecorder
) -> None:
    # red when a step is recorded while an answer waits, or memory that a training was promised is kept
    from studio.engine.leases import LeaseBook
    from studio.engine.scheduler import Scheduler

    folder = ModelFolder("stories", stories260k)
    scheduler = Scheduler(cache=tmp_path)
    waiting: list[int] = []
    usual = recorder.record
    monkeypatch.setattr(recorder, "record", lambda step: (waiting.append(len(scheduler._waiting)), usual(step))[1])
    model = scheduler._model_for(folder)
    (one,) = asked([(PROMPTS[2], None)], 12)
    one.base = folder
    scheduler.submit([one])
    first = scheduler._next_answer()
    assert first is one and waiting == [], "not before an answer that waits"
    scheduler._serve(one)
    assert len(one.ids) == 12 and waiting == [] and place_of(model).bytes and len(model.prefixes) == 1
    held = sum(each.bytes for each in LeaseBook(tmp_path).holders())
    assert held == model.bytes + model.kept_bytes
    assert scheduler._next_answer() is None and waiting == [0]
    loaded = scheduler.status().loaded
    assert loaded is not None and (loaded.recorded_steps, loaded.unrecorded) == (1, "")
    LeaseBook(tmp_path).begin("night", 2**62)
    assert scheduler._prepare(model) is False
    assert model.kept_bytes == 0 and model.recorded_steps == 0
