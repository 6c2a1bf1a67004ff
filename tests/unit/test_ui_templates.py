"""Text from outside stays text in every template of the page, also in one that is added tomorrow.

Each template is rendered again and again with data that is made up while it asks for it: any variable and any attribute is there,
is one of tests/payloads.py where it is text, and is true, equal, empty or None by chance, until every expression was written.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import ChoiceLoader, DictLoader, Environment, TemplateNotFound, nodes
from jinja2.exceptions import UndefinedError
from jinja2.runtime import Context
from jinja2.utils import missing

from studio.ui import pieces
from tests.payloads import AWAY, CALL, PAYLOADS

UI = Path(pieces.__file__).parent
TEMPLATES = sorted(path.stem for path in (UI / "templates").glob("*.html"))
MACROS = "macros"  # has no page of its own: its expressions are met in the templates that import it
HOSTILE = [*PAYLOADS, f"javascript:{CALL}", f"{AWAY}/a.js"]
MIXED = (
    f"<script>{CALL}</script> onerror={CALL} \"onfocus={CALL} 'onfocus={CALL} <img src=x onerror={CALL}> & {{{{value}}}} ${{{CALL}}} mixed"
)
MOST_RENDERINGS = 3_000
# their results are words of ours around a number, whatever comes in
OF_NUMBERS = {
    "size",
    "duration",
    "left",
    "ago",
    "until",
    "share",
    "clock",
    "counted",
    "parameters",
    "length",
    "round",
    "int",
    "sum",
    "as_json",
}
chance = random.Random()


class Computed(float):
    """What a template has computed: a number, whatever came in."""


class Whatever(str):
    """A value from outside: text that is hostile, and whatever else a template takes it for."""

    def __init__(self, *_: Any) -> None:
        self.truth = chance.random() < 0.7
        self.children: dict[str, Any] = {}

    def child(self, name: object = "") -> Any:
        if str(name) not in self.children:
            kinds = {
                made_up: 86,
                lambda: None: 4,
                lambda: [made_up(), made_up()]: 3,
                chance.random: 3,
                lambda: False: 4,
            }
            self.children[str(name)] = chance.choices(list(kinds), list(kinds.values()))[0]()
        return self.children[str(name)]

    def __iter__(self) -> Iterator[Any]:
        return iter([made_up() for _ in range(chance.choice((0, 1, 2, 2, 2, 3)))])

    def __len__(self) -> int:
        return chance.randint(0, 3)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return made_up()

    def __bool__(self) -> bool:
        return self.truth

    def by_chance(self, *_: Any) -> bool:
        return chance.random() < 0.5

    def number(self, *_: Any) -> Computed:
        return Computed(chance.random())

    def __float__(self) -> float:
        return chance.random()

    def whole(self, *_: Any) -> int:
        return chance.randint(0, 3)

    def __format__(self, spec: str) -> str:
        return "7" if spec else str(self)

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = by_chance  # type: ignore[assignment]
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = number  # type: ignore[assignment]
    __int__ = __index__ = __round__ = __mod__ = __floordiv__ = whole  # type: ignore[assignment]
    __hash__ = str.__hash__


def made_up() -> Whatever:
    return Whatever(MIXED if chance.random() < 0.5 else chance.choice(HOSTILE))


class Anything(Context):
    """Has every variable that a template asks for."""

    def resolve_or_missing(self, key: str) -> Any:
        found = super().resolve_or_missing(key)
        return made_up().child() if found is missing else found


class Watching(Environment):
    """The page's own environment, except that it notes what each expression writes."""

    context_class = Anything

    def __init__(self) -> None:
        page = pieces._environment
        super().__init__(
            loader=page.loader,
            autoescape=page.autoescape,
            finalize=page.finalize,
            undefined=page.undefined,
            trim_blocks=page.trim_blocks,
            lstrip_blocks=page.lstrip_blocks,
        )
        self.globals.update(page.globals, elapsed=_calm(page.globals["elapsed"]))
        self.filters.update(page.filters)
        self.filters.update({name: _calm(page.filters[name]) for name in OF_NUMBERS & page.filters.keys() if name != "as_json"})
        self.filters.update(noted=self._note, noted_where_true=self._note_where_true)
        self.expressions: dict[str, bool] = {}  # by template and place; whether it can hold text
        self.written: list[tuple[str, Any]] = []

    def get_template(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().get_template(name, *args, **kwargs)
        except TemplateNotFound:
            if not str(name).startswith("icons/"):
                raise
            return self.from_string("<svg></svg>")  # an icon of a made-up name

    def getattr(self, obj: Any, attribute: str) -> Any:
        return obj.child(attribute) if isinstance(obj, Whatever) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Whatever):
            return obj.child(argument)
        if isinstance(obj, dict) and isinstance(argument, Whatever):
            return chance.choice(list(obj.values()))
        return super().getitem(obj, argument)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for output in tree.find_all(nodes.Output):
            output.nodes = [self._watched(node, name or "") for node in output.nodes]
        tree.set_environment(self)
        return tree

    def _watched(self, node: nodes.Expr, template: str, note: str = "noted") -> nodes.Expr:
        match node:
            case nodes.TemplateData() | nodes.Const() | None:
                return node
            case nodes.CondExpr():
                node.expr1, node.expr2 = (
                    self._watched(node.expr1, template),
                    node.expr2 and self._watched(node.expr2, template),
                )
                return node
            case nodes.Or():
                node.left, node.right = (
                    self._watched(node.left, template, "noted_where_true"),
                    self._watched(node.right, template),
                )
                return node
        place = f"{template}, line {node.lineno}, expression {sum(key.startswith(template) for key in self.expressions) + 1}"
        self.expressions[place] = _is_text(node)
        return nodes.Filter(node, note, [nodes.Const(place)], [], None, None, lineno=node.lineno)

    def _note_where_true(self, value: Any, place: str) -> Any:
        return self._note(value, place) if value else value

    def _note(self, value: Any, place: str) -> Any:
        self.written.append((place, value))
        return value


