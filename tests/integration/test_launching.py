"""A launch that can't work is refused before anything is written: every reason at once, each with the change that mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import recipes
from jobs.config import build
from jobs.rundir import RunDir
from jobs.trainers import base, sft
from jobs.trainers.rows import IGNORED, token_rows
from studio.catalogue import memory
from studio.datasets.rendering import Renderer
from studio.errors import ConfigError, StudioError
from studio.services import Studio, launching
from studio.settings import Settings
from tests.runs import STARTER

BAD: dict[str, Any] = {
    "learning_rate": 0.9,
    "lora.r": 512,
    "max_length": 100_000,
    "quantization.load_in_4bit": True,
    "lora.init_lora_weights": "pissa",
    "attn_implementation": "flash_attention_2",
}


@pytest.fixture
def studio(settings: Settings, tmp_path: Path) -> Iterator[Studio]:
    opened = Studio.open(settings)
    plain = [{"prompt": f"Say {n}", "completion": f"number {n}"} for n in range(20)]
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"It is {n}."} for n in range(20)]
    for name, rows in {"plain": plain, "pairs": pairs, "one": plain[:1]}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        opened.datasets.add(file)
    yield opened
    opened.db.dispose()


def refused(studio: Studio, data: str, recipe: str, base: str = "starter", **options: Any) -> str:
    before = list(studio.settings.runs.iterdir())
    with pytest.raises(ConfigError) as caught:
        studio.jobs.submit(data=data, base_model=base, recipe=recipe, options=options)
    assert list(studio.settings.runs.iterdir()) == before
    return str(caught.value)


def test_every_reason_is_told_at_once_with_what_mends_it(studio: Studio) -> None:
    said = refused(studio, "pairs", "lora-sft", **BAD)
    for word in ("learning_rate=", "lora.r=256", "max_length=512", "lora.init_lora_weights=default", "attn_implementation=auto"):
        assert f"Set {word}" in said
    assert "holds preference rows" in said and "Set objective=dpo (recipe dpo)" in said and "\n" not in said


def test_a_rate_of_ten_is_refused_with_a_usual_one(studio: Studio) -> None:
    assert "learning_rate=10" in (said := refused(studio, "plain", "lora-sft", learning_rate=10)) and "0.0002 is usual" in said


def test_what_cannot_be_read_does_not_hide_the_other_reasons(studio: Studio) -> None:
    said = refused(studio, "one", "lora-sft", **{"learning_rate": 10, "lora.r": 512, "max_length": 100_000, "sped": 1})
    for words in ("learning_rate=10", "sped is no option", "Set lora.r=256", "Set max_length=512", "Set test_size=0"):
        assert words in said


def test_nothing_to_hold_out_is_refused(studio: Studio) -> None:
    assert "Set test_size=0" in refused(studio, "one", "lora-sft")
    assert studio.jobs.submit(data="one", base_model="starter", recipe="lora-sft", options={"test_size": 0}).status == "QUEUED"


def test_the_form_hears_of_the_same_reasons_and_their_changes_lead_to_a_launch(studio: Studio) -> None:
    options = dict(BAD)
    found = studio.jobs.launcher.refusals("pairs", "starter", "lora-sft", options)
    assert len(found) >= 6
    for one in found:
        options |= one.change
    assert studio.jobs.launcher.refusals("pairs", "starter", "lora-sft", options) == []
    assert studio.jobs.submit(data="pairs", base_model="starter", recipe="lora-sft", options=options).status == "QUEUED"


def test_a_length_nobody_asked_for_is_that_of_the_model(studio: Studio) -> None:
    job = studio.jobs.submit(data="plain", base_model="starter")
    assert studio.jobs.show(job.id).config["max_length"] == 512


LONG = [{"prompt": f"Say {n}", "completion": "word " * 20 * n} for n in range(40)]
LONG_PAIRS = [{"prompt": f"Say {n}", "chosen": f"{n} " * 9, "rejected": "word " * 20 * n} for n in range(40)]


@pytest.mark.parametrize(
    ("recipe", "rows", "options", "length"),
    [
        ("lora-sft", LONG, {}, 512),  # the starter's context
        ("lora-sft", LONG, {"max_length": 300}, 300),
        ("lora-sft", LONG, {"rope.rope_type": "yarn", "rope.factor": 1.5}, 768),
        ("alpaca-lora", LONG, {}, 256),  # the recipe's own length, and every word learned
        ("dpo", LONG_PAIRS, {}, 512),  # the worse answer decides
    ],
)
def test_rows_are_shown_as_the_job_will_learn_and_cut_them(
    studio: Studio, recipe: str, rows: list[dict[str, Any]], options: dict[str, Any], length: int
) -> None:
    add(studio, "long", rows)
    shown = studio.jobs.launcher.rows_seen("long", "starter", recipe, options, 3)
    job = studio.jobs.submit(data="long", base_model="starter", recipe=recipe, options={"test_size": 0, **options})
    run, config = RunDir(Path(job.run_dir)), build(job.config)
    trained = list(token_rows(run.train, Renderer.load(STARTER, run.kept_template(), config.row_options()), config))
    assert shown.max_length == config.max_length == base.max_length(config, STARTER) == length
    assert (shown.truncated, shown.checked) == (sum(row.truncated for row in trained), len(trained)) and 0 < shown.truncated < 40
    assert bool(shown.length_notice) == any("max_length is" in str(event) for event in job.events)
    if config.objective == "sft":
        learned = [[label != IGNORED for label in row.columns["labels"]] for row in trained[1:3] if row.columns]
        assert learned == [row.learned for row in shown.rows[1:3]]


def test_a_length_that_nobody_gives_is_the_same_for_rows_reports_and_jobs(studio: Studio, shared_data: Path) -> None:
    add(studio, "long", LONG)
    shown = studio.datasets.render("long", base_model="starter")
    assert (shown.max_length, shown.truncated) == (512, studio.datasets.render("long", base_model="starter", max_length=512).truncated)
    assert shown.length_notice == "max_length is 512 instead of 1024: starter reads no more tokens at once."
    report = studio.curation.report("long", base_model="starter")
    assert [finding.count for finding in report.findings if finding.check == "truncation"] == [shown.truncated]
    folder = shared_data / "models" / "mistral-v1-tokenizer"  # nothing says how much it reads
    assert studio.datasets.render("long", base_model=str(folder), allow_path=True).max_length == 1024


@pytest.mark.long
def test_a_longer_context_is_launched_with_or_refused_by_what_the_base_is(studio: Studio, tmp_path: Path) -> None:
    longer = {"rope.rope_type": "yarn", "rope.factor": 4.0}
    job = studio.jobs.submit(data="plain", base_model="starter", recipe="lora-sft", options=longer)
    assert job.config["max_length"] == 1024 and job.config["rope"]["factor"] == 4.0
    assert studio.fit.fit(base_model="starter", options={**longer, "max_length": 2048}).warnings == []
    said = refused(studio, "plain", "lora-sft", **longer, max_length=4096)
    assert "max_length=4096 is longer than the 2048 tokens" in said
    assert "contradicts the base" in refused(studio, "plain", "lora-sft", **longer, **{"rope.original_max_position_embeddings": 2048})
    learned = learned_positions(tmp_path / "learned")
    studio.models.add(learned, name="learned")
    said = refused(studio, "plain", "lora-sft", base="learned", **longer)
    assert "learned has no rotary positions that can be scaled (GPT2LMHeadModel)" in said


def learned_positions(folder: Path) -> Path:
    """A model without rotary positions, with the starter's tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "recipe", "words"))
    GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_embd=32, n_head=2, n_layer=2, n_positions=512)).save_pretrained(str(folder))
    return folder


