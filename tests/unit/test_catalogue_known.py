"""The catalogue: sizes as published, and stored probes that say what the installed transformers and peft say."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from studio.catalogue import probed, probes
from studio.catalogue.known import CONFIGS, known_models, published_number

ALL = {model.repository: model for model in known_models()}
# one of each kind: dense, hybrid wrapper, vision wrapper, wrapped mixture, mixtures, state spaces, convolutions, old classes, refused
KINDS = (
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3.5-0.8B",
    "Qwen/Qwen3-VL-4B-Instruct",
    "google/gemma-3-4b-it",
    "google/gemma-3n-E2B-it",
    "google/gemma-4-26B-A4B-it",
    "mistralai/Ministral-3-3B-Instruct-2512-BF16",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "openai/gpt-oss-20b",
    "LiquidAI/LFM2-8B-A1B",
    "tiiuae/Falcon-H1-0.5B-Instruct",
    "ibm-granite/granite-4.0-h-micro",
    "openai-community/gpt2",
    "facebook/opt-1.3b",
)
ASKED = tuple(ALL) if os.environ.get("STUDIO_ALL_MODELS") == "1" else KINDS
# the families of 2025 and 2026
FAMILIES = (
    "Qwen/Qwen3.5-", "Qwen/Qwen3-", "google/gemma-3n-", "google/gemma-4-", "mistralai/Ministral-3-", "mistralai/Mistral-Small-3.2-",
    "meta-llama/Llama-4-", "meta-llama/Llama-3.3-", "deepseek-ai/DeepSeek-R1-Distill-", "microsoft/Phi-4-mini", "allenai/Olmo-3-",
    "ibm-granite/granite-4.0-", "HuggingFaceTB/SmolLM3-3B-Base", "LiquidAI/LFM2-", "tiiuae/Falcon-H1-", "nvidia/NVIDIA-Nemotron-",
    "swiss-ai/Apertus-", "zai-org/GLM-4", "openai/gpt-oss-120b", "LGAI-EXAONE/", "ByteDance-Seed/Seed-OSS-", "baidu/ERNIE-4.5-",
    "tencent/Hunyuan-", "MiniMaxAI/",
)  # fmt: skip


def test_the_catalogue_lists_what_people_use_each_once() -> None:
    # red when an entry is lost or listed twice, or a family is left out
    assert len(ALL) == len(known_models()) >= 140
    assert [family for family in FAMILIES if not any(name.startswith(family) for name in ALL)] == []


def test_each_entry_has_its_files_and_no_file_is_left_over() -> None:
    # red when a configuration is added without an entry, or an entry without `make catalogue`
    assert [model.repository for model in ALL.values() if not (CONFIGS / f"{model.name}.json").is_file()] == []
    assert [str(file) for file in probed.stray_files()] == []


def test_stored_probes_belong_to_their_configurations_and_to_the_installed_libraries() -> None:
    # red when a configuration or a library changed and the probes were not made again
    old = [model.repository for model in ALL.values() if model.stored.digest != probes.digest(model.config)]
    assert old == [], "Run `make catalogue`."


def test_sizes_are_as_published() -> None:
    # red when a size is wrong: its build has other parameters than the publisher counts
    assert [model.repository for model in ALL.values() if not model.is_as_published] == []
    for model in ALL.values():
        assert model.parameters > 1e8 and model.context >= 1024 and model.download_bytes >= 2e8, model.repository
        assert (model.stored.probe is None) == bool(model.stored.refusal), model.repository


@pytest.mark.parametrize("repository", ASKED)
def test_a_stored_probe_is_what_the_installed_libraries_say(repository: str) -> None:
    # red when transformers, peft or the probe says something else than what is stored
    model = ALL[repository]
    stored = (probed.STORED / f"{model.name}.json").read_text(encoding="utf-8")
    assert probed.written(probed.made(model)) == stored, "Run `make catalogue`."


def test_the_maker_writes_what_differs_and_a_check_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # red when `make catalogue` leaves an old answer, or the check is silent or writes
    name = "openai-community/gpt2"
    kept = (probed.STORED / f"{ALL[name].name}.json").read_text(encoding="utf-8")
    monkeypatch.setattr(probed, "STORED", tmp_path)
    assert probed.main(["--check", name]) == 1 and list(tmp_path.iterdir()) == []
    assert probed.main([name]) == 0 and (tmp_path / f"{ALL[name].name}.json").read_text(encoding="utf-8") == kept
    assert probed.main(["--check", name]) == 0
    assert probed.main(["nobody/nothing"]) == 1
    assert capsys.readouterr().out.splitlines() == [f"differs {name}", f"made {name}", "no entry of models.toml: nobody/nothing"]


@pytest.mark.parametrize(
    ("text", "number", "tolerance"),
    [("4022468096", 4022468096, 4022468.096), ("8.4B", 8.4e9, 5e7), ("27B", 27e9, 5e8), ("350M", 350e6, 5e5), ("2.53B", 2.53e9, 5e6)],
)
def test_a_published_number_is_as_exact_as_it_is_written(text: str, number: float, tolerance: float) -> None:
    assert published_number(text) == pytest.approx((number, tolerance))


@pytest.mark.parametrize("published", ["1237100000", "1.3B", "1B"])
def test_a_wrong_number_of_parameters_is_noticed(published: str) -> None:
    # red when the comparison accepts what is a thousandth off, or off in the last digit; 1B is right, as rounded as it is
    model = replace(ALL["meta-llama/Llama-3.2-1B"], published=published)
    assert model.is_as_published == (published == "1B")


def test_nearly_all_are_compared_with_what_is_published() -> None:
    # red when entries escape the comparison: five lack a number that counts the same, two need a library that is not installed
    assert [model.repository for model in ALL.values() if not model.published] == [
        "zai-org/GLM-4.5-Air",  # published with a layer that predicts further tokens
        "baidu/ERNIE-4.5-21B-A3B-PT",  # its name rounds down
        "tencent/Hunyuan-7B-Instruct",  # its name rounds down
        "Salesforce/codegen-350M-mono",  # published in words alone
        "MiniMaxAI/MiniMax-M2",  # published as 230B, which is not how transformers counts it
    ]
    assert [model.repository for model in ALL.values() if not model.stored.parameters] == [
        "google/gemma-3n-E2B-it",
        "google/gemma-3n-E4B-it",
    ]


def test_facts_that_were_wrong_stay_right() -> None:
    assert ALL["microsoft/phi-4"].context == 16_384
    assert ALL["meta-llama/Llama-4-Scout-17B-16E-Instruct"].context == 10_485_760
    assert ALL["mistralai/Mistral-7B-Instruct-v0.3"].config["sliding_window"] is None
