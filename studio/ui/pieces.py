"""Fills the templates of `templates/`: strip, lists, curves, tokens, transcript. All escaping happens here.

Text from outside (rows, names, answers, logs) reaches the page only through these autoescaped templates, as the plain
`value` of a gr.HTML. It must never reach `html_template` or `{{...}}` of a gr.HTML: gradio renders those with Handlebars
and then evaluates the *result* as a JavaScript template, so a row that holds `${...}` would run.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from studio.errors import StudioError
from studio.settings import STATIC
from studio.ui import words

# A click on whatever carries data-act (a button or a link) becomes the component's `select` event with its data-* values;
# so does a choice in a menu with data-menu, which adds the `value`.
ACTS = """
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-act]');
  if (!target || !element.contains(target) || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const fields = target.dataset.act === 'fill' ? target.parentElement.querySelectorAll('[data-fill]') : [];
  const values = Object.fromEntries([...fields].map((field) => [field.dataset.fill, field.value]));
  trigger('select', {...target.dataset, values});
});
element.addEventListener('change', (event) => {
  const menu = event.target.closest('select[data-menu]');
  if (!menu || !element.contains(menu)) return;
  studio.leaveMenu(menu);
  trigger('select', {...menu.dataset, value: menu.value});
});
"""

# characters that change the direction of the text behind them: unclosed in a name, they would change it in ours too
TURNS, ISOLATES = "\u202a\u202b\u202d\u202e", "\u2066\u2067\u2068"


def _closed(value: Any) -> Any:
    """`value`, with the ends of the turns that it leaves open."""
    if not isinstance(value, str) or value.isascii() or hasattr(value, "__html__"):
        return value
    turns = sum(map(value.count, TURNS)) - value.count("\u202c")
    isolates = sum(map(value.count, ISOLATES)) - value.count("\u2069")
    return value + "\u2069" * max(0, isolates) + "\u202c" * max(0, turns)


_environment = Environment(
    loader=FileSystemLoader([Path(__file__).parent / "templates", STATIC]),
    autoescape=True,
    finalize=_closed,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
for _filter in (
    words.size,
    words.duration,
    words.left,
    words.ago,
    words.until,
    words.share,
    words.clock,
    words.parameters,
):
    _environment.filters[_filter.__name__] = _filter
_environment.filters["counted"] = words.count  # jinja has a filter `count` of its own
_environment.filters["as_json"] = functools.partial(json.dumps, ensure_ascii=False)
_environment.globals.update(elapsed=words.elapsed, STATUS_WORDS=words.STATUS_WORDS)


def piece(name: str, /, **data: Any) -> str:
    """The HTML of `templates/<name>.html` filled with `data`, every value escaped."""
    return _environment.get_template(f"{name}.html").render(**data).strip()


def panel(
    value: str = "",
    *,
    elem_id: str | None = None,
    elem_classes: str | list[str] | None = None,
    visible: bool = True,
) -> gr.HTML:
    """A place on the page that shows pieces."""
    return gr.HTML(
        value,
        elem_id=elem_id,
        elem_classes=elem_classes,
        visible=visible,
        js_on_load=ACTS,
        apply_default_css=False,
    )


def notice(error: StudioError) -> str:
    """A refusal with its reason and fix, or the list of problems when a form has several."""
    items = error.details.get("problems") or []
    if len(items) < 2 or not all(isinstance(problem, str) for problem in items):
        items = []
    return piece("notice", tone="bad", message=error.message, fix=error.fix, items=items)


def said(message: str, tone: str = "good", fix: str = "") -> str:
    """A notice of one sentence; tones are good, bad and info."""
    return piece("notice", tone=tone, message=message, fix=fix, items=[])


def empty(sentence: str, button: str = "", act: str = "") -> str:
    """An empty state: one sentence and one button that helps."""
    return piece("empty", sentence=sentence, button=button, act=act)