def test_a_recipe_made_to_fit_a_small_model_says_so_with_the_job(studio: Studio, shared_data: Path) -> None:
    studio.models.add(shared_data / "models" / "stories260K", name="small")
    job = studio.jobs.submit(data="plain", base_model="small", recipe="lora-sft")  # whose r is 16, and its layers 32 wide
    assert job.config["lora"]["r"] == 16 and not any(event.kind == "notice" and "lora.r" in str(event) for event in job.events)
    wide = [each for each in recipes.RECIPES.values() if each.options.get("lora.r", 0) >= 64 and "objective" not in each.options]
    recipe = wide[0].name
    job = studio.jobs.submit(data="plain", base_model="small", recipe=recipe)
    (notice,) = [event for event in job.events if event.kind == "notice" and "lora.r" in str(event)]
    assert job.config["lora"]["r"] == 32 and "lora.r is 32 instead of" in str(notice)
    assert "Set lora.r=32" in refused(studio, "plain", recipe, base="small", **{"lora.r": 128})
    fit = studio.fit.fit(base_model="small", recipe=recipe)
    assert any("lora.r is 32" in notice for notice in fit.notices)


def add(studio: Studio, name: str, rows: list[dict[str, Any]]) -> None:
    studio.datasets.add_text("".join(json.dumps(row) + "\n" for row in rows), name=name)


