"""Options of a job: one home for all, every problem named once and at once."""

from __future__ import annotations

import pytest

from jobs import config, recipes
from studio.catalogue.compatibility import conflicts
from studio.errors import ConfigError, NotFoundError


def test_layers_are_merged_and_later_ones_win() -> None:
    built = config.build({"quantization.load_in_4bit": True, "lora": {"r": 8, "lora_alpha": 8}}, {"lora.r": 4})
    assert (built.lora.r, built.lora.lora_alpha, built.quantization.load_in_4bit) == (4, 8, True)


def test_all_problems_are_named_at_once_and_each_option_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config.build({"learning_rate": "fast", "lora.target_modules": 5, "optim": "magic", "lora.rank": 3, "max_lenght": 12})
    problems = caught.value.details["problems"]
    assert len(problems) == 5 and "\n" not in str(caught.value)
    assert any(problem.startswith("max_lenght is no option, did you mean max_length") for problem in problems)
    assert any(problem.startswith("lora.rank is no option") for problem in problems)
    assert sum(problem.startswith("lora.target_modules=") for problem in problems) == 1


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("lora.r=8", 8),
        ("learning_rate=2e-4", 2e-4),
        ('lora.target_modules=["q_proj", "v_proj"]', ["q_proj", "v_proj"]),
        ("lora.target_modules=all-linear", "all-linear"),
        ("packing=true", True),
        ("eval_steps=null", None),
        ("chat_template=a=b", "a=b"),
    ],
)
def test_assignments_are_json_where_they_parse_as_json(assignment: str, value: object) -> None:
    assert list(config.parse_assignments([assignment]).values()) == [value]


def test_an_assignment_of_endless_brackets_is_text() -> None:
    brackets = "[" * 100_000
    assert config.parse_assignments([f"seed={brackets}"]) == {"seed": brackets}


def test_an_assignment_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        config.parse_assignments(["lora.r", "=3"])


@pytest.mark.parametrize("option", config.options(), ids=lambda option: option.key)
def test_every_option_explains_itself_and_its_default_is_allowed(option: config.Option) -> None:
    assert option.description.endswith(".") and len(option.description) > 20
    if option.default is not None:
        config.build({option.key: option.default})


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_valid(name: str) -> None:
    recipe = recipes.get(name)
    built = config.build(recipe.options)
    assert built != config.build() or name == "lora-sft"
    assert recipe.description.endswith(".") and list(conflicts(built, "cpu")) == []


def test_a_list_of_choices_takes_one_alone_and_names_a_wrong_one() -> None:
    assert config.build({"dpo.loss_type": "ipo"}).dpo.loss_type == ["ipo"]
    with pytest.raises(ConfigError, match=r"dpo\.loss_type"):
        config.build({"dpo.loss_type": ["sigmoid", "magic"]})


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="qlora-sft"):
        recipes.get("magic")


def test_a_config_survives_json() -> None:
    built = config.build(recipes.get("qlora-sft").options, {"lora.r": 3})
    assert config.JobConfig.model_validate_json(built.model_dump_json()) == built
