"""The parts of a training by themselves: checkpoints and room for them, questions to a model, looks that keep to their time, the base."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.config import JobConfig, build
from jobs.rundir import RunDir, manifest_problems
from jobs.trainers import base, checkpoints, drift, machine, methods, probing, questions, rows, sft, watch
from jobs.trainers.adapters import AdapterCard
from jobs.trainers.checkpoints import CheckpointStore, full_disk_named
from jobs.trainers.events import EventLog
from jobs.trainers.failures import less_memory
from jobs.trainers.stopping import StopWish
from studio.catalogue import precision
from studio.datasets.rendering import Renderer
from studio.errors import DatasetError, ModelError
from studio.types import Example
from tests import gpus
from tests.runs import STARTER

MIB = 1024**2


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.load(STARTER)


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def fill(size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"x" * size)

    return write


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What the disk says is free; the last number is said again and again."""
    said = [10**12]

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=said.pop(0) if len(said) > 1 else said[0])

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage)
        yield said


# checkpoints


def test_the_newest_checkpoints_stay_and_the_pinned_one_with_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    store = CheckpointStore(run, keep=2)
    for step in (2, 9, 10, 11):
        made = store.write(step, fill(9), pinned=2)
        assert made == run.checkpoint(step) and manifest_problems(made) == []
    assert names(run) == ["checkpoint-10", "checkpoint-11", "checkpoint-2"]  # by number: 9 is older than 10
    store.write(12, fill(9))
    assert names(run) == ["checkpoint-11", "checkpoint-12"]