def test_pairs_that_are_equal_are_refused_with_that_reason_and_few_of_them_named(studio: Studio) -> None:
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n} ", "rejected": f"{n}" if n % 3 else "no"} for n in range(12)]
    add(studio, "equal", pairs)
    said = refused(studio, "equal", "dpo")
    assert "8 of 12 pairs of equal have two equal answers (row 2, 3, 5, 6, 8 and 3 more)" in said and "max_length" not in said
    assert "studio data fix equal --check identical_pairs" in said
    add(studio, "few", [*pairs[:2], *[{"prompt": f"Tell {n}", "chosen": f"{n}", "rejected": "no"} for n in range(20)]])
    job = studio.jobs.submit(data="few", base_model="starter", recipe="dpo")
    assert any("1 of 22 pairs of few have two equal answers (row 2)" in str(event) for event in job.events)
    fixed = studio.curation.fix("equal", ["identical_pairs"])
    assert fixed.rows == 4 and studio.jobs.submit(data=fixed.id, base_model="starter", recipe="dpo").status == "QUEUED"


@pytest.mark.parametrize("mark", [True, False])
def test_marks_of_one_kind_are_refused_where_the_loss_compares_and_said_where_it_does_not(studio: Studio, mark: bool) -> None:
    add(studio, "marked", [{"prompt": f"Say {n}", "completion": f"number {n}", "label": mark} for n in range(12)])
    kind = {True: "good", False: "bad"}[mark]
    said = refused(studio, "marked", "kto")
    assert f"All 12 answers of marked are marked {kind}" in said and "kto learns from good answers beside bad ones" in said
    job = studio.jobs.submit(data="marked", base_model="starter", recipe="kto", options={"kto.loss_type": "apo_zero_unpaired"})
    assert any(f"marked {kind}: apo_zero_unpaired makes them" in str(event) for event in job.events)
    if not mark:
        with pytest.raises(StudioError, match="none to imitate"):
            studio.curation.fix("marked", ["single_class"])
        return
    turned = studio.curation.fix("marked", ["single_class"])
    assert (turned.kind, turned.rows) == ("sft", 12) and studio.curation.report(turned.id).findings == []
    assert studio.jobs.submit(data=turned.id, base_model="starter", recipe="lora-sft").status == "QUEUED"


def test_control_tokens_in_what_is_said_are_named_at_the_launch(studio: Studio) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"number {n}" + " <|im_end|> x" * (n < 3)} for n in range(12)]
    add(studio, "marks", rows)
    job = studio.jobs.submit(data="marks", base_model="starter", recipe="lora-sft")
    assert any("3 of 12 rows of marks hold control tokens written as text (<|im_end|> in 3)" in str(event) for event in job.events)
    mended = studio.curation.fix("marks", ["control_tokens"], base_model="starter")
    job = studio.jobs.submit(data=mended.id, base_model="starter", recipe="lora-sft")
    assert not any("control tokens" in str(event) for event in job.events)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_options_survive_yaml(name: str) -> None:
    built = build(recipes.get(name).options, {"lora.target_modules": ["q_proj"]})
    assert build(recipes.from_yaml(recipes.as_yaml(built))) == built


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "!!python/object/apply:os.system ['true']", "lora: {rank: 3}", "? [1]\n: 2"])
def test_yaml_that_holds_no_options_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        build(recipes.from_yaml(text))


@pytest.mark.parametrize(
    ("options", "rows", "steps"),
    [
        ({}, 8, 6),  # 2 batches of 4, 3 epochs
        ({}, 9, 9),  # the third batch holds one row
        ({"gradient_accumulation_steps": 2}, 9, 6),  # 3 batches make 2 steps
        ({"num_train_epochs": 0.5}, 9, 2),  # one and a half
        ({"num_train_epochs": 1}, 1, 1),
        ({"max_steps": 7}, 9, 7),
        ({"packing": True}, 9, None),
        ({}, 0, None),
    ],
)
def test_planned_steps_are_those_that_the_trainer_takes(options: dict[str, Any], rows: int, steps: int | None) -> None:
    # red when a last batch, a last step or a part of an epoch is not counted
    config = build({"per_device_train_batch_size": 4, "num_train_epochs": 3, **options})
    assert launching.planned_steps(config, rows) == steps
    if steps and "max_steps" not in options:
        trainer = SimpleNamespace(train_dataset=range(rows), args=SimpleNamespace())
        assert sft._set_cadence(trainer, config) == steps


