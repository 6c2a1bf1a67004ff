"""Chat templates in a sandbox: compile one, render it, and say which parts it marks as generated.

The environment is transformers' (`chat_template_utils._compile_jinja_template`), so the same template gives the same text.
A template comes from a stranger's model folder, so time, loops and text are limited as well. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from studio.errors import DatasetError

MAX_SOURCE_CHARS = 512 * 1024
MAX_TEXT_CHARS = 128 * 1024**2  # of any one string
MAX_ALLOCATED_CHARS = 1024**3  # of all strings of one render together
MAX_LOOPS = 500_000
MAX_CPU_S = 5.0
MAX_NODES = 200_000  # of any list or dict, shared parts counted each time they occur
MAX_INTEGER = 1_000_000  # as an argument: widths, precisions, repetitions

ANOTHER = "Correct it, or choose chatml, alpaca or plain."
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
LONG_NUMBER = re.compile(r"\d{6,}")

# around generated text, in a marked render only; drawn per process so that no row can contain them
_OPEN = f"\ue000{secrets.token_hex(8)}\ue001"
_CLOSE = f"\ue001{secrets.token_hex(8)}\ue000"
_MARKS = re.compile(f"{_OPEN}|{_CLOSE}")

Span = tuple[int, int]


class LimitError(jinja2.TemplateError):
    """The template wants more time, loops or text than any honest one needs."""


class _Budget(threading.local):
    """What the render running in this thread may still use."""

    marking = False
    loops = 0
    chars = 0
    deadline = 0.0

    def start(self, marking: bool) -> None:
        self.marking, self.loops, self.chars = marking, MAX_LOOPS, MAX_ALLOCATED_CHARS
        self.deadline = time.thread_time() + MAX_CPU_S

    def tick(self) -> None:
        self.loops -= 1
        if self.loops < 0:
            raise LimitError(f"it loops more than {MAX_LOOPS:,} times")
        if self.loops % 256 == 0:
            self.check_time()

    def charge(self, chars: int) -> None:
        self.chars -= chars
        if chars > MAX_TEXT_CHARS or self.chars < 0:
            raise LimitError("it writes more text than fits")
        if chars > 100_000:
            self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self.deadline:
            raise LimitError(f"it computes for more than {MAX_CPU_S:.0f} s")


_budget = _Budget()


class ChatTemplate:
    """One compiled template. Raises DatasetError when `source` is no valid template."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks_generation = GENERATION_TAG.search(source) is not None
        if len(source) > MAX_SOURCE_CHARS:
            raise DatasetError(f"The chat template has {len(source):,} characters.", ANOTHER)
        _budget.start(False)  # jinja folds constant filters while compiling
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise DatasetError(f"The chat template is no valid Jinja, line {exc.lineno}: {exc.message}.", ANOTHER) from None
        except (RecursionError, MemoryError, OverflowError, ValueError, SyntaxError) as exc:
            raise DatasetError(f"The chat template can't be compiled ({type(exc).__name__}).", ANOTHER) from None

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
        _budget.start(marking)
        try:
            pieces = []
            for piece in self._template.generate(**values):
                _budget.charge(len(piece))
                pieces.append(piece)
            return _join(pieces)
        except LimitError as exc:
            raise DatasetError(f"The chat template was stopped: {exc.message}.", ANOTHER) from None
        except jinja2.TemplateError as exc:
            complaint = str(exc.message or type(exc).__name__).strip().rstrip(".")
            raise DatasetError(
                f"The chat template refuses this conversation: {complaint}.", "Change its roles, or choose another template."
            ) from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError) as exc:
            raise DatasetError(f"The chat template fails on this conversation ({type(exc).__name__}: {str(exc)[:200]}).", ANOTHER) from None


@lru_cache(maxsize=32)
def compiled(source: str) -> ChatTemplate:
    """The ChatTemplate of `source`; compiling takes some 20 ms, so the last few are remembered."""
    return ChatTemplate(source)


def _join(pieces: Iterable[str]) -> str:
    """`"".join` that looks at the sum first; the environment's `concat`, through which macros and blocks write."""
    parts = list(pieces)
    _budget.charge(sum(map(len, parts)))
    return "".join(parts)


class _Guarded:
    """An iterable of a for loop that counts its steps; `loop.length` still works."""

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            _budget.tick()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


def _weigh(value: Any) -> int:
    """Characters in `value`, counting shared parts each time they occur. Raises LimitError when it is too large to walk."""
    if isinstance(value, str):
        return len(value)
    total, budget, stack = 0, MAX_NODES, [value]
    while stack:
        item = stack.pop()
        budget -= 1
        if budget < 0:
            raise LimitError("it builds a list or object that is too large")
        if isinstance(item, dict):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, (list, tuple)):
            stack += item
        elif isinstance(item, str):
            total += len(item)
        elif isinstance(item, int) and item.bit_length() > 4096:
            raise LimitError("it computes with numbers that are too large")
    return total


