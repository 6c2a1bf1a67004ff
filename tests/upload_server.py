"""A small Hugging Face Hub that takes uploads: `with UploadHub("token") as hub:` serves at `hub.url`; `hub.files` is what arrived.

It knows the routes by which `huggingface_hub` makes a repository and one commit of plain files; anything else is a 404.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class UploadHub:
    """`files`: repository -> name -> content; `created`: what was asked for at creation. Refuses every other token."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict[str, Any]] = {}
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> UploadHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.owner.token}":
            self._send(401, {"error": "Invalid token"})
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.owner.created[name] = wanted
            self._send(200, {"url": f"{self.owner.url}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", self.path):
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._send(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", self.path):
            lines = [json.loads(line) for line in body.splitlines()]
            arrived = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            self.owner.files[found[1]] = arrived
            url = f"{self.owner.url}/{found[1]}/commit/{COMMIT}"
            self._send(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._send(404, {"error": "not found"})

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
