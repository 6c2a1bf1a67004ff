"""What a job learns of a conversation, token by token, against trl's own SFTTrainer on the same messages and tokenizer.

With assistant_only_loss trl swaps in a template of its own with {% generation %} marks; here the template stays as it is.
Differences that are meant stand in BEYOND and OTHER_TEXT, each with its reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from jobs.trainers import compiling
from studio.datasets.rendering import Renderer
from studio.types import DroppedPart, Example, LearnedTurns, Message, Reasoning, RowOptions, SystemMessage
from tests.unit.test_rendering import write_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # of trl and transformers, about their own options and templates

trl = pytest.importorskip("trl")
OF_TRL = Path(trl.__file__).parent / "chat_templates"
CONTROL = re.compile(r"</?\|?[a-zA-Z_][a-zA-Z_0-9]{1,40}\|?>|\[/?[A-Z]{2,20}\]|<｜[^｜<>]{1,30}｜>")

TALK = [
    {"role": "user", "content": "How many is 5 + 5?"},
    {"role": "assistant", "content": "It is ten."},
    {"role": "user", "content": "And 6 + 6?"},
    {"role": "assistant", "content": "Twelve, I think."},
]
LINE = "\n"  # behind the end of a turn: the next turn's, which chat writes itself
# trl swaps in a template with marks for each of these; what it learns beyond what is learned here, per answer, and why
BEYOND = {
    "cohere": ("", ""),
    "cohere2": ("", ""),
    "llama3": ("", ""),
    "gemma": (LINE, LINE),
    "phi3": (LINE, ""),
    "phi3_5": (LINE, ""),
    "qwen3_instruct_2507": (LINE, LINE),
    "qwen2_5": (LINE + LINE, LINE + LINE),  # the line break of the answer's own header too, which chat sends
    "deepseek_r1_distill": ("<｜Assistant｜>", "<｜Assistant｜>"),  # the header, which chat sends
    "deepseekv3": ("<｜Assistant｜>", "<｜Assistant｜>"),
    "gptoss": ("<|start|>assistant", "<|start|>assistant"),
}
# trl's template writes another text: an empty block of reasoning in every answer, where the model's own writes none, or only the last;
# glm4moe: the next turn's header behind the last answer, to learn to stop at it
OTHER_TEXT = ("qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe")
SHARED = (
    "chatml", "falcon-instruct", "gemma-it", "granite-3.0-instruct", "llama-2-chat", "llama-3-instruct", "mistral-instruct", "openchat-3.5",
    "phi-3", "qwen2.5-instruct", "solar-instruct", "vicuna", "zephyr",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, **shape))


def base_with(folder: Path, template: str) -> Path:
    """A model folder with this template, whose tokenizer knows the template's control tokens."""
    write_folder(folder, trim_offsets=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = {mark for mark in CONTROL.findall(template) if not mark.startswith(("<think", "</think", "<tool", "</tool"))}
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in sorted(marks)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def trl_rows(folder: Path, model: Any, out: Path, row: dict[str, Any], **options: Any) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of the one row as they come out of trl's preparation and its collator."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    arguments = trl.SFTConfig(output_dir=str(out), report_to="none", use_cpu=True, max_length=None, bf16=False, **options)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def labels_of(row: Any) -> list[int]:
    return [token if learned else -100 for token, learned in zip(row.ids, row.learned, strict=True)]


def messages(turns: list[dict[str, Any]]) -> Example:
    return Example(messages=[Message(**turn) for turn in turns])


def unindented(path: Path) -> str:
    """The templates of shared data are indented for reading: runs of four spaces and line breaks mean nothing in them."""
    return path.read_text(encoding="utf-8").replace("    ", "").replace("\n", "")


def template(name: str) -> str:
    return (OF_TRL / f"{name}.jinja").read_text(encoding="utf-8")


def both(tmp_path: Path, name: str) -> Path:
    """A base with trl's copy of the model's template; its tokenizer knows the marks of the one that trl swaps in too."""
    folder = base_with(tmp_path / "model", template(name) + template(f"{name}_training"))
    (folder / "chat_template.jinja").write_text(template(name), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", BEYOND)
def test_answers_only_equal_trl_but_for_what_chat_writes_itself(tmp_path: Path, model: Any, name: str) -> None:
    folder = both(tmp_path, name)
    ids, labels = trl_rows(folder, model, tmp_path / "out", {"messages": TALK}, assistant_only_loss=True)
    renderer = Renderer.load(folder)
    row = renderer.example(messages(TALK))
    assert row.ids == ids
    own = labels_of(row)
    assert [label for mine, label in zip(own, labels, strict=True) if mine != -100] == [label for label in own if label != -100]
    more = [label for mine, label in zip(own, labels, strict=True) if mine == -100 and label != -100]
    assert renderer.decode(more, skip_special_tokens=False) == "".join(BEYOND[name])
    marked = Renderer.load(folder, template(f"{name}_training")).example(messages(TALK))
    assert (marked.ids, labels_of(marked)) == (ids, labels)


@pytest.mark.parametrize("name", OTHER_TEXT)
def test_reasoning_reaches_trls_own_templates_under_the_name_they_read(tmp_path: Path, model: Any, name: str) -> None:
    folder = both(tmp_path, name)
    turns = [dict(turn) for turn in TALK]
    turns[1]["reasoning"], turns[3]["reasoning"] = "Five and five.", "Six and six."
    theirs = [{("reasoning_content" if key == "reasoning" else key): value for key, value in turn.items()} for turn in turns]
    ids, labels = trl_rows(folder, model, tmp_path / "out", {"messages": theirs}, assistant_only_loss=True)
    marked = Renderer.load(folder, template(f"{name}_training")).example(messages(turns))
    assert (marked.ids, labels_of(marked)) == (ids, labels)
    own = Renderer.load(folder).example(messages(turns))  # the model's own template leaves out the reasoning of the first answer
    assert "Six and six." in own.text and "Five and five." not in own.text and own.left_out == (DroppedPart.EARLIER_REASONING,)
    if name in OTHER_TEXT[:2]:
        assert not marked.left_out and "Five and five." in marked.text and own.ids != ids


@pytest.mark.parametrize("name", SHARED)
def test_completion_only_equals_trl_but_for_white_space_behind_the_end(tmp_path: Path, model: Any, shared_data: Path, name: str) -> None:
    source = unindented(shared_data / "data" / "tokenizers" / "chat_templates" / f"{name}.jinja")
    folder = base_with(tmp_path / "model", source)
    given = {"prompt": TALK[:3], "completion": TALK[3:]}
    ids, labels = trl_rows(folder, model, tmp_path / "out", given)
    renderer = Renderer.load(folder)
    row = renderer.example(Example(prompt=[Message(**turn) for turn in TALK[:3]], completion=[Message(**turn) for turn in TALK[3:]]))
    assert row.ids == ids
    own = labels_of(row)
    learned = renderer.decode([label for label in own if label != -100], skip_special_tokens=False)
    assert "Twelve, I think." in learned and "ten" not in learned
    more = [label for mine, label in zip(own, labels, strict=True) if mine == -100 and label != -100]
    assert not renderer.decode(more, skip_special_tokens=False).strip()
    assert all(label != -100 for mine, label in zip(own, labels, strict=True) if mine != -100)


# marks and reasoning, which trl cannot express

MARKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First.", "train": False},
    {"role": "user", "content": "Two?", "train": True},
    {"role": "assistant", "content": "Second.", "reasoning": "Hm."},
]


def learned(folder: Path, source: str | None, turns: list[dict[str, Any]], **options: Any) -> str:
    row = Renderer.load(folder, source, RowOptions(**options)).example(messages(turns))
    return "".join(text for text, own in zip(row.tokens(), row.learned, strict=True) if own)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Two?<think>\nHm.\n</think>\n\nSecond.<|im_end|>"),
        ({"learned_turns": LearnedTurns.ALL}, "First.<|im_end|><think>\nHm.\n</think>\n\nSecond.<|im_end|>"),
        ({"learned_turns": LearnedTurns.LAST}, "<think>\nHm.\n</think>\n\nSecond.<|im_end|>"),
        ({"learned_turns": LearnedTurns.LAST, "reasoning": Reasoning.CONTEXT}, "Second.<|im_end|>"),
        ({"learned_turns": LearnedTurns.ALL, "reasoning": Reasoning.DROP}, "First.<|im_end|>Second.<|im_end|>"),
    ],
)
def test_marks_and_reasoning_decide_what_is_learned(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    folder = write_folder(tmp_path / "m")
    assert learned(folder, "chatml", MARKED, **options) == expected


def test_a_job_that_learns_every_word_learns_no_word_of_a_turn_marked_otherwise(tmp_path: Path) -> None:
    row = Renderer.load(write_folder(tmp_path / "m"), "chatml").example(messages(MARKED))
    barred = "".join(text for text, never in zip(row.tokens(), row.barred, strict=True) if never)
    assert barred == "First.<|im_end|>"


def test_an_empty_block_of_reasoning_is_noticed_and_read_as_context_not_learned(tmp_path: Path) -> None:
    folder = both(tmp_path, "qwen3")
    assert Renderer.load(folder).example(messages(TALK)).teaches_empty_reasoning
    read = Renderer.load(folder, None, RowOptions(reasoning=Reasoning.CONTEXT)).example(messages(TALK))
    assert "<think>" in read.text and not read.teaches_empty_reasoning


NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_system_text_that_a_template_leaves_out_is_named_and_can_be_folded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    assert Renderer.load(folder, NO_SYSTEM).example(messages(MARKED)).left_out == (DroppedPart.SYSTEM,)
    folded = Renderer.load(folder, NO_SYSTEM, RowOptions(system_message=SystemMessage.FOLD))
    row = folded.example(messages(MARKED))
    assert not row.left_out and row.text.startswith("[user]Be brief.\n\nOne?")
    # the adapter's template alone folds: chat loads it without options
    again = Renderer.load(folder, folded.template)
    assert again.prompt([Message(**turn) for turn in MARKED[:2]]).text == "[user]Be brief.\n\nOne?<|im_end|>[assistant]"
    assert again.with_options(folded.options).template == folded.template


@pytest.mark.parametrize("printed", ["{{ strftime_now('%d %b %Y') }}", "{{ date_string }}"])
def test_a_date_is_that_of_the_options(tmp_path: Path, printed: str) -> None:
    renderer = Renderer.load(write_folder(tmp_path / "m"), printed + NO_SYSTEM, RowOptions(date="2024-02-03"))
    assert renderer.example(messages(TALK)).text.startswith("03 Feb 2024[user]")


def test_a_text_that_begins_with_bos_gets_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.load(folder)
    for text in ("The tide turned.", "<|bos|>The tide turned."):
        assert renderer.example(Example(text=text)).ids.count(0) == 1
        assert renderer.completion_prompt(text).count(0) == 1


def test_where_no_compiler_is_trl_takes_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red where trl asks elsewhere than jobs.trainers.compiling answers: the first step on such a GPU would fail."""
    import torch
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)  # as where triton is installed
    monkeypatch.setattr(utils, "is_triton_available", lambda *_: True)
    told: list[str] = []
    compiling.go_without_triton(told.append)
    assert not chunked_logprob._use_triton(torch.device("cuda")) and not utils.is_triton_available()
    assert "no C compiler" in told[0]
