"""The configuration that a bare script makes for each method is the one that the trainer makes: run, not read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers

from jobs.config import build
from studio.services import script_text


def made(options: dict[str, Any]) -> Any:
    """What the function of the script returns."""
    text = script_text._adapter(build(options))
    names: dict[str, Any] = {"MODEL": "/models/base", "model": SimpleNamespace(config=transformers.LlamaConfig(hidden_size=64))}
    for module, name in text.imports:
        names[name] = getattr({"peft": peft}.get(module) or __import__(module, fromlist=[name]), name)
    exec(f"def make(model):\n{text.body}", names)
    return names["make"](names["model"])


@pytest.mark.parametrize(
    ("options", "kind", "values"),
    [
        ({"lora.r": 4, "lora.lora_alpha": 9}, peft.LoraConfig, {"r": 4, "lora_alpha": 9, "init_lora_weights": True}),
        ({"lora.init_lora_weights": "gaussian"}, peft.LoraConfig, {"init_lora_weights": "gaussian"}),
        ({"method": "ia3"}, peft.IA3Config, {"target_modules": None}),
        (
            {"method": "ia3", "ia3.target_modules": ["a", "b"], "ia3.feedforward_modules": ["b"]},
            peft.IA3Config,
            {"target_modules": {"a", "b"}, "feedforward_modules": {"b"}},
        ),
        (
            {"method": "prompt-tuning", "prompt.num_virtual_tokens": 7},
            peft.PromptTuningConfig,
            {"num_virtual_tokens": 7, "prompt_tuning_init": "SAMPLE_VOCAB", "prompt_tuning_init_text": None},
        ),
        (
            {"method": "prompt-tuning", "prompt.prompt_tuning_init_text": "Say"},
            peft.PromptTuningConfig,
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Say", "tokenizer_name_or_path": "/models/base"},
        ),
        ({"method": "p-tuning"}, peft.PromptEncoderConfig, {"encoder_hidden_size": 64}),
        ({"method": "p-tuning", "prompt.encoder_hidden_size": 5}, peft.PromptEncoderConfig, {"encoder_hidden_size": 5}),
        ({"method": "prefix-tuning", "prompt.prefix_projection": True}, peft.PrefixTuningConfig, {"prefix_projection": True}),
    ],
)
def test_each_method_as_the_script_writes_it(options: dict[str, Any], kind: Any, values: dict[str, Any]) -> None:
    found = made(options)
    assert type(found) is kind and found.task_type == "CAUSAL_LM"
    assert {key: getattr(found, key) for key in values} == values


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        ({}, []),
        ({"lora.loraplus_lr_ratio": 8.0}, ["8.0"]),
        ({"lora.init_lora_weights": "pissa"}, ["path_initial_model_for_weight_conversion=start"]),
        ({"lora.loraplus_lr_ratio": 8.0, "lora.init_lora_weights": "pissa"}, ["8.0", "path_initial_model_for_weight_conversion=start"]),
        ({"method": "ia3", "lora.loraplus_lr_ratio": 8.0, "lora.init_lora_weights": "pissa"}, []),
    ],
)
def test_what_a_lora_needs_around_its_training(options: dict[str, Any], marks: list[str]) -> None:
    said = "".join(script_text._start(build(options)))
    assert all(mark in said for mark in marks) and bool(said) is bool(marks)


@pytest.mark.parametrize(
    ("options", "has", "lacks"),
    [
        ({"quantization.load_in_8bit": True}, ["load_in_8bit=True"], ["bnb_4bit"]),
        (
            {"quantization.load_in_4bit": True, "quantization.bnb_4bit_compute_dtype": "bfloat16"},
            ["load_in_4bit=True", "dtype=dtype"],
            ["8bit"],
        ),
        ({"quantization.load_in_4bit": True, "quantization.bnb_4bit_compute_dtype": "float16"}, ["dtype=torch.float16"], ["8bit"]),
    ],
)
@pytest.mark.parametrize("asks_model", [True, False])
def test_how_a_base_is_quantised(options: dict[str, Any], has: list[str], lacks: list[str], asks_model: bool) -> None:
    said = script_text._quantization(build(options), asks_model)
    names = {"BitsAndBytesConfig": SimpleNamespace, "torch": torch, "Path": str, "MODEL": "m"}
    names["quantising"] = SimpleNamespace(bits_and_bytes=lambda folder, **values: SimpleNamespace(**values))
    exec(said, names)
    assert vars(names["quantization"](torch.float32))
    assert all(one in said for one in has) and not any(one in said for one in lacks) and ("Path(MODEL)" in said) is asks_model


@pytest.mark.parametrize(
    ("options", "has"),
    [
        ({}, []),
        ({"objective": "kto"}, ["shuffle", "KL_completion_ids"]),
        ({"objective": "kto", "train_sampling_strategy": "sequential"}, ["KL_completion_ids"]),
        ({"objective": "kto", "kto.loss_type": "apo_zero_unpaired"}, ["shuffle"]),
        ({"objective": "orpo"}, ["whole.columns"]),
    ],
)
def test_what_is_done_to_the_rows_before(options: dict[str, Any], has: list[str]) -> None:
    said = script_text._ready(build(options))
    marks = ("shuffle", "KL_completion_ids", "whole.columns")
    assert [mark for mark in marks if mark in said] == has and bool(said) is bool(has)


@pytest.mark.parametrize("value", ["a", 'a"b', "a'b", "a\\b", ["a", 'b"'], 1, 0.5, None, True, "é\n"])
def test_values_are_written_so_that_python_reads_them(value: Any) -> None:
    assert eval(script_text._value(value)) == value
