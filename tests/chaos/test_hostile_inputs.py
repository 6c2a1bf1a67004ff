"""Hostile names, archives and headers through HTTP: nothing is written outside the home, nothing ends, and no answer is a 500."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.payloads import PAYLOADS
from tests.servers import web

ROWS = b'{"prompt": "a", "completion": "b"}\n'
PLACES = [
    "../x.jsonl", "../../x.jsonl", "/tmp/x.jsonl", "..\\x.jsonl", "C:\\x.jsonl", "\\\\host\\x.jsonl", "a/../../x.jsonl", "./../x.jsonl",
    "....//x.jsonl", "%2e%2e/x.jsonl", "~/x.jsonl", "/proc/self/environ", "/dev/zero", "con.jsonl", "x.jsonl/", "x\u202elnosj.", "." * 300,
    "a" * 5000 + ".jsonl", "-rf.jsonl", "$(id).jsonl", "x;y.jsonl", "x\ty.jsonl", "\u2024\u2024/x.jsonl", "．．/x.jsonl", "..%c0%afx.jsonl",
]  # fmt: skip


def archives() -> list[tuple[str, bytes]]:
    found = []
    for number, place in enumerate([*PLACES, *[text[:100] for text in PAYLOADS[:15]]]):
        zipped, tarred = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr(place, ROWS)
        with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
            entry = tarfile.TarInfo(place)
            entry.size = len(ROWS)
            if number % 4 == 1:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(ROWS))
        found += [(f"{number}.zip", zipped.getvalue()), (f"{number}.tar.gz", tarred.getvalue())]
    return found


@pytest.mark.long
def test_names_archives_and_headers_do_no_harm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home, said = tmp_path / "home", Counter[str]()

    def note(kind: str, answer: httpx.Response) -> None:
        said[f"{kind} {answer.status_code // 100}xx"] += 1
        assert answer.status_code < 500, (kind, answer.request.url, answer.text[:500])

    with web(home) as server, httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for name, content in archives():
            note("archives", client.post("/api/datasets", files={"file": (name, content)}))
        for place in PLACES:
            note("paths", client.post("/api/datasets", files={"file": (place, ROWS)}))
            for url in ("/api/datasets/{}", "/api/adapters/{}", "/api/jobs/{}", "/gradio_api/file={}"):
                note("paths", client.get(url.format(httpx.QueryParams(x=place[:2000]).get("x").replace("\t", "%09"))))
        for text in [*PLACES, *PAYLOADS]:
            value = bytes(byte for byte in text.encode("utf-8") if byte >= 0x20 and byte != 0x7F).strip()  # others no client sends
            for name in ("Authorization", "Origin", "X-Forwarded-For", "Cookie"):
                note("headers", client.get("/api/status", headers={name: value}))
        assert server.process.poll() is None and client.get("/health").status_code == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"] and not Path("/tmp/x.jsonl").exists()
    with capfd.disabled():
        print("\n" + json.dumps(dict(sorted(said.items()))))
