"""The renderer: the same text and ids as transformers, exactly the assistant's words learned, hostile templates stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from studio.datasets import sandbox, slow_tokenizer, template_limits
from studio.datasets.rendering import TEMPLATE_NAMES, Renderer
from studio.datasets.sandbox import ChatTemplate
from studio.errors import DatasetError, ModelError
from studio.settings import Settings
from studio.types import Example, Message

TALK = [
    {"role": "user", "content": "Hi  there\n"},
    {"role": "assistant", "content": "Hello 🎉 you!"},
    {"role": "user", "content": "How many is 5 + 5?"},
    {"role": "assistant", "content": "  Ten,\n\nI think. "},
]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *TALK]
TEMPLATE_FILES = [
    "alpaca",
    "amberchat",
    "chatml",
    "chatqa",
    "falcon-instruct",
    "gemma-it",
    "granite-3.0-instruct",
    "llama-2-chat",
    "llama-3-instruct",
    "mistral-instruct",
    "openchat-3.5",
    "phi-3",
    "phi-3-small",
    "qwen2.5-instruct",
    "saiga",
    "solar-instruct",
    "vicuna",
    "zephyr",
]


def write_folder(folder: Path, trim_offsets: bool = True, **config: Any) -> Path:
    """A byte-level BPE tokenizer with ChatML tokens, as most chat models have it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    special = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    corpus = ["Hello there, how many is it? I think it is ten. The answer is yes.", "assistant user system Instruction Response"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def mistral(shared_data: Path) -> Path:
    return shared_data / "models" / "mistral-v1-tokenizer"


@pytest.fixture(scope="session")
def reference(mistral: Path) -> Any:
    """transformers' own tokenizer of the same folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(mistral))


def chat(messages: list[dict[str, Any]]) -> Example:
    return Example(messages=[Message(**message) for message in messages])


def learned_text(renderer: Renderer, example: Example) -> str:
    row = renderer.example(example)
    return renderer.decode([i for i, own in zip(row.ids, row.learned, strict=True) if own], skip_special_tokens=False)


# agreement with others


def test_published_ids_of_mistral(shared_data: Path, mistral: Path) -> None:
    samples = shared_data / "data" / "tokenizers" / "mistral_samples" / "no_tools"
    messages = json.loads((samples / "sample.json").read_text())["messages"]
    published = json.loads((samples / "tokens_v1.json").read_text())["tokens"]
    assert len(published) == 118
    renderer = Renderer.load(mistral)
    assert renderer.prompt(messages).ids == published
    assert renderer.example(chat([{k: v for k, v in m.items() if v is not None} for m in messages])).ids == published


@pytest.mark.parametrize("conversation", [TALK, WITH_SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize("name", TEMPLATE_FILES)
def test_agrees_with_transformers(shared_data: Path, mistral: Path, reference: Any, name: str, conversation: list[dict[str, Any]]) -> None:
    path = shared_data / "data" / "tokenizers" / "chat_templates" / f"{name}.jinja"
    source = re.sub(r" {4}|\n", "", path.read_text())
    renderer = Renderer.load(mistral, source)
    row = renderer.example(chat(conversation))
    assert row.text == reference.apply_chat_template(conversation, chat_template=source, tokenize=False)
    assert row.ids == reference.apply_chat_template(conversation, chat_template=source, return_dict=True)["input_ids"]
    prompt = renderer.prompt(conversation[:-1])
    assert (
        prompt.ids
        == reference.apply_chat_template(conversation[:-1], chat_template=source, add_generation_prompt=True, return_dict=True)["input_ids"]
    )
    # the answers are learned, the questions are not
    own = learned_text(renderer, chat(conversation))
    assert "Hello 🎉 you!" in own and "Ten," in own and "Hi" not in own and "many" not in own and "brief" not in own


TRL_TEMPLATES = sorted((Path(find_spec("trl").origin).parent / "chat_templates").glob("*.jinja"))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_well_known_models(mistral: Path, reference: Any, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    renderer = Renderer.load(mistral, source)
    try:
        expected = reference.apply_chat_template(TALK, chat_template=source, tokenize=False)
        row = renderer.example(chat(TALK))
    except (DatasetError, jinja2.TemplateError) as exc:
        assert "images" in str(exc) or "no attribute 'text'" in str(exc)  # the ones for images want contents in parts
        return
    assert row.text == expected
    own = learned_text(renderer, chat(TALK))
    assert "Hello 🎉 you!" in own and "Ten," in own and "Hi" not in own and "many" not in own
    thoughts = [TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."}, *TALK[2:]]
    assert "Hello." in learned_text(renderer, chat(thoughts))


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_own_templates_and_masks_agree_with_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    # with trimmed offsets transformers loses a mask that begins with a space; ours must not need this
    path = write_folder(tmp_path / "m", trim_offsets=False)
    renderer = Renderer.load(path, name)
    expected = AutoTokenizer.from_pretrained(str(path)).apply_chat_template(
        WITH_SYSTEM, chat_template=renderer.template, return_dict=True, return_assistant_tokens_mask=True
    )
    row = renderer.example(chat(WITH_SYSTEM))
    assert row.ids == expected["input_ids"]
    assert row.learned == [bool(flag) for flag in expected["assistant_masks"]]


# what is learned

END = {"chatml": "<|im_end|>", "alpaca": "<|eos|>", "alpaca-end": "\n\n### End<|eos|>", "plain": "<|eos|>"}
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40).filter(lambda text: "<|" not in text)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_exactly_the_answers_are_learned(folder: Path, name: str, data: list[tuple[str, str]]) -> None:
    turns = [{"role": role, "content": text} for pair in data for role, text in zip(("user", "assistant"), pair, strict=True)]
    renderer = Renderer.load(folder, name)
    row = renderer.example(chat(turns))
    assert renderer.decode(row.ids, skip_special_tokens=False) == row.text
    lead = " " if name == "plain" else ""
    assert learned_text(renderer, chat(turns)) == "".join(f"{lead}{answer}{END[name]}" for _, answer in data)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_chat_sends_what_training_saw(folder: Path, name: str) -> None:
    renderer = Renderer.load(folder, name)
    row, prompt = renderer.example(chat(WITH_SYSTEM)), renderer.prompt(WITH_SYSTEM[:-1])
    assert row.ids[: len(prompt.ids)] == prompt.ids
    assert all(row.learned[len(prompt.ids) : -1])


def test_templates_without_generation_tags_learn_up_to_their_end_of_turn(folder: Path) -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    assert learned_text(Renderer.load(folder, source), chat(TALK)) == "Hello 🎉 you!<|im_end|>  Ten,\n\nI think. <|im_end|>"


FORGETS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_a_template_that_drops_earlier_thoughts_learns_what_it_shows(folder: Path) -> None:
    turns = [*TALK[:1], {"role": "assistant", "content": "<think>hm</think>Hello."}, *TALK[2:]]
    own = learned_text(Renderer.load(folder, FORGETS_THOUGHTS), chat(turns))
    assert own == "Hello.<|im_end|>  Ten,\n\nI think. <|im_end|>"


def test_a_conversation_that_begins_with_the_assistant(folder: Path) -> None:
    source = "{% if messages[0].role == 'x' %}{% endif %}"
    source += "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    turns = [{"role": "assistant", "content": "Welcome."}, *TALK[:2]]
    assert "Welcome.<|im_end|>" in learned_text(Renderer.load(folder, source), chat(turns))


def test_a_mask_that_can_not_be_known_is_an_error(folder: Path) -> None:
    source = "{% for m in messages %}{{ m.content | upper if loop.last else m.content | lower }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(DatasetError, match="can't be told apart"):
        Renderer.load(folder, source).example(chat(TALK))


def test_what_a_template_refuses_is_said_in_its_words(folder: Path) -> None:
    renderer = Renderer.load(folder, "{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(DatasetError, match="Roles must alternate"):
        renderer.prompt(TALK[:1])


def test_plain_text_learns_everything_and_ends_once(folder: Path) -> None:
    renderer = Renderer.load(folder)
    row = renderer.example(Example(text="The answer is yes."))
    assert renderer.decode(row.ids, skip_special_tokens=False) == row.text == "The answer is yes.<|eos|>"
    assert all(row.learned)
    assert renderer.example(Example(text="The answer is yes.<|eos|>")).ids == row.ids


def test_prompt_and_completion_learn_the_completion(mistral: Path) -> None:
    renderer = Renderer.load(mistral)
    row = renderer.example(Example(prompt="2 + 2 =", completion=" 4"))
    assert row.ids[0] == renderer.bos_token_id and row.ids[-1] == renderer.eos_token_id
    assert learned_text(renderer, Example(prompt="2 + 2 =", completion=" 4")) == "4</s>"  # SentencePiece drops a leading space
    assert not row.learned[0]


def test_rows_are_cut_at_their_end(folder: Path) -> None:
    renderer = Renderer.load(folder)
    whole = renderer.example(chat(TALK))
    cut = renderer.example(chat(TALK), max_length=7)
    assert cut.ids == whole.ids[:7] and len(cut.learned) == 7
    assert cut.truncated and not whole.truncated and cut.length == whole.length == len(whole.ids)


def test_half_a_surrogate_pair_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="surrogate"):
        Renderer.load(folder).prompt([{"role": "user", "content": "a\ud800b"}])


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_text_survives_the_tokens(folder: Path, mistral: Path, text: str) -> None:
    byte_level, sentence_piece = Renderer.load(folder), Renderer.load(mistral)
    assert byte_level.decode(byte_level.tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    if not any(token in text for token in ("<s>", "</s>", "<unk>", "▁")):
        assert sentence_piece.decode(sentence_piece.tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


# tools

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
TOOL_TALK = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]


@pytest.mark.parametrize("template", [*TEMPLATE_NAMES, None], ids=str)
def test_calls_are_learned_and_tools_shown_by_every_template(mistral: Path, template: str | None) -> None:
    # the folder's own template knows no tools, demands strict alternation and writes no empty answer
    renderer = Renderer.load(mistral, template)
    example = Example(messages=[Message(**m) for m in TOOL_TALK], tools=TOOLS)
    text = renderer.example(example).text
    assert '"parameters"' in text and "rain" in text
    own = learned_text(renderer, example)
    assert '{"name": "get_weather", "arguments": {"city": "Oslo"}}' in own and "It rains." in own and '"parameters"' not in own


# where template and special tokens come from


def test_sources_of_the_template(tmp_path: Path) -> None:
    other = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "named {{ messages[0].content }}"}]
    path = write_folder(tmp_path / "m", chat_template=other)
    assert Renderer.load(path).prompt(TALK[:1]).text == "named Hi  there\n"
    (path / "chat_template.jinja").write_text("file {{ messages[0].content }}", encoding="utf-8")
    assert Renderer.load(path).prompt(TALK[:1]).text == "file Hi  there\n"
    assert Renderer.load(path).template_name == "model"
    assert Renderer.load(path, str(path / "chat_template.jinja")).template == "file {{ messages[0].content }}"
    with pytest.raises(DatasetError, match="no chat template"):
        Renderer.load(path, "chatlm")
    with pytest.raises(DatasetError, match="no valid Jinja, line 1"):
        Renderer.load(path, "{% if %}")


def test_a_base_model_gets_the_short_alpaca_form(folder: Path) -> None:
    renderer = Renderer.load(folder)
    assert renderer.template_name == "alpaca"
    assert renderer.prompt([{"role": "user", "content": "Hi"}]).text == "<|bos|>### Instruction:\nHi\n\n### Response:\n"
    assert renderer.stop_strings == ("<|eos|>", "\n### Instruction:")


def test_the_variant_with_a_written_end_stops_there(folder: Path) -> None:
    renderer = Renderer.load(folder, "alpaca-end")
    assert renderer.example(chat(TALK[:2])).text.endswith("### Response:\nHello 🎉 you!\n\n### End<|eos|>")
    assert renderer.stop_strings == ("<|eos|>", "\n\n### End", "### End", "\n### Instruction:")
    kept = renderer.card()
    assert kept["name"] == "alpaca-end" and kept["sha256"] == renderer.template_sha256
    assert kept["special_tokens"]["eos_token"] == "<|eos|>" and "### End" in kept["stop_strings"]


def test_a_written_end_is_learned_with_the_token_behind_it(folder: Path) -> None:
    # no generation tags and a prompt that is not how the row goes on: the answers are found by their words
    source = (
        "{% for m in messages %}{{ '> ' if m.role == 'user' else '' }}{{ m.content | trim }}{{ '\n### End<|eos|>' if m.role != 'user' }}\n"
    )
    source += "{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    assert learned_text(Renderer.load(folder, source), chat(TALK)) == "Hello 🎉 you!\n### End<|eos|>Ten,\n\nI think.\n### End<|eos|>"


def test_stops_come_from_the_template_and_the_generation_config(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "m")
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 4], "stop_strings": ["STOP"]}', encoding="utf-8")
    renderer = Renderer.load(path, "chatml")
    assert renderer.stop_token_ids[:3] == (1, 4, renderer.tokenizer.token_to_id("<|im_end|>"))
    assert {"<|eos|>", "STOP", "<|im_end|>"} <= set(renderer.stop_strings)


def test_an_empty_completion_prompt_starts_from_bos(shared_data: Path) -> None:
    renderer = Renderer.load(shared_data / "models" / "stories260K")
    assert renderer.completion_prompt("") == [1]
    assert renderer.completion_prompt("Once")[0] == 1


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", "[]")])
def test_a_broken_folder_is_one_clear_line(tmp_path: Path, name: str, content: str) -> None:
    path = write_folder(tmp_path / "m")
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        Renderer.load(path)
    with pytest.raises(ModelError, match="no folder"):
        Renderer.load(tmp_path / "none")


def test_a_sentencepiece_model_is_converted_once_by_a_child(tmp_path: Path, settings: Settings) -> None:
    import sentencepiece

    path = tmp_path / "spm"
    path.mkdir()
    sentences = (f"hello world, this is sentence {i} of a small model" for i in range(300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_prefix=str(path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}')
    (path / "config.json").write_text('{"model_type": "llama"}')
    renderer = Renderer.load(path)
    own = sentencepiece.SentencePieceProcessor(str(path / "tokenizer.model"))
    assert renderer.tokenizer.encode("hello small world", add_special_tokens=False).ids == own.encode("hello small world")
    cached = list((settings.cache / "tokenizers").glob("*/tokenizer.json"))
    assert len(cached) == 1


def test_a_tokenizer_that_can_not_be_converted_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(b"broken")
    assert slow_tokenizer.main([str(source), str(tmp_path / "out")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    (source / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        Renderer.load(source)


def test_rendering_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from studio.datasets.rendering import Renderer; from studio.types import Example\n"
        "turns = [dict(role='user', content='a'), dict(role='assistant', content='b')]\n"
        f"Renderer.load(Path({str(folder)!r}), 'chatml').example(Example(messages=turns))\n"
        "print(sorted({'torch', 'transformers', 'sqlalchemy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


# hostile templates

PAIRS = "{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(60) %}"
PAIRS += "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
GROWING = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "endless output": "{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "repetition": "{{ 'a' * 10**6 * 10**6 }}",
    "power": "{{ 10 ** 10**8 }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "doubling": GROWING.replace("STEP", "ns.x + ns.x"),
    "doubling by ~": GROWING.replace("STEP", "ns.x ~ ns.x"),
    "pairs compared": PAIRS + "{{ ns.x == ns.y }}",
    "pairs as JSON": PAIRS + "{{ ns.x | tojson }}",
    "replace": "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 100000 %}{{ s | replace(new=s, old='a') }}",
    "join": "{% set s = 'a' * 1000000 %}{{ s.join(range(99999)) }}",
    "join filter": "{% set s = 'a' * 1000000 %}{{ ([s] * 99999) | map('upper') | join }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ messages[0].content | center(10**9) }}",
    "indent": "{{ ('a\n' * 100000) | indent(99999) }}",
    "tabs": "{{ ('\t' * 10000).expandtabs(999999) }}",
    "macro": "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "macro tree": "{% macro m(x) %}{% if x %}{{ m(x-1) }}{{ m(x-1) }}{% endif %}{% endmacro %}{{ m(80) }}",
    "block": "{% set y %}{% for i in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endset %}{{ y }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "include": "{% include '/etc/passwd' %}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long source": "x" * (sandbox.MAX_SOURCE_CHARS + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_CPU_S", 0.5)
    monkeypatch.setattr(template_limits, "MAX_NODES", 20_000)
    monkeypatch.setattr(template_limits, "MAX_LOOPS", 100_000)
    started = time.thread_time()
    with pytest.raises(DatasetError) as caught:
        ChatTemplate(HOSTILE[name]).render(messages=TALK)
    assert time.thread_time() - started < 5
    assert "\n" not in str(caught.value) and caught.value.fix


def test_limits_leave_large_honest_rows_alone(folder: Path) -> None:
    turns = [{"role": role, "content": "word " * 20_000} for _ in range(50) for role in ("user", "assistant")]
    assert len(ChatTemplate(Renderer.load(folder, "chatml").template).render(messages=turns, bos_token="")) > 10_000_000


def test_no_single_text_of_a_template_grows_beyond_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_TEXT_CHARS", 1000)
    assert ChatTemplate("{{ 'a' * 1000 }}").render() == "a" * 1000
    assert ChatTemplate("{% set x = 'a' * 900 %}{% set y = 'b' * 900 %}{{ x[:400] ~ y[:400] }}").render() == "a" * 400 + "b" * 400
    for source in ("{{ 'a' * 1001 }}", "{% set x = 'a' * 1001 %}", "{{ 'a' * 600 ~ 'b' * 600 }}", "{{ ('a' * 600)|replace('a', 'bb') }}"):
        with pytest.raises(DatasetError, match="writes more text than fits"):
            ChatTemplate(source).render()


def test_all_texts_of_a_render_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_ALLOCATED_CHARS", 10_000)
    dropped = "{% for n in range(N) %}{% set x = 'a' * 1000 %}{% endfor %}"
    assert ChatTemplate(dropped.replace("N", "5")).render() == ""
    assert ChatTemplate(dropped.replace("N", "5")).render() == ""  # each render has a budget of its own
    with pytest.raises(DatasetError, match="writes more text than fits"):
        ChatTemplate(dropped.replace("N", "15")).render()


def test_a_template_that_computes_for_too_long_is_stopped_by_the_processor_time_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(template_limits.time, "thread_time", lambda: now[0])
    loop = ChatTemplate("{% for n in range(300) %}{{ tick() }}{% endfor %}")

    def tick(seconds: float) -> str:
        now[0] += seconds
        return ""

    assert loop.render(tick=lambda: tick(template_limits.MAX_CPU_S / 400)) == ""
    with pytest.raises(DatasetError, match="computes for more than 5 s"):
        loop.render(tick=lambda: tick(template_limits.MAX_CPU_S / 100))
    assert loop.render(tick=lambda: "") == ""


def test_all_renders_of_one_request_have_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a template of a stranger takes a dozen times the time of one render for each question
    clock = SimpleNamespace(s=0.0)
    monkeypatch.setattr(template_limits, "time", SimpleNamespace(thread_time=lambda: clock.s))

    def wait() -> str:
        clock.s += 3.0
        return ""

    slow = ChatTemplate("{{ wait() }}")
    with template_limits.budget.within(10.0):
        for _ in range(4):
            slow.render(wait=wait)
        with pytest.raises(DatasetError, match="its renders together compute for longer than one request may"):
            slow.render(wait=wait)
    for _ in range(9):
        slow.render(wait=wait)  # as a training does, row by row