def test_a_checkpoint_that_fails_leaves_nothing_and_the_others_as_they_were(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    store = CheckpointStore(run, keep=1)
    store.write(1, fill(9))

    def breaks(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.write(2, breaks)
    assert names(run) == ["checkpoint-1"]
    (run.checkpoints / ".part-3-77").mkdir()
    (run.checkpoints / "checkpoint-1.old").mkdir()
    store.clean()
    assert names(run) == ["checkpoint-1"]
    CheckpointStore(run, keep=9).write(2, fill(9))
    CheckpointStore(run, keep=9).write(3, fill(9))
    store.drop_newer(run.checkpoint(2))
    assert names(run) == ["checkpoint-1", "checkpoint-2"]
    store.drop_newer(None)
    assert names(run) == []


def test_room_for_a_checkpoint_is_a_tenth_more_than_the_last_and_sixteen_mib(tmp_path: Path, free: list[int]) -> None:
    run = RunDir(tmp_path)
    store = CheckpointStore(run, keep=5)
    for step in (1, 2):
        store.write(step, fill(20_000))
    last = sum(file.stat().st_size for file in run.checkpoint(2).rglob("*") if file.is_file())
    assert last > 20_000
    needed = last * 11 // 10 + 16 * MIB
    free[:] = [needed]
    store.write(3, fill(20_000))
    assert len(names(run)) == 3, "just enough"
    free[:] = [needed - 1, needed]
    store.write(4, fill(20_000))
    assert names(run) == ["checkpoint-3", "checkpoint-4"], "all but the newest went to make room"
    free[:] = [needed - 1]
    with pytest.raises(OSError) as caught:
        store.write(5, fill(20_000))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "checkpoint-5: 17 MB are needed, 17 MB are free"
    free[:] = [100_000_000 * 11 // 10 + 16 * MIB - 1]
    with pytest.raises(OSError, match="127 MB are needed"):
        store.write(5, fill(20_000), expected_bytes=100_000_000)
    assert names(run) == ["checkpoint-4"]


@pytest.mark.parametrize(("left", "is_full"), [(MIB - 1, True), (MIB, False)])
def test_with_less_than_a_mib_left_whatever_fails_is_a_full_disk(tmp_path: Path, free: list[int], left: int, is_full: bool) -> None:
    free[:] = [left]
    with pytest.raises(Exception) as caught, full_disk_named(tmp_path / "part", "checkpoint-7"):
        raise RuntimeError("the library's own words")
    assert isinstance(caught.value, OSError) == is_full
    if is_full:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "checkpoint-7")  # type: ignore[attr-defined]


# questions


def lines(path: Path, *examples: Example | str) -> Path:
    path.write_text("".join((one if isinstance(one, str) else one.model_dump_json(exclude_none=True)) + "\n" for one in examples))
    return path


def chat(*turns: str) -> Example:
    roles = ("user", "assistant")
    return Example.model_validate({"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]})


def pair(asked: str, chosen: str, rejected: str) -> Example:
    said = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return Example.model_validate({"prompt": [{"role": "user", "content": asked}], **said})


def test_rows_become_questions_with_what_they_are_held_against(tmp_path: Path, renderer: Renderer) -> None:
    long = "word " * 300
    path = lines(
        tmp_path / "rows.jsonl",
        chat("Where?", "Here.", "And then?", "There."),
        "",
        Example(prompt="2 + 2 =", completion=" 4"),
        pair("Which?", "This.", "That."),
        Example(text="One two three four five six seven eight"),
        chat(long, long),
    )
    found = questions.questions(path, renderer, 4000, 100)
    by_line = {one.line: one for one in found}
    assert [one.line for one in found] == [1, 3, 4, 5, 6]
    assert (by_line[1].prompt, by_line[1].reference) == ("And then?", "There.")
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "And then?"}]
    assert by_line[1].ids == renderer.prompt(turns).ids
    assert (by_line[3].prompt, by_line[3].reference) == ("2 + 2 =", " 4") and by_line[3].ids == renderer.completion_prompt("2 + 2 =")
    assert (by_line[4].prompt, by_line[4].reference) == ("Which?", "This.")
    text = by_line[5]
    assert text.ids == text.row[: len(text.row) // 2] and text.prompt + text.reference == renderer.decode(text.row)
    assert (by_line[6].prompt, by_line[6].reference) == (long[-600:], long[:600])
    shorter = questions.questions(path, renderer, 64, 100)
    assert 6 not in [one.line for one in shorter] and all(len(one.ids) <= 64 for one in shorter)


def test_a_plain_text_is_gone_on_from_after_two_dozen_tokens(tmp_path: Path, renderer: Renderer) -> None:
    (found,) = questions.questions(lines(tmp_path / "a", Example(text="so it goes on and on " * 40)), renderer, 4000, 1)
    assert len(found.ids) == 24 and found.ids == found.row[:24]
    (least,) = questions.questions(lines(tmp_path / "b", Example(text="x")), renderer, 4000, 1)
    assert len(least.row) == 2 and least.ids == least.row[:1], "one token to go on from, and one to say"


def test_questions_are_spread_evenly_over_the_first_two_thousand_lines(tmp_path: Path, renderer: Renderer) -> None:
    path = lines(tmp_path / "a", *(chat(f"question {n}", "answer") for n in range(1, 2003)))
    assert [one.line for one in questions.questions(path, renderer, 100, 4)] == [1, 501, 1001, 1501]
    few = lines(tmp_path / "b", *(chat(f"question {n}", "answer") for n in range(3)))
    assert [one.line for one in questions.questions(few, renderer, 100, 3)] == [1, 2, 3]
    assert [one.line for one in questions.questions(few, renderer, 100, 2)] == [1, 2]
    assert questions.questions(lines(tmp_path / "c", chat("only asked")), renderer, 100, 2) == []


def test_drift_is_told_from_half_a_nat_per_token() -> None:
    assert drift.advice(None) == drift.advice(0.4999) == drift.advice(-3.0) == ""
    assert "1.6 times less likely" in drift.advice(0.5)  # e^0.5 = 1.6487
    assert "2.7 times less likely" in drift.advice(1.0)


# rows as tokens


def test_pairs_share_a_prompt_and_are_cut_behind_it(renderer: Renderer) -> None:
    def paired(max_length: int, chosen: str = "Yes, of course.", rejected: str = "No.") -> rows.Tokens:
        config = build({"objective": "dpo", "max_length": max_length})
        return rows._paired(pair("Well, what do you say?", chosen, rejected), renderer, config)

    whole = paired(500)
    assert whole.columns is not None and not whole.truncated
    prompt, chosen, rejected = (whole.columns[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    assert len(chosen) > len(rejected) and renderer.decode(chosen).startswith("Yes, of course.")
    exact = paired(len(prompt) + len(chosen))
    assert exact == whole
    cut = paired(len(prompt) + len(chosen) - 1)
    assert (
        cut.truncated and cut.columns is not None and cut.columns["chosen_ids"] == chosen[:-1] and cut.columns["rejected_ids"] == rejected
    )
    one = paired(len(prompt) + 1)
    assert one.columns is not None and (len(one.columns["chosen_ids"]), len(one.columns["rejected_ids"])) == (1, 1)
    with pytest.raises(DatasetError, match=f"The prompt has {len(prompt)} tokens"):
        paired(len(prompt))
    with pytest.raises(DatasetError, match="answers are equal"):
        paired(500, "No.")
    with pytest.raises(DatasetError, match="differ only behind max_length"):
        paired(len(prompt) + 1, "No. But why", "No. And how")


def test_marked_answers_are_cut_behind_their_prompt(renderer: Renderer) -> None:
    def marked(max_length: int, completion: str = "Yes, of course.", label: bool | None = False) -> rows.Tokens:
        config = build({"objective": "kto", "max_length": max_length})
        return rows._marked(
            Example.model_validate({"prompt": "Well, what do you say to all of this, then?", "completion": completion, "label": label}),
            renderer,
            config,
        )

    whole = marked(500)
    assert whole.columns is not None and not whole.truncated and whole.columns["label"] is False
    prompt, answer = whole.columns["prompt_ids"], whole.columns["completion_ids"]
    assert not marked(len(prompt) + len(answer)).truncated
    cut = marked(len(prompt) + 1)
    assert cut.truncated and cut.columns is not None and cut.columns["completion_ids"] == answer[:1]
    with pytest.raises(DatasetError, match="nothing of an answer is left"):
        marked(len(prompt))
    for wrong in ({"label": None}, {"completion": ""}):
        with pytest.raises(DatasetError, match="no answer marked"):
            marked(500, **wrong)


def test_the_first_token_alone_is_nothing_to_learn(renderer: Renderer) -> None:
    everything = build({"objective": "continued-pretraining"})
    two = rows._imitated(Example(text="hello there my friend"), renderer, everything)
    assert two.columns is not None and two.columns["labels"].tolist() == two.columns["input_ids"].tolist()
    asked = rows._imitated(chat("Where?", "Here."), renderer, build({}))
    assert asked.columns is not None
    learned = [token for token in asked.columns["labels"].tolist() if token != -100]
    assert 0 < len(learned) < len(asked.columns["input_ids"]) and renderer.decode(learned).startswith("Here.")
    assert rows._imitated(chat("Where?"), renderer, build({})).columns is None


def table(**columns: list[list[int]]) -> Any:
    from datasets import Dataset

    return SimpleNamespace(dataset=Dataset.from_dict(columns))


def test_the_longest_row_is_a_prompt_with_its_longer_answer() -> None:
    assert sft._longest(table(input_ids=[[1], [1, 2, 3], [1, 2]], labels=[[1] * 9, [1], [1]])) == 3
    pairs = table(prompt_ids=[[1, 2], [1]], chosen_ids=[[1], [1, 2]], rejected_ids=[[1, 2, 3], [1]], labels=[[1], [1]])
    assert sft._longest(pairs) == 5


@pytest.mark.parametrize(
    ("rows_", "options", "steps"),
    [
        (10, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 1}, 3),  # 4 + 4 + 2
        (10, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}, 4),  # of 3 batches, 2 steps
        (9, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "num_train_epochs": 1.5}, 5),  # half of 3 begun
        (10, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 9, "max_steps": 1}, 1),
        (1, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8, "num_train_epochs": 1}, 1),
    ],
)
def test_steps_are_counted_from_batches_of_an_epoch(rows_: int, options: dict[str, Any], steps: int) -> None:
    config = build(options)
    trainer = SimpleNamespace(train_dataset=range(rows_), args=SimpleNamespace())
    assert sft._set_cadence(trainer, config) == steps
    assert (trainer.args.save_steps, trainer.args.eval_steps) == config.cadence(steps)


