"""The page at /api/docs: every route, its fields and answers, drawn from the OpenAPI schema.

Fetches nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from fastapi import APIRouter, Request
from fastapi.openapi.models import OpenAPI, Operation, Parameter, PathItem, Reference, Schema
from fastapi.responses import HTMLResponse

router = APIRouter()

VERBS = ("get", "post", "put", "patch", "delete")
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { font-size: 1rem; margin: 2rem 0 .25rem; border-top: 1px solid #94a3b8; padding-top: 1rem }
code { font-size: .95em }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top }
b { color: light-dark(#0f766e, #14b8a6) }
"""
HEAD = '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Adapter Studio API</title>'
ABOUT = '<p>As a schema: <a href="/api/openapi.json">openapi.json</a>. With a login, send <code>Authorization: Bearer KEY</code>.</p>'


@router.get("/api/docs", include_in_schema=False)
def show(request: Request) -> HTMLResponse:
    document = OpenAPI.model_validate(request.app.openapi())
    parts = []
    for path, item in (document.paths or {}).items():
        for verb in VERBS:
            operation: Operation | None = getattr(PathItem.model_validate(item), verb)
            if operation is not None:
                parts.append(_route(document, path, verb, operation))
    return HTMLResponse(
        f'<!doctype html><html lang="en">{HEAD}<style>{STYLE}</style></head>'
        f"<body><h1>Adapter Studio API</h1>{ABOUT}{''.join(parts)}</body></html>"
    )


def _route(document: OpenAPI, path: str, verb: str, operation: Operation) -> str:
    rows = [*_parameters(document, operation), *_body(document, operation)]
    said = escape(operation.description or operation.summary or "")
    head = f"<h2><b>{verb.upper()}</b> <code>{escape(path)}</code></h2><p>{said}</p>"
    return head + "".join(["<table>", *rows, "</table>"] * bool(rows)) + _answers(document, operation)


def _parameters(document: OpenAPI, operation: Operation) -> Iterator[str]:
    for parameter in operation.parameters or []:
        if isinstance(parameter, Parameter):
            kind = _type(document, parameter.schema_)
            yield _row(parameter.name, str(parameter.in_.value), bool(parameter.required), kind)


def _body(document: OpenAPI, operation: Operation) -> Iterator[str]:
    if operation.requestBody is None or isinstance(operation.requestBody, Reference):
        return
    for content in operation.requestBody.content.values():
        body = _resolve(document, content.schema_)
        for name, field in (body.properties or {}).items():
            yield _row(name, "body", name in (body.required or []), _type(document, field))


def _answers(document: OpenAPI, operation: Operation) -> str:
    """The type of what a route answers, by its status."""
    found = []
    for status, response in (operation.responses or {}).items():
        for content in (getattr(response, "content", None) or {}).values():
            if str(status).startswith("2"):
                found.append(f"<p>{escape(str(status))}: {escape(_type(document, content.schema_))}</p>")
    return "".join(found)


def _row(name: str, place: str, is_required: bool, kind: str) -> str:
    where = place + ", required" * is_required
    return f"<tr><td><code>{escape(name)}</code></td><td>{where}</td><td>{escape(kind)}</td></tr>"


def _resolve(document: OpenAPI, part: Schema | Reference | bool | None) -> Schema:
    """The schema that a reference names; an empty one, which takes anything, where there is none."""
    if isinstance(part, (Schema, Reference)) and part.ref and document.components is not None:
        return _resolve(document, (document.components.schemas or {}).get(part.ref.rpartition("/")[2]))
    if isinstance(part, Schema):
        return part
    return Schema()


def _type(document: OpenAPI, part: Schema | Reference | bool | None) -> str:
    inner = _resolve(document, part)
    if inner.anyOf:
        return " or ".join(_type(document, arm) for arm in inner.anyOf)
    if inner.type == "array" and inner.items is not None and not isinstance(inner.items, list):
        return f"array of {_type(document, inner.items)}"
    if inner.type == "object" and inner.title:
        return inner.title
    return str(inner.type or inner.title or "any")
