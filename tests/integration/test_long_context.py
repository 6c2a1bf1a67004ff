"""Positions beyond the base's context reach everything that loads it: training, exports with their proofs, chat beside the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel

from jobs.sections import RopeSection
from studio.catalogue import text_models
from studio.catalogue.models import read_json
from studio.datasets.rendering import Renderer
from studio.engine import intake, local
from studio.engine.answer import GeneratedAnswer
from studio.engine.decoding import Passes
from studio.engine.protocol import AdapterRef, GenerationRequest, ModelFolder
from studio.errors import EngineError, ModelError
from studio.services import Studio
from studio.settings import STATIC, Settings
from studio.types import GenerationParams
from tests.engines import make_adapter
from tests.export_runs import TRAINED, exported

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
STARTER = STATIC / "starter"
YARN = {"rope_type": "yarn", "factor": 4.0}
SENTENCE = "The cat saw the moon over the tree. "
EXPORTS: list[dict[str, Any]] = [
    {"format": "adapter"},
    {"format": "merged"},
    {"format": "gguf"},
    {"format": "gguf-lora"},
    {"format": "gguf", "unscaled": True},
]


def text_of(tokens: int) -> str:
    """About so many tokens of a text."""
    renderer = Renderer.load(STARTER)
    each = len(renderer.tokenizer.encode(SENTENCE * 20, add_special_tokens=False).ids) / 20
    return SENTENCE * round(tokens / each)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An adapter that was trained with YaRN, in every form, proved on prompts of up to 1,500 tokens."""
    options = TRAINED | {"learning_rate": 3e-3, "max_length": 512, **{f"rope__{key}": value for key, value in YARN.items()}}
    questions = [{"messages": [{"role": "user", "content": text_of(tokens) + "Who saw the moon?"}]} for tokens in (20, 700, 1500)]
    case = {"name": "long", "model": str(STARTER), "options": options, "exports": EXPORTS, "questions": questions}
    return exported(tmp_path_factory.mktemp("long"), [case])


@pytest.mark.long
@pytest.mark.parametrize("number", range(4), ids=lambda n: EXPORTS[n]["format"])
def test_every_format_answers_as_the_adapter_does_at_1500_tokens(made: dict[str, Any], number: int) -> None:
    verified = made["long"][number]["verified"]
    assert verified["passed"] and verified["worst_share"] < 0.05 and verified["effect"] > 1, verified


@pytest.mark.long
def test_a_file_without_the_scaling_fails_its_proof(made: dict[str, Any]) -> None:
    assert not made["long"][4]["verified"]["passed"]


@pytest.mark.long
def test_every_format_says_how_far_it_reads_and_how_programs_are_told(made: dict[str, Any]) -> None:
    adapter, merged, whole, lora = (Path(found["path"]) for found in made["long"][:4])
    config = read_json(merged / "config.json")
    assert config["max_position_embeddings"] == 2048
    assert config["rope_parameters"] == {**YARN, "rope_theta": 1e6, "original_max_position_embeddings": 512}
    assert read_json(adapter / "studio.json")["rope"] == YARN
    fields = gguf.GGUFReader(whole / "long-f16.gguf").fields
    scaling = {key: fields[f"llama.rope.scaling.{key}"].contents() for key in ("type", "factor", "original_context_length")}
    assert scaling == {"type": "yarn", "factor": 4.0, "original_context_length": 512}
    assert fields["llama.context_length"].contents() == 2048
    cards = [(folder / "README.md").read_text(encoding="utf-8") for folder in (adapter, merged, whole, lora)]
    assert all("yarn x 4): it reads 2,048 tokens at once" in card for card in cards)
    assert '--hf-overrides \'{"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "yarn", ' in cards[0]
    assert "--max-model-len 2048" in cards[0] and "text.max_position_embeddings = 2048" in cards[0]
    assert "vllm serve THIS-FOLDER --max-model-len 2048" in cards[1] and "-c 2048" in cards[2]
    assert "--lora long-lora.gguf --rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 512 -c 2048" in cards[3]


@pytest.mark.long
def test_an_exported_adapter_comes_back_with_its_positions_and_is_not_added_to_others(
    made: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    studio = Studio.open(settings, at_terminal=True)
    back = studio.adapters.add(Path(made["long"][0]["path"]), "back", base_model="starter")
    assert read_json(Path(back.path) / "studio.json") == {"rope": YARN}
    plain = studio.adapters.add(make_adapter(STARTER, tmp_path / "plain", 1), "plain", base_model="starter")
    with pytest.raises(ModelError, match=r"different positions \(back: yarn x 4, plain: as the base has them\)"):
        studio.merging.merge({"back": 0.5, "plain": 0.5})
    for kind, refused in (("dynamic", ("gguf", "gguf-lora")), ("llama3", ("gguf-lora",))):
        (Path(plain.path) / "studio.json").write_text(json.dumps({"rope": {"rope_type": kind, "factor": 4.0}}), encoding="utf-8")
        assert {name for name, reason in studio.exports.formats("plain").items() if kind in reason} == set(refused)
    shutil.copytree(made["long"][0]["path"], tmp_path / "wrong")
    (tmp_path / "wrong" / "studio.json").write_text(
        json.dumps({"rope": {**YARN, "original_max_position_embeddings": 4096}}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="4096 contradicts the base"):
        studio.adapters.add(tmp_path / "wrong", "wrong", base_model="starter")


def asked(model: local.LocalModel, adapter: AdapterRef | None, *tokens: int) -> list[GeneratedAnswer]:
    """Prompts of so many tokens, asked together."""
    params = GenerationParams(temperature=0, max_new_tokens=24)
    request = GenerationRequest("m", model.folder, params, prompts=tuple(map(text_of, tokens)), adapter=adapter)
    answers = intake.prepare(request, lambda _: None)
    passes = Passes(model)
    passes.join(answers, [model.attach(adapter).key if adapter else None] * len(answers))
    while passes.answers:
        passes.step()
    return answers


@pytest.mark.parametrize("values", [YARN, {"rope_type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}])
def test_chat_answers_with_the_positions_of_the_adapter_and_the_base_keeps_its_own(tmp_path: Path, values: dict[str, Any]) -> None:
    adapter = AdapterRef("long", make_adapter(STARTER, tmp_path / "long", 1, strength=0.05))
    (adapter.path / "studio.json").write_text(json.dumps({"rope": values}), encoding="utf-8")
    model = local.load(ModelFolder("starter", STARTER))
    (before,) = asked(model, None, 400)
    (short,) = asked(model, adapter, 700)
    mine, beside = asked(model, adapter, 1500, 700)
    config = text_models.config_of(STARTER, RopeSection.model_validate(values))
    base = text_models.load(STARTER, config=config, dtype=torch.float32)[0]
    theirs = PeftModel.from_pretrained(base, str(adapter.path)).eval()
    ids = torch.tensor([list(mine.prompt_ids)])
    with torch.inference_mode():
        said = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0)
    assert 1400 < len(mine.prompt_ids) < 1600 and mine.ids == said[0].tolist()[ids.shape[1] :][: len(mine.ids)] and len(mine.ids) > 8
    assert beside.ids == short.ids  # whatever was read before it, or is read with it
    assert asked(model, None, 400)[0].ids == before.ids
    attached = model.attach(adapter)
    assert not attached.is_mixable and f"positions of its own ({values['rope_type']} x 4)" in attached.notes[0]
    with pytest.raises(EngineError, match="context is 512 tokens"):
        asked(model, None, 1500)
    with pytest.raises(EngineError, match="context is 2048 tokens"):
        asked(model, adapter, 2200)