# asking a model


class Flat(torch.nn.Module):
    """Finds the token after each one by adding 1 to it, with this much more weight than any other."""

    device = torch.device("cpu")
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def __init__(self, sure: float = 2.0) -> None:
        super().__init__()
        self.sure, self.seen = sure, list[tuple[int, ...]]()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
        self.seen.append(tuple(input_ids.shape))
        logits = torch.nn.functional.one_hot((input_ids + 1) % 50, 50).float() * self.sure
        return SimpleNamespace(logits=torch.cat([torch.zeros(input_ids.shape[0], 3, 50), logits], 1))  # behind three virtual tokens


def test_surprise_is_the_log_likelihood_of_what_is_learned(renderer: Renderer) -> None:
    model = Flat()
    right, wrong = -math.log(math.exp(2) / (math.exp(2) + 49)), -math.log(1 / (math.exp(2) + 49))
    given = [([4, 5, 6, 9], [True, True, False, True]), ([7, 8], [False, True])]
    found = probing.surprise(model, given, renderer, nullcontext, lambda: True)
    assert [count for _, count in found] == [2, 1]
    assert [loss for loss, _ in found] == [pytest.approx(right + wrong, rel=1e-5), pytest.approx(right, rel=1e-5)]
    turns = iter([True, False])
    long = [([1] * 1000, [True] * 1000), ([1] * 1000, [True] * 1000)]
    assert len(probing.surprise(model, long, renderer, nullcontext, lambda: next(turns))) == 1


