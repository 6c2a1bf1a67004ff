"""Chat templates in a sandbox: compile one, render it, and say which parts it marks as generated.

The environment is transformers' (`chat_template_utils._compile_jinja_template`), so the same template gives the same text.
A template comes from a stranger's model folder, so time, loops and text are limited as well. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from studio.datasets import template_limits as limits
from studio.errors import DatasetError

MAX_SOURCE_CHARS = 512 * 1024

ANOTHER = "Correct it, or choose chatml, alpaca or plain."
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

# around generated text, in a marked render only; drawn per process so that no row can contain them
_OPEN = f"\ue000{secrets.token_hex(8)}\ue001"
_CLOSE = f"\ue001{secrets.token_hex(8)}\ue000"
_MARKS = re.compile(f"{_OPEN}|{_CLOSE}")

Span = tuple[int, int]


class ChatTemplate:
    """One compiled template. Raises DatasetError when `source` is no valid template."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks_generation = GENERATION_TAG.search(source) is not None
        if len(source) > MAX_SOURCE_CHARS:
            raise DatasetError(f"The chat template has {len(source):,} characters.", ANOTHER)
        limits.budget.start(False, alone=True)  # jinja folds constant filters while compiling
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise DatasetError(f"The chat template is no valid Jinja, line {exc.lineno}: {exc.message}.", ANOTHER) from None
        except (RecursionError, MemoryError, OverflowError, ValueError, SyntaxError) as exc:
            raise DatasetError(f"The chat template can't be compiled ({type(exc).__name__}).", ANOTHER) from None

    @cached_property
    def names(self) -> frozenset[str]:
        """Keys and texts that the template names, the fields of messages that it reads among them."""
        found = {node.attr for node in self._tree.find_all(jinja2.nodes.Getattr)}
        texts = (node.value for node in self._tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))
        return frozenset(found.union(texts))

    @cached_property
    def prints_date(self) -> bool:
        """Whether it asks for the day that it is."""
        return self.wants_date_string or "strftime_now" in self._variables("load")

    @cached_property
    def wants_date_string(self) -> bool:
        """Whether it prints a date that it does not set itself."""
        return "date_string" in self._variables("load") - self._variables("store")

    def _variables(self, use: str) -> set[str]:
        return {node.name for node in self._tree.find_all(jinja2.nodes.Name) if node.ctx == use}

    @cached_property
    def _tree(self) -> jinja2.nodes.Template:
        return _environment().parse(self.source)

    def render(self, **values: Any) -> str:
        """The text of one conversation. Raises DatasetError with the template's own complaint."""
        return self._render(False, values)

    def render_marked(self, **values: Any) -> tuple[str, list[Span]]:
        """The text, and the character spans that stood inside `{% generation %}`."""
        marked = self._render(True, values)
        text: list[str] = []
        spans: list[Span] = []
        length, start, last = 0, None, 0
        for match in _MARKS.finditer(marked):
            text.append(marked[last : match.start()])
            length += match.start() - last
            last = match.end()
            if match.group() == _OPEN:
                start = length
            elif start is not None:
                spans.append((start, length))
                start = None
        text.append(marked[last:])
        return "".join(text), spans

    def _render(self, marking: bool, values: dict[str, Any]) -> str:
        try:
            limits.budget.start(marking)
            pieces = []
            for piece in self._template.generate(**values):
                limits.budget.charge(len(piece))
                pieces.append(piece)
            return limits.join(pieces)
        except limits.LimitError as exc:
            raise DatasetError(f"The chat template was stopped: {exc.message}.", ANOTHER) from None
        except jinja2.TemplateError as exc:
            complaint = str(exc.message or type(exc).__name__).strip().rstrip(".")
            raise DatasetError(
                f"The chat template refuses this conversation: {complaint}.", "Change its roles, or choose another template."
            ) from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError) as exc:
            raise DatasetError(f"The chat template fails on this conversation ({type(exc).__name__}: {str(exc)[:200]}).", ANOTHER) from None
        finally:
            limits.budget.end()


@lru_cache(maxsize=32)
def compiled(source: str) -> ChatTemplate:
    """The ChatTemplate of `source`; compiling takes some 20 ms, so the last few are remembered."""
    return ChatTemplate(source)


class _Measure(jinja2.visitor.NodeTransformer):
    """Loops, `a ~ b` and literals are compiled straight into Python, past every hook; as filters they can be measured."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        self.generic_visit(node)
        node.iter = jinja2.nodes.Filter(node.iter, "_guarded", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Filter:
        self.generic_visit(node)
        first, *rest = node.nodes
        return jinja2.nodes.Filter(first, "_concat", rest, [], None, None, lineno=node.lineno)

    def visit_List(self, node: jinja2.nodes.List) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        if _is_constant(node):
            return node
        return jinja2.nodes.Filter(node, "_literal", [], [], None, None, lineno=node.lineno)

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        if node.ctx != "load" or _is_constant(node):
            return node
        return jinja2.nodes.Filter(node, "_literal", [], [], None, None, lineno=node.lineno)

    visit_Dict = visit_List


def _is_constant(node: jinja2.nodes.Node) -> bool:
    return all(isinstance(child, jinja2.nodes.Const) for child in node.iter_child_nodes())


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """transformers' environment, with limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(limits.join)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _Measure().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = (str, list, tuple)
        if operator == "+" and isinstance(left, sized):
            limits.budget.charge(len(left) + (len(right) if isinstance(right, sized) else 0))
        elif operator == "*" and (isinstance(left, sized) or isinstance(right, sized)):
            sequence, times = right, left
            if isinstance(left, sized):
                sequence, times = left, right
            if isinstance(times, int):
                limits.budget.charge(len(sequence) * max(0, times))
        elif operator == "**":
            limits.check_arguments([left])
            if abs(right) > 1000:
                raise limits.LimitError("it computes with numbers that are too large")
        elif operator == "%" and isinstance(left, str):
            limits.check_format(left)
            limits.check_arguments(right if isinstance(right, tuple) else [right])
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > 4096:
            raise limits.LimitError("it computes with numbers that are too large")
        return limits.bounded(result)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        limits.budget.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str) or name == "format":
            limits.check_arguments([*args, *kwargs.values()])
            if name == "join" and args:
                args = (args[0] if isinstance(args[0], (str, list, tuple)) else list(limits.Guarded(args[0])), *args[1:])
                limits.check_join(owner, args[0])
            elif name in ("format", "format_map"):
                limits.check_format(owner)
            else:
                limits.check_growth(name, owner, (*args, *kwargs.values()))
        return limits.bounded(super().call(__context, __obj, *args, **kwargs))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        if limits.budget.marking:
            return f"{_OPEN}{caller()}{_CLOSE}"
        return caller()


class _TemplateDict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _TemplateNamespace(jinja2.utils.Namespace):
    """A namespace that takes no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=…) works
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace can't hold the underscored name {name!r}")


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """transformers' own: jinja's escapes HTML characters."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 64:
        raise limits.LimitError("it indents JSON by more than 64 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _finalize(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict, int)):
        limits.budget.charge(limits.weigh(value))
    return value


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=_finalize)
    environment.filters["tojson"] = _tojson
    for name, function in list(environment.filters.items()):
        environment.filters[name] = limits.guard_filter(name, function)
    environment.filters["_guarded"] = limits.Guarded
    environment.filters["_concat"] = limits.concat
    environment.filters["_literal"] = limits.bounded
    environment.globals.pop("lipsum", None)  # writes as much text as asked for
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    environment.globals.update(dict=_TemplateDict(), namespace=_TemplateNamespace)
    return environment