def _calm(function: Callable[..., str]) -> Callable[..., str]:
    def called(*args: Any, **kwargs: Any) -> str:
        try:
            return function(*args, **kwargs)
        except ValueError:  # a text where a time or a number belongs
            return "1"

    return called


def _is_text(node: nodes.Expr) -> bool:
    match node:
        case nodes.Filter(name="format", node=nodes.Const(value=shape)):
            return "%s" in shape
        case nodes.Filter(name=name):
            return name not in OF_NUMBERS
        case nodes.Getitem(node=nodes.Dict() | nodes.Name(name="STATUS_WORDS")):
            return False
        case nodes.Call(node=nodes.Name()):  # a macro, whose own expressions are watched, or `elapsed`
            return False
        case nodes.Call(node=nodes.Getattr(node=nodes.Const(value=shape), attr="format")):
            return "{}" in shape
        case nodes.BinExpr():
            return False
        case nodes.Getattr(node=nodes.Name(name="loop")):
            return False
    return True


class Browser(HTMLParser):
    """What a browser would make of it: tags, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def everything(self) -> str:
        return "\0".join(["".join(self.texts), *(value for _, value in self.attributes)])


def check(html: str, written: list[tuple[str, Any]], own_tags: set[str]) -> None:
    page = Browser(html)
    assert page.tags <= own_tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    led = [value for name, value in page.attributes if name in ("href", "src", "action", "data", "formaction")]
    assert not [value for value in led if value.lower().startswith(("javascript:", "data:", "http:", "//"))]
    shown = page.everything()
    assert not [place for place, value in written if type(value) is Whatever and value.strip() not in shown]


def own_tags(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
    """The tags of a template and of all that it takes in."""
    source = (UI / "templates" / f"{name}.html").read_text("utf-8")
    taken = set(re.findall(r'(?:include|from) "(\w+)\.html"', source)) - seen
    tags = set(re.findall(r"<([a-z]\w*)", re.sub(r"{[{%#].*?[}%#]}", "", source, flags=re.S)))
    return tags.union({"svg", "path", "circle", "rect"}, *(own_tags(other, seen | {name}) for other in taken))


def render_until_all_is_met(environment: Watching, name: str, source: str, tags: set[str], watched: str = "") -> None:
    """Raise AssertionError where text became more than text, and where an expression was never written with hostile text."""
    chance.seed(name)
    template = environment.get_template(name)
    left = {place for place in environment.expressions if place.startswith(f"{watched or name},")}
    problems: set[str] = set()
    for _ in range(MOST_RENDERINGS):
        environment.written.clear()
        try:
            html = template.render()
        except (TypeError, ValueError, UndefinedError, OverflowError) as exc:
            problems.add(f"{type(exc).__name__}: {exc}"[:120])
            continue  # data that this template can't have
        check(html, environment.written, tags)
        left -= {place for place, value in environment.written if not environment.expressions[place] or _is_met(value, source)}
        if not left:
            break
    assert not left, (left, problems)


def _is_met(value: Any, source: str) -> bool:
    """Whether an expression has written what is hostile, or what never can be: a number that was computed, a word of the template's own."""
    return isinstance(value, Computed) or f'"{value}"' in source or (isinstance(value, str) and "mixed" in value)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != MACROS])