def test_rows_are_judged_together_up_to_1024_tokens_with_their_padding() -> None:
    def sizes(*lengths: int) -> list[list[int]]:
        return [[len(ids) for ids, _ in batch] for batch in probing._batches([([0] * length, []) for length in lengths])]

    assert sizes(512, 512, 1) == [[512, 512], [1]]  # the short one would be padded to 512 as well
    assert sizes(513, 511) == [[513], [511]]
    assert sizes(2000, 1) == [[2000], [1]] and sizes() == []
    assert sizes(256, 256, 256, 256, 256) == [[256] * 4, [256]]


def test_asking_puts_everything_back() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    text = SimpleNamespace(output_router_logits=True)
    model.config = SimpleNamespace(get_text_config=lambda: text)
    model.train()
    model[0].eval()
    model[0].bias.requires_grad_(False)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with probing.undisturbed(model):
        assert not model.training and not model[1].training and not torch.is_grad_enabled() and text.output_router_logits is False
        torch.rand(5)
        model.requires_grad_(True)
    assert model.training and model[1].training and not model[0].training and torch.is_grad_enabled()
    assert text.output_router_logits is True and not model[0].bias.requires_grad and model[0].weight.requires_grad
    assert torch.equal(torch.rand(1), expected)
    text.output_router_logits = False
    with probing.undisturbed(model):
        pass
    assert text.output_router_logits is False


# looks