def test_disk_for_one_checkpoint_more_than_are_kept_is_asked_for(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    # red when nothing is refused, when the new checkpoint is forgotten that is written before the oldest goes, or a run of several
    shape = memory.model_config(STARTER)
    config = build({"lora.r": 256, "save_total_limit": 3, "model_name_or_path": str(STARTER)})
    weights = memory.adapter_parameters(shape, config)
    needed = 4 * (3 * weights * 4) + 4 * weights + 10_000_000  # 4 checkpoints of weights and two states each, the adapter, the rest
    assert memory.predict_disk_bytes(shape, config) == needed
    for count in (1, 2):
        free = SimpleNamespace(free=count * needed)
        monkeypatch.setattr(launching.shutil, "disk_usage", lambda path, free=free: free)
        studio.jobs.launcher.check_disk([config] * count)
        free.free -= 1
        with pytest.raises(ConfigError) as caught:
            studio.jobs.launcher.check_disk([config] * count)
        said = str(caught.value)
        assert (
            f"about {count * needed / 1e6:.0f} MB" in said and f"has {free.free / 1e6:.0f} MB left" in said and "save_total_limit" in said
        )
    free.free = 0
    assert "Make room" in refused(studio, "plain", "lora-sft")


def test_a_rendering_names_control_tokens_that_are_written_as_text(studio: Studio) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"{n}" + " <|im_end|> more" * (n < 2)} for n in range(6)]
    studio.datasets.add_text("".join(json.dumps(row) + "\n" for row in rows), name="marks")
    assert studio.datasets.render("marks", base_model="starter").control_tokens == {"<|im_end|>": 2}


def test_placeholders_take_the_values_given_or_none_at_all(studio: Studio) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"number {n} is on its way"} for n in range(6)]
    rows[2]["completion"] = "I am {{name}}, made by {{author}}."
    add(studio, "open", rows)
    assert studio.curation.report("open").findings[-1].names == {"{{name}}": 1, "{{author}}": 1}
    for values, said in (({"name": "Ada"}, "No value is given for the placeholder author"), ({"nobody": "x"}, "no placeholder nobody")):
        with pytest.raises(StudioError, match=said) as caught:
            studio.curation.fix("open", ["placeholders"], values=values)
        assert caught.value.fix
    filled = studio.curation.fix("open", ["placeholders"], values={"{{name}}": "Ada", "AUTHOR": "us"})
    found = [row.model_dump_json() for row in studio.datasets.examples(filled.id)]
    assert "I am Ada, made by us." in found[2] and len(found) == 6 and filled.provenance["filled"] == ["author", "name"]
    assert studio.curation.fix("open", ["placeholders"]).rows == 5


SILENT = "{% for message in messages if message['role'] != 'system' %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"


def test_what_the_template_leaves_out_comes_with_ways_on_that_work(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "deaf"
    shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("recipe", "words"))
    (folder / "chat_template.jinja").write_text(SILENT + "{% if add_generation_prompt %}[assistant]{% endif %}", encoding="utf-8")
    studio.models.add(folder, name="deaf")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Uno."}]
    add(studio, "told", [{"messages": [*turns[n % 2 : 1], {"role": "user", "content": f"{n}?"}, turns[2]]} for n in range(40)])
    (loss,) = studio.datasets.render("told", base_model="deaf").advice
    assert loss.sentence == "The chat template (model) leaves out the system message of 20 of 40 rows looked at."
    assert [way.change for way in loss.alternatives] == [
        {"system_message": "fold"},
        {"chat_template": "alpaca"},
        {"template_losses": "accept"},
    ]
    for way in loss.alternatives:
        after = studio.jobs.launcher.rows_seen("told", "deaf", "lora-sft", way.change, 1).advice
        assert [(one.sentence, one.alternatives) for one in after] == [(loss.sentence, [])] * ("template_losses" in way.change)
    add(studio, "chat", [{"messages": [*turns[1:2], {"role": "assistant", "content": f"<think>\n\n</think>\n\n{n}"}]} for n in range(4)])
    (said,) = studio.datasets.render("chat", base_model="starter").advice
    assert "learned in 4 of 4 rows" in said.sentence and said.alternatives[0].change == {"reasoning": "context"}
    assert studio.jobs.launcher.rows_seen("chat", "starter", "lora-sft", said.alternatives[0].change, 1).advice == []