def _check_arguments(args: Iterable[Any]) -> None:
    for arg in args:
        if isinstance(arg, int) and abs(arg) > MAX_INTEGER:
            raise LimitError(f"it asks for a size of {MAX_INTEGER:,} and more")
        if isinstance(arg, (str, list, tuple, dict)):
            _budget.charge(_weigh(arg))


def _check_growth(name: str, text: Any, args: tuple[Any, ...]) -> None:
    """Charge what a filter or method makes of `text` before it does, where that can be much more than `text`."""
    if not isinstance(text, str):
        return
    lines = text.count("\n") + text.count("\t") + 1
    words = text.count(" ") + lines if name == "wordwrap" else lines
    given = [len(arg) if isinstance(arg, str) else arg for arg in args if isinstance(arg, (str, int))]
    if name == "replace" and len(given) >= 2:
        _budget.charge(text.count(str(args[0])) * given[1] + len(text))
    elif name in ("indent", "wordwrap"):
        _budget.charge(words * max(given, default=4) + len(text))
    else:
        _budget.charge(lines * max((arg for arg in args if isinstance(arg, int)), default=0) + len(text))


def _check_join(separator: Any, items: Any) -> None:
    if isinstance(separator, str):
        _budget.charge(len(items) * len(separator) + _weigh(items))


def _check_format(text: Any) -> None:
    if isinstance(text, str) and LONG_NUMBER.search(text):
        raise LimitError("it formats text to an enormous width")


def _guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter with its arguments looked at first."""
    skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0  # context, environment: jinja's own first argument

    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = args[skip:]
        if given and isinstance(given[0], Iterator):
            given = (list(_Guarded(given[0])), *given[1:])
            args = (*args[:skip], *given)
        _check_arguments([*given[1:], *kwargs.values()])
        if given and name not in ("length", "count", "first", "last"):
            _budget.charge(_weigh(given[0]) if isinstance(given[0], (str, list, tuple, dict)) else 0)
        if name == "join" and given:
            given = (given[0] if isinstance(given[0], (str, list, tuple)) else list(_Guarded(given[0])), *given[1:])
            args = (*args[:skip], *given)
            _check_join(given[1] if len(given) > 1 else kwargs.get("d", ""), given[0])
        elif name == "format" and given:
            _check_format(given[0])
        elif given:
            named = [kwargs[key] for key in ("old", "new") if key in kwargs] or list(kwargs.values())
            _check_growth(name, given[0], (*given[1:], *named))
        return _bounded(function(*args, **kwargs))

    guarded.__dict__.update(getattr(function, "__dict__", {}))
    return guarded


def _bounded(value: Any) -> Any:
    """`value`, unless it is too large to walk: pairs of pairs, sixty levels deep, would hang any comparison."""
    if isinstance(value, (list, tuple, dict)):
        _weigh(value)
    return value


def _concat(first: Any, *rest: Any) -> str:
    """`a ~ b`, with its size looked at first."""
    _budget.charge(sum(_weigh(part) for part in (first, *rest)))
    return "".join(map(str, (first, *rest)))


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
        return node if _is_constant(node) else jinja2.nodes.Filter(node, "_literal", [], [], None, None, lineno=node.lineno)

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
    concat = staticmethod(_join)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _Measure().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = (str, list, tuple)
        if operator == "+" and isinstance(left, sized):
            _budget.charge(len(left) + (len(right) if isinstance(right, sized) else 0))
        elif operator == "*" and (isinstance(left, sized) or isinstance(right, sized)):
            sequence, times = (left, right) if isinstance(left, sized) else (right, left)
            _budget.charge(len(sequence) * max(0, times) if isinstance(times, int) else 0)
        elif operator == "**":
            _check_arguments([left])
            if abs(right) > 1000:
                raise LimitError("it computes with numbers that are too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_arguments(right if isinstance(right, tuple) else [right])
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > 4096:
            raise LimitError("it computes with numbers that are too large")
        return _bounded(result)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.tick()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str) or name == "format":
            _check_arguments([*args, *kwargs.values()])
            if name == "join" and args:
                args = (args[0] if isinstance(args[0], (str, list, tuple)) else list(_Guarded(args[0])), *args[1:])
                _check_join(owner, args[0])
            elif name in ("format", "format_map"):
                _check_format(owner)
            else:
                _check_growth(name, owner, (*args, *kwargs.values()))
        return _bounded(super().call(__context, __obj, *args, **kwargs))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}" if _budget.marking else caller()


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
        raise LimitError("it indents JSON by more than 64 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _finalize(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict, int)):
        _budget.charge(_weigh(value))
    return value


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=_finalize)
    environment.filters["tojson"] = _tojson
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _guard_filter(name, function)
    environment.filters["_guarded"] = _Guarded
    environment.filters["_concat"] = _concat
    environment.filters["_literal"] = _bounded
    environment.globals.pop("lipsum", None)  # writes as much text as asked for
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    environment.globals.update(dict=_TemplateDict(), namespace=_TemplateNamespace)
    return environment