class Looking(watch.Watch):
    """Its looks take as long as `costs` says, by a clock that nothing else moves."""

    def __init__(self, tmp_path: Path, now: list[float], costs: list[float]) -> None:
        self._log, self._stop = EventLog(tmp_path / "events.jsonl"), StopWish()
        self._trainer = SimpleNamespace(model=Flat())
        self._begun, self._first_step = now[0], 0
        self._spent = self._base_cost = 0.0
        self._costs = {}
        self._has_failed = False
        self.now, self.took, self.given = now, costs, list[tuple[str, float]]()

    def _answer(self, seconds: float, step: int) -> None:
        self.given.append((f"answer {step}", seconds))
        self.now[0] += self.took[0]

    def _measure_drift(self, seconds: float, step: int) -> None:
        self.given.append((f"drift {step}", seconds))
        self.now[0] += self.took[1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def look(tmp_path: Path, now: list[float]) -> Iterator[Callable[..., Looking]]:
    made: list[Looking] = []

    def make(*costs: float) -> Looking:
        made.append(Looking(tmp_path, now, list(costs)))
        return made[-1]

    yield make
    for one in made:
        one._log.close()


def state(step: int, steps: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=steps)


def test_looks_take_a_fiftieth_of_the_run_and_the_last_is_always_taken(look: Callable[..., Looking], now: list[float]) -> None:
    looking = look(4.0, 1.0)
    now[0] += 100  # ten steps of a hundred: the run will take 1000 s, its looks 20 s
    looking._look(state(10, 100), is_last=False)
    assert looking.given == [("answer 10", 20.0), ("drift 10", 16.0)]
    now[0] += 100
    looking._look(state(20, 100), is_last=False)  # 15 s are left, 4 s for it and 5 s for the last ones
    assert looking.given[2:] == [("answer 20", 15.0), ("drift 20", 11.0)]
    now[0] += 100
    looking._look(state(30, 100), is_last=False)  # of 10 s it would leave 1 s to the last look
    assert [name for name, _ in looking.given[4:]] == ["answer 30", "drift 30"]
    now[0] += 100
    looking._look(state(40, 100), is_last=False)  # 5 s are left: not enough for 4 s and the last look's 5 s
    assert looking.given[6:] == []
    looking._look(state(100, 100), is_last=True)
    assert [name for name, _ in looking.given[6:]] == ["answer 100", "drift 100"]


def test_a_run_of_less_than_twenty_seconds_is_looked_at_once(look: Callable[..., Looking], now: list[float]) -> None:
    looking = look(0.0, 0.0)
    now[0] += 1.999
    looking._look(state(1, 10), is_last=False)
    assert looking.given == []
    now[0] += 0.001
    looking._look(state(1, 10), is_last=False)
    assert looking.given == [("answer 1", 3.0), ("drift 1", 3.0)]  # never less than three seconds
    short = look(0.0, 0.0)
    short._look(state(10, 10), is_last=True)
    assert [name for name, _ in short.given] == ["answer 10", "drift 10"]


def test_a_look_that_fails_is_told_once_and_not_tried_again(look: Callable[..., Looking], tmp_path: Path, now: list[float]) -> None:
    looking = look(0.0, 0.0)

    def breaks(seconds: float, step: int) -> None:
        looking.given.append(("tried", seconds))
        raise RuntimeError("y" * 500)

    looking._answer = breaks  # type: ignore[method-assign]
    for step in (50, 100):
        now[0] += 50
        looking._look(state(step, 100), is_last=step == 100)
    assert [name for name, _ in looking.given] == ["tried"]
    said = [json.loads(line)["text"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert said == [f"Sample answers and drift are left out from here on (RuntimeError: {'y' * 120})."]
    stopped = look(0.0, 0.0)
    stopped._stop.set()
    stopped._look(state(100, 100), is_last=True)
    assert stopped.given == []


# the base


def test_a_base_is_a_folder_with_a_config_and_safetensors(tmp_path: Path) -> None:
    config = JobConfig(base_model="mine", model_name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match=r"base model mine is not in"):
        base.folder_of(config)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    with pytest.raises(ModelError, match="no safetensors file"):
        base.folder_of(config)
    (tmp_path / "model.safetensors").touch()
    assert base.folder_of(config) == tmp_path
    assert base.max_length(config.model_copy(update={"max_length": 100}), tmp_path) == 64
    assert base.max_length(config.model_copy(update={"max_length": 63}), tmp_path) == 63
    (tmp_path / "config.json").write_text("{}")
    assert base.max_length(config.model_copy(update={"max_length": 100}), tmp_path) == 100


@pytest.mark.parametrize(
    ("device", "asked", "bf16_gpu", "bf16_cpu", "found"),
    [
        ("cuda", "auto", True, False, "bfloat16"),
        ("cuda", "auto", False, True, "float16"),
        ("cuda", "float32", True, True, "float32"),
        ("cuda", "bfloat16", False, True, None),
        ("cpu", "auto", True, True, "bfloat16"),
        ("cpu", "auto", True, False, "float32"),
        ("cpu", "float16", True, False, "float16"),
    ],
)
def test_in_which_precision_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, asked: str, bf16_gpu: bool, bf16_cpu: bool, found: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16_gpu)
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16_cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    config = build({"dtype": asked, "model_name_or_path": str(STARTER)})
    with closing(EventLog(tmp_path / "events.jsonl")) as log:
        if found is None:
            with pytest.raises(ModelError, match="this GPU does not compute in it"):
                base._dtype(config, device, log)
            return
        assert base._dtype(config, device, log) == found
    said = (tmp_path / "events.jsonl").read_text()
    assert ("no bfloat16 instructions" in said) == ((device, asked, found) == ("cpu", "auto", "float32"))


@pytest.mark.parametrize(
    ("device", "dtype", "flags"),
    [
        ("cuda", "bfloat16", {"bf16": True, "fp16": False, "use_cpu": False, "dataloader_pin_memory": True}),
        ("cuda", "float16", {"bf16": False, "fp16": True, "use_cpu": False, "dataloader_pin_memory": True}),
        ("cpu", "float32", {"bf16": False, "fp16": False, "use_cpu": True, "dataloader_pin_memory": False}),
    ],
)
def test_the_trainer_is_told_where_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, flags: dict[str, bool]
) -> None:
    monkeypatch.setattr(sft.objectives, "arguments", lambda config, values: values)
    found = sft._arguments(RunDir(tmp_path), build({}), base.ComputeDevice(device, dtype), evaluates=device == "cpu")
    assert {name: found[name] for name in flags} == flags
    assert found["eval_strategy"] == {"cpu": "steps", "cuda": "no"}[device] and found["logging_nan_inf_filter"] is False


def test_the_base_is_quantised_as_the_options_say() -> None:
    cpu = base.ComputeDevice("cpu", "float32")
    assert base._quantization(build({"quantization.load_in_4bit": False}), cpu, STARTER) is None
    four = base._quantization(build({"quantization.load_in_4bit": True}), cpu, STARTER)
    assert (
        four.load_in_4bit and not four.load_in_8bit and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_compute_dtype == torch.float32
    )
    named = build({"quantization.load_in_4bit": True, "quantization.bnb_4bit_compute_dtype": "float16"})
    assert base._quantization(named, cpu, STARTER).bnb_4bit_compute_dtype == torch.float16
    eight = base._quantization(build({"quantization.load_in_4bit": False, "quantization.load_in_8bit": True}), cpu, STARTER)
    assert eight.load_in_8bit and not eight.load_in_4bit


def test_attention_code_that_the_model_lacks_is_refused() -> None:
    assert base._attention(build({"attn_implementation": "auto"}), STARTER) == {}
    assert base._attention(build({"attn_implementation": "eager"}), STARTER) == {"attn_implementation": "eager"}
    assert base._attention(build({"attn_implementation": "sdpa"}), STARTER) == {"attn_implementation": "sdpa"}


def test_trainers_pad_with_the_padding_token_then_the_end_then_the_first(renderer: Renderer) -> None:
    made = base.tokenizer(renderer)
    assert made.pad_token_id == (renderer.pad_token_id if renderer.pad_token_id is not None else renderer.eos_token_id)
    assert made.eos_token_id == renderer.eos_token_id
    bare: Any = SimpleNamespace(tokenizer=renderer.tokenizer, pad_token_id=None, eos_token_id=7, bos_token_id=None)
    assert base.tokenizer(bare).pad_token_id == 7
    bare.eos_token_id = None
    assert base.tokenizer(bare).pad_token_id == 0


# what helps where memory ran out

ONE_ROW = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "max_length": 512}


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"quantization.load_in_4bit": False}, {"quantization.load_in_4bit": True}),
        (
            {"quantization.load_in_4bit": False, "quantization.load_in_8bit": True},
            {"quantization.load_in_4bit": True, "quantization.load_in_8bit": False},
        ),
        ({"method": "full", "quantization.load_in_4bit": False}, {"max_length": 256}),  # learns the weights themselves
        ({"lora.init_lora_weights": "pissa", "quantization.load_in_4bit": False}, {"max_length": 256}),  # takes them apart
        ({"quantization.load_in_4bit": True}, {"max_length": 256}),
    ],
)
def test_four_bits_help_where_the_method_does_not_need_whole_weights(options: dict[str, Any], remedy: dict[str, Any]) -> None:
    assert less_memory(build({**ONE_ROW, **options})) == remedy


