"""The page as a whole: built over the real services, without torch, with every field labelled and nothing open to scripts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gradio as gr
import pytest

from studio.services import Studio
from studio.settings import Settings
from studio.ui import build
from studio.ui.page import TABS
from tests.loops import in_a_loop

FIELDS = (gr.Textbox, gr.Number, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup, gr.Radio)


@pytest.fixture
def blocks(settings: Settings) -> gr.Blocks:
    return in_a_loop(lambda: build(Studio.open(settings)))


def parts(blocks: gr.Blocks, *kinds: type) -> list[Any]:
    return [block for block in blocks.blocks.values() if isinstance(block, kinds)]


def test_the_tabs_are_the_loop(blocks: gr.Blocks) -> None:
    assert [tab.label for tab in parts(blocks, gr.Tab) if "studio-tab" in tab.elem_classes] == list(TABS.values())


def test_every_field_has_a_label_and_a_help_line(blocks: gr.Blocks) -> None:
    fields = [field for field in parts(blocks, *FIELDS) if field.visible is True]

    assert len(fields) > 40
    assert not [field.label for field in fields if not (field.label and field.info)]


def test_text_from_outside_never_reaches_a_template_that_gradio_evaluates(blocks: gr.Blocks) -> None:
    # gradio runs the result of a Handlebars template as JavaScript: only the plain value is safe
    assert {panel.html_template for panel in parts(blocks, gr.HTML)} == {"${value}"}


def test_no_handler_of_the_page_is_part_of_a_public_api(blocks: gr.Blocks) -> None:
    assert {handler.api_visibility for handler in blocks.fns.values()} == {"private"}


def test_only_answers_and_buttons_wait_in_gradios_queue(blocks: gr.Blocks) -> None:
    ticking = [handler for handler in blocks.fns.values() if any(event == "tick" for _, event in handler.targets)]

    assert len(ticking) == 8
    assert not any(handler.queue for handler in ticking)


def test_the_page_is_built_without_torch(settings: Settings) -> None:
    script = (
        "import sys; from studio import settings; from studio.services import Studio; from studio import ui;"
        "ui.build(Studio.open(settings.load())); ui.launch_options();"
        "sys.exit(sorted({'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
