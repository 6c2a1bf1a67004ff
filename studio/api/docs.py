"""The page at /api/docs: every route, its fields and answers, drawn from the OpenAPI schema. Fetches nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { font-size: 1rem; margin: 2rem 0 .25rem; border-top: 1px solid #94a3b8; padding-top: 1rem } code { font-size: .95em }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top } b { color: light-dark(#0f766e, #14b8a6) }
"""


@router.get("/api/docs", include_in_schema=False)
def show(request: Request) -> HTMLResponse:
    schema = request.app.openapi()
    parts = [_route(schema, path, verb, route) for path, verbs in schema["paths"].items() for verb, route in verbs.items()]
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Adapter Studio API</title><style>{STYLE}</style></head><body><h1>Adapter Studio API</h1>"
        f'<p>As a schema: <a href="/api/openapi.json">openapi.json</a>. With a login, send <code>Authorization: Bearer KEY</code>.</p>'
        f"{''.join(parts)}</body></html>"
    )


def _route(schema: dict[str, Any], path: str, verb: str, route: dict[str, Any]) -> str:
    fields = [(p["name"], p["in"], p.get("required", False), p["schema"]) for p in route.get("parameters", [])]
    for content in route.get("requestBody", {}).get("content", {}).values():
        body = _resolve(schema, content["schema"])
        fields += [(name, "body", name in body.get("required", []), field) for name, field in body.get("properties", {}).items()]
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{place}{', required' if required else ''}</td>"
        f"<td>{escape(_type(schema, field))}</td></tr>"
        for name, place, required, field in fields
    )
    said = escape(route.get("description") or route.get("summary", ""))
    return f"<h2><b>{verb.upper()}</b> <code>{escape(path)}</code></h2><p>{said}</p>" + (f"<table>{rows}</table>" if rows else "")


def _resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in part:
        return dict(schema["components"]["schemas"][part["$ref"].rpartition("/")[2]])
    return part


def _type(schema: dict[str, Any], field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(schema, arm) for arm in field["anyOf"])
    inner = _resolve(schema, field)
    name = str(inner.get("type", inner.get("title", "any")))
    return f"array of {_type(schema, inner['items'])}" if name == "array" and "items" in inner else name
