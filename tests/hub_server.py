"""A small Hugging Face Hub on this machine: datasets and models made of files, and a list of what was asked.

`with Hub({"org/name": {"train.jsonl": b"…"}}) as hub:` serves at `hub.url`, which clients take as HF_ENDPOINT. It knows the few routes that
`datasets` and `huggingface_hub` use to stream a dataset and to fetch a model; anything else is a 404.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
SLOW_BYTES = 200_000  # smaller files are never sent slowly
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = r"([\w.-]+/[\w.-]+|[\w.-]+)"


class Hub:
    """Serves datasets; `gated` ones only to those who show `token`. `models`: name -> downloads, to be searched.

    `published`: models to be fetched. With `slowly`, files are sent in pieces with a pause between.
    """

    def __init__(
        self,
        datasets: Mapping[str, Files],
        gated: tuple[str, ...] = (),
        token: str = "",
        models: Mapping[str, int] | None = None,
        published: Mapping[str, Files] | None = None,
        slowly: bool = False,
    ) -> None:
        self.repositories = {"datasets": datasets, "models": published or {}}
        self.slowly = slowly
        self.models = models or {}
        self.gated = gated
        self.token = token
        self.requests: list[tuple[str, str, str]] = []  # method, path, Authorization
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
        if path == "/api/models":
            self._models(parse_qs(urlsplit(self.path).query))
        elif found := re.fullmatch(rf"/api/(datasets|models)/{REPO}(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path):
            kind, name, what, _, folder = found.groups()
            if self._may_read(kind, name):
                self._api(self.owner.repositories[kind][name], name, what or "revision", (folder or "").strip("/"), body)
        elif found := re.fullmatch(rf"(/datasets)?/{REPO}/resolve/([^/]+)/(.+)", path):
            kind, (name, file) = {None: "models"}.get(found[1], "datasets"), (found[2], found[4])
            if self._may_read(kind, name):
                self._file(self.owner.repositories[kind][name].get(file))
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _models(self, asked: Mapping[str, list[str]]) -> None:
        word, most = asked["search"][0].lower(), int(asked["limit"][0])
        found = sorted((name for name in self.owner.models if word in name.lower()), key=lambda name: -self.owner.models[name])[:most]
        answer = [
            {"id": name, "downloads": self.owner.models[name], "gated": name in self.owner.gated, "tags": asked["filter"]} for name in found
        ]
        self._send(200, json.dumps(answer).encode())

    def _may_read(self, kind: str, name: str) -> bool:
        if name not in self.owner.repositories[kind]:
            self._send(
                404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
            return False
        if name in self.owner.gated and self.headers.get("Authorization") != f"Bearer {self.owner.token}":
            self._send(401, b'{"error": "Access is restricted"}', {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return False
        return True

    def _api(self, files: Files, name: str, what: str, folder: str, body: bytes) -> None:
        if what == "revision":
            siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            facts = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
            self._send(200, json.dumps({**facts, "siblings": siblings}).encode())
            return
        wanted = json.loads(body).get("paths", []) if what == "paths-info" else list(files)
        entries: list[dict[str, Any]] = []
        for file in wanted:
            if file in files:
                entries.append({"type": "file", "path": file, "size": len(files[file]), "oid": hashlib.sha1(files[file]).hexdigest()})
            elif any(known.startswith(f"{file}/") for known in files):
                entries.append({"type": "directory", "path": file, "size": 0, "oid": "0" * 40})
        if what == "tree":
            below = f"{folder}/" if folder else ""
            entries = [entry for entry in entries if entry["path"].startswith(below)]
            if below and not entries:
                self._send(404, b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"})
                return
            folders = {
                below + entry["path"].removeprefix(below).split("/")[0] for entry in entries if "/" in entry["path"].removeprefix(below)
            }
            if "recursive=true" not in self.path.lower():
                entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(below)]
            entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        self._send(200, json.dumps(entries).encode())

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self._send(200, content, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            self._send(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        self._send(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.owner.slowly or len(content) < SLOW_BYTES:
            self.wfile.write(content)
            return
        for start in range(0, len(content), len(content) // 8 + 1):
            self.wfile.write(content[start : start + len(content) // 8 + 1])
            time.sleep(0.2)