def test_text_from_outside_stays_text(name: str) -> None:
    render_until_all_is_met(Watching(), f"{name}.html", (UI / "templates" / f"{name}.html").read_text("utf-8"), own_tags(name))


def test_text_from_outside_stays_text_in_what_the_templates_share() -> None:
    environment, source = Watching(), (UI / "templates" / "macros.html").read_text("utf-8")
    uses = '{% from "macros.html" import status, bar, icon %}{{ status(a) }}{{ bar(b, c) }}{{ icon(d) }}'
    environment.loader = ChoiceLoader([DictLoader({"uses.html": uses}), environment.loader])
    environment.get_template("macros.html")

    render_until_all_is_met(environment, "uses.html", source, own_tags("macros"), watched="macros.html")


@pytest.mark.parametrize(
    "hole",
    [
        "<p>{{ row.text | safe }}</p>",
        "<p>{% autoescape false %}{{ text }}{% endautoescape %}</p>",
        "<p title={{ text }}>x</p>",
        "<p>{% if kind == 'rare' %}{{ text | safe }}{% endif %}</p>",
        "<p {{ text }}>x</p>",
        "<p>{% if no is none %}{{ no }}{% endif %}</p>",  # never hostile: the template was not tried
    ],
)
def test_a_hole_in_a_template_is_found(hole: str) -> None:
    environment = Watching()
    environment.loader = DictLoader({"hole.html": hole})

    with pytest.raises(AssertionError):
        render_until_all_is_met(environment, "hole.html", hole, {"p"})


def test_no_template_leaves_the_escaping_to_somebody_else() -> None:
    assert pieces._environment.autoescape is True
    for name in TEMPLATES:
        source = (UI / "templates" / f"{name}.html").read_text("utf-8")
        assert not re.search(r"\|\s*(safe|forceescape)\b|autoescape|\|\s*tojson\b", source), name
        assert not re.search(
            r'\b(href|src|action|formaction|data)\s*=\s*"\s*{[{%]|<(script|style|iframe|object|embed)\b|\son\w+=',
            source,
        ), name


def html_made_in_python(source: str) -> list[int]:
    """Lines where a tag is put together with data outside of a template, or text is declared to be HTML."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.JoinedStr(values=parts) if any(isinstance(part, ast.FormattedValue) for part in parts):
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
            case ast.BinOp(op=ast.Add() | ast.Mod(), left=left, right=right):
                texts = [side.value for side in (left, right) if isinstance(side, ast.Constant)]
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=text), attr="format" | "join" | "replace")):
                texts = [text]
            case ast.Name(id="Markup" | "Template" as name) | ast.Attribute(attr="Markup" | "from_string" as name):
                texts = [f"<{name}>"]
            case _:
                continue
        if any(re.search(r"</?[a-zA-Z!]", text) for text in texts if isinstance(text, str)):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "spliced",
    [
        "f'<b>{name}</b>'",
        "'<b>' + name",
        "'<b>%s</b>' % name",
        "'<b>{}</b>'.format(name)",
        "'<br>'.join(names)",
        "Markup(name)",
    ],
)
def test_html_that_is_put_together_in_python_is_found(spliced: str) -> None:
    assert html_made_in_python(spliced) == [1]


def test_html_is_made_by_templates_alone() -> None:
    files = [*sorted(UI.rglob("*.py")), UI.parent / "auth.py", UI.parent / "web.py"]

    found = {path.name: html_made_in_python(path.read_text("utf-8")) for path in files}

    assert {name: len(lines) for name, lines in found.items() if lines} == {"theme.py": 1}  # our own script, in its tag
