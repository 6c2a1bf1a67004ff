"""The page as a whole: built over the real services, without torch, with every field labelled and nothing open to scripts."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from studio import ui
from studio.services import Studio
from studio.settings import Settings
from studio.ui import build, links
from studio.ui.page import TabEntry
from studio.ui.tabs import TABS
from tests.loops import in_a_loop

FIELDS = (gr.Textbox, gr.Number, gr.Dropdown, gr.Checkbox, gr.CheckboxGroup, gr.Radio)


@pytest.fixture
def blocks(settings: Settings) -> gr.Blocks:
    return in_a_loop(lambda: build(Studio.open(settings)))


def parts(blocks: gr.Blocks, *kinds: type) -> list[Any]:
    return [block for block in blocks.blocks.values() if isinstance(block, kinds)]


def test_the_tabs_are_the_loop(blocks: gr.Blocks) -> None:
    assert [tab.label for tab in parts(blocks, gr.Tab) if "studio-tab" in tab.elem_classes] == [entry.title for entry in TABS]


def test_the_first_words_of_a_tab_are_its_question(blocks: gr.Blocks) -> None:
    tabs = [tab for tab in parts(blocks, gr.Tab) if "studio-tab" in tab.elem_classes]

    assert [tab.children[0].value for tab in tabs] == [f"<h2>{entry.title}</h2>\n<p>{entry.question}</p>" for entry in TABS]


def test_every_tab_is_filled_by_its_own_file(blocks: gr.Blocks) -> None:
    tabs = [tab for tab in parts(blocks, gr.Tab) if "studio-tab" in tab.elem_classes]

    assert not [entry.key for entry, tab in zip(TABS, tabs, strict=True) if len(tab.children) < 2]
    assert len({entry.build for entry in TABS}) == len(TABS)


@pytest.mark.parametrize("entry", TABS, ids=[entry.key for entry in TABS])
def test_the_entry_of_a_tab_is_complete(entry: TabEntry) -> None:
    assert re.fullmatch("[a-z]+", entry.key) and [other.key for other in TABS].count(entry.key) == 1
    assert entry.title.istitle() and entry.question.endswith("?")
    assert (inspect.getdoc(entry.build) or "").strip()


def test_of_the_handlers_of_an_event_one_at_most_is_repeated(blocks: gr.Blocks) -> None:
    # red when two are: gradio then repeats both for each other, and the page asks without end
    repeated: dict[tuple[Any, ...], list[str]] = {}
    for one in blocks.config["dependencies"]:
        if one["backend_fn"] and one["trigger_mode"] == "always_last":
            for target in one["targets"]:
                repeated.setdefault(tuple(target), []).append(one["api_name"])

    assert not [names for names in repeated.values() if len(names) > 1]


def test_every_link_starts_on_one_tab() -> None:
    wired = [link for entry in TABS for link in entry.links]
    made = {
        value for name, value in vars(links).items() if inspect.isfunction(value) and value.__module__ == links.__name__ and name[0] != "_"
    }

    assert len(wired) == len(set(wired))
    assert set(wired) == made


def test_no_button_leads_to_a_tab_that_is_not_there() -> None:
    named = [
        (path.name, key)
        for path in Path(ui.__file__).parent.rglob("*.py")
        for key in re.findall(r'\bgo\("(\w+)"\)', path.read_text("utf-8"))
    ]

    assert len(named) > 10
    assert not [(file, key) for file, key in named if key not in [entry.key for entry in TABS]]


def test_the_tabs_may_be_built_in_any_order(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def built() -> list[str]:
        blocks = in_a_loop(lambda: build(Studio.open(settings)))
        names = {block._id: f"{type(block).__name__} {block.elem_id or block.__dict__.get('label')}" for block in blocks.blocks.values()}
        return sorted(
            str(
                (
                    [(names.get(target, ""), event) for target, event in fn.targets],
                    [names[block._id] for block in [*fn.inputs, *fn.outputs]],
                )
            )
            for fn in blocks.fns.values()
        )

    there = built()
    monkeypatch.setattr("studio.ui.blocks.TABS", TABS[::-1])

    assert built() == there


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
