"""The form of all options says the recipe's defaults and hands on what a person changed."""

from __future__ import annotations

import gradio as gr
import pytest

from jobs import recipes
from jobs.config import build, options
from studio.ui.options import OptionsForm
from tests.loops import in_a_loop


@pytest.fixture
def form() -> OptionsForm:
    def make() -> OptionsForm:
        with gr.Blocks(analytics_enabled=False):
            return OptionsForm()

    return in_a_loop(make)  # gradio opens event loops of its own, and leaves them open, where none runs


def test_every_option_has_a_field_with_words_and_help(form: OptionsForm) -> None:
    assert [option.key for option in form.options] == [option.key for option in options() if option.key != "base_model"]
    for option, field in zip(form.options, form.fields, strict=True):
        assert field.label and field.label != option.key
        assert option.key in field.info and option.description in field.info


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_an_untouched_form_hands_on_nothing(form: OptionsForm, recipe: str) -> None:
    assert form.changed(recipe, form.values(recipe)) == {}


def test_the_form_opens_with_the_default_recipe(form: OptionsForm) -> None:
    assert [field.value for field in form.fields] == form.values(recipes.DEFAULT_RECIPE)
    assert form.field("quantization.load_in_4bit").value is True


@pytest.mark.parametrize(
    ("key", "typed", "read"),
    [
        ("lora.r", 8, 8),
        ("learning_rate", 1, 1.0),
        ("save_steps", "5", 5),
        ("neftune_noise_alpha", "5", 5),
        ("chat_template", "chatml", "chatml"),
        ("lora.target_modules", '["q_proj", "v_proj"]', ["q_proj", "v_proj"]),
        ("quantization.load_in_4bit", False, False),
    ],
)
def test_a_change_is_handed_on_as_the_config_wants_it(form: OptionsForm, key: str, typed: object, read: object) -> None:
    keys = [option.key for option in form.options]
    shown = form.values(recipes.DEFAULT_RECIPE)
    shown[keys.index(key)] = typed

    changed = form.changed(recipes.DEFAULT_RECIPE, shown)

    assert changed == {key: read}
    before, after = (build(recipes.get(recipes.DEFAULT_RECIPE).options, more) for more in ({}, changed))
    assert before != after


def test_a_field_that_is_emptied_again_is_no_change(form: OptionsForm) -> None:
    shown = form.values(recipes.DEFAULT_RECIPE)
    shown[[option.key for option in form.options].index("save_steps")] = "  "

    assert form.changed(recipes.DEFAULT_RECIPE, shown) == {}


def test_a_chat_template_can_not_be_a_file(form: OptionsForm) -> None:
    field = form.field("chat_template")

    assert isinstance(field, gr.Dropdown) and not field.allow_custom_value