def test_prefixes_are_not_recomputed_and_rows_are_not_halved_below_the_shortest() -> None:
    prefix = build({**ONE_ROW, "gradient_checkpointing": False, "method": "prefix-tuning", "quantization.load_in_4bit": True})
    assert less_memory(prefix) == {"max_length": 256}
    lora = build({**ONE_ROW, "gradient_checkpointing": False, "quantization.load_in_4bit": True})
    assert less_memory(lora) == {"gradient_checkpointing": True}
    lengths = [512]
    while remedy := less_memory(build({**ONE_ROW, "quantization.load_in_4bit": True, "max_length": lengths[-1]})):
        lengths.append(remedy["max_length"])
    assert lengths == [512, 256, 128]
    assert less_memory(None) == {}


def test_a_full_disk_is_not_taken_for_room(tmp_path: Path) -> None:
    assert checkpoints.RESERVE_BYTES > checkpoints.FULL_BYTES, "what is kept free is more than what counts as full"


def test_a_gpu_tells_its_use_its_temperature_and_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when the figures are another card's, or one that the driver does not have ends the reading
    cards = [gpus.card(use=12, temperature=30, power=50_000), gpus.card(number=1, use=97, temperature=71)]
    gpus.pretend(monkeypatch, driver=gpus.driver(*cards), visible=cards[1]["uuid"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * MIB, 24 * MIB))
    reading = machine.Machine("cuda").read() or {}
    assert (reading["device_bytes"], reading["device_total_bytes"]) == (4 * MIB, 24 * MIB)
    assert (reading["device_use"], reading["device_temperature_c"]) == (0.97, 71) and "device_power_w" not in reading
    assert "device_use" not in (machine.Machine("cpu").read() or {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora.r": 8}, "LoRA (16-bit base), rank 8"),
        ({"lora.r": 4, "quantization.load_in_4bit": True}, "QLoRA (4-bit base), rank 4"),
        ({"lora.r": 8, "quantization.load_in_8bit": True, "lora.use_rslora": True}, "LoRA with rsLoRA (8-bit base), rank 8"),
        ({"lora.r": 8, "lora.use_dora": True, "lora.init_lora_weights": "pissa"}, "LoRA with DoRA with PiSSA (16-bit base), rank 8"),
        ({"method": "ia3", "quantization.load_in_8bit": True}, "ia3 (8-bit base)"),
    ],
)
def test_a_model_card_names_the_method_and_the_bits_of_the_base(options: dict[str, Any], said: str) -> None:
    assert methods.describe(build(options)) == said


def test_a_card_names_the_template_that_was_chosen() -> None:
    renderer = Renderer.load(STARTER)
    assert AdapterCard(JobConfig(), renderer).template_name == "model"
    chosen = JobConfig().model_copy(update={"chat_template": "/somewhere/else/own.jinja"})
    assert AdapterCard(chosen, renderer).template_name == "own.jinja"


@pytest.mark.parametrize(("code", "is_refused"), [("sdpa", False), ("eager", True)])
def test_packed_rows_need_attention_code_that_keeps_them_apart(code: str, is_refused: bool) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation=code)
    with pytest.raises(ModelError, match="eager attention") if is_refused else nullcontext():
        base._check_packs(JobConfig(), model)
